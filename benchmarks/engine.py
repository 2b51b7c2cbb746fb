"""What a small GET with `.json()` costs: the engine against bare httpx, aiohttp, and the same on uvloop.

    python benchmarks/engine.py [--rounds 5] [--requests 2000] [--callers 1,50,500] [--clients httpx,...] [--large]

The upstream is a process of its own. Each client is a process of its own as well; they take turns inside each round,
and every figure is the client's processor time a request divided by bare httpx's of the same round (the median over
the rounds), so that a noisy machine disturbs all of them alike. With two cores or more, the upstream and the client
are pinned to one each. httpx costs a third more at one caller when `sniffio` is not installed, and more with every
connection that its pool has ever held: compare ratios of one run only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import uvloop

Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def _httpx(url: str) -> AsyncIterator[Call]:
    import httpx

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100)) as client:

        async def call() -> object:
            response = await client.get(url)
            return response.json() if len(response.content) < 1000 else None

        yield call


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[Call]:
    import httpx

    from fastapi_http_client.engine import AsyncioTransport

    async with httpx.AsyncClient(transport=AsyncioTransport()) as client:

        async def call() -> object:
            response = await client.get(url)
            return response.json() if len(response.content) < 1000 else None

        yield call


@asynccontextmanager
async def _fetch(url: str) -> AsyncIterator[Call]:
    """The engine without httpx's client: requests are made of a URL and headers kept from call to call."""
    import httpx

    from fastapi_http_client.engine import AsyncioTransport

    transport = AsyncioTransport()
    template = httpx.AsyncClient().build_request("GET", url)
    parsed, headers, extensions, body = template.url, template.headers, template.extensions, httpx.ByteStream(b"")

    async def call() -> object:
        request = httpx.Request("GET", parsed, headers=headers, extensions=extensions, stream=body)
        response = await transport.fetch(request)
        return response.json() if len(response.content) < 1000 else None

    yield call
    await transport.aclose()


@asynccontextmanager
async def _aiohttp(url: str) -> AsyncIterator[Call]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:

        async def call() -> object:
            async with session.get(url) as response:
                body = await response.read()
                return json.loads(body) if len(body) < 1000 else None

        yield call


CLIENTS = {"httpx": _httpx, "engine": _engine, "fetch": _fetch, "aiohttp": _aiohttp}


async def _measure(
    make: Callable[[str], AbstractAsyncContextManager[Call]], url: str, callers: int, requests: int
) -> float:
    """Processor time of one request, in microseconds."""
    async with make(url) as call:

        async def caller(count: int) -> None:
            for _ in range(count):
                await call()

        await asyncio.gather(*(caller(2) for _ in range(callers)))
        each = max(1, requests // callers)
        started = time.process_time()
        await asyncio.gather(*(caller(each) for _ in range(callers)))
        return (time.process_time() - started) / (each * callers) * 1e6


def serve_measurements(name: str) -> None:
    """The process of one client: reads `url callers requests` lines, answers each with a figure."""
    kind, _, loop = name.partition("+")
    new_loop = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    for line in sys.stdin:
        url, callers, requests = line.split()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            figure = runner.run(_measure(CLIENTS[kind], url, int(callers), int(requests)))
        sys.stdout.write(f"{figure}\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--callers", default="1,50,500")
    parser.add_argument("--clients", default="httpx,engine,engine+uvloop,fetch,fetch+uvloop,aiohttp,aiohttp+uvloop")
    parser.add_argument("--large", action="store_true", help="1 MiB bodies instead of small ones")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_measurements(options.serve)
        return

    here = Path(__file__).resolve()
    pinned = len(os.sched_getaffinity(0)) > 1 if hasattr(os, "sched_getaffinity") else False
    cores = sorted(os.sched_getaffinity(0)) if pinned else []

    def start(*arguments: str, core: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(here.parents[1])])},
        )
        if pinned:
            os.sched_setaffinity(process.pid, {cores[core]})
        return process

    upstream = start(str(here.with_name("upstream.py")), core=1)
    names = options.clients.split(",")
    clients = {name: start(str(here), "--serve", name, core=0) for name in names}
    try:
        assert upstream.stdout is not None
        port = upstream.stdout.readline().strip()
        url = f"http://127.0.0.1:{port}/{'large' if options.large else 'small'}"
        for callers in map(int, options.callers.split(",")):
            figures: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(options.rounds):
                for name, process in clients.items():
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write(f"{url} {callers} {options.requests}\n")
                    process.stdin.flush()
                    figures[name].append(float(process.stdout.readline()))
            sys.stdout.write(f"{callers} callers\n")
            base = figures[names[0]]
            for name in names:
                ratio = statistics.median(own / other for own, other in zip(figures[name], base, strict=True))
                sys.stdout.write(f"  {name:16} {ratio:7.3f}  {statistics.median(figures[name]):9.1f} µs\n")
    finally:
        for process in (*clients.values(), upstream):
            process.terminate()
            process.communicate()


if __name__ == "__main__":
    main()
