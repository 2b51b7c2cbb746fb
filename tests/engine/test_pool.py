"""Which connection a call gets, how many there are, and when they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from fastapi_http_client.engine import pool as pool_module
from fastapi_http_client.engine.errors import ExchangeFacts, exchange_facts
from fastapi_http_client.engine.transport import AsyncioTransport
from tests.engine.conftest import MakeClient
from tests.engine.raw import OK, Handler, Reader, Writer, answer, hang, read_head, read_request, reset, serve

TransportOf = Callable[[httpx.AsyncClient], AsyncioTransport]


def slowly(seconds: float) -> Handler:
    async def handler(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(seconds)
            writer.write(OK)

    return handler


async def test_a_connection_is_used_again(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up, make_client() as client:
        for _ in range(10):
            await client.get(up.url())
        assert up.accepted == 1


async def test_a_hundred_callers_at_the_default_limits_open_a_hundred_connections(make_client: MakeClient) -> None:
    """bare httpx opens 3,000 for these 3,000 calls: it closes every released connection above 20."""
    async with serve(slowly(0.01)) as up, make_client() as client:

        async def caller() -> None:
            for _ in range(30):
                await client.get(up.url())

        await asyncio.gather(*(caller() for _ in range(100)))
        assert up.accepted == 100
        assert up.peak == 100


async def test_connections_beyond_the_keepalive_limit_are_closed_soon_after(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SURPLUS_GRACE", 0.05)
    async with serve(slowly(0.02)) as up, make_client(max_keepalive_connections=3) as client:
        await asyncio.gather(*(client.get(up.url()) for _ in range(10)))
        assert up.open == 10
        await up.at_most_open(3)
        await asyncio.sleep(0.1)
        assert up.open == 3


async def test_no_connection_is_kept_when_none_may_be(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up:
        for options in ({"max_keepalive_connections": 0}, {"keepalive_expiry": 0.0}, {"max_connection_age": 0.0}):
            client = make_client(**options)
            before = up.accepted
            await client.get(up.url())
            await up.all_closed()
            await client.get(up.url())
            assert up.accepted == before + 2


async def test_an_idle_connection_is_closed_when_it_expires(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up, make_client(keepalive_expiry=0.05) as client:
        await client.get(up.url())
        await up.all_closed()
        await client.get(up.url())
        assert up.accepted == 2


async def test_a_connection_is_not_used_beyond_its_age(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up, make_client(max_connection_age=0.1) as client:
        await client.get(up.url())
        await client.get(up.url())
        assert up.accepted == 1
        await asyncio.sleep(0.12)
        await client.get(up.url())
        assert up.accepted == 2


async def test_the_limit_holds_over_all_origins(make_client: MakeClient) -> None:
    async with serve(slowly(0.01)) as one, serve(slowly(0.01)) as two, make_client(max_connections=5) as client:
        peak = 0

        async def caller(n: int) -> None:
            nonlocal peak
            for _ in range(5):
                await client.get((one, two)[n % 2].url())
                peak = max(peak, one.open + two.open)

        await asyncio.gather(*(caller(n) for n in range(20)))
        # A server counts a connection until it has seen the client's end of it.
        assert peak <= 5 + 3


async def test_an_idle_connection_makes_room_for_another_origin(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as one, serve(answer(OK)) as two, make_client(max_connections=1) as client:
        for _ in range(3):
            await client.get(one.url())
            await client.get(two.url())
        assert (one.accepted, two.accepted) == (3, 3)


async def test_calls_are_served_in_order_of_arrival(make_client: MakeClient) -> None:
    async with serve(slowly(0.005)) as one, serve(slowly(0.005)) as two, make_client(max_connections=1) as client:
        order: list[int] = []

        async def call(n: int) -> None:
            await client.get((one, two)[n % 3 == 0].url())
            order.append(n)

        tasks = []
        for n in range(12):
            tasks.append(asyncio.create_task(call(n)))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == list(range(12))


async def test_the_order_of_arrival_holds_when_the_server_ends_each_connection(make_client: MakeClient) -> None:
    """Without a word in the response: the next in line gets a connection that is dead."""
    order: list[bytes] = []

    async def once(reader: Reader, writer: Writer) -> None:
        head = await read_head(reader)
        order.append(head.split()[1])
        writer.write(OK)
        await writer.drain()
        writer.close()

    client = make_client(max_connections=1)
    async with serve(once) as up, client:
        calls = (client.get(up.url(f"/{number:02}")) for number in range(12))
        await asyncio.gather(*calls, return_exceptions=True)  # a connection may also end under a request
    assert order == sorted(order)


async def test_the_connection_used_last_is_used_first(make_client: MakeClient) -> None:
    """So that the others can expire."""
    ports: list[int] = []

    async def tell(reader: Reader, writer: Writer) -> None:
        while True:
            await read_head(reader)
            ports.append(writer.get_extra_info("peername")[1])
            await asyncio.sleep(0.01)
            writer.write(OK)

    async with serve(tell) as up, make_client() as client:
        await asyncio.gather(client.get(up.url()), client.get(up.url()))
        del ports[:]
        for _ in range(4):
            await client.get(up.url())
        assert len(set(ports)) == 1


async def test_the_server_name_for_tls_separates_connections(
    make_client: MakeClient, transport_of: TransportOf
) -> None:
    async with serve(answer(OK)) as up, make_client() as client:
        for name in ("a", "b", "a"):
            await client.get(up.url(), extensions={"sni_hostname": name})
        assert up.accepted == 2


async def test_waiting_for_a_connection_ends_with_the_pool_timeout(make_client: MakeClient) -> None:
    async with serve(hang) as up, make_client(max_connections=1) as client:
        holder = asyncio.create_task(client.get(up.url()))
        await asyncio.sleep(0.05)
        limit = httpx.Timeout(5, pool=0.05)
        with pytest.raises(httpx.PoolTimeout, match=r"within 0\.05 s \(all 1 are in use\)") as caught:
            await client.get(up.url(), timeout=limit)
        assert exchange_facts(caught.value) == ExchangeFacts(False, False, False)
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)


async def test_a_failed_connection_attempt_gives_its_place_to_the_next_call(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up, make_client(max_connections=1) as client:
        refused = [client.get("http://127.0.0.1:1/") for _ in range(3)]
        answered = [client.get(up.url()) for _ in range(3)]
        got = await asyncio.gather(*refused, *answered, return_exceptions=True)
        assert [type(outcome) for outcome in got[:3]] == [httpx.ConnectError] * 3
        assert [getattr(outcome, "status_code", outcome) for outcome in got[3:]] == [200] * 3


@pytest.mark.parametrize("surplus", [b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"])
async def test_surplus_bytes_never_reach_the_next_call(make_client: MakeClient, surplus: bytes) -> None:
    async with serve(answer(OK + surplus)) as up, make_client() as client:
        for n in range(3):
            assert (await client.get(up.url())).text == "ok"
            assert up.accepted == n + 1


async def test_bytes_on_an_idle_connection_close_it(make_client: MakeClient) -> None:
    async def later(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
        await hang(reader, writer)

    async with serve(later) as up, make_client() as client:
        assert (await client.get(up.url())).text == "ok"
        await up.all_closed()
        assert (await client.get(up.url())).text == "ok"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_connections_that_the_server_ends_while_idle_are_not_used(make_client: MakeClient, how: str) -> None:
    async with serve(slowly(0.01)) as up, make_client() as client:
        await asyncio.gather(*(client.get(up.url()) for _ in range(20)))
        for writer in list(up.writers):
            if how == "reset":
                await reset(None, writer)  # type: ignore[arg-type]
            else:
                writer.close()
        await asyncio.sleep(0.05)
        got = await asyncio.gather(*(client.get(up.url()) for _ in range(20)))
        assert [response.status_code for response in got] == [200] * 20


async def test_origins_are_forgotten_with_their_last_connection(
    make_client: MakeClient, transport_of: TransportOf
) -> None:
    client = make_client(keepalive_expiry=0.01)
    for port in range(1, 20):
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/")
    pool = transport_of(client)._pool
    assert pool is not None
    assert not pool._origins
    async with serve(answer(OK)) as up:
        await client.get(up.url())
        assert len(pool._origins) == 1
        await up.all_closed()
        await asyncio.sleep(0)
        assert not pool._origins


async def test_a_request_that_says_close_ends_its_connection(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up, make_client() as client:
        await client.get(up.url(), headers={"Connection": "close"})
        await up.all_closed()
