"""The one place that knows what time it is and how to wait. Everything else is given a `Clock`."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the policies see it. All values are seconds."""

    def monotonic(self) -> float:
        """A time that never jumps: for every duration, deadline and expiry."""
        ...

    def wall(self) -> float:
        """The time of day (Unix epoch): for HTTP dates only."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clocks and the event loop's timers."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK: Clock = SystemClock()
