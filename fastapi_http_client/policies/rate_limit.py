"""The token bucket, counted in time instead of tokens, and in integers instead of floats.

A bucket of `burst` tokens that earns `rate` a second is a credit of at most `burst / rate` seconds that grows with the
clock, and a token costs `1 / rate` seconds of it (the GCRA of ITU-T I.371 keeps the same number). Credit is a whole
number of ticks: a time of a millisecond or more is one exactly, and the price of a token is rounded up. So nothing is
ever rounded in the caller's favour: however many tokens are taken, any window of `w` seconds holds at most
`burst + rate * w`, without "and a bit".
"""

from __future__ import annotations

import math

_TICKS = 1 << 64  # in a second; a float has 53 bits, so from 2**-11 s on it is a whole number of ticks
_LONGEST = 10**15 * _TICKS  # 30 million years; a longer wait need not fit into a float


class TokenBucket:
    """A bucket that starts full.

    `now` is a monotonic time in seconds; a clock that goes back gives and takes nothing. `rate` is in tokens a second.
    """

    __slots__ = ("_capacity", "_credit", "_price", "_settled")

    def __init__(self, rate: float, burst: int) -> None:
        numerator, denominator = rate.as_integer_ratio()
        self._price = -(-_TICKS * denominator // numerator)
        self._capacity = burst * self._price
        self._credit = self._capacity
        self._settled = 0  # the tick up to which credit has been earned

    def resized(self, rate: float, burst: int, now: float) -> TokenBucket:
        """A bucket for another limit, as full as this one."""
        other = TokenBucket(rate, burst)
        other._credit = self._earn(now) * other._capacity // self._capacity
        other._settled = self._settled
        return other

    def take(self, tokens: int, now: float) -> float:
        """Takes the tokens and returns 0.0, or takes none and returns the seconds until there will be enough."""
        credit = self._earn(now)
        price = tokens * self._price
        if credit < price:
            return self._wait(price - credit, now)
        self._credit = credit - price
        return 0.0

    def wait_for(self, tokens: int, now: float) -> float:
        """Seconds until so many tokens (more than `burst` too: those of a queue) can have been taken one by one."""
        missing = tokens * self._price - self._earn(now)
        return self._wait(missing, now) if missing > 0 else 0.0

    def available(self, now: float) -> float:
        """The tokens that could be taken now, between 0 and `burst`."""
        return self._earn(now) / self._price

    def _earn(self, now: float) -> int:
        ticks = int(now * _TICKS)
        if ticks > self._settled:
            self._credit = min(self._capacity, self._credit + ticks - self._settled)
        self._settled = ticks
        return self._credit

    def _wait(self, ticks: int, now: float) -> float:
        """So many ticks as seconds, rounded so that the clock shows enough afterwards: one sleep does, never a spin."""
        seconds = min(ticks, _LONGEST) / _TICKS
        if int((now + seconds) * _TICKS) - self._settled < ticks:
            seconds += math.ulp(now + seconds)
        return seconds
