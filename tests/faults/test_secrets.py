"""A canary in every place that can hold a secret is found in no log, error, repr or span, and never abroad."""

from __future__ import annotations

import contextlib
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import hpack
import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fastapi_http_client import telemetry
from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import HTTPClientError
from fastapi_http_client.middleware import LoggingMiddleware
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from tests.hostile.server import disguises
from tests.hostile.upstream import HostileUpstream

CANARY = "CaNaRy-7f3e9"

Call = dict[str, Any]
Slot = Callable[[HostileUpstream], tuple[dict[str, Any], Call]]


def with_config(**fields: Any) -> Slot:
    return lambda upstream: ({"fields": fields}, {})


def with_auth(auth: httpx.Auth) -> Slot:
    return lambda upstream: ({"auth": auth}, {})


def with_call(**call: Any) -> Slot:
    return lambda upstream: ({}, call)


SLOTS: dict[str, Slot] = {
    "bearer": with_auth(BearerAuth(CANARY)),
    "bearer from a callable": with_auth(BearerAuth(lambda: CANARY)),
    "api key": with_auth(APIKeyAuth(CANARY)),
    "api key in a header of another name": with_auth(APIKeyAuth(CANARY, header_name="X-Vendor")),
    "api key in the query": with_auth(APIKeyAuth(CANARY, query_param_name="appid")),
    "basic": with_auth(BasicAuth("user", CANARY)),
    "httpx's own basic": with_auth(httpx.BasicAuth("user", CANARY)),
    "oauth2": lambda up: ({"auth": OAuth2ClientCredentials(up.url("/oauth/token"), "id", CANARY)}, {}),
    "oauth2 that fails": lambda up: (
        {"auth": OAuth2ClientCredentials(up.url("/oauth/token?mode=echo-secret"), "id", CANARY)},
        {},
    ),
    "config": with_config(auth={"type": "bearer", "token": CANARY}),
    "config headers": with_config(headers={"Authorization": CANARY, "X-Api-Key": CANARY, "Cookie": CANARY}),
    "userinfo": lambda up: ({"base_url": up.url().replace("//", f"//user:{CANARY}@")}, {}),
    "proxy": lambda up: ({"fields": {"proxy": up.url("", "other").replace("//", f"//user:{CANARY}@")}}, {}),
    "client headers": lambda up: ({"headers": {"Authorization": CANARY}}, {}),
    "client cookies": lambda up: ({"cookies": {"session": CANARY}}, {}),
    "call headers": with_call(headers={"Authorization": f"Bearer {CANARY}", "X-Auth-Token": CANARY}),
    "call cookie": with_call(headers={"Cookie": f"session={CANARY}"}),
    "query token": with_call(params={"access_token": CANARY}),
    "pair": with_call(auth=("user", CANARY)),
}

PATHS = (
    "/ok", "/status/404", "/status/401", "/status/429", "/status/503", "/reset", "/reset-mid-body", "/drip", "/hang",
    "/coding/truncated", "/redirect-cross", "/redirect-cross?code=307", "/redirect-loop", "/redirect-to?url=ftp://x/",
    "/redirect-to?url=//127.0.0.1:1/", "/bad-head/http09", "/large?bytes=20000", "/raw",
)  # fmt: skip


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_nothing_is_set", lambda: False)
    monkeypatch.setattr(telemetry, "_tracer", lambda given: telemetry._tracer_of(provider))
    monkeypatch.setattr(telemetry, "_nothing_is_set", lambda: False)
    yield exporter
    provider.shutdown()


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(telemetry, "_nothing_is_set", lambda: False)
    monkeypatch.setattr(telemetry, "_instruments", lambda given: telemetry._instruments_of(provider))
    yield reader
    provider.shutdown()


UPLOAD = bytes(100_000)
SET_COOKIE = f"HTTP/1.1 401 No\r\nSet-Cookie: session={CANARY}\r\nContent-Length: 0\r\n\r\n".encode()
"""What `/raw` answers with."""


def shown_by(error: BaseException) -> Iterator[str]:
    """Everything that an error's reader, its log or its error tracker may show, with what it was caused by."""
    yield "".join(traceback.format_exception(error))
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        pending += [link.__cause__, link.__context__]
        yield f"{link!s} {link!r} {link.args!r}"
        if isinstance(link, HTTPClientError):
            yield pickle.dumps(link).decode("latin-1")
            yield repr(link.attempts)
            pending += [attempt.error for attempt in link.attempts]
            if link.request is not None:
                yield f"{link.request!r} {link.request.headers!r} {link.request.headers.raw!r}"


async def shown_by_calls(client: AsyncHTTPClient, call: Call) -> list[str]:
    shown = [repr(client), repr(client.config), str(client.config), repr(client.auth)]
    for path in PATHS:
        for streamed in (False, True):
            try:
                if streamed:
                    content = SET_COOKIE if path == "/raw" else b"{}"
                    async with client.stream("POST", path, content=content, **call) as response:
                        await response.aread()
                else:
                    response = await client.get(path, **call)
                shown.append(f"{response!r} {response.history!r} {response.attempts!r}")
                if "params" not in call:  # else the request shows what its caller wrote into the address
                    shown.append(repr(response.request))
                response.raise_for_status()
            except HTTPClientError as error:
                shown += shown_by(error)
    return shown


def hits(shown: list[str]) -> list[str]:
    forms = [form.decode("latin-1") for form in disguises(CANARY)]
    found = [(text, text.find(form)) for text in shown for form in forms if form in text]
    return sorted({f"{text[:60]} … {text[max(0, at - 60) : at + 30]}" for text, at in found})


@pytest.mark.parametrize("slot_name", SLOTS)
async def test_a_secret_is_shown_nowhere(
    upstream: HostileUpstream,
    slot_name: str,
    caplog: pytest.LogCaptureFixture,
    spans: InMemorySpanExporter,
    metrics: InMemoryMetricReader,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("http", "fastapi", "h11", "h2", "hpack", "asyncio", "opentelemetry")):
            caplog.set_level(logging.DEBUG, logger=name)
    arguments, call = SLOTS[slot_name](upstream)
    config = ClientConfig(
        timeout=0.05,
        total_timeout=0.15,
        follow_redirects=True,
        retry_attempts=2,
        retry_backoff_factor=0.001,
        **arguments.pop("fields", {}),
    )
    base_url = arguments.pop("base_url", upstream.url())
    async with AsyncHTTPClient(
        base_url, config=config, name="api", middlewares=[LoggingMiddleware()], **arguments
    ) as client:
        shown = await shown_by_calls(client, call)
    shown += [record.getMessage() + "".join(_traceback(record)) for record in caplog.records]
    shown += [span.to_json() for span in spans.get_finished_spans()]
    assert spans.get_finished_spans()
    measured = metrics.get_metrics_data()
    assert measured is not None
    shown.append(measured.to_json())
    assert "http.client.request.duration" in shown[-1]
    assert len(caplog.records) > 20
    assert hits(shown) == []


def _traceback(record: logging.LogRecord) -> list[str]:
    return traceback.format_exception(record.exc_info[1]) if record.exc_info and record.exc_info[1] else []


PATHS_OF_FRAMES = (
    "/reset",
    "/reset-mid-body",
    "/drip",
    "/hang",
    "/coding/truncated",
    "/bad-head/http09",
    "/status/503",
)


@pytest.mark.parametrize("slot_name", [name for name in SLOTS if not name.startswith(("call", "query", "pair"))])
async def test_no_variable_in_a_frame_of_an_error_holds_a_secret(upstream: HostileUpstream, slot_name: str) -> None:
    """Error trackers show them. What the caller gave to the call itself is in the caller's own frames anyway."""
    arguments, _ = SLOTS[slot_name](upstream)
    config = ClientConfig(timeout=0.03, retry_attempts=2, retry_backoff_factor=0.001, **arguments.pop("fields", {}))
    base_url = arguments.pop("base_url", upstream.url())
    shown: list[str] = []
    async with AsyncHTTPClient(base_url, config=config, **arguments) as client:
        for path in PATHS_OF_FRAMES:
            for headers in ({}, {"X-Bad": "a\nb"}):
                for method, content in (("GET", None), ("PUT", UPLOAD)):
                    with pytest.raises(HTTPClientError) as caught:
                        await client.request(method, path, content=content, headers=headers, total_timeout=0.1)
                    shown += variables_of(caught.value)
    assert len(shown) > 50
    assert hits(shown) == []


def variables_of(error: BaseException) -> Iterator[str]:
    link: BaseException | None = error
    while link is not None:
        for frame, _ in traceback.walk_tb(link.__traceback__):
            if frame.f_code.co_filename != __file__:
                yield f"{frame.f_code.co_qualname}: " + " ".join(repr(value) for value in frame.f_locals.values())
        link = link.__cause__ or link.__context__


def test_the_compression_of_http2_logs_no_headers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="hpack")
    compressed = hpack.Encoder().encode([("authorization", CANARY)])
    hpack.Decoder().decode(compressed)
    assert caplog.records == []


async def test_refusals_show_no_secret(upstream: HostileUpstream) -> None:
    breaker, limiter = CircuitBreaker(), TokenBucketRateLimiter(0.001)
    breaker.trip()
    shown: list[str] = []
    for options in ({"circuit_breaker": breaker}, {"rate_limiter": limiter}, {}):
        client = AsyncHTTPClient(upstream.url(), auth=APIKeyAuth(CANARY, query_param_name="appid"), **options)  # type: ignore[arg-type]
        with contextlib.suppress(HTTPClientError):
            await client.get("/ok")
        for path in (
            "/ok",
            f"http://user:{CANARY}@{upstream.host}:{upstream.ports['other']}/",
            f"//{CANARY}/",
            "/../x",
        ):
            try:
                if not options:
                    await client.aclose()
                await client.get(path, total_timeout=0.1, params={"token": CANARY})
            except HTTPClientError as error:
                shown += shown_by(error)
        await client.aclose()
    assert len(shown) > 30
    assert hits(shown) == []


# -- abroad


ABROAD = (
    "{other}/echo", "//{other_host}/echo", "/redirect-cross", "/redirect-cross?code=301", "/redirect-cross?code=307",
    "/redirect-cross?code=308", "/redirect-to?url=//{other_host}/echo", "/redirect-to?url={other}/echo?code=303",
    "/redirect-cross?userinfo=user:pw", "/\\\\{other_host}/echo", "\\\\{other_host}", "@{other_host}/echo",
    "http:/{other_host}/", "/redirect-cross?host=localhost", "/redirect-to?url=/redirect-cross",
)  # fmt: skip


@pytest.mark.parametrize("slot", [name for name in SLOTS if name != "proxy"])
async def test_a_secret_never_goes_abroad(upstream: HostileUpstream, slot: str) -> None:
    arguments, call = SLOTS[slot](upstream)
    config = ClientConfig(timeout=1.0, follow_redirects=True, retry_attempts=1, **arguments.pop("fields", {}))
    other = upstream.url("", "other")
    base_url = arguments.pop("base_url", upstream.url())
    async with AsyncHTTPClient(base_url, config=config, **arguments) as client:
        for path in ABROAD:
            address = path.format(other=other, other_host=other.removeprefix("http://"))
            for method, content in (("GET", None), ("POST", CANARY.encode())):
                with contextlib.suppress(HTTPClientError):
                    await client.request(method, address, content=content, **call)
        if slot != "oauth2 that fails":
            assert upstream.requests_seen(listener="other")
    found = upstream.search(CANARY)
    assert [entry["target"] for entry in found if entry["listener"] == "other"] == []
    assert [request for request in upstream.requests_seen(listener="other") if request["body_length"]] == []


@pytest.mark.parametrize(
    "path",
    [
        "../admin", "/../admin", "users/../../admin", "..", "%2e%2e/admin", "/%2E%2E/admin", "..%2fadmin",
        "/..%2Fadmin", "..%5cadmin", "/.%2e/admin", "x/..%2f..%2fadmin", "%252e%252e/admin", "..\\admin",
        "/x/%2e%2e/%2e%2e/admin",
    ],
)  # fmt: skip
async def test_no_path_leaves_the_base(upstream: HostileUpstream, path: str) -> None:
    async with AsyncHTTPClient(upstream.url("/echo/v1"), auth=BearerAuth(CANARY)) as client:
        with pytest.raises(HTTPClientError):
            await client.get(path)
    assert upstream.requests_seen() == []


async def test_a_path_parameter_stays_one_segment(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/echo/v1")) as client:
        for value in ("a/b", "../x", "a%2fb", "?q=1", "#f", "a b", "é", "http://x/"):
            target = (await client.get("/users/{id}/end", path_params={"id": value})).json_data["target"]
            assert target.startswith("/echo/v1/users/")
            assert target.endswith("/end")
            assert target.count("/") == 5
        for value in ("", ".", ".."):
            with pytest.raises(HTTPClientError):
                await client.get("/users/{id}", path_params={"id": value})


async def test_the_traceback_of_an_error_that_the_caller_is_dealing_with_stays_whole(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(retry_attempts=2, retry_backoff_factor=0)) as client:
        for options in ({}, {"content": b"x"}, {"auth": httpx.BasicAuth("a", "b")}):
            own = None
            try:
                int("x")
            except ValueError as error:
                own = error
                with pytest.raises(HTTPClientError):
                    await client.request("GET", "/reset", **options)
            assert own is not None
            assert 'int("x")' in "".join(traceback.format_exception(own))
