"""The inbound side: binds a `RequestContext` for each request, and cancels the handler of a caller who went away."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, NamedTuple, TypeVar

from anyio.to_thread import current_default_thread_limiter

from fastapi_http_client import arguments
from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.config import HEADER_NAME
from fastapi_http_client.context import (
    RequestContext,
    bind,
    is_valid_request_id,
    new_request_id,
    unbind,
)
from fastapi_http_client.sweeper import NEVER, Sweeper

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_SCOPE_KEY: Final = "fastapi_http_client.request"
_REQUEST_ID: Final = b"x-request-id"
_MILLISECONDS = re.compile(rb"[0-9]{1,10}")
_CANCELLED_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_WATCH_AFTER: Final = 0.1
"""Seconds before a caller is watched: most requests are over by then, also of a busy service, and never pay for it."""

_THREAD_POLL: Final = 0.05
"""Seconds between two looks whether the thread of an abandoned request has ended."""

_MARK: Final = "__fastapi_http_client_cancel_on_disconnect__"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def cancel_on_disconnect(enabled: bool = True) -> Callable[[Endpoint], Endpoint]:
    """Say for one route, whatever its method, whether it is cancelled when its caller goes away before the response.

    The decorator stands below the route's: `@app.get("/report")`, then `@cancel_on_disconnect(False)`.
    """

    if not isinstance(enabled, bool):
        raise bad_argument("cancel_on_disconnect", "enabled", "must be True or False: write @cancel_on_disconnect()")

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _MARK, enabled)
        return endpoint

    return mark


class RequestContextMiddleware:
    """Pure ASGI middleware for HTTP and WebSocket: gives each request its id and deadline, and ends abandoned ones.

    - The id is the inbound `X-Request-ID` when that is `[A-Za-z0-9._-]{1,128}`, else a new one. Every response has it.
    - `request_timeout` (seconds) is the deadline of each HTTP request, for the calls that it makes. With
      `trust_deadline_header` the caller's `deadline_header` (milliseconds left) can move it forward. Background tasks
      are free of it. A WebSocket has none.
    - With `cancel_on_disconnect` the handler of a safe method (RFC 9110, section 9.2.1) is cancelled when the caller
      goes away before the response has started.

    Where another one has bound the request already, as around a mounted app, this one only refines its settings.
    Raises `ConfigurationError` for bad arguments.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        request_timeout: float | None = None,
        deadline_header: str = "X-Request-Timeout-Ms",
        trust_deadline_header: bool = False,
        cancel_on_disconnect: bool = True,
    ) -> None:
        if request_timeout is not None:
            arguments.check("", arguments.seconds("request_timeout", request_timeout))
        if not isinstance(deadline_header, str) or not re.fullmatch(HEADER_NAME, deadline_header):
            raise bad_argument("", "deadline_header", "must be a header name")
        self.app = app
        self._settings = _Settings(
            request_timeout,
            deadline_header.lower().encode("ascii") if trust_deadline_header else None,
            cancel_on_disconnect,
        )
        self._watches: _Watches | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        settings = self._settings
        headers = scope["headers"]
        known: _Request | None = scope.get(_SCOPE_KEY)
        if known is not None:
            if known.settings != settings:
                known.settings = settings
                if kind == "http":
                    known.context.shorten(settings.deadline(headers))
            await self.app(scope, receive, send)
            return
        context = RequestContext(_request_id(headers), headers=headers)
        request = _Request(scope, receive, send, context, settings)
        scope[_SCOPE_KEY] = request
        token = bind(context)
        try:
            if kind == "http":
                context.deadline = settings.deadline(headers)
                await request.run(self.app, self._watches_of_loop())
            else:
                await self.app(scope, receive, request.send)
        finally:
            unbind(token)
            context.deadline = None  # tasks that outlive the request are free of it
            scope.pop(_SCOPE_KEY, None)  # it holds the scope as well: without cycles nothing waits for the collector

    def _watches_of_loop(self) -> _Watches:
        """An application has one loop, but a test may give it another."""
        loop = asyncio.get_running_loop()
        if self._watches is None or self._watches.loop is not loop:
            self._watches = _Watches(loop)
        return self._watches


class _Settings(NamedTuple):
    """What a middleware was told."""

    timeout: float | None
    deadline_header: bytes | None
    """None when no caller is trusted with it."""
    cancels: bool

    def deadline(self, headers: Iterable[tuple[bytes, bytes]]) -> float | None:
        left = self.timeout
        if self.deadline_header is not None:
            for name, value in headers:
                if name == self.deadline_header and _MILLISECONDS.fullmatch(value):
                    asked = int(value) / 1000
                    left = asked if left is None else min(left, asked)
        return None if left is None else SYSTEM_CLOCK.monotonic() + left


def has_answered(scope: Scope) -> bool:
    """Whether the response to a request has been started, and no other one can be sent."""
    request: _Request | None = scope.get(_SCOPE_KEY)
    return request is None or request.over


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == _REQUEST_ID:
            text = value.decode("latin-1")
            return text if is_valid_request_id(text) else new_request_id()
    return new_request_id()


class _Watches:
    """The requests whose caller nobody watches yet, oldest first: one timer for all of an event loop's."""

    __slots__ = ("_sweeper", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: OrderedDict[_Request, float] = OrderedDict()
        self._sweeper = Sweeper(loop, self._begin)

    def add(self, request: _Request) -> None:
        due = self.loop.time() + _WATCH_AFTER
        self._waiting[request] = due
        self._sweeper.arm(due)

    def discard(self, request: _Request) -> None:
        self._waiting.pop(request, None)

    def _begin(self, now: float) -> float:
        """Begin all that are due, and say when the next one will be."""
        late = []
        for request, due in self._waiting.items():
            if due > now:
                break
            late.append(request)
        for request in late:
            del self._waiting[request]
            if not request.begin_watch():
                self.add(request)
        return next(iter(self._waiting.values()), NEVER)


class _Request:
    """One request between the server and the application.

    To notice that the caller has gone, somebody has to read what the server reports, and only one may. Until the watch
    begins, that is the application. From then on it is the watch: it hands on what it reads, one message ahead at most.
    """

    __slots__ = (
        "_ahead",
        "_cancelled",
        "_readers",
        "_receive",
        "_send",
        "_task",
        "_watch",
        "context",
        "over",
        "scope",
        "settings",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext, settings: _Settings
    ) -> None:
        self.scope = scope
        self.context = context
        self.settings = settings
        self.over = False  # the response has started, or the application is done: too late to cancel
        self._receive = receive
        self._send = send
        self._readers = 0
        self._ahead: asyncio.Queue[Message | Exception] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any]
        self._cancelled = False

    async def run(self, app: ASGIApp, watches: _Watches) -> None:
        task = asyncio.current_task(watches.loop)
        assert task is not None
        self._task = task
        cancelling = task.cancelling()
        watches.add(self)
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            # Ours alone ends here; anyone else's goes on, also when both came.
            if not self._cancelled or task.cancelling() > cancelling + 1:
                raise
        finally:
            self.over = True
            watches.discard(self)
            if self._watch is not None:
                self._watch.cancel()
            if self._cancelled:
                task.uncancel()

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            self.over = True
            message = self._with_request_id(message)
        elif kind in ("http.response.body", "http.response.pathsend") and not message.get("more_body", False):
            self.context.deadline = None  # what still runs from here on are background tasks
        await self._send(message)

    def _with_request_id(self, message: Message) -> Message:
        """A message of its own: a response object, and its list of headers, may be sent more than once."""
        headers = list(message.get("headers", ()))
        for name, _ in headers:
            if name.lower() == _REQUEST_ID:
                break
        else:
            headers.append((_REQUEST_ID, self.context.effective_id().encode("ascii")))
        return {**message, "headers": headers}

    # -- disconnection -------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if self._ahead is not None:
            return await self._next(self._ahead)
        self._readers += 1
        try:
            message = await self._receive()
        finally:
            self._readers -= 1
        if message["type"] == "http.disconnect" and self._watch is None:
            self._watch = self._task.get_loop().create_task(self._abandon())
        return message

    @staticmethod
    async def _next(ahead: asyncio.Queue[Message | Exception]) -> Message:
        message = await ahead.get()
        ahead.task_done()
        if isinstance(message, Exception):
            ahead.put_nowait(message)
            raise message
        if message["type"] == "http.disconnect":
            ahead.put_nowait(message)  # it stays true for everyone who asks
        return message

    def begin_watch(self) -> bool:
        """Watch the caller where that is wanted. False: it cannot be said or done yet."""
        if self.over or ("endpoint" in self.scope and not self._is_wanted()):
            return True
        if self._readers > 0 or not self._is_wanted():
            # The application reads by itself just now, or the route is not known yet and may be marked.
            return False
        self._ahead = asyncio.Queue()
        self._watch = self._task.get_loop().create_task(self._read_ahead(self._ahead))
        return True

    async def _read_ahead(self, ahead: asyncio.Queue[Message | Exception]) -> None:
        while True:
            try:
                message = await self._receive()
            except Exception as error:  # of the server, or of a middleware around this one: the application's to see
                ahead.put_nowait(error)
                return
            ahead.put_nowait(message)
            if message["type"] == "http.disconnect":
                await self._abandon()
                return
            if message.get("more_body", False):
                await ahead.join()

    async def _abandon(self) -> None:
        """Cancel the handler, but not while a thread runs for it: a sync route, or a sync dependency.

        A thread goes on, and would find its database session closed; anyio would count it as ended, too.
        """
        while not self.over and self._is_wanted():
            if self._task not in current_default_thread_limiter().statistics().borrowers:
                self.over = True
                self._cancelled = True
                self._task.cancel()
            else:
                await SYSTEM_CLOCK.sleep(_THREAD_POLL)

    def _is_wanted(self) -> bool:
        marked: bool | None = getattr(self.scope.get("endpoint"), _MARK, None)
        return (self.settings.cancels and self.scope["method"] in _CANCELLED_METHODS) if marked is None else marked
