"""The network under httpcore2, straight on asyncio: its own, on anyio, costs a call 100 µs more.

And it lacks what the pool must know: of every byte that waits on an idle connection, and how far a request had come.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias, cast

import httpcore2
from anyio.lowlevel import checkpoint_if_cancelled

from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.engine.errors import CONNECT_FAILURES, NOTHING_SENT, describe, why_not_connected, with_facts
from fastapi_http_client.engine.sockets import HANDSHAKE_LIMIT, HIGH_WATER, connect, extra_info, readability

SocketOption: TypeAlias = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

sent_at: ContextVar[list[float] | None] = ContextVar("fastapi_http_client_sent_at", default=None)
"""Where the call of this task notes when the first byte of its request was written."""


class AsyncioBackend(httpcore2.AsyncNetworkBackend):
    """Connections for httpcore2's pool. Unix sockets are not among them."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore2 calls it, as all the others here
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        stream = AsyncioStream()
        async with _connecting(f"connecting to {host}:{port}", timeout):
            sock = await connect(host, port)
            try:
                await asyncio.get_running_loop().create_connection(lambda: stream, sock=sock)
            except BaseException:
                sock.close()
                raise
            await stream.hand_over()
        return stream

    async def sleep(self, seconds: float) -> None:
        await SYSTEM_CLOCK.sleep(seconds)


@contextlib.asynccontextmanager
async def _connecting(step: str, seconds: float | None) -> AsyncIterator[None]:
    """A limit for a step of connecting, and httpcore2's errors for what it fails with."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except CONNECT_FAILURES as error:
        cls = httpcore2.ConnectTimeout if isinstance(error, TimeoutError) else httpcore2.ConnectError
        raise with_facts(cls(why_not_connected(step, error, seconds)), NOTHING_SENT) from error
    except BaseException as error:
        with_facts(error, NOTHING_SENT)  # also a cancellation: whoever is the cause of it can tell then
        raise


class AsyncioStream(httpcore2.AsyncNetworkStream, asyncio.Protocol):
    """The bytes of one connection. One task may read, and one write, at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._received: list[bytes] = []
        self._waiting_bytes = 0
        self._arrival = _Signal()
        self._room = _Signal()
        self._write_paused = False
        self._ended = False
        self._error: Exception | None = None
        self.is_shared = False
        """Whether several calls write on it (HTTP/2). Then all that is to be written must get there, also when the call
        that writes it is cancelled: the compression of headers counts on it (RFC 7541 section 2.2)."""
        self.has_surplus = False
        """Whether there was more on the connection than the response that was read last."""

    # -- httpcore2.AsyncNetworkStream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Some of what has arrived, or b"" at the end."""
        if self._received:
            await SYSTEM_CLOCK.sleep(0)  # whoever parses a great deal lets the others have their turn
        elif not self._ended:
            try:
                await self._arrival.wait(timeout)
            except TimeoutError as error:
                raise httpcore2.ReadTimeout(f"nothing was received for {timeout:g} s") from error
        if self._received:
            return self._take(max_bytes)
        if self._error is not None:
            raise httpcore2.ReadError(f"the connection failed: {describe(self._error)}")
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if not buffer:
            return
        noted = sent_at.get()
        if noted and not self.is_shared:
            await self._hear()
        if self.has_ended:
            raise httpcore2.WriteError("the connection was closed")
        if noted is not None and not noted:
            noted.append(SYSTEM_CLOCK.monotonic())
        # A large part goes piece by piece, for TLS says that there is no room only when it has taken all of it. Not on
        # a connection that others share: whatever is left of a part would be missing in what comes next.
        size = len(buffer) if self.is_shared else HIGH_WATER
        whole = memoryview(buffer)
        for start in range(0, len(buffer), size):
            self._transport.write(whole[start : start + size])
            if self._write_paused:
                await self._wait_for_room(timeout)
            if self.has_ended:
                break  # what the server has said before can be read

    async def _wait_for_room(self, timeout: float | None) -> None:  # noqa: ASYNC109
        try:
            await self._room.wait(timeout)
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(f"no part of the request could be sent for {timeout:g} s") from error

    @property
    def has_ended(self) -> bool:
        """Whether the peer has closed its side, or the connection has failed."""
        return self._ended or self._transport.is_closing()

    async def hand_over(self) -> None:
        """The end of each step of connecting.

        A scope of anyio, such as Starlette's, may have been cancelled meanwhile without any effect on this task yet.
        That would come where httpcore2 keeps the new connection in its books for ever, with nobody to use it.
        """
        try:
            await checkpoint_if_cancelled()
        except BaseException:
            self._transport.abort()
            raise

    def write_at_once(self, buffer: bytes) -> None:
        """Write a few bytes without waiting for room, as far as the connection is alive."""
        if buffer and not self._transport.is_closing():
            self._transport.write(buffer)

    async def aclose(self) -> None:
        """Close without giving way: a cancellation here would leave a closed connection in the pool's books."""
        self._ended = True
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with _connecting(f"the TLS handshake with {server_hostname}", timeout):
                if self._received or self._ended:
                    raise ConnectionResetError("the server closed the connection, or spoke, before the handshake")
                secured = await self._secured(ssl_context, server_hostname)
                if secured is None:
                    raise ConnectionResetError("the server closed the connection during the handshake")
                self._transport = secured
                await self.hand_over()
        except BaseException:
            self._transport.abort()
            raise
        return self

    async def _secured(self, ssl_context: ssl.SSLContext, server_hostname: str | None) -> asyncio.Transport | None:
        try:
            return await asyncio.get_running_loop().start_tls(
                self._transport,
                self,
                ssl_context,
                server_hostname=server_hostname,
                ssl_handshake_timeout=HANDSHAKE_LIMIT,
            )
        except TypeError as error:
            # CPython 3.11, for TLS within TLS: it fails in telling why it has failed.
            if isinstance(error.__context__, ssl.SSLError):
                raise error.__context__ from None
            raise

    def get_extra_info(self, info: str) -> Any:
        """What `extra_info()` knows, and `is_readable`."""
        if info == "is_readable":
            return self.has_ended or self.has_surplus or bool(self._received) or self._has_unread()
        return extra_info(self._transport, info)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._has_unread: Callable[[], bool] = readability(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER:
            self._transport.pause_reading()
        self._arrival.wake()

    def eof_received(self) -> None:
        self._ended = True
        self._arrival.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = exc
        self._arrival.wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._room.wake()

    # -- details

    def _take(self, max_bytes: int) -> bytes:
        data = self._received[0] if len(self._received) == 1 else b"".join(self._received)
        self._received.clear()
        if len(data) > max_bytes:
            self._received.append(data[max_bytes:])
            data = data[:max_bytes]
        was_paused = self._waiting_bytes > HIGH_WATER
        self._waiting_bytes -= len(data)
        if was_paused and self._waiting_bytes <= HIGH_WATER and not self._transport.is_closing():
            self._transport.resume_reading()
        return data

    async def _hear(self) -> None:
        """Let the loop read what has arrived before more is written.

        A server that refuses an upload answers and closes. What is written after that makes the loop give the socket
        up, with the answer unread.
        """
        for _ in range(2):  # turns: the loop looks at its sockets after it has woken this task
            if self._ended or self._received or not self._has_unread():
                return
            await SYSTEM_CLOCK.sleep(0)


class _Signal:
    """Wakes the task that waits for it."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self, timeout: float | None) -> None:  # noqa: ASYNC109
        """Raises `TimeoutError` after so many seconds."""
        if self._future is not None:
            raise RuntimeError("another task is reading from, or writing to, this connection")
        loop = asyncio.get_running_loop()
        future = self._future = loop.create_future()
        # Not `asyncio.timeout()`, which costs three times as much.
        timer = None if timeout is None else loop.call_later(timeout, _expire, future)
        try:
            await future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
