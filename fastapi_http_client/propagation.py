"""What a request on the wire carries of the inbound request behind it, by how far its upstream is trusted.

| `propagation` | trace context | request id | baggage, `propagate_headers`, remaining deadline |
| ------------- | ------------- | ---------- | ------------------------------------------------ |
| `external`    | yes           | yes        | no                                               |
| `internal`    | yes           | yes        | yes                                              |
| `none`        | no            | no         | no                                               |

The trace is the current span's. Without one, as when no OpenTelemetry SDK is set up, it is read from the inbound
headers and handed on unchanged. Both go through `opentelemetry.propagate`, so `OTEL_PROPAGATORS` counts.

Whatever came in is checked before OpenTelemetry sees it, since it logs what it rejects: only well-formed members of
`baggage` (W3C Baggage, section 3.3) and `tracestate` (W3C Trace Context, section 3.3) get that far.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Sequence
from typing import Literal, cast

import httpx
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.call import Call, Handler
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import RawHeaders, RequestContext, current_context, get_request_id
from fastapi_http_client.models import HTTPResponse

REQUEST_ID_HEADER = "x-request-id"
DEADLINE_HEADER = "x-request-timeout-ms"

_WRITTEN = "fastapi_http_client.propagated"
_NEVER_PROPAGATED = frozenset(
    {
        # What describes one message or one connection (RFC 9110, section 7.6.1).
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # What is propagated by rules of its own.
        "baggage",
        DEADLINE_HEADER,
        REQUEST_ID_HEADER,
        "traceparent",
        "tracestate",
    }
)

_MAX_VALUE = 8192  # characters of one inbound header: W3C Baggage's own limit
_MAX_MEMBERS = 180  # of a baggage header; W3C Baggage's limit, and OpenTelemetry's
_MAX_MEMBER = 4096
_MAX_TRACEPARENT = 512  # OpenTelemetry's limit
_MAX_TRACE_MEMBERS = 32  # W3C Trace Context, section 3.3.1.1
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_VISIBLE = re.compile(r"[\x20-\x7e\t]*")
_BAGGAGE_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_BAGGAGE_VALUE = r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*"
# Compiled, and kept by `re`, when the first of them comes in: an import is to be quick.
_BAGGAGE_PAIR = rf"[ \t]*+=[ \t]*+{_BAGGAGE_VALUE}"  # possessive: blanks are never tried in two places
_BAGGAGE_MEMBER = rf"{_BAGGAGE_TOKEN}{_BAGGAGE_PAIR}(?:[ \t]*+;[ \t]*+{_BAGGAGE_TOKEN}(?:{_BAGGAGE_PAIR})?)*"
_TRACE_MEMBER = (
    r"(?P<key>[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)

_logger = logging.getLogger(__name__)


class Propagation:
    """The step that writes the context headers, once per attempt. A header that the caller set is left alone."""

    __slots__ = ("_internal", "_names", "_off")
    name = "propagation"

    def __init__(
        self,
        propagation: Literal["external", "internal", "none"] = "external",
        propagate_headers: Sequence[str] = (),
    ) -> None:
        names = tuple(dict.fromkeys(name.lower() for name in propagate_headers))
        for name in names:
            if name in _NEVER_PROPAGATED:
                raise bad_argument("", "propagate_headers", f"{name!r} cannot be handed on: it has rules of its own")
        self._off = propagation == "none"
        self._internal = propagation == "internal"
        self._names = names

    @classmethod
    def of(cls, config: ClientConfig) -> Propagation:
        return cls(config.propagation, config.propagate_headers)

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        call = Call.of(request)
        if call.is_home(request):
            self._write(request, call)
        else:
            self._strip(request.headers)
        return await call_next(request)

    def _write(self, request: httpx.Request, call: Call) -> None:
        headers = request.headers
        for name in request.extensions.pop(_WRITTEN, ()):  # the same copy again, after a 401: ours are not the caller's
            del headers[name]
        written = self.context_headers(call, headers.keys())
        for name, value in written.items():
            headers[name] = value
        request.extensions[_WRITTEN] = written

    def context_headers(self, call: Call, present: Container[str]) -> dict[str, str]:
        """What to add to a request that has the headers `present` (lower case) and stays at home."""
        if self._off:
            return {}
        ours = dict(_trace_headers(with_baggage=self._internal))
        if ours:
            if "baggage" in present:
                ours.pop("baggage", None)
            if any(name in present for name in ours if name != "baggage"):
                # The fields of a trace belong together: our `tracestate` must not meet the caller's `traceparent`.
                ours = {name: ours[name] for name in ours if name == "baggage"}
        request_id = get_request_id()
        if request_id is not None and REQUEST_ID_HEADER not in present:
            ours[REQUEST_ID_HEADER] = request_id
        if self._internal:
            remaining = call.remaining()
            if remaining is not None and DEADLINE_HEADER not in present:
                ours[DEADLINE_HEADER] = str(max(1, int(remaining * 1000)))
            if self._names:
                self._add_inbound(ours, present)
        return ours

    def _add_inbound(self, ours: dict[str, str], present: Container[str]) -> None:
        context = current_context()
        if context is None:
            return
        for name in self._names:
            values = _values(context.headers, name)
            if values and name not in present and name not in ours:
                ours[name] = ("; " if name == "cookie" else ", ").join(values)

    def _strip(self, headers: httpx.Headers) -> None:
        """A hop to a foreign origin carries nothing of ours, whoever set it."""
        trace_fields = (field.lower() for field in propagate.get_global_textmap().fields)
        for name in {REQUEST_ID_HEADER, DEADLINE_HEADER, "baggage", *trace_fields, *self._names}:
            if name in headers:
                del headers[name]


# -- the trace ---------------------------------------------------------------------------------------------------


class _InboundTrace:
    """The trace that came in with a request, and what it looks like on the wire: the same for all its calls."""

    __slots__ = ("_carriers", "_context", "_headers")

    def __init__(self, headers: RawHeaders) -> None:
        self._headers = headers
        self._context: Context | None = None
        self._carriers: dict[bool, dict[str, str]] = {}

    @property
    def context(self) -> Context:
        if self._context is None:
            self._context = _extract(self._headers)
        return self._context

    def carrier(self, with_baggage: bool) -> dict[str, str]:
        carrier = self._carriers.get(with_baggage)
        if carrier is None:
            carrier = _fast_carrier(self._headers, with_baggage)
            if carrier is None:
                carrier = _inject(self.context, with_baggage)
            self._carriers[with_baggage] = carrier
        return carrier


def _fast_carrier(headers: RawHeaders, with_baggage: bool) -> dict[str, str] | None:
    """What W3C's propagators, which are OpenTelemetry's default, hand on of nearly all requests, without asking them.

    That is a sound `traceparent`, unchanged, or nothing. None when they are to be asked.
    """
    if not _w3c.is_in_use():
        return None
    traceparent = None
    for name, value in headers:
        if name == b"traceparent":
            if traceparent is not None or not _TRACEPARENT.fullmatch(value):
                return None
            traceparent = value
        elif name == b"tracestate" or (with_baggage and name == b"baggage"):
            return None
    return {} if traceparent is None else {"traceparent": traceparent.decode("ascii")}


class _W3C:
    """Whether OpenTelemetry propagates by the W3C's headers and by nothing else, looked up once a propagator."""

    __slots__ = ("_answer", "_propagator")

    def __init__(self) -> None:
        self._propagator: object = None
        self._answer = False

    def is_in_use(self) -> bool:
        propagator = propagate.get_global_textmap()
        if propagator is not self._propagator:
            self._propagator = propagator
            parts = getattr(propagator, "_propagators", ()) if type(propagator) is CompositePropagator else ()
            self._answer = [type(part) for part in parts] == [TraceContextTextMapPropagator, W3CBaggagePropagator]
        return self._answer


_w3c = _W3C()


def outgoing_context() -> Context:
    """The OpenTelemetry context that an outgoing request belongs to.

    That of the current span, else what the inbound headers say, read once per request.
    """
    current = otel_context.get_current()
    if trace.get_current_span(current).get_span_context().is_valid:
        return current
    request = current_context()
    if request is None:
        return current
    inbound = _inbound_trace(request).context
    return _merged(inbound, current) if current else inbound


def _trace_headers(with_baggage: bool) -> dict[str, str]:
    if otel_context.get_current():
        return _inject(outgoing_context(), with_baggage)
    request = current_context()
    return {} if request is None else _inbound_trace(request).carrier(with_baggage)


def _inbound_trace(request: RequestContext) -> _InboundTrace:
    if request.trace is None:
        request.trace = _InboundTrace(request.headers)
    return cast("_InboundTrace", request.trace)


def _merged(inbound: Context, current: Context) -> Context:
    """The inbound trace, and over it what was put by hand into a context that has no span."""
    context = trace.set_span_in_context(trace.get_current_span(inbound), Context({**inbound, **current}))
    own = baggage.get_all(current)
    for name, value in baggage.get_all(inbound).items():
        if name not in own:
            context = baggage.set_baggage(name, value, context)
    return context


def _extract(headers: RawHeaders) -> Context:
    try:
        return propagate.extract(headers, Context(), getter=_GETTER)
    except Exception as error:  # a propagator of the user's choice; an end user's header must not fail our call
        _logger.warning("the inbound trace context could not be read: %s", type(error).__name__)
        return Context()


def _inject(context: Context, with_baggage: bool) -> dict[str, str]:
    if not with_baggage and baggage.get_all(context):
        context = baggage.clear(context)
    carrier: dict[str, str] = {}
    try:
        propagate.inject(carrier, context)
        return {name.lower(): value for name, value in carrier.items() if _VISIBLE.fullmatch(value)}
    except Exception as error:  # a propagator of the user's choice: a trace is not worth a call
        _logger.warning("the trace context could not be written: %s", type(error).__name__)
        return {}


class _InboundGetter(Getter[RawHeaders]):
    """Reads the raw inbound headers; a value that is not well-formed does not exist."""

    def get(self, carrier: RawHeaders, key: str) -> list[str] | None:
        name = key.lower()
        values = _values(carrier, name)
        if values and name == "baggage":
            values = _baggage(values)
        elif values and name == "tracestate":
            values = _tracestate(values)
        elif values and name == "traceparent" and len(values[0]) > _MAX_TRACEPARENT:
            values = []
        return values or None

    def keys(self, carrier: RawHeaders) -> list[str]:
        return [name for raw_name, _ in carrier if (name := _visible(raw_name)) is not None]


_GETTER = _InboundGetter()


def _values(headers: RawHeaders, name: str) -> list[str]:
    """The values of an inbound header, in order, without those that may not be handed on."""
    wanted = name.encode("ascii")
    return [value for raw_name, raw in headers if raw_name == wanted and (value := _visible(raw)) is not None]


def _visible(raw: bytes) -> str | None:
    """The text of a header, or None when it is too long or holds anything but visible ASCII and blanks."""
    if len(raw) > _MAX_VALUE:
        return None
    text = raw.decode("latin-1")
    return text if _VISIBLE.fullmatch(text) else None


def _baggage(values: list[str]) -> list[str]:
    """All `baggage` fields as one, without malformed members; nothing at all when it is over the limits."""
    members = [member for value in values for member in value.split(",")]
    if sum(map(len, values)) > _MAX_VALUE or len(members) > _MAX_MEMBERS:
        return []
    texts = [member.strip(" \t") for member in members]
    good = [text for text in texts if len(text) <= _MAX_MEMBER and re.fullmatch(_BAGGAGE_MEMBER, text)]
    # Blanks around "=" and ";" are allowed, and opentelemetry-api before 1.45 refuses them and logs the member.
    return [re.sub(r"[ \t]", "", ",".join(good))] if good else []


def _tracestate(values: list[str]) -> list[str]:
    """All `tracestate` fields as one; nothing at all when a member is malformed or they are over the limits."""
    members = [text for value in values for member in value.split(",") if (text := member.strip(" \t"))]
    if len(members) > _MAX_TRACE_MEMBERS or sum(map(len, values)) > _MAX_VALUE:
        return []
    keys = set()
    for member in members:
        match = re.fullmatch(_TRACE_MEMBER, member)
        if match is None or match["key"] in keys:
            return []
        keys.add(match["key"])
    return [",".join(members)]
