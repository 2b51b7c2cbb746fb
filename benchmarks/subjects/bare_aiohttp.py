"""aiohttp as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.subjects import Call, Target


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[Call]:
    connector = aiohttp.TCPConnector(limit=target.connections, ssl=target.tls())
    timeout = aiohttp.ClientTimeout(total=target.timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def call() -> object:
            async with session.get(target.url) as response:
                return await response.json() if target.is_json else await response.read()

        yield call
