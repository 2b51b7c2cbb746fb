"""httpx with what a careful team adds by hand: retries, a rate limit, a breaker, a credential, a request id, spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from aiolimiter import AsyncLimiter
from httpx_retries import RetryTransport
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from purgatory import AsyncCircuitBreakerFactory

from benchmarks.subjects import Call, Target
from benchmarks.subjects.spans import record_spans


async def _add_request_id(request: httpx.Request) -> None:
    request.headers["X-Request-ID"] = "0123456789abcdef"


@asynccontextmanager
async def client(target: Target, *, spans: bool = False) -> AsyncIterator[Call]:
    if spans:
        record_spans()
    instrumentor = HTTPXClientInstrumentor()
    limiter = AsyncLimiter(1_000_000, 1)
    breakers = AsyncCircuitBreakerFactory()
    limits = httpx.Limits(max_connections=target.connections, max_keepalive_connections=target.keepalive)
    transport = RetryTransport(transport=httpx.AsyncHTTPTransport(verify=target.tls(), limits=limits))
    async with httpx.AsyncClient(
        transport=transport,
        timeout=target.timeout,
        headers={"Authorization": "Bearer token"},
        event_hooks={"request": [_add_request_id]},
    ) as session:
        instrumentor.instrument_client(session)

        async def call() -> object:
            async with limiter, await breakers.get_breaker("upstream"):
                response = await session.get(target.url)
            return response.json() if target.is_json else response.content

        yield call
        instrumentor.uninstrument_client(session)
