"""The seam for shared state: one call for each decision, made whole in the store.

No implementation offers get and set: a decision that is read here and written later can be lost in between. All times
are whole microseconds by the store's own clock, so that the clocks of the processes need not agree. A store may raise
anything when it cannot answer; `fleet.link` turns that into local decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from fastapi_http_client.policies.circuit_breaker import CircuitRules, CircuitState
from fastapi_http_client.policies.shared_bucket import Grant, Limit

SUCCESS, FAILURE, IGNORED = "S", "F", "I"
"""The outcomes of calls as a text, one letter each, in order: how a batch of them travels."""


@dataclass(frozen=True, slots=True)
class CircuitView:
    """What the store says of a circuit.

    `epoch` names the time since the last change of state and never comes back. `wait`: µs until the next probe can be
    admitted, 0 when a call may be admitted now. `admitted` answers `admit`.
    """

    state: CircuitState
    epoch: int
    wait: int
    admitted: bool = False


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """The answer to `token`: use this `value` for `left` µs; or `wait` so long and ask again; or `fetch` one yourself.

    `version` names the value. Who is told to fetch holds the fleet's lock until its lease ends.
    """

    verdict: Literal["use", "wait", "fetch"]
    value: bytes = b""
    version: int = 0
    left: int = 0


class Store(Protocol):
    """Decisions by name. Names are the caller's; an implementation puts its own prefix before them."""

    @property
    def place(self) -> str:
        """Where it is, fit for a log: without a credential."""
        ...

    async def connect(self) -> None:
        """Get ready. Also called again after an outage."""
        ...

    async def aclose(self) -> None: ...

    async def take(
        self, name: str, limit: Limit, *, least: int = 0, most: int = 0, ahead: int = 0, returned: int = 0
    ) -> Grant:
        """Tokens of a shared bucket: see `SharedBucket.take`."""
        ...

    async def admit(self, name: str, rules: CircuitRules, *, probe: str, lease: int) -> CircuitView:
        """Ask to make a call. When the circuit is half-open, the call is the probe named so, for `lease` µs at most."""
        ...

    async def record(self, name: str, rules: CircuitRules, *, epoch: int, probe: str, outcomes: str) -> CircuitView:
        """What calls of an epoch came to, in order; for a probe one letter. Without outcomes: only look."""
        ...

    async def force(self, name: str, rules: CircuitRules, state: Literal["open", "closed"]) -> CircuitView:
        """Open or close a circuit by hand."""
        ...

    async def token(self, name: str, *, holder: str, unwanted: int, lease: int) -> TokenAnswer:
        """The shared token, unless it is the version that the asker no longer wants; else the lock to fetch a new one.

        The holder of the lock asks again to keep it for another `lease` µs.
        """
        ...

    async def put_token(self, name: str, *, holder: str, value: bytes, lifetime: int) -> int:
        """Store what the holder of the lock has fetched, for `lifetime` µs, and give up the lock.

        Returns the version, or 0 when the lock is somebody else's by now and nothing was stored.
        """
        ...

    async def release_token(self, name: str, *, holder: str) -> None:
        """Give up the lock without a token."""
        ...

    async def presence(self, name: str, *, member: str, lease: int) -> int:
        """Say that a process is there for another `lease` µs (0: no longer), and count those that are."""
        ...
