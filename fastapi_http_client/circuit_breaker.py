"""The circuit breaker: the state machine with a clock, a log and listeners."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

from fastapi_http_client import arguments
from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import CircuitBreakerOpenError
from fastapi_http_client.policies.circuit_breaker import Circuit, CircuitRules, CircuitState, Outcome, Refusal, Ticket

logger = logging.getLogger("fastapi_http_client.circuit_breaker")


class StateChange(NamedTuple):
    """A circuit went from one state to another. `at` is the monotonic time of the breaker's clock, in seconds."""

    name: str | None
    old: CircuitState
    new: CircuitState
    at: float


def rules_of(config: ClientConfig) -> CircuitRules | None:
    """The rules that a client's configuration asks for, as the options of a breaker; None when it asks for none."""
    if not config.enable_circuit_breaker:
        return None
    return CircuitRules(
        failure_threshold=config.circuit_breaker_failure_threshold,
        recovery_timeout=config.circuit_breaker_recovery_timeout,
        half_open_max_calls=config.circuit_breaker_half_open_max_calls,
        failure_rate=config.circuit_breaker_failure_rate,
        window=config.circuit_breaker_window,
        minimum_calls=config.circuit_breaker_minimum_calls,
    )


class CircuitBreaker:
    """Stops calling an upstream that keeps failing, and probes now and then whether it is back.

    It opens after `failure_threshold` failures in a row; with `failure_rate` (above 0, at most 1) also when that share
    of the calls of the last `window` seconds failed, once there are at least `minimum_calls`. After `recovery_timeout`
    seconds at most `half_open_max_calls` probes at a time go out; the first success closes it, the first failure opens
    it again. Bad values raise `ConfigurationError`.

    To make a call by hand: `admit()`, then `record()` with what it came to, whatever happens. Each change of state is
    logged once. Not bound to any event loop; not thread-safe.
    """

    __slots__ = (
        "_circuit",
        "_clock",
        "_clock_is_set",
        "_listeners",
        "_name",
        "_shown",
        "_untold",
    )

    def __init__(
        self,
        failure_threshold: int = 5,
        recovery_timeout: float = 60.0,
        half_open_max_calls: int = 1,
        *,
        failure_rate: float | None = None,
        window: float = 30.0,
        minimum_calls: int = 10,
        name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        arguments.check(
            "CircuitBreaker",
            arguments.count("failure_threshold", failure_threshold),
            arguments.seconds("recovery_timeout", recovery_timeout),
            arguments.count("half_open_max_calls", half_open_max_calls),
            arguments.share("failure_rate", failure_rate),
            arguments.seconds("window", window),
            arguments.count("minimum_calls", minimum_calls),
        )
        rules = CircuitRules(
            failure_threshold, float(recovery_timeout), half_open_max_calls, failure_rate, window, minimum_calls
        )
        self._circuit = Circuit(rules)
        self._shown = CircuitState.CLOSED  # the state that everybody has been told of
        self._name = name
        self._clock = clock or SYSTEM_CLOCK
        self._clock_is_set = clock is not None
        self._listeners: list[Callable[[StateChange], None]] = []
        self._untold: list[StateChange] = []

    @property
    def state(self) -> CircuitState:
        """The state that a call would find now: an open circuit is half-open once its recovery timeout is over."""
        return self._circuit.state_at(self._clock.monotonic())

    @property
    def recovery_timeout(self) -> float:
        """Seconds from opening to the first probe."""
        return self._circuit.rules.recovery_timeout

    @property
    def name(self) -> str | None:
        return self._name

    def bind(self, clock: Clock, name: str | None = None) -> None:
        """Gives a clock and a name to a breaker that was made without one. The first clock and the first name stay.

        A circuit that is open by then has no time of the new clock to count from: its recovery timeout starts again.
        """
        if self._name is None:
            self._name = name
        if not self._clock_is_set:
            self._clock = clock
            self._clock_is_set = True
            if self._circuit.state is not CircuitState.CLOSED:
                self.trip()

    def subscribe(self, listener: Callable[[StateChange], None]) -> None:
        """Calls `listener` after each change of state, in order. What it raises is only logged.

        It is called once, however often it is subscribed: several clients may share a breaker.
        """
        if listener not in self._listeners:
            self._listeners.append(listener)

    def admit(self, *, lease: float) -> Ticket:
        """Asks to make a call; `record()` must follow.

        A probe of a half-open circuit has its place for `lease` seconds at most: the longest that the call can take.
        Raises `CircuitBreakerOpenError` when there may be no call now, with the seconds until there may be one.
        """
        if not 0.0 < lease < math.inf:
            arguments.check("admit", arguments.seconds("lease", lease))
        now = self._clock.monotonic()
        answer = self._circuit.admit(now, lease)
        self._tell(now)
        if isinstance(answer, Refusal):
            raise self._refused(answer)
        return answer

    def admit_if_closed(self) -> Ticket | None:
        """`admit()` while the circuit is closed, which every call may; else None, and nothing has happened."""
        return self._circuit.closed_ticket

    def readmit(self, ticket: Ticket, *, lease: float) -> Ticket:
        """Asks again for a call that was admitted and then had to wait: its ticket is given back for a fresh one.

        A probe keeps its place, with a new lease. Raises `CircuitBreakerOpenError` when the circuit has opened
        meanwhile; then there is nothing left to record.
        """
        self.record(ticket, Outcome.IGNORED)
        return self.admit(lease=lease)

    async def ask(self, *, lease: float) -> Ticket:
        """`admit()`, for those who can wait for an answer: a circuit that processes share has to ask its store."""
        return self.admit(lease=lease)

    async def ask_again(self, ticket: Ticket, *, lease: float) -> Ticket:
        """`readmit()`, likewise."""
        return self.readmit(ticket, lease=lease)

    def record(self, ticket: Ticket, outcome: Outcome) -> None:
        """Says what an admitted call came to. Never raises.

        A success is any answer that proves the upstream alive. A cancelled call is `Outcome.IGNORED`: it frees a
        probe's place and changes nothing else. What a call begun before the last change of state came to is dropped.
        """
        now = self._clock.monotonic()
        self._circuit.record(ticket, outcome, now)
        self._tell(now)

    def reset(self) -> None:
        """Closes the circuit by hand. Calls that are under way no longer count."""
        now = self._clock.monotonic()
        self._circuit.reset(now)
        self._tell(now)

    def trip(self) -> None:
        """Opens the circuit by hand, for `recovery_timeout` seconds from now; then it is probed as usual."""
        now = self._clock.monotonic()
        self._circuit.trip(now)
        self._tell(now)

    def _refused(self, refusal: Refusal) -> CircuitBreakerOpenError:
        label = f"circuit breaker {self._name!r}" if self._name else "circuit breaker"
        what = "all probes are under way" if self._circuit.state is CircuitState.HALF_OPEN else "nothing was sent"
        return CircuitBreakerOpenError(
            f"{label} is {self._circuit.state.value.replace('_', '-')}: {what}, next try in {refusal.seconds:.3g} s",
            recovery_timeout=refusal.seconds,
        )

    def _tell(self, now: float) -> None:
        """Logs and reports a change, if there was one."""
        state = self._circuit.state
        if state is not self._shown:
            self._show(state, now)

    def _show(self, state: CircuitState, now: float) -> None:
        """A listener may use the breaker: what it changes is told after this change, so all hear them in order."""
        change = StateChange(self._name, self._shown, state, now)
        self._shown = state
        self._untold.append(change)
        if len(self._untold) > 1:
            return
        while self._untold:
            try:
                self._tell_everybody(self._untold[0])
            finally:
                del self._untold[0]

    def _tell_everybody(self, change: StateChange) -> None:
        label = f"circuit breaker {change.name!r}" if change.name else "circuit breaker"
        if change.new is CircuitState.OPEN:
            logger.warning("%s opened: no calls for %g s", label, self.recovery_timeout)
        elif change.new is CircuitState.HALF_OPEN:
            logger.info("%s is half-open: probing", label)
        else:
            logger.info("%s closed", label)
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception:
                logger.exception("%s: the listener %r failed", label, listener)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self._name!r}, state={self.state.value!r})"
