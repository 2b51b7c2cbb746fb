"""Whether a 401 is the token's fault, so that another one is to be fetched.

A token that was revoked is replaced at once. But a route may answer 401 to every token: then each of its calls would
cost the token endpoint a request, and the other calls their token.
"""

from __future__ import annotations

import math

FIRST_DOUBT = 1.0  # seconds for which no 401 is the fault of a token that has replaced another one
LONGEST_DOUBT = 30.0  # they double each time that the replacement did not help


class TokenBlame:
    """What the 401s of one credential have shown. Times are in seconds, by any one clock that only goes forward."""

    __slots__ = ("_blameless_until", "_in_vain", "_is_provable", "_next_doubt", "is_rejected")

    def __init__(self) -> None:
        self.is_rejected = False
        """Whether the token got a 401 and has not been replaced since."""
        self._is_provable = True  # whether the call that got the 401 will tell if another token helps
        self._in_vain = False  # whether the token has replaced another one without any help
        self._blameless_until = -math.inf
        self._next_doubt = FIRST_DOUBT

    def accept(self) -> None:
        """A call got no 401 with the token."""
        if not self._in_vain:
            self._blameless_until = -math.inf

    def reject(self, now: float, *, replayable: bool) -> bool:
        """A call got a 401 with the token. Returns whether that is the token's fault, and another one to be tried."""
        if not self.is_rejected and now >= self._blameless_until:
            self.is_rejected, self._is_provable = True, replayable
        return self.is_rejected

    def replace(self, now: float) -> None:
        """There is another token."""
        if not self.is_rejected:
            return
        self.is_rejected = self._in_vain = False
        self._blameless_until = now + FIRST_DOUBT  # until a call tells
        if not self._is_provable:
            self._doubt(now)

    def judge(self, now: float, *, helped: bool) -> None:
        """A call was made again with the token that has replaced the one of its 401."""
        if helped:
            self._in_vain = False
            self._blameless_until = -math.inf
            self._next_doubt = FIRST_DOUBT
        elif not self._in_vain:
            self._doubt(now)

    def _doubt(self, now: float) -> None:
        self._in_vain = True
        self._blameless_until = now + self._next_doubt
        self._next_doubt = min(2 * self._next_doubt, LONGEST_DOUBT)
