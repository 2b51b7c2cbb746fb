"""Every named fault: the call is back in time, with an answer or an error of ours, and the client works on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from itertools import product

import brotli
import pytest
import zstandard

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import AuthenticationError, HTTPClientError, HTTPRequestError
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from tests.faults import NOISE, Fault, named_faults, nothing_left
from tests.hostile.upstream import HostileUpstream

TIMEOUT = 0.1
TOTAL = 0.2
LIMIT = 1024 * 1024
STRIKING_LATER = ("/trap", "/respond-then-reset", "/idle-close", "/desync?wait", "/bad-head", "/chunked-bad", "/early")
"""Faults that the next call on the same connection may meet."""
UPLOAD = bytes(3 * 1024 * 1024)


def a_client(*, retries: bool, **fields: object) -> AsyncHTTPClient:
    return AsyncHTTPClient(
        config=ClientConfig(
            timeout=TIMEOUT,
            total_timeout=TOTAL,
            retry_attempts=3 if retries else 1,
            retry_backoff_factor=0.01,
            retry_max_delay=0.5,
            max_response_bytes=LIMIT,
            verify_ssl=False,
            max_connections=2,
            **fields,  # type: ignore[arg-type]
        )
    )


async def body_of(
    client: AsyncHTTPClient, method: str, url: str, *, streamed: bool, content: bytes | None = None
) -> bytes:
    if not streamed:
        return (await client.request(method, url, content=content)).content
    async with client.stream(method, url, content=content) as response:
        return b"".join([chunk async for chunk in response.aiter_bytes()])


async def meet(fault: Fault, upstream: HostileUpstream, method: str, *, retries: bool, streamed: bool) -> None:
    async with a_client(retries=retries, follow_redirects=True) as client:
        content = UPLOAD if fault.upload else b"{}"
        started = time.monotonic()
        try:
            body = await body_of(client, method, fault.url(upstream), content=content, streamed=streamed)
        except HTTPClientError:
            pass
        else:
            assert len(body) <= LIMIT
        assert time.monotonic() - started < TOTAL + 0.1 + NOISE
        while fault.path.startswith("/desync?wait") and upstream.key("/desync")["in_flight"]:
            await asyncio.sleep(0.001)  # behind the next request, the second response could not be told from its answer
        if fault.path.startswith(STRIKING_LATER):
            for _ in range(2):
                with contextlib.suppress(HTTPRequestError):
                    await client.get(upstream.url("/ok"))
        after = await client.get(upstream.url(f"/echo/after?{method}"), timeout=5.0, total_timeout=10.0)
        assert after.json_data["target"] == f"/echo/after?{method}"


@pytest.mark.parametrize("fault", [*named_faults()], ids=str)
async def test_a_call_that_meets_a_fault_ends_in_time_and_leaves_nothing(
    upstream: HostileUpstream, fault: Fault
) -> None:
    async with nothing_left(upstream):
        await asyncio.gather(
            *(
                meet(fault, upstream, method, retries=retries, streamed=streamed)
                for method, retries, streamed in product(("GET", "POST"), (True, False), (True, False))
            )
        )


# -- bodies that are larger than they look


@contextlib.asynccontextmanager
async def responsive() -> AsyncIterator[None]:
    """The event loop is never held up for more than 50 ms of its thread's own processor time."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            worst = max(worst, time.thread_time() - before)

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.01)
    try:
        yield
    finally:
        await asyncio.sleep(0.002)
        ticking.cancel()
    assert worst < 0.05


BOMBS = ("gzip?mb=64", "deflate?mb=64", "br", "zstd?mb=64", "nested?mb=128", "gzip?mb=64&status=500")


@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_body_is_bounded_inside_its_decoder(upstream: HostileUpstream, bomb: str, streamed: bool) -> None:
    url = upstream.url(f"/bomb/{bomb}")
    config = ClientConfig(max_response_bytes=LIMIT, retry_attempts=1)
    async with nothing_left(upstream), AsyncHTTPClient(config=config) as client:
        tracemalloc.start()
        try:
            async with responsive():
                with pytest.raises(HTTPRequestError, match="larger than max_response_bytes"):
                    await body_of(client, "GET", url, streamed=streamed)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < LIMIT + 3 * 1024 * 1024


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_body_without_a_limit_is_decoded_without_holding_up_the_loop(
    upstream: HostileUpstream, bomb: str
) -> None:
    config = ClientConfig(retry_attempts=1, timeout=60.0)
    received = 0
    async with (
        AsyncHTTPClient(upstream.url(), config=config) as client,
        responsive(),
        client.stream("GET", f"/bomb/{bomb}") as response,
    ):
        async for chunk in response.aiter_bytes():
            received += len(chunk)
    assert received == int(response.headers["x-decoded-length"])


async def test_a_limit_in_time_ends_the_decoding(upstream: HostileUpstream) -> None:
    config = ClientConfig(retry_attempts=1, timeout=0.1)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        started = time.monotonic()
        with pytest.raises(HTTPRequestError, match=r"within 0\.1 s"):
            await client.get("/bomb/nested?mb=4096")
        assert time.monotonic() - started < 0.2 + NOISE


async def test_a_body_of_exactly_the_limit_is_read(upstream: HostileUpstream) -> None:
    config = ClientConfig(max_response_bytes=1024)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        assert len((await client.get("/large?bytes=1024")).content) == 1024
        with pytest.raises(HTTPRequestError, match=r"larger than max_response_bytes \(1024\)"):
            await client.get("/large?bytes=1025")
        assert len((await client.get("/large?bytes=1024&chunked=1")).content) == 1024


async def test_a_body_that_decodes_to_nothing_is_bounded_on_the_wire(upstream: HostileUpstream) -> None:
    nothing = gzip.compress(b"") * 50_000
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(nothing)}\r\n\r\n".encode()
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(max_response_bytes=1024)) as client, responsive():
        with pytest.raises(HTTPRequestError, match="larger than max_response_bytes"):
            await client.post("/raw", content=head + nothing)


async def test_many_tiny_chunks_do_not_hold_up_the_loop(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client, responsive():
        assert len((await client.get("/tiny-chunks?n=50000")).content) == 50_000


HEADS = (
    "/huge-header", "/many-headers", "/infinite-headers", "/long-status-line", "/interim?n=-1", "/redirect-grow",
    "/chunked-bad/extension", "/chunked-bad/trailers", "/bad-head/cl-huge", "/json/deep", "/json/deep-object",
    "/json/bigint", "/cookie/set?n=400",
)  # fmt: skip


@pytest.mark.parametrize("path", HEADS)
async def test_nothing_around_a_body_holds_up_the_loop(upstream: HostileUpstream, path: str) -> None:
    config = ClientConfig(
        retry_attempts=1, timeout=0.3, follow_redirects=True, persist_cookies=True, max_response_bytes=LIMIT
    )
    async with AsyncHTTPClient(upstream.url(), config=config) as client, responsive():
        with contextlib.suppress(HTTPClientError, ValueError):
            _ = (await client.get(path)).json_data


async def test_bodies_that_nobody_asked_to_see_are_bounded_too(upstream: HostileUpstream) -> None:
    """That of a redirect, and that of a token endpoint."""
    bomb = gzip.compress(bytes(64 * LIMIT))
    head = f"Location: /ok\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    config = ClientConfig(max_response_bytes=LIMIT, retry_attempts=1, follow_redirects=True)
    auth = OAuth2ClientCredentials(upstream.url("/bomb/gzip?mb=64"), "id", "secret")
    async with AsyncHTTPClient(upstream.url(), config=config) as client, responsive():
        with pytest.raises(HTTPRequestError, match="larger than max_response_bytes"):
            await client.post("/raw", content=f"HTTP/1.1 303 Go\r\n{head}".encode() + bomb)
        with pytest.raises(AuthenticationError, match="larger than max_response_bytes"):
            await client.get("/ok", auth=auth)


@pytest.mark.parametrize("layers", [5, 6, 1000])
async def test_five_codings_are_the_most(upstream: HostileUpstream, layers: int) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        if layers == 5:
            assert (await client.get("/bomb/layers?layers=5")).content == b"small"
        else:
            with pytest.raises(HTTPRequestError, match="content codings, more than 5"):
                await client.get(f"/bomb/layers?layers={layers}")


@pytest.mark.parametrize("name", ["truncated", "br-truncated", "zstd-truncated", "corrupt", "lie", "double"])
@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
async def test_a_broken_coding_is_an_error_and_not_repeated(
    upstream: HostileUpstream, name: str, streamed: bool
) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        with pytest.raises(HTTPRequestError):
            await body_of(client, "GET", f"/coding/{name}?key={name}", streamed=streamed)
    assert upstream.key(name)["count"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("members", b"hello world"), ("empty", b""), ("unknown", b"plain bytes"), ("trailing", b"hello world " * 1000)],
)
async def test_an_odd_coding_is_read_as_far_as_it_goes(upstream: HostileUpstream, name: str, content: bytes) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        assert (await client.get(f"/coding/{name}")).content == content


def zlib_of(data: bytes, wbits: int) -> bytes:
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(data) + compressor.flush()


TEXT = b"".join(b"%d," % number for number in range(40_000))


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("deflate", zlib_of(TEXT, 15)),
        ("deflate", zlib_of(TEXT, -15)),
        ("br", brotli.compress(TEXT)),
        ("zstd", zstandard.compress(TEXT)),
        ("zstd", zstandard.compress(TEXT[:1000]) + zstandard.compress(TEXT[1000:])),
        ("gzip, br", brotli.compress(gzip.compress(TEXT))),
        ("identity, gzip", gzip.compress(TEXT)),
    ],
)
async def test_every_coding_is_undone(upstream: HostileUpstream, coding: str, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with AsyncHTTPClient(upstream.url()) as client:
        assert (await client.post("/raw?then=keep", content=head + body)).content == TEXT
        async with client.stream("POST", "/raw?then=keep", content=head + body) as response:
            chunks = [chunk async for chunk in response.aiter_bytes(1000)]
        assert {len(chunk) for chunk in chunks[:-1]} == {1000}
        assert b"".join(chunks) == TEXT
