"""`AsyncHTTPClient` is an `httpx.AsyncClient`: what httpx takes and gives, it takes and gives."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import inspect
import json
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from fastapi_http_client.auth import BasicAuth, BearerAuth
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import (
    ConfigurationError,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    HTTPTimeoutError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.middleware import LoggingMiddleware, Middleware
from fastapi_http_client.models import HTTPRequest, HTTPResponse
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.policies.circuit_breaker import CircuitState
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.retry import RetryMiddleware
from tests.faults import nothing_left
from tests.hostile.upstream import HostileUpstream

BASE = "https://api.example.com/v1"


def echo(request: httpx.Request) -> httpx.Response:
    return httpx.Response(
        200,
        json={"method": request.method, "url": str(request.url), "body": request.content.decode()},
        headers={"X-Seen": json.dumps(dict(request.headers))},
    )


def offline(base_url: str = BASE, handler: Any = echo, **options: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(base_url, transport=httpx.MockTransport(handler), **options)


def seen(response: httpx.Response) -> dict[str, str]:
    headers: dict[str, str] = json.loads(response.headers["X-Seen"])
    return headers


# -- as httpx


def test_it_is_an_httpx_client() -> None:
    client = offline()
    assert isinstance(client, httpx.AsyncClient)
    assert isinstance(client.base_url, httpx.URL)
    assert client.base_url == httpx.URL(BASE + "/")
    assert client.timeout == httpx.Timeout(30.0)
    assert isinstance(client.headers, httpx.Headers)
    assert HTTPRequest is httpx.Request
    assert issubclass(HTTPResponse, httpx.Response)


@pytest.mark.parametrize(
    "name", ["get", "options", "head", "post", "put", "patch", "delete", "request", "stream", "send"]
)
def test_a_method_takes_what_httpxs_takes(name: str) -> None:
    theirs = inspect.signature(getattr(httpx.AsyncClient, name)).parameters
    ours = inspect.signature(getattr(AsyncHTTPClient, name)).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in ours.values())
    for parameter in theirs:
        assert parameter in ours or takes_any


def test_every_option_of_httpxs_constructor_is_taken() -> None:
    options: dict[str, Any] = {
        "auth": ("user", "password"),
        "params": {"a": "1"},
        "headers": {"X-A": "1"},
        "cookies": {"c": "1"},
        "verify": False,
        "cert": None,
        "http1": True,
        "http2": False,
        "proxy": None,
        "mounts": {},
        "timeout": 5.0,
        "follow_redirects": True,
        "limits": httpx.Limits(max_connections=5),
        "max_redirects": 3,
        "event_hooks": {},
        "base_url": BASE,
        "transport": httpx.MockTransport(echo),
        "trust_env": False,
        "default_encoding": "latin-1",
    }
    assert options.keys() == inspect.signature(httpx.AsyncClient).parameters.keys()
    AsyncHTTPClient(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tiemout'"):
        AsyncHTTPClient(tiemout=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("verb", ["get", "options", "head", "post", "put", "patch", "delete"])
async def test_every_verb_sends_its_method(upstream: HostileUpstream, verb: str) -> None:
    async with AsyncHTTPClient(upstream.url("/echo")) as client:
        response = await getattr(client, verb)("/x", headers={"X-Own": "1"}, params={"p": "1"})
        assert isinstance(response, HTTPResponse)
        assert response.status_code == 200
    [request] = upstream.requests_seen()
    assert (request["method"], request["target"]) == (verb.upper(), "/echo/x?p=1")


@pytest.mark.parametrize("method", ["GET", "PROPFIND", "QUERY", "REPORT"])
async def test_any_method_can_be_sent(upstream: HostileUpstream, method: str) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        assert (await client.request(method, "/echo")).json_data["method"] == method


async def test_bodies_are_encoded_as_by_httpx(upstream: HostileUpstream) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async with AsyncHTTPClient(upstream.url()) as client:
        for options, body, kind in (
            ({"json": {"a": 1}}, '{"a":1}', "application/json"),
            ({"data": {"a": "1", "b": ["2", "3"]}}, "a=1&b=2&b=3", "application/x-www-form-urlencoded"),
            ({"content": b"bytes"}, "bytes", None),
            ({"content": "text"}, "text", None),
            ({"content": pieces()}, "one two", None),
        ):
            reply = (await client.post("/echo", **options)).json_data  # type: ignore[arg-type]
            assert (reply["body"], reply["headers_dict"].get("content-type")) == (body, kind)
        reply = (await client.post("/echo", files={"f": ("name.txt", b"content", "text/plain")})).json_data
        assert 'filename="name.txt"' in reply["body"]


async def test_a_sync_iterator_is_refused(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        with pytest.raises(HTTPRequestError, match="sync iterator"):
            await client.post("/echo", content=iter([b"x"]))
    assert upstream.requests_seen() == []


async def test_a_stream_is_read_in_every_way(upstream: HostileUpstream) -> None:
    url = "/stream?n=3&interval=0"
    expected = '{"i": 0}\n{"i": 1}\n{"i": 2}\n'
    async with AsyncHTTPClient(upstream.url()) as client:
        async with client.stream("GET", url) as response:
            assert not response.is_closed
            assert b"".join([chunk async for chunk in response.aiter_bytes()]) == expected.encode()
            assert response.is_closed
        async with client.stream("GET", url) as response:
            assert b"".join([chunk async for chunk in response.aiter_raw()]) == expected.encode()
            assert response.num_bytes_downloaded == len(expected)
        async with client.stream("GET", url) as response:
            assert "".join([text async for text in response.aiter_text()]) == expected
        async with client.stream("GET", url) as response:
            assert [line async for line in response.aiter_lines()] == expected.splitlines()
        async with client.stream("GET", url) as response:
            assert [len(chunk) async for chunk in response.aiter_bytes(10)] == [10, 10, 7]
        async with client.stream("GET", url) as response:
            assert await response.aread() == expected.encode()
            assert response.text == expected
            assert await response.aread() == expected.encode()
        async with client.stream("GET", url) as response:
            with pytest.raises(httpx.ResponseNotRead):
                _ = response.content
        with pytest.raises(httpx.StreamClosed):
            await response.aread()


async def test_a_request_is_built_and_sent_by_hand(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/echo"), headers={"X-Default": "1"}) as client:
        request = client.build_request("POST", "/x", json={"a": 1}, headers={"X-Own": "2"})
        assert request.url == httpx.URL(upstream.url("/echo/x"))
        reply = (await client.send(request)).json_data
        assert (reply["headers_dict"]["x-default"], reply["headers_dict"]["x-own"]) == ("1", "2")
        foreign = httpx.Request("GET", upstream.url("/echo/y"))
        assert (await client.send(foreign)).json_data["target"] == "/echo/y"
        response = await client.send(client.build_request("GET", "/z"), stream=True)
        assert not response.is_closed
        await response.aread()
        assert response.json_data["target"] == "/echo/z"


async def test_the_same_request_may_be_sent_again(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        request = client.build_request("POST", "/echo", content=b"again")
        responses = await asyncio.gather(*(client.send(request) for _ in range(5)))
        assert [response.json_data["body"] for response in responses] == ["again"] * 5
        assert all(len(response.attempts) == 1 for response in responses)


async def test_a_response_is_complete(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        response = await client.get("/echo", extensions={"custom": 1})
        assert isinstance(response.elapsed, datetime.timedelta)
        assert response.request.url == httpx.URL(upstream.url("/echo"))
        assert response.request.extensions["custom"] == 1
        assert response.history == []
        assert response.next_request is None
        assert response.http_version == "HTTP/1.1"
        assert response.reason_phrase == "OK"
        assert response.is_success
        assert response.is_closed
        assert response.extensions["network_stream"].get_extra_info("server_addr")[1] == upstream.ports["main"]
        [attempt] = response.attempts
        assert (attempt.number, attempt.status, attempt.error) == (1, 200, None)
        async with client.stream("GET", "/echo") as response:
            with pytest.raises(RuntimeError):
                _ = response.elapsed
        assert isinstance(response.elapsed, datetime.timedelta)


async def test_a_streamed_mock_is_complete_too() -> None:
    async with offline() as client, client.stream("GET", "/x") as response:
        assert response.json_data["url"] == BASE + "/x"
        assert isinstance(response.elapsed, datetime.timedelta)


async def test_a_redirect_that_is_not_followed_says_where_it_leads(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        response = await client.get("/redirect", headers={"X-Own": "1"})
        assert response.status_code == 302
        assert response.has_redirect_location
        assert response.next_request is not None
        assert response.next_request.url.path == "/echo"
        assert (await client.send(response.next_request)).status_code == 200


async def test_redirects_are_followed_when_asked_for(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        response = await client.get("/redirect?n=2", follow_redirects=True)
        assert response.json_data["path"] == "/echo"
        assert [hop.status_code for hop in response.history] == [302, 302]
    async with AsyncHTTPClient(upstream.url(), follow_redirects=True) as client:
        assert (await client.get("/redirect")).status_code == 200
        assert (await client.get("/redirect", follow_redirects=False)).status_code == 302


async def test_event_hooks_see_every_attempt(upstream: HostileUpstream) -> None:
    requests, responses = [], []

    async def on_request(request: httpx.Request) -> None:
        requests.append(request.method)

    async def on_response(response: httpx.Response) -> None:
        assert isinstance(response, HTTPResponse)
        await response.aread()
        responses.append((response.status_code, response.request.url.path))

    hooks = {"request": [on_request], "response": [on_response]}
    config = ClientConfig(retry_backoff_factor=0.001)
    async with AsyncHTTPClient(upstream.url(), config=config, event_hooks=hooks) as client:
        await client.get("/sequence/k?steps=503,200")
        assert requests == ["GET", "GET"]
        assert responses == [(503, "/sequence/k"), (200, "/sequence/k")]
        client.event_hooks = {"response": []}
        await client.get("/ok")
        assert len(requests) == 2


async def test_a_hook_that_raises_for_status_counts_for_the_circuit(upstream: HostileUpstream) -> None:
    async def raise_for_status(response: httpx.Response) -> None:
        response.raise_for_status()

    breaker = CircuitBreaker(failure_threshold=2)
    config = ClientConfig(retry_attempts=1)
    async with AsyncHTTPClient(
        upstream.url(), config=config, circuit_breaker=breaker, event_hooks={"response": [raise_for_status]}
    ) as client:
        for _ in range(2):
            with pytest.raises(HTTPResponseError):
                await client.get("/status/500")
        assert breaker.state is CircuitState.OPEN


async def our_error(response: httpx.Response) -> None:
    response.raise_for_status()


async def httpxs_error(response: httpx.Response) -> None:
    if response.status_code >= 400:
        raise httpx.HTTPStatusError("no", request=response.request, response=response)


@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
@pytest.mark.parametrize("hook", [our_error, httpxs_error])
async def test_a_hook_that_raises_for_status_does_not_turn_retrying_off(
    upstream: HostileUpstream, hook: Any, streamed: bool
) -> None:
    config = ClientConfig(retry_backoff_factor=0.001, max_connections=1)

    async def call(client: AsyncHTTPClient, path: str, **options: Any) -> HTTPResponse:
        if not streamed:
            return await client.get(path, **options)
        async with client.stream("GET", path, **options) as response:
            await response.aread()
        return response

    async with AsyncHTTPClient(upstream.url(), config=config, event_hooks={"response": [hook]}) as client:
        assert (await call(client, "/sequence/k?steps=503,503,200")).status_code == 200
        for path, attempts, options in (
            ("/status/503?key=spent", 3, {}),
            ("/status/503?key=off", 1, {"retry": False}),
            ("/status/404?key=final", 1, {}),
            ("/status/429?key=long&retry_after=3600", 1, {}),
        ):
            with pytest.raises(httpx.HTTPStatusError) as caught:
                await call(client, path, **options)
            assert caught.value.response.is_closed
            assert len(caught.value.response.attempts) == attempts  # type: ignore[attr-defined]
            assert isinstance(caught.value, HTTPResponseError) is (hook is our_error)
            assert upstream.key(path.partition("key=")[2].partition("&")[0])["count"] == attempts
    assert client.lifecycle.in_flight == 0


async def test_a_hook_that_raises_for_a_401_does_not_keep_a_dead_token(upstream: HostileUpstream) -> None:
    auth = OAuth2ClientCredentials(upstream.url("/oauth/token"), "id", "secret")
    async with AsyncHTTPClient(upstream.url(), auth=auth, event_hooks={"response": [our_error]}) as client:
        await client.get("/oauth/protected")
        await client.get("/oauth/revoke")
        assert (await client.get("/oauth/protected")).status_code == 200
    assert upstream.stats()["token_realms"]["default"]["calls"] == 2


async def test_what_a_hook_raises_reaches_the_caller(upstream: HostileUpstream) -> None:
    async def refuse(message: object) -> None:
        raise LookupError("not today")

    for kind in ("request", "response"):
        async with AsyncHTTPClient(upstream.url(), event_hooks={kind: [refuse]}) as client:
            with pytest.raises(LookupError, match="not today"):
                await client.get("/ok")


async def test_mounts_choose_the_transport() -> None:
    def teapot(request: httpx.Request) -> httpx.Response:
        return httpx.Response(418)

    mounts = {"https://tea.example.com": httpx.MockTransport(teapot), "all://plain.example.com": None}
    async with offline("", mounts=mounts) as client:
        assert (await client.get("https://tea.example.com/")).status_code == 418
        assert (await client.get("https://plain.example.com/")).status_code == 200
        assert (await client.get("https://coffee.example.com/")).status_code == 200


async def test_parameters_are_merged_and_the_urls_own_stay() -> None:
    async with offline(params={"client": "1"}) as client:
        url = (await client.get("/x?own=2&own=3", params={"call": "4"})).json_data["url"]
        assert url == f"{BASE}/x?own=2&own=3&client=1&call=4"
        assert (await client.get("/x?own=2", params={})).json_data["url"] == f"{BASE}/x?own=2&client=1"
        assert (await client.get("/x", params={"client": "5"})).json_data["url"] == f"{BASE}/x?client=5"
        client.params = {}  # type: ignore[assignment]
        assert (await client.get("/x?own=2")).json_data["url"] == f"{BASE}/x?own=2"


async def test_headers_and_cookies_of_the_client_are_sent() -> None:
    config = ClientConfig(headers={"X-Config": "1", "X-Both": "config"})
    async with offline(config=config, headers={"X-Option": "2", "X-Both": "option"}, cookies={"c": "3"}) as client:
        headers = seen(await client.get("/", headers={"X-Call": "4", "x-option": "5"}))
        assert headers["x-config"] == "1"
        assert headers["x-both"] == "option"
        assert headers["x-option"] == "5"
        assert headers["x-call"] == "4"
        assert headers["cookie"] == "c=3"
        assert headers["user-agent"].startswith("python-httpx/")
        client.headers["X-Config"] = "6"
        assert seen(await client.get("/"))["x-config"] == "6"


async def test_cookies_are_kept_only_when_asked_for(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        response = await client.get("/cookie/login?user=alice")
        assert response.cookies["session"] == "alice"
        assert (await client.get("/cookie/whoami")).json_data["cookie"] == ""
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(persist_cookies=True)) as client:
        await client.get("/cookie/login?user=alice")
        assert (await client.get("/cookie/whoami")).json_data["cookie"] == "session=alice"


async def test_a_cookie_that_no_header_can_hold_is_not_kept(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(persist_cookies=True)) as client:
        for bad in ("bad=%C3%A9", "%C3%A9=1"):
            await client.get(f"/cookie/set?c={bad}&c=good=1")
            assert (await client.get("/cookie/whoami")).json_data["cookie"] == "good=1"


async def test_the_default_encoding_is_used() -> None:
    def latin(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content="é".encode("latin-1"))

    async with offline(handler=latin, default_encoding="latin-1") as client:
        assert (await client.get("/")).text == "é"


@pytest.mark.parametrize(
    "auth",
    [("user", "password"), httpx.BasicAuth("user", "password"), BasicAuth("user", "password")],
    ids=["pair", "httpx", "ours"],
)
async def test_credentials_are_sent(upstream: HostileUpstream, auth: Any) -> None:
    url = "/auth/basic?user=user&password=password"
    async with AsyncHTTPClient(upstream.url(), auth=auth) as client:
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url, auth=None)).status_code == 401
    async with AsyncHTTPClient(upstream.url()) as client:
        assert (await client.get(url, auth=auth)).status_code == 200
        assert (await client.get(url)).status_code == 401
        client.auth = ("user", "password")  # type: ignore[assignment]
        assert (await client.get(url)).status_code == 200


async def test_a_function_may_authenticate(upstream: HostileUpstream) -> None:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["X-Api-Key"] = "key"
        return request

    async with AsyncHTTPClient(upstream.url(), auth=sign) as client:
        assert (await client.get("/auth/key")).status_code == 200


async def test_userinfo_is_a_credential_and_not_shown(upstream: HostileUpstream) -> None:
    url = upstream.url().replace("//", "//user:password@")
    path = "/auth/basic?user=user&password=password"
    async with AsyncHTTPClient(url) as client:
        response = await client.get(path)
        assert response.status_code == 200
        assert "password@" not in str(response.request.url)
        assert "password" not in repr(client)
    async with AsyncHTTPClient() as client:
        response = await client.get(url + path[1:])
        assert response.status_code == 200
        assert response.request.url.userinfo == b""
        request = httpx.Request("GET", url + path[1:])
        assert [(await client.send(request)).status_code for _ in range(2)] == [200, 200]


# -- options against config


async def test_httpxs_options_win_over_the_config() -> None:
    config = ClientConfig(
        base_url="https://config.example.com", timeout=10.0, follow_redirects=False, max_redirects=5, max_connections=7
    )
    client = AsyncHTTPClient(
        "https://option.example.com",
        config=config,
        timeout=3.0,
        follow_redirects=True,
        max_redirects=2,
        limits=httpx.Limits(max_connections=3, max_keepalive_connections=2, keepalive_expiry=None),
        verify=False,
        http2=False,
        trust_env=True,
    )
    assert client.base_url.host == "option.example.com"
    assert client.config.base_url == "https://option.example.com"
    assert client.timeout == httpx.Timeout(3.0)
    assert client.config.timeout == 3.0
    assert client.follow_redirects is True
    assert client.max_redirects == 2
    assert (client.config.max_connections, client.config.max_keepalive_connections) == (3, 2)
    assert client.config.verify_ssl is False
    assert client.config.trust_env is True
    assert AsyncHTTPClient(config=config).base_url.host == "config.example.com"
    assert config.timeout == 10.0


async def test_httpxs_timeout_object_is_taken(upstream: HostileUpstream) -> None:
    timeout = httpx.Timeout(5.0, read=0.05)
    async with AsyncHTTPClient(upstream.url(), timeout=timeout, config=ClientConfig(retry_attempts=1)) as client:
        assert client.timeout == timeout
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.get("/hang")
        assert caught.value.phase == "read"
    async with AsyncHTTPClient(upstream.url(), timeout=None) as client:
        assert client.timeout == httpx.Timeout(None)
        assert (await client.get("/ok")).status_code == 200


async def test_a_limiter_or_breaker_that_is_given_is_used_whatever_is_enabled() -> None:
    limiter, breaker = TokenBucketRateLimiter(5.0), CircuitBreaker()
    client = offline(rate_limiter=limiter, circuit_breaker=breaker, name="api")
    assert client.rate_limiter is limiter
    assert client.circuit_breaker is breaker
    assert client.name == "api"
    plain = offline()
    assert plain.rate_limiter is None
    assert plain.circuit_breaker is None
    config = ClientConfig(enable_rate_limiting=True, rate_limit_rate=7.0, enable_circuit_breaker=True)
    made = offline(config=config)
    assert made.rate_limiter is not None
    assert made.rate_limiter.rate == 7.0
    assert made.circuit_breaker is not None


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("config", {"config": {"timeout": 3}}),
        ("middlewares", {"middlewares": [object()]}),
        ("middlewares", {"middlewares": [RetryMiddleware(), RetryMiddleware()]}),
        ("random", {"random": 7}),
        ("auth", {"auth": 7}),
        ("timeout", {"timeout": -1}),
        ("base_url", {"base_url": "ftp://example.com"}),
    ],
)
def test_a_bad_argument_is_named(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        AsyncHTTPClient(**options)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "1"])
async def test_a_bad_total_timeout_is_refused(seconds: Any) -> None:
    async with offline() as client:
        with pytest.raises(ConfigurationError, match="total_timeout"):
            await client.get("/", total_timeout=seconds)


# -- errors as httpx's


async def test_errors_are_caught_as_httpxs(upstream: HostileUpstream) -> None:
    config = ClientConfig(timeout=0.1, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        with pytest.raises(httpx.TimeoutException):
            await client.get("/hang")
        with pytest.raises(httpx.TransportError):
            await client.get("/reset")
        with pytest.raises(httpx.RequestError):
            await client.get("/reset")
        with pytest.raises(httpx.HTTPStatusError) as status:
            (await client.get("/status/404")).raise_for_status()
        assert status.value.response.status_code == 404
        assert status.value.request.url.path == "/status/404"
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(timeout=0.05, retry_backoff_factor=0)) as client:
        with pytest.raises(httpx.TimeoutException) as caught:
            await client.get("/hang")
        assert isinstance(caught.value, RetryExhaustedError)
        with pytest.raises(RateLimitError):
            await client.get("/status/429")
        with pytest.raises(httpx.HTTPError):
            await client.get("/status/503")


async def test_an_error_says_whose_call_it_was(upstream: HostileUpstream) -> None:
    config = ClientConfig(retry_backoff_factor=0)
    async with AsyncHTTPClient(upstream.url(), name="billing", config=config) as client:
        with pytest.raises(HTTPClientError) as caught:
            await client.get("/status/503?token=s3cret")
    error = caught.value
    assert error.client == "billing"
    assert error.request.url.path == "/status/503"
    assert [attempt.status for attempt in error.attempts] == [503, 503, 503]
    assert str(error).startswith("billing: GET ")
    assert "s3cret" not in str(error)


async def test_a_foreign_origin_is_refused_before_anything_is_sent(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), auth=BearerAuth("s3cret")) as client:
        for call in (
            client.get(upstream.url("/echo", "other")),
            client.send(httpx.Request("GET", upstream.url("/echo", "other"))),
        ):
            with pytest.raises(HTTPRequestError, match="another origin"):
                await call
        client.base_url = upstream.url("", "other")  # type: ignore[assignment]
        with pytest.raises(HTTPRequestError, match="another origin"):
            await client.get(upstream.url("/echo"))
        with pytest.raises(HTTPRequestError, match="another origin"):
            await client.send(httpx.Request("GET", upstream.url("/echo")))
        assert upstream.requests_seen() == []
        assert (await client.get("/echo")).json_data["listener"] == "other"


async def test_a_bad_header_is_refused_before_anything_is_sent(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        for value in ("a\r\nX-Injected: 1", "a\nb", "a\x00b"):
            with pytest.raises(HTTPRequestError) as caught:
                await client.get("/echo", headers={"X-Own": value})
            assert not caught.value.transient
            assert len(caught.value.attempts) == 1
    assert upstream.requests_seen() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "5", "Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "gzip, chunked"},
        {"X-Own": "a\x1b[2Jb"},
        {"X-Own": "a\x07b"},
        {"X-Own": "a\x00b"},
        {"X-Own\r\nX-Injected": "1"},
    ],
)
async def test_a_head_that_could_be_read_in_two_ways_is_not_sent(
    upstream: HostileUpstream, headers: dict[str, str]
) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    async with AsyncHTTPClient(upstream.url(), circuit_breaker=breaker) as client:
        with pytest.raises(HTTPRequestError) as caught:
            await client.post("/echo", content=b"hello", headers={**headers, "Idempotency-Key": "k"})
    assert not caught.value.may_have_run
    assert len(caught.value.attempts) == 1
    assert breaker.state is CircuitState.CLOSED
    assert upstream.requests_seen() == []


@pytest.mark.parametrize(
    "options",
    [
        {"files": {"f": ("name", b"x", "text/plain\r\nX-Injected: 1")}},
        {"files": {"f": ("name", b"x", "text/plain", {"X-A": "1\nX-Injected: 1"})}},
        {"cookies": {"theme": "dark; admin=1"}},
        {"cookies": [("theme", "dark\r\nX-Injected: 1")]},
    ],
    ids=["content type", "part's header", "cookie", "cookie's line"],
)
async def test_a_value_cannot_leave_its_place_in_a_part_or_a_cookie(
    upstream: HostileUpstream, options: dict[str, Any]
) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        with pytest.raises(HTTPRequestError, match="cannot be built") as caught:
            await client.post("/echo", **options)
        assert not caught.value.may_have_run
        assert upstream.requests_seen() == []
        response = await client.post("/echo", files={"f": ('na"me\r\n', b"x", "text/plain")}, cookies={"theme": "dark"})
        assert response.json_data["headers_dict"]["cookie"] == "theme=dark"
        assert "\r\n\r\nx\r\n" in response.json_data["body"]


# -- middlewares and streams


async def test_a_middleware_may_answer_a_stream_with_its_own_response(upstream: HostileUpstream) -> None:
    class Other(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Any) -> HTTPResponse:
            return HTTPResponse(200, json={"cached": True})

    async with (
        AsyncHTTPClient(upstream.url(), middlewares=[Other()]) as client,
        client.stream("GET", "/ok") as response,
    ):
        assert response.json_data == {"cached": True}
    assert client.lifecycle.in_flight == 0
    assert upstream.requests_seen() == []


async def answer_instead(response: HTTPResponse) -> HTTPResponse:
    return HTTPResponse(200, json={"cached": True})


async def raise_instead(response: HTTPResponse) -> HTTPResponse:
    raise LookupError("not today")


async def return_nothing(response: HTTPResponse) -> HTTPResponse:
    return None  # type: ignore[return-value]


async def wait_for_ever(response: HTTPResponse) -> HTTPResponse:
    await asyncio.sleep(60)
    return response


async def transform(response: HTTPResponse) -> HTTPResponse:
    async def shouted() -> AsyncIterator[bytes]:
        async for chunk in response.aiter_bytes():
            yield chunk.upper()

    return HTTPResponse(200, content=shouted())


@pytest.mark.parametrize("then", [answer_instead, raise_instead, return_nothing, wait_for_ever, transform])
async def test_the_responses_that_a_middleware_got_of_a_stream_are_closed(
    upstream: HostileUpstream, then: Callable[[HTTPResponse], Any]
) -> None:
    class Twice(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Any) -> HTTPResponse:
            await call_next(request)
            answer: HTTPResponse = await then(await call_next(request))
            return answer

    config = ClientConfig(max_connections=2, timeout=5.0)
    async with nothing_left(upstream), AsyncHTTPClient(upstream.url(), config=config) as plain:
        client = AsyncHTTPClient(upstream.url(), config=config, middlewares=[Twice()])
        with contextlib.suppress(LookupError, TypeError, TimeoutError):
            async with (
                asyncio.timeout(0.2 if then is wait_for_ever else 5.0),
                client.stream("GET", "/respond?body=a") as response,
            ):
                body = await response.aread()
                assert body == (b'{"cached":true}' if then is answer_instead else b"A")
        await asyncio.gather(*(plain.get("/ok") for _ in range(2)))
        client.middlewares = ()
        client._build_pipeline()
        responses = await asyncio.gather(*(client.get("/ok") for _ in range(4)))
        assert {response.status_code for response in responses} == {200}
        assert client.lifecycle.in_flight == 0
        await client.aclose()


@pytest.mark.parametrize("read_a_part", [False, True], ids=["untouched", "begun"])
async def test_a_stream_that_is_forgotten_is_warned_about_and_gives_its_connection_back(
    upstream: HostileUpstream, read_a_part: bool
) -> None:
    config = ClientConfig(max_connections=1, timeout=2.0, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), config=config, name="api") as client:

        async def forget() -> None:
            response = await client.send(client.build_request("GET", "/large?bytes=3000000&token=s3cr3t"), stream=True)
            if read_a_part:
                await anext(response.aiter_bytes())
            del response
            await asyncio.sleep(0.01)  # for the loop to end the iterator that was begun

        gc.disable()  # it is noticed at once, and not when the collector comes
        try:
            with pytest.warns(ResourceWarning) as caught:
                await forget()
        finally:
            gc.enable()
        (text,) = (str(warning.message) for warning in caught)
        assert text.startswith(f"api: GET {upstream.url('/large')}?bytes=3000000&token=")
        assert "never closed" in text
        assert "s3cr3t" not in text
        assert (await client.get("/ok")).status_code == 200
        assert client.lifecycle.in_flight == 0


async def test_a_stream_may_be_forgotten_in_any_thread(upstream: HostileUpstream) -> None:
    config = ClientConfig(max_connections=1, timeout=2.0, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        held = [await client.send(client.build_request("GET", "/large?bytes=3000000"), stream=True)]

        def forget() -> None:
            with warnings.catch_warnings(record=True):
                warnings.simplefilter("always")
                held.clear()
                gc.collect()

        await asyncio.to_thread(forget)
        assert (await client.get("/ok")).status_code == 200


async def test_calls_are_counted_out(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(retry_attempts=1)) as client:
        await client.get("/ok")
        with pytest.raises(HTTPRequestError):
            await client.get("/reset")
        async with client.stream("GET", "/large") as response:
            assert client.lifecycle.in_flight == 1
            await response.aclose()
            assert client.lifecycle.in_flight == 0
        assert client.lifecycle.in_flight == 0


async def test_a_stream_counts_for_the_circuit_when_it_has_ended(upstream: HostileUpstream) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    config = ClientConfig(retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), circuit_breaker=breaker, config=config) as client:
        async with client.stream("GET", "/ok") as response:
            await response.aread()
        assert breaker.state is CircuitState.CLOSED
        async with client.stream("GET", "/reset-mid-body") as response:
            assert breaker.state is CircuitState.CLOSED
            with pytest.raises(HTTPRequestError):
                await response.aread()
        assert breaker.state is CircuitState.OPEN


def test_no_base_url_may_be_said_as_none() -> None:
    assert str(AsyncHTTPClient(None).base_url) == ""
    assert str(AsyncHTTPClient(base_url=None, config=ClientConfig(base_url=None)).base_url) == ""  # type: ignore[arg-type]


# -- arguments of a wrong kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("rate_limiter", 5),
        ("circuit_breaker", 5),
        ("middlewares", 5),
        ("middlewares", None),
        ("headers", 5),
        ("transport", 5),
        ("name", 5),
        ("name", ""),
        ("timeout", "x"),
        ("timeout", float("nan")),
        ("auth", 5),
        ("clock", 5),
        ("random", 5),
        ("limits", 5),
        ("limits", httpx.Limits(max_connections=0)),
        ("mounts", 5),
        ("mounts", {"all://": 5}),
        ("params", 5),
        ("cookies", 5),
        ("event_hooks", 5),
        ("event_hooks", {"request": 5}),
        ("event_hooks", {"requests": []}),
        ("default_encoding", 5),
        ("verify", "/nowhere/ca.pem"),
        ("verify", 5),
        ("cert", "/nowhere/client.pem"),
        ("cert", 5),
        ("proxy", httpx.Proxy("http://proxy.example:3128", headers={"X-A": "1"})),
    ],
)
def test_an_argument_of_a_wrong_kind_is_named(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"(AsyncHTTPClient|ClientConfig): (max_connections|{argument}): "):
        AsyncHTTPClient("https://api.example.com", **{argument: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("timeout", "x"), ("timeout", -1), ("timeout", 0), ("timeout", float("nan")), ("retry", "no"), ("retry", 0)],
)
async def test_an_option_of_a_call_that_is_impossible_is_named_before_anything_is_sent(option: str, value: Any) -> None:
    sent: list[httpx.Request] = []
    transport = httpx.MockTransport(lambda request: sent.append(request) or httpx.Response(200))
    async with AsyncHTTPClient("https://api.example.com", transport=transport) as client:
        with pytest.raises(ConfigurationError, match=f"{option}: must be"):
            await client.get("/", **{option: value})
    assert sent == []


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("../x", {}, "leaves the client's base URL"),
        ("/{id}", {"path_params": 5}, "path_params must be a mapping, not int"),
        *(
            ("/{id}", {"path_params": {"id": value}}, r"path_params\['id'\] must be a text or a number, not ")
            for value in (b"x", ["a", "b"], ("a",), {"a": 1}, {1})
        ),
    ],
)
async def test_an_address_that_cannot_be_used_names_the_client(url: str, options: dict[str, Any], text: str) -> None:
    async with AsyncHTTPClient("https://api.example.com/v1", name="github") as client:
        with pytest.raises(HTTPRequestError, match=f"github: GET refused: .*{text}") as caught:
            await client.get(url, **options)
    assert caught.value.client == "github"
    assert not caught.value.may_have_run


async def test_a_body_longer_than_it_said_may_have_been_received_whole(upstream: HostileUpstream) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"12345"
        await asyncio.sleep(0.02)
        yield b"6"

    async with AsyncHTTPClient(upstream.url()) as client:
        with pytest.raises(HTTPRequestError) as caught:
            await client.put("/echo", content=body(), headers={"Content-Length": "5"})
    assert caught.value.may_have_run


# -- mistakes are named ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text", "kind"),
    [
        ("/users", "'/users' is only a path, and the client has no base_url", httpx.UnsupportedProtocol),
        ("ftp://api.example.com/x", "the URL's scheme must be http or https, not 'ftp'", httpx.UnsupportedProtocol),
        ("http:///x", "the URL has no host", ValueError),
        ("localhost:8000/x", "begin a path with '/', a URL with http:// or https://", ValueError),
        ("https://${HOST}/x", "the URL's host holds a character that no name has", httpx.UnsupportedProtocol),
        ("https://{region}.example.com/", "the URL's host holds a character", httpx.UnsupportedProtocol),
        ("https://api.example.com:99999/", "the URL's port is not between 1 and 65535", httpx.ConnectError),
        (None, "the path must be a text or an httpx.URL, not NoneType", ValueError),
    ],
)
async def test_an_address_that_no_server_can_have_is_refused_before_the_first_attempt(
    url: Any, text: str, kind: type[Exception]
) -> None:
    sent: list[httpx.Request] = []
    mock = httpx.MockTransport(lambda request: sent.append(request) or httpx.Response(200))
    for transport in (None, mock):
        async with AsyncHTTPClient(transport=transport, name="api") as client:
            with pytest.raises(HTTPRequestError) as caught:
                await client.get(url)
        assert text in str(caught.value)
        assert str(caught.value).startswith("api: GET refused: ")
        assert isinstance(caught.value, kind)
        assert isinstance(caught.value, ValueError)
        assert caught.value.attempts == ()
    assert sent == []


async def test_a_mounted_transport_may_have_a_scheme_of_its_own() -> None:
    mounts = {"custom://": httpx.MockTransport(lambda request: httpx.Response(200, text=request.url.scheme))}
    async with AsyncHTTPClient(mounts=mounts) as client:
        assert (await client.get("custom://anywhere/x")).text == "custom"


@pytest.mark.parametrize(
    ("method", "headers"), [("GE T", {}), ("GET", {"A B": "x"}), ("GET", {"X-A": "a\r\nX-Admin: 1"}), ("", {})]
)
async def test_a_mock_refuses_what_the_network_would(method: str, headers: dict[str, str]) -> None:
    async with AsyncHTTPClient("http://api.example.com", transport=httpx.MockTransport(_unexpected)) as client:
        with pytest.raises(HTTPRequestError, match="LocalProtocolError") as caught:
            await client.request(method, "/", headers=headers)
    assert not caught.value.may_have_run


def _unexpected(request: httpx.Request) -> httpx.Response:
    raise AssertionError("this was sent")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"auth": BearerAuth}, "auth: must be an object, not the class BearerAuth"),
        ({"transport": httpx.MockTransport}, "transport: must be an httpx.AsyncBaseTransport"),
        (
            {"middlewares": [LoggingMiddleware]},
            "middlewares: holds the class LoggingMiddleware; each must be an object",
        ),
        ({"middlewares": [print]}, "middlewares: holds <built-in function print>; each must be an object"),
        ({"base_url": "https://${HOST}/"}, "AsyncHTTPClient: base_url: has a host with a character that no name has"),
        ({"proxy": "nowhere"}, "AsyncHTTPClient: proxy: must be an http"),
    ],
)
def test_what_an_argument_ought_to_be_is_said(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AsyncHTTPClient(**options)
    assert text in str(caught.value)


def test_a_field_of_the_config_in_the_wrong_place_is_sent_there() -> None:
    with pytest.raises(TypeError, match=r"'retry_attempts'; it is a field of ClientConfig: config=ClientConfig\("):
        AsyncHTTPClient("https://api.example.com", retry_attempts=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'retrys'$"):
        AsyncHTTPClient("https://api.example.com", retrys=3)  # type: ignore[call-arg]


async def test_what_is_wrong_with_a_request_is_said_without_its_values() -> None:
    async with AsyncHTTPClient("https://api.example.com", transport=httpx.MockTransport(_unexpected)) as client:
        for options, text in (
            ({"cookies": {"a": "s3same;"}}, "a cookie holds a semicolon or a control character"),
            ({"headers": {"X-A": "s3same \u20ac"}}, "a header or a parameter holds a character that cannot be sent"),
        ):
            with pytest.raises(HTTPRequestError, match=text) as caught:
                await client.get("/", **options)
            assert "s3same" not in str(caught.value)
        with pytest.raises(ConfigurationError, match="follow_redirects: must be True or False"):
            await client.get("/", follow_redirects="no")


@pytest.mark.parametrize("wrong", [lambda request: None, lambda request: "text"])
async def test_a_function_as_auth_must_return_the_request(wrong: Any) -> None:
    async def later(request: httpx.Request) -> httpx.Request:
        return request

    async with AsyncHTTPClient("https://api.example.com", transport=httpx.MockTransport(_unexpected)) as client:
        for auth in (wrong, later):
            with pytest.raises(ConfigurationError, match="auth: a function must return the request"):
                await client.get("/", auth=auth)


async def test_an_event_hook_that_is_not_async_is_named() -> None:
    hooks = {"request": [lambda request: None]}
    async with AsyncHTTPClient(
        "https://a.test", event_hooks=hooks, transport=httpx.MockTransport(_unexpected)
    ) as client:
        with pytest.raises(TypeError, match="event_hooks: request: must be an async function; it returned NoneType"):
            await client.get("/")
