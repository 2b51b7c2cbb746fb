"""The token bucket that many processes share: in integers, so that a script in the store decides to the same bit.

The bucket is a credit of at most `capacity` ticks that grows by `2**shift` ticks a microsecond, and a token costs
`price` ticks, rounded up: nothing is ever rounded in the caller's favour. All numbers stay below 2**53, because Lua has
only floats. `stores/limit.lua` is this file in another language; a property test compares their answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FINEST = 1 << 20  # ticks; a token costs at least so many, so that rounding its price up costs less than a millionth
_LARGEST = 1 << 52  # ticks; the largest credit
_FASTEST = 1e9  # tokens a second


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate and a burst as whole numbers of ticks."""

    price: int
    capacity: int
    shift: int

    @classmethod
    def of(cls, rate: float, burst: int) -> Limit:
        """Raises `ValueError` for a limit that cannot be counted: above 10⁹ a second, or filling for a century."""
        numerator, denominator = float(rate).as_integer_ratio()
        shift = 0
        while (price := -(-(10**6 << shift) * denominator // numerator)) < _FINEST and rate <= _FASTEST:
            shift += 1
        if rate > _FASTEST or burst * price > _LARGEST:
            raise ValueError("must be at most 1e9 tokens a second, and take less than a century to fill the burst")
        return cls(price, burst * price, shift)


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to `take`: tokens that may be used `wait` µs from now (0 or a moment), or none, and ask again then."""

    tokens: int
    wait: int


class SharedBucket:
    """A bucket that starts full. Every `now` is a time in whole microseconds; a clock that goes back earns nothing, and
    then goes on from there."""

    __slots__ = ("_capacity", "_credit", "_settled")

    def __init__(self, limit: Limit, now: int) -> None:
        self._capacity = limit.capacity
        self._credit = limit.capacity
        self._settled = now

    def take(self, limit: Limit, now: int, *, least: int, most: int, ahead: int, returned: int) -> Grant:
        """Put `returned` tokens back, then take `most` tokens, or fewer, but not fewer than `least`.

        `least` tokens may be taken up to `ahead` µs before they are there; the answer says from when on they may be
        used. So who asks a little early loses nothing to a slow timer. More tokens than the bucket can hold are given
        when it is full, and paid off before they may be used.

        Tokens that come back while others were given ahead are dropped: those who have them may be about to go.
        """
        credit = self._earned(limit, now)
        if returned and credit >= 0:
            credit = min(limit.capacity, credit + returned * limit.price)
        granted, wait = min(most, max(credit // limit.price, 0)), 0
        if granted < least:
            needed = least * limit.price
            if credit + (ahead << limit.shift) < needed and credit < limit.capacity:
                granted, wait = 0, _microseconds(min(needed, limit.capacity) - credit, limit)
            else:
                granted = least
        if granted:
            credit -= granted * limit.price
            wait = _microseconds(max(-credit, 0), limit)
        if granted or returned or now < self._settled:
            self._capacity, self._credit, self._settled = limit.capacity, credit, now
        return Grant(granted, wait)

    def _earned(self, limit: Limit, now: int) -> int:
        credit = self._credit
        if self._capacity != limit.capacity:  # the limit was changed: as full as before, in other ticks
            credit = math.floor(credit * (limit.capacity / self._capacity))
        return min(limit.capacity, credit + (max(now - self._settled, 0) << limit.shift))


def _microseconds(ticks: int, limit: Limit) -> int:
    return -(-ticks >> limit.shift)
