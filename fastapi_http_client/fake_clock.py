"""A clock for tests: its time passes only when the test says so, or when everybody waits for it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Sized

from fastapi_http_client.clock import SYSTEM_CLOCK

_RESOLUTION = 1e-9  # seconds, as of the loop's own timers
_IDLE_TURNS = 10  # turns of the loop in a row without work before time jumps; sockets are polled in each of them
_TURNS = 1000  # before it jumps in any case: somebody spins, or the loop (uvloop) does not tell whether it has work


class FakeClock:
    """A `Clock` without real time. All values are in seconds.

    With `autojump` the time jumps to the earliest deadline of a sleeper whenever the event loop has nothing else to do,
    so code that sleeps ends at once and in the right order. Without it only `advance()` moves the time. What the loop
    cannot see (a thread, a server in another process) does not hold up the time.

    `sleeps` holds every sleep that was asked for, in order.
    """

    def __init__(self, start: float = 1_000.0, wall: float = 1_700_000_000.0, autojump: bool = True) -> None:
        self.sleeps: list[float] = []
        self._start = start
        self._now = start
        self._wall = wall
        self._autojump = autojump
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._watched: asyncio.AbstractEventLoop | None = None

    @property
    def elapsed(self) -> float:
        """The time since the start."""
        return self._now - self._start

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall + self.elapsed

    async def sleep(self, seconds: float) -> None:
        """Waits for the fake time; for no time or less it gives way to other tasks once."""
        self.sleeps.append(seconds)
        deadline = self._now + seconds
        if not deadline > self._now:
            await SYSTEM_CLOCK.sleep(0)
            return
        loop = asyncio.get_running_loop()
        awake: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._sleepers, (deadline, next(self._order), awake))
        if self._autojump and self._watched is not loop:
            self._watched = loop
            loop.call_soon(self._watch, loop, 0, 0)
        await awake

    def advance(self, seconds: float) -> None:
        """Moves the time and wakes those whose deadline has come, earliest first; they run when the loop does.

        A deadline that only rounding keeps a nanosecond away is taken along: `0.1 + 0.2` reaches `0.3`.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"time goes forward only, by a finite number of seconds, not {seconds!r}")
        now = self._now + seconds
        self._move(now, last=now + max(_RESOLUTION, 4 * math.ulp(now)))

    def _move(self, now: float, last: float) -> None:
        """Moves the time to `now`, or to the latest deadline up to `last` if that is later."""
        while (deadline := self._earliest()) <= last:
            now = max(now, deadline)
            heapq.heappop(self._sleepers)[2].set_result(None)
        self._now = now

    def _earliest(self) -> float:
        """The next deadline, infinite when nobody sleeps. Forgets sleepers that were cancelled or lost their loop."""
        while self._sleepers:
            deadline, _, awake = self._sleepers[0]
            if not awake.done() and not awake.get_loop().is_closed():
                return deadline
            heapq.heappop(self._sleepers)
        return math.inf

    def _watch(self, loop: asyncio.AbstractEventLoop, turns: int, idle: int) -> None:
        """Runs once a turn of the loop while somebody sleeps, and lets time jump when everybody waits for it."""
        if self._watched is not loop:
            return
        deadline = self._earliest()
        if deadline == math.inf:
            self._watched = None
            return
        turns, idle = turns + 1, idle + 1 if _is_idle(loop) else 0
        if idle == _IDLE_TURNS or turns == _TURNS:
            self._move(deadline, last=deadline)
            turns = idle = 0
        loop.call_soon(self._watch, loop, turns, idle)


def _is_idle(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether no callback is ready to run, as far as the loop tells: there is no public way to ask."""
    ready: Sized | None = getattr(loop, "_ready", None)
    return ready is not None and len(ready) == 0
