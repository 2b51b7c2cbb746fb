"""Upstreams of a few lines each: raw asyncio servers that say exactly what a test needs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def until(condition: Callable[[], Any]) -> None:
    """Returns when the condition holds; fails after 5 seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


class Upstream:
    """A server and what it saw."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.scheme = "http"
        self.accepted = 0
        self.open = 0
        self.peak = 0
        self.writers: set[Writer] = set()

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://{self.host}:{self.port}{path}"

    async def at_most_open(self, count: int) -> None:
        """Returns when no more connections than that are open; fails after 5 seconds."""
        await until(lambda: self.open <= count)

    async def all_closed(self) -> None:
        await self.at_most_open(0)


@contextlib.asynccontextmanager
async def serve(
    handler: Handler, *, host: str = "127.0.0.1", ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    """Run a handler for each connection; it is closed when the handler returns."""
    upstream = Upstream()
    upstream.host = f"[{host}]" if ":" in host else host

    async def connected(reader: Reader, writer: Writer) -> None:
        upstream.accepted += 1
        upstream.open += 1
        upstream.peak = max(upstream.peak, upstream.open)
        upstream.writers.add(writer)
        try:
            await handler(reader, writer)
            if not writer.transport.is_closing():
                writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            writer.transport.abort()
        except RuntimeError:  # uvloop's way to say that the connection is closed
            if not writer.transport.is_closing():
                raise
        finally:
            upstream.open -= 1
            upstream.writers.discard(writer)

    server = await asyncio.start_server(connected, host, 0, ssl=ssl_context, backlog=1024)
    upstream.port = server.sockets[0].getsockname()[1]
    if ssl_context is not None:
        upstream.scheme = "https"
    try:
        yield upstream
    finally:
        server.close()
        for writer in list(upstream.writers):
            writer.transport.abort()
        with contextlib.suppress(TimeoutError):
            await upstream.all_closed()


async def read_head(reader: Reader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def read_request(reader: Reader) -> tuple[bytes, bytes]:
    """A request's head and its body as sent, chunked framing included."""
    head = await read_head(reader)
    lower = head.lower()
    if b"content-length:" in lower:
        size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(size)
    if b"transfer-encoding: chunked" in lower:
        return head, await reader.readuntil(b"0\r\n\r\n")
    return head, b""


def answer(*answers: bytes, then: Handler | None = None) -> Handler:
    """A handler that answers the requests of each connection with these bytes in turn, the last one for ever.

    With `then`, each answer is given once and `then` follows the last.
    """

    async def handler(reader: Reader, writer: Writer) -> None:
        turn = 0
        while True:
            await read_request(reader)
            writer.write(answers[min(turn, len(answers) - 1)])
            await writer.drain()
            turn += 1
            if then is not None and turn == len(answers):
                await then(reader, writer)
                return

    return handler


async def hang(reader: Reader, writer: Writer) -> None:
    """Say nothing until the client goes away."""
    while await reader.read(65536):
        pass


async def close(reader: Reader, writer: Writer) -> None:
    return


async def reset(reader: Reader, writer: Writer) -> None:
    """Close with RST: SO_LINGER of no time."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def refuse_early(then: Handler) -> Handler:
    """A handler that answers 413 to a request's head, and then does something else than to read the body."""

    async def handler(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await then(reader, writer)

    return handler


@contextlib.contextmanager
def a_full_backlog() -> Iterator[int]:
    """The port of a listener on which connecting takes for ever."""
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (one, two):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]
