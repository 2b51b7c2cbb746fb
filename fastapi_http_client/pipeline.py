"""The way of a request, in one place.

    once per call      deadline · user middlewares in list order · redirects · retry
    once per attempt   own copy · circuit breaker · rate limiter · auth · span · propagation · timeout · exchange

Each step is called with a request and the rest of the pipeline, and returns the response. `build()` is the list; below
it stand the steps that are not a module of their own.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from fastapi_http_client.auth import CredentialAuth
from fastapi_http_client.call import Call, Handler, origin
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.errors import (
    AuthenticationError,
    CircuitBreakerOpenError,
    HTTPClientError,
    HTTPRequestError,
    RateLimitError,
    of_call,
)
from fastapi_http_client.exchange import Body
from fastapi_http_client.failures import (
    TIMER_MARGIN,
    attempt_timeout,
    described,
    has_hung,
    outcome_of,
    outcome_of_body,
    outcome_of_error,
    total_timeout,
)
from fastapi_http_client.fast import wire_copy
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse, as_http_response
from fastapi_http_client.oauth2 import Fetch, OAuth2ClientCredentials, blames_token
from fastapi_http_client.policies.circuit_breaker import CircuitState, Outcome, Ticket
from fastapi_http_client.policies.retry import RetryBudget, RetryPolicy
from fastapi_http_client.propagation import Propagation
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.redaction import redact_request, without_frames
from fastapi_http_client.redirects import CROSS_ORIGIN_HEADERS, Redirects
from fastapi_http_client.retry import RetryMiddleware, is_replayable
from fastapi_http_client.server_limit import ServerLimit
from fastapi_http_client.telemetry import ClientSpan, report_limiter_wait

if TYPE_CHECKING:
    from pydantic import SecretStr

    from fastapi_http_client.client import AsyncHTTPClient


class Step(Protocol):
    """One concern, wrapped around the rest of the pipeline."""

    name: str

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse: ...


def build(client: AsyncHTTPClient) -> tuple[Handler, tuple[str, ...]]:
    """The client's pipeline and the names of its steps, outermost first.

    What stands under "once per attempt" is done in one go by `fast_attempt` when nothing of it has to wait; a change
    here is a change there.
    """
    config = client.config
    limiter, breaker = client.rate_limiter, client.circuit_breaker
    retries_itself = any(isinstance(middleware, RetryMiddleware) for middleware in client.middlewares)

    steps: list[Step | None] = [
        # once per call
        Deadline(),
        *(UserMiddleware(middleware, client) for middleware in client.middlewares),
        Redirects(client),
        None if retries_itself else UserMiddleware(RetryMiddleware(), client),
        # once per attempt
        OwnCopy(client),
        CircuitBreaking(breaker) if breaker is not None else None,
        RateLimiting(
            client.server_limit,
            limiter,
            breaker,
            max_wait=config.rate_limit_max_wait,
            longest_pause=config.retry_max_delay,
        ),
        Authentication(client),
        ClientSpan(client.name),
        Propagation.of(config),
        AttemptTimeout(),
    ]
    armed = [step for step in steps if step is not None]
    return fold(armed, client.exchange), (*(step.name for step in armed), "exchange")


def fold(steps: list[Step], innermost: Handler) -> Handler:
    """The steps as one handler: the first is the outermost."""
    handler = innermost
    for step in reversed(steps):
        handler = functools.partial(step, call_next=handler)
    return handler


# -- once per call -----------------------------------------------------------------------------------------------


class Deadline:
    """Ends the whole call in time: at its own total timeout, or at the deadline of the request that it serves."""

    name = "deadline"

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        limit = call.start_deadline()
        if limit is None:
            return await call_next(request)
        if limit <= 0 and call.outcome is None:
            raise total_timeout(request)
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                return await call_next(request)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise total_timeout(request, error) from error


def _goes_on_as(call: Call, timeout: Any, following: httpx.Request) -> httpx.Request:
    """Another request of the same call. It has the time limits of the one in whose place it is, if it has none."""
    if timeout is not None:
        following.extensions.setdefault("timeout", timeout)
    return call.attach(following)


class UserMiddleware:
    """A middleware as a step. Whatever request it goes on with stays part of the same call.

    What it answers with is as good as what it got: read, unless the call is streamed, and with the facts of the call.
    """

    def __init__(self, middleware: Middleware, client: AsyncHTTPClient) -> None:
        self.name = "retry" if isinstance(middleware, RetryMiddleware) else type(middleware).__name__
        self._handle = middleware.handle
        self._client = client

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        call, timeout = Call.of(request), request.extensions.get("timeout")  # before the middleware changes any of it
        began = call.clock.monotonic()
        inner: HTTPResponse | None = None
        open_ones = _OpenResponses()

        async def go_on(next_request: httpx.Request) -> HTTPResponse:
            nonlocal inner
            inner = await call_next(_goes_on_as(call, timeout, next_request))
            if call.stream:
                await open_ones.add(inner)
            return inner

        try:
            answer = await self._handle(request, self._client, go_on)
            if not isinstance(answer, httpx.Response):
                raise TypeError(f"{self.name}.handle returned {type(answer).__name__}, not an httpx.Response")
            response = as_http_response(answer)
            if response is not inner:
                _complete(response, request, call, inner)
            if not call.stream and isinstance(response.stream, httpx.AsyncByteStream):
                await response.aread()
        except BaseException:
            await open_ones.close()
            raise
        if response.is_closed:
            if not hasattr(response, "_elapsed"):
                response.elapsed = timedelta(seconds=call.clock.monotonic() - began)
            await open_ones.close()
        elif isinstance(response.stream, httpx.AsyncByteStream) and not open_ones.holds(response):
            response.stream = _BodyOverResponses(open_ones, response.stream)
        else:
            await open_ones.close(but=response)
        return response


def _complete(response: HTTPResponse, request: httpx.Request, call: Call, inner: HTTPResponse | None) -> None:
    """Give a middleware's own answer, from a cache, say, what the one that it got last has: also what a hook raised."""
    if response._request is None:
        response.request = request
    if response._client_name is None:
        response._client_name = call.client_name
    if not response.attempts:
        response.attempts = tuple(call.attempts) if inner is None else inner.attempts
    if inner is not None and response.status_code == inner.status_code and response._verdict is None:
        response._verdict = inner._verdict


class _OpenResponses:
    """The responses that a middleware got for a streamed call, which hold a connection each, with their bodies.

    They end with the one that it answers with. What still comes after that, to a task that it has left, ends at once.
    """

    __slots__ = ("_over", "_responses")

    def __init__(self) -> None:
        self._responses: list[tuple[HTTPResponse, Any]] = []
        self._over = False

    async def add(self, response: HTTPResponse) -> None:
        if self._over:
            await response.aclose()
        else:
            self._responses.append((response, response.stream))

    def holds(self, answer: HTTPResponse) -> bool:
        """Whether the answer is one of them as it came, with its body in its place."""
        return any(response is answer and stream is answer.stream for response, stream in self._responses)

    async def close(self, *, but: HTTPResponse | None = None) -> None:
        self._over = True
        for response, stream in self._responses:
            if response is not but:
                await response.aclose()
                await stream.aclose()  # the middleware may have put another one in its place
        self._responses.clear()


class _BodyOverResponses(httpx.AsyncByteStream):
    """The body of a middleware's own answer, which may read those of the responses that it got: they end with it."""

    def __init__(self, responses: _OpenResponses, body: httpx.AsyncByteStream) -> None:
        self._responses = responses
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            await self._responses.close()


# -- once per attempt --------------------------------------------------------------------------------------------


class OwnCopy:
    """Gives each attempt a request of its own, so that no credential and no trace header is ever on the caller's.

    It also looks where the request goes: to one of the client's own origins, or abroad, where a middleware may have
    sent it, and then without what is the client's.
    """

    name = "own copy"

    def __init__(self, client: AsyncHTTPClient) -> None:
        self._client = client

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        if call.outcome is not None:
            return made_already(call)
        try:
            copy = wire_copy(request)
            if not call.is_home(request):
                self._strip(copy)
            response = await call_next(copy)
        except HTTPClientError as error:
            error.request = request
            cause = error.__cause__
            if isinstance(cause, httpx.RequestError) and not isinstance(cause, HTTPClientError):
                cause.request = request  # and not that of another client's call, whose response was our body
            raise
        response.request = request
        return response

    def _strip(self, copy: httpx.Request) -> None:
        headers = copy.headers
        for name, value in self._client.headers.items():
            if name not in CROSS_ORIGIN_HEADERS and headers.get(name) == value:
                del headers[name]
        if self._client.cookies:
            headers.pop("cookie", None)
        headers["Host"] = copy.url.netloc.decode("ascii")


def made_already(call: Call) -> HTTPResponse:
    """What the call's first attempt came to, which `fast_attempt` has made."""
    outcome, call.outcome = call.outcome, None
    if isinstance(outcome, HTTPClientError):
        raise outcome
    assert outcome is not None
    return outcome


_TICKET = "fastapi_http_client.ticket"


class CircuitBreaking:
    """Asks the circuit before an attempt, and tells it what came of it.

    A hop to another origin is not its business: what becomes of it says nothing of the client's own upstream.
    """

    name = "circuit breaker"

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        if not Call.of(request).is_home(request):
            return await call_next(request)
        try:
            request.extensions[_TICKET] = await self._breaker.ask(lease=lease(request, self._breaker))
        except CircuitBreakerOpenError as error:
            raise _refused(error, request, str(error)) from None
        return await self._go_on(request, call_next)

    async def _go_on(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        breaker, call = self._breaker, Call.of(request)
        outcome = Outcome.IGNORED
        try:
            response = await call_next(request)
            outcome = outcome_of(response.status_code)
            if (
                outcome is Outcome.SUCCESS
                and call.stream
                and isinstance(response.stream, Body)
                and breaker.state is not CircuitState.HALF_OPEN  # a probe's answer is enough, its body may never end
            ):
                response.stream.when_done(functools.partial(self._record_body, request.extensions.pop(_TICKET)))
            return response
        except HTTPRequestError as error:
            if error.request is None or call.is_home(error.request):  # and not one of an auth flow to somebody else
                outcome = outcome_of_error(error)
            raise
        except asyncio.CancelledError:
            if call.hung:
                outcome = Outcome.FAILURE
            raise
        finally:
            ticket = request.extensions.pop(_TICKET, None)
            if ticket is not None:
                breaker.record(ticket, outcome)

    def _record_body(self, ticket: Ticket, error: Exception | None) -> None:
        self._breaker.record(ticket, outcome_of_body(error))


def lease(request: httpx.Request, breaker: CircuitBreaker) -> float:
    """How long a probe may hold its place, in seconds: its attempt lasts no longer, if it has a limit."""
    limit = attempt_limit(request)
    return (_WITHOUT_LIMIT if limit is None else limit) + breaker.recovery_timeout


_WITHOUT_LIMIT = 3600.0
"""Seconds after which a probe without a limit is given up: its process may have died."""


class RateLimiting:
    """Waits while the upstream asks for a pause, and for our own limiter: in line, and no longer than there is time.

    After a wait the circuit is asked again. A pause that another origin asks for, after a redirect, is not for us.
    """

    name = "rate limiter"

    def __init__(
        self,
        server_limit: ServerLimit,
        limiter: TokenBucketRateLimiter | None,
        breaker: CircuitBreaker | None,
        *,
        max_wait: float | None,
        longest_pause: float,
    ) -> None:
        self._server_limit = server_limit
        self._limiter = limiter
        self._breaker = breaker
        self._max_wait = max_wait
        self._longest_pause = longest_pause

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        try:
            waited = await self._wait(call, call.is_home(request))
        except RateLimitError as error:
            raise _refused(error, request, str(error)) from None
        if waited > 0:
            report_limiter_wait(call.client_name, waited)
            await self._ask_circuit_again(request)
        response = await call_next(request)
        if call.is_home(response.request):
            self._server_limit.note(response)
        return response

    async def _wait(self, call: Call, is_home: bool) -> float:
        server_limit, limiter = self._server_limit, self._limiter
        longest, waited = self._longest_pause, 0.0
        if is_home and server_limit.is_pausing:
            waited = await server_limit.wait(self._most(call), longest=longest)
        if limiter is not None:
            waited += await limiter.acquire(max_wait=self._most(call))
            if is_home and server_limit.is_pausing:  # it has begun while we were in line
                waited += await server_limit.wait(self._most(call), longest=longest)
        return waited

    def _most(self, call: Call) -> float | None:
        left = call.remaining()
        return self._max_wait if left is None else left if self._max_wait is None else min(left, self._max_wait)

    async def _ask_circuit_again(self, request: httpx.Request) -> None:
        breaker = self._breaker
        ticket = request.extensions.pop(_TICKET, None)
        if ticket is None or breaker is None:
            return
        try:
            request.extensions[_TICKET] = await breaker.ask_again(ticket, lease=lease(request, breaker))
        except CircuitBreakerOpenError as error:
            raise _refused(error, request, f"while it waited for the rate limiter: {error}") from None


class Authentication:
    """Puts the credential on the attempt's own copy, on hops to the client's own origins only."""

    name = "auth"

    def __init__(self, client: AsyncHTTPClient) -> None:
        self._client = client
        self._fetch: Fetch | None = None  # made for the first token: few clients need one

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        auth = call.auth
        if auth is None or not call.is_home(request):
            return await call_next(request)
        try:
            if isinstance(auth, OAuth2ClientCredentials):
                return await self._with_token(auth, request, call_next)
            if isinstance(auth, CredentialAuth):
                signing = auth.sign(request)
                if signing is not None:
                    await signing
                return await call_next(request)
        except AuthenticationError as error:
            raise _refused(error, request, str(error)) from error.__cause__
        return await self._by_flow(auth, request, call_next)

    async def _with_token(
        self, auth: OAuth2ClientCredentials, request: httpx.Request, call_next: Handler
    ) -> HTTPResponse:
        token = await self._token(auth)
        request.headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        replayable = is_replayable(request)  # asked before, for a mock may read the body and leave it with the request
        response = await call_next(request)
        if not blames_token(response):
            auth.accept(token)
            return response
        if not auth.reject(token, replayable=replayable) or not replayable:
            return response
        await response.aclose()
        token = await self._token(auth, instead_of=token)
        request.headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        response = await call_next(request)
        auth.judge(token, helped=not blames_token(response))
        return response

    async def _token(self, auth: OAuth2ClientCredentials, instead_of: SecretStr | None = None) -> SecretStr:
        if self._fetch is None:
            self._fetch = build_token_pipeline(self._client)
        return await auth.token(self._fetch, self._client.lifecycle.spawn, instead_of=instead_of)

    async def _by_flow(self, auth: httpx.Auth, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        """Any other `httpx.Auth`, by httpx's own protocol: the flow sees each response and may ask for one more."""
        if auth.requires_request_body:
            await request.aread()
        call, timeout = Call.of(request), request.extensions.get("timeout")
        flow = auth.async_auth_flow(request)
        try:
            request = await anext(flow)
            history: list[httpx.Response] = []
            while True:
                # The flow may ask an identity provider elsewhere: with what it writes itself, and nothing of ours.
                response = await call_next(_goes_on_as(call, timeout, request))
                response.history = [*history]
                try:
                    if auth.requires_response_body:
                        await response.aread()
                    following = await flow.asend(response)
                except StopAsyncIteration:
                    return response
                except BaseException:
                    await response.aclose()
                    raise
                await response.aclose()
                response.request = redact_request(response.request)  # as it was sent, but for the credential
                history.append(response)
                request = following
        finally:
            await flow.aclose()


class AttemptTimeout:
    """Ends one attempt in time, by the wall clock, whatever trickles in. Streamed: the head has to come in time."""

    name = "attempt timeout"

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        limit = attempt_limit(request)
        if limit is None:
            return await call_next(request)
        # A hair later than the engine's own limits, so that their error, which names the phase, comes first.
        scope = asyncio.timeout(limit + TIMER_MARGIN)
        began = SYSTEM_CLOCK.monotonic()
        call = Call.of(request)
        call.hung = False
        try:
            async with scope:
                return await call_next(request)
        except asyncio.CancelledError as cancelled:
            # The limit of the whole call, when it is no longer than this one, strikes first.
            call.hung = call.is_home(request) and has_hung(SYSTEM_CLOCK.monotonic() - began, limit, call, cancelled)
            raise
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise attempt_timeout(request, limit, error) from without_frames(error)


def attempt_limit(request: httpx.Request) -> float | None:
    """The limit of one attempt in seconds: the longest of httpx's four, or none when one of them is unlimited."""
    timeouts = request.extensions.get("timeout")
    if not timeouts:
        return None
    values = timeouts.values()
    return None if None in values else max(values)


def _refused(error: HTTPClientError, request: httpx.Request, what: str) -> HTTPClientError:
    call = Call.of(request)
    return of_call(
        error, message=described(request, what), request=request, client=call.client_name, attempts=call.attempts
    )


# -- token requests ----------------------------------------------------------------------------------------------

TOKEN_TIMEOUT = 10.0  # seconds for one attempt, if the client's own limit is not shorter
TOKEN_MAX_BYTES = 256 * 1024  # of a reply
TOKEN_RETRY = RetryPolicy(
    attempts=3,
    backoff_factor=0.5,
    max_delay=10.0,
    jitter=0.1,
    statuses=frozenset({429, 500, 502, 503, 504}),
    methods=frozenset({"POST"}),
    non_idempotent=True,  # a token that is issued twice does no harm
)


def build_token_pipeline(client: AsyncHTTPClient) -> Fetch:
    """What fetches a token: retried, timed and traced like a call, without limiter, breaker and middlewares."""
    budget = RetryBudget(client.config.retry_budget)  # of its own: it is another upstream
    handler = fold(
        [
            UserMiddleware(RetryMiddleware(TOKEN_RETRY, budget), client),
            OwnCopy(client),
            Authentication(client),
            ClientSpan(client.name),
            AttemptTimeout(),
        ],
        client.exchange,
    )
    timeout = httpx.Timeout(min(client.config.timeout, TOKEN_TIMEOUT)).as_dict()

    async def fetch(request: httpx.Request, auth: httpx.Auth) -> httpx.Response:
        request.extensions["timeout"] = timeout
        if "user-agent" in client.headers:
            request.headers["User-Agent"] = client.headers["user-agent"]
        call = client.new_call(request, auth=auth)
        call.origins = frozenset({origin(request.url)})  # where this credential belongs
        call.max_bytes = TOKEN_MAX_BYTES
        call.attach(request)
        try:
            return await handler(request)
        except HTTPClientError as error:
            raise AuthenticationError(f"no token could be fetched: {error}") from error

    return fetch
