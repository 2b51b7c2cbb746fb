"""The decisions: plain functions and values of (state, now, chance), without await, socket, clock or logger."""
