"""httpx 0.28 as it is.

What a call costs depends on the history of its pool: the more connections it holds, the dearer is every call, for it
asks each of them whether it has expired. So every measurement opens a new client. And httpcore tries to import
`sniffio` three times a call: where it is not installed, as nothing that httpx needs brings it any more, each try fails
after a search of the whole path. `SUBJECTS` has a row for either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from benchmarks.subjects import Call, Target


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[Call]:
    limits = httpx.Limits(max_connections=target.connections, max_keepalive_connections=target.keepalive)
    async with httpx.AsyncClient(verify=target.tls(), limits=limits, timeout=target.timeout) as session:

        async def call() -> object:
            response = await session.get(target.url)
            return response.json() if target.is_json else response.content

        yield call
