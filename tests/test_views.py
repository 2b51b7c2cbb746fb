"""`with_options()` gives a view: other options, the same pool and the same state."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastapi_http_client import client_options
from fastapi_http_client.auth import BearerAuth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.client_options import SHARED_FIELDS
from fastapi_http_client.config import BearerConfig, ClientConfig, OAuth2Config
from fastapi_http_client.errors import (
    CircuitBreakerOpenError,
    ConfigurationError,
    HTTPRequestError,
    HTTPTimeoutError,
    RateLimitError,
)
from fastapi_http_client.fake_clock import FakeClock
from tests.faults import nothing_left
from tests.hostile.upstream import HostileUpstream


def a_client(upstream: HostileUpstream, **fields: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(upstream.url(), config=ClientConfig(**fields), name="api")


async def test_a_view_has_other_options(upstream: HostileUpstream) -> None:
    async with a_client(upstream, retry_backoff_factor=0.001) as client:
        view = client.with_options(retry_attempts=1, timeout=0.1, follow_redirects=True, headers={"X-View": "1"})
        assert isinstance(view, AsyncHTTPClient)
        assert isinstance(view, httpx.AsyncClient)
        assert (view.config.retry_attempts, view.config.timeout) == (1, 0.1)
        assert view.name == "api"
        assert (await view.get("/status/503?key=view")).status_code == 503
        assert upstream.key("view")["count"] == 1
        with pytest.raises(HTTPTimeoutError):
            await view.get("/hang")
        assert (await view.get("/redirect")).json_data["headers_dict"]["x-view"] == "1"


async def test_the_client_itself_is_not_changed(upstream: HostileUpstream) -> None:
    async with a_client(upstream, headers={"X-Both": "client"}) as client:
        before = (client.config, client.timeout, client.pipeline, client.follow_redirects, client.retry_policy)
        view = client.with_options(timeout=1.0, retry_attempts=7, follow_redirects=True, headers={"X-Both": "view"})
        view.headers["X-Late"] = "1"
        view.params = {"late": "1"}  # type: ignore[assignment]
        view.event_hooks["request"].append(_fail)
        assert before == (client.config, client.timeout, client.pipeline, client.follow_redirects, client.retry_policy)
        reply = (await client.get("/echo")).json_data
        assert reply["target"] == "/echo"
        assert reply["headers_dict"]["x-both"] == "client"
        assert "x-late" not in reply["headers_dict"]


async def _fail(request: httpx.Request) -> None:
    raise AssertionError("the hook of another client was called")


async def test_a_view_shares_pool_limiter_circuit_and_budget(upstream: HostileUpstream) -> None:
    config = ClientConfig(enable_rate_limiting=True, enable_circuit_breaker=True, rate_limit_burst=5)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        view = client.with_options(timeout=5.0)
        assert view.rate_limiter is client.rate_limiter
        assert view.circuit_breaker is client.circuit_breaker
        assert view.retry_budget is client.retry_budget
        assert view.lifecycle is client.lifecycle
        first = (await client.get("/echo")).json_data["conn"]
        assert (await view.get("/echo")).json_data["conn"] == first
        assert client.circuit_breaker is not None
        client.circuit_breaker.trip()
        with pytest.raises(CircuitBreakerOpenError):
            await view.get("/ok")
        without = client.with_options(enable_circuit_breaker=False, enable_rate_limiting=False)
        assert without.circuit_breaker is None
        assert without.rate_limiter is None
        assert (await without.get("/ok")).status_code == 200


async def test_closing_a_view_does_nothing_and_closing_the_client_closes_its_views(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream):
        async with a_client(upstream) as client:
            async with client.with_options(timeout=5.0) as view:
                await view.get("/ok")
            await view.aclose()
            assert not view.is_closed
            assert (await view.get("/ok")).status_code == 200
            assert (await client.get("/ok")).status_code == 200
        assert view.is_closed
        with pytest.raises(RuntimeError, match="closed"):
            await view.get("/ok")


async def test_a_view_of_a_view_belongs_to_the_client(upstream: HostileUpstream) -> None:
    async with a_client(upstream, headers={"X-A": "1"}) as client:
        view = client.with_options(headers={"X-B": "2"}).with_options(headers={"X-C": "3"})
        await view.aclose()
        headers = (await view.get("/echo")).json_data["headers_dict"]
        assert (headers["x-a"], headers["x-b"], headers["x-c"]) == ("1", "2", "3")


async def test_a_view_may_have_another_base_url_and_keeps_to_it(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as client:
        view = client.with_options(base_url=upstream.url("/echo", "other"))
        assert (await view.get("/x")).json_data["listener"] == "other"
        with pytest.raises(HTTPRequestError, match="another origin"):
            await view.get(upstream.url("/echo"))
        assert (await client.get("/echo")).json_data["listener"] == "main"


async def test_a_view_may_have_another_credential(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), auth=BearerAuth("one")) as client:
        view = client.with_options(auth=BearerConfig(token="two"))  # type: ignore[arg-type]
        none = client.with_options(auth=None)
        assert (await view.get("/echo")).json_data["headers_dict"]["authorization"] == "Bearer two"
        assert "authorization" not in (await none.get("/echo")).json_data["headers_dict"]
        assert (await client.get("/echo")).json_data["headers_dict"]["authorization"] == "Bearer one"
        same = client.with_options(timeout=3.0)
        assert (await same.get("/echo")).json_data["headers_dict"]["authorization"] == "Bearer one"


async def test_the_token_of_a_view_lives_by_the_clients_clock(upstream: HostileUpstream) -> None:
    clock = FakeClock(autojump=False)
    auth = OAuth2Config(token_url=upstream.url("/oauth/token?realm=r"), client_id="id", client_secret="s")  # type: ignore[arg-type]
    async with AsyncHTTPClient(upstream.url(), clock=clock) as client:
        view = client.with_options(auth=auth)
        await view.get("/ok")
        clock.advance(3601)
        await view.get("/ok")
    assert upstream.stats()["token_realms"]["r"]["calls"] == 2


async def test_the_limits_of_a_view_are_checked_against_each_other(upstream: HostileUpstream) -> None:
    async with a_client(upstream, timeout=5.0) as client:
        with pytest.raises(ConfigurationError, match="timeout"):
            client.with_options(total_timeout=1.0)
        assert client.with_options(total_timeout=10.0).config.total_timeout == 10.0
    async with a_client(upstream) as client:
        view = client.with_options(total_timeout=0.1)
        with pytest.raises(HTTPTimeoutError):
            await view.get("/drip")


@pytest.mark.parametrize(
    "field",
    [
        "max_connections", "max_keepalive_connections", "keepalive_expiry", "max_connection_age", "verify_ssl",
        "ca_file", "client_cert", "client_key", "proxy", "trust_env", "http2", "engine", "rate_limit_rate",
        "rate_limit_burst", "circuit_breaker_failure_threshold", "circuit_breaker_recovery_timeout", "retry_budget",
        "persist_cookies",
    ],
)  # fmt: skip
def test_what_is_shared_cannot_be_changed(field: str) -> None:
    client = AsyncHTTPClient("https://api.example.com")
    with pytest.raises(ConfigurationError, match=f"{field}: belongs to what a client shares"):
        client.with_options(**{field: getattr(client.config, field)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tiemout": 1}, "tiemout: unknown option"),
        ({"timeout": -1}, "timeout"),
        ({"enable_rate_limiting": True}, "enable_rate_limiting: the client has none"),
        ({"enable_circuit_breaker": True}, "enable_circuit_breaker: the client has none"),
    ],
)
def test_a_bad_option_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AsyncHTTPClient("https://api.example.com").with_options(**fields)


async def test_another_total_timeout_leaves_limits_that_were_set_otherwise_alone() -> None:
    client = AsyncHTTPClient("https://api.example.com", timeout=httpx.Timeout(10, read=None))
    assert client.with_options(total_timeout=60).timeout == httpx.Timeout(10, read=None)
    assert client.with_options(total_timeout=4).timeout == httpx.Timeout(4, read=None)
    assert client.with_options(retry_attempts=2).timeout == httpx.Timeout(10, read=None)
    client.timeout = 7.0  # type: ignore[assignment]
    assert client.with_options(total_timeout=60).timeout == httpx.Timeout(7)
    assert client.with_options(timeout=60).timeout == httpx.Timeout(60)


def test_limits_that_follow_the_total_follow_that_of_the_view() -> None:
    client = AsyncHTTPClient("https://api.example.com", config=ClientConfig(total_timeout=5))
    assert client.timeout == httpx.Timeout(5)
    assert client.with_options(total_timeout=20).timeout == httpx.Timeout(20)
    assert client.with_options(total_timeout=2).timeout == httpx.Timeout(2)


@pytest.mark.parametrize(
    ("config", "total", "timeout"),
    [
        ({"total_timeout": 5}, 20, httpx.Timeout(20)),
        ({"total_timeout": 5}, 60, httpx.Timeout(30)),
        ({"total_timeout": 5}, 2, httpx.Timeout(2)),
        ({"total_timeout": 5, "connect_timeout": 3}, 20, httpx.Timeout(20, connect=3)),
        ({"total_timeout": 5, "connect_timeout": 3}, 2, httpx.Timeout(2)),
        ({"total_timeout": 5, "timeout": 5}, 20, httpx.Timeout(5)),
        ({"total_timeout": 60}, 20, httpx.Timeout(30)),
        ({}, 20, httpx.Timeout(30)),
    ],
)
async def test_limits_that_follow_the_total_follow_that_of_a_call(
    config: dict[str, Any], total: float, timeout: httpx.Timeout
) -> None:
    asked: list[httpx.Request] = []

    def upstream(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    transport = httpx.MockTransport(upstream)
    async with AsyncHTTPClient("http://api.test", config=ClientConfig(**config), transport=transport) as client:
        await client.get("/", total_timeout=total)
    assert asked[0].extensions["timeout"] == timeout.as_dict()


async def test_a_view_takes_no_longer_pause_than_its_own_limit() -> None:
    clock = FakeClock()
    answers = iter([429, *[200] * 9])

    def upstream(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(answers), headers={"Retry-After": "30"})

    transport = httpx.MockTransport(upstream)
    async with AsyncHTTPClient("http://api.test", transport=transport, clock=clock, random=lambda: 0.5) as client:
        await client.get("/", retry=False)
        started = clock.monotonic()
        view = client.with_options(retry_max_delay=1)
        with pytest.raises(RateLimitError, match="retry_max_delay is 1 s") as caught:
            await view.get("/")
        assert caught.value.retry_after == pytest.approx(31, abs=1.1)
        assert clock.monotonic() == started
        assert (await client.get("/")).status_code == 200
        assert (await view.get("/")).status_code == 200


def test_redirects_that_were_switched_on_by_hand_stay_on() -> None:
    client = AsyncHTTPClient("https://api.example.com")
    client.follow_redirects, client.max_redirects = True, 3
    view = client.with_options(retry_attempts=2)
    assert (view.follow_redirects, view.max_redirects) == (True, 3)
    assert client.with_options(follow_redirects=False).follow_redirects is False


async def test_user_info_in_the_address_of_a_view_is_its_credential(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url(), auth=BearerAuth("other")) as client:
        view = client.with_options(base_url=upstream.url().replace("//", "//user:pass@"))
        assert not view.base_url.userinfo
        sent = (await view.get("/echo")).json_data["headers_dict"]
        assert sent["authorization"] == "Basic dXNlcjpwYXNz"
        assert (await client.get("/echo")).json_data["headers_dict"]["authorization"] == "Bearer other"


@pytest.mark.parametrize("auth", [BearerAuth("view"), ("user", "pass"), httpx.BasicAuth("user", "pass")])
async def test_a_view_may_have_an_auth_object(upstream: HostileUpstream, auth: Any) -> None:
    async with AsyncHTTPClient(upstream.url(), auth=BearerAuth("client")) as client:
        sent = (await client.with_options(auth=auth).get("/echo")).json_data["headers_dict"]
        assert sent["authorization"] in ("Bearer view", "Basic dXNlcjpwYXNz")
        assert "authorization" not in (await client.with_options(auth=None).get("/echo")).json_data["headers_dict"]


def test_every_option_is_either_shared_or_of_a_view() -> None:
    of_a_view = {
        *("base_url", "auth", "timeout", "connect_timeout", "total_timeout", "headers", "allowed_origins"),
        *("follow_redirects", "max_redirects", "max_response_bytes"),
        *("retry_attempts", "retry_backoff_factor", "retry_max_delay", "retry_jitter", "retry_statuses"),
        *("retry_methods", "retry_non_idempotent", "idempotency_keys"),
        *("enable_rate_limiting", "enable_circuit_breaker", "rate_limit_max_wait"),
        *("propagation", "propagate_headers"),
    }
    assert of_a_view.isdisjoint(SHARED_FIELDS)
    assert of_a_view | SHARED_FIELDS == ClientConfig.model_fields.keys()


def test_a_timeout_object_is_replaced_by_that_of_a_view() -> None:
    client = AsyncHTTPClient("https://api.example.com", timeout=httpx.Timeout(3))
    assert client.config.timeout == 3.0
    assert client.with_options(timeout=1.0).timeout == httpx.Timeout(1)


def keys_of(name: str) -> set[str]:
    """The keys of a TypedDict of `client_options`, which only type checkers see."""
    tree = ast.parse(Path(client_options.__file__).read_text("utf-8"))
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    own = {
        part.target.id for part in found.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    bases = [base.id for base in found.bases if isinstance(base, ast.Name) and base.id != "TypedDict"]
    return own.union(*map(keys_of, bases))


def test_type_checkers_know_every_option() -> None:
    fields = set(ClientConfig.model_fields)
    assert keys_of("ViewOptions") == fields - SHARED_FIELDS
    assert keys_of("DeclaredOptions") == (fields | client_options.option_names()) - {"base_url", "auth"}
