"""This package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from benchmarks.subjects import Call, Target
from fastapi_http_client import AsyncHTTPClient, BearerAuth, ClientConfig
from fastapi_http_client.context import RequestContext, bind, unbind


def full_config(target: Target, engine: Literal["auto", "httpcore"] = "auto") -> ClientConfig:
    """Retry armed, as it is by default, the circuit breaker and the rate limiter switched on."""
    return ClientConfig(
        base_url=target.origin,
        ca_file=target.ca_file,
        max_connections=target.connections,
        max_keepalive_connections=target.keepalive,
        timeout=target.timeout,
        enable_circuit_breaker=True,
        enable_rate_limiting=True,
        rate_limit_rate=1_000_000,
        rate_limit_burst=1_000_000,
        engine=engine,
    )


def inbound_context() -> RequestContext:
    """What the middleware binds for a request with these headers, which every call passes on."""
    headers = [
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        (b"x-request-id", b"0123456789abcdef"),
    ]
    return RequestContext("0123456789abcdef", headers=headers)


@asynccontextmanager
async def client(
    target: Target, *, engine: Literal["auto", "httpcore"] = "auto", spans: bool = False
) -> AsyncIterator[Call]:
    """Everything on: retry, breaker, limiter, a bearer token, the inbound request's id and trace."""
    if spans:
        from benchmarks.subjects.spans import record_spans

        record_spans()
    async with AsyncHTTPClient(config=full_config(target, engine), auth=BearerAuth("token")) as session:
        token = bind(inbound_context())
        yield _get(session, target)
        unbind(token)


@asynccontextmanager
async def bare_client(target: Target) -> AsyncIterator[Call]:
    """No breaker, no limiter, no credential, no context, one attempt."""
    config = ClientConfig(
        base_url=target.origin,
        ca_file=target.ca_file,
        max_connections=target.connections,
        max_keepalive_connections=target.keepalive,
        timeout=target.timeout,
        retry_attempts=1,
        propagation="none",
    )
    async with AsyncHTTPClient(config=config) as session:
        yield _get(session, target)


def _get(session: AsyncHTTPClient, target: Target) -> Call:
    async def call() -> object:
        response = await session.get(target.path)
        return response.json() if target.is_json else response.content

    return call
