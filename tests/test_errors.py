"""The errors: one tree, also httpx's, with facts, and without secrets."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fastapi_http_client import errors
from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import (
    Attempt,
    AuthenticationError,
    CircuitBreakerOpenError,
    ConfigurationError,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    HTTPTimeoutError,
    Problem,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.fake_clock import FakeClock
from tests.hostile.upstream import HostileUpstream
from tests.leaks import holds, seen_in
from tests.scripted import Script, client_of

CANARY = "c4n4ry-s3cret"

# -- the tree ----------------------------------------------------------------------------------------------------

PARENTS: dict[type[HTTPClientError], tuple[Any, ...]] = {
    HTTPRequestError: (HTTPClientError, httpx.TransportError),
    HTTPTimeoutError: (HTTPRequestError, httpx.TimeoutException),
    HTTPResponseError: (HTTPClientError, httpx.HTTPStatusError),
    RateLimitError: (HTTPResponseError,),
    RetryExhaustedError: (HTTPClientError, httpx.HTTPError),
    CircuitBreakerOpenError: (HTTPClientError, httpx.HTTPError),
    AuthenticationError: (HTTPClientError, httpx.HTTPError),
    ConfigurationError: (HTTPClientError, ValueError),
}
ALL: tuple[type[HTTPClientError], ...] = (HTTPClientError, *PARENTS)


@pytest.mark.parametrize("error", PARENTS)
def test_an_error_is_what_the_tree_says(error: type[HTTPClientError]) -> None:
    assert issubclass(error, PARENTS[error])


def test_an_error_is_nothing_that_the_tree_does_not_say() -> None:
    ancestors: dict[Any, set[Any]] = {HTTPClientError: {HTTPClientError}}
    for error, parents in PARENTS.items():
        ancestors[error] = {error}.union(*(ancestors.get(parent, set()) for parent in parents))
    for one in ALL:
        assert {other for other in ALL if issubclass(one, other)} == ancestors[one]
    for refusal in (AuthenticationError, CircuitBreakerOpenError, RetryExhaustedError):
        assert not issubclass(refusal, httpx.RequestError | httpx.HTTPStatusError)
    assert not issubclass(ConfigurationError, httpx.HTTPError)


def exhausted(*, response: httpx.Response | None = None, error: Exception | None = None) -> RetryExhaustedError:
    return RetryExhaustedError.from_last("gave up", last_response=response, last_error=error, retry_after=7.0)


def test_exhausted_is_also_what_its_last_cause_is() -> None:
    on_429 = exhausted(response=httpx.Response(429))
    assert isinstance(on_429, RateLimitError)
    assert isinstance(on_429, httpx.HTTPStatusError)
    assert (on_429.status_code, on_429.retry_after) == (429, 7.0)
    assert on_429.response is on_429.last_response

    for timeout in (HTTPTimeoutError("", phase="read"), httpx.ReadTimeout("")):
        on_timeout = exhausted(error=timeout)
        assert isinstance(on_timeout, httpx.TimeoutException)
        assert not isinstance(on_timeout, HTTPResponseError)
        assert on_timeout.last_error is timeout

    on_error = exhausted(error=HTTPRequestError(""))
    assert isinstance(on_error, httpx.TransportError)
    assert not isinstance(on_error, httpx.TimeoutException)
    assert type(exhausted(response=httpx.Response(503))) is RetryExhaustedError


async def handled(call: Callable[[], Any]) -> str:
    """The `except` clauses of the user's document, in its order."""
    try:
        response = await call()
        response.raise_for_status()
    except RateLimitError as e:
        return f"Rate limited, retry after {e.retry_after}s"
    except HTTPResponseError as e:
        return f"HTTP error {e.status_code}: {e.message}"
    except RetryExhaustedError as e:
        return f"All retries exhausted: {e}"
    except CircuitBreakerOpenError as e:
        return f"Circuit breaker open, wait {e.recovery_timeout}s"
    return "no error"


async def test_the_users_document_handles_each_error_where_it_should() -> None:
    limited = httpx.Response(429, headers={"Retry-After": "7"})
    assert await handled(lambda: client_of(Script(limited)).get("/")) == "Rate limited, retry after 7.0s"
    assert (
        await handled(lambda: client_of(Script(limited), retry_attempts=1).get("/")) == "Rate limited, retry after 7.0s"
    )
    assert (await handled(lambda: client_of(Script(404)).get("/"))).startswith("HTTP error 404: ")
    assert (await handled(lambda: client_of(Script(503)).get("/"))).startswith("All retries exhausted: ")
    assert (await handled(lambda: client_of(Script(httpx.ReadTimeout(""))).get("/"))).startswith(
        "All retries exhausted: "
    )
    client = client_of(Script(500), enable_circuit_breaker=True, circuit_breaker_failure_threshold=1, retry_attempts=1)
    await client.get("/")
    assert await handled(lambda: client.get("/")) == "Circuit breaker open, wait 60.0s"
    assert await handled(lambda: client_of(Script(200)).get("/")) == "no error"


@pytest.mark.parametrize(
    ("script", "caught_as"),
    [
        (Script(httpx.ConnectError("")), (HTTPRequestError, httpx.TransportError, httpx.RequestError, httpx.HTTPError)),
        (Script(httpx.ReadTimeout("")), (HTTPTimeoutError, httpx.TimeoutException, httpx.TransportError)),
        (Script(503), (HTTPResponseError, httpx.HTTPStatusError, httpx.HTTPError)),
    ],
)
async def test_code_written_for_httpx_catches_them(script: Script, caught_as: tuple[type[Exception], ...]) -> None:
    for kind in caught_as:
        with pytest.raises(kind):
            (await client_of(script, retry_attempts=1).get("/")).raise_for_status()


@pytest.mark.parametrize(
    "raised",
    [
        *(httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.ProxyError),
        *(httpx.ConnectTimeout, httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout),
        *(httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.RemoteProtocolError, httpx.DecodingError),
    ],
)
@pytest.mark.parametrize("retry_attempts", [1, 2])
async def test_an_error_is_also_of_the_class_that_httpx_raises(raised: Any, retry_attempts: int) -> None:
    with pytest.raises(raised) as caught:
        await client_of(Script(raised("")), retry_attempts=retry_attempts).get("/")
    error = caught.value
    assert isinstance(error, HTTPClientError)
    assert type(error).__name__ in {"RetryExhaustedError", "HTTPTimeoutError", "HTTPRequestError"}
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)


@pytest.mark.usefixtures("engine")
async def test_a_port_that_cannot_be_is_an_error_of_connecting() -> None:
    async with AsyncHTTPClient(config=ClientConfig(retry_attempts=1)) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.get("http://127.0.0.1:123456/")
    assert isinstance(caught.value, HTTPRequestError)
    assert not caught.value.may_have_run


async def test_too_many_redirects_are_also_what_httpx_calls_so() -> None:
    loop = Script(httpx.Response(302, headers={"Location": "/"}))
    with pytest.raises(httpx.TooManyRedirects) as caught:
        await client_of(loop, follow_redirects=True, max_redirects=1).get("/")
    assert isinstance(caught.value, HTTPRequestError)


# -- facts -------------------------------------------------------------------------------------------------------

REQUEST = httpx.Request(
    "GET", "https://api.test/users", headers={"Authorization": f"Bearer {CANARY}", "X-API-Key": CANARY}
)
FACTS: dict[str, Any] = {
    "request": REQUEST,
    "attempts": [Attempt(1, 503, None, 0.5, 1.0), Attempt(2, None, HTTPRequestError("gone", request=REQUEST), 0.1)],
    "client": "github",
}
MADE: list[HTTPClientError] = [
    HTTPClientError("base", **FACTS),
    HTTPRequestError("request", may_have_run=False, transient=False, **FACTS),
    HTTPTimeoutError("timeout", phase="pool", **FACTS),
    HTTPResponseError("response", status_code=404, response=httpx.Response(404, request=REQUEST), **FACTS),
    RateLimitError("limit", retry_after=7.5, response=httpx.Response(429, request=REQUEST), **FACTS),
    RateLimitError("ours", **FACTS),
    RetryExhaustedError("exhausted", last_response=httpx.Response(503), last_error=ValueError(CANARY), **FACTS),
    RetryExhaustedError.from_last(
        "429", last_response=httpx.Response(429, request=REQUEST), last_error=None, retry_after=3.0, **FACTS
    ),
    RetryExhaustedError.from_last(
        "late", last_response=None, last_error=httpx.ReadTimeout("", request=REQUEST), retry_after=None, **FACTS
    ),
    CircuitBreakerOpenError("open", recovery_timeout=12.5, **FACTS),
    AuthenticationError("auth", **FACTS),
    ConfigurationError("config", problems=[Problem("auth.token", "is missing")], **FACTS),
]


def kind(error: HTTPClientError) -> str:
    return f"{type(error).__name__} {error}"


@pytest.mark.parametrize("error", MADE, ids=kind)
def test_an_error_carries_its_facts(error: HTTPClientError) -> None:
    assert str(error) == error.message == error.args[0]
    assert error.client == "github"
    assert isinstance(error.attempts, tuple)
    assert [attempt.number for attempt in error.attempts] == [1, 2]
    assert error.request.url == "https://api.test/users"


@pytest.mark.parametrize("error", MADE, ids=kind)
def test_an_error_survives_pickling_with_its_facts_and_without_its_messages(error: HTTPClientError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        written = pickle.dumps(error, protocol)
        assert CANARY.encode() not in written
        back = pickle.loads(written)
        assert type(back) is type(error)
        assert (str(back), back.message, back.client) == (str(error), error.message, error.client)
        assert [(a.number, a.status, a.elapsed, a.delay) for a in back.attempts] == [
            (1, 503, 0.5, 1.0),
            (2, None, 0.1, 0.0),
        ]
        assert str(back.attempts[1].error) == "gone"
        assert back.request is None
        facts = ("status_code", "retry_after", "phase", "recovery_timeout", "problems", "may_have_run", "transient")
        for fact in facts:
            assert getattr(back, fact, None) == getattr(error, fact, None)


@pytest.mark.parametrize("error", MADE, ids=kind)
def test_an_error_can_be_copied_and_raised_again(error: HTTPClientError) -> None:
    for again in (copy.copy(error), copy.deepcopy(error)):
        with pytest.raises(type(error), match=str(error)):
            raise again


@pytest.mark.parametrize(
    "cls", [cls for cls in ALL if cls not in (HTTPTimeoutError, HTTPResponseError, CircuitBreakerOpenError)]
)
def test_an_error_needs_no_facts(cls: type[HTTPClientError]) -> None:
    error = cls("what happened")
    assert (str(error), error.request, error.attempts, error.client) == ("what happened", None, (), None)


async def test_an_error_of_a_call_can_be_pickled() -> None:
    """Its ledger holds errors that hold the ledger."""
    with pytest.raises(RetryExhaustedError) as caught:
        await client_of(Script(httpx.ReadTimeout("")), options={"auth": BearerAuth(CANARY)}).get("/")
    back: Any = pickle.loads(pickle.dumps(caught.value))
    assert len(back.attempts) == 3
    assert isinstance(back, httpx.TimeoutException)


def test_the_request_of_an_error_is_masked_and_the_callers_is_left_alone() -> None:
    error = HTTPRequestError("", request=REQUEST)
    assert CANARY not in str(error.request.headers.raw)
    error.request = REQUEST
    assert CANARY not in str(error.request.headers.raw)
    assert REQUEST.headers["x-api-key"] == CANARY
    plain = httpx.Request("GET", "https://api.test/")
    assert HTTPRequestError("", request=plain).request is plain


def test_the_module_tells_every_error_it_has() -> None:
    public = {value for name, value in vars(errors).items() if isinstance(value, type) and not name.startswith("_")}
    assert {cls for cls in public if issubclass(cls, HTTPClientError)} == set(ALL)


# -- from the wire -----------------------------------------------------------------------------------------------


async def error_of(url: str, **options: Any) -> HTTPClientError:
    """The error of one attempt at the address."""
    timeout = options.pop("timeout", 5.0)
    async with AsyncHTTPClient(
        config=ClientConfig(retry_attempts=1, timeout=timeout, **options.pop("config", {})), name="github"
    ) as client:
        with pytest.raises(HTTPClientError) as caught:
            await client.request(options.pop("method", "GET"), url, **options)
    return caught.value


@pytest.mark.parametrize(
    ("listener", "path", "phase"),
    [
        ("blackhole", "/", "connect"),
        ("main", "/hang", "read"),
        ("main", "/hang-headers", "read"),
        ("main", "/hang-mid-body", "read"),
        ("main", "/drip", "attempt"),
        ("main", "/drip-headers", "attempt"),
        ("main", "/interim?n=-1&interval=0.05", "attempt"),
    ],
)
async def test_a_timeout_says_its_phase(upstream: HostileUpstream, listener: str, path: str, phase: str) -> None:
    error = await error_of(upstream.url(path, listener=listener), timeout=0.3)
    assert isinstance(error, HTTPTimeoutError)
    assert error.phase == phase
    for part in ("github", "GET", path, "attempt 1", "0.3 s", " s: "):
        assert part in str(error)


async def test_the_phases_of_the_pool_the_upload_and_the_whole_call(upstream: HostileUpstream) -> None:
    config = ClientConfig(retry_attempts=1, max_connections=1, timeout=0.3)
    async with AsyncHTTPClient(upstream.url("/"), config=config) as client, client.stream("GET", "/hang-mid-body"):
        with pytest.raises(HTTPTimeoutError) as pool:
            await client.get("/ok")
    assert (pool.value.phase, pool.value.may_have_run) == ("pool", False)

    error = await error_of(upstream.url("/no-read?seconds=2"), method="POST", content=b"x" * 20_000_000, timeout=0.3)
    assert isinstance(error, HTTPTimeoutError)
    assert error.phase in ("write", "attempt")

    error = await error_of(upstream.url("/hang"), total_timeout=0.2)
    assert isinstance(error, HTTPTimeoutError)
    assert error.phase == "total"


@pytest.mark.parametrize(
    ("listener", "path"),
    [
        ("refused", "/"),
        *(
            ("main", f"/{fault}")
            for fault in ("reset", "close", "reset-mid-headers", "reset-mid-body", "close-mid-body")
        ),
        *(("main", f"/bad-head/{name}") for name in ("ssh", "binary", "negative-status", "cl-garbage")),
        ("accept_close", "/"),
        ("banner", "/"),
    ],
)
async def test_no_message_is_empty_and_each_keeps_its_cause(
    upstream: HostileUpstream, listener: str, path: str
) -> None:
    error = await error_of(upstream.url(f"{path}?token={CANARY}", listener=listener))
    assert isinstance(error, HTTPRequestError)
    assert error.__cause__ is not None
    prefix, _, what = str(error).partition(" s: ")
    for part in ("github: GET http://127.0.0.1", path, "attempt 1", "after 0."):
        assert part in prefix
    assert what
    assert CANARY not in str(error)


async def test_whether_the_upstream_can_have_seen_the_request(upstream: HostileUpstream) -> None:
    refused = await error_of(upstream.url("/", listener="refused"))
    reset = await error_of(upstream.url("/reset"))
    assert isinstance(refused, HTTPRequestError)
    assert isinstance(reset, HTTPRequestError)
    assert (refused.may_have_run, reset.may_have_run) == (False, True)


AUTHS: dict[str, Callable[[], httpx.Auth]] = {
    "bearer": lambda: BearerAuth(CANARY),
    "key": lambda: APIKeyAuth(CANARY, header_name="X-Odd"),
    "query": lambda: APIKeyAuth(CANARY, query_param_name="odd"),
    "basic": lambda: BasicAuth("user", CANARY),
}


@pytest.mark.parametrize("auth", AUTHS.values(), ids=AUTHS.keys())
@pytest.mark.parametrize(
    "path", ["/reset", "/close", "/reset-mid-body", "/bad-head/ssh", "/hang", "/drip", "/status/503"]
)
async def test_nothing_that_hangs_on_an_error_holds_a_credential(
    upstream: HostileUpstream, path: str, auth: Callable[[], httpx.Auth], caplog: pytest.LogCaptureFixture
) -> None:
    """Texts, reprs, pickles, requests, causes and the ledger; tracebacks with local variables; logs at DEBUG."""
    caplog.set_level("DEBUG")
    config = ClientConfig(timeout=0.1 if path in ("/hang", "/drip") else 5, retry_attempts=2)
    async with AsyncHTTPClient(
        upstream.url("/"), config=config, auth=auth(), clock=FakeClock(), random=lambda: 0.5, name="api"
    ) as client:
        with pytest.raises(RetryExhaustedError) as caught:
            await client.get(path)
    assert len(upstream.search(CANARY)) == 2
    assert not holds(seen_in(caught.value), CANARY)
    assert not holds(caplog.text, CANARY)


async def test_nothing_that_hangs_on_a_refused_header_holds_a_credential(upstream: HostileUpstream) -> None:
    for auth in AUTHS.values():
        async with AsyncHTTPClient(upstream.url("/"), auth=auth()) as client:
            with pytest.raises(HTTPRequestError) as caught:
                await client.get("/ok", headers={"X-Bad": "a\r\nb"})
        assert not holds(seen_in(caught.value, variables=False), CANARY)


# -- cancellation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hang", "/drip", "/hang-mid-body", "/drip-headers"])
async def test_cancellation_is_never_wrapped(upstream: HostileUpstream, path: str) -> None:
    async with AsyncHTTPClient(upstream.url("/")) as client:
        call = asyncio.create_task(client.get(f"{path}?key=k", total_timeout=60))
        while upstream.key("k")["count"] == 0:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await call
        assert not isinstance(caught.value, HTTPClientError)


async def test_a_limit_of_the_callers_own_ends_as_the_callers_timeout(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url("/")) as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await client.get("/hang", total_timeout=60)
        assert not isinstance(caught.value, HTTPClientError)
        assert (await client.get("/ok")).status_code == 200
