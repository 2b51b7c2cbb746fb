"""OAuth2 client credentials: one token for all, fetched once, ahead of time and by nobody's own task."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, quote_plus

import httpx
import pytest

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import (
    AuthenticationError,
    HTTPClientError,
    HTTPRequestError,
    HTTPTimeoutError,
    RetryExhaustedError,
)
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from tests.hostile.upstream import HostileUpstream
from tests.leaks import holds, seen_in

CANARY = "c4n4ry-client-s3cret"
TOKEN_URL = "https://auth.test/token"
ABSENT = object()


class Service:
    """An API at api.test that takes the tokens it issues at auth.test, `token-1`, `token-2` … A closed `gate` holds up
    the issuing; `failures` are answered first."""

    def __init__(self, *failures: httpx.Response | Exception, **reply: Any) -> None:
        self.failures = list(failures)
        self.reply = reply
        self.asked: list[httpx.Request] = []
        self.calls: list[httpx.Request] = []
        self.tokens: list[str] = []
        """The tokens that the API was called with."""
        self.revoked: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        if request.url.host == "api.test":
            self.calls.append(request)
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            self.tokens.append(token)
            return httpx.Response(200 if token.startswith("token-") and token not in self.revoked else 401)
        self.asked.append(request)
        number = len(self.asked)
        await self.gate.wait()
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        reply = {"access_token": f"token-{number}", "token_type": "Bearer", "expires_in": 3600, **self.reply}
        kept = {name: value for name, value in reply.items() if value is not ABSENT}
        return httpx.Response(200, content=json.dumps(kept))

    def revoke(self) -> None:
        self.revoked |= {f"token-{number + 1}" for number in range(len(self.asked))}


def credentials(**options: Any) -> OAuth2ClientCredentials:
    return OAuth2ClientCredentials(**{"token_url": TOKEN_URL, "client_id": "id", "client_secret": CANARY} | options)


def client_of(
    service: Any, auth: OAuth2ClientCredentials | None = None, *, clock: FakeClock | None = None, **config: Any
) -> AsyncHTTPClient:
    return AsyncHTTPClient(
        "https://api.test",
        auth=auth or credentials(),
        config=ClientConfig(**config),
        transport=httpx.MockTransport(service),
        clock=clock or FakeClock(),
        random=lambda: 0.5,
    )


def forbidding(service: Service) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """The service, with a route that takes no token."""

    async def upstream(request: httpx.Request) -> httpx.Response:
        response = await service(request)
        return httpx.Response(401) if request.url.path == "/forbidden" else response

    return upstream


async def settle() -> None:
    """Lets the tasks that are ready run; a mocked call alone never gives way to them."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until_asked(service: Service, times: int = 1) -> None:
    while len(service.asked) < times:
        await asyncio.sleep(0)


# -- the request -------------------------------------------------------------------------------------------------


async def test_a_token_is_fetched_for_the_first_call_and_kept() -> None:
    service = Service()
    client = client_of(service)
    for _ in range(3):
        assert (await client.get("/")).status_code == 200
    assert service.tokens == ["token-1"] * 3
    assert len(service.asked) == 1


async def test_the_token_request_is_that_of_the_rfc() -> None:
    service = Service()
    await client_of(service, credentials(scope="read write")).get("/")
    (request,) = service.asked
    assert (request.method, str(request.url)) == ("POST", TOKEN_URL)
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["accept"] == "application/json"
    assert request.headers["authorization"] == "Basic " + base64.b64encode(f"id:{CANARY}".encode()).decode()
    assert parse_qs(request.content.decode()) == {"grant_type": ["client_credentials"], "scope": ["read write"]}


@pytest.mark.parametrize("scope", [None, ""])
async def test_without_a_scope_none_is_sent(scope: str | None) -> None:
    service = Service()
    await client_of(service, credentials(scope=scope)).get("/")
    assert parse_qs(service.asked[0].content.decode()) == {"grant_type": ["client_credentials"]}


@pytest.mark.parametrize("credentials_in", ["header", "body"])
async def test_it_authenticates_itself_on_the_wire(upstream: HostileUpstream, credentials_in: Any) -> None:
    secret = quote_plus("s&=+%ecr:et")
    auth = credentials(
        token_url=upstream.url(f"/oauth/token?realm=r&check=id:{secret}"),
        client_secret="s&=+%ecr:et",
        credentials_in=credentials_in,
    )
    async with AsyncHTTPClient(upstream.url("/"), auth=auth) as client:
        assert (await client.get("/oauth/protected?realm=r")).status_code == 200


async def test_id_and_secret_may_go_into_the_body() -> None:
    service = Service()
    await client_of(service, credentials(credentials_in="body")).get("/")
    (request,) = service.asked
    assert "authorization" not in request.headers
    assert parse_qs(request.content.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["id"],
        "client_secret": [CANARY],
    }


async def test_odd_ids_and_secrets_are_form_encoded_before_they_are_joined() -> None:
    service = Service()
    client_id, secret = "a:b c%ü", "p:ä&=+ /"
    await client_of(service, credentials(client_id=client_id, client_secret=secret)).get("/")
    pair = base64.b64decode(service.asked[0].headers["authorization"].removeprefix("Basic ")).decode()
    assert pair == f"{quote_plus(client_id)}:{quote_plus(secret)}"


async def test_an_audience_and_a_resource_are_told_the_endpoint() -> None:
    service = Service()
    await client_of(service, credentials(audience="https://api.test", resource="urn:orders")).get("/")
    assert b"&audience=https%3A%2F%2Fapi.test&resource=urn%3Aorders" in service.asked[0].content


async def test_it_may_be_configured() -> None:
    service = Service()
    section: Any = {"type": "oauth2", "token_url": TOKEN_URL, "client_id": "id", "client_secret": CANARY, "scope": "s"}
    client = AsyncHTTPClient(
        "https://api.test", config=ClientConfig(auth=section), transport=httpx.MockTransport(service)
    )
    assert (await client.get("/")).status_code == 200
    assert parse_qs(service.asked[0].content.decode())["scope"] == ["s"]


class Seen(Middleware):
    def __init__(self) -> None:
        self.urls: list[httpx.URL] = []

    async def process_request(self, request: httpx.Request, client: AsyncHTTPClient) -> httpx.Request:
        self.urls.append(request.url)
        return request


async def test_token_requests_have_a_pipeline_of_their_own() -> None:
    """Outside of middlewares, limiter and circuit, and without the client's own headers and credential."""
    service, seen, clock = Service(httpx.Response(503), httpx.Response(503)), Seen(), FakeClock()
    client = AsyncHTTPClient(
        "https://api.test",
        auth=credentials(token_url="https://auth.test/token"),
        config=ClientConfig(
            enable_rate_limiting=True,
            rate_limit_rate=0.001,
            rate_limit_burst=1,
            enable_circuit_breaker=True,
            circuit_breaker_failure_threshold=1,
            headers={"X-Tenant": "acme"},
        ),
        middlewares=[seen],
        transport=httpx.MockTransport(service),
        clock=clock,
        random=lambda: 0.5,
    )
    assert (await client.get("/")).status_code == 200
    assert seen.urls == ["https://api.test/"]
    assert clock.sleeps == [0.5, 1.0]
    assert all("x-tenant" not in request.headers for request in service.asked)


async def test_a_token_endpoint_at_the_clients_own_origin_is_no_recursion() -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"access_token": "t", "token_type": "bearer"})

    await client_of(answer, credentials(token_url="https://api.test/token")).get("/")
    assert [(r.method, r.headers["authorization"].split()[0]) for r in requests] == [
        ("POST", "Basic"),
        ("GET", "Bearer"),
    ]


# -- single flight -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callers", [50, 1000])
async def test_callers_at_the_same_time_share_one_fetch(callers: int) -> None:
    service = Service()
    service.gate.clear()
    client = client_of(service)
    calls = [asyncio.create_task(client.get("/")) for _ in range(callers)]
    await until_asked(service)
    service.gate.set()
    assert {(await call).status_code for call in calls} == {200}
    assert len(service.asked) == 1
    assert service.tokens == ["token-1"] * callers


async def test_fifty_callers_on_the_wire_share_one_fetch(upstream: HostileUpstream) -> None:
    auth = credentials(token_url=upstream.url("/oauth/token?realm=r&delay=0.1&check=id:" + CANARY))
    async with AsyncHTTPClient(upstream.url("/"), auth=auth) as client:
        responses = await asyncio.gather(*(client.get("/oauth/protected?realm=r") for _ in range(50)))
    assert {response.status_code for response in responses} == {200}
    assert upstream.stats()["token_realms"]["r"]["calls"] == 1


async def test_the_caller_whose_fetch_it_is_may_be_cancelled() -> None:
    service = Service()
    service.gate.clear()
    client = client_of(service)
    leader, *others = (asyncio.create_task(client.get("/")) for _ in range(10))
    await until_asked(service)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    service.gate.set()
    assert {(await call).status_code for call in others} == {200}
    assert len(service.asked) == 1


async def test_when_all_callers_are_cancelled_the_token_is_there_for_the_next() -> None:
    service = Service()
    service.gate.clear()
    client = client_of(service)
    calls = [asyncio.create_task(client.get("/")) for _ in range(10)]
    await until_asked(service)
    for call in calls:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    service.gate.set()
    assert (await client.get("/")).status_code == 200
    assert len(service.asked) == 1


async def test_callers_whose_time_is_over_do_not_take_the_fetch_with_them() -> None:
    service = Service()
    service.gate.clear()
    client = client_of(service)
    with pytest.raises(HTTPTimeoutError) as caught:
        await client.get("/", total_timeout=0.05)
    assert caught.value.phase == "total"
    service.gate.set()
    assert (await client.get("/")).status_code == 200
    assert len(service.asked) == 1


async def test_waiters_share_a_failure_each_in_an_error_of_its_own() -> None:
    service = Service(*[httpx.Response(400, json={"error": "invalid_scope"})] * 1)
    service.gate.clear()
    clock = FakeClock()
    client = client_of(service, clock=clock)
    calls = [asyncio.create_task(client.get(f"/{n}")) for n in range(10)]
    await until_asked(service)
    service.gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, AuthenticationError) and "invalid_scope" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 10
    assert {error.request.url.path for error in errors} == {f"/{n}" for n in range(10)}  # type: ignore[union-attr]
    assert len(service.asked) == 1
    assert service.calls == []
    clock.advance(1.0)
    assert (await client.get("/")).status_code == 200  # the next one asks again


async def test_an_endpoint_that_is_away_is_asked_once_a_second_whatever_the_load() -> None:
    service = Service(*[httpx.Response(401, json={"error": "invalid_client"})] * 1000)
    clock = FakeClock(autojump=False)
    client = client_of(service, clock=clock)
    for _ in range(30):
        for _ in range(20):
            with pytest.raises(AuthenticationError, match="invalid_client"):
                await client.get("/")
        clock.advance(1.0)
    assert len(service.asked) == 30
    service.failures.clear()
    assert (await client.get("/")).status_code == 200


async def test_a_renewal_that_fails_is_tried_once_a_second_while_the_token_lives() -> None:
    service = Service(expires_in=100)
    clock = FakeClock(autojump=False)
    client = client_of(service, clock=clock)
    await client.get("/")
    service.failures = [httpx.Response(400)] * 1000
    clock.advance(92.0)
    for _ in range(5):
        for _ in range(20):
            assert (await client.get("/")).status_code == 200
            await settle()
        clock.advance(1.0)
    assert len(service.asked) == 6


async def test_a_fetch_ends_with_its_client() -> None:
    before = asyncio.all_tasks()
    service = Service()
    service.gate.clear()
    client = client_of(service)
    calls = [asyncio.create_task(client.get("/")) for _ in range(3)]
    await until_asked(service)
    await client.aclose()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, HTTPClientError) and "closed" in str(error) for error in errors)
    assert service.calls == []
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_token_that_two_clients_share_lives_by_the_first_ones_clock() -> None:
    service, auth, clock = Service(expires_in=100), credentials(), FakeClock(autojump=False)
    first, second = client_of(service, auth, clock=clock), client_of(service, auth, clock=FakeClock())
    await first.get("/")
    clock.advance(100.0)
    await second.get("/")
    assert service.tokens == ["token-1", "token-2"]


async def test_two_clients_share_a_token_and_outlive_each_other() -> None:
    service, auth, clock = Service(), credentials(), FakeClock()
    service.gate.clear()
    one, two = client_of(service, auth, clock=clock), client_of(service, auth, clock=clock)
    first = asyncio.create_task(one.get("/one"))
    await until_asked(service)
    second = asyncio.create_task(two.get("/two"))
    await asyncio.sleep(0)
    await one.aclose()
    service.gate.set()
    with pytest.raises(HTTPClientError):
        await first
    assert (await second).status_code == 200
    assert [call.url.path for call in service.calls] == ["/two"]
    assert len(service.asked) == 2  # the fetch of the client that was closed, and the other's own

    third = client_of(service, auth, clock=clock)
    assert (await third.get("/three")).status_code == 200
    assert len(service.asked) == 2


def test_one_object_serves_one_event_loop_after_another() -> None:
    auth = credentials()
    asked = 0

    async def main(*, hang: bool) -> int:
        service = Service()
        if hang:
            service.gate.clear()
        client = client_of(service, auth)
        call = asyncio.ensure_future(client.get("/"))
        await until_asked(service)
        nonlocal asked
        asked += len(service.asked)
        return 0 if hang else (await call).status_code

    assert asyncio.run(main(hang=True)) == 0  # its fetch never ends
    assert asyncio.run(main(hang=False)) == 200
    assert asked == 2


# -- lifetime ----------------------------------------------------------------------------------------------------


async def lifetime_of(service: Service, **options: Any) -> float:
    """For how long a token is used, to a tenth of a second, before somebody has to wait for the next one."""
    clock = FakeClock(autojump=False)
    auth = credentials(**options)
    client = client_of(service, auth, clock=clock)
    await client.get("/")
    return auth._expires_at - clock.monotonic()


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (3600, 3600.0),
        (30, 30.0),
        (30.5, 30.5),
        ("30", 30.0),
        (" 30 ", 30.0),
        (0, 1.0),
        (-1, 1.0),
        (0.001, 1.0),
        ("0", 1.0),
        ("-5", 1.0),
        (1e308, 7200.0),
        (10**400, 7200.0),
        (None, 7200.0),
        (ABSENT, 7200.0),
        ("abc", 7200.0),
        ("", 7200.0),
        (True, 7200.0),
        ([30], 7200.0),
        ({"seconds": 30}, 7200.0),
        (float("nan"), 7200.0),
        ("nan", 7200.0),
        (float("inf"), 7200.0),
        (float("-inf"), 1.0),
    ],
)
async def test_expires_in_may_be_anything(expires_in: Any, lifetime: float) -> None:
    assert await lifetime_of(Service(expires_in=expires_in), cache_duration=7200) == lifetime


def test_the_users_document_is_taken() -> None:
    auth = OAuth2ClientCredentials(
        token_url="https://auth.example.com/token",
        client_id="client-id",
        client_secret="client-secret",
        scope="read write",
        cache_duration=3600,
    )
    assert credentials().cache_duration == auth.cache_duration == 3600


async def test_nonsense_in_expires_in_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(Service(expires_in="abc"))
    await client.get("/")
    await client.get("/")
    assert [record.levelname for record in caplog.records if "expires_in" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize(
    ("cache_duration", "expires_in", "lifetime"), [(60, 3600, 60.0), (3600, 60, 60.0), (5, ABSENT, 5.0)]
)
async def test_cache_duration_only_shortens(cache_duration: float, expires_in: Any, lifetime: float) -> None:
    assert await lifetime_of(Service(expires_in=expires_in), cache_duration=cache_duration) == lifetime


@pytest.mark.parametrize("expires_in", [0, -1, 1])
async def test_an_endpoint_that_says_nothing_lives_does_not_cost_a_fetch_for_each_call(expires_in: int) -> None:
    service = Service(expires_in=expires_in)
    client = client_of(service, clock=FakeClock(autojump=False))
    for _ in range(100):
        await client.get("/")
    assert len(service.asked) == 1


async def test_an_expired_token_is_not_used() -> None:
    clock, service = FakeClock(autojump=False), Service(expires_in=100)
    client = client_of(service, clock=clock)
    await client.get("/")
    clock.advance(100)
    await client.get("/")
    assert service.tokens == ["token-1", "token-2"]


@pytest.mark.parametrize(("expires_in", "ahead"), [(3600, 60.0), (600, 60.0), (100, 10.0), (10, 1.0)])
async def test_a_token_is_renewed_ahead_of_its_end_in_the_background(expires_in: int, ahead: float) -> None:
    """min(60 s, a tenth of its life) before; nobody waits for it."""
    clock, service = FakeClock(autojump=False), Service(expires_in=expires_in)
    client = client_of(service, clock=clock)
    await client.get("/")
    clock.advance(expires_in - ahead - 0.5)
    await client.get("/")
    await settle()
    assert len(service.asked) == 1

    service.gate.clear()
    clock.advance(0.5)
    await asyncio.gather(*(client.get("/") for _ in range(20)))
    await settle()
    assert len(service.asked) == 2
    assert set(service.tokens) == {"token-1"}

    service.gate.set()
    await settle()
    await client.get("/")
    assert service.tokens[-1] == "token-2"
    assert len(service.asked) == 2


async def test_a_renewal_that_fails_hurts_nobody_while_the_token_lives(caplog: pytest.LogCaptureFixture) -> None:
    clock, service = FakeClock(autojump=False), Service(expires_in=100)
    client = client_of(service, clock=clock)
    await client.get("/")
    service.failures = [httpx.Response(400, json={"error": "invalid_client"})]
    clock.advance(95)
    assert (await client.get("/")).status_code == 200
    await settle()
    assert [record.levelname for record in caplog.records if "invalid_client" in record.getMessage()] == ["WARNING"]
    assert (await client.get("/")).status_code == 200  # which begins another
    await settle()
    clock.advance(5)
    assert (await client.get("/")).status_code == 200
    assert service.tokens[-1] == "token-3"


async def test_every_attempt_asks_for_the_token_of_its_time() -> None:
    clock = FakeClock()
    service = Service(expires_in=2)
    statuses = iter([503, 503, 503, 200])

    async def flaky(request: httpx.Request) -> httpx.Response:
        response = await service(request)
        return httpx.Response(next(statuses)) if request.url.host == "api.test" else response

    client = client_of(flaky, clock=clock, retry_attempts=4)
    await client.get("/")
    assert clock.elapsed == pytest.approx(7.0)
    assert service.tokens[0] != service.tokens[-1]


# -- a bad endpoint ----------------------------------------------------------------------------------------------

REFUSED = ("400", "401", "403", "404", "echo-secret")
MALFORMED = (
    *("html", "empty", "array", "null", "scalar", "no-token", "null-token", "empty-token", "number-token"),
    *("crlf-token", "unicode-token", "huge-token", "mac"),
)
BROKEN = ("500", "503", "reset", "close", "truncate", "garbage", "reset-mid-body", "redirect", "hang", "drip")


@pytest.mark.parametrize("credentials_in", ["header", "body"])
@pytest.mark.parametrize("mode", [*REFUSED, *MALFORMED, *BROKEN])
async def test_a_token_that_cannot_be_had_is_an_authentication_error_without_secrets(
    upstream: HostileUpstream, mode: str, credentials_in: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    auth = credentials(token_url=upstream.url(f"/oauth/token?realm=r&mode={mode}"), credentials_in=credentials_in)
    config = ClientConfig(timeout=0.2 if mode in ("hang", "drip") else 5, follow_redirects=True)
    async with AsyncHTTPClient(
        upstream.url("/"), auth=auth, config=config, clock=FakeClock(), random=lambda: 0.5, name="api"
    ) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.get("/oauth/protected?realm=r")
    error = caught.value
    assert isinstance(error, httpx.HTTPError)
    assert not isinstance(error, HTTPRequestError)
    assert (error.client, error.request.url.path, error.attempts) == ("api", "/oauth/protected", ())
    assert all(seen["target"].startswith("/oauth/token") for seen in upstream.requests_seen())
    assert upstream.requests_seen(listener="other") == []
    assert upstream.stats()["token_realms"]["r"]["calls"] == (3 if mode in BROKEN and mode != "redirect" else 1)
    shown = seen_in(error) + caplog.text
    assert not holds(shown, CANARY)
    assert "tok-r-" not in shown


@pytest.mark.parametrize("mode", ["503", "429", "reset", "close", "truncate", "garbage"])
async def test_a_token_endpoint_that_falters_is_asked_again(upstream: HostileUpstream, mode: str) -> None:
    auth = credentials(token_url=upstream.url(f"/oauth/token?realm=r&fail=2&mode={mode}"))
    clock = FakeClock()
    async with AsyncHTTPClient(upstream.url("/"), auth=auth, clock=clock, random=lambda: 0.5) as client:
        response = await client.get("/oauth/protected?realm=r")
    assert (response.status_code, len(response.attempts)) == (200, 1)
    assert clock.sleeps == [0.5, 1.0]


async def test_a_token_endpoint_that_is_away_is_told_with_its_cause() -> None:
    with pytest.raises(AuthenticationError) as caught:
        await client_of(Service(*[httpx.ConnectError("no route")] * 3)).get("/")
    causes: list[BaseException] = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any(isinstance(cause, RetryExhaustedError) for cause in causes)
    assert isinstance(causes[-1], httpx.ConnectError)


async def test_a_token_request_has_a_limit_of_its_own_in_time() -> None:
    """That of the client, but 10 seconds at most."""
    for timeout, limit in ((30.0, 10.0), (3.0, 3.0)):
        service = Service()
        await client_of(service, timeout=timeout).get("/")
        assert set(service.asked[0].extensions["timeout"].values()) == {limit}


async def test_a_refusal_is_named_by_its_registered_code_only() -> None:
    replies: list[tuple[Any, str]] = [
        ({"error": "invalid_client", "error_description": CANARY}, "401 (invalid_client)"),
        ({"error": CANARY.upper()}, "401"),
        ({"error": {"a": CANARY}}, "401"),
        ([CANARY], "401"),
        (CANARY, "401"),
    ]
    for reply, what in replies:
        with pytest.raises(AuthenticationError) as caught:
            await client_of(Service(httpx.Response(401, json=reply))).get("/")
        assert str(caught.value).endswith(f"answered {what}")
        assert not holds(seen_in(caught.value), CANARY)


@pytest.mark.parametrize("mode", ["ok", "no-type", "refresh"])
async def test_what_else_is_in_a_reply_does_not_matter(upstream: HostileUpstream, mode: str) -> None:
    auth = credentials(token_url=upstream.url(f"/oauth/token?realm=r&mode={mode}"))
    async with AsyncHTTPClient(upstream.url("/"), auth=auth) as client:
        assert (await client.get("/oauth/protected?realm=r")).status_code == 200
    assert "secret-value" not in str(vars(auth))
    assert "tok-r-" not in str(vars(auth))


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
async def test_the_type_of_a_token_has_no_case(kind: str) -> None:
    assert (await client_of(Service(token_type=kind)).get("/")).status_code == 200


@pytest.mark.parametrize("kind", [None, "", "mac", 7, ["bearer"]])
async def test_any_other_type_is_refused(kind: Any) -> None:
    with pytest.raises(AuthenticationError, match="Bearer"):
        await client_of(Service(token_type=kind)).get("/")


async def test_a_token_that_could_not_be_had_is_no_failure_of_the_upstream_and_not_retried() -> None:
    service = Service(*[httpx.Response(400)] * 3)
    clock = FakeClock()
    client = client_of(service, clock=clock, enable_circuit_breaker=True, circuit_breaker_failure_threshold=1)
    for _ in range(3):
        with pytest.raises(AuthenticationError):
            await client.get("/")
        clock.advance(1.0)
    assert len(service.asked) == 3
    assert (await client.get("/")).status_code == 200


# -- 401 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_401_renews_the_token_once_and_repeats_the_request_once(method: str) -> None:
    service = Service()
    client = client_of(service)
    await client.get("/")
    service.revoke()
    response = await client.request(method, "/", content=b"body")
    assert response.status_code == 200
    assert service.tokens == ["token-1", "token-1", "token-2"]
    assert [call.content for call in service.calls[1:]] == [b"body", b"body"]
    assert [attempt.status for attempt in response.attempts] == [200]


async def test_a_401_for_ever_is_two_requests_and_the_401() -> None:
    service = Service()
    client = client_of(service)
    service.revoked = {f"token-{n}" for n in range(100)}
    response = await client.get("/")
    assert response.status_code == 401
    assert len(service.calls) == 2
    assert len(service.asked) == 2


async def test_a_401_for_ever_on_the_wire(upstream: HostileUpstream) -> None:
    auth = credentials(token_url=upstream.url("/oauth/token?realm=r"))
    async with AsyncHTTPClient(upstream.url("/"), auth=auth) as client:
        assert (await client.get("/auth/401?key=k")).status_code == 401
    assert upstream.key("k")["count"] == 2
    assert upstream.stats()["token_realms"]["r"]["calls"] == 2


async def test_callers_with_a_dead_token_share_one_renewal(upstream: HostileUpstream) -> None:
    auth = credentials(token_url=upstream.url("/oauth/token?realm=r&delay=0.05"))
    async with AsyncHTTPClient(upstream.url("/"), auth=auth) as client:
        await client.get("/oauth/protected?realm=r")
        await client.get("/oauth/revoke?realm=r")
        responses = await asyncio.gather(
            *(client.get(f"/oauth/protected?realm=r&delay={n % 5 / 50}") for n in range(50))
        )
    assert {response.status_code for response in responses} == {200}
    assert upstream.stats()["token_realms"]["r"]["calls"] == 2


async def test_a_late_401_for_an_old_token_does_not_cost_the_new_one() -> None:
    service = Service()
    late = asyncio.Event()

    async def upstream(request: httpx.Request) -> httpx.Response:
        response = await service(request)
        if request.url.path == "/late" and request.headers["authorization"] == "Bearer token-1":
            await late.wait()
        return response

    client = client_of(upstream)
    await client.get("/")
    service.revoke()
    slow = asyncio.create_task(client.get("/late"))
    while len(service.calls) < 2:
        await asyncio.sleep(0)
    await client.get("/")
    assert len(service.asked) == 2
    late.set()
    assert (await slow).status_code == 200
    assert len(service.asked) == 2


async def one_shot() -> AsyncIterator[bytes]:
    yield b"once"


async def test_a_one_shot_body_is_not_sent_again_but_the_dead_token_is_given_up() -> None:
    service = Service()
    client = client_of(service)
    await client.get("/")
    service.revoke()
    assert (await client.post("/", content=one_shot())).status_code == 401
    assert len(service.calls) == 2
    assert (await client.post("/", content=one_shot())).status_code == 200


async def test_the_first_401_is_closed_and_a_renewal_that_fails_is_an_authentication_error() -> None:
    service = Service()
    client = client_of(service)
    await client.get("/")
    service.revoke()
    service.failures = [httpx.Response(400)]
    with pytest.raises(AuthenticationError):
        await client.get("/")


async def test_another_scheme_of_401_on_a_view_and_a_call_keeps_the_rule() -> None:
    service, auth = Service(), credentials()
    client = AsyncHTTPClient("https://api.test", transport=httpx.MockTransport(service), clock=FakeClock())
    assert (await client.get("/", auth=auth)).status_code == 200
    service.revoke()
    assert (await client.with_options(timeout=5).get("/", auth=auth)).status_code == 200
    assert len(service.asked) == 2


# -- in a plain httpx client -------------------------------------------------------------------------------------


async def test_it_works_in_a_plain_httpx_client() -> None:
    service, auth = Service(), credentials()
    async with httpx.AsyncClient(transport=httpx.MockTransport(service), auth=auth, timeout=7) as client:
        for _ in range(2):
            assert (await client.get("https://api.test/")).status_code == 200
        assert len(service.asked) == 1
        assert set(service.asked[0].extensions["timeout"].values()) == {7}

        service.revoke()
        assert (await client.post("https://api.test/", json={})).status_code == 200
        assert len(service.asked) == 2

        service.revoke()
        assert (await client.post("https://api.test/", content=one_shot())).status_code == 401

        service.failures = [httpx.Response(400, json={"error": "invalid_client"})]
        with pytest.raises(AuthenticationError, match="invalid_client") as caught:
            await client.get("https://api.test/")
        assert not holds(str(caught.value), CANARY)


async def test_an_expired_token_is_not_used_there_either() -> None:
    service, auth, clock = Service(expires_in=100), credentials(), FakeClock(autojump=False)
    auth.bind(clock)
    async with httpx.AsyncClient(transport=httpx.MockTransport(service), auth=auth) as client:
        for wait in (0.0, 99.9, 0.1):
            clock.advance(wait)
            await client.get("https://api.test/")
    assert service.tokens == ["token-1", "token-1", "token-2"]


@pytest.mark.parametrize("credentials_in", ["header", "body"])
async def test_it_authenticates_itself_there_too(upstream: HostileUpstream, credentials_in: Any) -> None:
    url = upstream.url(f"/oauth/token?realm=r&check=id:{CANARY}")
    auth = credentials(token_url=url, credentials_in=credentials_in)
    async with httpx.AsyncClient(auth=auth) as client:
        assert (await client.get(upstream.url("/oauth/protected?realm=r"))).status_code == 200


async def test_a_401_for_ever_is_two_requests_there_too() -> None:
    service = Service()
    service.revoked = {f"token-{n}" for n in range(100)}
    async with httpx.AsyncClient(transport=httpx.MockTransport(service), auth=credentials()) as client:
        assert (await client.get("https://api.test/")).status_code == 401
    assert len(service.calls) == 2


async def test_an_api_that_refuses_every_token_costs_one_fetch_a_second_and_not_one_a_call() -> None:
    service, clock = Service(), FakeClock()
    service.revoked = {f"token-{number}" for number in range(100)}
    client = client_of(service, clock=clock)
    for _ in range(20):
        assert (await client.get("/")).status_code == 401
    assert len(service.asked) == 2
    assert len(service.calls) == 21
    await clock.sleep(1.0)
    assert (await client.get("/")).status_code == 401
    assert len(service.asked) == 3


async def test_a_route_that_refuses_every_token_costs_fewer_and_fewer_fetches_whatever_other_routes_do() -> None:
    service, clock = Service(), FakeClock(autojump=False)
    client = client_of(forbidding(service), clock=clock)
    asked = []
    for _ in range(120):
        for _ in range(5):
            assert (await client.get("/")).status_code == 200
            assert (await client.get("/forbidden")).status_code == 401
        asked.append(len(service.asked))
        clock.advance(1.0)
    # The first token, and those in the place of one that was rejected after 0, 1, 3, 7, 15, 31, 61 and 91 s.
    assert [asked[second] for second in (0, 1, 2, 3, 7, 15, 31, 60, 61, 91, 119)] == [2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 9]


async def test_nor_does_one_whose_bodies_cannot_be_sent_again() -> None:
    service, clock = Service(), FakeClock(autojump=False)
    client = client_of(forbidding(service), clock=clock)
    for _ in range(60):
        for _ in range(5):
            assert (await client.get("/")).status_code == 200
            assert (await client.post("/forbidden", content=one_shot())).status_code == 401
        clock.advance(1.0)
    assert len(service.asked) == 7  # the first, and after 0, 1, 3, 7, 15 and 31 s


async def test_a_token_with_too_small_a_scope_is_not_renewed() -> None:
    service = Service()

    async def upstream(request: httpx.Request) -> httpx.Response:
        response = await service(request)
        challenge = {"www-authenticate": 'Bearer realm="r", error="insufficient_scope", scope="admin"'}
        return httpx.Response(401, headers=challenge) if request.url.path == "/admin" else response

    client = client_of(upstream)
    assert (await client.get("/admin")).status_code == 401
    assert len(service.calls) == 1
    assert len(service.asked) == 1


async def test_while_a_rejected_token_cannot_be_replaced_the_others_go_on_with_it() -> None:
    service, clock = Service(), FakeClock(autojump=False)
    client = client_of(forbidding(service), clock=clock)
    await client.get("/")
    service.failures = [httpx.Response(400)] * 1000
    service.gate.clear()
    refused = asyncio.create_task(client.get("/forbidden"))
    await until_asked(service, 2)
    waiting = asyncio.create_task(client.get("/"))  # for the token that replaces it
    await settle()
    assert not waiting.done()
    service.gate.set()
    with pytest.raises(AuthenticationError, match="answered 400"):
        await refused
    assert (await waiting).status_code == 200
    assert (await client.get("/")).status_code == 200
    with pytest.raises(AuthenticationError, match="a moment ago"):
        await client.get("/forbidden")
    assert len(service.asked) == 2
    clock.advance(1.0)
    assert (await client.get("/")).status_code == 200
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("status", "asked", "pause"), [(429, "30", 30), (503, "30", 30), (503, "9999", 60), (503, "x", 1)]
)
async def test_an_endpoint_that_asks_to_wait_is_not_asked_before(status: int, asked: str, pause: int) -> None:
    service = Service(*[httpx.Response(status, headers={"retry-after": asked})] * 3)
    clock = FakeClock()
    client = client_of(service, clock=clock)
    with pytest.raises(AuthenticationError):
        await client.get("/")
    before = len(service.asked)
    await clock.sleep(pause - 0.1)
    with pytest.raises(AuthenticationError, match="a moment ago"):
        await client.get("/")
    assert len(service.asked) == before
    service.failures.clear()
    await clock.sleep(0.1)
    assert (await client.get("/")).status_code == 200


async def test_a_token_request_says_who_asks_and_nothing_else_of_the_client() -> None:
    service = Service()
    client = client_of(service, headers={"User-Agent": "shop/1.0", "X-Tenant": "t"})
    await client.get("/")
    assert service.asked[0].headers["user-agent"] == "shop/1.0"
    assert "x-tenant" not in service.asked[0].headers


async def test_the_size_of_a_token_reply_has_a_limit_of_its_own() -> None:
    service = Service(padding="x" * 3000)
    client = client_of(service, max_response_bytes=1024)
    assert (await client.get("/")).status_code == 200
    service = Service(padding="x" * 300_000)
    with pytest.raises(AuthenticationError, match="larger than"):
        await client_of(service).get("/")


async def test_a_renewed_token_that_was_good_once_is_renewed_again() -> None:
    service, clock = Service(), FakeClock()
    client = client_of(service, clock=clock)
    for _ in range(4):
        assert (await client.get("/")).status_code == 200
        service.revoke()
    assert len(service.asked) == 4


async def test_token_requests_do_not_spend_the_retries_of_the_api() -> None:
    service = Service(*(httpx.Response(503) for _ in range(3)))
    client = client_of(service, retry_budget=5)
    with pytest.raises(AuthenticationError):
        await client.get("/")
    assert client.retry_budget.tokens == 5


async def test_a_hook_that_fails_on_the_tokens_reply_fails_the_fetch() -> None:
    async def hook(response: httpx.Response) -> None:
        raise LookupError("a bug of the hook")

    service = Service()
    client = client_of(service)
    client.event_hooks["response"].append(hook)
    errors = await asyncio.gather(*(client.get("/") for _ in range(3)), return_exceptions=True)
    assert [str(error).rpartition(": ")[2] for error in errors] == ["LookupError"] * 3
    assert all(isinstance(error, AuthenticationError) for error in errors)
    assert len({id(error) for error in errors}) == 3
    with pytest.raises(AuthenticationError, match="a moment ago"):
        await client.get("/")
    assert len(service.asked) == 1
