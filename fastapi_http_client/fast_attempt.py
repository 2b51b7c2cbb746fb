"""The first attempt of an ordinary call, in one coroutine: what the pipeline does step by step, it does in one go.

An ordinary call goes over the engine, with a body of bytes and a credential that is known beforehand, past no
middleware and no hook, while no limit makes it wait. Nearly all calls are, and then the steps of `pipeline.build()`
have nothing to decide: what they cost are their coroutines, timers and copies.

Only a plain success ends here. Whatever else an attempt comes to is left in `Call.outcome`, where the pipeline finds it
in the place of its own first attempt: retries, redirects and refusals are decided there and nowhere else. A call that
is not for here has not been touched. `tests/test_fast_attempt.py` compares the two ways.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx

from fastapi_http_client.auth import CredentialAuth
from fastapi_http_client.call import KEY, OPTIONS, TEMPLATE, Call
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.engine.errors import DeadlineExceededError
from fastapi_http_client.engine.pool import OriginKey
from fastapi_http_client.engine.request import HeaderLines, OutgoingRequest, encode
from fastapi_http_client.engine.response import received_response
from fastapi_http_client.engine.transport import origin_key
from fastapi_http_client.errors import HTTPRequestError, HTTPTimeoutError
from fastapi_http_client.failures import (
    TIMER_MARGIN,
    attempt_timeout,
    failure,
    has_hung,
    outcome_of,
    outcome_of_error,
    total_timeout,
    without_secrets,
)
from fastapi_http_client.fast import NO_BODY, PlainRequest, entries
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.pipeline import attempt_limit
from fastapi_http_client.policies.circuit_breaker import Outcome
from fastapi_http_client.policies.retry import NON_IDEMPOTENT
from fastapi_http_client.propagation import Propagation
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.server_limit import HINTS
from fastapi_http_client.sweeper import NEVER
from fastapi_http_client.telemetry import ClientSpan
from fastapi_http_client.transport import engine_for_plain, engine_of

if TYPE_CHECKING:
    from fastapi_http_client.client import AsyncHTTPClient

_TO_BE_SETTLED = HINTS | {b"content-encoding"}
"""Headers of a response that somebody has to look at."""
_HARMLESS_EXTENSIONS = frozenset({"timeout", KEY, OPTIONS, TEMPLATE})
"""Extensions of a request that are not for the network."""


class FastAttempt:
    """Makes the first attempt of a client's ordinary calls."""

    __slots__ = (
        "_adds_keys",
        "_breaker",
        "_client",
        "_credential",
        "_entries",
        "_home",
        "_key",
        "_limiter",
        "_lines",
        "_names",
        "_propagation",
        "_span",
    )

    def __init__(self, client: AsyncHTTPClient) -> None:
        self._client = client
        self._breaker = client.circuit_breaker
        self._limiter = client.rate_limiter
        self._propagation = Propagation.of(client.config)
        self._span = ClientSpan(client.name)
        self._adds_keys = client.config.idempotency_keys
        self._home: httpx.URL | None = None
        self._key: OriginKey
        # The headers of the last request without any of its own, written and checked.
        self._entries: list[Any] | None = None
        self._credential: tuple[bytes, bytes] | None = None
        self._names: set[str] = set()
        self._lines: HeaderLines | None = None

    @classmethod
    def of(cls, client: AsyncHTTPClient) -> FastAttempt | None:
        """The fast attempts of a client, or None when something is on that they know nothing of."""
        breaker, limiter = client.circuit_breaker, client.rate_limiter
        if (
            client.middlewares
            or client.keeps_cookies
            or (breaker is not None and type(breaker) is not CircuitBreaker)
            or (limiter is not None and type(limiter) is not TokenBucketRateLimiter)
        ):
            return None
        return cls(client)

    async def __call__(self, request: httpx.Request, call: Call) -> HTTPResponse | None:
        """The response of a plain success. None: the call is the pipeline's, with its first attempt made or not."""
        client = self._client
        hooks = client.event_hooks
        if hooks["request"] or hooks["response"] or client.server_limit.is_pausing:
            return None
        auth = call.auth
        if auth is not None and not (isinstance(auth, CredentialAuth) and auth.has_fixed_header):
            return None
        transport = client._transport_for_url(request.url)
        is_plain = (
            type(request) is PlainRequest
            and request.stream is NO_BODY
            and entries(request.headers) == client.plain_requests.entries
            and request.extensions.keys() <= _HARMLESS_EXTENSIONS
        )
        if is_plain:
            engine = engine_for_plain(transport)
        elif (
            not isinstance(request.stream, httpx.ByteStream)
            or (self._adds_keys and request.method in NON_IDEMPOTENT)
            or "target" in request.extensions
        ):
            return None
        else:
            engine = engine_of(transport, request)
        if engine is None:
            return None
        of_call, of_attempt = call.start_deadline(), attempt_limit(request)
        within = NEVER if of_attempt is None else of_attempt + TIMER_MARGIN
        if of_call is not None:
            if of_call <= 0:
                return None
            within = min(within, of_call)
        breaker, ticket = self._breaker, None
        if breaker is not None:
            ticket = breaker.admit_if_closed()
            if ticket is None:
                return None
        if self._limiter is not None and not self._limiter.try_acquire():
            return None  # the ticket of a closed circuit need not be given back

        observed = self._span.observe(request)
        outcome = Outcome.IGNORED
        call.resends = 1
        began = call.attempt_began = call.clock.monotonic()
        started = SYSTEM_CLOCK.monotonic()
        try:
            outgoing = self._written(request, call, auth) if is_plain else self._encoded(request, call, auth)
            key = self._home_key(client) if call.at_home and is_plain else origin_key(request)
            exchange = await engine.exchange(key, outgoing, request, max_bytes=client.max_bytes, within=within)
            response = received_response(exchange, request, HTTPResponse)
            if exchange.header_names.isdisjoint(_TO_BE_SETTLED):
                response.default_encoding = client.default_encoding
                response._client_name = call.client_name
                response._max_bytes = client.max_bytes
                response.elapsed = timedelta(seconds=SYSTEM_CLOCK.monotonic() - started)
            else:
                settling = self._settled(response, request, started, within)
                response = await client.lifecycle.until_closed(settling)
                client.server_limit.note(response)
            outcome = outcome_of(response.status_code)
        except Exception as error:
            over = self._end_of_call(error, request, call_ends_first=within == of_call)
            if over is not None:
                waited_for_pool = isinstance(error.__cause__, httpx.PoolTimeout)
                is_late = isinstance(error, DeadlineExceededError) and not waited_for_pool
                if is_late and has_hung(within, of_attempt, call, error):
                    outcome = Outcome.FAILURE
                if observed is not None:
                    # As the pipeline's limits end it.
                    observed.end(error=over if isinstance(over, HTTPTimeoutError) else asyncio.CancelledError())
                raise over from without_secrets(error)
            failed = _failed(error, request, client.max_bytes, of_attempt)
            if observed is not None:
                observed.end(error=failed)
            outcome = outcome_of_error(failed)
            call.outcome = failed
            return None
        except BaseException as error:
            if observed is not None:
                observed.end(error=error)
            raise
        finally:
            if breaker is not None and ticket is not None:
                breaker.record(ticket, outcome)

        if observed is not None:
            observed.end(response=response)
        status = response.status_code
        if not 200 <= status < 300 or status in client.retry_policy.statuses:
            call.outcome = response
            return None
        client.retry_budget.earn()
        response.only_attempt_took(call.clock.monotonic() - began)
        return response

    async def _settled(
        self, response: HTTPResponse, request: httpx.Request, started: float, within: float
    ) -> HTTPResponse:
        """The response as the pipeline's: to decode its body takes time too, which the same limits bound."""
        scope = asyncio.timeout(None if within == NEVER else within - (SYSTEM_CLOCK.monotonic() - started))
        try:
            async with scope:
                return await self._client.exchange.settle(response, request, started)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineExceededError("the response's body was not decoded in time", request=request) from error

    def _home_key(self, client: AsyncHTTPClient) -> OriginKey:
        if client.base_url is not self._home:
            self._home = client.base_url
            self._key = origin_key(httpx.Request("GET", self._home))
        return self._key

    def _written(self, request: httpx.Request, call: Call, auth: CredentialAuth | None) -> OutgoingRequest:
        """A plain request as it goes on the wire."""
        known = self._client.plain_requests.entries
        if known is not self._entries:
            self._entries, self._lines = known, None
            self._names = set(request.headers.keys())
        context = self._propagation.context_headers(call, self._names)
        credential = None if auth is None else auth.fixed_header()  # last: no frame that can still fail shows it
        if self._lines is None or credential != self._credential:
            self._lines = HeaderLines(_signed(request.headers.raw, credential))
            self._credential = credential
        return self._lines.request(request.method, request.url.raw_path, context)

    def _encoded(self, request: httpx.Request, call: Call, auth: CredentialAuth | None) -> OutgoingRequest:
        """The same for any other request."""
        context = self._propagation.context_headers(call, request.headers.keys())
        headers = _signed(request.headers.raw, None if auth is None else auth.fixed_header())
        headers = [*headers, *((name.encode("ascii"), value.encode("ascii")) for name, value in context.items())]
        return encode(request.method, request.url.raw_path, headers, request.stream)

    def _end_of_call(
        self, error: Exception, request: httpx.Request, *, call_ends_first: bool
    ) -> HTTPRequestError | None:
        """The error to raise when it is not just the attempt that is over: the client was closed, or time is up."""
        if self._client.lifecycle.closed:
            return self._client.lifecycle.closed_meanwhile(may_have_run=True)
        is_late = call_ends_first and isinstance(error, DeadlineExceededError)
        return total_timeout(request, error) if is_late else None


def _signed(headers: list[tuple[bytes, bytes]], credential: tuple[bytes, bytes] | None) -> list[tuple[bytes, bytes]]:
    if credential is None:
        return headers
    name = credential[0].lower()
    return [*(header for header in headers if header[0].lower() != name), credential]


def _failed(error: Exception, request: httpx.Request, max_bytes: int | None, limit: float | None) -> HTTPRequestError:
    """The error of ours for what the attempt came to."""
    if isinstance(error, HTTPRequestError):
        return error
    if isinstance(error, DeadlineExceededError) and limit is not None:
        late = attempt_timeout(request, limit, error)
        late.__cause__ = TimeoutError(str(error))  # what a limit of the pipeline's own is raised from
        return late
    failed = failure(error, request, max_bytes)
    failed.__cause__ = without_secrets(error)
    return failed
