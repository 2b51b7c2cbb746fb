"""Spans and metrics of the outbound calls, by the stable HTTP semantic conventions of OpenTelemetry.

One CLIENT span for each request on the wire (semantic-conventions,
`docs/http/http-spans.md`). It ends when the response is ready, for a streamed one with its
headers. Metrics, with seconds throughout:

| metric                                              | kind            | attributes                                  |
| --------------------------------------------------- | --------------- | ------------------------------------------- |
| `http.client.request.duration`                      | histogram       | the conventions'                            |
| `http.client.active_requests`                       | up-down counter | the conventions'                            |
| `fastapi_http_client.retries`                       | counter         | client, method                              |
| `fastapi_http_client.retry.delay`                   | histogram       | client, method                              |
| `fastapi_http_client.rate_limiter.wait`             | histogram       | client                                      |
| `fastapi_http_client.circuit_breaker.state_changes` | counter         | client, `circuit_breaker.from`, `….to`      |

Only the OpenTelemetry API is used. Without a provider each request costs two look-ups and nothing is built.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, MeterProvider, UpDownCounter
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace import Tracer as OtelTracer

from fastapi_http_client.call import TEMPLATE, Call, Handler
from fastapi_http_client.engine.errors import exchange_facts
from fastapi_http_client.errors import HTTPTimeoutError
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.propagation import outgoing_context
from fastapi_http_client.redaction import redact_url

if TYPE_CHECKING:
    from fastapi_http_client.circuit_breaker import StateChange

SCOPE = "fastapi_http_client"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.36.0"
CLIENT = "fastapi_http_client.client"
"""The attribute that holds the client's name."""

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_KNOWN_METHODS = "CONNECT,DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT,QUERY,TRACE"
_OF_ACTIVE = ("http.request.method", "server.address", "server.port", "url.scheme", "url.template")
_PORTS = {"http": 80, "https": 443}

# The contrib instrumentor for httpx looks for this key before it makes a span of its own. The key is part of the API
# package, though not of its public names; without it there would be two spans.
_SUPPRESS_HTTP = getattr(otel_context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", None)
_SUPPRESS_ALL = getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", None)
_BY_US = ("fastapi_http_client",)
"""The key's value that is for the contrib instrumentor only: a call of ours, made while another is sent, has a span."""
_CONTRIB = "opentelemetry.instrumentation.httpx"


class ClientSpan:
    """The step that makes a span of each request on the wire, and measures it.

    It stands outside of `Propagation`, so that the upstream's span becomes a child of this one.
    """

    __slots__ = ("_asks_the_api", "_client_name", "_meter_provider", "_tracer_provider")
    name = "client span"

    def __init__(
        self,
        client_name: str | None = None,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._client_name = client_name
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        # Its public functions read the environment to say that there is no provider: 1.2 µs each, with every call.
        self._asks_the_api = tracer_provider is None and meter_provider is None and not _is_named_in_environment()

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        observed = self.observe(request)
        if observed is None:
            return await call_next(request)
        try:
            response = await call_next(request)
        except BaseException as error:
            observed.end(error=error)
            raise
        observed.end(response=response)
        return response

    def observe(self, request: httpx.Request) -> Observed | None:
        """Begin to observe a request, whose `end()` must follow; None when nobody wants to know."""
        if self._asks_the_api and _nothing_is_set():
            return None
        tracer = _tracer(self._tracer_provider)
        instruments = _instruments(self._meter_provider)
        if (tracer is None and instruments is None) or _is_suppressed():
            return None
        return Observed(request, self._client_name, tracer, instruments)


def report_retry(
    request: httpx.Request, client_name: str | None, delay: float, *, meter_provider: MeterProvider | None = None
) -> None:
    """A call is tried once more, after a delay in seconds."""
    instruments = _instruments(meter_provider)
    if instruments is not None:
        attributes = {**_named(client_name), "http.request.method": _method(request)}
        instruments.retries.add(1, attributes)
        instruments.retry_delay.record(delay, attributes)


def report_limiter_wait(
    client_name: str | None, seconds: float, *, meter_provider: MeterProvider | None = None
) -> None:
    """An attempt waited so long in the rate limiter."""
    instruments = _instruments(meter_provider)
    if instruments is not None:
        instruments.limiter_wait.record(seconds, _named(client_name))


def report_circuit_change(change: StateChange, *, meter_provider: MeterProvider | None = None) -> None:
    """A circuit changed its state: a listener for `CircuitBreaker.subscribe()`."""
    instruments = _instruments(meter_provider)
    if instruments is not None:
        states = {"circuit_breaker.from": change.old.value, "circuit_breaker.to": change.new.value}
        instruments.circuit_changes.add(1, {**_named(change.name), **states})


def _named(client_name: str | None) -> dict[str, str]:
    return {} if client_name is None else {CLIENT: client_name}


class Observed:
    """One request on the wire: from its start to its end, as a span, as metrics, or as both."""

    __slots__ = ("_attributes", "_call", "_instruments", "_span", "_started", "_token")

    def __init__(
        self,
        request: httpx.Request,
        client_name: str | None,
        tracer: OtelTracer | None,
        instruments: _Instruments | None,
    ) -> None:
        call = self._call = Call.of(request)
        call.head = None
        self._attributes = _attributes(request)
        self._instruments = instruments
        self._span: Span | None = None
        if tracer is not None:
            self._span, context = _start_span(tracer, request, call, client_name, self._attributes)
            self._token = otel_context.attach(context)
        if instruments is not None:
            instruments.active.add(1, _of_active(self._attributes))
        self._started = call.clock.monotonic()

    def end(self, *, response: httpx.Response | None = None, error: BaseException | None = None) -> None:
        call = self._call
        elapsed = call.clock.monotonic() - self._started
        # The rest of the attributes. The span has the others already, and an SDK checks each one that it is given.
        found: dict[str, Any] = {}
        failed = False
        if response is not None:
            found = _of_head(response.status_code, response.http_version)
            if response.status_code >= 400 or (call.is_last_hop and response.has_redirect_location):
                found["error.type"] = str(response.status_code)
                failed = True
        elif error is not None:
            head = call.head or _head_before(error)
            if head is not None:
                found = _of_head(*head)
            cls = _class_of_failure(error, call)
            found["error.type"] = (
                cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
            )
            failed = cls is not asyncio.CancelledError
        if self._instruments is not None:
            # While the span is current, so that the SDK can attach it as an exemplar.
            self._instruments.duration.record(elapsed, self._attributes | found)
            self._instruments.active.add(-1, _of_active(self._attributes))
        if self._span is not None:
            otel_context.detach(self._token)
            self._span.set_attributes(found)
            if failed:
                self._span.set_status(StatusCode.ERROR)
            self._span.end()


def _start_span(
    tracer: OtelTracer, request: httpx.Request, call: Call, client_name: str | None, common: dict[str, Any]
) -> tuple[Span, Context]:
    attributes = {**common, "url.full": redact_url(request.url, call.secret_params, mask="REDACTED")}
    method = common["http.request.method"]
    if method == "_OTHER":
        attributes["http.request.method_original"] = request.method
    if call.resends > 0:
        attributes["http.request.resend_count"] = call.resends
    if client_name is not None:
        attributes[CLIENT] = client_name
    name = "HTTP" if method == "_OTHER" else method
    if "url.template" in common:
        name = f"{name} {common['url.template']}"
    parent = outgoing_context()
    span = tracer.start_span(name, context=parent, kind=SpanKind.CLIENT, attributes=attributes)
    context = trace.set_span_in_context(span, parent)
    if _SUPPRESS_HTTP is not None and _CONTRIB in sys.modules:
        context = otel_context.set_value(_SUPPRESS_HTTP, _BY_US, context)
    return span, context


def _attributes(request: httpx.Request) -> dict[str, Any]:
    """What span and metric have in common, known before the request is sent."""
    url = request.url
    attributes = {"http.request.method": _method(request), **_of_origin(url.scheme, url.netloc)}
    if TEMPLATE in request.extensions:
        attributes["url.template"] = request.extensions[TEMPLATE]
    return attributes


@functools.lru_cache(maxsize=256)
def _of_origin(scheme: str, netloc: bytes) -> dict[str, Any]:
    url = httpx.URL(f"{scheme}://{netloc.decode('ascii')}")
    return {"server.address": url.host, "server.port": url.port or _PORTS.get(scheme, 0), "url.scheme": scheme}


def _of_active(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: attributes[key] for key in _OF_ACTIVE if key in attributes}


def _method(request: httpx.Request) -> str:
    return request.method if request.method in _known_methods() else "_OTHER"


@functools.cache
def _known_methods() -> frozenset[str]:
    """The conventions' list, or what a variable of theirs puts in its place."""
    return frozenset(os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", _KNOWN_METHODS).split(","))


def _of_head(status: int, http_version: str) -> dict[str, Any]:
    return {
        "http.response.status_code": status,
        "network.protocol.version": http_version.removeprefix("HTTP/"),
    }


def _head_before(error: BaseException) -> tuple[int, str] | None:
    """Status and version of the response that failed after its head, as the engine knows them."""
    facts = None if error.__cause__ is None else exchange_facts(error.__cause__)
    return None if facts is None else facts.head


def _class_of_failure(error: BaseException, call: Call) -> type[BaseException]:
    """The class of the failure: httpx's when that is underneath, since it says more than ours.

    The limit of the whole call, which stands outside of this, comes as a cancellation.
    """
    if isinstance(error, asyncio.CancelledError):
        return HTTPTimeoutError if call.remaining() == 0.0 else asyncio.CancelledError
    return type(error.__cause__ if isinstance(error.__cause__, httpx.HTTPError) else error)


# -- providers ---------------------------------------------------------------------------------------------------


class _Instruments:
    """The instruments of one meter provider."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE, schema_url=SCHEMA_URL)
        self.duration: Histogram = meter.create_histogram(
            "http.client.request.duration",
            unit="s",
            description="Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self.active: UpDownCounter = meter.create_up_down_counter(
            "http.client.active_requests", unit="{request}", description="Number of active HTTP requests."
        )
        self.retries: Counter = meter.create_counter(
            "fastapi_http_client.retries", unit="{retry}", description="Number of attempts after the first."
        )
        self.retry_delay: Histogram = meter.create_histogram(
            "fastapi_http_client.retry.delay",
            unit="s",
            description="Time that calls waited before a retry.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self.limiter_wait: Histogram = meter.create_histogram(
            "fastapi_http_client.rate_limiter.wait",
            unit="s",
            description="Time that calls waited in the rate limiter.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self.circuit_changes: Counter = meter.create_counter(
            "fastapi_http_client.circuit_breaker.state_changes",
            unit="{change}",
            description="Number of times that a circuit changed its state.",
        )


def _tracer(given: TracerProvider | None) -> OtelTracer | None:
    provider = given or trace.get_tracer_provider()
    return None if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider) else _tracer_of(provider)


def _instruments(given: MeterProvider | None) -> _Instruments | None:
    provider = given or metrics.get_meter_provider()
    # The API has no public name for the provider that stands in until a real one is set.
    if type(provider).__name__ in ("_ProxyMeterProvider", "NoOpMeterProvider"):
        return None
    return _instruments_of(provider)


def _nothing_is_set() -> bool:
    """Whether the API has no provider yet. Not certain, should the private names no longer be there."""
    return getattr(trace, "_TRACER_PROVIDER", trace) is None and getattr(_metrics, "_METER_PROVIDER", _metrics) is None


def _is_named_in_environment() -> bool:
    """Whether the environment names a provider, which the API makes when it is asked for the first time."""
    return "OTEL_PYTHON_TRACER_PROVIDER" in os.environ or "OTEL_PYTHON_METER_PROVIDER" in os.environ


_metrics = sys.modules.get("opentelemetry.metrics._internal", metrics)


@functools.lru_cache(maxsize=8)
def _tracer_of(provider: TracerProvider) -> OtelTracer:
    return provider.get_tracer(SCOPE, schema_url=SCHEMA_URL)


@functools.lru_cache(maxsize=8)
def _instruments_of(provider: MeterProvider) -> _Instruments:
    return _Instruments(provider)


def _is_suppressed() -> bool:
    """Whether instrumentation is switched off here, as exporters do for their own requests."""
    current = otel_context.get_current()
    return bool(current) and any(
        key is not None and current.get(key) and current[key] is not _BY_US for key in (_SUPPRESS_ALL, _SUPPRESS_HTTP)
    )
