"""OAuth2 client credentials (RFC 6749, section 4.4): one token for all callers, fetched once and ahead of time."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Literal, cast
from urllib.parse import quote_plus, urlencode

import httpx
from pydantic import SecretStr

from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.auth import CredentialAuth, Token, checked
from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.config import OAuth2Config, valid_token
from fastapi_http_client.errors import AuthenticationError, ConfigurationError, RateLimitError, RetryExhaustedError
from fastapi_http_client.models import copy_request, retry_after
from fastapi_http_client.policies.token_blame import TokenBlame
from fastapi_http_client.retry import is_replayable

logger = logging.getLogger("fastapi_http_client.auth")

Fetch = Callable[[httpx.Request, httpx.Auth], Awaitable[httpx.Response]]
Spawn = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]

MAX_LEEWAY = 60.0  # seconds before its end that a long-lived token is renewed
LEEWAY_SHARE = 0.1  # the share of a short-lived one's life
FAILURE_PAUSE = 1.0  # seconds for which a failure is the answer to all, so that an outage does not cost a fetch a call
MAX_FAILURE_PAUSE = 60.0  # the most that an endpoint's Retry-After makes of it
MIN_LIFETIME = 1.0  # an endpoint that says 0 or -1 must not cost a token call for every call
_ERROR_CODE = r"[a-z_]{1,40}"


class OAuth2ClientCredentials(CredentialAuth):
    """A bearer token from `token_url`, shared by all calls and renewed before it ends.

    All callers that need a token at the same time share one fetch, and the cancellation of any of them, the first
    included, ends only its own waiting. A token is renewed in the background min(60 s, a tenth of its life) before its
    end. `cache_duration` (seconds) is how long a token is used when the endpoint does not say; it never extends what
    the endpoint says. After a 401 the token is renewed once and the request repeated once.

    `audience` and `resource` (RFC 8707) tell an endpoint that wants to know for which API the token is.

    The client authenticates itself by HTTP Basic, which every endpoint must support (RFC 6749, section 2.3.1);
    `credentials_in="body"` sends id and secret as form fields instead.

    Raises `AuthenticationError` on use when no token can be fetched.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: Token,
        scope: str | None = None,
        cache_duration: float = 3600,
        *,
        audience: str | None = None,
        resource: str | None = None,
        credentials_in: Literal["header", "body"] = "header",
    ) -> None:
        if credentials_in not in ("header", "body"):
            what = f"must be 'header' or 'body', not {credentials_in!r}"
            raise bad_argument(type(self).__name__, "credentials_in", what)
        config = checked(
            self,
            OAuth2Config,
            token_url=token_url,
            client_id=client_id,
            client_secret=client_secret,
            scope=scope,
            audience=audience,
            resource=resource,
            cache_duration=cache_duration,
        )
        self.token_url = config.token_url
        self.client_id = config.client_id
        self.scope = config.scope
        self.audience = config.audience
        self.resource = config.resource
        self.cache_duration = config.cache_duration
        self.client_secret = config.client_secret
        self._through: Callable[[Fetch], Fetch] | None = None
        self._client = _ClientAuth(config.client_id, config.client_secret, in_body=credentials_in == "body")
        self._clock: Clock | None = None
        self._token: SecretStr | None = None
        self._blame = TokenBlame()
        self._expires_at = -math.inf
        self._renew_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._failure = ""
        self._ask_again_at = -math.inf

    def __repr__(self) -> str:
        return (
            f"OAuth2ClientCredentials(client_id={self.client_id!r}, client_secret='**********', scope={self.scope!r})"
        )

    def bind(self, clock: Clock) -> None:
        """Take the time from `clock` instead of the machine. The first clock stays: lives are counted by it."""
        self._clock = self._clock or clock

    def share(self, through: Callable[[Fetch], Fetch]) -> None:
        """Let every fetch go through something that may have the token already."""
        self._through = through

    def _now(self) -> float:
        return (self._clock or SYSTEM_CLOCK).monotonic()

    # -- the token -----------------------------------------------------------------------------------------------

    async def token(self, fetch: Fetch, spawn: Spawn, *, instead_of: SecretStr | None = None) -> SecretStr:
        """The current token; when there is none, the one that `fetch` gets from the token endpoint.

        The fetch runs by `spawn`, in a task that no caller owns. A token that was rejected is replaced, but while the
        endpoint fails it still is what all get but those who have seen it fail, and ask for another `instead_of` it.
        Raises `AuthenticationError`.
        """
        while True:
            may_ask = self._now() >= self._ask_again_at
            token = self._usable()
            if token is not None and token is not instead_of:
                if not self._blame.is_rejected:
                    if self._now() >= self._renew_at and may_ask and not self._is_fetching():
                        self._begin_fetch(fetch, spawn)
                    return token
                if not may_ask and not self._is_fetching():
                    return token
            if not self._is_fetching():
                if not may_ask:
                    raise AuthenticationError(f"{self._failure} (a moment ago)")
                self._begin_fetch(fetch, spawn)
            assert self._fetching is not None
            fetching = self._fetching
            try:
                await asyncio.shield(fetching)
            except asyncio.CancelledError:
                # Either we were cancelled, or the fetch was, with the client that began it: then it is our turn.
                if not fetching.cancelled():
                    raise
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
            except AuthenticationError as error:
                if token is not None and token is self._usable() and token is not instead_of:
                    return token
                # One error object raised in many tasks would collect all their tracebacks.
                raise AuthenticationError(str(error)) from error

    def accept(self, token: SecretStr) -> None:
        """Note that a call got no 401."""
        if self._token is token:
            self._blame.accept()

    def reject(self, token: SecretStr, *, replayable: bool) -> bool:
        """Note that a call got a 401, so that the token is replaced. Returns whether another is to be tried."""
        return self._token is not token or self._blame.reject(self._now(), replayable=replayable)

    def judge(self, token: SecretStr, *, helped: bool) -> None:
        """Note what came of a call that was made again, with another token than the one it was refused with."""
        if helped or self._token is token:
            self._blame.judge(self._now(), helped=helped)

    def _usable(self) -> SecretStr | None:
        return self._token if self._now() < self._expires_at else None

    def _is_fetching(self) -> bool:
        if self._fetching is None or self._fetching.done():
            return False
        # A fetch on a loop that is gone will never end.
        return self._fetching.get_loop() is asyncio.get_running_loop()

    def _begin_fetch(self, fetch: Fetch, spawn: Spawn) -> None:
        self._fetching = spawn(self._fetch(fetch))
        self._fetching.add_done_callback(_note_failure)

    async def _fetch(self, fetch: Fetch) -> None:
        if self._through is not None:
            fetch = self._through(fetch)
        response = None
        try:
            response = await fetch(self.token_request(), self._client)
            self.store(response)
        except Exception as error:
            failed = error
            if not isinstance(error, AuthenticationError):  # of a hook, say
                failed = AuthenticationError(f"no token could be fetched: {type(error).__name__}")
            self._failure, self._ask_again_at = str(failed), self._now() + _pause(error, response)
            raise failed from (error.__cause__ if failed is error else error)

    def token_request(self) -> httpx.Request:
        """What is asked of the endpoint, without the client's own credential, which is put on a copy."""
        asked = {"scope": self.scope, "audience": self.audience, "resource": self.resource}
        form = {"grant_type": "client_credentials"} | {field: value for field, value in asked.items() if value}
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        return httpx.Request("POST", self.token_url, headers=headers, content=urlencode(form).encode("ascii"))

    def store(self, response: httpx.Response) -> None:
        """Keep the token of a reply that has been read. Raises `AuthenticationError`, which quotes nothing of it."""
        token, expires_in = token_of(response)
        lifetime = self._lifetime(expires_in)
        now = self._now()
        self._token = token
        self._blame.replace(now)
        self._expires_at = now + lifetime
        self._renew_at = self._expires_at - min(MAX_LEEWAY, lifetime * LEEWAY_SHARE)

    def _lifetime(self, expires_in: object) -> float:
        if expires_in is None:
            return self.cache_duration
        try:
            seconds = float(expires_in) if isinstance(expires_in, int | float | str) else math.nan
        except (ValueError, OverflowError):
            seconds = math.nan
        if math.isnan(seconds) or isinstance(expires_in, bool):
            logger.warning(
                "the token endpoint's expires_in is no number; using cache_duration, %g s", self.cache_duration
            )
            return self.cache_duration
        return min(max(seconds, MIN_LIFETIME), self.cache_duration)

    # -- in a plain httpx client -----------------------------------------------------------------------------------

    def sign(self, request: httpx.Request) -> None:
        """What `httpx.Client` would come to. Raises `ConfigurationError`: fetching a token takes an async client."""
        raise ConfigurationError("OAuth2ClientCredentials: needs an async client")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The flow for a client that is not ours: the token is fetched by that client, without retries or sharing."""
        replayable = is_replayable(request)
        for last in (False, True):
            token = self._usable()
            if token is None or self._blame.is_rejected:
                asking = copy_request(self.token_request())
                self._client.sign(asking)
                asking.extensions["timeout"] = request.extensions.get("timeout", {})
                reply = yield asking
                await reply.aread()
                self.store(reply)
                token = self._token
            assert token is not None
            request.headers["Authorization"] = f"Bearer {token.get_secret_value()}"
            response = yield request
            is_refused = blames_token(response)
            if last:
                self.judge(token, helped=not is_refused)
                return
            if not is_refused:
                self.accept(token)
                return
            if not self.reject(token, replayable=replayable) or not replayable:
                return


def blames_token(response: httpx.Response) -> bool:
    """Whether a response says that another token may help: a 401, but not for too small a scope (RFC 6750, 3.1)."""
    if response.status_code != 401:
        return False
    return 'error="insufficient_scope"' not in response.headers.get("www-authenticate", "")


class _ClientAuth(CredentialAuth):
    """The client's own credential, for the token endpoint (RFC 6749, section 2.3.1)."""

    def __init__(self, client_id: str, secret: SecretStr, *, in_body: bool) -> None:
        self._client_id = client_id
        self._secret = secret
        self._in_body = in_body

    def sign(self, request: httpx.Request) -> None:
        client_id, secret = quote_plus(self._client_id), quote_plus(self._secret.get_secret_value())
        if self._in_body:
            body = b"".join(cast("httpx.ByteStream", request.stream))
            body += f"&client_id={client_id}&client_secret={secret}".encode("ascii")
            request.stream = httpx.ByteStream(body)
            request.headers["Content-Length"] = str(len(body))
        else:  # form-encoded before they are joined, as the RFC has it
            pair = f"{client_id}:{secret}".encode("ascii")
            request.headers["Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")


def token_of(response: httpx.Response) -> tuple[SecretStr, object]:
    """The token of a reply that has been read, and what it says of its life.

    Raises `AuthenticationError`, which quotes nothing of the reply.
    """
    if response.status_code != 200:
        raise AuthenticationError(f"the token endpoint answered {response.status_code}{_error_code(response)}")
    token, token_type, expires_in = _fields(response)
    if token is None or not valid_token(token.get_secret_value()):
        raise AuthenticationError("the token endpoint's reply has no valid access_token")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise AuthenticationError("the token endpoint's token is not of type Bearer")
    return token, expires_in


def _fields(response: httpx.Response) -> tuple[SecretStr | None, object, object]:
    """Token, type and lifetime of a reply. The rest of it, and its text, is not kept for a traceback to show."""
    try:
        reply = response.json()
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict):
        token = reply.get("access_token")
        secret = SecretStr(token) if isinstance(token, str) else None
        return secret, reply.get("token_type", "bearer"), reply.get("expires_in")
    del reply
    raise AuthenticationError("the token endpoint's reply is not a JSON object")


def _error_code(response: httpx.Response) -> str:
    """The registered error code of an error reply (RFC 6749, section 5.2); its free text could quote the secret."""
    try:
        code = response.json().get("error")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return f" ({code})" if isinstance(code, str) and re.fullmatch(_ERROR_CODE, code) else ""


def _pause(error: Exception, response: httpx.Response | None) -> float:
    """Seconds until the endpoint is asked again after a failure: longer when it asks for that by `Retry-After`."""
    cause = error.__cause__
    if isinstance(cause, RetryExhaustedError):
        response = cause.last_response
    elif isinstance(cause, RateLimitError):
        response = cause.response
    asked = None if response is None else retry_after(response)
    return min(max(FAILURE_PAUSE, asked or 0.0), MAX_FAILURE_PAUSE)


def _note_failure(task: asyncio.Task[None]) -> None:
    """A renewal in the background has nobody who awaits its error."""
    if not task.cancelled() and task.exception() is not None:
        logger.warning("token request failed: %s", task.exception())
