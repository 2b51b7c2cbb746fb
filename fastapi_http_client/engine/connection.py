"""One connection to a server, and one exchange (a request and its response) on it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
from typing import TYPE_CHECKING, Any, Literal, cast

import httpx

from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.engine.errors import (
    DeadlineExceededError,
    ExchangeFacts,
    ResponseTooLargeError,
    describe,
    with_facts,
)
from fastapi_http_client.engine.parser import ResponseParser
from fastapi_http_client.engine.sockets import HIGH_WATER, extra_info, readability
from fastapi_http_client.sweeper import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi_http_client.engine.pool import ConnectionPool, Origin
    from fastapi_http_client.engine.request import OutgoingRequest

PARSED_AT_ONCE = 64 * 1024
"""Bytes read at once that the parser makes parts of. Larger parts come from `mmap`, not from the heap, on glibc."""


class NetworkStream:
    """The `network_stream` extension of a response: what httpx users ask about the connection behind it."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def get_extra_info(self, info: str) -> Any:
        """`ssl_object`, `client_addr`, `server_addr` or `socket`; None for anything else."""
        return extra_info(self._transport, info)


class Exchange:
    """One request and its response. One task owns it: only that task waits on it.

    The connection fills it in; `complete` or `error` ends it, and the connection has been released or closed by then.
    The owner wakes for every step when the body is streamed, else only at the end.
    """

    # What most exchanges begin and end with, so that only what differs is set.
    deadline = NEVER
    sending = True
    request_sent = response_started = head_complete = complete = False
    error: Exception | None = None
    status = 0
    reason = b""
    http_version = ""
    headers: list[tuple[bytes, bytes, bytes]]
    chunks: list[bytes]
    body_bytes = 0
    buffered = 0
    _waiter: asyncio.Future[None] | None = None
    _phase: Literal["read", "write"] = "read"
    _paused = False
    gathered: io.BytesIO | None = None
    _header_names: set[bytes] | None = None

    def __init__(
        self,
        connection: Connection,
        *,
        read_timeout: float | None,
        write_timeout: float | None,
        streamed: bool,
        max_bytes: int | None,
        end_by: float,
        last: bool,
    ) -> None:
        self.connection: Connection | None = connection
        self.network_stream = connection.network_stream
        self.connection_reused = connection.used
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout
        self.streamed = streamed
        self.max_bytes = max_bytes
        self.end_by = end_by
        self.last = last
        self._loop = connection.pool.loop
        self._began = self._loop.time()

    # -- for the owner

    @property
    def header_names(self) -> set[bytes]:
        """The names of the response's headers in lower case."""
        if self._header_names is None:
            self._header_names = {lower for _, lower, _ in self.headers}
        return self._header_names

    def send_head(self, request: OutgoingRequest) -> None:
        """Write the head, and with it a small body: most requests are sent then. Else `send_rest()` has to follow.

        A failure of the connection is not raised here: the response may have been received whole before it.
        """
        connection = self.connection
        if connection is None:  # lost since it was handed out
            return
        self.request_sent = True
        connection.write(request.head)
        if not request.body and request.stream is None and not connection.write_paused and not self._is_refused():
            self.sending = False

    async def send_rest(self, request: OutgoingRequest) -> None:
        """Write what is left as fast as the server takes it; stop early when the server has refused it already."""
        if self.connection is None:
            return
        if request.body or request.stream is not None:
            async with contextlib.aclosing(request.pieces()) as pieces:
                async for piece in pieces:
                    await self._drain()
                    await self._hear()
                    if self._is_refused() or self.connection is None:
                        return
                    self.connection.write(piece)
        await self._drain()
        if not self._is_refused():
            self.sending = False

    async def _hear(self) -> None:
        """Let the loop read what has arrived before more is written.

        A server that refuses an upload answers and closes. What is written after that makes the loop give the socket
        up, with the answer unread; over TLS nobody else can decipher it (without, see `Connection._salvage`). A reset
        that comes during the write itself still wins.
        """
        for _ in range(2):  # turns: the loop looks at its sockets after it has woken this task
            if self.connection is None or self._is_refused() or not self.connection.has_unread():
                return
            await SYSTEM_CLOCK.sleep(0)

    async def _drain(self) -> None:
        while self.connection is not None and self.connection.write_paused and not self._is_refused():
            await self._wait("write")

    def _is_refused(self) -> bool:
        """Whether nobody reads the rest of the request: a final response that is no 2xx, or the end."""
        return self.complete or self.error is not None or (self.head_complete and self.status >= 300)

    async def wait_for_head(self) -> None:
        """Raises the `httpx.TransportError` that ended the exchange before the head of the response was there."""
        while not self.head_complete:
            if self.error is not None:
                raise self.error
            await self._wait("read")

    async def wait_for_end(self) -> None:
        """Raises the `httpx.TransportError` that ended the exchange before the response was complete."""
        while not self.complete:
            if self.error is not None:
                raise self.error
            try:
                await self._next_step("read")  # not by `_wait()`: every call comes here, and a coroutine costs a µs
            finally:
                self._waiter = None
                self.deadline = NEVER

    async def wait_for_body(self) -> bytes:
        """The next part of the body, or b"" at its end. Raises the `httpx.TransportError` that ended the exchange."""
        while not self.chunks and not self.complete:
            if self.error is not None:
                raise self.error
            await self._wait("read")
        return self.take_body()

    def take_body(self) -> bytes:
        """All of the body that has arrived and was not taken yet."""
        chunks = self.chunks
        if self.gathered is not None:
            self._gather()
            return self.gathered.getvalue()
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered = 0
        if self._paused and self.connection is not None:
            self._paused = False
            self.connection.resume_reading()
        return body

    def abandon(self) -> None:
        """End the exchange before its end: nobody wants it any more. Its connection cannot be used again."""
        if self.connection is not None:
            self.connection.abort(httpx.ReadError("the response was closed before its end"))

    async def _wait(self, phase: Literal["read", "write"]) -> None:
        try:
            await self._next_step(phase)
        finally:
            self._waiter = None
            self.deadline = NEVER

    def _next_step(self, phase: Literal["read", "write"]) -> asyncio.Future[None]:
        connection = self.connection
        assert connection is not None  # an exchange without one is complete or has an error
        pool = connection.pool
        self._phase = phase
        self._set_deadline(pool.loop, self._read_timeout if phase == "read" else self._write_timeout)
        if self.deadline < pool.sweeper.when:
            pool.sweeper.arm(self.deadline)
        waiter = self._waiter = pool.loop.create_future()
        return waiter

    def _set_deadline(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        deadline = self.end_by if timeout is None else loop.time() + timeout
        self.deadline = self.end_by if deadline > self.end_by else deadline

    def _gather(self) -> None:
        """Move the parts of a body that is wanted whole into one growing buffer, which becomes the body without a copy.

        Keeping them and joining them at the end takes twice the memory, and for large bodies several times the CPU
        time on glibc, whose heap then grows and shrinks with every call (1 MiB: 1.0 ms instead of 0.2 to 0.5). From
        then on the connection writes what needs no parsing into the buffer itself.
        """
        if self.gathered is None:
            self.gathered = io.BytesIO()
        self.gathered.writelines(self.chunks)
        self.chunks.clear()

    # -- for the connection

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take_head(self, parser: ResponseParser) -> None:
        self.head_complete = True
        self.status = parser.status
        self.reason = parser.reason
        self.http_version = parser.http_version
        self.headers = parser.headers

    def take_progress(self, parser: ResponseParser) -> None:
        """An incomplete response has grown: apply back-pressure, wake the owner, or wait anew."""
        grown = parser.body_bytes - self.body_bytes
        self.body_bytes = parser.body_bytes
        if self.streamed:
            self.buffered += grown
            if self.buffered > HIGH_WATER and not self._paused and self.connection is not None:
                self._paused = True
                self.connection.pause_reading()
        elif grown:
            self._gather()
        if self.head_complete and (self.streamed or self.sending):
            self.wake()
        if self.deadline != NEVER and self._phase == "read":
            assert self.connection is not None
            self._set_deadline(self.connection.pool.loop, self._read_timeout)

    def time_out(self) -> None:
        """The deadline has passed (called by the sweeper)."""
        if self.connection is None:
            return
        error: Exception
        if self.deadline == self.end_by:
            error = DeadlineExceededError("the response was not complete in time")
        elif self._phase == "write":
            error = httpx.WriteTimeout(f"no part of the request could be sent for {self._write_timeout:g} s")
        else:
            what = "of the response's body " if self.head_complete else ""
            error = httpx.ReadTimeout(f"nothing {what}was received for {self._read_timeout:g} s")
        self.connection.abort(error)

    def facts(self) -> ExchangeFacts:
        return ExchangeFacts(
            request_sent=self.request_sent,
            response_started=self.response_started,
            connection_reused=self.connection_reused,
            lasted=self._loop.time() - self._began,
            head=(self.status, self.http_version) if self.head_complete else None,
        )


class Connection(asyncio.BufferedProtocol):
    """A socket of the pool: idle, or busy with one exchange at a time.

    All connections of a transport receive into one buffer, which no event loop lets them do at the same time: between
    `get_buffer` and `buffer_updated` there is only the read itself.
    """

    __slots__ = (
        "_exchange",
        "_is_readable",
        "_parser",
        "closed",
        "error",
        "idle_since",
        "network_stream",
        "origin",
        "pool",
        "retire_at",
        "transport",
        "used",
        "write_paused",
    )

    def __init__(self, pool: ConnectionPool, origin: Origin) -> None:
        self.pool = pool
        self.origin = origin
        self.retire_at = NEVER
        self.idle_since = 0.0
        self.used = False
        """Whether it has carried a request before."""
        self.closed = False
        self.error: Exception | None = None
        """Why it was closed, when that was a fault."""
        self.write_paused = False
        self._exchange: Exchange | None = None
        self.transport: asyncio.Transport | None = None
        self._is_readable: Callable[[], bool] | None = None
        self._parser = pool.new_parser()

    # -- for the pool

    def has_ended_unseen(self) -> bool:
        """Whether something has arrived on the idle connection that the event loop has not read yet.

        The loop tells of an end with `connection_lost`, but not before the tasks that it runs first: a call that
        follows the last response at once would be sent into a connection that the peer has closed already.
        """
        return self.transport is None or self.transport.is_closing() or self.has_unread()

    def has_unread(self) -> bool:
        """Whether something can be read from the socket that the event loop has not read yet."""
        transport = self.transport
        if transport is None:
            return False
        if self._is_readable is None:
            self._is_readable = readability(transport.get_extra_info("socket"))
        return self._is_readable()

    def start(
        self,
        request: OutgoingRequest,
        *,
        read_timeout: float | None,
        write_timeout: float | None,
        streamed: bool,
        max_bytes: int | None,
        end_by: float,
    ) -> Exchange:
        """Begin an exchange. The connection must be open and idle."""
        exchange = Exchange(
            self,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            streamed=streamed,
            max_bytes=max_bytes,
            end_by=end_by,
            last=request.last,
        )
        self._parser.begin(head_only=request.head_only)
        exchange.chunks = self._parser.chunks
        self._exchange = exchange
        self.used = True
        return exchange

    @property
    def deadline(self) -> float:
        """When the exchange must have gone on, by the loop's clock."""
        exchange = self._exchange
        return NEVER if exchange is None else exchange.deadline

    def time_out(self) -> None:
        if self._exchange is not None:
            self._exchange.time_out()

    def abort(self, error: Exception | None = None) -> None:
        """Close at once, and end a running exchange with the error. Safe to call again."""
        if self.closed:
            return
        self.closed = True
        self.error = error
        exchange = self._exchange
        if exchange is not None:
            self._exchange = None
            exchange.connection = None
            if not exchange.complete:
                exchange.error = with_facts(error or httpx.ReadError("the connection was closed"), exchange.facts())
            exchange.wake()
        self._parser.close()
        if self.transport is not None:
            self.transport.abort()
        self.pool.discard(self)

    # -- for the exchange

    def write(self, data: bytes | memoryview) -> None:
        if not self.closed and self.transport is not None:
            self.transport.write(data)

    def pause_reading(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.transport is not None:
            self.transport.resume_reading()

    # -- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop, and again with the transport for TLS on top of the first one."""
        self.transport = cast("asyncio.Transport", transport)
        self.network_stream = NetworkStream(self.transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        exchange = self._exchange
        if exchange is None or exchange.gathered is None:
            return self.pool.receive_buffer[:PARSED_AT_ONCE]
        left = self._parser.uncounted
        # One more than the body has, for surplus bytes must be noticed before the connection is used again.
        return self.pool.receive_buffer[: left + 1 if left else PARSED_AT_ONCE]

    def buffer_updated(self, nbytes: int) -> None:
        self._received(self.pool.receive_buffer[:nbytes])

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            if exc is not None:
                self._salvage()
            self._ended(exc)
        self.write_paused = False
        self.transport = None
        self.pool.socket_closed(self)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._exchange is not None:
            self._exchange.wake()

    # -- details

    def _received(self, piece: memoryview) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nobody has asked for anything: taken for an answer, these bytes would answer a stranger's next request.
            self.abort(httpx.RemoteProtocolError("the server sent data that nobody had asked for"))
            return
        exchange.response_started = True
        parser = self._parser
        counted = exchange.gathered is not None and parser.uncounted > 0
        try:
            if counted:
                assert exchange.gathered is not None
                exchange.gathered.write(piece[: parser.count(len(piece))])
            else:
                parser.feed(piece)
        except httpx.RemoteProtocolError as error:
            self.abort(error)
            return
        if parser.head_complete and not exchange.head_complete:
            exchange.take_head(parser)
        if exchange.max_bytes is not None and parser.body_bytes > exchange.max_bytes:
            self.abort(ResponseTooLargeError(f"the response's body is larger than {exchange.max_bytes} bytes"))
            return
        if parser.complete:
            if not counted and len(piece) >= PARSED_AT_ONCE and self._is_secured():
                # It has filled the buffer: TLS may hold more that it has deciphered, where `has_unread()` cannot look.
                exchange.last = True
            self._finish(exchange, parser)
        else:
            exchange.take_progress(parser)

    def _finish(self, exchange: Exchange, parser: ResponseParser) -> None:
        """The response is complete: give the connection back at once, even before its reader has taken the body."""
        exchange.complete = True
        exchange.body_bytes = parser.body_bytes
        transport = self.transport
        if (
            parser.reusable
            and not exchange.last
            and not exchange.sending
            and transport is not None
            and not transport.get_write_buffer_size()
            and not transport.is_closing()
        ):
            self._exchange = None
            exchange.connection = None
            exchange.wake()
            self.pool.release(self)
        else:
            self.abort()

    def _is_secured(self) -> bool:
        return self.transport is not None and self.transport.get_extra_info("ssl_object") is not None

    def _ended(self, exc: Exception | None) -> None:
        """The peer has closed its side (no `exc`), or the connection has failed."""
        exchange = self._exchange
        if self.closed:
            return
        if exchange is None:
            self.abort(None if exc is None else httpx.ReadError(describe(exc)))
            return
        if exc is not None:
            failed = httpx.WriteError if exchange.sending and not exchange.head_complete else httpx.ReadError
            self.abort(failed(f"the connection failed: {describe(exc)}"))
            return
        try:
            self._parser.end()
        except httpx.RemoteProtocolError as error:
            self.abort(error)
        else:
            self._finish(exchange, self._parser)

    def _salvage(self) -> None:
        """Read what the server sent before it reset a connection on which we were still sending.

        A server that refuses an upload early (413) answers and closes; the unread part of the upload then makes its
        kernel send a reset, and the event loop gives up on the socket with the answer still in the receive buffer.
        """
        exchange, transport = self._exchange, self.transport
        if exchange is None or transport is None or self._is_secured():
            return
        try:
            duplicate = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except (OSError, ValueError, AttributeError):  # it is gone
            return
        with duplicate:
            duplicate.setblocking(False)
            while not self.closed and not exchange.complete:
                try:
                    size = duplicate.recv_into(self.get_buffer(-1))
                except OSError:
                    return
                if not size:
                    return
                self.buffer_updated(size)
