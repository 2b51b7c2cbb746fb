"""httpx's four timeouts, each of them alone, and none of them when it is None."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from fastapi_http_client.engine.transport import AsyncioTransport
from tests.engine.conftest import MakeClient
from tests.engine.raw import OK, Reader, Writer, answer, hang, read_head, serve

TransportOf = Callable[[httpx.AsyncClient], AsyncioTransport]


async def test_connecting_takes_too_long(make_client: MakeClient) -> None:
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (one, two):  # the backlog is full: further SYNs are dropped
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        started = time.perf_counter()
        with pytest.raises(httpx.ConnectTimeout, match=r"connecting to 127.*within 0\.1 s"):
            await make_client(timeout=httpx.Timeout(5, connect=0.1)).get(f"http://127.0.0.1:{full.getsockname()[1]}/")
        assert time.perf_counter() - started < 1


async def test_a_tls_handshake_takes_too_long_and_leaves_no_socket(make_client: MakeClient) -> None:
    async with serve(hang) as up:
        with pytest.raises(httpx.ConnectTimeout, match=r"TLS handshake with 127.*within 0\.1 s"):
            await make_client(timeout=httpx.Timeout(5, connect=0.1)).get(f"https://127.0.0.1:{up.port}/")
        await up.all_closed()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"])
async def test_reading_takes_too_long(make_client: MakeClient, transport_of: TransportOf, sent: bytes) -> None:
    async def some(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(sent)
        await hang(reader, writer)

    async with serve(some) as up, make_client(timeout=httpx.Timeout(5, read=0.1)) as client:
        for call in (client.get, lambda url: transport_of(client).fetch(client.build_request("GET", url))):
            started = time.perf_counter()
            with pytest.raises(httpx.ReadTimeout, match=r"received for 0\.1 s"):
                await call(up.url())
            assert 0.09 < time.perf_counter() - started < 1
        await up.all_closed()


async def test_the_read_timeout_is_for_each_read(make_client: MakeClient, transport_of: TransportOf) -> None:
    async def drip(reader: Reader, writer: Writer) -> None:
        while True:
            await read_head(reader)
            for start in range(0, len(OK), 8):
                writer.write(OK[start : start + 8])
                await asyncio.sleep(0.04)

    async with serve(drip) as up, make_client(timeout=httpx.Timeout(5, read=0.1)) as client:
        assert (await client.get(up.url())).text == "ok"
        request = client.build_request("GET", up.url())
        assert (await transport_of(client).fetch(request)).text == "ok"


async def test_a_reader_may_take_its_time(make_client: MakeClient) -> None:
    """The read timeout runs while somebody waits for data, not while nobody does."""
    message = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"

    async def in_two(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(message)
        await asyncio.sleep(0.25)
        writer.write(b"ok")
        await hang(reader, writer)

    limit = httpx.Timeout(5, read=0.1)
    async with serve(in_two) as up, make_client(timeout=limit) as client, client.stream("GET", up.url()) as response:
        parts = response.aiter_raw()
        assert await anext(parts) == b"ok"
        await asyncio.sleep(0.3)
        assert await anext(parts) == b"ok"


@pytest.mark.parametrize("streamed", [False, True])
async def test_writing_takes_too_long(make_client: MakeClient, streamed: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(100_000)

    async def deaf(reader: Reader, writer: Writer) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)

    async with serve(deaf) as up, make_client(timeout=httpx.Timeout(5, write=0.1)) as client:
        started = time.perf_counter()
        with pytest.raises(httpx.WriteTimeout, match=r"sent for 0\.1 s"):
            await client.post(up.url(), content=parts() if streamed else bytes(50_000_000))
        assert time.perf_counter() - started < 2


async def test_the_write_timeout_is_for_a_part_not_for_the_whole(make_client: MakeClient) -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        left = 8_000_000
        while left:
            left -= len(await reader.read(500_000))
            await asyncio.sleep(0.01)
        writer.write(OK)
        await hang(reader, writer)

    async with serve(slow) as up, make_client(timeout=httpx.Timeout(5, write=0.15)) as client:
        started = time.perf_counter()
        assert (await client.post(up.url(), content=bytes(8_000_000))).text == "ok"
        assert time.perf_counter() - started > 0.15


async def test_no_timeouts_at_all(make_client: MakeClient, transport_of: TransportOf) -> None:
    async with serve(answer(OK)) as up, make_client(timeout=None) as client:
        assert (await client.get(up.url())).text == "ok"
        bare = httpx.Request("GET", up.url())
        assert (await transport_of(client).fetch(bare)).text == "ok"
