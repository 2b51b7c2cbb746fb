"""A store in Redis (7 or newer) or Valkey: each decision is one script on one key, by the server's time.

| key                  | kind       | holds                                               | lives                     |
| -------------------- | ---------- | --------------------------------------------------- | ------------------------- |
| `<prefix>:limit:…`   | string     | `<credit> <settled at> <capacity>`, in ticks and µs | until the bucket is full  |
| `<prefix>:circuit:…` | hash       | state, epoch, failures, leases of probes, window    | a day after its last use  |
| `<prefix>:token:…`   | hash       | the encrypted token, its end, who fetches a new one | as long as the token      |
| `<prefix>:processes` | sorted set | the processes by the end of their lease (µs)        | as long as the last one   |

No script touches two keys, so a cluster serves them all. Each is sent once and then called by its digest; a server that
has lost it gets it again. redis-py is imported when a store is made.
"""

from __future__ import annotations

import importlib.resources
from hashlib import sha1
from typing import Any, Literal

from fastapi_http_client.errors import ConfigurationError
from fastapi_http_client.policies.circuit_breaker import CircuitRules, CircuitState
from fastapi_http_client.policies.shared_bucket import Grant, Limit
from fastapi_http_client.redaction import redact_url
from fastapi_http_client.stores.base import CircuitView, TokenAnswer

SOCKET_TIMEOUT = 0.5  # seconds; callers wait far less (fleet.link), this only ends what nobody waits for
KEPT = 24 * 3600  # seconds that an unused circuit is remembered
SCHEMES = ("redis://", "rediss://", "unix://")


class Script:
    """A script by its digest, with the lines before it that all scripts share."""

    def __init__(self, name: str, prelude: str) -> None:
        self.text = "\n".join((prelude, _read("common"), _read(name)))
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def _read(name: str) -> str:
    return importlib.resources.files("fastapi_http_client.stores").joinpath(f"{name}.lua").read_text("utf-8")


class RedisStore:
    """Decisions made by a Redis or Valkey server.

    `url` is `redis://`, `rediss://` or `unix://`, with the options that redis-py reads from it; or pass a `client` of
    redis-py's (asyncio, Sentinel's and the cluster's included), made with short timeouts and without retries of its
    own; it is not closed by the store. `prefix` comes before every key.

    Raises `ConfigurationError` when redis-py is not installed, or the URL is none.
    """

    def __init__(self, url: str | None = None, *, client: Any = None, prefix: str = "http_clients") -> None:
        if (url is None) == (client is None):
            raise ConfigurationError("RedisStore: give either a url or a client")
        self._owned = client is None
        self._client: Any = client if url is None else _connect(url)
        self._place = "a given client" if url is None else redact_url(url.partition("?")[0])
        self._prefix = prefix
        prelude = self._prelude()
        self._limit = Script("limit", prelude)
        self._circuit = Script("circuit", prelude)
        self._token = Script("token", prelude)
        self._presence = Script("presence", prelude)

    @staticmethod
    def _prelude() -> str:
        return _read("clock")

    @property
    def place(self) -> str:
        return self._place

    async def connect(self) -> None:
        for script in (self._limit, self._circuit, self._token, self._presence):
            await self._client.script_load(script.text)

    async def aclose(self) -> None:
        if self._owned:
            await self._client.aclose()

    async def _run(self, script: Script, kind: str, name: str, *arguments: Any) -> Any:
        key = f"{self._prefix}:{kind}:{name}" if name else f"{self._prefix}:{kind}"
        try:
            return await self._client.evalsha(script.digest, 1, key, *arguments)
        except Exception as error:
            if type(error).__name__ != "NoScriptError":
                raise
        return await self._client.eval(script.text, 1, key, *arguments)  # which loads it too

    # -- limits --------------------------------------------------------------------------------------------------

    async def take(
        self, name: str, limit: Limit, *, least: int = 0, most: int = 0, ahead: int = 0, returned: int = 0
    ) -> Grant:
        numbers = (limit.price, limit.capacity, 1 << limit.shift, least, most, ahead, returned)
        tokens, wait = await self._run(self._limit, "limit", name, *numbers)
        return Grant(tokens, wait)

    # -- circuits ------------------------------------------------------------------------------------------------

    async def admit(self, name: str, rules: CircuitRules, *, probe: str, lease: int) -> CircuitView:
        return await self._decide(name, rules, "admit", probe, lease)

    async def record(self, name: str, rules: CircuitRules, *, epoch: int, probe: str, outcomes: str) -> CircuitView:
        return await self._decide(name, rules, "record", epoch, probe, outcomes)

    async def force(self, name: str, rules: CircuitRules, state: Literal["open", "closed"]) -> CircuitView:
        return await self._decide(name, rules, "force", state)

    async def _decide(self, name: str, rules: CircuitRules, operation: str, *arguments: Any) -> CircuitView:
        settings = (
            rules.failure_threshold,
            rules.recovery_timeout,
            rules.half_open_max_calls,
            rules.window // 10,
            rules.minimum_calls,
            "" if rules.failure_rate is None else repr(rules.failure_rate),
            KEPT,
        )
        answer = await self._run(self._circuit, "circuit", name, operation, *settings, *arguments)
        state, epoch, wait, admitted = answer
        return CircuitView(CircuitState(_text(state)), int(epoch), wait, admitted == 1)

    # -- tokens --------------------------------------------------------------------------------------------------

    async def token(self, name: str, *, holder: str, unwanted: int, lease: int) -> TokenAnswer:
        verdict, *rest = await self._run(self._token, "token", name, "get", holder, unwanted, lease)
        match _text(verdict):
            case "use":
                value, version, left = rest
                return TokenAnswer("use", value, int(version), left)
            case "wait":
                return TokenAnswer("wait", left=rest[0])
            case _:
                return TokenAnswer("fetch", left=lease)

    async def put_token(self, name: str, *, holder: str, value: bytes, lifetime: int) -> int:
        return int(await self._run(self._token, "token", name, "put", holder, value, lifetime))

    async def release_token(self, name: str, *, holder: str) -> None:
        await self._run(self._token, "token", name, "release", holder)

    # -- processes -----------------------------------------------------------------------------------------------

    async def presence(self, name: str, *, member: str, lease: int) -> int:
        return int(await self._run(self._presence, name, "", member, lease))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _connect(url: str) -> Any:
    if not url.startswith(SCHEMES):
        raise ConfigurationError(f"RedisStore: url: must start with one of {', '.join(SCHEMES)}")
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise ConfigurationError("RedisStore: needs an extra: pip install fastapi-http-client[redis]") from None
    try:
        return Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=SOCKET_TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # its own would turn a refused connection into seconds
            protocol=2,
        )
    except (ValueError, TypeError):
        raise ConfigurationError("RedisStore: url: redis-py cannot read it") from None
