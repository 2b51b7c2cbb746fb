"""One timer for many time limits: those of all connections, of all requests of an application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

NEVER = float("inf")
GRANULARITY = 0.01
"""Seconds between two sweeps at least: how late a limit may be enforced, and how often everything is looked at."""


class Sweeper:
    """Calls `sweep(now)` when the earliest known limit has passed; `sweep` returns when the next one falls due.

    A limit that is lifted in time, as nearly all are, costs no timer: the sweep finds nothing and asks for a later
    one. A limit later than the next sweep, as nearly all new ones are, costs one comparison. All times are
    `loop.time()` in seconds.
    """

    __slots__ = ("_loop", "_sweep", "_timer", "when")

    def __init__(self, loop: asyncio.AbstractEventLoop, sweep: Callable[[float], float]) -> None:
        self._loop = loop
        self._sweep = sweep
        self._timer: asyncio.TimerHandle | None = None
        self.when = NEVER
        """The next sweep."""

    def arm(self, when: float) -> None:
        """See to it that a sweep happens at `when`, or soon after."""
        if when < self.when:
            self.stop()
            self.when = when
            self._timer = self._loop.call_at(when, self._fire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.when = NEVER

    def _fire(self) -> None:
        self._timer = None
        self.when = NEVER
        now = self._loop.time()
        following = self._sweep(now)
        if following < NEVER:
            self.arm(max(following, now + GRANULARITY))
