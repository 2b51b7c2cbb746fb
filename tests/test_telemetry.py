"""Spans and metrics: what they say, whom they belong to, and that there is only one of each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from types import ModuleType

import httpx
import pytest
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from fastapi_http_client import AsyncHTTPClient, ClientConfig
from fastapi_http_client.call import TEMPLATE, Call, origin
from fastapi_http_client.circuit_breaker import StateChange
from fastapi_http_client.context import RequestContext, bind, unbind
from fastapi_http_client.errors import HTTPRequestError, HTTPTimeoutError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.policies.circuit_breaker import CircuitState
from fastapi_http_client.propagation import Propagation
from fastapi_http_client.telemetry import (
    DURATION_BUCKETS,
    ClientSpan,
    report_circuit_change,
    report_limiter_wait,
    report_retry,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Telemetry:
    """An SDK of its own, in memory."""

    def __init__(self, **tracer_options):
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(**tracer_options)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider(metric_readers=[self.reader])

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    @property
    def metrics(self):
        data = self.reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics if data else []
        return {metric.name: metric for metric in found}

    def points(self, name):
        return list(self.metrics[name].data.data_points)

    def step(self, client_name="up", **options):
        return ClientSpan(
            client_name, **{"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider, **options}
        )

    def close(self):
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


@pytest.fixture
def sdk():
    telemetry = Telemetry()
    yield telemetry
    telemetry.close()


def make_request(method="GET", url="http://up.example/users/7?token=S3CR3T", template=None, **options):
    options.setdefault("clock", FakeClock())
    call = Call(
        client_name="up",
        stream=False,
        retry=True,
        follow_redirects=False,
        auth=None,
        origins=frozenset({origin(httpx.URL(url))}),
        **options,
    )
    return call.attach(httpx.Request(method, url, extensions={} if template is None else {TEMPLATE: template}))


async def answer(request):
    return HTTPResponse(200, extensions={"http_version": b"HTTP/1.1"})


def failing(error):
    async def call_next(request):
        raise error

    return call_next


# -- spans -------------------------------------------------------------------------------------------------------


async def test_a_span_follows_the_http_conventions(sdk):
    request = make_request(template="/users/{id}")
    response = await sdk.step()(request, call_next=answer)
    assert response.status_code == 200
    (span,) = sdk.spans
    assert span.name == "GET /users/{id}"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "up.example",
        "server.port": 80,
        "url.scheme": "http",
        "url.template": "/users/{id}",
        "url.full": "http://up.example/users/7?token=REDACTED",
        "fastapi_http_client.client": "up",
    }
    assert span.instrumentation_scope.name == "fastapi_http_client"


async def test_without_a_template_the_name_is_the_method_and_never_the_path(sdk):
    await sdk.step(None)(make_request(url="https://up.example:8443/users/7"), call_next=answer)
    (span,) = sdk.spans
    assert span.name == "GET"
    assert span.attributes["server.port"] == 8443
    assert "fastapi_http_client.client" not in span.attributes


async def test_an_unknown_method_is_other(sdk):
    await sdk.step()(make_request("BREW"), call_next=answer)
    (span,) = sdk.spans
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "BREW"


async def test_the_address_is_shown_without_secrets(sdk):
    request = make_request(url="http://user:S3CR3T@up.example/?mykey=S3CR3T", secret_params=frozenset({"mykey"}))
    await sdk.step()(request, call_next=answer)
    assert "S3CR3T" not in sdk.spans[0].to_json()


async def test_each_request_after_the_first_counts_as_a_resend(sdk):
    request = make_request()
    for resends in range(3):
        Call.of(request).resends = resends
        await sdk.step()(request, call_next=answer)
    assert [span.attributes.get("http.request.resend_count") for span in sdk.spans] == [None, 1, 2]


@pytest.mark.parametrize("status", [404, 429, 503])
async def test_a_4xx_or_5xx_is_an_error(sdk, status):
    async def call_next(request):
        return HTTPResponse(status)

    await sdk.step()(make_request(), call_next=call_next)
    (span,) = sdk.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == str(status)


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (_caused(HTTPRequestError("S3CR3T"), httpx.ConnectError("S3CR3T")), "httpx.ConnectError"),
        (_caused(HTTPTimeoutError("S3CR3T", phase="read"), httpx.ReadTimeout("")), "httpx.ReadTimeout"),
        (
            _caused(HTTPTimeoutError("S3CR3T", phase="attempt"), TimeoutError()),
            "fastapi_http_client.errors.HTTPTimeoutError",
        ),
        (ValueError("S3CR3T"), "ValueError"),
    ],
)
async def test_a_failure_names_its_class_and_nothing_more(sdk, error, error_type):
    with pytest.raises(type(error)):
        await sdk.step()(make_request(), call_next=failing(error))
    (span,) = sdk.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == error_type
    assert "S3CR3T" not in span.to_json()
    (point,) = sdk.points("http.client.request.duration")
    assert point.attributes["error.type"] == error_type


async def test_a_cancelled_request_ends_its_span_without_an_error_status(sdk):
    started = asyncio.Event()

    async def call_next(request):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(sdk.step()(make_request(), call_next=call_next))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = sdk.spans
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert [point.value for point in sdk.points("http.client.active_requests")] == [0]


async def test_the_span_of_a_call_whose_time_is_over_says_so(sdk):
    clock = FakeClock()
    request = make_request(clock=clock, total_timeout=5.0)
    Call.of(request).start_deadline()

    async def call_next(request):
        clock.advance(5.0)
        raise asyncio.CancelledError  # as the limit of the whole call has it

    with pytest.raises(asyncio.CancelledError):
        await sdk.step()(request, call_next=call_next)
    (span,) = sdk.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "fastapi_http_client.errors.HTTPTimeoutError"


async def test_the_span_is_a_child_of_the_current_one(sdk):
    with sdk.tracer_provider.get_tracer("test").start_as_current_span("server") as server:
        await sdk.step()(make_request(), call_next=answer)
        assert trace.get_current_span() is server
    client = sdk.spans[0]
    assert client.parent.span_id == server.get_span_context().span_id


async def test_the_span_is_a_child_of_the_inbound_trace_when_there_is_no_current_one(sdk):
    token = bind(RequestContext("r", headers=[(b"traceparent", TRACEPARENT.encode()), (b"tracestate", b"a=1")]))
    try:
        await sdk.step()(make_request(), call_next=answer)
    finally:
        unbind(token)
    (span,) = sdk.spans
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.parent.trace_state["a"] == "1"


async def test_the_upstream_becomes_a_child_of_the_span(sdk):
    propagation = Propagation("internal")
    sent = []

    async def wire(request):
        sent.append(request.headers)
        return HTTPResponse(200)

    async def call_next(request):
        return await propagation(request, call_next=wire)

    token = bind(RequestContext("r", headers=[(b"traceparent", TRACEPARENT.encode()), (b"baggage", b"user=alice")]))
    try:
        await sdk.step()(make_request(), call_next=call_next)
    finally:
        unbind(token)
    (span,) = sdk.spans
    assert f"-{span.context.span_id:016x}-" in sent[0]["traceparent"]
    assert sent[0]["baggage"] == "user=alice"


async def test_an_unsampled_trace_is_still_handed_on():
    sdk = Telemetry(sampler=ALWAYS_OFF)
    sent = []

    async def wire(request):
        sent.append(request.headers)
        return HTTPResponse(200)

    async def call_next(request):
        return await Propagation()(request, call_next=wire)

    await sdk.step()(make_request(), call_next=call_next)
    assert sent[0]["traceparent"].endswith("-00") or sent[0]["traceparent"].endswith("-02")
    assert sdk.spans == ()
    sdk.close()


async def test_the_spans_of_concurrent_requests_do_not_mix(sdk):
    current = {}

    async def call_next(request):
        await asyncio.sleep(0)
        current[str(request.url)] = trace.get_current_span().get_span_context().span_id
        return HTTPResponse(200)

    requests = [make_request(url=f"http://up.example/{n}") for n in range(3)]
    await asyncio.gather(*(sdk.step()(request, call_next=call_next) for request in requests))
    assert {span.attributes["url.full"]: span.context.span_id for span in sdk.spans} == current
    assert otel_context.get_current() == {}


# -- metrics -----------------------------------------------------------------------------------------------------


async def test_the_duration_is_measured_in_the_conventions_buckets(sdk):
    clock = FakeClock()

    async def call_next(request):
        clock.advance(0.3)
        return HTTPResponse(200, extensions={"http_version": b"HTTP/2"})

    await sdk.step()(make_request(clock=clock, template="/users/{id}"), call_next=call_next)
    (point,) = sdk.points("http.client.request.duration")
    assert sdk.metrics["http.client.request.duration"].unit == "s"
    assert point.sum == pytest.approx(0.3)
    assert point.explicit_bounds == DURATION_BUCKETS
    assert dict(point.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "network.protocol.version": "2",
        "server.address": "up.example",
        "server.port": 80,
        "url.scheme": "http",
        "url.template": "/users/{id}",
    }


async def test_active_requests_are_counted_up_and_down(sdk):
    seen = []

    async def call_next(request):
        seen.extend(point.value for point in sdk.points("http.client.active_requests"))
        return HTTPResponse(200)

    await sdk.step()(make_request(), call_next=call_next)
    assert seen == [1]
    assert [point.value for point in sdk.points("http.client.active_requests")] == [0]


async def test_metrics_work_without_traces_and_traces_without_metrics(sdk):
    await ClientSpan(meter_provider=sdk.meter_provider)(make_request(), call_next=answer)
    assert sdk.spans == ()
    assert [point.count for point in sdk.points("http.client.request.duration")] == [1]
    await ClientSpan(tracer_provider=sdk.tracer_provider)(make_request(), call_next=answer)
    assert len(sdk.spans) == 1
    assert [point.count for point in sdk.points("http.client.request.duration")] == [1]


def test_retries_waits_and_state_changes_are_counted(sdk):
    report_retry(make_request("POST"), "up", 1.5, meter_provider=sdk.meter_provider)
    report_limiter_wait("up", 0.25, meter_provider=sdk.meter_provider)
    change = StateChange("up", CircuitState.CLOSED, CircuitState.OPEN, 1.0)
    report_circuit_change(change, meter_provider=sdk.meter_provider)

    (retries,) = sdk.points("fastapi_http_client.retries")
    assert (retries.value, dict(retries.attributes)) == (
        1,
        {"fastapi_http_client.client": "up", "http.request.method": "POST"},
    )
    (delay,) = sdk.points("fastapi_http_client.retry.delay")
    assert delay.sum == 1.5
    (wait,) = sdk.points("fastapi_http_client.rate_limiter.wait")
    assert wait.sum == 0.25
    (changes,) = sdk.points("fastapi_http_client.circuit_breaker.state_changes")
    assert dict(changes.attributes) == {
        "fastapi_http_client.client": "up",
        "circuit_breaker.from": CircuitState.CLOSED.value,
        "circuit_breaker.to": CircuitState.OPEN.value,
    }


# -- off ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "providers",
    [{}, {"tracer_provider": trace.NoOpTracerProvider(), "meter_provider": metrics.NoOpMeterProvider()}],
    ids=["no providers", "no-op providers"],
)
async def test_switched_off_nothing_is_built(providers, monkeypatch):
    monkeypatch.setattr("fastapi_http_client.telemetry.Observed", None)
    assert (await ClientSpan("up", **providers)(make_request(), call_next=answer)).status_code == 200
    report_retry(make_request(), "up", 1.0)
    report_limiter_wait("up", 1.0)
    report_circuit_change(StateChange("up", CircuitState.CLOSED, CircuitState.OPEN, 1.0))


async def test_a_call_made_while_another_is_sent_has_a_span_with_the_contrib_instrumentor_too(sdk, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.httpx", ModuleType("contrib"))
    suppressed = []

    async def call_next(request):
        suppressed.append(otel_context.get_value(otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY))
        return await sdk.step()(make_request("POST"), call_next=answer)

    await sdk.step()(make_request(), call_next=call_next)
    assert [span.name for span in sdk.spans] == ["POST", "GET"]
    assert all(suppressed)


@pytest.mark.parametrize("variable", ["OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER"])
def test_a_provider_that_the_environment_names_is_asked_for_whenever_it_was_set(monkeypatch, variable):
    asked = []
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: asked.append(1) or trace.NoOpTracerProvider())
    monkeypatch.setattr(metrics, "get_meter_provider", metrics.NoOpMeterProvider)
    ClientSpan("up").observe(make_request())
    assert not asked
    monkeypatch.setenv(variable, "sdk_tracer_provider")
    ClientSpan("up").observe(make_request())
    assert asked


async def test_a_request_of_an_exporter_makes_no_span(sdk):
    key = otel_context._SUPPRESS_INSTRUMENTATION_KEY
    token = otel_context.attach(otel_context.set_value(key, True))
    try:
        await sdk.step()(make_request(), call_next=answer)
    finally:
        otel_context.detach(token)
    assert sdk.spans == ()


# -- with the real client ---------------------------------------------------------------------------------------


@pytest.fixture
def client_sdk(sdk, monkeypatch):
    """An SDK that all clients use."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", sdk.tracer_provider)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", sdk.meter_provider)
    return sdk


@pytest.mark.parametrize(
    ("base", "template", "shown"),
    [
        ("http://up.example", "/users/{id}", "/users/{id}"),
        ("http://up.example/v1", "users/{id}", "/v1/users/{id}"),
        ("http://up.example/v1/", "/users/{id}", "/v1/users/{id}"),
        ("http://up.example", "/users/{id}?api_key=S3CR3T#part", "/users/{id}"),
        ("", "http://me:S3CR3T@up.example/users/{id}?access_token=S3CR3T", "/users/{id}"),
        ("", "http://up.example/{id}", "/{id}"),
        ("", "http://up.example?id={id}", "/"),
    ],
)
async def test_a_template_is_a_path_and_holds_no_secret(client_sdk, base, template, shown):
    async with AsyncHTTPClient(base, transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        await client.get(template, path_params={"id": 7})
    (span,) = client_sdk.spans
    assert span.name == f"GET {shown}"
    assert span.attributes["url.template"] == shown
    assert "S3CR3T" not in span.to_json()
    for name in ("http.client.request.duration", "http.client.active_requests"):
        (point,) = client_sdk.points(name)
        assert point.attributes["url.template"] == shown


async def test_a_redirect_and_the_requests_of_a_flow_are_not_named_after_the_callers_template(client_sdk):
    class Flow(httpx.Auth):
        def auth_flow(self, request):
            yield httpx.Request("POST", "http://identity.example/token")
            yield request

    def upstream(request):
        return (
            httpx.Response(302, headers={"location": "/login"}) if "users" in request.url.path else httpx.Response(200)
        )

    async with AsyncHTTPClient("http://up.example", transport=httpx.MockTransport(upstream)) as client:
        await client.get("/users/{id}", path_params={"id": 7}, auth=Flow(), follow_redirects=True)
    assert [span.name for span in client_sdk.spans] == ["POST", "GET /users/{id}", "POST", "GET"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_hangs_until_its_own_limit_is_an_error(client_sdk, engine, upstream, stream):
    async with AsyncHTTPClient(upstream.url("/"), config=ClientConfig(engine=engine, total_timeout=0.05)) as client:
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.send(client.build_request("GET", "/hang"), stream=stream)
    assert caught.value.phase == "total"
    (span,) = client_sdk.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "fastapi_http_client.errors.HTTPTimeoutError"


@pytest.mark.parametrize("path", ["/close-mid-body", "/reset-mid-body"])
async def test_a_response_that_fails_after_its_head_has_a_status(client_sdk, engine, upstream, path):
    config = ClientConfig(engine=engine, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url("/"), config=config) as client:
        with pytest.raises(HTTPRequestError):
            await client.get(path)
    (span,) = client_sdk.spans
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["network.protocol.version"] == "1.1"
    assert span.attributes["error.type"].startswith("httpx.")


async def test_one_redirect_too_many_is_an_error(client_sdk):
    transport = httpx.MockTransport(lambda _: httpx.Response(302, headers={"location": "/again"}))
    async with AsyncHTTPClient("http://up.example", transport=transport, max_redirects=1) as client:
        with pytest.raises(httpx.TooManyRedirects):
            await client.get("/", follow_redirects=True)
    assert [(span.status.status_code, span.attributes.get("error.type")) for span in client_sdk.spans] == [
        (StatusCode.UNSET, None),
        (StatusCode.ERROR, "302"),
    ]


# -- in a process that has a global SDK ----------------------------------------------------


def test_the_whole_way_has_one_client_span_per_request_on_the_wire():
    """FastAPI's own server span, our client spans, and the contrib instrumentor for httpx switched on as well."""
    script = textwrap.dedent(
        """
        import asyncio, json, httpx
        from fastapi import FastAPI
        from opentelemetry import metrics, trace
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from fastapi_http_client import AsyncHTTPClient, ClientConfig
        from tests.servers import serve

        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
        HTTPXClientInstrumentor().instrument()

        seen = []
        async def upstream(scope, receive, send):
            if scope["type"] != "http":
                return
            seen.append(dict(scope["headers"])[b"traceparent"].decode())
            status = 503 if len(seen) == 1 else 200
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        app = FastAPI()

        async def main(base_url, engine):
            config = ClientConfig(retry_backoff_factor=0.0, engine=engine)
            async with AsyncHTTPClient(base_url, config=config, name="up") as client:
                @app.get("/" + engine)
                async def route():
                    return (await client.get("/users/{id}", path_params={"id": "7"})).status_code
                async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as caller:
                    assert (await caller.get("/" + engine)).json() == 200

        with serve(upstream, lifespan="off") as base_url:
            for engine in ("httpcore", "auto"):
                asyncio.run(main(base_url, engine))
        spans = exporter.get_finished_spans()
        print(json.dumps({
            "spans": [
                {
                    "name": span.name,
                    "scope": span.instrumentation_scope.name,
                    "kind": span.kind.name,
                    "id": f"{span.context.span_id:016x}",
                    "trace": f"{span.context.trace_id:032x}",
                    "resends": span.attributes.get("http.request.resend_count"),
                    "status": span.attributes.get("http.response.status_code"),
                }
                for span in spans
            ],
            "seen": seen,
            "metrics": sorted({
                metric.name
                for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
                if scope.scope.name == "fastapi_http_client"
                for metric in scope.metrics
            }),
        }))
        """
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    clients = [span for span in result["spans"] if span["kind"] == "CLIENT"]
    assert {span["scope"] for span in clients} == {"fastapi_http_client"}
    assert [(span["name"], span["status"], span["resends"]) for span in clients] == [
        ("GET /users/{id}", 503, None),
        ("GET /users/{id}", 200, 1),
        ("GET /users/{id}", 200, None),
    ]
    assert [text.split("-")[2] for text in result["seen"]] == [span["id"] for span in clients]
    servers = {span["trace"] for span in result["spans"] if span["kind"] == "SERVER"}
    assert {span["trace"] for span in clients} == servers
    assert "fastapi_http_client.retries" in result["metrics"]
