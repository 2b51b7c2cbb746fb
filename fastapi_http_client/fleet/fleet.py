"""`Fleet`: what the processes of a service share, and the store where it lies."""

from __future__ import annotations

from typing import Any

from fastapi_http_client import arguments
from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.errors import ConfigurationError
from fastapi_http_client.fleet.circuit_breaker import FleetCircuitBreaker
from fastapi_http_client.fleet.link import Link
from fastapi_http_client.fleet.rate_limiter import FleetRateLimiter
from fastapi_http_client.fleet.tokens import Cipher, SharedToken, shared_facts
from fastapi_http_client.lifecycle import shielded
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.stores.base import Store
from fastapi_http_client.stores.redis import RedisStore

PREFIX = "http_clients"


class Fleet:
    """Makes limiters, circuit breakers and tokens that are shared by name with all processes on the same store.

    `store` is the URL of a Redis or Valkey server, whose keys all begin with `prefix`, or a `Store`. `processes` is
    how many share the limits while the store is away (None: as many as were seen last, and 4 before any were).
    `encryption_key`: Fernet keys, separated by commas, the first of which encrypts tokens; without one, tokens are not
    shared.

    Raises `ConfigurationError`. What `start()` begins, `aclose()` ends; the store is closed too.
    """

    def __init__(
        self,
        store: Store | str,
        *,
        prefix: str = PREFIX,
        processes: int | None = None,
        encryption_key: str | None = None,
    ) -> None:
        if processes is not None:
            arguments.check("Fleet", arguments.count("processes", processes))
        self._cipher = None
        if encryption_key is not None:
            try:
                self._cipher = Cipher(encryption_key)
            except ConfigurationError as error:
                raise bad_argument("Fleet", "encryption_key", str(error)) from None
        if not isinstance(store, str) and not hasattr(store, "take"):
            raise bad_argument("Fleet", "store", f"must be a URL or a Store, not {type(store).__name__}")
        self.link = Link(RedisStore(store, prefix=prefix) if isinstance(store, str) else store, processes=processes)

    @property
    def place(self) -> str:
        """Where the state is, without a credential."""
        return self.link.store.place

    @property
    def is_up(self) -> bool:
        """Whether the store is in use; while it is not, this process decides for itself."""
        return self.link.is_up

    async def start(self) -> None:
        """Get in touch with the store. One that is away is only warned of."""
        try:
            await self.link.open()
        except BaseException:  # cancelled: nobody will close what has not started
            await shielded(self.aclose())
            raise

    async def aclose(self) -> None:
        await self.link.aclose()

    async def __aenter__(self) -> Fleet:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def rate_limiter(self, name: str, rate: float, burst: int = 1) -> FleetRateLimiter:
        return FleetRateLimiter(rate, burst, name=name, link=self.link)

    def circuit_breaker(self, name: str, **options: Any) -> FleetCircuitBreaker:
        """The options are those of `CircuitBreaker`."""
        return FleetCircuitBreaker(**options, name=name, link=self.link)

    def share_token(self, name: str, auth: OAuth2ClientCredentials) -> bool:
        """Let a credential take its token from the fleet. Returns False, and does nothing, without a key."""
        if self._cipher is None:
            return False
        facts = shared_facts(auth)
        shared = SharedToken(self.link, self._cipher, client=name, facts=facts, longest=auth.cache_duration)
        auth.share(shared.through)
        return True
