"""What goes out with a request, by how far its upstream is trusted, and what hostile input does to it: nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fastapi_http_client.call import Call
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import RequestContext, bind, request_context, unbind
from fastapi_http_client.errors import ConfigurationError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.propagation import Propagation

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INBOUND = {
    "host": "us.example",
    "traceparent": TRACEPARENT,
    "tracestate": "vendor=1,other=2",
    "baggage": "user=alice,plan=gold",
    "x-tenant": "acme",
    "authorization": "Bearer of-our-caller",
}


def inbound(headers=INBOUND, **options):
    raw = [
        (name.encode() if isinstance(name, str) else name, value.encode() if isinstance(value, str) else value)
        for name, value in (headers.items() if isinstance(headers, dict) else headers)
    ]
    return RequestContext("request-1", headers=raw, **options)


async def sent(step, *, context=None, headers=None, call=None, home=True, again=False):
    """The headers that a request has after the step, as a dict."""
    call = call or make_call()
    host = "up.example" if home else "elsewhere.example"
    request = call.attach(httpx.Request("GET", f"http://{host}/", headers=headers))
    before = set(httpx.Request("GET", "http://up.example/").headers)
    received = []

    async def call_next(request):
        received.append(request.headers.copy())
        return HTTPResponse(200)

    token = bind(context) if context is not None else None
    try:
        await step(request, call_next=call_next)
        if again:
            await step(request, call_next=call_next)
    finally:
        if token is not None:
            unbind(token)
    return {name: value for name, value in received[-1].items() if name not in before}


def make_call(clock=None):
    return Call(
        clock=clock or FakeClock(),
        client_name="up",
        stream=False,
        retry=True,
        follow_redirects=False,
        auth=None,
        origins=frozenset({("http", "up.example", None)}),
    )


INTERNAL = Propagation("internal", ["X-Tenant"])

# -- by trust ----------------------------------------------------------------------------------------------------


async def test_an_external_upstream_gets_the_trace_and_the_request_id_only():
    assert await sent(Propagation(), context=inbound()) == {
        "traceparent": TRACEPARENT,
        "tracestate": "vendor=1,other=2",
        "x-request-id": "request-1",
    }


async def test_an_internal_upstream_gets_baggage_and_listed_headers_too():
    assert await sent(INTERNAL, context=inbound()) == {
        "traceparent": TRACEPARENT,
        "tracestate": "vendor=1,other=2",
        "baggage": "user=alice,plan=gold",
        "x-request-id": "request-1",
        "x-tenant": "acme",
    }


async def test_with_none_nothing_goes_out():
    assert await sent(Propagation("none"), context=inbound()) == {}


async def test_listed_headers_do_not_go_to_an_external_upstream():
    assert "x-tenant" not in await sent(Propagation("external", ["X-Tenant"]), context=inbound())


async def test_outside_of_any_request_nothing_goes_out_and_nothing_fails():
    assert await sent(INTERNAL) == {}


async def test_a_job_sends_its_id():
    with request_context(request_id="job-1"):
        assert await sent(Propagation()) == {"x-request-id": "job-1"}


@pytest.mark.parametrize("mode", ["external", "internal", "none"])
async def test_a_hop_to_a_foreign_origin_carries_none_of_it_whoever_set_it(mode):
    headers = {**INBOUND, "x-request-id": "theirs", "x-request-timeout-ms": "5", "accept": "a/b"}
    del headers["host"], headers["authorization"]
    step = Propagation(mode, ["X-Tenant"])
    assert await sent(step, context=inbound(), headers=headers, home=False) == {"accept": "a/b"}


def test_the_step_is_made_from_the_configuration():
    step = Propagation.of(ClientConfig(propagation="internal", propagate_headers="X-Tenant,X-User"))
    assert step._names == ("x-tenant", "x-user")


@pytest.mark.parametrize("name", ["Host", "Content-Length", "transfer-encoding", "baggage", "X-Request-ID"])
def test_headers_that_cannot_be_handed_on_are_refused(name):
    with pytest.raises(ConfigurationError, match=r"^propagate_headers: "):
        Propagation("internal", [name])


# -- the caller's own headers ------------------------------------------------------------------------------------


async def test_a_header_that_the_caller_set_wins():
    own = {
        "X-Request-ID": "mine",
        "traceparent": "00-11111111111111111111111111111111-2222222222222222-00",
        "baggage": "mine=1",
        "x-tenant": "mine",
        "x-request-timeout-ms": "7",
    }
    call = make_call()
    call.deadline = call.clock.monotonic() + 1
    headers = await sent(INTERNAL, context=inbound(), headers=own, call=call)
    assert headers == {name.lower(): value for name, value in own.items()}, "nor is our tracestate put beside it"


async def test_a_second_request_from_the_same_copy_gets_fresh_headers():
    """As after a 401: what the step wrote the first time is not the caller's."""
    provider = TracerProvider()
    tracer = provider.get_tracer("test")
    clock = FakeClock()
    call = make_call(clock)
    call.deadline = clock.monotonic() + 2
    seen = []

    async def call_next(request):
        seen.append(dict(request.headers))
        clock.advance(1)
        return HTTPResponse(200)

    request = call.attach(httpx.Request("GET", "http://up.example/"))
    for _ in range(2):
        with tracer.start_as_current_span("attempt"):
            await INTERNAL(request, call_next=call_next)
    assert seen[0]["traceparent"] != seen[1]["traceparent"]
    assert [headers["x-request-timeout-ms"] for headers in seen] == ["2000", "1000"]


async def test_listed_headers_with_several_values_become_one():
    context = inbound([(b"x-tenant", b"a"), (b"x-tenant", b"b"), (b"cookie", b"c=1"), (b"cookie", b"d=2")])
    headers = await sent(Propagation("internal", ["X-Tenant", "Cookie"]), context=context)
    assert headers["x-tenant"] == "a, b"
    assert headers["cookie"] == "c=1; d=2"


# -- the deadline ------------------------------------------------------------------------------------------------


async def test_an_internal_upstream_is_told_the_milliseconds_left():
    call = make_call()
    call.deadline = call.clock.monotonic() + 1.2345
    assert (await sent(INTERNAL, call=call)) == {"x-request-timeout-ms": "1234"}
    call.clock.advance(1.2344)
    assert (await sent(INTERNAL, call=call)) == {"x-request-timeout-ms": "1"}
    assert await sent(Propagation(), call=call) == {}, "an external one is not"


# -- the trace ---------------------------------------------------------------------------------------------------


async def test_the_current_span_is_stronger_than_the_inbound_headers():
    with TracerProvider().get_tracer("test").start_as_current_span("server") as span:
        headers = await sent(Propagation(), context=inbound())
    ids = span.get_span_context()
    assert headers["traceparent"].startswith(f"00-{ids.trace_id:032x}-{ids.span_id:016x}-")
    assert "tracestate" not in headers


async def test_the_current_spans_baggage_goes_to_internal_upstreams_only():
    with TracerProvider().get_tracer("test").start_as_current_span("server"):
        token = otel_context.attach(baggage.set_baggage("user", "bob"))
        try:
            assert (await sent(INTERNAL))["baggage"] == "user=bob"
            assert "baggage" not in await sent(Propagation())
        finally:
            otel_context.detach(token)


async def test_baggage_set_by_hand_without_a_span_is_added_to_the_inbound_trace():
    with_invalid_span = trace.set_span_in_context(trace.INVALID_SPAN)
    token = otel_context.attach(baggage.set_baggage("step", "2", with_invalid_span))
    try:
        headers = await sent(INTERNAL, context=inbound())
        assert headers["traceparent"] == TRACEPARENT
        assert set(headers["baggage"].split(",")) == {"step=2", "user=alice", "plan=gold"}
        assert (await sent(INTERNAL))["baggage"] == "step=2", "also outside of a request"
        assert "baggage" not in await sent(Propagation(), context=inbound())
    finally:
        otel_context.detach(token)


async def test_the_inbound_headers_are_read_once_per_request(monkeypatch):
    extractions = []
    extract = propagate.extract
    monkeypatch.setattr(propagate, "extract", lambda *a, **k: extractions.append(1) or extract(*a, **k))
    context = inbound()
    for _ in range(3):
        await sent(Propagation(), context=context)
        await sent(INTERNAL, context=context)
    assert len(extractions) == 1


class Asked(CompositePropagator):
    """W3C's two propagators under a name that nobody knows, so that they are always asked."""


_HEX = st.sampled_from("0123456789abcdefABCDEFg")
_TRACEPARENTS = st.one_of(
    st.just(TRACEPARENT),
    st.sampled_from(
        [
            TRACEPARENT + "-more",
            "01" + TRACEPARENT[2:],
            "ff" + TRACEPARENT[2:],
            "00-" + "0" * 32 + TRACEPARENT[35:],
            TRACEPARENT[:36] + "0" * 16 + "-01",
            f" {TRACEPARENT} ",
            TRACEPARENT + "\n",
            TRACEPARENT.upper(),
            "",
        ]
    ),
    st.tuples(*(st.text(_HEX, min_size=size, max_size=size) for size in (2, 32, 16, 2))).map("-".join),
    st.tuples(st.text(_HEX, min_size=2, max_size=2)).map(lambda flags: TRACEPARENT[:-2] + flags[0]),
)
_TRACE_HEADERS = st.one_of(
    st.tuples(st.just("traceparent"), _TRACEPARENTS),
    st.tuples(st.just("tracestate"), st.sampled_from(["vendor=1", "a=1,a=2", ""])),
    st.tuples(st.just("baggage"), st.sampled_from(["user=alice", "broken"])),
    st.just(("x-tenant", "acme")),
)


@given(st.lists(_TRACE_HEADERS, max_size=4), st.booleans())
async def test_the_usual_trace_headers_go_out_as_opentelemetry_would_send_them(headers, internal):
    step = INTERNAL if internal else Propagation()
    found = await sent(step, context=inbound(headers))
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Asked([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    try:
        assert found == await sent(step, context=inbound(headers))
    finally:
        propagate.set_global_textmap(before)


async def test_opentelemetry_is_not_asked_about_a_sound_traceparent_or_none_at_all(monkeypatch):
    monkeypatch.setattr(propagate, "extract", None)
    assert await sent(Propagation(), context=inbound({"traceparent": TRACEPARENT})) == {
        "traceparent": TRACEPARENT,
        "x-request-id": "request-1",
    }
    assert await sent(INTERNAL, context=inbound({})) == {"x-request-id": "request-1"}


async def test_other_propagators_are_used_when_they_are_configured(monkeypatch):
    class Vendor(propagate.textmap.TextMapPropagator):
        fields = frozenset({"X-Vendor-Trace"})

        def extract(self, carrier, context=None, getter=None):
            values = getter.get(carrier, "X-Vendor-Trace")
            return otel_context.set_value("vendor", values and values[0], context)

        def inject(self, carrier, context=None, setter=None):
            carrier["X-Vendor-Trace"] = str(otel_context.get_value("vendor", context))

    before = propagate.get_global_textmap()
    propagate.set_global_textmap(Vendor())
    try:
        headers = await sent(Propagation(), context=inbound({"x-vendor-trace": "42", "traceparent": TRACEPARENT}))
        assert headers == {"x-vendor-trace": "42", "x-request-id": "request-1"}
        assert await sent(Propagation(), headers={"X-Vendor-Trace": "1"}, home=False) == {}
    finally:
        propagate.set_global_textmap(before)


async def test_a_propagator_that_fails_on_inbound_headers_does_not_fail_the_call(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ValueError("secret\r\n")

    monkeypatch.setattr(propagate.get_global_textmap(), "extract", fail)
    assert await sent(Propagation(), context=inbound()) == {"x-request-id": "request-1"}
    assert "secret" not in caplog.text


# -- hostile input -----------------------------------------------------------------------------------------------

HOSTILE = [
    b"\xff\xfe\x80",
    "é=ü".encode(),
    b"\x00\x1b[2J\x07",
    b"a=1\r\nX-Admin: 1",
    b"x" * 100_000,
    b",".join(b"k%d=v" % n for n in range(5000)),
    b"=,=,=;;;",
    b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
    b"00-zz-yy-01",
    b"ff" + TRACEPARENT[2:].encode(),
    TRACEPARENT.encode() + b"-extra",
    b"",
    b"1bad=x",
    b"a=1,a=2",
    b"a==;b, c",
    b"user=%ed%a0%80%0d%0aX-Admin:%201",
    b"key=" + b"v" * 5000,
]
NAMES = ["traceparent", "tracestate", "baggage", "x-tenant", "x-request-id"]


async def assert_harmless(headers, caplog=None):
    with_trace = [(name.encode(), value) for name, value in headers]
    for step in (INTERNAL, Propagation()):
        out = await sent(step, context=inbound(with_trace))
        assert out["x-request-id"] == "request-1"
        assert set(out) <= {*NAMES, "x-request-timeout-ms"}
        for name, value in out.items():
            assert value.isascii(), name
            assert value.replace("\t", " ").isprintable(), name  # a tab is a blank (RFC 9110, section 5.5)
            assert len(value) <= 8192, name
            assert name != "baggage" or value.count(",") < 180


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
async def test_hostile_headers_never_fail_a_call_and_never_go_out_or_into_a_log(name, value, caplog):
    caplog.set_level(logging.DEBUG)
    good = [(other, INBOUND[other].encode()) for other in ("traceparent", "tracestate", "baggage") if other != name]
    await assert_harmless([*good, (name, value)])
    assert caplog.text == ""


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=300)), max_size=6))
async def test_any_inbound_headers_are_harmless(headers):
    await assert_harmless(headers)


@given(st.text(st.sampled_from('ab=;,% \t"\\%41@*/-_.:'), max_size=60))
async def test_what_looks_like_baggage_and_tracestate_is_never_logged(text):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("opentelemetry").addHandler(handler)
    try:
        trace_headers = [(b"traceparent", TRACEPARENT.encode())]
        await sent(INTERNAL, context=inbound([*trace_headers, (b"baggage", text.encode())]))
        await sent(INTERNAL, context=inbound([*trace_headers, (b"tracestate", text.encode())]))
    finally:
        logging.getLogger("opentelemetry").removeHandler(handler)
    assert records == []


async def test_bad_members_of_baggage_are_dropped_and_good_ones_kept():
    context = inbound([(b"baggage", b"good=1;meta=x , bad member , =2,"), (b"baggage", b"more=2")])
    assert (await sent(INTERNAL, context=context))["baggage"] == "good=1%3Bmeta%3Dx,more=2"


async def test_blanks_in_baggage_are_not_handed_on():
    """W3C allows them; opentelemetry-api before 1.45 refuses them, and logs the member."""
    context = inbound([(b"baggage", b"good = 1\t; meta = x , more =2")])
    assert (await sent(INTERNAL, context=context))["baggage"] == "good=1%3Bmeta%3Dx,more=2"


async def test_a_listed_header_that_is_not_visible_ascii_is_not_handed_on():
    context = inbound([(b"x-tenant", "ä".encode()), (b"x-tenant", b"a\x00b")])
    assert "x-tenant" not in await sent(INTERNAL, context=context)


# -- with the real client ----------------------------------------------------------------------------------------


NO_SDK = """
import asyncio, json, httpx
from opentelemetry import trace
from fastapi_http_client import AsyncHTTPClient, ClientConfig
from fastapi_http_client.context import RequestContext, bind

CHALLENGE = {"www-authenticate": 'Digest realm="r", nonce="n", qop="auth"'}
INBOUND = [(b"traceparent", b"TRACEPARENT"), (b"baggage", b"user=alice")]

async def main():
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    sent = []

    def answer(request):
        sent.append(dict(request.headers))
        return httpx.Response(200) if len(sent) == 2 else httpx.Response(401, headers=CHALLENGE)

    bind(RequestContext("request-1", headers=INBOUND))
    async with AsyncHTTPClient(
        "http://up.example",
        config=ClientConfig(propagation="internal", total_timeout=5),
        transport=httpx.MockTransport(answer),
        auth=httpx.DigestAuth("user", "password"),
    ) as client:
        response = await client.get("/x")
    assert response.status_code == 200
    assert "traceparent" not in response.request.headers
    print(json.dumps(sent))

asyncio.run(main())
"""


def test_without_an_sdk_the_inbound_trace_goes_on_unchanged_with_every_request():
    """In a process of its own, which has the API's default providers only; the second request answers a 401."""
    script = NO_SDK.replace("TRACEPARENT", TRACEPARENT)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    sent = json.loads(run.stdout)
    assert len(sent) == 2
    for headers in sent:
        assert headers["traceparent"] == TRACEPARENT
        assert headers["baggage"] == "user=alice"
        assert headers["x-request-id"] == "request-1"
        assert 0 < int(headers["x-request-timeout-ms"]) <= 5000


def test_no_test_here_sets_a_global_provider():
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class FailingPropagator(TraceContextTextMapPropagator):
    def inject(self, carrier, context=None, setter=None):
        raise RuntimeError("a bug of a vendor's propagator")


class CarelessPropagator(TraceContextTextMapPropagator):
    def inject(self, carrier, context=None, setter=None):
        carrier["X-Vendor-Trace"] = "1\r\nX-Admin: 1"
        carrier["X-Vendor-Span"] = "2"


@pytest.mark.parametrize("content", [None, b"x"])
@pytest.mark.parametrize("middlewares", [[], [Middleware()]])
@pytest.mark.parametrize(
    ("propagator", "written"), [(FailingPropagator(), {}), (CarelessPropagator(), {"x-vendor-span": "2"})]
)
async def test_a_propagator_that_fails_costs_no_call(
    monkeypatch, caplog, upstream, propagator, written, middlewares, content
):
    monkeypatch.setattr(propagate, "get_global_textmap", lambda: propagator)
    monkeypatch.setattr(propagate, "propagator", propagator)
    monkeypatch.setattr(propagate, "inject", propagator.inject)
    token = bind(inbound())
    try:
        async with AsyncHTTPClient(upstream.url(), middlewares=middlewares) as client:
            sent = (await client.request("GET", "/echo", content=content)).json_data["headers"]
    finally:
        unbind(token)
    assert {name: value for name, value in sent if name.startswith("x-vendor")} == written
    assert ("RuntimeError" in caplog.text) is (not written)
