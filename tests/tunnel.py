"""A proxy that tunnels."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from tests.engine.raw import Reader, Upstream, Writer, read_head, serve


async def pump(reader: Reader, writer: Writer) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@contextlib.asynccontextmanager
async def a_tunnel(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
    """A proxy that tunnels, and the heads that it was sent."""
    heads: list[bytes] = []

    async def tunnel(reader: Reader, writer: Writer) -> None:
        heads.append(await read_head(reader))
        host, _, port = heads[-1].split()[1].decode().rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with serve(tunnel, ssl_context=tls) as up:
        yield up, heads
