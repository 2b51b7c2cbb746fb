"""This package's transport: under httpx's own client, and alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from benchmarks.subjects import Call, Target
from fastapi_http_client.engine.transport import AsyncioTransport


def _transport(target: Target) -> AsyncioTransport:
    tls = target.tls()
    return AsyncioTransport(
        ssl_context=None if tls is True else tls,
        max_connections=target.connections,
        max_keepalive_connections=target.keepalive,
    )


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[Call]:
    async with httpx.AsyncClient(transport=_transport(target), timeout=target.timeout) as session:

        async def call() -> object:
            response = await session.get(target.url)
            return response.json() if target.is_json else response.content

        yield call


@asynccontextmanager
async def fetch(target: Target) -> AsyncIterator[Call]:
    """Requests are made of a URL and headers that are kept from call to call."""
    transport = _transport(target)
    async with httpx.AsyncClient(timeout=target.timeout) as template:
        request = template.build_request("GET", target.url)
    url, headers, extensions, body = request.url, request.headers, request.extensions, httpx.ByteStream(b"")

    async def call() -> object:
        request = httpx.Request("GET", url, headers=headers, extensions=extensions, stream=body)
        response = await transport.fetch(request)
        return response.json() if target.is_json else response.content

    yield call
    await transport.aclose()
