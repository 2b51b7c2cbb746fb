"""Limits, circuits and tokens of all processes of a service as one."""

from fastapi_http_client.fleet.fleet import Fleet

__all__ = ["Fleet"]
