"""The transport under an ordinary `httpx.AsyncClient`, and alone by `fetch`."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import httpx
import pytest

from fastapi_http_client.engine.errors import ExchangeFacts, ResponseTooLargeError, exchange_facts
from fastapi_http_client.engine.response import ResponseStream
from fastapi_http_client.engine.transport import AsyncioTransport
from tests.engine.conftest import MakeClient
from tests.engine.raw import (
    OK,
    Handler,
    Reader,
    Writer,
    answer,
    close,
    hang,
    read_head,
    read_request,
    refuse_early,
    reset,
    serve,
)
from tests.hostile.upstream import HostileUpstream

TransportOf = Callable[[httpx.AsyncClient], AsyncioTransport]


async def echo(reader: Reader, writer: Writer) -> None:
    """Answer with the request's head and body."""
    while True:
        head, body = await read_request(reader)
        text = head + body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


# -- answers


async def test_a_response_as_httpx_users_expect_it(make_client: MakeClient) -> None:
    body = b'{"a": 1}'
    head = b"HTTP/1.1 201 Well Done\r\nContent-Type: application/json\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 8\r\n\r\n"
    async with serve(answer(head + body)) as up, make_client() as client:
        response = await client.get(up.url("/path?q=1"))
        assert response.status_code == 201
        assert response.reason_phrase == "Well Done"
        assert response.http_version == "HTTP/1.1"
        assert response.json() == {"a": 1}
        assert response.headers.get_list("x-a") == ["1", "2"]
        assert response.headers.raw[0] == (b"Content-Type", b"application/json")
        assert response.elapsed.total_seconds() > 0
        stream = response.extensions["network_stream"]
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", up.port)
        assert stream.get_extra_info("ssl_object") is None


def facts_of(error: BaseException) -> ExchangeFacts:
    """Without the time that it took, which is another each time."""
    facts = exchange_facts(error)
    assert facts is not None
    assert 0 <= facts.lasted < 5
    return facts._replace(lasted=math.inf)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encoded", [False, True])
async def test_fetch_leaves_a_response_as_httpx_would(
    make_client: MakeClient, transport_of: TransportOf, framing: str, encoded: bool
) -> None:
    """All that can be seen of it equals what the same transport gives under httpx's own client."""
    body = gzip.compress(b"hello" * 100) if encoded else b"hello" * 100
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=latin-1\r\n" + encoded * b"Content-Encoding: gzip\r\n"
    message = {
        "length": head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        "chunked": head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
        "close": head + b"\r\n" + body,
    }[framing]
    async with serve(answer(message, then=close if framing == "close" else hang)) as up:
        client = make_client(max_connections=1, keepalive_expiry=0)
        expected = await client.get(up.url())
        request = client.build_request("GET", up.url())
        got = await transport_of(client).fetch(request)
        limited = await transport_of(client).fetch(client.build_request("GET", up.url()), max_bytes=500)
        for response in (got, limited):
            assert response.is_closed is not encoded
            await response.aread()
            assert response.request.url == up.url()
            for name in ("status_code", "headers", "content", "text", "is_closed", "is_stream_consumed", "encoding"):
                assert getattr(response, name) == getattr(expected, name), name
            assert response.num_bytes_downloaded == expected.num_bytes_downloaded == len(body)
            assert await response.aread() == response.read() == expected.content
            assert [part async for part in response.aiter_bytes(200)] == [
                part async for part in expected.aiter_bytes(200)
            ]
            await response.aclose()
            with pytest.raises(httpx.StreamConsumed):
                _ = [part async for part in response.aiter_raw()]
            assert pickle.loads(pickle.dumps(response)).content == expected.content


@pytest.mark.parametrize(
    ("message", "method", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nok\r\n0\r\nX: y\r\n\r\n", "GET", b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hm\r\nA: b\r\n\r\n" + OK, "POST", b"ok"),
    ],
)
async def test_every_way_to_end_a_response_leaves_the_connection_usable(
    make_client: MakeClient, transport_of: TransportOf, message: bytes, method: str, body: bytes
) -> None:
    async with serve(answer(message)) as up, make_client() as client:
        for _ in range(2):
            assert (await client.request(method, up.url())).content == body
            request = client.build_request(method, up.url())
            assert (await transport_of(client).fetch(request)).content == body
        assert up.accepted == 1


async def test_a_response_that_arrives_byte_by_byte(make_client: MakeClient) -> None:
    async def drip(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        for byte in b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await hang(reader, writer)

    async with serve(drip) as up, make_client() as client:
        assert (await client.get(up.url())).text == "ok"


async def test_a_large_body_arrives_whole(make_client: MakeClient, transport_of: TransportOf) -> None:
    body = os.urandom(3_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serve(answer(head + body)) as up, make_client() as client:
        assert (await client.get(up.url())).content == body
        assert (await transport_of(client).fetch(client.build_request("GET", up.url()))).content == body
        assert up.accepted == 1


@pytest.mark.parametrize("surplus", [b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"])
async def test_what_follows_a_large_body_never_reaches_the_next_call(
    make_client: MakeClient, transport_of: TransportOf, surplus: bytes
) -> None:
    body = os.urandom(3_000_000)
    message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body + surplus
    async with serve(answer(message)) as up, make_client() as client:
        for n in range(3):
            response = await transport_of(client).fetch(client.build_request("GET", up.url()))
            assert response.content == body
            assert up.accepted == n + 1


async def test_a_large_body_that_breaks_off_is_an_error(make_client: MakeClient, transport_of: TransportOf) -> None:
    message = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + bytes(2_000_000)
    async with serve(answer(message, then=close)) as up, make_client() as client:
        with pytest.raises(httpx.RemoteProtocolError, match=r"\(2000000 bytes received\)"):
            await transport_of(client).fetch(client.build_request("GET", up.url()))


async def test_a_stream_is_delivered_as_it_comes(make_client: MakeClient) -> None:
    more = asyncio.Event()

    async def in_steps(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        await more.wait()
        writer.write(b"two")
        await hang(reader, writer)

    async with serve(in_steps) as up, make_client() as client, client.stream("GET", up.url()) as response:
        parts = response.aiter_raw()
        assert await anext(parts) == b"one"
        more.set()
        assert await anext(parts) == b"two"
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_a_slow_reader_slows_the_server_down(make_client: MakeClient) -> None:
    sent = 0

    async def pour(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(500):
            writer.write(bytes(100_000))
            await writer.drain()
            sent += 100_000
        await hang(reader, writer)

    async with serve(pour) as up, make_client() as client, client.stream("GET", up.url()) as response:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 30_000_000, "the kernel's buffers and ours, not the whole"
        size = 0
        async for part in response.aiter_raw():
            size += len(part)
        assert size == 50_000_000


async def test_leaving_a_stream_early_closes_its_connection(make_client: MakeClient) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"
    async with serve(answer(head, then=hang)) as up, make_client() as client:
        async with client.stream("GET", up.url()) as response:
            async for _ in response.aiter_raw():
                break
        await up.all_closed()


async def test_a_body_that_nobody_reads_gives_its_connection_back_once_complete(make_client: MakeClient) -> None:
    async with serve(answer(OK)) as up, make_client(max_connections=1) as client:
        async with client.stream("GET", up.url()) as response:
            assert (await client.get(up.url())).text == "ok"
            assert await response.aread() == b"ok"
        assert up.accepted == 1


# -- requests


async def test_head_and_small_body_go_out_together(make_client: MakeClient) -> None:
    async def one_read(reader: Reader, writer: Writer) -> None:
        got = await reader.read(65536)
        assert got.endswith(b'{"a":1}')
        writer.write(OK)
        await hang(reader, writer)

    async with serve(one_read) as up, make_client() as client:
        assert (await client.post(up.url(), json={"a": 1})).text == "ok"


async def test_the_request_target_can_be_replaced(make_client: MakeClient) -> None:
    async with serve(echo) as up, make_client() as client:
        response = await client.request("OPTIONS", up.url("/x"), extensions={"target": b"*"})
        assert response.content.startswith(b"OPTIONS * HTTP/1.1\r\n")


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 262_144, 3_000_000])
async def test_bodies_of_any_size_are_sent_whole(make_client: MakeClient, size: int) -> None:
    body = os.urandom(size)

    async def parts() -> AsyncIterator[bytes]:
        yield b""
        for start in range(0, size, 50_000):
            yield body[start : start + 50_000]
            yield b""

    def decoded(chunks: bytes) -> bytes:
        out = b""
        while True:
            length, _, chunks = chunks.partition(b"\r\n")
            if not int(length, 16):
                return out
            out += chunks[: int(length, 16)]
            chunks = chunks[int(length, 16) + 2 :]

    async def sink(reader: Reader, writer: Writer) -> None:
        while True:
            head = (await read_head(reader)).lower()
            if b"chunked" in head:
                raw = b""
                while not raw.endswith(b"\r\n0\r\n\r\n") and raw != b"0\r\n\r\n":
                    raw += await reader.read(1 << 20)
                got = decoded(raw)
            else:
                got = await reader.readexactly(size)
            writer.write(OK if got == body else b"HTTP/1.1 400 Different\r\nContent-Length: 0\r\n\r\n")

    async with serve(sink) as up, make_client() as client:
        assert (await client.put(up.url(), content=body)).status_code == 200
        assert (await client.put(up.url(), content=parts())).status_code == 200
        announced = await client.put(up.url(), content=parts(), headers={"Content-Length": str(size)})
        assert announced.status_code == 200
        assert up.accepted == 1


@pytest.mark.parametrize(("announced", "message"), [(3, "larger than its"), (9, "4 bytes smaller")])
async def test_an_iterator_must_yield_what_its_length_announces(
    make_client: MakeClient, announced: int, message: str
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cde"

    async with serve(hang) as up, make_client() as client:
        with pytest.raises(httpx.LocalProtocolError, match=message):
            await client.post(up.url(), content=parts(), headers={"Content-Length": str(announced)})
        await up.all_closed()


async def test_an_error_of_the_callers_iterator_is_raised_as_it_is(make_client: MakeClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"ab"
        raise KeyError("mine")

    async with serve(hang) as up, make_client() as client:
        with pytest.raises(KeyError, match="mine"):
            await client.post(up.url(), content=parts())
        await up.all_closed()


@pytest.mark.parametrize("then", [close, reset, hang])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_upload_refused_early_gives_the_refusal(
    make_client: MakeClient, then: Handler, streamed: bool
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(50_000)

    async with serve(refuse_early(then)) as up, make_client(timeout=2.0) as client:
        for _ in range(5):
            response = await client.post(up.url(), content=parts() if streamed else bytes(10_000_000))
            assert response.status_code == 413
            assert response.text == "big"
        assert up.accepted == 5


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_refusal_is_found_behind_the_reset_that_follows_it(
    make_client: MakeClient, upstream: HostileUpstream, then: str
) -> None:
    """The answer and the reset both arrive while the event loop is busy, and the next write meets the reset first."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(1000)
            time.sleep(0.1)  # noqa: ASYNC251 - the loop is busy, not idle
        yield bytes(1000)

    async with make_client() as client:
        response = await client.post(upstream.url(f"/early?then={then}"), content=parts())
        assert response.status_code == 413


@pytest.mark.parametrize(
    ("request_options", "message"),
    [
        ({"headers": {"X-A": "a\r\nEvil: 1"}}, "illegal byte"),
        ({"headers": {"X-A": "a\nb"}}, "illegal byte"),
        ({"headers": {"X-A": "a\rb"}}, "illegal byte"),
        ({"headers": {"X-A": "a\0b"}}, "illegal byte"),
        ({"headers": {b"X-A\r\nEvil: 1": b"a"}}, "name of a header"),
        ({"headers": {"X A": "a"}}, "name of a header"),
        ({"headers": {"X:A": "a"}}, "name of a header"),
        ({"headers": {"": "a"}}, "name of a header"),
        ({"method": "GET / HTTP/1.1\r\nEvil: 1\r\n\r\nGET"}, "method"),
        ({"method": ""}, "method"),
        ({"method": "GÉT"}, "method"),
        ({"extensions": {"target": b"/a b"}}, "target"),
        ({"extensions": {"target": b"/a\r\nEvil: 1"}}, "target"),
        ({"extensions": {"target": b""}}, "target"),
        ({"content": b"abc", "headers": {"Content-Length": "2"}}, "3 bytes, but Content-Length is 2"),
        ({"content": b"abc", "headers": {"Content-Length": "4"}}, "3 bytes, but Content-Length is 4"),
        ({"content": b"abc", "headers": {"Content-Length": "+3"}}, "no number"),
        ({"content": b"abc", "headers": {"Content-Length": "3" * 20}}, "no number"),
        ({"content": b"abc", "headers": {"Transfer-Encoding": "chunked"}}, "both"),
        ({"content": b"abc", "headers": {"Transfer-Encoding": "gzip"}}, "only Transfer-Encoding"),
        ({"headers": [("Content-Length", "0"), ("Content-Length", "0")]}, "more than one"),
        ({"headers": [("Host", "a"), ("Host", "b")]}, "exactly one Host"),
    ],
)
async def test_a_malformed_request_is_refused_before_anything_is_sent(
    make_client: MakeClient, request_options: dict[str, object], message: str
) -> None:
    async with serve(echo) as up, make_client() as client:
        with pytest.raises(httpx.LocalProtocolError, match=message) as caught:
            await client.request(**{"method": "POST", "url": up.url(), **request_options})  # type: ignore[arg-type]
        assert exchange_facts(caught.value) == ExchangeFacts(False, False, False)
        assert up.accepted == 0


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "httpx://127.0.0.1/", "//127.0.0.1/", "http:///x", "/x"])
async def test_other_schemes_are_refused(transport_of: TransportOf, make_client: MakeClient, url: str) -> None:
    transport = transport_of(make_client())
    with pytest.raises(httpx.UnsupportedProtocol):
        await transport.fetch(httpx.Request("GET", url))
    with pytest.raises(httpx.UnsupportedProtocol):
        await transport.fetch(httpx.Request("CONNECT", "http://127.0.0.1/"))


class EndlessExchange:
    """An exchange whose server is always ahead of its reader."""

    complete = False
    parts = 0

    async def wait_for_body(self) -> bytes:
        self.parts += 1
        return b"more"

    def abandon(self) -> None: ...


async def test_a_server_that_is_always_ahead_leaves_a_turn_to_others() -> None:
    exchange = EndlessExchange()
    with anyio.move_on_after(0):  # cancels again and again until it finds the task waiting
        async for _ in ResponseStream(exchange):  # type: ignore[arg-type]
            pass
    assert exchange.parts < 10


# -- failures


@pytest.mark.parametrize(
    ("sent", "then", "kind"),
    [
        (b"", close, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nX", close, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", close, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", close, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n", hang, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", hang, httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", hang, httpx.RemoteProtocolError),
        (b"", reset, httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", reset, httpx.ReadError),
        (b"HTTP/1.1 200 OK\r\n\r\nok", reset, httpx.ReadError),
    ],
)
async def test_failures_are_httpx_errors_with_a_text(
    make_client: MakeClient, transport_of: TransportOf, sent: bytes, then: Handler, kind: type[httpx.RequestError]
) -> None:
    async def fail(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(0.02)
        await then(reader, writer)

    async with serve(fail) as up, make_client() as client:
        for call in (client.get, lambda url: transport_of(client).fetch(client.build_request("GET", url))):
            with pytest.raises(kind) as caught:
                await call(up.url())
            assert type(caught.value) is kind
            assert str(caught.value)
            assert caught.value.request.url == up.url()
            facts = facts_of(caught.value)
            assert facts._replace(head=None) == ExchangeFacts(True, bool(sent), False)
            assert facts.head in (None, (200, "1.1"))
        await up.all_closed()


async def test_an_ipv6_literal(make_client: MakeClient) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with serve(answer(OK), host="::1") as up, make_client() as client:
        assert (await client.get(up.url())).text == "ok"


async def test_the_keep_alive_race_can_be_told_from_other_failures(make_client: MakeClient) -> None:
    async with serve(answer(OK, b"", then=close)) as up, make_client() as client:
        await client.get(up.url())
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await client.get(up.url())
        assert facts_of(caught.value) == ExchangeFacts(
            request_sent=True, response_started=False, connection_reused=True
        )


async def test_nobody_listens(make_client: MakeClient) -> None:
    async with serve(hang) as up:
        url = up.url()
    with pytest.raises(httpx.ConnectError, match=r"connecting to 127\.0\.0\.1:\d+ failed: ") as caught:
        await make_client().get(url)
    assert exchange_facts(caught.value) == ExchangeFacts(False, False, False)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid"])
async def test_a_name_that_cannot_be_resolved_is_a_connect_error(make_client: MakeClient, host: str) -> None:
    with pytest.raises(httpx.ConnectError, match=r"\w"):
        await make_client().get(f"http://{host}/")


async def test_a_server_that_closes_at_once(make_client: MakeClient) -> None:
    async with serve(close) as up, make_client() as client:
        for _ in range(10):
            with pytest.raises(httpx.TransportError, match=r"\w"):
                await client.get(up.url())


async def test_a_server_that_speaks_another_protocol_first(make_client: MakeClient) -> None:
    async def banner(reader: Reader, writer: Writer) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await hang(reader, writer)

    async with serve(banner) as up, make_client() as client:
        for _ in range(5):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(up.url())


# -- limits


async def test_a_body_over_the_limit_is_an_error(make_client: MakeClient, transport_of: TransportOf) -> None:
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    async with serve(answer(plain)) as up, make_client() as client:
        with pytest.raises(ResponseTooLargeError, match="larger than 100000 bytes") as caught:
            await transport_of(client).fetch(client.build_request("GET", up.url()), max_bytes=100_000)
        assert isinstance(caught.value, httpx.ReadError)
        assert caught.value.request.url == up.url()


async def test_an_encoded_body_is_left_to_the_caller(make_client: MakeClient, transport_of: TransportOf) -> None:
    body = gzip.compress(b"hello")
    message = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serve(answer(message)) as up, make_client() as client:
        response = await transport_of(client).fetch(client.build_request("GET", up.url()))
        assert not response.is_closed
        assert b"".join([part async for part in response.aiter_raw()]) == body
        response = await transport_of(client).fetch(client.build_request("GET", up.url()))
        assert await response.aread() == b"hello"


async def test_a_large_body_with_a_limit_above_it(make_client: MakeClient, transport_of: TransportOf) -> None:
    """Received in many parts, some of them long before the last."""
    body = os.urandom(700_000)

    async def in_parts(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n")
        for start in range(0, len(body), 100_000):
            await asyncio.sleep(0.005)
            writer.write(body[start : start + 100_000])
        await hang(reader, writer)

    async with serve(in_parts) as up, make_client() as client:
        response = await transport_of(client).fetch(client.build_request("GET", up.url()), max_bytes=700_000)
        assert response.content == body
        assert response.num_bytes_downloaded == 700_000


async def test_a_body_that_cannot_be_decoded_is_a_decoding_error(
    make_client: MakeClient, transport_of: TransportOf
) -> None:
    message = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"
    async with serve(answer(message)) as up, make_client() as client:
        for limit in (None, 1000):
            response = await transport_of(client).fetch(client.build_request("GET", up.url()), max_bytes=limit)
            with pytest.raises(httpx.DecodingError):
                await response.aread()
        assert up.accepted == 1


# -- event loops and the end


async def test_a_transport_may_be_closed_twice_while_a_connection_is_being_opened(
    make_client: MakeClient, transport_of: TransportOf
) -> None:
    async with serve(hang) as up:
        client = make_client()
        call = asyncio.create_task(client.get(up.url().replace("http:", "https:")))
        while not up.accepted:
            await asyncio.sleep(0.001)
        transport = transport_of(client)
        closings = []
        for _ in range(6):  # at every step of the first
            closings.append(asyncio.create_task(transport.aclose()))
            await asyncio.sleep(0)
        await asyncio.gather(*closings)
        with pytest.raises(RuntimeError, match="has been closed"):
            await call


async def test_a_closed_transport_says_so(make_client: MakeClient, transport_of: TransportOf) -> None:
    async with serve(answer(OK)) as up:
        client = make_client()
        transport = transport_of(client)
        await client.get(up.url())
        await transport.aclose()
        await transport.aclose()
        await up.all_closed()
        with pytest.raises(RuntimeError, match="has been closed"):
            await client.get(up.url())


async def test_closing_ends_calls_that_are_running(make_client: MakeClient, transport_of: TransportOf) -> None:
    async with serve(hang) as up:
        client = make_client(max_connections=1)
        running = asyncio.create_task(client.get(up.url()))
        waiting = asyncio.create_task(client.get(up.url()))
        await asyncio.sleep(0.05)
        await transport_of(client).aclose()
        with pytest.raises(httpx.ReadError, match="closed"):
            await running
        with pytest.raises(RuntimeError, match="has been closed"):
            await waiting
        await up.all_closed()


async def test_closing_ends_calls_that_are_connecting(make_client: MakeClient, transport_of: TransportOf) -> None:
    async with serve(hang) as up:
        client = make_client()
        connecting = asyncio.create_task(client.get(f"https://127.0.0.1:{up.port}/"))
        async with asyncio.timeout(5):
            while not up.open:
                await asyncio.sleep(0.005)
        await transport_of(client).aclose()
        with pytest.raises(RuntimeError, match="has been closed"):
            await connecting
        await up.all_closed()


def test_another_event_loop_is_refused_at_once() -> None:
    transport = AsyncioTransport()

    async def call() -> None:
        async with serve(answer(OK)) as up:
            await transport.fetch(httpx.Request("GET", up.url()))

    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(call())
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(call())
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(transport.aclose())
        first.run_until_complete(transport.aclose())
    finally:
        first.close()
    asyncio.run(transport.aclose())


def test_a_transport_is_made_outside_an_event_loop_without_work() -> None:
    """Neither a loop nor a TLS context is made for a transport that is never used."""
    code = (
        "from fastapi_http_client.engine.transport import AsyncioTransport as T; t = T();print(t._ssl_context, t._pool)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "None"]


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="max_connections"):
        AsyncioTransport(max_connections=0)


async def test_json_of_a_small_answer(make_client: MakeClient) -> None:
    body = json.dumps({"k": "ü" * 10}).encode()
    async with serve(answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)) as up:
        assert (await make_client().get(up.url())).json() == {"k": "ü" * 10}
