"""Middlewares: their order, what they may change, and what the logging one shows."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fastapi_http_client import HTTPRequest, HTTPResponse
from fastapi_http_client.auth import APIKeyAuth, BearerAuth
from fastapi_http_client.call import Handler
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import (
    AuthenticationError,
    CircuitBreakerOpenError,
    ConfigurationError,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    HTTPTimeoutError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.middleware import LoggingMiddleware, Middleware
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.retry import RetryMiddleware
from tests.scripted import Script, Stream, client_of

CANARY = "c4n4ry-s3cret"


def with_middlewares(script: Script, *middlewares: Middleware, **config: Any) -> AsyncHTTPClient:
    return client_of(script, options={"middlewares": middlewares, "name": "github"}, **config)


class Recording(Middleware):
    """Notes when its hooks run."""

    def __init__(self, name: str, record: list[str]) -> None:
        self.name = name
        self.record = record

    async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
        self.record.append(f"{self.name} request")
        return request

    async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
        self.record.append(f"{self.name} response {response.status_code}")
        return response

    async def process_error(self, error: HTTPClientError, request: HTTPRequest) -> HTTPResponse | None:
        self.record.append(f"{self.name} {type(error).__name__}")
        return None


# -- order and number --------------------------------------------------------------------------------------------


async def test_the_first_of_the_list_is_the_outermost() -> None:
    record: list[str] = []
    client = with_middlewares(Script(), Recording("a", record), Recording("b", record), Recording("c", record))
    await client.get("/")
    assert record == ["a request", "b request", "c request", "c response 200", "b response 200", "a response 200"]


async def test_they_run_once_for_a_call_outside_of_retries_and_redirects() -> None:
    record: list[str] = []
    script = Script(503, httpx.Response(302, headers={"Location": "/b"}), httpx.ReadError(""), 200)
    response = await with_middlewares(script, Recording("a", record), follow_redirects=True).get("/")
    assert record == ["a request", "a response 200"]
    assert (script.count, len(response.attempts)) == (4, 4)


async def test_an_error_passes_them_from_the_inside_out() -> None:
    record: list[str] = []
    client = with_middlewares(Script(503), Recording("a", record), Recording("b", record))
    with pytest.raises(RetryExhaustedError):
        await client.get("/")
    assert record == ["a request", "b request", "b RetryExhaustedError", "a RetryExhaustedError"]


async def test_a_plain_middleware_changes_nothing() -> None:
    assert (await with_middlewares(Script(404), Middleware()).get("/")).status_code == 404


# -- requests ----------------------------------------------------------------------------------------------------


class CustomHeaderMiddleware(Middleware):
    """That of the user's document."""

    async def process_request(self, request: HTTPRequest, client) -> HTTPRequest:  # type: ignore[no-untyped-def]
        request.headers["X-Custom"] = "value"
        return request

    async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
        return response


async def test_a_header_that_is_set_goes_out_with_every_attempt() -> None:
    script = Script(503, 200)
    await with_middlewares(script, CustomHeaderMiddleware()).get("/")
    assert script.sent("X-Custom") == ["value", "value"]


async def test_another_request_takes_the_place_of_the_first() -> None:
    class Elsewhere(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            return client.build_request("POST", "/other", json={"instead": True})

    script = Script(429, 200)
    response = await with_middlewares(script, Elsewhere()).get("/")
    assert [(request.method, request.url.path) for request in script.requests] == [("POST", "/other")] * 2
    assert [attempt.status for attempt in response.attempts] == [429, 200]


async def test_the_client_is_the_one_that_is_called() -> None:
    seen = []

    class Looking(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            seen.append(client)
            return request

    client = with_middlewares(Script(), Looking())
    view = client.with_options(timeout=5)
    await client.get("/")
    await view.get("/")
    assert seen == [client, view]


async def test_no_middleware_sees_the_credential() -> None:
    seen = []

    class Looking(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            seen.append(str(request.headers.raw))
            return request

        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            seen.extend([str(request.headers.raw), str(response.request.headers.raw)])
            return response

    client = client_of(Script(), options={"middlewares": [Looking()], "auth": BearerAuth(CANARY)})
    await client.get("/")
    assert len(seen) == 3
    assert CANARY not in "".join(seen)


# -- responses and errors ----------------------------------------------------------------------------------------


async def test_another_response_takes_the_place_of_the_first() -> None:
    class Replacing(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> Any:
            return httpx.Response(203, json={"replaced": response.status_code})

    response = await with_middlewares(Script(), Replacing()).get("/")
    assert isinstance(response, HTTPResponse)
    assert (response.status_code, response.json_data) == (203, {"replaced": 200})
    assert response.request.url == "https://api.test/"


class Answering(Middleware):
    async def process_error(self, error: HTTPClientError, request: HTTPRequest) -> Any:
        return httpx.Response(200, json={"instead of": type(error).__name__, "path": request.url.path})


async def test_an_error_may_be_answered() -> None:
    record: list[str] = []
    client = with_middlewares(Script(503), Recording("outer", record), Answering())
    response = await client.get("/users")
    assert isinstance(response, HTTPResponse)
    assert response.json_data == {"instead of": "RetryExhaustedError", "path": "/users"}
    assert response.raise_for_status() is response
    assert response.request.url == "https://api.test/users"
    assert [attempt.status for attempt in response.attempts] == [503, 503, 503]
    assert record == ["outer request", "outer response 200"]


async def test_every_error_of_ours_reaches_process_error() -> None:
    record: list[str] = []

    def no_token() -> str:
        raise OSError

    await_errors: list[tuple[Script, dict[str, Any], type[HTTPClientError]]] = [
        (Script(httpx.ReadTimeout("")), {"retry_attempts": 1}, HTTPTimeoutError),
        (Script(httpx.Response(429, headers={"Retry-After": "999"})), {}, RateLimitError),
        (
            Script(503),
            {"enable_circuit_breaker": True, "circuit_breaker_failure_threshold": 1},
            CircuitBreakerOpenError,
        ),
        (Script(), {"options": {"auth": BearerAuth(no_token)}}, AuthenticationError),
    ]
    for script, options, expected in await_errors:
        given = {"middlewares": [Recording("a", record)], **options.pop("options", {})}
        with pytest.raises(expected):
            await client_of(script, options=given, **options).get("/")
        assert record == ["a request", f"a {expected.__name__}"]
        record.clear()


async def test_process_error_may_raise_another_error() -> None:
    class Translating(Middleware):
        async def process_error(self, error: HTTPClientError, request: HTTPRequest) -> HTTPResponse | None:
            raise LookupError("ours") from error

    with pytest.raises(LookupError) as caught:
        await with_middlewares(Script(503), Translating()).get("/")
    assert isinstance(caught.value.__cause__, RetryExhaustedError)


async def test_a_cancelled_call_is_no_error_to_process() -> None:
    record: list[str] = []
    clock = FakeClock(autojump=False)
    client = client_of(Script(503), clock=clock, options={"middlewares": [Recording("a", record)]})
    call = asyncio.create_task(client.get("/"))
    while not clock.sleeps:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert record == ["a request"]


@pytest.mark.parametrize("hook", ["process_request", "process_response", "process_error", "handle"])
async def test_a_hook_that_returns_something_else_is_told(hook: str) -> None:
    async def wrong(self: Middleware, *_: Any) -> Any:
        return "nonsense"

    broken = type("Broken", (Middleware,), {hook: wrong})()
    script = Script(503 if hook == "process_error" else 200)
    with pytest.raises(TypeError, match=rf"Broken\.{hook} returned str"):
        await with_middlewares(script, broken).get("/")


@pytest.mark.parametrize("hook", ["process_request", "process_response", "handle"])
async def test_a_hook_that_forgets_to_return_is_told(hook: str) -> None:
    async def forgetful(self: Middleware, *_: Any) -> None:
        return None

    broken = type("Broken", (Middleware,), {hook: forgetful})()
    with pytest.raises(TypeError, match=rf"Broken\.{hook} returned NoneType"):
        await with_middlewares(Script(), broken).get("/")


@pytest.mark.parametrize("error", [KeyError("a bug"), asyncio.CancelledError()])
async def test_a_response_is_closed_when_process_response_fails(error: BaseException) -> None:
    class Failing(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            raise error

    stream = Stream(b"body")
    client = with_middlewares(Script(httpx.Response(200, stream=stream)), Failing())
    with pytest.raises(type(error)):
        async with client.stream("GET", "/"):
            pass
    assert stream.closed
    assert client.lifecycle.in_flight == 0


async def chunks() -> AsyncIterator[bytes]:
    yield b"made "
    yield b"here"


async def test_a_body_that_a_middleware_makes_is_read_like_any_other() -> None:
    class Rewrite(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            return HTTPResponse(response.status_code, content=chunks())

    seen: list[bytes] = []

    class Outer(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            seen.append(response.content)
            return response

    client = with_middlewares(Script(), Outer(), Rewrite())
    response = await client.get("/")
    assert response.content == b"made here"
    assert seen == [b"made here"]
    assert client.lifecycle.in_flight == 0


async def test_an_answer_in_the_place_of_another_has_its_facts() -> None:
    class Rewrite(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            return HTTPResponse(response.status_code, content=b"rewritten")

    response = await with_middlewares(Script(503, 404), Rewrite()).get("/")
    assert [attempt.status for attempt in response.attempts] == [503, 404]
    assert response.elapsed is not None
    with pytest.raises(HTTPResponseError, match=r"^github: GET .*, attempt 2,") as caught:
        response.raise_for_status()
    assert caught.value.client == "github"
    assert len(caught.value.attempts) == 2


async def test_what_a_hook_raised_for_a_status_outlives_a_rewritten_response() -> None:
    class Rewrite(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            return HTTPResponse(response.status_code)

    async def hook(response: httpx.Response) -> None:
        response.raise_for_status()

    client = with_middlewares(Script(404), RetryMiddleware(), Rewrite())
    client.event_hooks["response"].append(hook)
    with pytest.raises(HTTPResponseError):
        await client.get("/")


async def test_a_body_that_a_middleware_puts_in_the_place_of_another_ends_both() -> None:
    body = Stream(b"one", b"two")

    class Wrapped(httpx.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self.stream:
                yield part

    class Wrap(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            response.stream = Wrapped(response.stream)
            return response

    client = with_middlewares(Script(httpx.Response(200, stream=body)), Wrap())
    async with client.stream("GET", "/") as response:
        async for _ in response.aiter_bytes():
            break
        assert not body.closed
    assert body.closed


async def test_a_response_that_comes_when_the_middleware_has_answered_is_closed() -> None:
    late, shadow_body = asyncio.Event(), Stream(b"late")
    tasks: list[asyncio.Task[HTTPResponse]] = []

    async def upstream(request: httpx.Request) -> httpx.Response:
        if request.headers.get("shadow"):
            await late.wait()
            return httpx.Response(200, stream=shadow_body)
        return httpx.Response(200, stream=Stream(b"first"))

    class Shadow(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
            shadow = httpx.Request("GET", request.url, headers={**request.headers, "shadow": "1"})
            tasks.append(asyncio.create_task(call_next(shadow)))
            return await call_next(request)

    async with AsyncHTTPClient(transport=httpx.MockTransport(upstream), middlewares=[Shadow()]) as client:
        async with client.stream("GET", "https://api.test/") as response:
            assert await response.aread() == b"first"
        late.set()
        await tasks[0]
    assert shadow_body.closed


async def test_a_middleware_may_give_a_request_other_extensions() -> None:
    class Replace(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            request.extensions = {"mine": 1}
            return request

    script = Script()
    await with_middlewares(script, Replace(), timeout=7).get("/")
    assert script.requests[0].extensions["mine"] == 1
    assert set(script.requests[0].extensions["timeout"].values()) == {7}


async def test_a_middleware_may_read_the_body_of_a_streamed_response() -> None:
    class Reading(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            await response.aread()
            return response

    client = with_middlewares(Script(httpx.Response(200, stream=Stream(b"bo", b"dy"))), Reading())
    async with client.stream("GET", "/") as response:
        assert await response.aread() == b"body"


# -- the whole ---------------------------------------------------------------------------------------------------


async def test_handle_wraps_the_whole_call() -> None:
    class Timing(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
            request.headers["X-Before"] = "1"
            response = await call_next(request)
            response.headers["X-After"] = str(len(response.attempts))
            return response

    script = Script(503, 200)
    response = await with_middlewares(script, Timing()).get("/")
    assert script.sent("X-Before") == ["1", "1"]
    assert response.headers["X-After"] == "2"


async def test_handle_may_answer_without_the_network() -> None:
    class Cache(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> Any:
            return httpx.Response(200, json={"cached": True})

    script = Script()
    client = with_middlewares(script, Cache())
    response = await client.get("/users")
    assert script.count == 0
    assert isinstance(response, HTTPResponse)
    assert response.json_data == {"cached": True}
    assert response.request.url == "https://api.test/users"
    assert response.attempts == ()
    assert client.lifecycle.in_flight == 0


async def test_handle_may_go_on_more_than_once() -> None:
    class Twice(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
            await (await call_next(request)).aclose()
            return await call_next(request)

    script = Script(404, 200)
    response = await with_middlewares(script, Twice()).post("/", json={"a": 1})
    assert response.status_code == 200
    assert script.bodies == [b'{"a":1}'] * 2


@pytest.mark.parametrize("bad", [Middleware, object(), None, lambda request: request])
def test_what_is_no_middleware_is_refused_by_name(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="middlewares"):
        AsyncHTTPClient(middlewares=[bad])


# -- logging -----------------------------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="fastapi_http_client.middleware")
    return caplog


def lines(log: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [
        record.getMessage()
        for record in log.records
        if record.name == "fastapi_http_client.middleware" and record.levelno >= level
    ]


async def test_a_call_is_one_line(log: pytest.LogCaptureFixture) -> None:
    await with_middlewares(Script(503, 200), LoggingMiddleware()).get("/users?page=2")
    assert lines(log) == ["github: GET https://api.test/users?page=2 -> 200 in 1.000 s, attempts: 2"]


async def test_a_failed_call_is_one_warning(log: pytest.LogCaptureFixture) -> None:
    client = with_middlewares(Script(httpx.ConnectError("refused\r\nforged line")), LoggingMiddleware())
    with pytest.raises(RetryExhaustedError):
        await client.get("/users")
    (line,) = lines(log, logging.WARNING)
    assert line.startswith("github: GET https://api.test/users -> RetryExhaustedError in 3.000 s: ")
    assert len(lines(log)) == 1
    assert "\n" not in line


async def test_urls_are_logged_without_their_secrets(log: pytest.LogCaptureFixture) -> None:
    auth = APIKeyAuth(CANARY, query_param_name="odd")
    client = client_of(Script(), options={"middlewares": [LoggingMiddleware()], "auth": auth})
    for key in ("api_key", "access_token", "token", "password", "secret", "sig", "odd"):
        await client.get("/", params={key: CANARY, "page": "2"})
    assert len([line for line in lines(log) if "page=2" in line]) == 7
    assert CANARY not in log.text


async def test_headers_are_logged_at_debug_without_the_secret_ones(log: pytest.LogCaptureFixture) -> None:
    secret = [
        "Authorization",
        "Proxy-Authorization",
        "Cookie",
        "X-API-Key",
        "X-Auth-Token",
        "X-Mine",
        "X-Odd",
        "X-Of-Call",
    ]
    reply = httpx.Response(200, headers=[*((name, CANARY) for name in secret), ("Set-Cookie", CANARY), ("Server", "s")])
    middleware = LoggingMiddleware(sensitive_headers={"x-MINE"})
    auth = APIKeyAuth("key", header_name="X-Odd")
    client = client_of(Script(reply), options={"middlewares": [middleware], "auth": auth})
    call_auth = APIKeyAuth("key", header_name="X-Of-Call")
    await client.get("/", headers={**dict.fromkeys(secret, CANARY), "Accept": "text/plain"}, auth=call_auth)
    shown = [line for line in lines(log, logging.DEBUG) if "headers=" in line]
    assert len(shown) == 2
    assert "text/plain" in shown[0]
    assert "'server': 's'" in shown[1]
    assert CANARY not in log.text


async def test_the_users_list_adds_to_the_built_in_one(log: pytest.LogCaptureFixture) -> None:
    await with_middlewares(Script(), LoggingMiddleware(sensitive_headers={"authorization", "x-api-key"})).get(
        "/", headers={"Cookie": CANARY}
    )
    assert CANARY not in log.text


def test_a_text_is_no_list_of_headers() -> None:
    with pytest.raises(ConfigurationError, match="sensitive_headers"):
        LoggingMiddleware(sensitive_headers="authorization")


async def test_bodies_are_not_logged_unless_asked(log: pytest.LogCaptureFixture) -> None:
    script = Script(httpx.Response(200, text="the response"))
    await with_middlewares(script, LoggingMiddleware()).post("/", content="the request")
    assert "the request" not in log.text
    assert "the response" not in log.text


async def body_line(log: pytest.LogCaptureFixture, content: bytes, content_type: str) -> str:
    """What is logged of a response's body."""
    reply = httpx.Response(200, content=content, headers={"Content-Type": content_type})
    await with_middlewares(Script(reply), LoggingMiddleware(log_response_body=True)).get("/")
    (line,) = (line for line in lines(log) if " body: " in line)
    return line.partition(" body: ")[2]


async def test_both_bodies_are_logged_when_asked(log: pytest.LogCaptureFixture) -> None:
    script = Script(httpx.Response(200, text="the response"))
    middleware = LoggingMiddleware(log_request_body=True, log_response_body=True)
    await with_middlewares(script, middleware).post("/", json={"the": "request"})
    assert any(line.endswith('request body: {"the":"request"}') for line in lines(log))
    assert any(line.endswith("body: the response") for line in lines(log))


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "text/html; charset=utf-8", "application/json", "application/problem+json", "application/xml"),
        *("application/soap+xml", "application/x-www-form-urlencoded", "APPLICATION/JSON; charset=UTF-8"),
    ],
)
async def test_text_is_shown(log: pytest.LogCaptureFixture, content_type: str) -> None:
    assert await body_line(log, b"some text", content_type) == "some text"


@pytest.mark.parametrize(
    "content_type", ["", "image/png", "application/octet-stream", "multipart/form-data; boundary=x"]
)
async def test_anything_else_is_only_counted(log: pytest.LogCaptureFixture, content_type: str) -> None:
    assert await body_line(log, b"some bytes", content_type) == "<10 bytes>"


async def test_a_body_is_cut_at_two_kibibytes(log: pytest.LogCaptureFixture) -> None:
    assert await body_line(log, b"a" * 10_000, "text/plain") == "a" * 2048 + "…"


async def test_a_body_of_two_kibibytes_is_not_cut(log: pytest.LogCaptureFixture) -> None:
    assert await body_line(log, b"a" * 2048, "text/plain") == "a" * 2048


async def test_an_empty_body_is_called_so(log: pytest.LogCaptureFixture) -> None:
    assert await body_line(log, b"", "text/plain") == "<empty>"


async def test_a_body_is_one_line_without_control_characters(log: pytest.LogCaptureFixture) -> None:
    shown = await body_line(log, b"a\r\nforged\x1b[2J\xff", "text/plain")
    assert shown == "a\\x0d\\x0aforged\\x1b[2J�"


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/json", json.dumps({"user": "ann", "password": f"{CANARY}, and more"})),
        ("application/json", json.dumps({"access_token": CANARY, "user": "ann"})),
        ("application/json", json.dumps({"user": "ann", "client_secret": f'a"{CANARY}'})),
        ("application/x-www-form-urlencoded", f"user=ann&password={CANARY}&x=1"),
        ("application/json", json.dumps({"user": "ann", "accessToken": CANARY, "clientSecret": CANARY})),
        ("application/json", json.dumps({"user_password": CANARY, "tokens": {"api_key": CANARY}, "user": "ann"})),
        ("application/json", json.dumps({"secrets": [CANARY, {"a": f"]{CANARY}"}], "pin": 4, "user": "ann"})),
        ("application/json", json.dumps([{"user": "ann"}, {"password": None, "api key": f"x\\{CANARY}"}])),
        ("application/problem+json", f'{{"user":"ann","session_id":{CANARY}'),
        ("application/x-www-form-urlencoded", f"access%5Ftoken={CANARY}&user=ann"),
        ("text/plain", f"user: ann\napi_key: {CANARY}\n"),
        ("text/plain", f"user: ann\nAuthorization: Bearer {CANARY}\n"),
        ("text/xml", f"<a><user>ann</user><Password type='x'>{CANARY}</Password></a>"),
        ("text/html", f"<input name=user value=ann> token={CANARY}"),
    ],
)
async def test_fields_that_are_named_like_secrets_are_masked(
    log: pytest.LogCaptureFixture, content_type: str, content: str
) -> None:
    shown = await body_line(log, content.encode(), content_type)
    assert CANARY not in shown
    assert "ann" in shown


async def test_a_secret_that_is_cut_is_masked_too(log: pytest.LogCaptureFixture) -> None:
    content = json.dumps({"a": "x" * 2000, "password": f"one, two, {CANARY}" + "y" * 100})
    assert CANARY[:5] not in await body_line(log, content.encode(), "application/json")


async def test_streamed_bodies_are_left_alone(log: pytest.LogCaptureFixture) -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield b"up"

    middleware = LoggingMiddleware(log_request_body=True, log_response_body=True)
    client = with_middlewares(Script(httpx.Response(200, stream=Stream(b"down"))), middleware)
    async with client.stream("POST", "/", content=upload()) as response:
        assert await response.aread() == b"down"
    assert [line.rpartition(": ")[2] for line in lines(log) if "body" in line] == ["<streamed>", "<streamed>"]


async def test_a_cancelled_call_is_neither_success_nor_failure(log: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(autojump=False)
    client = client_of(Script(503), clock=clock, options={"middlewares": [LoggingMiddleware()]})
    call = asyncio.create_task(client.get("/"))
    while not clock.sleeps:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert lines(log) == ["GET https://api.test/ -> cancelled after 0.000 s"]


async def test_a_call_that_its_own_limit_ends_is_logged(log: pytest.LogCaptureFixture) -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    config = ClientConfig(total_timeout=0.02)
    transport = httpx.MockTransport(hang)
    async with AsyncHTTPClient(config=config, transport=transport, middlewares=[LoggingMiddleware()]) as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("https://api.test/")
    (line,) = lines(log, logging.WARNING)
    assert re.fullmatch(r"GET https://api.test/ -> HTTPTimeoutError in 0\.\d+ s: the time of the call is over", line)


async def test_an_error_of_somebody_else_is_logged_by_its_class_only(log: pytest.LogCaptureFixture) -> None:
    class Broken(Middleware):
        async def process_request(self, request: httpx.Request, client: AsyncHTTPClient) -> httpx.Request:
            raise LookupError("may hold anything")

    with pytest.raises(LookupError):
        await with_middlewares(Script(), LoggingMiddleware(), Broken()).get("/")
    assert lines(log, logging.WARNING) == ["github: GET https://api.test/ -> LookupError in 0.000 s"]


async def test_the_number_of_attempts_is_known_inside_of_the_retries_too(log: pytest.LogCaptureFixture) -> None:
    client = with_middlewares(Script(503, 200), RetryMiddleware(), LoggingMiddleware())
    await client.get("/")
    assert [line.rpartition(", ")[2] for line in lines(log)] == ["attempts: 1", "attempts: 2"]


async def test_a_refused_request_is_logged_by_nobody_for_nothing_was_called(log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HTTPRequestError):
        await with_middlewares(Script(), LoggingMiddleware()).get("https://other.test/")
    assert lines(log) == []


@pytest.mark.parametrize("hook", ["process_request", "process_response", "process_error"])
async def test_a_hook_that_is_not_async_is_named(hook: str) -> None:
    middleware = type("Mine", (Middleware,), {hook: lambda self, first, second: first})()
    script = Script(httpx.ConnectError("down") if hook == "process_error" else 200)
    with pytest.raises(TypeError, match=f"Mine.{hook}: must be an async function; it returned "):
        await with_middlewares(script, middleware).get("/", retry=False)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
async def test_requests_that_a_middleware_sends_at_once_do_not_get_each_others_credential(order: str) -> None:
    class Mirror(Middleware):
        async def handle(self, request: HTTPRequest, client: AsyncHTTPClient, call_next: Handler) -> HTTPResponse:
            requests = [request, httpx.Request("GET", "https://stranger.example/")]
            if order == "theirs first":
                requests.reverse()
            answers = await asyncio.gather(*map(call_next, requests))
            return answers[requests.index(request)]

    script = Script()
    clock = FakeClock()
    limiter = TokenBucketRateLimiter(20, 1, clock=clock)  # the second of the two has to wait
    options = {"middlewares": [Mirror()], "auth": BearerAuth(CANARY), "rate_limiter": limiter}
    async with client_of(script, options=options, clock=clock) as client:
        await client.get("/")
    credentials = {request.url.host: request.headers.get("authorization") for request in script.requests}
    assert credentials == {"api.test": f"Bearer {CANARY}", "stranger.example": None}
