"""A cancelled call leaves nothing behind, wherever it was: no place in the pool, no socket, no task, no complaint."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest

from fastapi_http_client.engine.connection import Connection
from fastapi_http_client.engine.transport import AsyncioTransport
from tests.engine.conftest import MakeClient
from tests.engine.raw import OK, Reader, Writer, a_full_backlog, answer, hang, read_head, read_request, serve

TransportOf = Callable[[httpx.AsyncClient], AsyncioTransport]


async def cancel_after(seconds: float, call: Coroutine[Any, Any, httpx.Response]) -> None:
    task = asyncio.create_task(call)
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_while_connecting(make_client: MakeClient) -> None:
    with a_full_backlog() as port:
        client = make_client(max_connections=2)
        for _ in range(5):
            await cancel_after(0.01, client.get(f"http://127.0.0.1:{port}/"))
        async with serve(answer(OK)) as up:
            assert (await client.get(up.url())).text == "ok"


async def test_in_the_tls_handshake(make_client: MakeClient) -> None:
    context = ssl.create_default_context()  # making one takes longer than the call is given
    async with serve(hang) as up, make_client(max_connections=2, ssl_context=context) as client:
        for _ in range(3):
            await cancel_after(0.05, client.get(f"https://127.0.0.1:{up.port}/"))
        await up.all_closed()
        assert up.accepted == 3


async def test_while_waiting_for_a_connection(make_client: MakeClient, transport_of: TransportOf) -> None:
    async with serve(hang) as up, make_client(max_connections=1) as client:
        holder = asyncio.create_task(client.get(up.url()))
        await asyncio.sleep(0.02)
        for _ in range(50):
            await cancel_after(0, asyncio.wait_for(client.get(up.url()), 5))
        pool = transport_of(client)._pool
        assert pool is not None
        assert not pool._waiters
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)


async def test_in_the_moment_a_connection_is_handed_over(make_client: MakeClient, transport_of: TransportOf) -> None:
    """The released connection goes to the call that waits next, not away with the cancelled one."""
    let_go = asyncio.Event()

    async def when_told(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await let_go.wait()
        writer.write(OK)
        await answer(OK)(reader, writer)

    async with serve(when_told) as up, make_client(max_connections=1) as client:
        holder = asyncio.create_task(client.get(up.url()))
        await asyncio.sleep(0.05)
        first, second = (asyncio.create_task(client.get(up.url())) for _ in range(2))
        await asyncio.sleep(0)
        pool = transport_of(client)._pool
        assert pool is not None
        release = pool.release

        def release_to_one_who_is_gone(connection: Connection) -> None:
            release(connection)
            first.cancel()

        pool.release = release_to_one_who_is_gone  # type: ignore[method-assign]
        let_go.set()
        assert (await holder).text == (await second).text == "ok"
        assert first.cancelled()
        assert up.accepted == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_while_sending(make_client: MakeClient, streamed: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield bytes(100_000)

    async def deaf(reader: Reader, writer: Writer) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)

    async with serve(deaf) as up, make_client(max_connections=1) as client:
        for _ in range(2):
            await cancel_after(0.05, client.post(up.url(), content=parts() if streamed else bytes(50_000_000)))


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nX", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"])
async def test_while_reading(make_client: MakeClient, transport_of: TransportOf, sent: bytes) -> None:
    async def some(reader: Reader, writer: Writer) -> None:
        head, _ = await read_request(reader)
        writer.write(sent if b"/some" in head else OK)
        await hang(reader, writer)

    async with serve(some) as up, make_client(max_connections=1) as client:
        for _ in range(3):
            await cancel_after(0.02, client.get(up.url("/some")))
            request = client.build_request("GET", up.url("/some"))
            await cancel_after(0.02, transport_of(client).fetch(request))
            assert (await client.get(up.url())).text == "ok"


async def test_a_deadline_hit_by_everyone_leaves_the_pool_whole(make_client: MakeClient) -> None:
    """bare httpx 0.28 has lost every place of its pool after this."""

    async def slow(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.02)
            writer.write(OK)

    chance = random.Random(1)
    async with serve(slow) as up, make_client(max_connections=10) as client:

        async def caller() -> None:
            for _ in range(20):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.uniform(0, 0.06)):
                        await client.get(up.url())

        await asyncio.gather(*(caller() for _ in range(50)))
        got = await asyncio.gather(*(client.get(up.url()) for _ in range(20)))
        assert [response.status_code for response in got] == [200] * 20
        await asyncio.sleep(0.05)
        assert up.open <= 10


async def test_the_cancellation_is_raised_as_it_is(make_client: MakeClient) -> None:
    async with serve(hang) as up, make_client() as client:
        task = asyncio.create_task(client.get(up.url()))
        await asyncio.sleep(0.05)
        task.cancel("a reason")
        with pytest.raises(asyncio.CancelledError, match="a reason"):
            await task
        await up.all_closed()
