"""Middleware: what users put around their calls. It runs once per call, outside of redirects and retries."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, TypeVar

import httpx

from fastapi_http_client.arguments import awaitable, bad_argument
from fastapi_http_client.auth import CredentialAuth
from fastapi_http_client.call import Call, Handler
from fastapi_http_client.errors import HTTPClientError
from fastapi_http_client.models import HTTPRequest, HTTPResponse, as_http_response
from fastapi_http_client.redaction import printable, redact_headers, redact_text, redact_url

if TYPE_CHECKING:
    from fastapi_http_client.client import AsyncHTTPClient

logger = logging.getLogger("fastapi_http_client.middleware")

T = TypeVar("T")


class Middleware:
    """The base of middlewares: override the hooks you need, or `handle` for the whole.

    The first middleware of the list is the outermost: its `process_request` runs first, its `process_response` last.
    """

    async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
        """The request to send: this one, changed or not, or another."""
        return request

    async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
        """The response to return."""
        return response

    async def process_error(self, error: HTTPClientError, request: HTTPRequest) -> HTTPResponse | None:
        """A response to answer with instead, or None to let the error go on."""
        return None

    async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
        """The whole way of a request through this middleware: override it in the place of the three hooks.

        `call_next` goes on with a request, and may be called several times, also at once. Of a streamed call, the
        responses that are not returned are closed. A cancellation, also by the limit of the whole call, passes through
        as an `asyncio.CancelledError`.
        """
        asked = self._awaitable(self.process_request(request, client), "process_request")
        request = self._checked(await asked, "process_request", httpx.Request)
        try:
            response = await call_next(request)
        except HTTPClientError as error:
            answer = await self._awaitable(self.process_error(error, request), "process_error")
            if answer is None:
                raise
            answer = as_http_response(self._checked(answer, "process_error", httpx.Response))
            answer.attempts = answer.attempts or error.attempts
            return answer
        try:
            processed = await self._awaitable(self.process_response(response, request), "process_response")
            return as_http_response(self._checked(processed, "process_response", httpx.Response))
        except BaseException:
            await response.aclose()
            raise

    def _awaitable(self, returned: Awaitable[T], hook: str) -> Awaitable[T]:
        return awaitable(returned, f"{type(self).__name__}.{hook}")

    def _checked(self, value: object, hook: str, expected: type[T]) -> T:
        if not isinstance(value, expected):
            raise TypeError(
                f"{type(self).__name__}.{hook} returned {type(value).__name__}, not an httpx.{expected.__name__}"
            )
        return value


MAX_BODY = 2048  # bytes of a body that are logged
_TEXT = r"text/|application/(?:[\w.+-]+\+)?(?:json|xml|x-www-form-urlencoded)"


class LoggingMiddleware(Middleware):
    """Logs every call: one line when it ends (INFO, or WARNING for a failure), and its headers at DEBUG.

    The values of secret headers and query keys are masked; `sensitive_headers` adds to the built-in names. Bodies are
    cut at 2 KiB, only text is shown, and fields named like secrets are masked, but a body can hold anything: keep both
    off in production.
    """

    def __init__(
        self,
        log_request_body: bool = False,
        log_response_body: bool = False,
        sensitive_headers: Collection[str] = frozenset(),
    ) -> None:
        self.log_request_body = log_request_body
        self.log_response_body = log_response_body
        # A text's letters would be taken for the names.
        if isinstance(sensitive_headers, str) or not all(isinstance(name, str) for name in sensitive_headers):
            raise bad_argument("LoggingMiddleware", "sensitive_headers", "must be a collection of header names")
        self.sensitive_headers = frozenset(name.lower() for name in sensitive_headers)

    async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        started = call.clock.monotonic()
        line = f"{request.method} {redact_url(request.url, call.secret_params)}"
        if client.name:
            line = f"{client.name}: {line}"
        hidden = self.sensitive_headers | client.credential_headers
        if isinstance(call.auth, CredentialAuth):
            hidden |= call.auth.credential_headers
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s headers=%s", line, redact_headers(request.headers, hidden, call.secret_params))
        if self.log_request_body:
            logger.info("%s request body: %s", line, _shown(request.headers, _content(request)))
        try:
            response = await call_next(request)
        except BaseException as error:
            took = call.clock.monotonic() - started
            if not isinstance(error, asyncio.CancelledError):
                what = f": {printable(str(error))}" if isinstance(error, HTTPClientError) else ""  # others may show all
                logger.warning("%s -> %s in %.3f s%s", line, type(error).__name__, took, what)
            elif call.remaining() == 0.0:  # the limit of the whole call stands outside of this
                logger.warning("%s -> HTTPTimeoutError in %.3f s: the time of the call is over", line, took)
            else:
                logger.info("%s -> cancelled after %.3f s", line, took)
            raise
        took = call.clock.monotonic() - started
        attempts = len(response.attempts) or call.attempts_begun
        logger.info("%s -> %d in %.3f s, attempts: %d", line, response.status_code, took, attempts)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s -> headers=%s", line, redact_headers(response.headers, hidden, call.secret_params))
        if self.log_response_body:
            logger.info("%s -> body: %s", line, _shown(response.headers, _content(response)))
        return response


def _content(message: httpx.Request | httpx.Response) -> bytes | None:
    try:
        return message.content
    except (httpx.RequestNotRead, httpx.ResponseNotRead):
        return None


def _shown(headers: httpx.Headers, content: bytes | None) -> str:
    """A body as it may be logged."""
    if content is None:
        return "<streamed>"
    if not content:
        return "<empty>"
    content_type = headers.get("content-type", "").lower()
    if not re.match(_TEXT, content_type):
        return f"<{len(content)} bytes>"
    text = redact_text(_decoded(content[:MAX_BODY], content_type), content_type)
    return printable(text, MAX_BODY) + ("…" if len(content) > MAX_BODY else "")


def _decoded(content: bytes, content_type: str) -> str:
    charset = re.search(r"charset=\"?([\w.-]+)", content_type)
    encoding = charset[1] if charset else json.detect_encoding(content) if "json" in content_type else "utf-8"
    try:
        return content.decode(encoding, "replace")
    except (LookupError, UnicodeError):  # no such charset, or one that knows no replacement
        return content.decode("utf-8", "replace")
