"""The retry step: it repeats what may be repeated, and keeps the ledger of all attempts.

What may be repeated, and when, is decided in `policies.retry`; this is the loop that acts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from typing import TYPE_CHECKING, Any, NoReturn

import httpx
from httpx._multipart import MultipartStream

from fastapi_http_client.call import Call, Handler
from fastapi_http_client.errors import (
    Attempt,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.failures import described
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse, copy_request, retry_after
from fastapi_http_client.policies.retry import NON_IDEMPOTENT, Exposure, RetryBudget, RetryPolicy
from fastapi_http_client.telemetry import report_retry

if TYPE_CHECKING:
    from fastapi_http_client.client import AsyncHTTPClient

logger = logging.getLogger("fastapi_http_client.retry")

IDEMPOTENCY_KEY = "Idempotency-Key"


class RetryMiddleware(Middleware):
    """The retry step, with the options of the client's `ClientConfig`.

    Every client has one already, inside all other middlewares. Put one into `middlewares` to choose its place: what
    stands behind it in the list then runs once for each attempt. A client has never two. `policy` replaces the options
    of the client, `budget` its budget.
    """

    def __init__(self, policy: RetryPolicy | None = None, budget: RetryBudget | None = None) -> None:
        self._policy = policy
        self._budget = budget

    async def handle(self, request: httpx.Request, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        policy = self._policy or client.retry_policy
        budget = client.retry_budget if self._budget is None else self._budget
        most = policy.attempts if call.retry else 1
        if client.config.idempotency_keys and request.method in NON_IDEMPOTENT:
            request = _with_key(request, call)
        number = 0
        while True:
            if call.outcome is None or call.attempt_began is None:
                call.attempt_began = call.clock.monotonic()
                call.resends_before = call.resends
            started = call.attempt_began
            response: HTTPResponse | None = None
            error: HTTPRequestError | None = None
            try:
                response = await call_next(request)
            except HTTPRequestError as exc:
                error = exc
            except HTTPClientError as refusal:
                # The circuit is open, the limiter refuses, there is no token: waiting here would not change it.
                refusal.attempts = tuple(call.attempts)
                raise
            elapsed = call.clock.monotonic() - started
            status = None if response is None else response.status_code
            call.attempts.append(Attempt(len(call.attempts) + 1, status, error, elapsed))
            call.attempt_began = None
            exposure = _exposure(error) if response is None else policy.exposure_of(response.status_code)
            if status is not None and status < 500 and status != 429 and exposure is Exposure.FINAL:
                budget.earn()

            may_repeat = (
                most > 1
                and exposure is not Exposure.FINAL
                and policy.allows(
                    request.method,
                    exposure,
                    has_key=IDEMPOTENCY_KEY in request.headers,
                    replayable=is_replayable(request),
                )
            )
            if not may_repeat or client.lifecycle.draining:
                return await _outcome(call, response, error)
            if number + 1 >= most:
                await _raise_exhausted(request, call, response, error)
            delay = policy.delay(number, client.chance())
            asked = None if response is None else retry_after(response)
            if asked is not None and (asked > policy.max_delay or not call.fits(asked)):
                if response is not None and response.status_code == 429:
                    await _raise_too_long(request, call, response, asked)
                return await _outcome(call, response, error)
            delay = max(delay, asked or 0.0)
            if not call.fits(delay) or not budget.spend():
                return await _outcome(call, response, error)
            if response is not None:
                await response.aclose()
            call.attempts[-1] = call.attempts[-1]._replace(delay=delay)
            what = f"attempt {len(call.attempts)} failed with {_cause(status, error)}, trying again in {delay:.2f} s"
            logger.info("%s", described(request, what, attempt=False))
            report_retry(request, call.client_name, delay)
            await call.clock.sleep(delay)
            if client.lifecycle.draining:  # it has begun meanwhile
                await _raise_exhausted(request, call, response, error)
            number += 1


def _with_key(request: httpx.Request, call: Call) -> httpx.Request:
    """The request with an idempotency key: the caller's own, or one made once for the call."""
    if IDEMPOTENCY_KEY in request.headers:
        return request
    if call.idempotency_key is None:
        call.idempotency_key = str(uuid.uuid4())
    request = copy_request(request)
    request.headers[IDEMPOTENCY_KEY] = call.idempotency_key
    return request


def _exposure(error: HTTPRequestError | None) -> Exposure:
    if error is None or not error.transient:
        return Exposure.FINAL
    return Exposure.MAY_HAVE_RUN if error.may_have_run else Exposure.NEVER_SENT


def is_replayable(request: httpx.Request) -> bool:
    """Whether the body can be sent again: text, bytes, JSON and forms can, an iterator cannot."""
    stream = request.stream
    if isinstance(stream, MultipartStream):
        return all(_is_rereadable(getattr(field, "file", b"")) for field in stream.fields)
    return isinstance(stream, httpx.ByteStream)


def _is_rereadable(file: Any) -> bool:
    if isinstance(file, str | bytes):
        return True
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(seekable())


def _cause(status: int | None, error: HTTPRequestError | None) -> str:
    return f"status {status}" if error is None else type(error.__cause__ or error).__name__


async def _outcome(call: Call, response: HTTPResponse | None, error: HTTPRequestError | None) -> HTTPResponse:
    """The attempt's own outcome, unchanged: its response is returned, its error is raised."""
    if response is None:
        assert error is not None
        error.attempts = tuple(call.attempts)
        raise error
    response.attempts = tuple(call.attempts)
    if response._verdict is not None:
        await _give_up(call, response)
    return response


async def _give_up(call: Call, response: HTTPResponse) -> None:
    """Close the last response of a call that fails, and raise what an event hook has raised for its status, if any."""
    await _read_short_body(response)
    await response.aclose()
    response.attempts = tuple(call.attempts)
    verdict, response._verdict = response._verdict, None
    if isinstance(verdict, HTTPClientError):
        verdict.attempts = response.attempts
    if verdict is not None:
        raise verdict


SHORT_BODY = 64 * 1024  # bytes
SHORT_TIME = 1.0  # seconds


async def _read_short_body(response: HTTPResponse) -> None:
    """Read what a streamed call's last response says, for whoever catches the error; not if it is long or slow."""
    length = response.headers.get("content-length", "")
    if response.is_closed or not re.fullmatch(r"[0-9]{1,6}", length) or int(length) > SHORT_BODY:
        return
    with contextlib.suppress(HTTPClientError, TimeoutError):
        async with asyncio.timeout(SHORT_TIME):
            await response.aread()


async def _raise_too_long(request: httpx.Request, call: Call, response: HTTPResponse, asked: float) -> NoReturn:
    await _give_up(call, response)
    raise RateLimitError(
        described(request, f"429, and the upstream asks to wait {asked:g} s, which is too long", attempt=False),
        retry_after=asked,
        request=request,
        response=response,
        attempts=call.attempts,
        client=call.client_name,
    )


async def _raise_exhausted(
    request: httpx.Request, call: Call, response: HTTPResponse | None, error: HTTPRequestError | None
) -> NoReturn:
    cause: HTTPClientError | None = error
    if response is not None:
        await _give_up(call, response)
        try:
            response.raise_for_status()
        except HTTPResponseError as exc:
            cause = exc
    spent = call.clock.monotonic() - call.started
    last = call.attempts[-1]
    raise RetryExhaustedError.from_last(
        described(
            request,
            f"all {len(call.attempts)} attempts failed in {spent:.2f} s, the last with {_cause(last.status, error)}"
            f"{'' if error is None else f' ({error._what})'}",
            attempt=False,
        ),
        last_response=response,
        last_error=cause,
        retry_after=None if response is None else retry_after(response),
        request=request,
        attempts=call.attempts,
        client=call.client_name,
    ) from cause
