"""The order of the steps, and what each of them sees."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import httpx
import pytest

from fastapi_http_client.auth import APIKeyAuth, BearerAuth
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import request_context
from fastapi_http_client.errors import (
    CircuitBreakerOpenError,
    HTTPRequestError,
    HTTPTimeoutError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPRequest, HTTPResponse
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.policies.circuit_breaker import CircuitState
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.retry import RetryMiddleware
from tests.hostile.upstream import HostileUpstream


class Outer(Middleware):
    pass


class Inner(Middleware):
    pass


class Answers:
    """A mock network that gives the answers in order, the last one for ever, and remembers what it was asked."""

    def __init__(self, *answers: int | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)


def offline(answers: Answers, **options: Any) -> AsyncHTTPClient:
    options.setdefault("clock", FakeClock())
    return AsyncHTTPClient("https://api.example.com", transport=httpx.MockTransport(answers), **options)


# -- the order


def test_the_steps_stand_in_the_order_of_the_design() -> None:
    config = ClientConfig(enable_rate_limiting=True, enable_circuit_breaker=True)
    client = AsyncHTTPClient("https://api.example.com", config=config, middlewares=[Outer(), Inner()])
    assert client.pipeline == (
        # once per call
        "deadline",
        "Outer",
        "Inner",
        "redirects",
        "retry",
        # once per attempt
        "own copy",
        "circuit breaker",
        "rate limiter",
        "auth",
        "client span",
        "propagation",
        "attempt timeout",
        "exchange",
    )


def test_a_step_that_is_switched_off_is_not_there() -> None:
    assert "circuit breaker" not in AsyncHTTPClient("https://api.example.com").pipeline


def test_a_retry_middleware_stands_where_it_is_put() -> None:
    client = AsyncHTTPClient("https://api.example.com", middlewares=[Outer(), RetryMiddleware(), Inner()])
    assert client.pipeline[:5] == ("deadline", "Outer", "retry", "Inner", "redirects")
    assert client.pipeline.count("retry") == 1


# -- once per call, once per attempt


async def test_middlewares_run_once_per_call_in_their_order() -> None:
    order: list[str] = []

    class Noting(Middleware):
        def __init__(self, name: str) -> None:
            self._name = name

        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            order.append(f"{self._name} in")
            return request

        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            order.append(f"{self._name} out")
            return response

    async with offline(Answers(503, 503, 200), middlewares=[Noting("a"), Noting("b")]) as client:
        assert len((await client.get("/")).attempts) == 3
    assert order == ["a in", "b in", "b out", "a out"]


async def test_a_middleware_behind_the_retry_runs_once_per_attempt() -> None:
    seen = []

    class Counting(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            seen.append(request)
            return request

    async with offline(Answers(503, 503, 200), middlewares=[RetryMiddleware(), Counting()]) as client:
        await client.get("/")
    assert len(seen) == 3


async def test_every_attempt_has_a_request_of_its_own() -> None:
    answers = Answers(503, 503, 200)
    async with offline(answers, auth=BearerAuth("s3cret")) as client:
        request = client.build_request("GET", "/")
        response = await client.send(request)
    assert len({id(sent) for sent in answers.requests} | {id(request)}) == 4
    assert all(sent.headers["Authorization"] == "Bearer s3cret" for sent in answers.requests)
    assert "authorization" not in request.headers
    assert response.request is request


async def test_every_attempt_takes_a_token_and_tells_the_circuit() -> None:
    limiter, breaker = TokenBucketRateLimiter(rate=1e-6, burst=10), CircuitBreaker(failure_threshold=3)
    async with offline(Answers(503, 503, 503), rate_limiter=limiter, circuit_breaker=breaker) as client:
        with pytest.raises(RetryExhaustedError):
            await client.get("/")
    assert round(limiter.available) == 7
    assert breaker.state is CircuitState.OPEN


async def test_an_open_circuit_ends_the_retrying_and_costs_no_token() -> None:
    limiter, breaker = TokenBucketRateLimiter(rate=1e-6, burst=10), CircuitBreaker(failure_threshold=2)
    answers = Answers(503)
    async with offline(answers, rate_limiter=limiter, circuit_breaker=breaker, name="api") as client:
        with pytest.raises(CircuitBreakerOpenError) as caught:
            await client.get("/")
    assert len(answers.requests) == 2
    assert round(limiter.available) == 8
    assert len(caught.value.attempts) == 2
    assert caught.value.client == "api"
    assert caught.value.request.url == httpx.URL("https://api.example.com/")


async def test_a_call_that_waited_for_the_limiter_asks_the_circuit_again() -> None:
    clock = FakeClock(autojump=False)
    limiter, breaker = TokenBucketRateLimiter(rate=1.0), CircuitBreaker()
    answers = Answers(200)
    async with offline(answers, rate_limiter=limiter, circuit_breaker=breaker, clock=clock) as client:
        await client.get("/")
        waiting = asyncio.ensure_future(client.get("/"))
        await asyncio.sleep(0)
        breaker.trip()
        clock.advance(1.0)
        with pytest.raises(CircuitBreakerOpenError, match="while it waited for the rate limiter"):
            await waiting
    assert len(answers.requests) == 1


async def test_every_hop_of_a_redirect_takes_a_token(upstream: HostileUpstream) -> None:
    limiter = TokenBucketRateLimiter(rate=1e-6, burst=10)
    async with AsyncHTTPClient(upstream.url(), rate_limiter=limiter, follow_redirects=True) as client:
        await client.get("/redirect?n=2")
    assert round(limiter.available) == 7


async def test_a_replay_after_a_401_belongs_to_its_attempt(upstream: HostileUpstream) -> None:
    auth = OAuth2ClientCredentials(upstream.url("/oauth/token?realm=r"), "id", "secret")
    limiter = TokenBucketRateLimiter(rate=1e-6, burst=10)
    async with AsyncHTTPClient(upstream.url(), auth=auth, rate_limiter=limiter) as client:
        await client.get("/oauth/protected?realm=r")
        async with AsyncHTTPClient(upstream.url()) as other:
            await other.get("/oauth/revoke?realm=r")
        response = await client.get("/oauth/protected?realm=r")
    assert response.status_code == 200
    assert len(response.attempts) == 1
    assert round(limiter.available) == 8
    assert upstream.stats()["token_realms"]["r"]["calls"] == 2


# -- outcomes


@pytest.mark.parametrize(
    ("answer", "opens"),
    [
        (200, False),
        (404, False),
        (429, False),
        (500, True),
        (599, True),
        (httpx.ConnectError("x"), True),
        (httpx.ReadTimeout("x"), True),
        (httpx.RemoteProtocolError("x"), True),
        (httpx.PoolTimeout("x"), False),
        (httpx.LocalProtocolError("x"), False),
        (httpx.DecodingError("x"), False),
        (ValueError("x"), False),
    ],
    ids=str,
)
async def test_what_counts_as_a_failure(answer: int | Exception, opens: bool) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    config = ClientConfig(retry_attempts=1)
    async with offline(Answers(answer), circuit_breaker=breaker, config=config) as client:
        try:
            await client.get("/")
        except HTTPRequestError:
            assert isinstance(answer, Exception)
    assert (breaker.state is CircuitState.OPEN) is opens


async def test_a_429_neither_closes_nor_opens_a_half_open_circuit() -> None:
    clock = FakeClock(autojump=False)
    breaker = CircuitBreaker(recovery_timeout=10.0)
    config = ClientConfig(retry_attempts=1)
    async with offline(Answers(429, 404), circuit_breaker=breaker, clock=clock, config=config) as client:
        breaker.trip()
        clock.advance(10.0)
        await client.get("/")
        assert breaker.state is CircuitState.HALF_OPEN
        await client.get("/")
        assert breaker.state is CircuitState.CLOSED


@pytest.mark.parametrize("middlewares", [(), (Outer(),)], ids=["fast", "step by step"])
async def test_an_upstream_that_hangs_opens_the_circuit_also_when_the_limit_of_the_call_strikes_first(
    upstream: HostileUpstream, middlewares: tuple[Middleware, ...]
) -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    config = ClientConfig(total_timeout=0.15)
    async with AsyncHTTPClient(
        upstream.url(), config=config, circuit_breaker=breaker, middlewares=middlewares
    ) as client:
        for _ in range(2):
            with pytest.raises(HTTPTimeoutError) as caught:
                await client.get("/hang")
            assert caught.value.phase == "total"
        assert breaker.state is CircuitState.OPEN


@pytest.mark.parametrize("middlewares", [(), (Outer(),)], ids=["fast", "step by step"])
async def test_a_caller_with_little_time_says_nothing_of_the_upstream(
    upstream: HostileUpstream, middlewares: tuple[Middleware, ...]
) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    async with AsyncHTTPClient(upstream.url(), circuit_breaker=breaker, middlewares=middlewares) as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("/hang", total_timeout=0.05)
        assert breaker.state is CircuitState.CLOSED


async def test_a_streamed_probe_ends_with_its_headers() -> None:
    clock = FakeClock(autojump=False)
    breaker = CircuitBreaker(recovery_timeout=10.0)
    async with offline(Answers(200), circuit_breaker=breaker, clock=clock) as client:
        breaker.trip()
        clock.advance(10.0)
        async with client.stream("GET", "/events"):
            assert breaker.state is CircuitState.CLOSED


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"x" * 100),
        httpx.Response(200, stream=httpx.ByteStream(b"x" * 100)),
        httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip")),
    ],
    ids=["too large", "too large to read", "garbled"],
)
async def test_an_answer_that_cannot_be_used_proves_life(answer: httpx.Response) -> None:
    clock = FakeClock(autojump=False)
    breaker = CircuitBreaker(recovery_timeout=10.0)
    async with AsyncHTTPClient(
        "https://api.example.com",
        config=ClientConfig(max_response_bytes=10),
        transport=httpx.MockTransport(lambda request: answer),
        circuit_breaker=breaker,
        clock=clock,
    ) as client:
        breaker.trip()
        clock.advance(10.0)
        with pytest.raises(HTTPRequestError):
            await client.get("/")
        assert breaker.state is CircuitState.CLOSED


# -- the deadline


async def test_a_request_made_by_a_middleware_has_the_limits_of_the_one_that_it_replaces(
    upstream: HostileUpstream,
) -> None:
    class Another(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            return httpx.Request("GET", request.url)

    config = ClientConfig(timeout=0.1, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), config=config, middlewares=[Another()]) as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("/hang")


async def test_a_request_made_by_an_auth_flow_has_the_limits_of_the_one_that_it_replaces(
    upstream: HostileUpstream,
) -> None:
    class Asking(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            yield httpx.Request("GET", request.url.copy_with(path="/hang"))
            yield request

    config = ClientConfig(timeout=0.1, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), config=config, auth=Asking()) as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("/ok")


@pytest.mark.parametrize("middlewares", [(), (Outer(),)], ids=["fast", "step by step"])
async def test_the_ledger_holds_the_attempt_that_the_calls_limit_cut_off(
    upstream: HostileUpstream, middlewares: tuple[Middleware, ...]
) -> None:
    async with AsyncHTTPClient(upstream.url(), middlewares=middlewares) as client:
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.get("/hang", total_timeout=0.1)
    (attempt,) = caught.value.attempts
    assert (attempt.number, attempt.status) == (1, None)
    assert isinstance(attempt.error, TimeoutError)
    assert 0.05 < attempt.elapsed < 5


async def test_a_limit_that_strikes_between_attempts_adds_none_to_the_ledger() -> None:
    clock = FakeClock()
    limiter = TokenBucketRateLimiter(rate=0.001, burst=1, clock=clock)
    async with offline(Answers(200), rate_limiter=limiter, clock=clock) as client:
        await client.get("/")
        with pytest.raises(RateLimitError) as caught:
            await client.get("/", total_timeout=1.0)
    assert caught.value.attempts == ()


async def test_the_inbound_deadline_bounds_a_call(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        with request_context(timeout=0.1):
            with pytest.raises(HTTPTimeoutError) as caught:
                await client.get("/hang", total_timeout=5.0)
            assert caught.value.phase == "total"
            with pytest.raises(HTTPTimeoutError, match="time of the request that it serves is over") as caught:
                await client.get("/ok")
            assert not caught.value.may_have_run
        assert (await client.get("/ok")).status_code == 200
    assert [request["path"] for request in upstream.requests_seen()] == ["/hang", "/ok"]


async def test_the_limiter_waits_no_longer_than_there_is_time() -> None:
    limiter = TokenBucketRateLimiter(rate=0.1)
    async with offline(Answers(200), rate_limiter=limiter, clock=FakeClock(), name="api") as client:
        await client.get("/")
        with pytest.raises(RateLimitError, match=r"api: GET https://api\.example\.com/") as caught:
            await client.get("/", total_timeout=5.0)
        assert caught.value.retry_after is not None
        assert 9.0 < caught.value.retry_after <= 10.0
        assert caught.value.response is None
        assert limiter.waiting == 0


async def test_the_limiter_waits_no_longer_than_it_may() -> None:
    config = ClientConfig(enable_rate_limiting=True, rate_limit_rate=0.1, rate_limit_max_wait=3.0)
    async with offline(Answers(200), config=config) as client:
        await client.get("/")
        with pytest.raises(RateLimitError):
            await client.get("/")


# -- auth


async def test_a_credential_goes_to_the_clients_own_origins_only(upstream: HostileUpstream) -> None:
    for auth in (BearerAuth("s3cret"), APIKeyAuth("s3cret"), APIKeyAuth("s3cret", query_param_name="key")):
        async with AsyncHTTPClient(upstream.url(), auth=auth, follow_redirects=True) as client:
            response = await client.get("/redirect-cross", headers={"Cookie": "c=s3cret", "X-Own": "s3cret"})
            assert response.json_data["listener"] == "other"
    assert {request["listener"] for request in upstream.search("s3cret")} == {"main"}


async def test_what_is_the_clients_stays_behind_when_a_middleware_sends_the_request_abroad() -> None:
    class Abroad(Middleware):
        async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
            request.url = httpx.URL("https://elsewhere.example.org:8443/")
            request.headers["X-Theirs"] = "kept"
            return request

    answers = Answers(200)
    async with offline(
        answers,
        middlewares=[Abroad()],
        auth=BearerAuth("secret"),
        headers={"X-Key": "secret"},
        cookies={"sid": "secret"},
    ) as client:
        await client.get("/")
    (request,) = answers.requests
    assert "secret" not in str(dict(request.headers))
    assert request.headers["Host"] == "elsewhere.example.org:8443"
    assert request.headers["X-Theirs"] == "kept"
    assert request.headers["User-Agent"] == client.headers["User-Agent"]


async def test_a_request_hook_cannot_take_the_credential_abroad() -> None:
    async def abroad(request: httpx.Request) -> None:
        request.url = httpx.URL("https://elsewhere.example.org/")

    answers = Answers(200)
    async with offline(answers, auth=BearerAuth("secret"), event_hooks={"request": [abroad]}) as client:
        with pytest.raises(HTTPRequestError, match="refused: a request hook") as caught:
            await client.get("/")
    assert answers.requests == []
    assert not caught.value.may_have_run


async def test_httpxs_auth_flow_may_ask_for_another_request(upstream: HostileUpstream) -> None:
    class Negotiate(httpx.Auth):
        requires_response_body = True

        def auth_flow(self, request: httpx.Request) -> Any:
            response = yield request
            if response.status_code == 401:
                assert response.content
                request.headers["Authorization"] = "Basic dXNlcjpwYXNz"
                yield request

    url = "/auth/basic?user=user&password=pass"
    async with AsyncHTTPClient(upstream.url(), auth=Negotiate()) as client:
        response = await client.get(url)
        assert response.status_code == 200
        assert [earlier.status_code for earlier in response.history] == [401]
        assert "authorization" not in response.request.headers
        async with client.stream("GET", url) as streamed:
            assert streamed.status_code == 200


async def test_what_an_auth_flow_raises_reaches_the_caller(upstream: HostileUpstream) -> None:
    class Failing(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Any:
            yield request
            raise LookupError("no credential")

    async with AsyncHTTPClient(upstream.url(), auth=Failing(), config=ClientConfig(max_connections=1)) as client:
        for _ in range(3):
            with pytest.raises(LookupError, match="no credential"):
                async with client.stream("GET", "/large"):
                    pass
        assert (await client.get("/ok", auth=None)).status_code == 200


async def test_a_jump_of_the_time_of_day_changes_nothing() -> None:
    """Summer time, NTP, or an administrator: durations, deadlines and expiries know nothing of it."""

    class Jumping(FakeClock):
        jump = 0.0

        def wall(self) -> float:
            return super().wall() + self.jump

    for jump in (3600.0, -3600.0):
        clock = Jumping(autojump=False)
        breaker = CircuitBreaker(failure_threshold=1, recovery_timeout=60.0)
        limiter = TokenBucketRateLimiter(rate=1.0, burst=2)
        tokens = 0

        def answer(request: httpx.Request) -> httpx.Response:
            nonlocal tokens
            if request.url.path == "/token":
                tokens += 1
                return httpx.Response(200, json={"access_token": "t", "token_type": "Bearer", "expires_in": 600})
            return httpx.Response(500 if request.url.path == "/broken" else 200)

        client = AsyncHTTPClient(
            "https://api.example.com",
            transport=httpx.MockTransport(answer),
            auth=OAuth2ClientCredentials("https://api.example.com/token", "id", "secret"),
            config=ClientConfig(retry_attempts=1, rate_limit_max_wait=0.5),
            circuit_breaker=breaker,
            rate_limiter=limiter,
            clock=clock,
        )
        await client.get("/")
        clock.jump = jump
        await client.get("/", total_timeout=1.0)
        with pytest.raises(RateLimitError) as refused:  # the bucket is as empty as it was
            await client.get("/")
        assert refused.value.retry_after == pytest.approx(1.0)
        clock.advance(1.0)
        await client.get("/broken")
        clock.jump = -jump
        clock.advance(59.0)
        with pytest.raises(CircuitBreakerOpenError) as open_still:
            await client.get("/")
        assert open_still.value.recovery_timeout == pytest.approx(1.0)
        clock.advance(1.0)
        assert (await client.get("/")).status_code == 200
        assert tokens == 1
        assert breaker.state is CircuitState.CLOSED
