"""The circuit breaker's state machine (M. Nygard, "Release It!", 2007).

    CLOSED     calls pass; `failure_threshold` failures in a row, or a failure rate, open the circuit
    OPEN       nothing passes; after `recovery_timeout` the next call finds the circuit half-open
    HALF_OPEN  `half_open_max_calls` probes at a time pass; the first success closes, the first failure re-opens

Two things keep it honest. Every ticket carries the epoch it was given in, and each change of state begins a new one:
what a call begun under an old state came to says nothing about the new one. And a probe holds its place under a lease
that ends by itself: a probe that hangs, or whose caller is gone, cannot keep the circuit half-open.
"""

from __future__ import annotations

import math
from enum import Enum, StrEnum, auto
from typing import NamedTuple

RESOLUTION = 0.002
"""Seconds that a timer may end early (under uvloop): whoever slept as long as it was told shall not be refused."""


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Outcome(Enum):
    """What a call came to, as far as the upstream's health goes."""

    SUCCESS = auto()
    FAILURE = auto()
    IGNORED = auto()
    """It says nothing: cancelled, refused by ourselves, a 429."""


class Ticket:
    """The right to make one call, to be handed back with its outcome."""

    __slots__ = ("epoch", "expires")

    def __init__(self, epoch: int, expires: float = math.inf) -> None:
        self.epoch = epoch
        self.expires = expires  # the end of a probe's lease


class Refusal(NamedTuple):
    """No call now. `seconds`, always above 0, is the time until the next probe can be admitted."""

    seconds: float


class CircuitRules(NamedTuple):
    """When a circuit opens, and how it comes back.

    `failure_rate` (a share of the calls) opens the circuit as well once at least `minimum_calls` ended within the last
    `window`; None leaves it to failures in a row. Times are in seconds here, in a store in whole microseconds.
    """

    failure_threshold: int
    recovery_timeout: float
    half_open_max_calls: int
    failure_rate: float | None
    window: float
    minimum_calls: int


class Circuit:
    """The state machine. Every `now` is a monotonic time in the unit of the rules; memory is bounded by the probes.

    `state` is the one that the last decision left behind, `epoch` the number of the changes of state so far, and
    `recovers_at` the time from which an open circuit admits its first probe.
    """

    __slots__ = (
        "_failures_in_a_row",
        "_probes",
        "_resolution",
        "_ticket",
        "_window",
        "epoch",
        "recovers_at",
        "rules",
        "state",
    )

    def __init__(self, rules: CircuitRules, *, resolution: float = RESOLUTION) -> None:
        self.rules = rules
        self._resolution = resolution
        self.epoch = 0
        self.recovers_at = 0.0
        self._window = SlidingWindow(rules.window)
        self._probes: set[Ticket] = set()
        self._failures_in_a_row = 0
        self._enter(CircuitState.CLOSED)

    def state_at(self, now: float) -> CircuitState:
        """The state that a call would find."""
        if self.state is CircuitState.OPEN and self.recovers_at - now <= self._resolution:
            return CircuitState.HALF_OPEN
        return self.state

    @property
    def closed_ticket(self) -> Ticket | None:
        """The ticket of every call while the circuit is closed; else None."""
        return self._ticket if self.state is CircuitState.CLOSED else None

    def admit(self, now: float, lease: float) -> Ticket | Refusal:
        """Asks to make a call. A probe's place is free again after `lease` seconds, whatever becomes of the call.

        While the circuit is closed all calls of an epoch share one ticket.
        """
        if self.state is CircuitState.CLOSED:
            return self._ticket
        if self.state is CircuitState.OPEN:
            wait = self.recovers_at - now
            if wait > self._resolution:
                return Refusal(wait)
            self._enter(CircuitState.HALF_OPEN)
        return self._admit_probe(now, lease)

    def _admit_probe(self, now: float, lease: float) -> Ticket | Refusal:
        if len(self._probes) >= self.rules.half_open_max_calls:
            self._probes = {probe for probe in self._probes if self._is_live(probe, now)}
            if len(self._probes) >= self.rules.half_open_max_calls:
                return Refusal(min(probe.expires for probe in self._probes) - now)
        ticket = Ticket(self.epoch, now + lease)
        self._probes.add(ticket)
        return ticket

    def record(self, ticket: Ticket, outcome: Outcome, now: float) -> None:
        """Takes a ticket back. It counts once, and only in its own epoch and within its lease."""
        if ticket.epoch != self.epoch:
            return
        if self.state is CircuitState.CLOSED:
            if outcome is not Outcome.IGNORED:
                self._count(outcome is Outcome.FAILURE, now)
        elif ticket in self._probes:
            self._probes.remove(ticket)
            if outcome is Outcome.IGNORED or not self._is_live(ticket, now):
                return
            if outcome is Outcome.SUCCESS:
                self._enter(CircuitState.CLOSED)
            else:
                self.trip(now)

    def _count(self, failed: bool, now: float) -> None:
        self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
        if self._failures_in_a_row >= self.rules.failure_threshold:
            self.trip(now)
        elif self.rules.failure_rate is not None:
            self._window.add(failed, now)
            calls, failures = self._window.calls, self._window.failures
            if calls >= self.rules.minimum_calls and failures / calls >= self.rules.failure_rate:
                self.trip(now)

    def trip(self, now: float) -> None:
        """Opens the circuit, or keeps it open for another `recovery_timeout` from now."""
        self.recovers_at = now + self.rules.recovery_timeout
        self._enter(CircuitState.OPEN)

    def reset(self, now: float) -> None:
        """Closes the circuit and forgets everything, the calls that are under way included."""
        self._enter(CircuitState.CLOSED)

    def _enter(self, state: CircuitState) -> None:
        self.state = state
        self.epoch += 1
        self._ticket = Ticket(self.epoch)
        self._failures_in_a_row = 0
        self._probes.clear()
        self._window.clear()

    def _is_live(self, probe: Ticket, now: float) -> bool:
        return probe.expires - now > self._resolution


class SlidingWindow:
    """Calls and failures of the last `seconds`, in ten buckets of which the oldest is dropped when a new one begins.

    The buckets are laid from the first call on, so a burst of calls counts for the whole window, to the tenth of it.
    """

    __slots__ = ("_buckets", "_newest", "_start", "_width", "calls", "failures")

    _BUCKETS = 10

    def __init__(self, seconds: float) -> None:
        self._width = seconds / self._BUCKETS
        self.clear()

    def clear(self) -> None:
        self.calls = 0
        self.failures = 0
        self._buckets: list[list[int]] = []  # calls and failures, bucket n at n modulo their number

    def add(self, failed: bool, now: float) -> None:
        if self.calls:
            self._roll(now)
        if not self.calls:
            self._start = now
            self._newest = 0
            self._buckets = [[0, 0] for _ in range(self._BUCKETS)]
        bucket = self._buckets[self._newest % self._BUCKETS]
        bucket[0] += 1
        bucket[1] += failed
        self.calls += 1
        self.failures += failed

    def _roll(self, now: float) -> None:
        """Drops what is too old. A clock that went back has been replaced by another: then all is."""
        bucket = int((now - self._start) / self._width)
        passed = bucket - self._newest
        if not 0 <= passed < self._BUCKETS:
            self.clear()
            return
        for _ in range(passed):
            self._newest += 1
            oldest = self._buckets[self._newest % self._BUCKETS]
            self.calls -= oldest[0]
            self.failures -= oldest[1]
            oldest[:] = (0, 0)
