"""Redirects: where they lead, as what, and what never goes along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import request_context
from fastapi_http_client.errors import HTTPRequestError, RetryExhaustedError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.policies.circuit_breaker import CircuitState
from fastapi_http_client.retry import RetryMiddleware
from tests.hostile.upstream import HostileUpstream
from tests.scripted import Script, Stream, client_of

CANARY = "c4n4ry-s3cret"
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH")


def to(location: str, status: int = 302, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers={"Location": location, **headers})


def following(*answers: Any, **config: Any) -> tuple[Script, AsyncHTTPClient]:
    script = Script(*answers)
    return script, client_of(script, follow_redirects=True, **config)


def told(upstream: HostileUpstream, listener: str) -> bool:
    """Whether a request to the listener carried the secret, in whatever disguise."""
    return any(seen["listener"] == listener for seen in upstream.search(CANARY))


# -- whether ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed_unless_asked(status: int) -> None:
    script = Script(to("/b", status))
    response = await client_of(script).get("/a")
    assert (response.status_code, script.count) == (status, 1)
    assert response.next_request is not None
    assert response.next_request.url == "https://api.test/b"
    assert response.raise_for_status() is response


async def test_following_can_be_chosen_for_one_call() -> None:
    script = Script(to("/b"), 200)
    client = client_of(script)
    assert (await client.get("/a", follow_redirects=True)).status_code == 200

    script, client = following(to("/b"), 200)
    assert (await client.get("/a", follow_redirects=False)).status_code == 302
    assert script.count == 1


async def test_the_next_request_of_an_unfollowed_redirect_can_be_sent() -> None:
    script = Script(to("/b"), 200)
    client = client_of(script)
    response = await client.get("/a")
    assert response.next_request is not None
    assert set(response.next_request.extensions) == {"timeout"}
    assert (await client.send(response.next_request)).status_code == 200


@pytest.mark.parametrize("status", [200, 300, 304, 404])
async def test_a_location_on_another_status_is_no_redirect(status: int) -> None:
    _, client = following(to("/b", status))
    assert (await client.get("/a")).status_code == status


async def test_a_redirect_without_location_is_returned() -> None:
    script, client = following(302)
    assert (await client.get("/a")).status_code == 302
    assert script.count == 1


@pytest.mark.parametrize("most", [0, 1, 3])
async def test_more_than_max_redirects_is_an_error(most: int) -> None:
    script, client = following(to("/again"), max_redirects=most)
    with pytest.raises(HTTPRequestError, match=f"more than {most} redirects") as caught:
        await client.get("/")
    assert script.count == most + 1
    assert isinstance(caught.value.__cause__, httpx.TooManyRedirects)
    assert len(caught.value.attempts) == most + 1


async def test_exactly_max_redirects_is_none() -> None:
    _, client = following(to("/1"), to("/2"), to("/3"), 200, max_redirects=3)
    response = await client.get("/")
    assert [r.status_code for r in response.history] == [302, 302, 302]
    assert response.url == "https://api.test/3"


# -- as what ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("method", METHODS)
async def test_307_and_308_keep_method_and_body(status: int, method: str) -> None:
    script, client = following(to("/b", status), 200)
    response = await client.request(method, "/a", content=b"body", headers={"Content-Type": "text/plain"})
    assert [request.method for request in script.requests] == [method, method]
    assert script.bodies == [b"body", b"body"]
    assert response.request.content == b"body"
    assert script.sent("content-type") == ["text/plain", "text/plain"]


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "GET", "GET"),
        (301, "POST", "GET"),
        (301, "PUT", "PUT"),
        (301, "HEAD", "HEAD"),
        (302, "POST", "GET"),
        (302, "PUT", "GET"),
        (302, "HEAD", "HEAD"),
        (303, "POST", "GET"),
        (303, "DELETE", "GET"),
        (303, "HEAD", "HEAD"),
    ],
)
async def test_the_older_statuses_change_the_method_as_browsers_and_httpx_do(
    status: int, method: str, becomes: str
) -> None:
    script, client = following(to("/b", status), 200)
    await client.request(method, "/a", content=b"body", headers={"Content-Type": "text/plain"})
    assert script.requests[1].method == becomes
    if becomes != method:
        assert script.bodies[1] == b""
        assert not {"content-type", "content-length", "transfer-encoding"} & set(script.requests[1].headers)


async def one_shot() -> AsyncIterator[bytes]:
    yield b"once"


@pytest.mark.parametrize("status", [307, 308])
async def test_a_one_shot_body_is_not_sent_again_and_the_redirect_surfaces(status: int) -> None:
    script, client = following(to("/b", status), 200)
    response = await client.post("/a", content=one_shot())
    assert (response.status_code, script.count) == (status, 1)


async def test_a_one_shot_body_does_not_hinder_a_303() -> None:
    _, client = following(to("/b", 303), 200)
    assert (await client.post("/a", content=one_shot())).status_code == 200


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?x=1", "https://api.test/b?x=1"),
        ("c", "https://api.test/dir/c"),
        ("?y=2", "https://api.test/dir/a?y=2"),
        ("//api.test/d", "https://api.test/d"),
        ("https://api.test:443/e", "https://api.test/e"),
        ("../f", "https://api.test/f"),
        ("/g%20h", "https://api.test/g%20h"),
    ],
)
async def test_a_location_is_read_against_the_request(location: str, target: str) -> None:
    script, client = following(to(location), 200)
    await client.get("/dir/a")
    assert script.requests[1].url == target


async def test_the_query_of_the_first_request_does_not_travel() -> None:
    script, client = following(to("/b"), 200)
    await client.get("/a", params={"api_key": CANARY})
    assert script.requests[1].url.query == b""


async def test_a_fragment_is_kept_unless_the_location_has_one() -> None:
    script, client = following(to("/b"), to("/c#new"), 200)
    response = await client.send(httpx.Request("GET", "https://api.test/a#old"))
    assert response.url.fragment == "new"
    assert script.requests[1].url.fragment == "old"


@pytest.mark.parametrize(
    "location",
    [
        *("ftp://api.test/", "file:///etc/passwd", "javascript:alert(1)", "data:text/plain,x", "mailto:a@b"),
        *("http://", "https://api.test:99999/", "https://api.test:0/", "https://[::1/", "http://a b/"),
        *("https://api.test:65536/", "https://xn--\u0661.test/", "https://api.test:port/", "https://" + "a" * 70_000),
    ],
)
async def test_a_location_that_is_no_http_address_is_a_typed_error(location: str) -> None:
    answer = httpx.Response(302, headers=[(b"Location", location.encode("utf-8"))])
    script, client = following(answer, 200)
    with pytest.raises(HTTPRequestError, match="redirect") as caught:
        await client.get("/a")
    assert script.count == 1
    assert [a.status for a in caught.value.attempts] == [302]


async def test_such_a_location_does_not_disturb_who_does_not_follow() -> None:
    response = await client_of(Script(to("https://api.test:99999/"))).get("/a")
    assert response.status_code == 302
    assert response.next_request is None


async def test_from_https_to_http_is_refused() -> None:
    script, client = following(to("http://api.test/b"), 200)
    with pytest.raises(HTTPRequestError, match="https to http"):
        await client.get("/a")
    assert script.count == 1


async def test_an_error_quotes_no_secret_of_the_addresses() -> None:
    _, client = following(to(f"http://u:{CANARY}@api.test/?token={CANARY}"))
    with pytest.raises(HTTPRequestError) as caught:
        await client.get("/a", params={"api_key": CANARY})
    assert CANARY not in str(caught.value)


# -- life of the hops ---------------------------------------------------------------------------------------------


async def test_the_responses_on_the_way_are_closed() -> None:
    stream = Stream(b"moved")
    _, client = following(httpx.Response(302, headers={"Location": "/b"}, stream=stream), 200)
    async with client.stream("GET", "/a") as response:
        assert stream.closed
        assert response.status_code == 200


@pytest.mark.parametrize("location", ["ftp://x/", "/again"])
async def test_the_response_of_a_redirect_that_fails_is_closed(location: str) -> None:
    stream = Stream(b"moved")
    _, client = following(httpx.Response(302, headers={"Location": location}, stream=stream), max_redirects=0)
    with pytest.raises(HTTPRequestError):
        async with client.stream("GET", "/a"):
            pass
    assert stream.closed


async def test_every_hop_is_retried_by_itself_and_stands_in_the_ledger() -> None:
    script, client = following(503, to("/b"), 503, 503, 200)
    response = await client.get("/a")
    assert [a.status for a in response.attempts] == [503, 302, 503, 503, 200]
    assert [a.number for a in response.attempts] == [1, 2, 3, 4, 5]
    assert script.count == 5


async def test_a_hop_that_fails_for_good_is_exhausted() -> None:
    script, client = following(to("/b"), 503)
    with pytest.raises(RetryExhaustedError) as caught:
        await client.get("/a")
    assert caught.value.request.url == "https://api.test/b"
    assert script.count == 4


async def test_every_hop_takes_a_token_of_the_limiter() -> None:
    clock = FakeClock()
    client = client_of(
        Script(to("/b"), to("/c"), 200),
        clock=clock,
        follow_redirects=True,
        enable_rate_limiting=True,
        rate_limit_rate=1.0,
    )
    await client.get("/a")
    assert clock.elapsed == pytest.approx(2.0)


async def test_a_redirect_is_a_success_for_the_circuit() -> None:
    client = client_of(
        Script(503, to("/b"), 503, 200),
        follow_redirects=True,
        enable_circuit_breaker=True,
        circuit_breaker_failure_threshold=2,
    )
    assert (await client.get("/a")).status_code == 200


# -- what goes along ----------------------------------------------------------------------------------------------

CREDENTIALS: dict[str, dict[str, Any]] = {
    "bearer": {"auth": BearerAuth(CANARY)},
    "basic": {"auth": BasicAuth("user", CANARY)},
    "api key in a header": {"auth": APIKeyAuth(CANARY, header_name="X-Odd-Name")},
    "api key in the query": {"auth": APIKeyAuth(CANARY, query_param_name="k")},
    "default header": {"headers": {"X-Tenant": CANARY}},
    "cookie": {"cookies": {"session": CANARY}},
}
OF_A_CALL: dict[str, dict[str, Any]] = {
    "authorization": {"headers": {"Authorization": f"Bearer {CANARY}"}},
    "api key": {"headers": {"X-API-Key": CANARY}},
    "some header": {"headers": {"X-Whatever": CANARY}},
    "cookie": {"headers": {"Cookie": f"a={CANARY}"}},
    "referer": {"headers": {"Referer": f"https://x/?t={CANARY}"}},
    "auth": {"auth": ("user", CANARY)},
    "query": {"params": {"api_key": CANARY}},
}


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("credential", CREDENTIALS.values(), ids=CREDENTIALS.keys())
async def test_no_credential_of_the_client_reaches_another_origin(
    upstream: HostileUpstream, credential: dict[str, Any], code: int
) -> None:
    config = ClientConfig(follow_redirects=True)
    async with AsyncHTTPClient(upstream.url("/"), config=config, **credential) as client:
        response = await client.get(f"/redirect-cross?code={code}")
    assert response.status_code == 200
    assert told(upstream, "main")
    assert not told(upstream, "other")


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("credential", OF_A_CALL.values(), ids=OF_A_CALL.keys())
async def test_no_credential_of_a_call_reaches_another_origin(
    upstream: HostileUpstream, credential: dict[str, Any], base: bool
) -> None:
    async with AsyncHTTPClient(upstream.url("/") if base else "") as client:
        response = await client.get(upstream.url("/redirect-cross"), follow_redirects=True, **credential)
    assert response.status_code == 200
    assert told(upstream, "main")
    assert not told(upstream, "other")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("code", [307, 308])
async def test_no_body_reaches_another_origin(upstream: HostileUpstream, method: str, code: int) -> None:
    async with AsyncHTTPClient(upstream.url("/"), config=ClientConfig(follow_redirects=True)) as client:
        response = await client.request(method, f"/redirect-cross?code={code}", json={"password": CANARY})
    assert response.status_code == code
    assert upstream.requests_seen(listener="other") == []


async def test_a_post_without_a_body_may_go_to_another_origin(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/"), config=ClientConfig(follow_redirects=True)) as client:
        response = await client.post("/redirect-cross?code=307")
    assert response.status_code == 200
    assert [seen["method"] for seen in upstream.requests_seen(listener="other")] == ["POST"]


@pytest.mark.parametrize("propagation", ["external", "internal"])
async def test_no_context_header_reaches_another_origin(upstream: HostileUpstream, propagation: Any) -> None:
    config = ClientConfig(follow_redirects=True, propagation=propagation)
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("inbound"), request_context(request_id="the-request-id", timeout=60):
        async with AsyncHTTPClient(upstream.url("/"), config=config) as client:
            await client.get("/redirect-cross")
    (home,) = upstream.requests_seen(listener="main")
    (abroad,) = upstream.requests_seen(listener="other")
    assert {"x-request-id", "traceparent"} <= names(home)
    assert names(abroad) <= {"host", "accept", "accept-encoding", "connection", "user-agent"}


def names(seen: dict[str, Any]) -> set[str]:
    return {name.lower() for name, _ in seen["headers"]}


async def test_the_host_header_is_that_of_the_hop(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/"), config=ClientConfig(follow_redirects=True)) as client:
        await client.get("/redirect-cross", headers={"Host": "a-name-of-mine.test"})
    (abroad,) = upstream.requests_seen(listener="other")
    hosts = [value for name, value in abroad["headers"] if name.lower() == "host"]
    assert hosts == [f"127.0.0.1:{upstream.ports['other']}"]


async def test_another_name_of_the_same_host_is_another_origin(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(
        upstream.url("/"), config=ClientConfig(follow_redirects=True), auth=BearerAuth(CANARY)
    ) as client:
        await client.get(f"/redirect-cross?host=localhost&to={upstream.ports['main']}")
    first, second = upstream.requests_seen(listener="main")
    assert "authorization" in names(first)
    assert "authorization" not in names(second)


async def test_within_the_origin_everything_goes_along(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(
        upstream.url("/"),
        config=ClientConfig(follow_redirects=True),
        auth=BearerAuth(CANARY),
        headers={"X-Tenant": "acme"},
    ) as client:
        response = await client.get("/redirect?n=2", headers={"X-API-Key": "k", "Cookie": "a=b"})
    for seen in upstream.requests_seen():
        assert {"authorization", "x-tenant", "x-api-key", "cookie"} <= names(seen)
    assert response.status_code == 200


async def test_an_allowed_origin_is_as_good_as_the_own_one_except_for_bodies(upstream: HostileUpstream) -> None:
    config = ClientConfig(follow_redirects=True, allowed_origins=(upstream.url("", listener="other"),))
    async with AsyncHTTPClient(
        upstream.url("/"), config=config, auth=BearerAuth(CANARY), headers={"X-Tenant": "acme"}
    ) as client:
        await client.get("/redirect-cross", headers={"X-API-Key": "k"})
        (abroad,) = upstream.requests_seen(listener="other")
        assert {"authorization", "x-tenant", "x-api-key"} <= names(abroad)
        assert (await client.post("/redirect-cross?code=307", json={})).status_code == 307


async def test_credentials_in_a_location_are_not_taken_over(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/"), config=ClientConfig(follow_redirects=True)) as client:
        response = await client.get(f"/redirect-cross?userinfo=user:{CANARY}")
    assert not told(upstream, "other")
    assert CANARY not in repr(response.request) + str(response.url)


async def test_a_way_back_home_gets_the_clients_own_credential_again_and_nothing_of_the_call() -> None:
    script, client = following(
        to("https://other.test/"), to("https://api.test/end"), 200, options={"auth": BearerAuth(CANARY)}
    )
    await client.get("/", headers={"X-Whatever": "v"})
    assert script.sent("authorization") == [f"Bearer {CANARY}", None, f"Bearer {CANARY}"]
    assert script.sent("x-whatever") == ["v", None, None]


async def test_kept_cookies_stay_with_their_origin(upstream: HostileUpstream) -> None:
    config = ClientConfig(follow_redirects=True, persist_cookies=True)
    async with AsyncHTTPClient(upstream.url("/"), config=config) as client:
        await client.get(f"/cookie/login?user={CANARY}")
        assert (await client.get("/cookie/whoami")).json_data == {"cookie": f"session={CANARY}"}
        await client.get("/redirect-cross")
    assert not told(upstream, "other")


async def test_a_cookie_that_is_kept_goes_along_with_the_next_hop() -> None:
    login = httpx.Response(302, headers={"Location": "/home", "Set-Cookie": "session=new"})
    script, client = following(login, 200, persist_cookies=True)
    client.cookies.set("session", "old", domain="api.test")
    await client.get("/login")
    assert script.sent("cookie") == ["session=old", "session=new"]


@pytest.mark.parametrize("location", ["/again", "ftp://api.test/"])
async def test_a_redirect_that_fails_is_not_tried_again_by_a_retry_around_it(location: str) -> None:
    script, client = following(to(location), max_redirects=2, options={"middlewares": [RetryMiddleware()]})
    with pytest.raises(HTTPRequestError) as caught:
        await client.get("/a")
    assert not isinstance(caught.value, RetryExhaustedError)
    assert script.count == (3 if location == "/again" else 1)


async def test_a_loop_and_endless_growth_end(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/"), config=ClientConfig(follow_redirects=True)) as client:
        for path in ("/redirect-loop", "/redirect-grow"):
            with pytest.raises(HTTPRequestError, match="more than 20 redirects"):
                await client.get(path)
    assert len(upstream.requests_seen()) == 42


async def test_what_becomes_of_a_hop_to_another_origin_says_nothing_of_the_upstream(upstream: HostileUpstream) -> None:
    config = ClientConfig(
        follow_redirects=True, retry_attempts=1, enable_circuit_breaker=True, circuit_breaker_failure_threshold=1
    )
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        abroad = upstream.url("/status/503", "other")
        assert (await client.get("/redirect-to", params={"url": abroad})).status_code == 503
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
        paused = upstream.url("/status/429?retry_after=30", "other")
        assert (await client.get("/redirect-to", params={"url": paused})).status_code == 429
        assert not client.server_limit.is_pausing
        with pytest.raises(HTTPRequestError):
            await client.get("/reset")
        assert client.circuit_breaker.state is CircuitState.OPEN


async def test_a_kept_cookie_of_one_host_does_not_go_to_another_that_is_allowed(upstream: HostileUpstream) -> None:
    other = upstream.url("", "other").replace("127.0.0.1", "localhost")
    config = ClientConfig(follow_redirects=True, persist_cookies=True, allowed_origins=(other,))
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        await client.get("/cookie/login")
        assert client.cookies
        sent = (await client.get("/echo")).json_data["headers_dict"]
        abroad = (await client.get("/redirect-to", params={"url": f"{other}/echo"})).json_data["headers_dict"]
    assert "cookie" in sent
    assert "cookie" not in abroad


async def test_a_transport_that_gives_the_same_response_again_does_not_make_its_history_longer() -> None:
    moved, there = httpx.Response(302, headers={"Location": "/there"}), httpx.Response(200)
    transport = httpx.MockTransport(lambda request: there if request.url.path == "/there" else moved)
    config = ClientConfig(follow_redirects=True)
    async with AsyncHTTPClient("http://api.test", config=config, transport=transport) as client:
        assert [len((await client.get("/")).history) for _ in range(3)] == [1, 1, 1]


async def test_cookies_and_limits_that_are_set_on_the_client_count_for_redirects() -> None:
    script, client = following(to("/b"), to("/c"), to("/d"), 200, persist_cookies=True)
    client.cookies = {"session": "new"}  # type: ignore[assignment]
    client.max_redirects = 2
    with pytest.raises(httpx.TooManyRedirects, match=r"GET https://api\.test/c: more than 2 redirects"):
        await client.get("/a")
    assert script.sent("cookie") == ["session=new"] * 3


async def test_a_refused_redirect_is_told_with_its_client_and_without_its_secrets() -> None:
    script = Script(to("ftp://elsewhere.example/"))
    options = {"name": "weather", "auth": APIKeyAuth(CANARY, query_param_name="appid")}
    client = client_of(script, options=options, follow_redirects=True)
    with pytest.raises(HTTPRequestError, match=r"weather: GET .*: redirect refused") as raised:
        await client.get("/a", params={"appid": CANARY})
    assert CANARY not in str(raised.value)
