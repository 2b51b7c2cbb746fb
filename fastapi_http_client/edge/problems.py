"""What our caller is told when an upstream fails: a problem of our own API (RFC 9457), never the upstream's answer.

| error                                                           | status | `urn:fastapi-http-client:problem:…`     |
| --------------------------------------------------------------- | ------ | --------------------------------------- |
| `CircuitBreakerOpenError`                                       | 503    | circuit-open, with `Retry-After`        |
| `RateLimitError`, theirs or ours, also when retries ended on it | 503    | rate-limited, with `Retry-After` if known |
| `HTTPTimeoutError`, also when retries ended on it               | 504    | upstream-timeout                        |
| `HTTPRequestError`                                              | 502    | upstream-unreachable                    |
| `AuthenticationError`                                           | 502    | upstream-authentication                 |
| `HTTPResponseError` and everything else                         | 502    | upstream-error                          |

A `ConfigurationError` is a mistake of this service and no problem of an upstream: it is raised on.

The type URIs are names, not addresses, and do not change. What the upstream said, and who it is, stays in the log.
"""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any, NamedTuple, cast

import httpx
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketState

from fastapi_http_client.context import get_request_id
from fastapi_http_client.edge.asgi import ASGIApp, Receive, Scope, Send, has_answered
from fastapi_http_client.errors import (
    AuthenticationError,
    CircuitBreakerOpenError,
    ConfigurationError,
    HTTPClientError,
    HTTPRequestError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.redaction import printable

MEDIA_TYPE = "application/problem+json"
LONGEST_RETRY_AFTER = 3600
"""Seconds that our own callers are asked to wait at most, whatever an upstream has asked of us."""

_logger = logging.getLogger("fastapi_http_client.problems")


class Kind(NamedTuple):
    """One kind of problem, with the code that a WebSocket is closed with (IANA, WebSocket Close Code Numbers)."""

    status: int
    name: str
    title: str
    detail: str
    close_code: int

    @property
    def type(self) -> str:
        return f"urn:fastapi-http-client:problem:{self.name}"


CIRCUIT_OPEN = Kind(
    503,
    "circuit-open",
    "Upstream service unavailable",
    "A service that this one depends on keeps failing and is not called for a while.",
    1013,
)
RATE_LIMITED = Kind(
    503,
    "rate-limited",
    "Upstream service at its limit",
    "A service that this one depends on does not take more requests at the moment.",
    1013,
)
TIMEOUT = Kind(
    504,
    "upstream-timeout",
    "Upstream service too slow",
    "A service that this one depends on did not answer in time.",
    1014,
)
UNREACHABLE = Kind(
    502,
    "upstream-unreachable",
    "Upstream service unreachable",
    "A service that this one depends on gave no usable answer.",
    1014,
)
AUTHENTICATION = Kind(
    502,
    "upstream-authentication",
    "Upstream authentication failed",
    "This service could not authenticate itself to a service that it depends on.",
    1014,
)
UPSTREAM_ERROR = Kind(
    502,
    "upstream-error",
    "Upstream service failed",
    "A service that this one depends on answered with an error.",
    1014,
)
_KINDS = (CIRCUIT_OPEN, RATE_LIMITED, TIMEOUT, UNREACHABLE, AUTHENTICATION, UPSTREAM_ERROR)


def kind_of(error: HTTPClientError) -> Kind:
    """The problem that an error is. An exhausted retry is that of its last cause."""
    if isinstance(error, CircuitBreakerOpenError):
        return CIRCUIT_OPEN
    if isinstance(error, RateLimitError):
        return RATE_LIMITED
    if isinstance(error, httpx.TimeoutException):
        return TIMEOUT
    if isinstance(error, AuthenticationError):
        return AUTHENTICATION
    if isinstance(error, HTTPRequestError):
        return UNREACHABLE
    if isinstance(error, RetryExhaustedError) and isinstance(error.last_error, HTTPClientError):
        return kind_of(error.last_error)
    return UPSTREAM_ERROR


def retry_after_of(error: HTTPClientError) -> float | None:
    """Seconds until it makes sense to try again, or None when nobody knows."""
    if isinstance(error, CircuitBreakerOpenError):
        return error.recovery_timeout
    if isinstance(error, RateLimitError):
        return error.retry_after
    return None


class ProblemResponses:
    """The exception handler for `HTTPClientError`, and for groups of nothing else, as an `asyncio.TaskGroup` raises.

    It leaves what the user has a handler for to that handler.
    """

    def __init__(self, *, expose_client_names: bool = False) -> None:
        self._expose_client_names = expose_client_names

    async def __call__(self, connection: Request | WebSocket, error: Exception) -> Response | None:
        failed = _failed_call(error)
        handler = None if failed is None else _handler_of_the_user(connection, failed)
        if handler is not None:
            return await _called(handler, connection, cast("Exception", failed))
        if failed is None or isinstance(failed, ConfigurationError):
            raise error  # a mistake of this service, like any other exception: a 500, a traceback, and seen by tests
        kind = kind_of(failed)
        _log(kind, failed)
        response = self._response(kind, failed)
        if isinstance(connection, WebSocket):
            await _end_websocket(connection, kind, response)
            return None
        return response

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, whose own middlewares are answered for too: exception handlers stand inside of those."""

        async def answered(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except (HTTPClientError, ExceptionGroup) as error:
                if has_answered(scope):
                    raise
                is_http = scope["type"] == "http"
                connection: Any = Request(scope, receive, send) if is_http else WebSocket(scope, receive, send)
                response = await _called(_nearest_handler(connection, error), connection, error)
                if response is not None:
                    await response(scope, receive, send)

        return answered

    def _response(self, kind: Kind, error: HTTPClientError) -> Response:
        content: dict[str, Any] = {
            "type": kind.type,
            "title": kind.title,
            "status": kind.status,
            "detail": kind.detail,
        }
        request_id = get_request_id()
        if request_id is not None:
            content["request_id"] = request_id
        if self._expose_client_names and error.client is not None:
            content["client"] = error.client
        headers = {"Cache-Control": "no-store"}
        seconds = retry_after_of(error)
        if seconds is not None and math.isfinite(seconds):
            headers["Retry-After"] = str(min(max(1, math.ceil(seconds)), LONGEST_RETRY_AFTER))
        return JSONResponse(content, status_code=kind.status, headers=headers, media_type=MEDIA_TYPE)


def http_client_responses() -> dict[int | str, dict[str, Any]]:
    """The problem responses for a route's OpenAPI: `@app.get("/users", responses=http_client_responses())`."""
    statuses = sorted({kind.status for kind in _KINDS})
    return {status: _documented(status, [kind for kind in _KINDS if kind.status == status]) for status in statuses}


def _documented(status: int, kinds: list[Kind]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "title": "Problem",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": [kind.type for kind in kinds]},
            "title": {"type": "string"},
            "status": {"type": "integer", "const": status},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
            "client": {"type": "string"},
        },
    }
    documented: dict[str, Any] = {
        "description": " / ".join(kind.title for kind in kinds),
        "content": {MEDIA_TYPE: {"schema": schema}},
    }
    if status == 503:
        documented["headers"] = {
            "Retry-After": {"description": "Seconds until it makes sense to try again.", "schema": {"type": "integer"}}
        }
    return documented


def _log(kind: Kind, error: HTTPClientError) -> None:
    message = printable(str(error), 1000)
    line = "answering %d (%s): %s: %s", kind.status, kind.name, type(error).__name__, message
    if isinstance(error, HTTPRequestError) and not error.may_have_run and not error.transient:
        _logger.error(*line, exc_info=error)  # it was refused before it was sent: where in this service is the question
    else:
        _logger.warning(*line)


def _failed_call(error: Exception) -> HTTPClientError | None:
    """The failed call, or the first of a group in which there is nothing else."""
    if isinstance(error, ExceptionGroup) and error.split(HTTPClientError)[1] is None:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
    return error if isinstance(error, HTTPClientError) else None


def _nearest_handler(connection: HTTPConnection, error: Exception) -> Any:
    """The handler that Starlette would choose. There is one: ours, if it is not the user's."""
    handlers = connection.app.exception_handlers
    return next(handlers[cls] for cls in type(error).__mro__ if cls in handlers)


def _handler_of_the_user(connection: HTTPConnection, error: HTTPClientError) -> Any:
    """The user's handler for a class of ours, or for an httpx class that the error also is, which ours would hide."""
    handlers = connection.app.exception_handlers
    for cls in type(error).__mro__:
        if issubclass(cls, httpx.HTTPError | HTTPClientError) and not isinstance(
            handlers.get(cls), ProblemResponses | None
        ):
            return handlers[cls]
    return None


async def _called(handler: Any, connection: HTTPConnection, error: Exception) -> Response | None:
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
        return cast("Response | None", await handler(connection, error))
    return cast("Response | None", await run_in_threadpool(handler, connection, error))


async def _end_websocket(websocket: WebSocket, kind: Kind, response: Response) -> None:
    if websocket.application_state is WebSocketState.CONNECTING and (
        "websocket.http.response" in websocket.scope.get("extensions", {})
    ):
        await websocket.send_denial_response(response)
    elif WebSocketState.DISCONNECTED not in (websocket.application_state, websocket.client_state):
        await websocket.close(kind.close_code, kind.title)
