"""A store in the memory of one process: the pure cores, and the measure that other stores are held to.

Several registries of one process can share limits, circuits and tokens through it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.policies.circuit_breaker import (
    RESOLUTION,
    Circuit,
    CircuitRules,
    CircuitState,
    Outcome,
    Refusal,
    Ticket,
)
from fastapi_http_client.policies.shared_bucket import Grant, Limit, SharedBucket
from fastapi_http_client.stores.base import FAILURE, IGNORED, SUCCESS, CircuitView, TokenAnswer

_OUTCOMES = {SUCCESS: Outcome.SUCCESS, FAILURE: Outcome.FAILURE, IGNORED: Outcome.IGNORED}


class MemoryStore:
    """State by name, kept for the life of the object."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SYSTEM_CLOCK
        self._buckets: dict[str, SharedBucket] = {}
        self._circuits: dict[str, _SharedCircuit] = {}
        self._tokens: dict[str, _SharedToken] = {}
        self._members: dict[str, dict[str, int]] = {}

    @property
    def place(self) -> str:
        return "memory"

    async def connect(self) -> None:
        return None

    async def aclose(self) -> None:
        return None

    def _now(self) -> int:
        return round(self._clock.monotonic() * 1e6)

    # -- limits --------------------------------------------------------------------------------------------------

    async def take(
        self, name: str, limit: Limit, *, least: int = 0, most: int = 0, ahead: int = 0, returned: int = 0
    ) -> Grant:
        now = self._now()
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = SharedBucket(limit, now)
        return bucket.take(limit, now, least=least, most=most, ahead=ahead, returned=returned)

    # -- circuits ------------------------------------------------------------------------------------------------

    async def admit(self, name: str, rules: CircuitRules, *, probe: str, lease: int) -> CircuitView:
        now, shared = self._now(), self._circuit(name, rules)
        answer = shared.circuit.admit(now, lease)
        if isinstance(answer, Refusal):
            return CircuitView(shared.circuit.state, shared.circuit.epoch, int(answer.seconds))
        if shared.circuit.state is CircuitState.HALF_OPEN:
            epoch = shared.circuit.epoch
            shared.tickets = {other: ticket for other, ticket in shared.tickets.items() if ticket.epoch == epoch}
            shared.tickets[probe] = answer
        return shared.view(now, admitted=True)

    async def record(self, name: str, rules: CircuitRules, *, epoch: int, probe: str, outcomes: str) -> CircuitView:
        now, shared = self._now(), self._circuit(name, rules)
        for letter in outcomes:
            ticket = shared.tickets.pop(probe, None) if probe else Ticket(epoch)
            if ticket is not None and epoch == shared.circuit.epoch:
                shared.circuit.record(ticket, _OUTCOMES[letter], now)
        return shared.view(now)

    async def force(self, name: str, rules: CircuitRules, state: Literal["open", "closed"]) -> CircuitView:
        now, shared = self._now(), self._circuit(name, rules)
        if state == "open":
            shared.circuit.trip(now)
        else:
            shared.circuit.reset(now)
        return shared.view(now)

    def _circuit(self, name: str, rules: CircuitRules) -> _SharedCircuit:
        shared = self._circuits.get(name)
        if shared is None:
            shared = self._circuits[name] = _SharedCircuit(Circuit(rules, resolution=RESOLUTION * 1e6))
        return shared

    # -- tokens --------------------------------------------------------------------------------------------------

    async def token(self, name: str, *, holder: str, unwanted: int, lease: int) -> TokenAnswer:
        now, token = self._now(), self._tokens.setdefault(name, _SharedToken())
        if token.expires > now and token.version != unwanted:
            return TokenAnswer("use", token.value, token.version, token.expires - now)
        if not token.is_free_for(holder, now):
            return TokenAnswer("wait", left=token.lock_ends - now)
        token.holder, token.lock_ends = holder, now + lease
        return TokenAnswer("fetch", left=lease)

    async def put_token(self, name: str, *, holder: str, value: bytes, lifetime: int) -> int:
        now, token = self._now(), self._tokens.setdefault(name, _SharedToken())
        if not token.is_free_for(holder, now):
            return 0
        version = max(now, token.version + 1)
        self._tokens[name] = _SharedToken(value, version, now + lifetime)
        return version

    async def release_token(self, name: str, *, holder: str) -> None:
        token = self._tokens.get(name)
        if token is not None and token.holder == holder:
            token.holder, token.lock_ends = "", 0

    # -- processes -----------------------------------------------------------------------------------------------

    async def presence(self, name: str, *, member: str, lease: int) -> int:
        now, members = self._now(), self._members.get(name, {})
        members = {**members, member: now + lease}
        self._members[name] = {other: ends for other, ends in members.items() if ends > now}
        return len(self._members[name])


@dataclass(slots=True)
class _SharedCircuit:
    """A circuit that counts in µs, with the tickets of its probes by name."""

    circuit: Circuit
    tickets: dict[str, Ticket] = field(default_factory=dict)

    def view(self, now: int, *, admitted: bool = False) -> CircuitView:
        circuit = self.circuit
        wait = max(int(circuit.recovers_at) - now, 0) if circuit.state is CircuitState.OPEN else 0
        return CircuitView(circuit.state, circuit.epoch, wait, admitted)


@dataclass(slots=True)
class _SharedToken:
    value: bytes = b""
    version: int = 0
    expires: int = 0
    holder: str = ""
    lock_ends: int = 0

    def is_free_for(self, holder: str, now: int) -> bool:
        return self.holder in ("", holder) or self.lock_ends <= now
