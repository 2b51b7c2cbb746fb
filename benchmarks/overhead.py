"""What the pipeline and the dependency add, without a network: processor time as ratios and differences in one run.

    python -m benchmarks.overhead [--rounds 15] [--calls 1500]

Both clients ask the same `httpx.MockTransport`; rounds alternate, and the figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Response

from fastapi_http_client import AsyncHTTPClient, BearerAuth, ClientConfig, HTTPClients, http_client

Work = Callable[[int], Awaitable[object]]


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b'{"id": 1, "name": "octocat"}')


def full_client() -> AsyncHTTPClient:
    """Retry armed, breaker and limiter on, auth, no SDK."""
    config = ClientConfig(
        enable_circuit_breaker=True, enable_rate_limiting=True, rate_limit_rate=1e6, rate_limit_burst=1_000_000
    )
    return AsyncHTTPClient(
        "https://api.example.com/v1", config=config, auth=BearerAuth("token"), transport=httpx.MockTransport(answer)
    )


async def cost(work: Work, calls: int) -> float:
    """Microseconds of processor time for one call."""
    started = time.process_time()
    for number in range(calls):
        await work(number)
    return (time.process_time() - started) / calls * 1e6


async def compare(base: Work, other: Work, rounds: int, calls: int) -> tuple[float, float, float]:
    """The medians of both, and of the ratio within each round."""
    await cost(base, calls)
    await cost(other, calls)
    pairs = [(await cost(base, calls), await cost(other, calls)) for _ in range(rounds)]
    bases, others = zip(*pairs, strict=True)
    return statistics.median(bases), statistics.median(others), statistics.median(o / b for b, o in pairs)


async def measure(rounds: int, calls: int) -> None:
    bare = httpx.AsyncClient(
        base_url="https://api.example.com/v1",
        headers={"Authorization": "Bearer token"},
        transport=httpx.MockTransport(answer),
    )
    ours = full_client()
    for title, path in (("the same path", "/users/octocat"), ("a new path each time", "/users/{}")):
        base, full, ratio = await compare(
            lambda n, p=path: bare.get(p.format(n)), lambda n, p=path: ours.get(p.format(n)), rounds, calls
        )
        sys.stdout.write(f"call, {title:22} bare {base:6.1f} µs, full pipeline {full:6.1f} µs, ratio {ratio:.3f}\n")
    plain, dependent = await routes()
    base, full, _ = await compare(plain, dependent, rounds, calls)
    sys.stdout.write(
        f"dependency                   bare {base:6.1f} µs, with client   {full:6.1f} µs, +{full - base:.1f} µs\n"
    )


async def routes() -> tuple[Work, Work]:
    """A request to a route without a dependency, and to one that gets a client."""
    clients = HTTPClients({"api": ClientConfig(base_url="https://api.example.com")})
    app = FastAPI(lifespan=clients.lifespan, openapi_url=None)
    ready = Response(b"ok")

    @app.get("/plain")
    async def plain() -> Response:
        return ready

    @app.get("/client")
    async def with_client(client: Annotated[AsyncHTTPClient, Depends(http_client("api"))]) -> Response:
        return ready

    await clients.start()
    state: dict[str, Any] = {"fastapi_http_client": clients}

    def request_to(path: str) -> Work:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("localhost", 1),
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            pass

        async def work(_: int) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        return work

    return request_to("/plain"), request_to("/client")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1500)
    options = parser.parse_args()
    asyncio.run(measure(options.rounds, options.calls))


if __name__ == "__main__":
    main()
