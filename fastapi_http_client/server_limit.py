"""Keeps all calls of a client waiting while its upstream asks to be left alone, so that not each has to be told."""

from __future__ import annotations

import httpx

from fastapi_http_client.chance import Chance
from fastapi_http_client.clock import Clock
from fastapi_http_client.errors import RateLimitError
from fastapi_http_client.fast import header_names
from fastapi_http_client.line import Line, line_of_this_loop
from fastapi_http_client.policies.server_limit import asked_pause

HINTS = frozenset({b"retry-after", b"ratelimit", b"ratelimit-remaining", b"x-ratelimit-remaining"})


class ServerLimit:
    """Until when the upstream wants no calls, and the calls that wait for it in line.

    A pause longer than `longest` seconds is not kept: such an answer is the caller's to handle. When a pause is over,
    the first in line waits a random share of it more (`jitter`, at most 1 s), so that the processes of a fleet do not
    all come back at the same moment; the others follow in order.
    """

    __slots__ = ("_chance", "_clock", "_extra", "_jitter", "_line", "_longest", "_until")

    def __init__(self, *, longest: float, jitter: float, clock: Clock, chance: Chance) -> None:
        self._longest = longest
        self._jitter = jitter
        self._clock = clock
        self._chance = chance
        self._until = 0.0
        self._extra = 0.0
        self._line: Line | None = None

    def note(self, response: httpx.Response) -> None:
        """Look whether a response asks for a pause."""
        if header_names(response.headers.raw).isdisjoint(HINTS):
            return
        pause = asked_pause(response.status_code, response.headers, self._clock.wall())
        if pause is not None and 0.0 < pause <= self._longest:
            until = self._clock.monotonic() + pause
            if until > self._until:
                self._until = until
                self._extra = min(pause * self._jitter * self._chance(), 1.0)

    @property
    def is_pausing(self) -> bool:
        """Whether a call has to wait now."""
        if self._until == 0.0:
            return False
        return (self._line is not None and bool(self._line.waiters)) or self._clock.monotonic() < self._until

    async def wait(self, max_wait: float | None, *, longest: float) -> float:
        """Wait in line for the end of the pause, and return the seconds waited.

        Raises `RateLimitError` as soon as the pause turns out to be longer than `max_wait` seconds, or than the
        `longest` that this call takes, which for one of a view may be less than for the others.
        """
        arrived = self._clock.monotonic()
        self._left(arrived, max_wait, longest)
        line = self._line = line_of_this_loop(self._line)
        turn = line.join(1)
        try:
            await turn
            # Anew after each wait: another response may have asked for a longer pause meanwhile.
            while (left := self._left(arrived, max_wait, longest)) > 0:
                await self._clock.sleep(left)
        finally:
            line.leave(turn)
        return self._clock.monotonic() - arrived

    def _left(self, arrived: float, max_wait: float | None, longest: float) -> float:
        """Seconds left of the pause, for a call that has come then and waits so long at most."""
        now = self._clock.monotonic()
        left = max(0.0, self._until + self._extra - now)
        if max_wait is not None and left > (most := max_wait - (now - arrived)):
            raise RateLimitError(
                f"the upstream has asked for a pause: {left:.3g} s are left of it, and {most:.3g} s for the call",
                retry_after=left,
            )
        if self._until - now > longest:
            raise RateLimitError(
                f"the upstream has asked for a pause: {left:.3g} s are left, and retry_max_delay is {longest:g} s",
                retry_after=left,
            )
        return left
