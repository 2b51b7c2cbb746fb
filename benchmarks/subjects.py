"""What is measured: each subject is a context that gives a call, `GET url` and its JSON.

All have the limits 100 connections, and each is what its documentation shows first, unless its name says more.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

Call = Callable[[], Awaitable[object]]
Subject = Callable[[str], AbstractAsyncContextManager[Call]]


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


@asynccontextmanager
async def _httpx2(url: str) -> AsyncIterator[Call]:
    import httpx2

    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=100)) as client:

        async def call() -> object:
            response = await client.get(url)
            return response.json() if len(response.content) < 1000 else None

        yield call


@asynccontextmanager
async def _by_hand(url: str) -> AsyncIterator[Call]:
    """httpx with what a careful team adds by hand: retries, a rate limit, a breaker, a request id and spans."""
    import httpx
    from aiolimiter import AsyncLimiter
    from httpx_retries import RetryTransport
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from purgatory import AsyncCircuitBreakerFactory

    async def add_request_id(request: httpx.Request) -> None:
        request.headers["X-Request-ID"] = "0123456789abcdef"

    HTTPXClientInstrumentor().instrument()
    limiter = AsyncLimiter(1_000_000, 1)
    breakers = AsyncCircuitBreakerFactory()
    transport = RetryTransport(transport=httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=100)))
    headers = {"Authorization": "Bearer token"}
    async with httpx.AsyncClient(
        transport=transport, headers=headers, event_hooks={"request": [add_request_id]}
    ) as client:

        async def call() -> object:
            async with limiter, await breakers.get_breaker("upstream"):
                response = await client.get(url)
            return response.json() if len(response.content) < 1000 else None

        yield call


@asynccontextmanager
async def _ours(url: str, *, engine: str = "auto", spans: bool = False) -> AsyncIterator[Call]:
    """Everything on: retry, breaker, limiter, auth, and a request id and trace from the inbound request."""
    import httpx

    from fastapi_http_client import AsyncHTTPClient, BearerAuth, ClientConfig, request_context

    if spans:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

        class Nowhere(SpanExporter):
            def export(self, spans: object) -> SpanExportResult:
                return SpanExportResult.SUCCESS

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(Nowhere()))
        trace.set_tracer_provider(provider)

    config = ClientConfig(
        enable_circuit_breaker=True,
        enable_rate_limiting=True,
        rate_limit_rate=1_000_000,
        rate_limit_burst=1_000_000,
        engine=engine,
    )
    parsed = httpx.URL(url)
    async with AsyncHTTPClient(url.removesuffix(parsed.path), config=config, auth=BearerAuth("token")) as client:

        async def call() -> object:
            response = await client.get(parsed.path)
            return response.json() if len(response.content) < 1000 else None

        with request_context(request_id="0123456789abcdef"):
            yield call


@asynccontextmanager
async def _ours_bare(url: str) -> AsyncIterator[Call]:
    """No limiter, no breaker, no auth, one attempt."""
    import httpx

    from fastapi_http_client import AsyncHTTPClient, ClientConfig

    parsed = httpx.URL(url)
    config = ClientConfig(retry_attempts=1, propagation="none")
    async with AsyncHTTPClient(url.removesuffix(parsed.path), config=config) as client:

        async def call() -> object:
            response = await client.get(parsed.path)
            return response.json() if len(response.content) < 1000 else None

        yield call


def _ours_over_httpcore(url: str) -> AbstractAsyncContextManager[Call]:
    return _ours(url, engine="httpcore")


def _ours_with_spans(url: str) -> AbstractAsyncContextManager[Call]:
    return _ours(url, spans=True)


SUBJECTS: dict[str, Subject] = {
    "httpx": _httpx,
    "httpx2": _httpx2,
    "aiohttp": _aiohttp,
    "by-hand": _by_hand,
    "ours": _ours,
    "ours-bare": _ours_bare,
    "ours-spans": _ours_with_spans,
    "ours-httpcore": _ours_over_httpcore,
    "engine": _engine,
    "fetch": _fetch,
}
"""The first is what the ratios are of."""
