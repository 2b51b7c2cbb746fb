"""The neighbours of httpx work with our client as with httpx's own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx_ws
import pytest
import respx
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pytest_httpx import HTTPXMock, IteratorStream

from fastapi_http_client import telemetry
from fastapi_http_client.auth import BearerAuth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import HTTPRequestError, HTTPTimeoutError, RetryExhaustedError
from fastapi_http_client.models import HTTPResponse
from tests.hostile.upstream import HostileUpstream
from tests.servers import serve

BASE = "https://api.example.com"
QUICK = ClientConfig(retry_backoff_factor=0.001)


# -- pytest-httpx


async def test_pytest_httpx_answers_our_calls(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=f"{BASE}/users", json=[{"id": 1}], headers={"X-A": "1"})
    async with AsyncHTTPClient(BASE, auth=BearerAuth("token")) as client:
        response = await client.get("/users")
    assert isinstance(response, HTTPResponse)
    assert response.json_data == [{"id": 1}]
    request = httpx_mock.get_request()
    assert request is not None
    assert request.headers["Authorization"] == "Bearer token"


async def test_pytest_httpx_sees_our_retries(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_exception(httpx.ReadTimeout("too slow"))
    httpx_mock.add_response(status_code=503)
    httpx_mock.add_response(text="at last")
    async with AsyncHTTPClient(BASE, config=QUICK) as client:
        response = await client.get("/")
    assert response.text == "at last"
    assert [attempt.status for attempt in response.attempts] == [None, 503, 200]
    assert len(httpx_mock.get_requests()) == 3


async def test_pytest_httpx_streams(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(stream=IteratorStream([b"one\n", b"two\n"]))
    async with AsyncHTTPClient(BASE) as client, client.stream("GET", "/") as response:
        assert [line async for line in response.aiter_lines()] == ["one", "two"]


async def test_a_call_that_pytest_httpx_does_not_expect_is_a_timeout_of_ours(
    httpx_mock: HTTPXMock,
) -> None:
    httpx_mock._options.assert_all_requests_were_expected = False
    async with AsyncHTTPClient(BASE, config=ClientConfig(retry_attempts=1)) as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("/unexpected")


# -- respx


async def test_respx_answers_our_calls() -> None:
    with respx.mock(base_url=BASE, using="httpx") as mock:
        route = mock.get("/users/1").respond(json={"id": 1})
        mock.post("/users").mock(side_effect=httpx.ConnectError("no way"))
        async with AsyncHTTPClient(BASE, config=ClientConfig(retry_attempts=1)) as client:
            assert (await client.get("/users/1")).json_data == {"id": 1}
            with pytest.raises(HTTPRequestError, match="ConnectError: no way"):
                await client.post("/users", json={})
    assert route.call_count == 1


@pytest.mark.parametrize(
    "config", [{}, {"http2": True}, {"proxy": "http://127.0.0.1:1"}, {"engine": "httpcore"}], ids=str
)
async def test_respx_answers_our_calls_by_its_default_too(config: dict[str, Any]) -> None:
    """It patches httpcore then, over which we never go by ourselves."""
    async with AsyncHTTPClient("http://127.0.0.1:1", config=ClientConfig(retry_attempts=1, **config)) as client:
        with respx.mock:
            respx.get("http://127.0.0.1:1/users/1").respond(json={"id": 1})
            assert (await client.get("/users/1")).json_data == {"id": 1}
            with pytest.raises(HTTPRequestError, match="not mocked"):
                await client.get("/unknown")
        with pytest.raises(httpx.ConnectError):
            await client.get("/users/1")


async def test_respx_sees_our_retries() -> None:
    with respx.mock(using="httpx") as mock:
        route = mock.get(f"{BASE}/")
        route.side_effect = [httpx.Response(503), httpx.Response(200, text="at last")]
        async with AsyncHTTPClient(BASE, config=QUICK) as client:
            assert (await client.get("/")).text == "at last"
    assert route.call_count == 2


async def test_respx_says_what_it_does_not_know() -> None:
    with respx.mock(using="httpx"):
        async with AsyncHTTPClient(BASE) as client:
            with pytest.raises(HTTPRequestError, match="not mocked"):
                await client.get("/unknown")


# -- a third party's SDK


class ExampleSDK:
    """What vendors' SDKs do with the `http_client` that they are given."""

    def __init__(self, http_client: httpx.AsyncClient) -> None:
        assert isinstance(http_client, httpx.AsyncClient)
        self._http = http_client

    async def create(self, **body: Any) -> dict[str, Any]:
        request = self._http.build_request(
            "POST",
            httpx.URL(str(self._http.base_url)).join("items"),
            json=body,
            headers=httpx.Headers({"Idempotency-Key": "k-1"}),
            timeout=httpx.Timeout(5.0, connect=2.0),
        )
        response = await self._http.send(request, stream=True, follow_redirects=True)
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError as error:
            await error.response.aread()
            raise
        await response.aread()
        result: dict[str, Any] = response.json()
        await response.aclose()
        return result

    async def lines(self) -> AsyncIterator[str]:
        async with self._http.stream("GET", "events") as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                yield line

    async def missing(self) -> int:
        try:
            (await self._http.get("missing")).raise_for_status()
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        except (httpx.TimeoutException, httpx.TransportError):
            return 0
        return 200


async def test_an_sdk_gets_our_retries() -> None:
    posted = []

    def vendor(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            posted.append(request)
            return httpx.Response(503 if len(posted) < 3 else 200, json={"attempts": len(posted)})
        if request.url.path == "/v1/events":
            return httpx.Response(200, text="one\ntwo\n")
        return httpx.Response(404)

    async with AsyncHTTPClient(f"{BASE}/v1/", config=QUICK, transport=httpx.MockTransport(vendor)) as client:
        sdk = ExampleSDK(client)
        assert await sdk.create(name="x") == {"attempts": 3}
        assert [line async for line in sdk.lines()] == ["one", "two"]
        assert await sdk.missing() == 404
    assert {request.content for request in posted} == {b'{"name":"x"}'}
    assert {request.headers["Idempotency-Key"] for request in posted} == {"k-1"}


async def test_an_sdk_that_catches_httpxs_errors_catches_ours(upstream: HostileUpstream) -> None:
    nobody = f"http://{upstream.host}:{upstream.ports['refused']}"
    async with AsyncHTTPClient(nobody, config=ClientConfig(retry_attempts=1)) as client:
        assert await ExampleSDK(client).missing() == 0


# -- httpx's own credentials


def digest_upstream(request: httpx.Request) -> httpx.Response:
    authorization = request.headers.get("authorization", "")
    if not authorization.startswith("Digest "):
        challenge = 'Digest realm="r", nonce="n", qop="auth", opaque="o", algorithm=SHA-256'
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})
    return httpx.Response(200, json={"authorization": authorization})


async def test_digest_authentication_works() -> None:
    auth = httpx.DigestAuth("user", "password")
    async with AsyncHTTPClient(BASE, auth=auth, transport=httpx.MockTransport(digest_upstream)) as client:
        response = await client.get("/private")
        assert 'username="user"' in response.json_data["authorization"]
        assert "authorization" not in response.request.headers
        again = await client.post("/private", content=b"body")
        assert again.status_code == 200


async def test_a_function_and_a_pair_authenticate() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=dict(request.headers))

    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["X-Signature"] = "s"
        return request

    async with AsyncHTTPClient(BASE, transport=httpx.MockTransport(echo)) as client:
        assert (await client.get("/", auth=sign)).json_data["x-signature"] == "s"
        assert (await client.get("/", auth=("a", "b"))).json_data["authorization"] == "Basic YTpi"


async def test_our_credentials_work_in_httpxs_client() -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=dict(request.headers))

    async with httpx.AsyncClient(transport=httpx.MockTransport(echo), auth=BearerAuth("token")) as client:
        assert (await client.get(BASE)).json()["authorization"] == "Bearer token"


# -- other transports


async def test_an_asgi_application_can_be_the_network() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]})
        await send({"type": "http.response.body", "body": b"hello"})

    async with AsyncHTTPClient("http://app.test", transport=httpx.ASGITransport(app=app)) as client:
        response = await client.get("/users")
        assert (response.text, response.headers["x-path"]) == ("hello", "/users")
        async with client.stream("GET", "/users") as streamed:
            assert await streamed.aread() == b"hello"


async def test_httpxs_own_transport_can_be_the_network(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), transport=httpx.AsyncHTTPTransport(), config=QUICK) as client:
        assert (await client.get("/flaky?fail=2&key=k")).json_data["attempt"] == 3


# -- OpenTelemetry


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The contrib instrumentor is on, and its spans and ours go to the same place."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    monkeypatch.setattr(telemetry, "_tracer", lambda given: telemetry._tracer_of(given or provider))
    monkeypatch.setattr(telemetry, "_nothing_is_set", lambda: False)
    try:
        yield exporter
    finally:
        instrumentor.uninstrument()
        provider.shutdown()


async def test_the_instrumentor_does_not_break_us(upstream: HostileUpstream) -> None:
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider())
    try:
        async with AsyncHTTPClient(upstream.url(), config=QUICK) as client:
            assert (await client.get("/flaky?fail=1&key=k")).json_data["attempt"] == 2
            async with client.stream("GET", "/large") as response:
                assert len(await response.aread()) == 1024 * 1024
            with pytest.raises(RetryExhaustedError):
                await client.get("/reset")
            HTTPXClientInstrumentor.instrument_client(client)
            assert (await client.get("/ok")).status_code == 200
            HTTPXClientInstrumentor.uninstrument_client(client)
    finally:
        instrumentor.uninstrument()


async def test_there_is_one_span_per_request_with_the_instrumentor_on(
    upstream: HostileUpstream, spans: InMemorySpanExporter
) -> None:
    async with AsyncHTTPClient(upstream.url(), config=QUICK) as client:
        await client.get("/flaky?fail=1&key=k")
    assert [span.attributes["http.response.status_code"] for span in spans.get_finished_spans()] == [503, 200]  # type: ignore[index]
    traceparents = [dict(request["headers"]).get("traceparent") for request in upstream.requests_seen()]
    assert None not in traceparents


# -- httpx-ws


async def test_httpx_ws_speaks_websockets_over_our_client() -> None:
    app = FastAPI()

    @app.websocket("/shout")
    async def shout(websocket: WebSocket) -> None:
        await websocket.accept(headers=[(b"x-token", websocket.headers["authorization"].encode())])
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_text((await websocket.receive_text()).upper())

    with serve(app) as url:
        async with AsyncHTTPClient(url, auth=BearerAuth("token")) as client:
            async with httpx_ws.aconnect_ws("/shout", client) as websocket:
                assert websocket.response is not None
                assert websocket.response.headers["X-Token"] == "Bearer token"
                for word in ("one", "two"):
                    await websocket.send_text(word)
                    assert await websocket.receive_text() == word.upper()
            assert client.lifecycle.in_flight == 0
