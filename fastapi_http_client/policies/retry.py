"""When to try again, and how long to wait before.

The decision follows what the upstream can have seen (gRPC proposal A6): a request that was never sent is safe to
repeat; one that may have run is repeated only when that cannot repeat its effect (RFC 9110, section 9.2.2).
"""

from __future__ import annotations

import email.utils
import sys
from datetime import UTC
from enum import Enum, auto
from typing import NamedTuple

from fastapi_http_client.config import ClientConfig

NON_IDEMPOTENT = frozenset({"POST", "PATCH"})
_MAX_EXPONENT = 64  # 2**64 s is beyond every cap; a float would overflow at 2**1024


class Exposure(Enum):
    """What the upstream can have seen of an attempt that failed."""

    NEVER_SENT = auto()
    MAY_HAVE_RUN = auto()
    REFUSED = auto()
    """A 429: the upstream says that it did not run the request."""
    FINAL = auto()
    """An answer, or a fault of our own, that repeating cannot change."""


class RetryPolicy(NamedTuple):
    """The retry options of one client."""

    attempts: int
    backoff_factor: float
    max_delay: float
    jitter: float
    statuses: frozenset[int]
    methods: frozenset[str]
    non_idempotent: bool

    @classmethod
    def of(cls, config: ClientConfig) -> RetryPolicy:
        return cls(
            attempts=config.retry_attempts,
            backoff_factor=config.retry_backoff_factor,
            max_delay=config.retry_max_delay,
            jitter=config.retry_jitter,
            statuses=frozenset(config.retry_statuses),
            methods=frozenset(config.retry_methods),
            non_idempotent=config.retry_non_idempotent,
        )

    def exposure_of(self, status: int) -> Exposure:
        """What a response's status says: a status that is not to be retried is final."""
        if status not in self.statuses:
            return Exposure.FINAL
        return Exposure.REFUSED if status == 429 else Exposure.MAY_HAVE_RUN

    def allows(self, method: str, exposure: Exposure, *, has_key: bool, replayable: bool) -> bool:
        """Whether an attempt that ended so may be repeated at all."""
        if exposure is Exposure.FINAL or method not in self.methods or not replayable:
            return False
        if exposure is Exposure.MAY_HAVE_RUN and method in NON_IDEMPOTENT:
            return has_key or self.non_idempotent
        return True

    def delay(self, attempt: int, chance: float) -> float:
        """Seconds to wait after attempt number `attempt` (from 0); `chance` is in [0, 1)."""
        # Finite, for infinity times a jitter of no remainder would be no number.
        base = min(self.backoff_factor * 2.0 ** min(attempt, _MAX_EXPONENT), sys.float_info.max)
        return min(base * (1.0 + self.jitter * (2.0 * chance - 1.0)), self.max_delay)


class RetryBudget:
    """A store of tokens that bounds retries to a share of the successes: one token a retry, a tenth back a success.

    In an outage it drains and retrying stops: retries must not keep an upstream down (gRPC proposal A6, AWS SDKs).
    """

    __slots__ = ("capacity", "tokens")
    EARNED = 0.1

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.tokens = capacity

    def spend(self) -> bool:
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def earn(self) -> None:
        if self.tokens == self.capacity:
            return
        # Rounded, for ten tenths of a float are less than one.
        self.tokens = min(self.capacity, round(self.tokens + self.EARNED, 6))


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` value (RFC 9110, section 10.2.3), or None when it is garbage.

    `now` is the wall clock (Unix epoch) that an HTTP date is counted from. A date in the past asks for no wait.
    """
    value = value.strip(" \t")
    if value.isascii() and value.isdigit():
        return float(value)
    if not value[:1].isalpha():
        return None
    try:
        date = email.utils.parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        return max(0.0, date.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
