"""Limits, circuits and tokens of all processes of a service as one."""
