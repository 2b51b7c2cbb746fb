"""httpx2 as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from benchmarks.subjects import Call, Target


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[Call]:
    limits = httpx2.Limits(max_connections=target.connections, max_keepalive_connections=target.keepalive)
    async with httpx2.AsyncClient(verify=target.tls(), limits=limits, timeout=target.timeout) as session:

        async def call() -> object:
            response = await session.get(target.url)
            return response.json() if target.is_json else response.content

        yield call
