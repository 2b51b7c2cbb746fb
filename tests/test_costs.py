"""What a call may cost, by measures that are the same in every run: counts, not times.

The limits are what the code takes today and a tenth more. Lower them when it takes less; raise one only for a feature
that is worth it to every call. `python -m benchmarks` measures times, and shows what each count is for other clients.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Literal

import httpx
import pytest

from benchmarks import system_calls
from benchmarks.bench import Bench, bench
from benchmarks.subjects import ours
from fastapi_http_client import AsyncHTTPClient, BearerAuth, ClientConfig, Middleware
from fastapi_http_client.call import Call
from tests.engine.raw import OK, Reader, Writer, read_request, serve
from tests.hostile.upstream import HostileUpstream

EVERYTHING_ON = ("ours", "ours-uvloop")


@pytest.fixture(scope="module")
def loopback() -> Iterator[Bench]:
    """An upstream in another process, and subjects in processes of their own."""
    with bench(rounds=1, quick=True) as running:
        yield running


if sys.platform == "linux":
    # CPython asks for its process id whenever it is asked for the running event loop, until 3.12.
    SYSTEM_CALLS = 8 if sys.version_info < (3, 12) else 6

    @pytest.mark.parametrize("subject", EVERYTHING_ON)
    def test_a_get_makes_few_system_calls(loopback: Bench, subject: str) -> None:
        found = system_calls.count(subject, loopback.target(), calls=50)
        assert found.total() / 50 <= SYSTEM_CALLS, f"by number: {found.most_common()}"


@pytest.mark.parametrize(("subject", "of_httpx"), [("ours", 0.175), ("fetch", 0.125)])
def test_a_get_takes_a_fraction_of_the_instructions_of_bare_httpx(
    loopback: Bench, subject: str, of_httpx: float
) -> None:
    """With `sniffio`, for without it httpx's instructions grow with the length of `sys.path`."""
    counts = [loopback.fresh(name, "instructions:probe", loopback.target()) for name in (subject, "httpx-sniffio")]
    assert counts[0] / counts[1] <= of_httpx, f"{counts[0]:.0f} instructions, of httpx {counts[1]:.0f}"


async def test_three_thousand_calls_of_a_hundred_callers_open_a_hundred_connections() -> None:
    """bare httpx opens 3,000 at these limits, which are its defaults: it closes every released connection above 20."""

    async def answer(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.01)
            writer.write(OK)

    async with serve(answer) as up:
        config = ours.full_config(ours.Target(up.url("")))
        assert (config.max_connections, config.max_keepalive_connections) == (100, 20)
        async with AsyncHTTPClient(config=config, auth=BearerAuth("token")) as client:

            async def caller() -> None:
                for _ in range(30):
                    await client.get("/")

            await asyncio.gather(*(caller() for _ in range(100)))
        assert up.accepted == 100


@pytest.mark.parametrize(
    ("what", "connections", "before", "kib"),
    [("in flight", 5000, 20, 9.2), ("waiting for a connection", 20, 40, 5.6)],
)
def test_a_call_takes_little_memory(loopback: Bench, what: str, connections: int, before: int, kib: float) -> None:
    target = loopback.target("/hang", connections=connections)
    found = loopback.fresh("ours", "memory:calls", target, before=before, calls=200, traced=True)
    assert found <= kib, f"{found:.1f} KiB {what}"


@pytest.mark.parametrize("engine", ["asyncio", "httpcore"])
@pytest.mark.parametrize("middlewares", [[], [Middleware()]])
@pytest.mark.parametrize("path", ["/ok", "/redirect", "/coding/gzip", "/status/404", "/flaky?fail=1&key=costs"])
async def test_a_call_leaves_nothing_to_the_garbage_collector(
    upstream: HostileUpstream, engine: Literal["asyncio", "httpcore"], middlewares: list[Middleware], path: str
) -> None:
    """What is part of a cycle stays until the collector comes, and makes it come more often."""
    config = ClientConfig(engine=engine, follow_redirects=True, retry_backoff_factor=0, enable_circuit_breaker=True)
    async with AsyncHTTPClient(upstream.url(), config=config, auth=BearerAuth("t"), middlewares=middlewares) as client:

        async def streamed() -> httpx.Response:
            async with client.stream("GET", path) as response:
                await response.aread()
            return response

        gc.disable()
        try:
            for call in (lambda: client.get(path), lambda: client.post(path, json={}), streamed):
                response = await call()
                left = [weakref.ref(part) for part in (response, response.request, Call.of(response.request))]
                del response
                assert [part() for part in left] == [None, None, None]
        finally:
            gc.enable()
