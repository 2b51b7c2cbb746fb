"""The public API as type checkers see it: checked by `mypy --strict`, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, assert_type

import httpx
from fastapi import Depends, FastAPI
from pydantic import BaseModel

from fastapi_http_client import (
    APIKeyAuth,
    AsyncHTTPClient,
    Attempt,
    AuthenticationError,
    BasicAuth,
    BearerAuth,
    CircuitBreaker,
    CircuitBreakerOpenError,
    CircuitState,
    ClientConfig,
    ConfigurationError,
    HTTPClientError,
    HTTPClients,
    HTTPRequest,
    HTTPRequestError,
    HTTPResponse,
    HTTPResponseError,
    HTTPTimeoutError,
    LoggingMiddleware,
    Middleware,
    OAuth2ClientCredentials,
    RateLimitError,
    RequestContextMiddleware,
    RetryExhaustedError,
    RetryMiddleware,
    TokenBucketRateLimiter,
    get_request_id,
    http_client,
    request_context,
)
from fastapi_http_client.testing import FakeClock, MockResponse

# -- an application

clients = HTTPClients({"github": ClientConfig(base_url="https://api.github.com")}, shutdown_grace=5.0)
clients.add("billing", auth=BearerAuth("token"), middlewares=[LoggingMiddleware()], timeout=3.0)
clients.add("shop", total_timeout=3.0, retry_attempts=2, max_connections=10, http2=True)
app = FastAPI(lifespan=clients.lifespan)
clients.install(app, request_timeout=10.0, cancel_on_disconnect=True)
GitHub = Annotated[AsyncHTTPClient, Depends(http_client("github"))]


class User(BaseModel):
    login: str


@app.get("/users/{login}")
async def user(login: str, github: GitHub) -> User:
    response = await github.get("/users/{login}", path_params={"login": login}, total_timeout=2.0, retry=False)
    assert_type(response, HTTPResponse)
    return response.raise_for_status().parse(User)


async def registry() -> None:
    async with clients:
        assert_type(clients["github"], AsyncHTTPClient)
        assert_type(clients.names, tuple[str, ...])
        assert_type(clients.explain(), str)


# -- a client


async def verbs(client: AsyncHTTPClient) -> None:
    as_httpx: httpx.AsyncClient = client
    assert_type(await client.get("/x", params={"a": 1}, headers={"X": "y"}, timeout=3.0), HTTPResponse)
    assert_type(await client.options("/x"), HTTPResponse)
    assert_type(await client.request("GET", "/x", retry=False, json={"a": 1}), HTTPResponse)
    await client.request("GET", "/x", retrys=False)  # type: ignore[call-arg]
    assert_type((await client.get("/x")).parse(list[int]), list[int])
    anything: int | None = (await client.get("/x")).parse(int | None)
    assert anything is None
    assert_type(await client.head("/x", follow_redirects=True), HTTPResponse)
    assert_type(await client.post("/x", json={"a": 1}, auth=("user", "password")), HTTPResponse)
    assert_type(await client.put("/x", content=b"x"), HTTPResponse)
    assert_type(await client.patch("/x", data={"a": "b"}), HTTPResponse)
    assert_type(await client.delete("/x", extensions={}), HTTPResponse)
    assert_type(await client.request("QUERY", httpx.URL("/x")), HTTPResponse)
    request = client.build_request("GET", "/{id}", path_params={"id": 7})
    assert_type(request, httpx.Request)
    assert_type(await client.send(request, stream=True), HTTPResponse)
    async with client.stream("GET", "/x") as response:
        assert_type(response, HTTPResponse)
        async for line in response.aiter_lines():
            assert_type(line, str)
    await as_httpx.get("/x")


async def responses(client: AsyncHTTPClient) -> None:
    response = await client.get("/x")
    assert_type(response.attempts, tuple[Attempt, ...])
    assert_type(response.parse(User), User)
    assert_type(response.parse(list[int]), list[int])
    assert_type(response.raise_for_status(), HTTPResponse)
    assert_type(response.status_code, int)


async def life() -> None:
    async with AsyncHTTPClient("https://api.example.com", config=ClientConfig(timeout=3.0)) as client:
        assert_type(client, AsyncHTTPClient)
        assert_type(client.with_options(timeout=1.0, retry_statuses={503}, auth=None), AsyncHTTPClient)
        client.with_options(max_connections=3)  # type: ignore[call-arg]
        client.with_options(retrys=3)  # type: ignore[call-arg]
        client.with_options(timeout="3")  # type: ignore[arg-type]
        assert_type(client.config, ClientConfig)
        assert_type(client.name, str | None)
        await client.drain(3.0)
        await client.aclose()


def every_option(transport: httpx.AsyncBaseTransport) -> AsyncHTTPClient:
    return AsyncHTTPClient(
        httpx.URL("https://api.example.com"),
        config=ClientConfig(
            retry_statuses=frozenset({503}), retry_methods=frozenset({"GET"}), propagate_headers=("x-tenant",)
        ),
        auth=OAuth2ClientCredentials("https://auth.example.com/token", "id", "secret", scope="read", cache_duration=60),
        rate_limiter=TokenBucketRateLimiter(10.0, burst=5),
        circuit_breaker=CircuitBreaker(failure_threshold=3, recovery_timeout=5.0, half_open_max_calls=2),
        middlewares=[LoggingMiddleware(log_request_body=True, sensitive_headers={"x-secret"}), RetryMiddleware()],
        name="api",
        transport=transport,
        clock=FakeClock(),
        random=lambda: 0.5,
        headers={"X-A": "1"},
        params={"a": "b"},
        cookies={"c": "d"},
        verify=False,
        timeout=httpx.Timeout(3.0),
        limits=httpx.Limits(max_connections=3),
        event_hooks={"request": []},
        trust_env=False,
    )


# -- credentials


async def token() -> str:
    return "token"


CREDENTIALS: list[httpx.Auth] = [
    BearerAuth("token"),
    BearerAuth(token),
    BearerAuth(lambda: "token"),
    APIKeyAuth("key", header_name="X-Key"),
    APIKeyAuth("key", query_param_name="key"),
    BasicAuth("user", "password"),
]


# -- middlewares


class Hooks(Middleware):
    async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
        request.headers["X-Custom"] = "value"
        return request

    async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
        return response

    async def process_error(self, error: HTTPClientError, request: HTTPRequest) -> HTTPResponse | None:
        return HTTPResponse(200, json=[])


class Whole(Middleware):
    async def handle(
        self,
        request: HTTPRequest,
        client: AsyncHTTPClient,
        call_next: Callable[[HTTPRequest], Awaitable[HTTPResponse]],
    ) -> HTTPResponse:
        return await call_next(request)


# -- policies by hand


async def by_hand(limiter: TokenBucketRateLimiter, breaker: CircuitBreaker) -> None:
    assert_type(await limiter.acquire(2), float)
    assert_type(breaker.state, CircuitState)
    breaker.trip()
    breaker.reset()


# -- errors


async def handled(client: AsyncHTTPClient) -> None:
    try:
        await client.get("/x")
    except RateLimitError as error:
        assert_type(error.retry_after, float | None)
    except HTTPResponseError as error:
        assert_type(error.status_code, int)
        assert_type(error.message, str)
    except RetryExhaustedError as error:
        assert_type(error.attempts, tuple[Attempt, ...])
        assert_type(error.last_response, httpx.Response | None)
        assert_type(error.last_error, Exception | None)
    except CircuitBreakerOpenError as error:
        assert_type(error.recovery_timeout, float)
    except HTTPTimeoutError as error:
        as_httpx: httpx.TimeoutException = error
        print(error.phase, as_httpx)  # noqa: T201
    except HTTPRequestError as error:
        transport_error: httpx.TransportError = error
        print(error.may_have_run, transport_error)  # noqa: T201
    except (AuthenticationError, ConfigurationError) as error:
        assert_type(error.client, str | None)
    except HTTPClientError as error:
        assert_type(error.attempts, tuple[Attempt, ...])


# -- context


async def job() -> None:
    with request_context(request_id="job-1", timeout=5.0):
        assert_type(get_request_id(), str | None)
    async with request_context():
        pass
    app.add_middleware(RequestContextMiddleware)


async def events(client: AsyncHTTPClient) -> AsyncIterator[str]:
    async with client.stream("GET", "/events") as response:
        async for line in response.aiter_lines():
            yield line


MOCK: httpx.Response = MockResponse(200, b'{"ok": true}', headers={"X-A": "1"})
