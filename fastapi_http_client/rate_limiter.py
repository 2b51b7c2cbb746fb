"""The rate limiter: a token bucket with a strict first-come-first-served queue in front of it."""

from __future__ import annotations

from fastapi_http_client import arguments
from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.errors import ConfigurationError, RateLimitError
from fastapi_http_client.line import Line, line_of_this_loop
from fastapi_http_client.policies.rate_limit import TokenBucket

_RESOLUTION = 1e-9  # seconds; a predicted wait this little above `max_wait` is not above it


class TokenBucketRateLimiter:
    """Lets through at most `burst + rate * w` tokens in any window of `w` seconds, in the order of the calls.

    `rate` is in tokens a second, `burst` the size of the bucket, which starts full. Bad values raise
    `ConfigurationError`. The timers of an event loop are good to about a millisecond, and what is overslept is lost
    when `burst` is 1: for rates above some 50 a second give the bucket room for a few tokens.

    There is no task and no timer in the background: the first in line sleeps until its tokens are there, takes them and
    wakes the next. Not thread-safe; usable on one event loop after the other.
    """

    __slots__ = ("_bucket", "_burst", "_clock", "_clock_is_set", "_line", "_rate")

    def __init__(self, rate: float, burst: int = 1, *, clock: Clock | None = None) -> None:
        arguments.check("TokenBucketRateLimiter", arguments.rate("rate", rate), arguments.count("burst", burst))
        self._rate = float(rate)
        self._burst = burst
        self._bucket = TokenBucket(self._rate, burst)
        self._clock = clock or SYSTEM_CLOCK
        self._clock_is_set = clock is not None
        self._line: Line | None = None

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self._rate

    @property
    def burst(self) -> int:
        """The most tokens that can be saved up."""
        return self._burst

    @property
    def available(self) -> float:
        """The tokens in the bucket now; those in line will have them first."""
        return self._bucket.available(self._clock.monotonic())

    @property
    def waiting(self) -> int:
        """How many calls are in line."""
        return 0 if self._line is None or self._line.loop.is_closed() else len(self._line.waiters)

    def bind(self, clock: Clock) -> None:
        """Gives a clock to a limiter that was made without one. The first clock stays."""
        if not self._clock_is_set:
            self._clock = clock
            self._clock_is_set = True

    async def acquire(self, tokens: int = 1, *, max_wait: float | None = None) -> float:
        """Takes tokens, waiting in line for them if need be, and returns the seconds waited.

        Raises `RateLimitError` at once when the wait would be longer than `max_wait` seconds; its `retry_after` is that
        wait. Raises `ConfigurationError` when `tokens` is below 1 or above `burst`, which could never be served. A
        cancelled call takes nothing and leaves no gap in the line.
        """
        if type(tokens) is not int or not 1 <= tokens <= self._burst:
            raise self._not_served(tokens)
        line = self._line
        if (line is None or not line.waiters) and self._take_at_once(tokens):
            return 0.0
        return await self._wait_in_line(tokens, max_wait)

    def _not_served(self, tokens: object) -> ConfigurationError:
        what = f"must be a whole number from 1 to burst ({self._burst}), not {tokens!r}"
        return arguments.bad_argument("acquire", "tokens", what)

    def try_acquire(self) -> bool:
        """Takes one token if it is there and nobody is in line for it; never waits."""
        line = self._line
        return (line is None or not line.waiters) and self._take_at_once(1)

    def _take_at_once(self, tokens: int) -> bool:
        return not self._bucket.take(tokens, self._clock.monotonic())

    async def _wait_in_line(self, tokens: int, max_wait: float | None) -> float:
        line = self._line = line_of_this_loop(self._line)
        arrived = self._clock.monotonic()
        self._refuse_long_wait(self._bucket.wait_for(line.tokens + tokens, arrived), max_wait)
        turn = line.join(tokens)
        try:
            await turn
            while missing := self._bucket.take(tokens, self._clock.monotonic()):
                await self._clock.sleep(missing)
        finally:
            line.leave(turn)
        return self._clock.monotonic() - arrived

    def _refuse_long_wait(self, wait: float, most: float | None) -> None:
        if most is not None and not wait <= most + _RESOLUTION:
            raise RateLimitError(
                f"refused by the rate limiter: the wait would be {wait:.3g} s, above max_wait ({max(most, 0):.3g} s)",
                retry_after=wait,
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rate={self._rate:g}, burst={self._burst})"
