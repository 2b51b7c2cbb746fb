"""The circuit breaker of a fleet: one circuit in the store, and what each process knows of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Literal

from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.errors import CircuitBreakerOpenError
from fastapi_http_client.fleet.link import Link, StoreUnavailableError
from fastapi_http_client.policies.circuit_breaker import RESOLUTION, CircuitState, Outcome, Ticket
from fastapi_http_client.stores.base import FAILURE, IGNORED, SUCCESS, CircuitView

FRESH = 0.05  # seconds; the longest that a process goes on with what it last heard
MOST_OUTCOMES = 500  # told at once, whatever the time

_LETTERS = {Outcome.SUCCESS: SUCCESS, Outcome.FAILURE: FAILURE, Outcome.IGNORED: IGNORED}


class SharedTicket(Ticket):
    """A ticket of the store's. `expires` is by this process's clock."""

    __slots__ = ("probe",)

    def __init__(self, epoch: int, expires: float = math.inf, probe: str = "") -> None:
        super().__init__(epoch, expires)
        self.probe = probe


class FleetCircuitBreaker(CircuitBreaker):
    """A circuit that opens and closes for all processes together: failures are counted over the fleet.

    While the circuit is closed a call asks nobody, if the process has heard from the store in the last 50 ms: it does
    so in the background as long as there are calls. So a trip is known before the next call, or within 50 ms. Failures
    are told at once, and the next call of the process waits for the answer; successes are told within 25 ms. A probe is
    admitted by the store alone, under a lease of its own.

    While the store is away the circuit of this process decides; it begins as the fleet's was. The settings are those of
    `CircuitBreaker`.
    """

    __slots__ = (
        "__weakref__",
        "_asking",
        "_failed_since",
        "_flush",
        "_heard_at",
        "_link",
        "_outcomes",
        "_recovers_at",
        "_rules",
        "_store_name",
        "_syncing",
        "_telling",
        "_unsettled",
        "_view",
    )

    def __init__(self, *settings: Any, name: str, link: Link, **more: Any) -> None:
        super().__init__(*settings, **more, name=name)
        alone = self._circuit.rules
        self._rules = alone._replace(
            recovery_timeout=max(round(alone.recovery_timeout * 1e6), 1), window=max(round(alone.window * 1e5), 1) * 10
        )
        self._store_name = name
        self._link = link
        self._view: CircuitView | None = None
        self._heard_at = float("-inf")
        self._recovers_at = 0.0
        self._outcomes: list[str] = []  # not told yet, of the view's epoch
        self._unsettled = False  # a failure among them, or on its way to the store
        self._failed_since = False  # one that came after the last talk had begun
        self._asking: asyncio.Task[CircuitView] | None = None  # for a probe's place
        self._syncing: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()  # what the next call has to wait for
        self._flush: asyncio.TimerHandle | None = None
        link.listeners.add(self)

    @property
    def state(self) -> CircuitState:
        """The state that a call would find now, as far as this process knows."""
        view = self._view
        if not self._link.is_up or view is None:
            return super().state
        if view.state is CircuitState.OPEN and self._recovers_at - self._clock.monotonic() <= RESOLUTION:
            return CircuitState.HALF_OPEN
        return view.state

    # -- asking --------------------------------------------------------------------------------------------------

    async def ask(self, *, lease: float) -> Ticket:
        """As `admit`, with the store's word where this process's own knowledge does not do."""
        while self._link.is_up:
            if self._telling:
                await asyncio.wait(set(self._telling))
                continue
            now = self._clock.monotonic()
            age = now - self._heard_at
            if self._view is None or self._unsettled or age > FRESH:
                await asyncio.wait({self._sync()})
                continue
            if age > FRESH / 2:
                self._sync()
            if self._view.state is CircuitState.CLOSED:
                return SharedTicket(self._view.epoch)
            wait = self._recovers_at - now
            if self._view.state is CircuitState.OPEN and wait > RESOLUTION:
                raise self._not_now(wait)
            ticket = await self._ask_for_probe(lease)
            if ticket is not None:
                return ticket
        return self._admit_alone(lease)

    def admit(self, *, lease: float) -> Ticket:
        """As `ask`, but without asking: by what this process knows. It never admits a probe of the fleet's."""
        view = self._view
        if not self._link.is_up or view is None:
            return self._admit_alone(lease)
        if view.state is CircuitState.CLOSED:
            return SharedTicket(view.epoch)
        raise self._not_now(max(self._recovers_at - self._clock.monotonic(), FRESH))

    def admit_if_closed(self) -> Ticket | None:
        """None: whether the fleet's circuit is closed has to be asked."""
        return None

    async def ask_again(self, ticket: Ticket, *, lease: float) -> Ticket:
        """As `readmit`. A probe whose lease still has that long, or half of it, to go keeps it."""
        if self._link.is_up and isinstance(ticket, SharedTicket) and ticket.probe and self._is_of_now(ticket):
            left = ticket.expires - self._clock.monotonic()
            if left >= lease / 2:
                return ticket
        self.record(ticket, Outcome.IGNORED)
        return await self.ask(lease=lease)

    def _admit_alone(self, lease: float) -> Ticket:
        return super().admit(lease=lease)

    def _is_of_now(self, ticket: Ticket) -> bool:
        return self._view is not None and ticket.epoch == self._view.epoch

    async def _ask_for_probe(self, lease: float) -> Ticket | None:
        """None when it has to be looked at again: the store went away, or somebody else has just got an answer.

        One call at a time asks; when it is refused, so are those that have waited for it.
        """
        if self._asking is not None:
            asking = self._asking
            await asyncio.wait({asking})
            view = _answer(asking)
            if view is not None and not view.admitted:
                raise self._not_now(max(view.wait, 1) / 1e6)
            return None
        probe, now = secrets.token_hex(8), self._clock.monotonic()
        store, rules, name = self._link.store, self._rules, self._store_name
        command = store.admit(name, rules, probe=probe, lease=max(round(lease * 1e6), 1))
        asking = self._asking = self._link.start(self._link.ask(command))
        asking.add_done_callback(self._asked)
        try:
            await asyncio.wait({asking})
        except asyncio.CancelledError:
            asking.add_done_callback(lambda task: self._give_up(task, probe))
            raise
        view = _answer(asking)
        if view is None:
            return None
        if not view.admitted:
            raise self._not_now(max(view.wait, 1) / 1e6)
        if view.state is CircuitState.CLOSED:
            return SharedTicket(view.epoch)
        return SharedTicket(view.epoch, now + lease, probe)

    def _asked(self, asking: asyncio.Task[CircuitView]) -> None:
        self._asking = None
        view = _answer(asking)
        if view is not None:
            self._see(view)

    def _give_up(self, asking: asyncio.Task[CircuitView], probe: str) -> None:
        """The caller was cancelled while it asked: the place that it may have got is free again."""
        view = _answer(asking)
        if view is not None and view.admitted and view.state is CircuitState.HALF_OPEN:
            self._tell_probe(SharedTicket(view.epoch, probe=probe), Outcome.IGNORED)

    def _not_now(self, seconds: float) -> CircuitBreakerOpenError:
        half_open = self._view is not None and self._view.state is CircuitState.HALF_OPEN
        what = "is half-open: all probes are under way" if half_open else "is open: nothing was sent"
        return CircuitBreakerOpenError(
            f"circuit breaker {self._name!r} {what}, next try in {seconds:.3g} s", recovery_timeout=seconds
        )

    # -- telling -------------------------------------------------------------------------------------------------

    def record(self, ticket: Ticket, outcome: Outcome) -> None:
        """As `CircuitBreaker.record`; the store is told in the background."""
        if not isinstance(ticket, SharedTicket):
            if not self._link.is_up:
                super().record(ticket, outcome)
            return
        if not self._link.is_up:
            self._record_alone([_LETTERS[outcome]])
        elif ticket.probe:
            self._tell_probe(ticket, outcome)
        elif self._is_of_now(ticket) and outcome is not Outcome.IGNORED:
            self._outcomes.append(_LETTERS[outcome])
            if outcome is Outcome.FAILURE:
                self._unsettled = self._failed_since = True
            if self._unsettled or len(self._outcomes) >= MOST_OUTCOMES:
                self._sync()
            elif self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(FRESH / 2, self._flush_now)

    def reset(self) -> None:
        """Closes the circuit by hand, for all processes. Calls that are under way no longer count."""
        super().reset()
        self._force("closed")

    def trip(self) -> None:
        """Opens the circuit by hand, for all processes."""
        super().trip()
        self._force("open")

    def _force(self, state: Literal["open", "closed"]) -> None:
        if not self._link.is_up:
            return
        self._outcomes.clear()
        self._unsettled = False
        if self._view is not None:
            now = self._clock.monotonic()
            self._view = replace(self._view, state=CircuitState(state))
            self._recovers_at = now + self.recovery_timeout
            self._tell(now)
        self._settle(self._link.store.force(self._store_name, self._rules, state))

    def _tell_probe(self, ticket: SharedTicket, outcome: Outcome) -> None:
        if self._link.is_up:
            self._settle(
                self._link.store.record(
                    self._store_name, self._rules, epoch=ticket.epoch, probe=ticket.probe, outcomes=_LETTERS[outcome]
                )
            )

    def _settle(self, command: Coroutine[Any, Any, CircuitView]) -> None:
        """Tell the store something that the next call of this process has to find done."""
        task = self._link.start(self._hear(command))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _hear(self, command: Coroutine[Any, Any, CircuitView]) -> None:
        with contextlib.suppress(StoreUnavailableError):
            self._see(await self._link.ask(command))

    def _flush_now(self) -> None:
        self._flush = None
        if self._outcomes and self._link.is_up:
            self._sync()

    def _sync(self) -> asyncio.Task[None]:
        """Tell the store what it does not know yet, and hear how things are. One such talk is under way at a time."""
        if self._syncing is None:
            self._syncing = self._link.start(self._talk())
        return self._syncing

    async def _talk(self) -> None:
        store, name, rules = self._link.store, self._store_name, self._rules
        try:
            while True:
                outcomes, self._outcomes = self._outcomes, []
                epoch = self._view.epoch if self._view is not None else 0
                self._failed_since = False
                try:
                    text = "".join(outcomes)
                    view = await self._link.ask(store.record(name, rules, epoch=epoch, probe="", outcomes=text))
                except StoreUnavailableError:
                    self._record_alone(outcomes)
                    return
                self._unsettled = self._failed_since
                self._see(view)
                if not self._unsettled:
                    return
        finally:
            self._syncing = None

    # -- knowing -------------------------------------------------------------------------------------------------

    def _see(self, view: CircuitView) -> None:
        known, now = self._view, self._clock.monotonic()
        if known is not None and view.epoch < known.epoch:  # two answers in the wrong order? The next one counts
            self._view, self._heard_at = None, float("-inf")
            return
        if known is None or known.epoch != view.epoch:
            self._outcomes.clear()
            self._unsettled = False
        self._view, self._heard_at = view, now
        if view.state is CircuitState.OPEN:
            self._recovers_at = now + view.wait / 1e6
        self._tell(now)

    def link_changed(self) -> None:
        """The store went away, or came back."""
        now = self._clock.monotonic()
        if not self._link.is_up and self._view is not None:
            if self._view.state is CircuitState.CLOSED:
                self._circuit.reset(now)
            else:
                self._circuit.trip(now)
        untold, self._outcomes = self._outcomes, []
        self._view, self._heard_at, self._unsettled = None, float("-inf"), False
        if not self._link.is_up:
            self._record_alone(untold)
        self._tell(now)

    def _record_alone(self, outcomes: list[str]) -> None:
        """What was not told before the store went away counts here."""
        for letter in outcomes:
            if self._circuit.state is not CircuitState.CLOSED:
                return
            outcome = next(outcome for outcome, known in _LETTERS.items() if known == letter)
            super().record(super().admit(lease=1.0), outcome)

    def _tell(self, now: float) -> None:
        """Logs and reports a change of what this process sees, whoever decided it."""
        if self._link.is_up and self._view is None:
            return  # nothing is known until the store is heard
        state = self._view.state if self._link.is_up and self._view is not None else self._circuit.state
        if state is not self._shown:
            self._show(state, now)


def _answer(asking: asyncio.Task[CircuitView]) -> CircuitView | None:
    """None when the store has not answered."""
    return None if asking.cancelled() or asking.exception() is not None else asking.result()
