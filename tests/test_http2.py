"""HTTP/2: calls share a connection, and nothing that happens to one of them is felt by the others."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import anyio
import httpx
import pytest
import pytest_asyncio

from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPClientError, HTTPRequestError, HTTPTimeoutError
from fastapi_http_client.httpcore.network import AsyncioStream
from tests.engine.raw import OK, answer, serve, until
from tests.hostile.certs import server_context
from tests.http2 import HTTP2Upstream, serve_http2
from tests.tunnel import a_tunnel

Connect: TypeAlias = Callable[..., AsyncHTTPClient]
MORE_THAN_A_WINDOW = 2**24 + 2**20  # bytes: httpcore2 grants a connection 16 MiB before it is told of any progress


@pytest_asyncio.fixture
async def http2(certs: dict[str, str]) -> AsyncIterator[HTTP2Upstream]:
    async with serve_http2(server_context(certs)) as server:
        yield server


@pytest.fixture
def connect(http2: HTTP2Upstream, certs: dict[str, str]) -> Connect:
    def client(**options: Any) -> AsyncHTTPClient:
        fields = {"http2": True, "ca_file": certs["ca.pem"], "timeout": 5.0, "retry_attempts": 1, **options}
        return AsyncHTTPClient(http2.url(), config=ClientConfig(**fields))

    return client


async def test_calls_share_one_connection(http2: HTTP2Upstream, connect: Connect) -> None:
    async with connect() as client:
        responses = await asyncio.gather(*(client.get(f"/echo/{n}") for n in range(150)))
    assert {response.http_version for response in responses} == {"HTTP/2"}
    assert [response.json()["path"] for response in responses] == [f"/echo/{n}" for n in range(150)]
    assert http2.raw.accepted == 1


async def test_bodies_larger_than_a_window_arrive_whole(connect: Connect) -> None:
    async with connect() as client:
        sent = (await client.post("/echo", content=bytes(3_000_000))).json()
        received = await client.get("/big/3000000")
    assert sent["size"] == 3_000_000
    assert received.content == bytes(3_000_000)


async def test_a_server_without_http2_is_spoken_to_in_http1(certs: dict[str, str]) -> None:
    async with serve(answer(OK), ssl_context=server_context(certs)) as up:
        config = ClientConfig(http2=True, ca_file=certs["ca.pem"])
        async with AsyncHTTPClient(up.url(), config=config) as client:
            for _ in range(3):
                assert (await client.get("/")).http_version == "HTTP/1.1"
    assert up.accepted == 1


@pytest.mark.parametrize("path", ["/refuse", "/goaway"])
async def test_what_the_server_has_not_processed_is_repeated_whatever_the_method(
    http2: HTTP2Upstream, connect: Connect, path: str
) -> None:
    async with connect(retry_attempts=2, retry_backoff_factor=0) as client:
        with pytest.raises(HTTPClientError, match="has refused the request, and not processed it") as raised:
            await client.post(path, json={"amount": 100})
    assert len(http2.requests) == 2
    assert not raised.value.attempts[0].error.may_have_run  # type: ignore[union-attr]


async def test_an_upload_that_is_refused_early_gives_the_refusal(http2: HTTP2Upstream, connect: Connect) -> None:
    async with connect() as client:
        for _ in range(3):
            response = await client.post("/early", content=bytes(300_000))
            assert (response.status_code, response.text) == (413, "too big")
    assert http2.raw.accepted == 1


async def test_behind_a_proxy_too_a_call_that_is_given_up_is_ended_at_the_server(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    async with a_tunnel() as (proxy, _), connect(proxy=proxy.url("")) as client:
        async with client.stream("GET", f"/big/{MORE_THAN_A_WINDOW}") as response:
            async for _part in response.aiter_bytes():
                break
        assert (await client.get("/echo")).http_version == "HTTP/2"
    assert len(http2.resets) == 1
    assert http2.raw.accepted == 1


async def test_a_call_that_is_given_up_is_ended_at_the_server_too(http2: HTTP2Upstream, connect: Connect) -> None:
    async with connect() as client:
        await client.get("/echo")
        call = asyncio.create_task(client.get("/hang"))
        await until(lambda: len(http2.requests) == 2)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await until(lambda: http2.resets == [http2.requests[1][1]])
        assert (await client.get("/echo")).status_code == 200
    assert http2.raw.accepted == 1


async def test_responses_that_are_given_up_take_nothing_from_the_connections_window(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    async with connect() as client:
        for _ in range(5):
            async with client.stream("GET", f"/big/{MORE_THAN_A_WINDOW}") as response:
                async for _part in response.aiter_bytes():
                    break
                await asyncio.sleep(0.05)  # what is under way arrives, and nobody takes it
        assert len((await client.get("/big/1000000")).content) == 1_000_000
    assert http2.raw.accepted == 1
    assert len(http2.resets) == 5


async def test_the_end_of_one_calls_time_is_no_end_for_the_others(http2: HTTP2Upstream, connect: Connect) -> None:
    async with connect() as client:
        await client.get("/echo")
        impatient = asyncio.create_task(client.get("/hang", timeout=httpx.Timeout(5.0, read=0.1)))
        await until(lambda: len(http2.requests) == 2)
        patient = asyncio.create_task(client.get("/later"))
        await until(lambda: len(http2.requests) == 3)
        with pytest.raises(HTTPTimeoutError) as raised:
            await impatient
        assert raised.value.phase == "read"
        http2.answer_later.set()
        assert (await patient).status_code == 200


async def test_a_call_whose_upload_is_not_taken_ends_alone(certs: dict[str, str]) -> None:
    config = ClientConfig(http2=True, ca_file=certs["ca.pem"], retry_attempts=1)
    body = bytes(2**25)  # more than the kernel takes
    async with (
        serve_http2(server_context(certs), window=2**26) as http2,
        AsyncHTTPClient(http2.url(), config=config) as client,
    ):
        other = asyncio.create_task(client.get("/later"))
        await until(lambda: http2.requests)
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.post("/deaf", content=body, timeout=httpx.Timeout(5, write=0.1))
        assert caught.value.phase == "write"
        http2.answer_later.set()
        assert (await other).status_code == 200
        assert http2.raw.accepted == 1


async def test_a_connection_on_which_a_calls_time_ended_gets_no_further_calls(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    async with connect() as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("/hang", timeout=httpx.Timeout(5.0, read=0.1))
        assert (await client.get("/echo")).status_code == 200
    assert http2.raw.accepted == 2


async def test_a_connection_that_the_server_has_closed_while_it_was_idle_is_not_used(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    async with connect() as client:
        await client.get("/echo")
        for writer in http2.raw.writers:
            writer.close()
        await http2.raw.all_closed()
        assert (await client.post("/echo")).status_code == 200
    assert http2.raw.accepted == 2


@pytest.mark.parametrize("given_up", [0, 2])
async def test_a_call_that_is_given_up_while_the_connection_is_opened_costs_the_others_nothing(
    http2: HTTP2Upstream, connect: Connect, given_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_tls = AsyncioStream.start_tls
    shaking, go_on = asyncio.Event(), asyncio.Event()

    async def slow(stream: AsyncioStream, *args: Any, **options: Any) -> Any:
        shaking.set()
        await go_on.wait()
        return await start_tls(stream, *args, **options)

    monkeypatch.setattr(AsyncioStream, "start_tls", slow)
    async with connect() as client:
        calls = [asyncio.create_task(client.post("/echo")) for _ in range(5)]
        await shaking.wait()
        calls[given_up].cancel()
        await asyncio.wait([calls[given_up]])
        go_on.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        for _ in range(3):
            await client.post("/echo")
    assert [type(call) for call in done].count(asyncio.CancelledError) == 1
    assert [getattr(call, "status_code", None) for call in done].count(200) == 4
    assert http2.raw.accepted == 1
    await http2.raw.all_closed()


async def test_one_connection_survives_hundreds_of_calls_that_are_given_up(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    chance = random.Random(7)
    left = 400

    async def call(client: AsyncHTTPClient) -> None:
        path, body = (
            chance.choice(["/echo", "/big/200000", "/big/3000000", "/hang"]),
            bytes(chance.choice([0, 100_000])),
        )
        if chance.random() < 0.5:
            await client.post(path, content=body)
        else:
            async with client.stream("POST", path, content=body) as response:
                async for _part in response.aiter_bytes():
                    pass

    async def worker(client: AsyncHTTPClient, number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            seconds = chance.uniform(0, 0.03)
            match number % 3:
                case 0:
                    with anyio.move_on_after(seconds):
                        await call(client)
                case 1:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await call(client)
                case _:  # the second cancellation strikes while the first is being dealt with
                    task = asyncio.create_task(call(client))
                    await asyncio.sleep(seconds)
                    task.cancel()
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])

    async with connect(max_connections=3) as client:
        await client.get("/echo")  # a call that is given up while it opens the connection leaves that to another one
        await asyncio.gather(*(worker(client, number) for number in range(30)))
        last = await asyncio.gather(*(client.post("/echo", content=bytes(1000)) for _ in range(30)))
        assert [response.json()["size"] for response in last] == [1000] * 30
        assert client.lifecycle.in_flight == 0
    assert http2.raw.accepted == 1
    await http2.raw.all_closed()


async def test_a_body_that_can_be_read_once_is_not_sent_empty_when_the_server_leaves_the_request_out(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    async with connect(retry_attempts=3, retry_backoff_factor=0) as client:
        await client.get("/echo")
        with pytest.raises(HTTPRequestError, match="has refused the request") as raised:
            await client.post("/left-out", content=parts())
    assert not raised.value.may_have_run
    assert [path for _, _, path in http2.requests] == ["/echo", "/left-out"]


async def test_a_broken_answer_is_the_servers_fault(http2: HTTP2Upstream, connect: Connect) -> None:
    async with connect() as client:
        with pytest.raises(HTTPRequestError) as raised:
            await client.get("/broken")
    assert raised.value.transient


async def test_an_old_connection_gets_no_further_calls_while_it_is_in_use(
    http2: HTTP2Upstream, connect: Connect
) -> None:
    async with connect(max_connection_age=0.01) as client:
        await client.get("/echo")
        slow = asyncio.create_task(client.get("/later"))
        await until(lambda: len(http2.requests) == 2)
        await asyncio.sleep(0.02)
        before = http2.raw.accepted
        await client.get("/echo")
        assert http2.raw.accepted == before + 1
        http2.answer_later.set()
        assert (await slow).status_code == 200


async def test_connections_end_at_their_age_also_with_http2(http2: HTTP2Upstream, connect: Connect) -> None:
    async with connect(max_connection_age=0.01) as client:
        for _ in range(3):
            await client.get("/echo")
            await asyncio.sleep(0.02)
    assert http2.raw.accepted == 3
