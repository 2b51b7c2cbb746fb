"""What an outbound call needs to know of the inbound request that it serves: its id, its headers and its deadline.

The ASGI middleware binds one `RequestContext` for each request; a job or a test binds one with `request_context()`. The
binding is a `ContextVar`, so it follows the request into dependencies, threads, background tasks and tasks it starts.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar, Token
from types import TracebackType

from fastapi_http_client import arguments
from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.clock import SYSTEM_CLOCK

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Headers as ASGI hands them over: lower-case names, values as they came."""

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_valid_request_id(value: str) -> bool:
    """Whether a text may be a request id: it goes into logs and headers, so nothing else is ever let through."""
    return _VALID_ID.fullmatch(value) is not None


def new_request_id() -> str:
    """A new id: 128 random bits in hexadecimal, the form of a UUID without its dashes."""
    return os.urandom(16).hex()


class RequestContext:
    """One inbound request, or one job, as the outbound calls see it.

    `deadline` is on the system's monotonic clock, in seconds, or None. It is cleared when the response has been sent,
    so that background tasks run free of it.
    """

    __slots__ = ("deadline", "headers", "id_is_chosen", "request_id", "trace")

    def __init__(
        self,
        request_id: str,
        *,
        headers: RawHeaders = (),
        deadline: float | None = None,
        id_is_chosen: bool = False,
    ) -> None:
        self.request_id = request_id
        self.headers = headers
        self.deadline = deadline
        self.id_is_chosen = id_is_chosen  # given by hand: then asgi-correlation-id's does not replace it
        self.trace: object | None = None  # what `propagation` made of the headers, so that it is made once a request

    def remaining(self) -> float | None:
        """Seconds left before the deadline (0.0 when it is over), or None when there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - SYSTEM_CLOCK.monotonic())

    def shorten(self, deadline: float | None) -> None:
        """Move the deadline forward, never back."""
        if deadline is not None and (self.deadline is None or deadline < self.deadline):
            self.deadline = deadline

    def effective_id(self) -> str:
        """The request's id; when asgi-correlation-id is in use, the one that it chose."""
        if self.id_is_chosen:
            return self.request_id
        return _correlation_id() or self.request_id


_current: ContextVar[RequestContext | None] = ContextVar("fastapi_http_client_context", default=None)


def current_context() -> RequestContext | None:
    """The context bound here, or None outside of any request and job."""
    return _current.get()


def get_request_id() -> str | None:
    """The id of the request or job that is being served, or None outside of any."""
    context = _current.get()
    return _correlation_id() if context is None else context.effective_id()


def bind(context: RequestContext) -> Token[RequestContext | None]:
    return _current.set(context)


def unbind(token: Token[RequestContext | None]) -> None:
    _current.reset(token)


def _correlation_id() -> str | None:
    """The id that asgi-correlation-id bound. It is only looked for when the application has imported that package."""
    module = sys.modules.get("asgi_correlation_id.context")
    if module is None:
        return None
    value = module.correlation_id.get()
    return value if isinstance(value, str) and is_valid_request_id(value) else None


class request_context:  # noqa: N801  # used like a function: `with request_context(timeout=5):`
    """Bind a context by hand: in a job, a command, a test.

    Inside a request it refines the context that is bound: what is not given stays as it is, and `timeout` can only move
    the deadline forward. Outside of one, an id is made when none is given. Works with `with` and `async with`, and
    gives the `RequestContext`.

    `timeout` is in seconds and counts from entering. Raises `ConfigurationError` for a `request_id` that is not
    `[A-Za-z0-9._-]{1,128}` and for a `timeout` that is not a positive number.
    """

    __slots__ = ("_request_id", "_timeout", "_tokens")

    def __init__(self, *, request_id: str | None = None, timeout: float | None = None) -> None:
        if request_id is not None and not (isinstance(request_id, str) and is_valid_request_id(request_id)):
            raise bad_argument("request_context", "request_id", "must be 1 to 128 of the characters A-Z a-z 0-9 . _ -")
        if timeout is not None:
            arguments.check("request_context", arguments.seconds("timeout", timeout))
        self._request_id = request_id
        self._timeout = timeout
        self._tokens: list[Token[RequestContext | None]] = []

    def __enter__(self) -> RequestContext:
        outer = _current.get()
        context = RequestContext(
            self._request_id or (outer.request_id if outer else new_request_id()),
            headers=outer.headers if outer else (),
            deadline=outer.deadline if outer else None,
            id_is_chosen=self._request_id is not None or (outer is not None and outer.id_is_chosen),
        )
        if self._timeout is not None:
            context.shorten(SYSTEM_CLOCK.monotonic() + self._timeout)
        self._tokens.append(_current.set(context))
        return context

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())

    async def __aenter__(self) -> RequestContext:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


class RequestIdFilter(logging.Filter):
    """Gives every log record a `request_id` for the format string: `"-"` outside of any request.

    Add it to a handler, `handler.addFilter(RequestIdFilter())`, so that it sees the records of all loggers. A record
    that has a `request_id` already keeps it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = get_request_id() or "-"
        return True
