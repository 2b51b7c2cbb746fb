"""The short way of an ordinary call is the pipeline's: what comes of it, and what the upstream sees, are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fastapi_http_client import (
    APIKeyAuth,
    AsyncHTTPClient,
    BasicAuth,
    BearerAuth,
    CircuitBreaker,
    ClientConfig,
    TokenBucketRateLimiter,
)
from fastapi_http_client.context import RequestContext, bind, unbind
from fastapi_http_client.errors import HTTPClientError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.fast_attempt import FastAttempt
from fastapi_http_client.models import HTTPResponse
from tests.hostile.upstream import HostileUpstream


@pytest.fixture
def engine() -> str:
    """Not over both engines: there is no short way over httpcore2."""
    return "auto"


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INBOUND = [
    (b"traceparent", TRACEPARENT.encode()),
    (b"tracestate", b"vendor=1"),
    (b"baggage", b"tenant=7"),
    (b"x-tenant", b"seven"),
]


@dataclass(frozen=True)
class Case:
    """One call, with the options of its client."""

    path: str
    method: str = "GET"
    call: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    is_short: bool = True
    """Whether the short way makes its first attempt."""

    def __str__(self) -> str:
        options = {**self.call, **self.config, **self.client}
        return f"{self.method} {self.path}" + (f" {str(options)[:80]}" if options else "")


SHORT = {"timeout": 0.15}
CASES = [
    Case("/ok"),
    Case("/ok", "HEAD"),
    Case("/ok", "DELETE"),
    Case("/echo", call={"headers": {"X-Own": "1", "accept": "text/plain"}}),
    Case("/echo", call={"headers": [("X-Twice", "1"), ("X-Twice", "2")]}),
    Case("/echo", call={"headers": {"traceparent": TRACEPARENT, "X-Request-ID": "own", "baggage": "a=1"}}),
    Case("/echo", call={"params": {"q": "a b"}}),
    Case("/echo", "POST", call={"json": {"a": 1}}),
    Case("/echo", "POST", call={"content": b"x" * 100_000}),
    Case("/echo", "POST", call={"files": {"f": b"x"}}, is_short=False),
    Case("/echo", "POST", call={"json": {}}, config={"idempotency_keys": True}, is_short=False),
    Case("/echo", "PUT", call={"content": b""}),
    Case("/echo", client={"auth": BearerAuth("token")}),
    Case("/echo", client={"auth": BearerAuth(lambda: "token")}, is_short=False),
    Case("/echo", client={"auth": BasicAuth("user", "pässword")}),
    Case("/echo", client={"auth": APIKeyAuth("key")}),
    Case("/echo", client={"auth": APIKeyAuth("key", query_param_name="key")}, is_short=False),
    Case("/echo", client={"auth": BearerAuth("token"), "headers": {"authorization": "stale"}}),
    Case("/echo", client={"auth": BearerAuth("token")}, call={"headers": {"Authorization": "mine"}}),
    Case("/echo", client={"auth": BearerAuth("token")}, call={"auth": None}),
    Case("/echo", client={"cookies": {"a": "1"}}),
    Case("/echo", config={"propagation": "internal", "propagate_headers": ["x-tenant"], "total_timeout": 60.0}),
    Case("/echo", config={"propagation": "none"}),
    Case("/status/204"),
    Case("/status/304"),
    Case("/status/404"),
    Case("/status/404", "POST"),
    Case("/status/500", "POST"),
    Case("/status/503", call={"retry": False}),
    Case("/sequence/a?steps=503,200"),
    Case("/sequence/a?steps=reset,200"),
    Case("/sequence/a?steps=reset,200", "POST"),
    Case("/sequence/a?steps=429,200"),
    Case("/sequence/a?steps=429:0,200"),
    Case("/sequence/a?steps=429:1000,200"),
    Case("/sequence/a?steps=202,200", config={"retry_statuses": [202]}),
    Case("/sequence/a?steps=503"),
    Case("/sequence/a?steps=truncate"),
    Case("/sequence/a?steps=garbage"),
    Case("/redirect?n=2"),
    Case("/redirect?n=2", config={"follow_redirects": True}),
    Case("/redirect?n=9", config={"follow_redirects": True, "max_redirects": 3}),
    Case("/redirect-cross", config={"follow_redirects": True}, client={"auth": BearerAuth("token")}),
    Case("/cookie/set?a=1", config={"persist_cookies": True}, is_short=False),
    Case("/coding/members"),
    Case("/coding/truncated"),
    Case("/coding/trailing"),
    Case("/bomb/gzip", config={"max_response_bytes": 100}),
    Case("/large?size=100000", config={"max_response_bytes": 1000}),
    Case("/hang", call={"timeout": httpx.Timeout(5.0, read=0.05)}),
    Case("/hang", config={"total_timeout": 0.15}),
    Case("/drip?interval=0.02", config=SHORT),
    Case("/drip?interval=0.02", "POST", config=SHORT),
    Case("/drip?interval=0.02", config={"total_timeout": 0.15}),
    Case("/ok", config={"total_timeout": 60.0}),
    Case("/bomb/zstd?mb=512", config=SHORT),
    Case("/bomb/zstd?mb=512", config={"total_timeout": 0.15}),
]


_OF_THE_SHORT_WAY = {"_attempts", "_only_attempt_took"}


def facts_of(error: BaseException | None) -> Any:
    if not isinstance(error, HTTPClientError):
        return type(error).__name__
    facts = [type(error).__mro__[:2], error.client, [(a.number, a.status) for a in error.attempts]]
    facts += [
        getattr(error, name, None) for name in ("phase", "may_have_run", "transient", "status_code", "retry_after")
    ]
    headers = {name: value for name, value in error.request.headers.items() if name != "idempotency-key"}
    return [*map(str, facts), str(error.request.url), headers]


def _known(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers without what is made by chance: ids of spans, idempotency keys and boundaries."""
    known = []
    for name, value in headers:
        is_random = name.lower() in ("idempotency-key", "x-request-timeout-ms") or "boundary=" in value
        known.append((name.lower(), "…" if is_random else value[:36] if name == "traceparent" else value))
    return sorted(known)


class Observer:
    """What an OpenTelemetry SDK is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
        meters = MeterProvider([self.reader])
        monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", meters)
        assert metrics.get_meter_provider() is meters

    def seen(self) -> Any:
        spans = [
            (span.name, dict(span.attributes or {}), span.status.status_code, bool(span.parent))
            for span in self.exporter.get_finished_spans()
        ]
        data = self.reader.get_metrics_data()
        points = (
            []
            if data is None
            else [
                (metric.name, dict(point.attributes), getattr(point, "count", None) or getattr(point, "value", None))
                for resource in data.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
                for point in metric.data.data_points
            ]
        )
        return spans, sorted(points, key=str)


async def what_comes_of(case: Case, upstream: HostileUpstream, *, fast: bool) -> dict[str, Any]:
    upstream.forget()
    limiter, breaker = TokenBucketRateLimiter(1000, 1000, clock=FakeClock()), CircuitBreaker(3)
    config = ClientConfig(
        retry_attempts=2, retry_backoff_factor=0.001, retry_jitter=0.0, retry_max_delay=0.5, **case.config
    )
    client = AsyncHTTPClient(
        upstream.url(), config=config, rate_limiter=limiter, circuit_breaker=breaker, name="up", **case.client
    )
    if not fast:
        client._fast_attempt = None
    response, error = None, None
    async with client:
        try:
            response = await client.request(case.method, case.path, **case.call)
        except HTTPClientError as exc:
            error = exc
        found: dict[str, Any] = {
            "error": facts_of(error),
            "budget": client.retry_budget.tokens,
            "limiter": limiter.available,
            "circuit": (breaker.state, breaker._circuit._failures_in_a_row),
            "in flight": client.lifecycle.in_flight,
            "cookies": dict(client.cookies),
        }
    found["requests"] = [
        (seen.method, seen.target, _known(seen.headers), seen.body_length)
        for seen in list(upstream.journal)
        if not seen.target.startswith("/__")
    ]
    if response is not None:
        shown = ("status_code", "content", "encoding", "is_closed", "is_stream_consumed", "num_bytes_downloaded", "url")
        found["response"] = {name: getattr(response, name) for name in shown}
        if b'"conn": ' in response.content:  # an echo of the request, which is compared above
            found["response"] |= {"content": None, "num_bytes_downloaded": None}
        found["headers"] = [pair for pair in response.headers.raw if pair[0].lower() != b"date"]
        found["made of"] = sorted(
            vars(response).keys() - {"_attempts", "_only_attempt_took", "_received_at", "_decoder"}
        )
        found["attempts"] = [(a.number, a.status, type(a.error).__name__, a.delay) for a in response.attempts]
        found["history"] = [past.status_code for past in response.history]
        found["request"] = (
            response.request.method,
            str(response.request.url),
            _known(response.request.headers.items()),
        )
        found["next"] = response.next_request and str(response.next_request.url)
        assert 0 < response.elapsed.total_seconds() < 60
        assert all(0 <= attempt.elapsed < 60 for attempt in response.attempts)
    return found


def noted(function: Any, calls: list[bool]) -> Any:
    def note(*args: Any) -> Any:
        calls.append(True)
        return function(*args)

    return note


@pytest.mark.parametrize("observed", [False, True], ids=["", "observed"])
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_the_short_way_comes_to_what_the_pipeline_comes_to(
    case: Case, observed: bool, upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    ways: list[bool] = []
    for step in ("_written", "_encoded"):  # what is done last before a request goes the short way, and nowhere else
        monkeypatch.setattr(FastAttempt, step, noted(getattr(FastAttempt, step), ways))
    for fast in (True, False):
        observer = Observer(monkeypatch) if observed else None
        token = bind(RequestContext("request-1", headers=INBOUND))
        try:
            result = await what_comes_of(case, upstream, fast=fast)
        finally:
            unbind(token)
        found.append((result, observer and observer.seen()))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert bool(ways) == case.is_short


async def test_closing_the_client_ends_a_call_whose_body_is_being_decoded(
    upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = AsyncHTTPClient(upstream.url())
    settle, has_begun = client.exchange.settle, asyncio.Event()

    async def begin_to_settle(*args: Any) -> HTTPResponse:
        has_begun.set()
        return await settle(*args)

    monkeypatch.setattr(client.exchange, "settle", begin_to_settle)
    async with asyncio.timeout(10):
        decoding = asyncio.create_task(client.get("/bomb/zstd?mb=512"))
        await has_begun.wait()
        await client.aclose()
        with pytest.raises(HTTPClientError, match="was closed while this call"):
            await decoding
