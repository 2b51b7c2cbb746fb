"""Credentials that are known beforehand: on the wire, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import copy
import pickle
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, cast
from urllib.parse import parse_qsl

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth, build_auth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import RequestContext, bind, unbind
from fastapi_http_client.errors import AuthenticationError, ConfigurationError, HTTPRequestError
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.policies.circuit_breaker import CircuitState
from tests.hostile.upstream import HostileUpstream
from tests.scripted import Script, client_of

CANARY = "c4n4ry-s3cret"


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


async def on_the_wire(auth: Any, url: str = "/", **options: Any) -> httpx.Request:
    """The request that a client with this auth sends."""
    script = Script()
    await client_of(script, options={"auth": auth}).get(url, **options)
    return script.requests[0]


# -- bearer ------------------------------------------------------------------------------------------------------


async def async_token() -> str:
    await asyncio.sleep(0)
    return CANARY


@pytest.mark.parametrize(
    "token",
    [CANARY, SecretStr(CANARY), lambda: CANARY, lambda: SecretStr(CANARY), async_token],
    ids=["text", "secret", "function", "function of a secret", "async function"],
)
async def test_a_bearer_token_is_a_text_or_what_a_function_gives(token: Any) -> None:
    assert (await on_the_wire(BearerAuth(token))).headers["authorization"] == f"Bearer {CANARY}"
    assert (await on_the_wire(BearerAuth(token=token))).headers["authorization"] == f"Bearer {CANARY}"


async def test_a_token_function_is_asked_for_every_attempt() -> None:
    tokens = iter(["one", "two", "three"])
    script = Script(503, httpx.ReadError(""), 200)
    await client_of(script, options={"auth": BearerAuth(lambda: next(tokens))}).get("/")
    assert script.sent("authorization") == ["Bearer one", "Bearer two", "Bearer three"]


def fails() -> str:
    raise OSError(f"vault says {CANARY}")


async def fails_later() -> str:
    raise OSError(f"vault says {CANARY}")


@pytest.mark.parametrize("source", [fails, fails_later])
async def test_a_token_function_that_fails_sends_nothing(source: Callable[[], Any]) -> None:
    script = Script()
    client = client_of(
        script,
        enable_circuit_breaker=True,
        circuit_breaker_failure_threshold=1,
        options={"auth": BearerAuth(source), "name": "github"},
    )
    for _ in range(3):  # which is no failure of the upstream either
        with pytest.raises(AuthenticationError) as caught:
            await client.get("/users")
    assert script.count == 0
    error = caught.value
    assert isinstance(error, httpx.HTTPError)
    assert not isinstance(error, HTTPRequestError | httpx.RequestError)
    assert isinstance(error.__cause__, OSError)
    assert (error.client, error.request.url, error.attempts) == ("github", "https://api.test/users", ())
    assert "github" in str(error)
    assert CANARY not in str(error)


@pytest.mark.parametrize(
    "token", ["", " ", "two words", f"{CANARY}\r\nX-Injected: 1", "tökén", None, 7, b"bytes", "x" * 20_000]
)
async def test_what_is_no_token_is_not_sent(token: Any) -> None:
    script = Script()

    async def later() -> Any:
        return token

    for source in (lambda: token, later):
        with pytest.raises(AuthenticationError) as caught:
            await client_of(script, options={"auth": BearerAuth(source)}).get("/")
        assert CANARY not in str(caught.value)
    assert script.count == 0


async def test_cancelling_a_token_function_cancels_the_call() -> None:
    started = asyncio.Event()

    async def never() -> str:
        started.set()
        await asyncio.Event().wait()
        return ""

    call = asyncio.create_task(client_of(Script(), options={"auth": BearerAuth(never)}).get("/"))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_fixed_token_is_not_sent_again_after_a_401() -> None:
    for auth in (BearerAuth(CANARY), BearerAuth(lambda: CANARY), BasicAuth("u", "p"), APIKeyAuth("k")):
        script = Script(401, 200)
        response = await client_of(script, options={"auth": auth}).get("/")
        assert (response.status_code, script.count) == (401, 1)


# -- API keys ----------------------------------------------------------------------------------------------------


async def test_an_api_key_goes_into_its_header() -> None:
    assert (await on_the_wire(APIKeyAuth("key"))).headers["x-api-key"] == "key"
    request = await on_the_wire(APIKeyAuth(api_key="key", header_name="X-Odd"))
    assert request.headers["x-odd"] == "key"
    assert "x-api-key" not in request.headers


async def test_an_api_key_goes_into_the_query_behind_what_is_there() -> None:
    request = await on_the_wire(
        APIKeyAuth(api_key="k&=?# é", query_param_name="api key"), "/a?b=1&b=2", params={"c": "3"}
    )
    assert parse_qsl(request.url.query.decode()) == [("b", "1"), ("b", "2"), ("c", "3"), ("api key", "k&=?# é")]
    assert "x-api-key" not in request.headers


async def test_an_api_key_is_put_into_the_query_once_for_each_attempt() -> None:
    script = Script(503, 503, 200)
    await client_of(script, options={"auth": APIKeyAuth("key", query_param_name="k")}).get("/")
    assert [request.url.query for request in script.requests] == [b"k=key"] * 3


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_key_survives_the_query(name: str, key: str) -> None:
    request = httpx.Request("GET", "https://api.test/?a=b")
    APIKeyAuth(key, query_param_name=name).sign(request)
    assert parse_qsl(request.url.query.decode(), keep_blank_values=True) == [("a", "b"), (name, key)]


# -- basic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "password"), [("user", "pass"), ("u", ""), ("", "token"), ("ü", "pä:ß€"), ("u", "a b")]
)
async def test_basic_is_utf_8(username: str, password: str) -> None:
    for auth in (BasicAuth(username, password), BasicAuth(username=username, password=SecretStr(password))):
        assert (await on_the_wire(auth)).headers["authorization"] == basic(username, password)


async def test_a_pair_is_basic() -> None:
    assert (await on_the_wire(("u", "p"))).headers["authorization"] == basic("u", "p")
    assert (await on_the_wire((b"u", b"p"))).headers["authorization"] == basic("u", "p")


# -- httpx's ways --------------------------------------------------------------------------------------------------


async def test_auth_of_a_call_replaces_the_clients_or_takes_it_away() -> None:
    script = Script()
    client = client_of(script, options={"auth": BearerAuth("mine")})
    await client.get("/", auth=BearerAuth("other"))
    await client.get("/", auth=("u", "p"))
    await client.get("/", auth=None)
    assert script.sent("authorization") == ["Bearer other", basic("u", "p"), None]


async def test_auth_of_the_client_wins_over_its_config() -> None:
    script = Script()
    config: dict[str, Any] = {"auth": {"type": "bearer", "token": "configured"}}
    await client_of(script, **config).get("/")
    await client_of(script, **config, options={"auth": BearerAuth("given")}).get("/")
    assert script.sent("authorization") == ["Bearer configured", "Bearer given"]


@pytest.mark.parametrize(
    ("section", "header", "value"),
    [
        ({"type": "bearer", "token": "t"}, "authorization", "Bearer t"),
        ({"type": "api_key", "api_key": "k"}, "x-api-key", "k"),
        ({"type": "api_key", "api_key": "k", "header_name": "X-Odd"}, "x-odd", "k"),
        ({"type": "basic", "username": "u", "password": "p"}, "authorization", basic("u", "p")),
    ],
)
async def test_auth_may_be_configured(section: dict[str, Any], header: str, value: str) -> None:
    script = Script()
    await client_of(script, auth=section).get("/")
    assert script.sent(header) == [value]


async def test_user_info_in_the_base_url_is_basic() -> None:
    script = Script()
    client = client_of(script, base_url=f"https://user:{CANARY}@api.test/v1")
    response = await client.get("/a")
    assert script.sent("authorization") == [basic("user", CANARY)]
    assert script.requests[0].url == "https://api.test/v1/a"
    assert CANARY not in repr(client) + repr(client.config) + str(response.url) + repr(response.request)


async def test_httpx_digest_answers_its_challenge() -> None:
    challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256'
    script = Script(httpx.Response(401, headers={"WWW-Authenticate": challenge}), 200)
    response = await client_of(script, options={"auth": httpx.DigestAuth("u", "p")}).get("/")
    assert response.status_code == 200
    assert [r.status_code for r in response.history] == [401]
    assert (script.sent("authorization")[1] or "").startswith("Digest ")
    assert len(response.attempts) == 1


async def test_each_response_of_an_auth_flow_knows_those_before_it() -> None:
    class Twice(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            yield request
            yield request
            yield request

    last = await client_of(Script(401, 402, 200), options={"auth": Twice()}).get("/")
    assert [[past.status_code for past in r.history] for r in (*last.history, last)] == [[], [401], [401, 402]]


class Signature(httpx.Auth):
    requires_request_body = True
    requires_response_body = True

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-Signature"] = str(len(request.content))
        response = yield request
        assert response.content in (b"seen", b"not yet")


async def test_an_auth_of_the_users_own_sees_the_bodies_and_signs_every_attempt() -> None:
    script = Script(httpx.Response(503, text="not yet"), httpx.Response(200, text="seen"))
    await client_of(script, options={"auth": Signature()}).put("/", content=b"12345")
    assert script.sent("x-signature") == ["5", "5"]


async def test_a_function_is_an_auth() -> None:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["X-Signed"] = "yes"
        return request

    assert (await on_the_wire(sign)).headers["x-signed"] == "yes"


@pytest.mark.parametrize(
    "auth", [BearerAuth(CANARY), BearerAuth(lambda: CANARY), APIKeyAuth(CANARY), BasicAuth("u", CANARY)]
)
async def test_they_work_in_plain_httpx_clients(auth: httpx.Auth) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=dict(request.headers))

    with httpx.Client(transport=httpx.MockTransport(answer), auth=auth) as client:
        seen = client.get("https://api.test/").json()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=auth) as async_client:
        assert (await async_client.get("https://api.test/")).json() == seen
    assert (
        CANARY in seen.get("authorization", "") + seen.get("x-api-key", "")
        or basic("u", CANARY) == seen["authorization"]
    )


async def test_an_async_token_function_works_in_a_plain_async_client() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=request.headers["authorization"]))
    async with httpx.AsyncClient(transport=transport, auth=BearerAuth(async_token)) as client:
        assert (await client.get("https://api.test/")).text == f"Bearer {CANARY}"


def test_an_auth_says_what_it_is_and_where_it_puts_its_credential() -> None:
    for auth, shown, headers, params in (
        (BearerAuth("t"), "BearerAuth(token='**********')", {"authorization"}, set()),
        (BearerAuth(async_token), "BearerAuth(token=<callable>)", {"authorization"}, set()),
        (APIKeyAuth("k"), "APIKeyAuth(api_key='**********', header_name='X-API-Key')", {"x-api-key"}, set()),
        (APIKeyAuth("k", "X-Odd"), "APIKeyAuth(api_key='**********', header_name='X-Odd')", {"x-odd"}, set()),
        (
            APIKeyAuth("k", query_param_name="q"),
            "APIKeyAuth(api_key='**********', query_param_name='q')",
            set(),
            {"q"},
        ),
        (BasicAuth("u", "p"), "BasicAuth(username='u', password='**********')", {"authorization"}, set()),
    ):
        assert repr(auth) == shown
        assert (set(auth.credential_headers), set(auth.credential_params)) == (headers, params)


def test_what_needs_an_async_client_says_so_in_a_sync_one() -> None:
    class Later:
        def __await__(self) -> Generator[None, None, str]:
            raise NotImplementedError

    oauth2 = OAuth2ClientCredentials("https://auth.test/token", "id", "secret")
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        for auth in (BearerAuth(Later), oauth2):
            with pytest.raises(ConfigurationError, match="async client"):
                client.get("https://api.test/", auth=auth)


# -- bad arguments -------------------------------------------------------------------------------------------------

BAD: list[tuple[str, Callable[[], Any]]] = [
    ("token", lambda: BearerAuth("")),
    ("token", lambda: BearerAuth(SecretStr(""))),
    ("token", lambda: BearerAuth(None)),  # type: ignore[arg-type]
    ("token", lambda: BearerAuth(7)),  # type: ignore[arg-type]
    ("token", lambda: BearerAuth(f"{CANARY}\n")),
    ("token", lambda: BearerAuth(f" {CANARY}")),
    ("token", lambda: BearerAuth("tökén")),
    ("token", lambda: BearerAuth("x" * 20_000)),
    ("api_key", lambda: APIKeyAuth("")),
    ("api_key", lambda: APIKeyAuth(None)),  # type: ignore[arg-type]
    ("api_key", lambda: APIKeyAuth(f"{CANARY}\r\nX: 1")),
    ("api_key", lambda: APIKeyAuth(f"{CANARY} ")),
    ("api_key", lambda: APIKeyAuth("kéy")),
    ("api_key", lambda: APIKeyAuth("\ud800", query_param_name="k")),
    ("header_name", lambda: APIKeyAuth(CANARY, header_name="")),
    ("header_name", lambda: APIKeyAuth(CANARY, header_name="a b")),
    ("header_name", lambda: APIKeyAuth(CANARY, header_name="a:")),
    ("header_name", lambda: APIKeyAuth(CANARY, header_name=None)),  # type: ignore[arg-type]
    ("query_param_name", lambda: APIKeyAuth(CANARY, query_param_name="")),
    ("query_param_name", lambda: APIKeyAuth(CANARY, query_param_name=7)),  # type: ignore[arg-type]
    ("username", lambda: BasicAuth("a:b", CANARY)),
    ("username", lambda: BasicAuth(None, CANARY)),  # type: ignore[arg-type]
    ("username", lambda: BasicAuth("\ud800", CANARY)),
    ("password", lambda: BasicAuth("u", None)),  # type: ignore[arg-type]
    ("password", lambda: BasicAuth("u", f"{CANARY}\ud800")),
    ("token_url", lambda: OAuth2ClientCredentials("auth.test/token", "id", CANARY)),
    ("token_url", lambda: OAuth2ClientCredentials(f"ftp://u:{CANARY}@auth.test/", "id", CANARY)),
    ("token_url", lambda: OAuth2ClientCredentials("", "id", CANARY)),
    ("client_id", lambda: OAuth2ClientCredentials("https://auth.test/", "", CANARY)),
    ("client_id", lambda: OAuth2ClientCredentials("https://auth.test/", None, CANARY)),  # type: ignore[arg-type]
    ("client_secret", lambda: OAuth2ClientCredentials("https://auth.test/", "id", "")),
    ("client_secret", lambda: OAuth2ClientCredentials("https://auth.test/", "id", None)),  # type: ignore[arg-type]
    ("scope", lambda: OAuth2ClientCredentials("https://auth.test/", "id", CANARY, scope=7)),  # type: ignore[arg-type]
    ("cache_duration", lambda: OAuth2ClientCredentials("https://auth.test/", "id", CANARY, cache_duration=0)),
    ("cache_duration", lambda: OAuth2ClientCredentials("https://auth.test/", "id", CANARY, cache_duration=-1)),
    (
        "cache_duration",
        lambda: OAuth2ClientCredentials("https://auth.test/", "id", CANARY, cache_duration=float("nan")),
    ),
    (
        "credentials_in",
        lambda: OAuth2ClientCredentials("https://auth.test/", "id", CANARY, credentials_in="url"),  # type: ignore[arg-type]
    ),
    ("auth", lambda: AsyncHTTPClient(auth=7)),
    ("auth", lambda: AsyncHTTPClient(auth=("only one",))),
    ("auth", lambda: AsyncHTTPClient(auth=CANARY)),
]


@pytest.mark.parametrize(("argument", "make"), BAD)
def test_a_bad_argument_is_named_and_its_value_is_not_shown(argument: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"\b{argument}\b") as caught:
        make()
    assert CANARY not in str(caught.value) + repr(caught.value)
    assert isinstance(caught.value, ValueError)


# -- secrets -------------------------------------------------------------------------------------------------------

AUTHS: dict[str, Callable[[], httpx.Auth]] = {
    "bearer": lambda: BearerAuth(CANARY),
    "bearer function": lambda: BearerAuth(lambda: CANARY),
    "api key": lambda: APIKeyAuth(CANARY),
    "api key, odd header": lambda: APIKeyAuth(CANARY, header_name="X-Odd"),
    "api key, query": lambda: APIKeyAuth(CANARY, query_param_name="k"),
    "basic": lambda: BasicAuth("user", CANARY),
    "oauth2": lambda: OAuth2ClientCredentials("https://auth.test/token", "id", CANARY),
    "from a pair": lambda: cast("httpx.Auth", build_auth(("user", CANARY))),
}


@pytest.mark.parametrize("make", AUTHS.values(), ids=AUTHS.keys())
def test_an_auth_shows_no_secret_and_cannot_be_written_down(make: Callable[[], httpx.Auth]) -> None:
    auth = make()
    shown = f"{auth!r} {auth} {vars(auth)}"
    assert CANARY not in shown
    assert basic("user", CANARY).removeprefix("Basic ") not in shown
    for write in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=type(auth).__name__):
            write(auth)


@pytest.mark.parametrize("make", AUTHS.values(), ids=AUTHS.keys())
@pytest.mark.parametrize(
    "failure", [401, httpx.ReadError("gone"), httpx.ConnectTimeout("")], ids=["401", "error", "timeout"]
)
async def test_no_request_that_a_caller_gets_to_see_holds_the_credential(
    make: Callable[[], httpx.Auth], failure: int | Exception
) -> None:
    """Neither the caller's own, nor those of responses, errors and their causes."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.test":
            return httpx.Response(200, json={"access_token": CANARY, "token_type": "Bearer"})
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(failure)

    script = Script(answer)
    client = client_of(script, options={"auth": make()}, retry_attempts=1)
    request = client.build_request("GET", "/")
    shown: list[httpx.Request] = [request]
    try:
        response = await client.send(request)
    except HTTPRequestError as error:
        shown += [error.request, error.__cause__.request]  # type: ignore[union-attr]
        if error.attempts[0].error is not None:
            shown.append(error.attempts[0].error.request)  # type: ignore[attr-defined]
    else:
        shown += [response.request, *(past.request for past in response.history)]
    secrets = (CANARY, basic("user", CANARY).removeprefix("Basic "))
    for seen in shown:
        text = f"{seen.url} {seen.headers.raw} {seen!r}"
        assert not any(secret in text for secret in secrets)
    assert any(secret in f"{script.requests[-1].url} {script.requests[-1].headers.raw}" for secret in secrets)


@pytest.mark.parametrize(
    "url", ["https://other.test/", "https://api.test:8443/", "https://api.test.other.test/", "http://api.test/"]
)
async def test_an_address_at_another_origin_is_refused_before_anything_is_sent(url: str) -> None:
    asked = []

    def token() -> str:
        asked.append(1)
        return CANARY

    script = Script()
    client = client_of(script, options={"auth": BearerAuth(token)})
    with pytest.raises(HTTPRequestError, match="another origin") as caught:
        await client.get(url)
    assert (script.count, asked) == (0, [])
    assert (caught.value.may_have_run, caught.value.transient) == (False, False)


async def test_an_allowed_origin_gets_the_credential_and_the_own_one_may_be_spelt_out() -> None:
    script = Script()
    client = client_of(script, options={"auth": BearerAuth(CANARY)}, allowed_origins=("https://other.test",))
    for url in ("https://other.test/x", "https://OTHER.test:443/x", "https://api.test:443/y", "https://API.test/y"):
        await client.get(url)
    assert script.sent("authorization") == [f"Bearer {CANARY}"] * 4


async def test_without_a_base_url_a_client_goes_where_it_is_told() -> None:
    script = Script()
    client = client_of(script, base_url="", options={"auth": BearerAuth(CANARY)})
    await client.get("https://one.test/")
    await client.get("https://two.test/")
    assert script.sent("authorization") == [f"Bearer {CANARY}"] * 2


class Leaky(httpx.Auth):
    """An auth of the user's own, whose credential has a name that nobody knows."""

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        request.headers["X-Nobody-Knows"] = CANARY
        yield request


async def test_the_same_holds_for_an_auth_of_the_users_own() -> None:
    script = Script(httpx.ReadError("gone"))
    client = client_of(script, options={"auth": Leaky()}, retry_attempts=1)
    with pytest.raises(HTTPRequestError) as caught:
        await client.get("/")
    assert "x-nobody-knows" in script.requests[0].headers
    assert "x-nobody-knows" not in caught.value.request.headers
    assert "x-nobody-knows" not in caught.value.__cause__.request.headers  # type: ignore[union-attr]


async def test_the_middle_of_a_stream_shows_no_credential_either(upstream: Any) -> None:
    auth = APIKeyAuth(CANARY, query_param_name="k")
    async with AsyncHTTPClient(upstream.url("/"), auth=auth, config=ClientConfig(max_response_bytes=500)) as client:
        for path in ("/reset-mid-body?key=a", "/large?bytes=1000&key=b"):
            with pytest.raises(HTTPRequestError) as caught:
                async with client.stream("GET", path) as response:
                    await response.aread()
            assert CANARY not in f"{caught.value} {caught.value.request.url} {response.request.url}"
    assert len(upstream.search(CANARY)) == 2


class AsksElsewhere(httpx.Auth):
    """A flow that asks an identity provider at another origin for each token."""

    def __init__(self, url: str) -> None:
        self.url = url

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        yield httpx.Request("POST", self.url)
        request.headers["Authorization"] = f"Bearer {CANARY}"
        yield request


@pytest.mark.parametrize("hooks", [0, 1])
async def test_a_flow_may_ask_elsewhere_and_takes_nothing_of_ours_there(upstream: HostileUpstream, hooks: int) -> None:
    async def hook(request: httpx.Request) -> None: ...

    config = ClientConfig(propagation="internal", propagate_headers=["x-user"])
    auth = AsksElsewhere(upstream.url("/echo", "other"))
    context = RequestContext("request-1", headers=[(b"x-user", b"ann"), (b"baggage", b"a=1")])
    token = bind(context)
    try:
        async with AsyncHTTPClient(
            upstream.url(), config=config, auth=auth, event_hooks={"request": [hook] * hooks}
        ) as client:
            response = await client.get("/echo")
    finally:
        unbind(token)
    assert response.json_data["headers_dict"]["x-user"] == "ann"
    (elsewhere,) = response.history
    sent = elsewhere.json()["headers_dict"]
    assert not sent.keys() & {"x-user", "baggage", "x-request-id", "x-request-timeout-ms", "traceparent"}
    assert CANARY not in str(elsewhere.request.headers.raw) + str(response.request.headers.raw)


async def test_an_identity_provider_that_is_down_is_no_failure_of_the_api(upstream: HostileUpstream) -> None:
    config = ClientConfig(enable_circuit_breaker=True, circuit_breaker_failure_threshold=1, retry_attempts=1)
    async with AsyncHTTPClient(upstream.url(), config=config, auth=AsksElsewhere("http://127.0.0.1:1/")) as client:
        with pytest.raises(HTTPRequestError):
            await client.get("/ok")
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED


async def test_the_challenges_that_a_flow_has_answered_show_no_credential(upstream: HostileUpstream) -> None:
    class Twice(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            request.headers["Authorization"] = CANARY
            yield request
            yield request

    async with AsyncHTTPClient(upstream.url(), auth=Twice()) as client:
        (first,) = (await client.get("/ok")).history
    assert first.request.headers["authorization"] == "[redacted]"
