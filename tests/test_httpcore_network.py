"""The network under httpcore2: proxies, TLS, early answers, and both directions of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpcore2
import httpx
import pytest

from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPRequestError, RetryExhaustedError
from fastapi_http_client.engine.sockets import HIGH_WATER
from fastapi_http_client.httpcore.network import AsyncioBackend
from tests.engine.raw import (
    OK,
    Handler,
    Reader,
    Upstream,
    Writer,
    answer,
    close,
    hang,
    read_head,
    refuse_early,
    reset,
    serve,
    until,
)
from tests.hostile.certs import server_context
from tests.tunnel import a_tunnel, pump


def a_client(up: Upstream, **fields: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(up.url(), config=ClientConfig(**{"engine": "httpcore", "retry_attempts": 1, **fields}))


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_https_goes_through_a_tunnel_that_sees_nothing_of_it(certs: dict[str, str], scheme: str) -> None:
    to_proxy = server_context(certs) if scheme == "https" else None
    async with serve(answer(OK), ssl_context=server_context(certs)) as up, a_tunnel(to_proxy) as (proxy, heads):
        address = f"{scheme}://user:word@{proxy.host}:{proxy.port}"
        async with a_client(up, proxy=address, ca_file=certs["ca.pem"]) as client:
            for _ in range(3):
                assert (await client.get("/", headers={"X-Secret": "hidden"})).text == "ok"
    assert len(heads) == 1
    assert heads[0].startswith(f"CONNECT 127.0.0.1:{up.port} ".encode())
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in heads[0]
    assert b"hidden" not in heads[0]
    assert up.accepted == 1


@pytest.mark.parametrize("then", [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", b""])
async def test_what_a_proxy_has_refused_was_never_sent_and_is_sent_again(then: bytes) -> None:
    asked: list[bytes] = []

    async def refuse(reader: Reader, writer: Writer) -> None:
        asked.append(await read_head(reader))
        writer.write(then)
        await writer.drain()
        writer.close()

    async with serve(refuse) as proxy:
        config = ClientConfig(proxy=proxy.url(""), retry_backoff_factor=0)
        async with AsyncHTTPClient("https://api.test", config=config) as client:
            with pytest.raises(RetryExhaustedError) as caught:
                await client.post("/payments", json={})
    assert [head.split()[0] for head in asked] == [b"CONNECT"] * 3
    assert isinstance(caught.value.last_error, HTTPRequestError)
    assert not caught.value.last_error.may_have_run


async def test_an_upload_that_nobody_reads_ends_at_the_write_timeout_over_tls(certs: dict[str, str]) -> None:
    async def deaf(reader: Reader, writer: Writer) -> None:
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    config = ClientConfig(engine="httpcore", ca_file=certs["ca.pem"], retry_attempts=1)
    async with serve(deaf, ssl_context=server_context(certs)) as up, AsyncHTTPClient(up.url(), config=config) as client:
        with pytest.raises(httpx.WriteTimeout):
            await client.put("/", content=bytes(2**25), timeout=httpx.Timeout(5, write=0.1))


async def test_a_server_that_is_not_the_one_that_was_asked_for_is_refused_behind_a_tunnel_too(
    certs: dict[str, str],
) -> None:
    async with (
        serve(answer(OK), ssl_context=server_context(certs, name="wronghost")) as up,
        a_tunnel() as (proxy, _),
        a_client(up, proxy=proxy.url(""), ca_file=certs["ca.pem"], max_connections=1, timeout=2.0) as client,
    ):
        for _ in range(2):  # the first one gives its place in the pool back
            with pytest.raises(HTTPRequestError, match=r"TLS handshake.*certificate") as raised:
                await client.post("/")
    assert not raised.value.may_have_run


@contextlib.asynccontextmanager
async def a_socks_proxy() -> AsyncIterator[tuple[Upstream, list[Any]]]:
    """A SOCKS5 proxy (RFC 1928, 1929), and what it was told: user, password, and where to."""
    told: list[Any] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        _, count = await reader.readexactly(2)
        with_password = 2 in await reader.readexactly(count)
        writer.write(b"\5\2" if with_password else b"\5\0")
        if with_password:
            _, size = await reader.readexactly(2)
            told.append(await reader.readexactly(size))
            told.append(await reader.readexactly((await reader.readexactly(1))[0]))
            writer.write(b"\1\0")
        _, _, _, kind = await reader.readexactly(4)
        size = 4 if kind == 1 else (await reader.readexactly(1))[0]
        host = await reader.readexactly(size)
        name = ".".join(map(str, host)) if kind == 1 else host.decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        told.append(name)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\5\0\0\1\0\0\0\0\0\0")
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with serve(handle) as up:
        yield up, told


@pytest.mark.parametrize("secure", [False, True])
async def test_a_socks_proxy_is_told_what_it_has_to_know(certs: dict[str, str], secure: bool) -> None:
    tls = server_context(certs) if secure else None
    async with serve(answer(OK), ssl_context=tls) as up, a_socks_proxy() as (proxy, told):
        config = ClientConfig(proxy=f"socks5h://user:word@127.0.0.1:{proxy.port}", ca_file=certs["ca.pem"])
        async with AsyncHTTPClient(f"{up.scheme}://localhost:{up.port}", config=config) as client:
            for _ in range(3):
                assert (await client.get("/")).text == "ok"
    assert told == [b"user", b"word", "localhost"]
    assert up.accepted == 1


@pytest.mark.parametrize("then", [close, reset])
@pytest.mark.parametrize("secure", [False, True])
async def test_an_upload_refused_early_gives_the_refusal(certs: dict[str, str], then: Handler, secure: bool) -> None:
    """As far as it has arrived before more of the upload is written: a reset that comes first can still destroy it."""
    answered = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield bytes(1000)
        await answered.wait()
        for _ in range(100):
            yield bytes(50_000)

    async def then_tell(reader: Reader, writer: Writer) -> None:
        answered.set()
        await then(reader, writer)

    async with (
        serve(refuse_early(then_tell), ssl_context=server_context(certs) if secure else None) as up,
        a_client(up, ca_file=certs["ca.pem"] if secure else None) as client,
    ):
        for _ in range(5):
            answered.clear()
            response = await client.post("/", content=parts())
            assert (response.status_code, response.text) == (413, "big")


@contextlib.asynccontextmanager
async def a_stream(up: Upstream) -> AsyncIterator[httpcore2.AsyncNetworkStream]:
    stream = await AsyncioBackend().connect_tcp("127.0.0.1", up.port, timeout=1.0)
    try:
        yield stream
    finally:
        await stream.aclose()


async def test_what_nobody_reads_does_not_pile_up() -> None:
    written = 0

    async def flood(reader: Reader, writer: Writer) -> None:
        nonlocal written
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                written += 65536

    async with serve(flood) as up, a_stream(up) as stream:
        before = -1
        async with asyncio.timeout(5):
            while before != written or not written:  # until the server can write no more
                before = written
                await asyncio.sleep(0.1)
        taken, all_of_it = 0, written
        while taken <= all_of_it:  # and then the server goes on
            part = await stream.read(100_000, timeout=1.0)
            assert 0 < len(part) <= 100_000
            taken += len(part)
        assert stream._waiting_bytes < 3 * HIGH_WATER  # type: ignore[attr-defined]


async def test_a_write_that_nobody_takes_is_ended() -> None:
    async with serve(lambda reader, writer: writer.wait_closed()) as up, a_stream(up) as stream:
        with pytest.raises(httpcore2.WriteTimeout):
            await stream.write(bytes(100_000_000), timeout=0.05)


async def test_what_arrived_before_a_reset_is_read_before_the_reset_is_felt() -> None:
    async def speak_and_reset(reader: Reader, writer: Writer) -> None:
        writer.write(b"last words")
        await writer.drain()
        await reader.readexactly(1)
        await reset(reader, writer)

    async with serve(speak_and_reset) as up, a_stream(up) as stream:
        await until(lambda: stream._received)  # type: ignore[attr-defined]
        await stream.write(b".")
        await up.all_closed()
        await until(lambda: stream.has_ended)  # type: ignore[attr-defined]
        assert await stream.read(4) == b"last"
        assert await stream.read(100) == b" words"
        with pytest.raises(httpcore2.ReadError, match="reset"):
            await stream.read(100)
        with pytest.raises(httpcore2.WriteError):
            await stream.write(b".")


async def test_a_second_reader_is_an_error_and_no_hang() -> None:
    async with serve(hang) as up, a_stream(up) as stream:
        first = asyncio.create_task(stream.read(100))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await stream.read(100)
        first.cancel()


async def test_a_connection_on_which_something_waits_is_readable() -> None:
    said = asyncio.Event()

    async def speak(reader: Reader, writer: Writer) -> None:
        await reader.readexactly(1)
        writer.write(b"unasked")
        await writer.drain()
        said.set()
        await hang(reader, writer)

    async with serve(speak) as up, a_stream(up) as stream:
        assert not stream.get_extra_info("is_readable")
        await stream.write(b".")
        await said.wait()
        assert stream.get_extra_info("is_readable")
        assert await stream.read(100) == b"unasked"
        assert not stream.get_extra_info("is_readable")
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", up.port)
        assert stream.get_extra_info("nonsense") is None
        await stream.aclose()
        assert stream.get_extra_info("is_readable")


async def test_a_server_that_speaks_before_the_tls_handshake_is_not_believed(certs: dict[str, str]) -> None:
    async def speak(reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await hang(reader, writer)

    context = ssl.create_default_context(cafile=certs["ca.pem"])
    async with serve(speak) as up, a_stream(up) as stream:
        await until(lambda: stream._received)  # type: ignore[attr-defined]
        with pytest.raises(httpcore2.ConnectError, match="before the handshake"):
            await stream.start_tls(context, server_hostname="localhost", timeout=1.0)
        await up.all_closed()


async def test_a_cancelled_handshake_leaves_no_socket(certs: dict[str, str]) -> None:
    context = ssl.create_default_context(cafile=certs["ca.pem"])
    async with serve(hang) as up, a_stream(up) as stream:
        handshake = asyncio.create_task(stream.start_tls(context, server_hostname="localhost"))
        await asyncio.sleep(0.02)
        handshake.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handshake
        await up.all_closed()


async def test_a_scope_that_is_cancelled_just_as_a_connection_comes_about_costs_no_place_in_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    create = loop.create_connection
    async with serve(answer(OK)) as up, a_client(up, max_connections=1) as client:
        with anyio.CancelScope() as scope, monkeypatch.context() as patched:

            async def create_and_cancel(*args: Any, **options: Any) -> Any:
                created = await create(*args, **options)
                scope.cancel()
                return created

            patched.setattr(loop, "create_connection", create_and_cancel)
            await client.get("/")
        assert scope.cancelled_caught
        await up.all_closed()
        assert (await client.get("/", timeout=1.0)).status_code == 200
