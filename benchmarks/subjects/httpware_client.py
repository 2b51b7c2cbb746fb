"""httpware, resilience on httpx2, with all that it has: its limit is one of concurrency, and it makes no spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpware
import httpx2

from benchmarks.subjects import Call, Target


@httpware.async_before_request
async def _add_request_id(request: httpx2.Request) -> httpx2.Request:
    request.headers["X-Request-ID"] = "0123456789abcdef"
    return request


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[Call]:
    async with httpware.AsyncClient(
        verify=target.tls(),
        limits=httpx2.Limits(max_connections=target.connections, max_keepalive_connections=target.keepalive),
        timeout=target.timeout,
        headers={"Authorization": "Bearer token"},
        middleware=[
            httpware.AsyncCircuitBreaker(),
            httpware.AsyncTimeout(timeout=target.timeout),
            httpware.AsyncBulkhead(max_concurrent=100_000, acquire_timeout=None),
            httpware.AsyncRetry(),
            _add_request_id,
        ],
    ) as session:

        async def call() -> object:
            response = await session.get(target.url)
            return response.json() if target.is_json else response.content

        yield call
