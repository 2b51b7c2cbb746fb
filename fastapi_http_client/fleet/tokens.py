"""OAuth2 tokens of a fleet: fetched by one process, encrypted in the store, used by all."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

import httpx

from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.errors import AuthenticationError, ConfigurationError
from fastapi_http_client.fleet.link import Link, StoreUnavailableError
from fastapi_http_client.oauth2 import Fetch, OAuth2ClientCredentials, token_of

logger = logging.getLogger("fastapi_http_client.fleet")

LEASE = 3_000_000  # µs; a holder of the lock that is killed holds up the others so long
RENEWAL = 1.0  # seconds between two times that the holder asks to keep it
POLL = 0.05  # seconds between two looks whether another process has fetched the token


class Cipher:
    """Fernet (AES-128-CBC with HMAC-SHA256) with one key, or several: the first encrypts, all decrypt.

    Raises `ConfigurationError`, which shows nothing of the keys, for what is none, and without `cryptography`.
    """

    def __init__(self, keys: str) -> None:
        try:
            from cryptography.fernet import Fernet, MultiFernet
        except ImportError:
            raise ConfigurationError("needs an extra: pip install fastapi-http-client[redis]") from None
        parts = [part.strip() for part in keys.split(",")]
        try:
            self._fernet = MultiFernet([Fernet(part) for part in parts])
        except ValueError:
            raise ConfigurationError(
                "is no Fernet key (32 bytes in URL-safe base64; several are separated by commas)"
            ) from None
        self._naming = parts[-1].encode()  # the oldest: names stay while keys are exchanged

    def name(self, facts: Mapping[str, str | None]) -> str:
        """A name that tells nothing about the facts to whoever has not the key."""
        text = json.dumps(facts, sort_keys=True).encode()
        return hmac.new(self._naming, text, hashlib.sha256).hexdigest()[:32]

    def seal(self, name: str, content: Mapping[str, Any]) -> bytes:
        return self._fernet.encrypt(json.dumps({"name": name, **content}).encode())

    def open(self, name: str, sealed: bytes) -> dict[str, Any] | None:
        """The content, or None for what was not sealed with one of the keys, or for another name."""
        from cryptography.fernet import InvalidToken

        try:
            content = json.loads(self._fernet.decrypt(sealed))
        except (InvalidToken, ValueError):
            return None
        return content if isinstance(content, dict) and content.get("name") == name else None


class SharedToken:
    """What stands between an OAuth2 credential and its token endpoint.

    A process that asks has no token, or one that it no longer wants: because it ends soon, or got a 401. So it is given
    the fleet's token unless that is the one it had; then one process fetches, under a lock with a lease, and the others
    wait for what it brings. The life of a token is counted by the store's time. Without the store, or when the stored
    token cannot be decrypted, the process fetches for itself.
    """

    def __init__(self, link: Link, cipher: Cipher, *, client: str, facts: Mapping[str, str | None], longest: float):
        self._link = link
        self._cipher = cipher
        self._name = f"{client}:{cipher.name(facts)}"
        self._longest = longest
        self._last = 0  # the version that this process has been given

    def through(self, fetch: Fetch) -> Fetch:
        """A fetch that goes to the endpoint only when the fleet has no token."""

        async def shared(request: httpx.Request, auth: httpx.Auth) -> httpx.Response:
            holder = f"{self._link.member}:{secrets.token_hex(4)}"
            try:
                found = await self._find(holder, request)
            except StoreUnavailableError:
                return await fetch(request, auth)
            return found if found is not None else await self._fetch(holder, fetch, request, auth)

        return shared

    async def _find(self, holder: str, request: httpx.Request) -> httpx.Response | None:
        """The fleet's token as its endpoint would answer, or None when it is ours to fetch."""
        store, unwanted = self._link.store, self._last
        while True:
            answer = await self._link.ask(store.token(self._name, holder=holder, unwanted=unwanted, lease=LEASE))
            if answer.verdict == "fetch":
                return None
            if answer.verdict == "wait":
                await SYSTEM_CLOCK.sleep(min(max(answer.left / 1e6, 0.001), POLL))
                continue
            content = self._cipher.open(self._name, answer.value)
            self._last = unwanted = answer.version
            if content is None:
                logger.warning("a shared token could not be decrypted: it is fetched anew")
                continue
            reply = {**content["reply"], "expires_in": answer.left / 1e6}
            found = httpx.Response(200, json=reply, request=request)
            if _reply(found) is None:
                logger.warning("a shared token is not valid: it is fetched anew")
                continue
            return found

    async def _fetch(self, holder: str, fetch: Fetch, request: httpx.Request, auth: httpx.Auth) -> httpx.Response:
        keeping = self._link.start(self._keep_lock(holder))
        try:
            response = await fetch(request, auth)
            await response.aread()
        except BaseException:
            keeping.cancel()
            self._link.start(self._release(holder))
            raise
        keeping.cancel()
        reply = _reply(response)
        if reply is None:
            self._link.start(self._release(holder))
        else:
            await self._put(holder, reply)
        return response

    async def _keep_lock(self, holder: str) -> None:
        while True:
            await SYSTEM_CLOCK.sleep(RENEWAL)
            with contextlib.suppress(StoreUnavailableError):
                await self._link.ask(
                    self._link.store.token(self._name, holder=holder, unwanted=self._last, lease=LEASE)
                )

    async def _put(self, holder: str, reply: dict[str, Any]) -> None:
        lifetime = min(_seconds(reply.get("expires_in"), self._longest), self._longest)
        if lifetime < 1:
            self._link.start(self._release(holder))
            return
        sealed = self._cipher.seal(self._name, {"reply": reply})
        try:
            version = await self._link.ask(
                self._link.store.put_token(self._name, holder=holder, value=sealed, lifetime=round(lifetime * 1e6))
            )
        except StoreUnavailableError:
            return
        self._last = version or self._last

    async def _release(self, holder: str) -> None:
        with contextlib.suppress(StoreUnavailableError):
            await self._link.ask(self._link.store.release_token(self._name, holder=holder))


def _reply(response: httpx.Response) -> dict[str, Any] | None:
    """What is to be shared of a good answer: a token, its type and its life, and nothing that came along."""
    try:
        token_of(response)  # what this process would refuse must not fail the others
    except AuthenticationError:
        return None
    reply = response.json()
    return {key: reply[key] for key in ("access_token", "token_type", "expires_in") if key in reply}


def _seconds(value: object, default: float) -> float:
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else default
    except (ValueError, OverflowError):
        return default
    return seconds if seconds == seconds else default


def shared_facts(auth: OAuth2ClientCredentials) -> dict[str, str | None]:
    """What two credentials must have in common to share a token."""
    return {
        "token_url": auth.token_url,
        "client_id": auth.client_id,
        "client_secret": auth.client_secret.get_secret_value(),
        "scope": auth.scope,
        "audience": auth.audience,
        "resource": auth.resource,
    }
