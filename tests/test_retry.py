"""The retry step: what it repeats, how it waits, and what is left when it gives up."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import pickle
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from fastapi_http_client.auth import BearerAuth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.context import request_context
from fastapi_http_client.errors import (
    AuthenticationError,
    CircuitBreakerOpenError,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    HTTPTimeoutError,
    RateLimitError,
    RetryExhaustedError,
)
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.policies.retry import RetryPolicy
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.retry import RetryMiddleware
from tests.hostile.upstream import HostileUpstream
from tests.scripted import Script, Stream, client_of

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH")
UNSAFE = ("POST", "PATCH")
SAFE = tuple(method for method in METHODS if method not in UNSAFE)

NEVER_SENT = (httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.PoolTimeout(""), httpx.ProxyError("no"))
NO_COMPLETE_RESPONSE = (
    httpx.ReadError(""),
    httpx.ReadTimeout(""),
    httpx.WriteError(""),
    httpx.WriteTimeout(""),
    httpx.CloseError(""),
    httpx.RemoteProtocolError("truncated"),
)
STATUSES = (500, 502, 503, 504)


def too_many(retry_after: str) -> httpx.Response:
    return httpx.Response(429, headers={"Retry-After": retry_after})


def unavailable(retry_after: str) -> httpx.Response:
    return httpx.Response(503, headers={"Retry-After": retry_after})


def name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Exception) else str(value)


# -- what is repeated --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", NEVER_SENT, ids=name)
async def test_what_was_never_sent_is_repeated_with_any_method(method: str, error: Exception) -> None:
    script = Script(error, error, 200)
    response = await client_of(script).request(method, "/")
    assert (response.status_code, script.count) == (200, 3)


@pytest.mark.parametrize("method", SAFE)
@pytest.mark.parametrize("failure", [*NO_COMPLETE_RESPONSE, *STATUSES], ids=name)
async def test_a_request_that_may_have_run_is_repeated_when_its_method_is_idempotent(
    method: str, failure: Exception | int
) -> None:
    script = Script(failure, 200)
    response = await client_of(script).request(method, "/")
    assert (response.status_code, script.count) == (200, 2)


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("error", NO_COMPLETE_RESPONSE, ids=name)
async def test_post_and_patch_that_may_have_run_raise_their_own_error(method: str, error: Exception) -> None:
    script = Script(error, 200)
    with pytest.raises(HTTPRequestError) as caught:
        await client_of(script).request(method, "/", json={})
    assert script.count == 1
    assert not isinstance(caught.value, RetryExhaustedError)
    assert caught.value.__cause__ is error
    assert [(a.number, a.status, a.error) for a in caught.value.attempts] == [(1, None, caught.value)]


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("status", STATUSES)
async def test_post_and_patch_get_their_own_response(method: str, status: int) -> None:
    script = Script(status, 200)
    response = await client_of(script).request(method, "/", json={})
    assert (response.status_code, script.count) == (status, 1)
    assert [a.status for a in response.attempts] == [status]


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("failure", [*NO_COMPLETE_RESPONSE, *STATUSES], ids=name)
async def test_the_callers_idempotency_key_lets_post_and_patch_be_repeated(
    method: str, failure: Exception | int
) -> None:
    script = Script(failure, failure, 200)
    response = await client_of(script).request(method, "/", json={}, headers={"idempotency-key": "mine"})
    assert response.status_code == 200
    assert script.sent("Idempotency-Key") == ["mine"] * 3


@pytest.mark.parametrize("method", UNSAFE)
async def test_an_idempotency_key_is_made_once_for_a_call(method: str) -> None:
    script = Script(503, httpx.ReadError(""), 200, 200)
    client = client_of(script, idempotency_keys=True)
    await client.request(method, "/", json={})
    await client.request(method, "/", json={})
    first, second, third, next_call = script.sent("Idempotency-Key")
    assert first is not None
    assert first == second == third
    assert next_call not in (None, first)


async def test_the_callers_key_wins_over_a_made_one() -> None:
    script = Script(503, 200)
    await client_of(script, idempotency_keys=True).post("/", headers={"Idempotency-Key": "mine"})
    assert script.sent("Idempotency-Key") == ["mine", "mine"]


@pytest.mark.parametrize("method", SAFE)
async def test_idempotent_methods_get_no_key(method: str) -> None:
    script = Script(200)
    await client_of(script, idempotency_keys=True).request(method, "/")
    assert script.sent("Idempotency-Key") == [None]


async def test_a_made_key_is_the_same_after_a_redirect() -> None:
    script = Script(503, httpx.Response(307, headers={"Location": "/b"}), 503, 200)
    client = client_of(script, idempotency_keys=True, follow_redirects=True)
    assert (await client.post("/a", json={})).status_code == 200
    assert len(set(script.sent("Idempotency-Key"))) == 1


async def test_a_request_sent_a_second_time_is_another_call_with_another_key() -> None:
    script = Script(200)
    client = client_of(script, idempotency_keys=True)
    request = client.build_request("POST", "/", json={"a": 1})
    await client.send(request)
    await client.send(request)
    first, second = script.sent("Idempotency-Key")
    assert first != second
    assert script.bodies[0] == script.bodies[1] == b'{"a":1}'


async def test_the_callers_own_request_is_left_as_it_was() -> None:
    client = client_of(Script(503, 200), idempotency_keys=True)
    request = client.build_request("POST", "/", json={})
    before = dict(request.headers)
    await client.send(request)
    assert dict(request.headers) == before


@pytest.mark.parametrize("failure", [503, httpx.ReadError("")], ids=name)
async def test_retry_non_idempotent_lets_post_be_repeated(failure: Exception | int) -> None:
    script = Script(failure, 200)
    assert (await client_of(script, retry_non_idempotent=True).post("/", json={})).status_code == 200
    assert script.count == 2


@pytest.mark.parametrize("method", METHODS)
async def test_a_429_is_a_refusal_and_repeated_with_any_method(method: str) -> None:
    script = Script(429, 200)
    assert (await client_of(script).request(method, "/")).status_code == 200
    assert script.count == 2


@pytest.mark.parametrize("failure", [httpx.ConnectError(""), 429, 503], ids=name)
async def test_a_method_outside_of_retry_methods_is_never_repeated(failure: Exception | int) -> None:
    script = Script(failure, 200)
    client = client_of(script, retry_methods={"POST"})
    if isinstance(failure, int):
        assert (await client.get("/")).status_code == failure
    else:
        with pytest.raises(HTTPRequestError):
            await client.get("/")
    assert script.count == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 501, 505])
async def test_a_status_outside_of_retry_statuses_is_returned_at_once(status: int) -> None:
    script = Script(status, 200)
    response = await client_of(script).get("/")
    assert (response.status_code, script.count, len(response.attempts)) == (status, 1, 1)


async def test_a_status_of_the_users_choice_is_repeated() -> None:
    script = Script(404, 200)
    assert (await client_of(script, retry_statuses={404}).get("/")).status_code == 200


@pytest.mark.parametrize(
    "error",
    [httpx.LocalProtocolError("bad header"), httpx.UnsupportedProtocol("ftp"), ValueError("a bug"), TypeError("a bug")],
    ids=name,
)
async def test_a_fault_of_our_own_is_not_repeated(error: Exception) -> None:
    script = Script(error, 200)
    with pytest.raises(HTTPRequestError) as caught:
        await client_of(script).get("/")
    assert script.count == 1
    assert caught.value.__cause__ is error


async def test_a_body_that_cannot_be_decoded_is_not_repeated() -> None:
    stream = Stream(b"this is no gzip")
    script = Script(httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=stream), 200)
    with pytest.raises(HTTPRequestError):
        await client_of(script).get("/")
    assert script.count == 1
    assert stream.closed


async def test_a_body_that_breaks_off_is_repeated_for_get_and_not_for_post() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Stream(b"half", httpx.RemoteProtocolError("peer closed")))

    script = Script(broken, httpx.Response(200, text="whole"))
    assert (await client_of(script).get("/")).text == "whole"

    script = Script(broken, 200)
    with pytest.raises(HTTPRequestError):
        await client_of(script).post("/")
    assert script.count == 1


async def test_retrying_can_be_switched_off_for_a_client_or_a_call() -> None:
    for attempts, retry in ((1, True), (3, False)):
        script = Script(503)
        response = await client_of(script, retry_attempts=attempts).get("/", retry=retry)
        assert (response.status_code, script.count, len(response.attempts)) == (503, 1, 1)


async def test_a_call_without_retry_raises_the_error_itself() -> None:
    with pytest.raises(HTTPTimeoutError) as caught:
        await client_of(Script(httpx.ConnectTimeout(""))).get("/", retry=False)
    assert not isinstance(caught.value, RetryExhaustedError)


@pytest.mark.parametrize("most", [1, 2, 3, 7])
async def test_retry_attempts_counts_all_attempts(most: int) -> None:
    script = Script(httpx.ConnectError(""))
    with pytest.raises(HTTPClientError):
        await client_of(script, retry_attempts=most).get("/")
    assert script.count == most


# -- bodies ------------------------------------------------------------------------------------------------------


async def one_shot() -> AsyncIterator[bytes]:
    yield b"once"


BODIES: dict[str, dict[str, Any]] = {
    "content": {"content": b"bytes"},
    "text": {"content": "text"},
    "json": {"json": {"a": 1}},
    "form": {"data": {"a": "1"}},
    "multipart": {"files": {"f": ("n.txt", b"file", "text/plain")}},
    "nothing": {},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_every_attempt_sends_the_same_body(body: dict[str, Any]) -> None:
    script = Script(503, httpx.ReadError(""), 200)
    assert (await client_of(script).put("/", **body)).status_code == 200
    assert script.bodies[0] == script.bodies[1] == script.bodies[2]
    assert script.sent("content-type")[0] == script.sent("content-type")[2]


async def test_a_seekable_file_is_sent_from_its_start_by_every_attempt() -> None:
    script = Script(503, httpx.ReadError(""), 200)
    with io.BytesIO(b"contents of a file") as file:
        await client_of(script).put("/", files={"f": file}, data={"a": "1"})
    assert b"contents of a file" in script.bodies[0]
    assert script.bodies[0] == script.bodies[1] == script.bodies[2]


class Pipe(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return 0


@pytest.mark.parametrize("failure", [429, 503, httpx.ConnectError(""), httpx.ReadError("")], ids=name)
@pytest.mark.parametrize("body", ["iterator", "pipe"])
async def test_a_one_shot_body_is_sent_once_and_the_real_outcome_surfaces(failure: Exception | int, body: str) -> None:
    script = Script(failure, 200)
    client = client_of(script)
    options: dict[str, Any] = {"content": one_shot()} if body == "iterator" else {"files": {"f": Pipe()}}
    if isinstance(failure, int):
        assert (await client.put("/", **options)).status_code == failure
    else:
        with pytest.raises(HTTPRequestError) as caught:
            await client.put("/", **options)
        assert caught.value.__cause__ is failure
        assert not isinstance(caught.value, RetryExhaustedError)
    assert script.count == 1


async def test_a_one_shot_429_that_may_not_be_repeated_is_returned_though_its_wait_is_too_long() -> None:
    response = await client_of(Script(too_many("3600"))).post("/", content=one_shot())
    assert response.status_code == 429


async def test_a_sync_iterator_is_refused_and_not_repeated() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"a"

    script = Script(200)
    with pytest.raises(HTTPRequestError, match="iterator") as caught:
        await client_of(script).post("/", content=chunks())
    assert script.count == 0
    assert caught.value.may_have_run is False


# -- waiting -----------------------------------------------------------------------------------------------------


async def test_the_waits_grow_and_stand_in_the_ledger() -> None:
    clock = FakeClock()
    response = await client_of(Script(503, 500, 502, 200), clock=clock, retry_attempts=4).get("/")
    assert clock.sleeps == [1.0, 2.0, 4.0]
    assert [(a.number, a.status, a.error, a.delay) for a in response.attempts] == [
        (1, 503, None, 1.0),
        (2, 500, None, 2.0),
        (3, 502, None, 4.0),
        (4, 200, None, 0.0),
    ]
    assert all(a.elapsed == 0.0 for a in response.attempts)


async def test_chance_shifts_a_wait_by_at_most_a_tenth() -> None:
    clock = FakeClock()
    transport = httpx.MockTransport(Script(503, 503, 200))
    client = AsyncHTTPClient("https://api.test", transport=transport, clock=clock, random=iter([0.0, 0.999]).__next__)
    await client.get("/")
    assert clock.sleeps == pytest.approx([0.9, 2.2], abs=0.001)


async def test_the_ledger_says_how_long_each_attempt_took() -> None:
    clock = FakeClock()

    def slow(_: httpx.Request) -> httpx.Response:
        clock.advance(0.25)
        return httpx.Response(503)

    response = await client_of(Script(slow, slow, 200), clock=clock).get("/")
    assert [a.elapsed for a in response.attempts] == [0.25, 0.25, 0.0]


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 1.0), ("60", 60.0)])
async def test_retry_after_is_a_floor_under_the_wait(status: int, asked: str, waited: float) -> None:
    clock = FakeClock()
    answer = httpx.Response(status, headers={"Retry-After": asked})
    response = await client_of(Script(answer, 200), clock=clock).get("/")
    assert clock.sleeps == [waited]
    assert response.attempts[0].delay == waited


async def test_retry_after_may_be_a_date_on_the_wall_clock() -> None:
    clock = FakeClock(wall=1_700_000_000.0)
    await client_of(Script(too_many(formatdate(1_700_000_042, usegmt=True)), 200), clock=clock).get("/")
    assert clock.sleeps == [42.0]


@pytest.mark.parametrize(
    "garbage", ["", "-5", "+5", "1_0", "5s", "1.5", "soon", "1, 2", "Mon, 99 Foo 2024 99:99:99 GMT", "\xb2"]
)
async def test_garbage_in_retry_after_is_ignored(garbage: str) -> None:
    clock = FakeClock()
    answer = httpx.Response(429, headers=[(b"Retry-After", garbage.encode("latin-1"))])
    assert (await client_of(Script(answer, 200), clock=clock).get("/")).status_code == 200
    assert clock.sleeps == [1.0]


async def test_a_date_that_is_over_asks_for_no_more_than_the_usual_wait() -> None:
    clock = FakeClock(wall=1_700_000_000.0)
    await client_of(Script(too_many("Thu, 01 Jan 1970 00:00:00 GMT"), 200), clock=clock).get("/")
    assert clock.sleeps == [1.0]


@pytest.mark.parametrize("asked", ["61", "3600", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_429_that_asks_for_too_long_a_wait_raises_at_once(asked: str) -> None:
    clock, script = FakeClock(), Script(too_many(asked), 200)
    with pytest.raises(RateLimitError) as caught:
        await client_of(script, clock=clock).get("/")
    error = caught.value
    assert script.count == 1
    assert clock.sleeps == []
    assert not isinstance(error, RetryExhaustedError)
    assert error.retry_after is not None
    assert error.retry_after > 60.0
    assert "too long" in str(error)
    assert "attempt 2" not in str(error)
    assert error.status_code == error.response.status_code == 429
    assert [a.status for a in error.attempts] == [429]


@pytest.mark.parametrize("method", METHODS)
async def test_too_long_a_wait_after_another_status_returns_the_response(method: str) -> None:
    clock, script = FakeClock(), Script(unavailable("61"), 200)
    response = await client_of(script, clock=clock).request(method, "/")
    assert (response.status_code, script.count, clock.sleeps) == (503, 1, [])


async def test_retry_max_delay_is_the_measure_of_too_long() -> None:
    clock = FakeClock()
    client = client_of(Script(too_many("5"), too_many("6"), 200), clock=clock, retry_max_delay=5.0)
    with pytest.raises(RateLimitError) as caught:
        await client.get("/")
    assert clock.sleeps == [5.0]
    assert caught.value.retry_after == 6.0


async def test_a_wait_past_the_deadline_is_not_begun() -> None:
    clock, script = FakeClock(), Script(too_many("30"), 200)
    with pytest.raises(RateLimitError) as caught:
        await client_of(script, clock=clock, total_timeout=20.0).get("/")
    assert (caught.value.retry_after, clock.sleeps, script.count) == (30.0, [], 1)


async def test_a_back_off_past_the_deadline_is_not_begun_either() -> None:
    clock, script = FakeClock(), Script(503)
    response = await client_of(script, clock=clock, retry_attempts=10).get("/", total_timeout=5.0)
    assert (response.status_code, clock.sleeps, script.count) == (503, [1.0, 2.0], 3)

    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(HTTPRequestError) as caught:
        await client_of(script, retry_attempts=10).get("/", total_timeout=0.5)
    assert not isinstance(caught.value, RetryExhaustedError)
    assert script.count == 1


async def test_the_deadline_of_the_inbound_request_counts_too() -> None:
    clock = FakeClock()
    with request_context(timeout=2.0):
        response = await client_of(Script(unavailable("5"), 200), clock=clock).get("/")
    assert (response.status_code, clock.sleeps) == (503, [])


async def test_cancelling_during_a_wait_ends_the_call_and_sends_nothing_more() -> None:
    clock, script = FakeClock(autojump=False), Script(503)
    call = asyncio.create_task(client_of(script, clock=clock).get("/"))
    while not clock.sleeps:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    clock.advance(100)
    await asyncio.sleep(0)
    assert script.count == 1


# -- the end of it -----------------------------------------------------------------------------------------------


async def test_exhausted_on_a_status() -> None:
    script = Script(503, 502, httpx.Response(500, text="the last"))
    with pytest.raises(RetryExhaustedError) as caught:
        await client_of(script).get("/")
    error = caught.value
    assert isinstance(error, httpx.HTTPError)
    assert not isinstance(error, RateLimitError | httpx.TimeoutException)
    assert error.last_response is not None
    assert (error.last_response.status_code, error.last_response.text) == (500, "the last")
    assert [a.status for a in error.attempts] == [503, 502, 500]
    assert isinstance(error.__cause__, HTTPResponseError)
    assert error.__cause__ is error.last_error
    assert error.request.url == "https://api.test/"


async def test_exhausted_on_an_error() -> None:
    cause = httpx.ConnectError("the last")
    with pytest.raises(RetryExhaustedError) as caught:
        await client_of(Script(503, 503, cause)).get("/")
    error = caught.value
    assert error.last_response is None
    assert isinstance(error.last_error, HTTPRequestError)
    assert error.__cause__ is error.last_error
    assert error.last_error.__cause__ is cause
    assert [isinstance(a.error, HTTPRequestError) for a in error.attempts] == [False, False, True]


@pytest.mark.parametrize("cause", [httpx.ConnectTimeout(""), httpx.ReadTimeout(""), httpx.PoolTimeout("")], ids=name)
async def test_exhausted_on_a_timeout_is_also_a_timeout(cause: Exception) -> None:
    with pytest.raises(RetryExhaustedError) as caught:
        await client_of(Script(cause)).get("/")
    assert isinstance(caught.value, httpx.TimeoutException)
    assert isinstance(caught.value.last_error, HTTPTimeoutError)


@pytest.mark.parametrize(("asked", "seconds"), [("3", 3.0), ("3600", 3600.0), ("soon", None)])
async def test_exhausted_on_a_429_is_also_a_rate_limit_error(asked: str, seconds: float | None) -> None:
    with pytest.raises(RateLimitError) as caught:
        await client_of(Script(429, 429, too_many(asked))).get("/")
    error = caught.value
    assert isinstance(error, RetryExhaustedError)
    assert isinstance(error, HTTPResponseError | httpx.HTTPStatusError)
    assert (error.status_code, error.retry_after) == (429, seconds)
    assert error.response is error.last_response
    assert error.message == str(error)


async def test_exhausted_says_client_method_url_attempts_time_and_cause() -> None:
    script = Script(503)
    with pytest.raises(RetryExhaustedError) as caught:
        await client_of(script, options={"name": "github"}).get("/users", params={"token": "SECRET"})
    text = str(caught.value)
    for part in ("github", "GET", "https://api.test/users?token=", "all 3 attempts", " in 3.00 s", "503"):
        assert part in text
    assert "SECRET" not in text
    assert "attempt 4" not in text
    assert caught.value.client == "github"


async def test_a_last_answer_that_is_final_is_returned_with_the_whole_ledger() -> None:
    response = await client_of(Script(503, httpx.ReadError(""), 404)).get("/")
    assert response.status_code == 404
    assert [(a.status, isinstance(a.error, HTTPRequestError)) for a in response.attempts] == [
        (503, False),
        (None, True),
        (404, False),
    ]


async def test_every_response_that_is_given_up_is_closed_before_the_wait() -> None:
    streams = [Stream(b"a"), Stream(b"b"), Stream(b"c")]
    clock = FakeClock()
    closed_at: list[list[bool]] = []
    sleep = clock.sleep

    async def watched(seconds: float) -> None:
        closed_at.append([stream.closed for stream in streams])
        await sleep(seconds)

    clock.sleep = watched  # type: ignore[method-assign]
    script = Script(
        *(httpx.Response(503, stream=stream) for stream in streams[:2]), httpx.Response(200, stream=streams[2])
    )
    async with client_of(script, clock=clock).stream("GET", "/") as response:
        assert [stream.closed for stream in streams] == [True, True, False]
        assert await response.aread() == b"c"
    assert closed_at == [[True, False, False], [True, True, False]]


async def test_the_streams_of_a_call_that_fails_for_good_are_closed() -> None:
    streams = [Stream(b"a"), Stream(b"b"), Stream(b"c")]
    client = client_of(Script(*(httpx.Response(503, stream=stream) for stream in streams)))
    with pytest.raises(RetryExhaustedError):
        async with client.stream("GET", "/"):
            pass
    assert all(stream.closed for stream in streams)


async def test_a_short_body_of_the_last_response_of_a_streamed_call_can_be_read(upstream: HostileUpstream) -> None:
    config = ClientConfig(retry_attempts=2, retry_backoff_factor=0)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        with pytest.raises(RetryExhaustedError) as exhausted:
            async with client.stream("GET", "/status/503?body=too+busy"):
                raise AssertionError("a failed call has no response")
        assert exhausted.value.last_response is not None
        assert exhausted.value.last_response.text == "too busy"
        with pytest.raises(RateLimitError) as limited:
            async with client.stream("GET", "/status/429?retry_after=3600&body=come+back+tomorrow"):
                raise AssertionError("a failed call has no response")
        assert limited.value.response is not None
        assert limited.value.response.text == "come back tomorrow"


@pytest.mark.parametrize("length", ["70000", "9" * 30, "x", None])
async def test_a_long_one_is_closed_unread(length: str | None) -> None:
    stream = Stream(b"a", AssertionError("this was read"))
    headers = {} if length is None else {"Content-Length": length}
    client = client_of(Script(*(httpx.Response(503, headers=headers, stream=stream) for _ in range(3))))
    with pytest.raises(RetryExhaustedError) as caught:
        async with client.stream("GET", "/"):
            raise AssertionError("a failed call has no response")
    assert caught.value.last_response is not None
    with pytest.raises(httpx.ResponseNotRead):
        _ = caught.value.last_response.text
    assert stream.closed


async def test_one_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Stream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    monkeypatch.setattr("fastapi_http_client.retry.SHORT_TIME", 0.01)
    stream = Stuck()
    client = client_of(Script(*(httpx.Response(503, headers={"Content-Length": "1"}, stream=stream) for _ in range(3))))
    with pytest.raises(RetryExhaustedError):
        async with client.stream("GET", "/"):
            raise AssertionError("a failed call has no response")
    assert stream.closed


async def test_a_streamed_429_that_asks_for_too_long_is_closed() -> None:
    stream = Stream(b"a")
    client = client_of(Script(httpx.Response(429, headers={"Retry-After": "3600"}, stream=stream)))
    with pytest.raises(RateLimitError):
        async with client.stream("GET", "/"):
            pass
    assert stream.closed


async def test_an_error_in_the_middle_of_a_stream_is_ours_and_not_repeated() -> None:
    script = Script(httpx.Response(200, stream=Stream(b"half", httpx.ReadError("gone"))))
    with pytest.raises(HTTPRequestError):
        async with client_of(script).stream("GET", "/") as response:
            await response.aread()
    assert script.count == 1


# -- the budget --------------------------------------------------------------------------------------------------


async def test_an_empty_budget_lets_the_real_outcome_through() -> None:
    script = Script(503)
    client = client_of(script, retry_budget=3)
    with pytest.raises(RetryExhaustedError):
        await client.get("/")  # two retries
    assert (await client.get("/")).status_code == 503  # one more, and then none
    assert (await client.get("/")).status_code == 503
    assert script.count == 3 + 2 + 1


async def test_an_empty_budget_lets_the_real_error_through() -> None:
    with pytest.raises(HTTPRequestError) as caught:
        await client_of(Script(httpx.ConnectError("")), retry_budget=0).get("/")
    assert not isinstance(caught.value, RetryExhaustedError)
    assert len(caught.value.attempts) == 1


async def test_an_outage_costs_little_more_than_the_calls_and_the_budget() -> None:
    script = Script(503)
    client = client_of(script)
    for _ in range(300):
        with contextlib.suppress(RetryExhaustedError):
            await client.get("/")
    assert script.count == 300 + 100


async def test_ten_successes_earn_one_retry() -> None:
    script = Script(503, 200, *[200] * 8, 503, 503, 200)
    client = client_of(script, retry_budget=1)
    for _ in range(9):
        await client.get("/")
    assert (await client.get("/")).status_code == 503
    assert script.count == 11
    script = Script(503, 200, *[200] * 9, 503, 200)
    client = client_of(script, retry_budget=1)
    for _ in range(10):
        await client.get("/")
    assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_is_no_success_earns_nothing(status: int) -> None:
    client = client_of(Script(status), retry_budget=5, retry_statuses={418})
    client.retry_budget.spend()
    for _ in range(20):
        await client.get("/")
    assert client.retry_budget.tokens == 4.0


async def test_an_answer_that_is_the_callers_fault_is_a_success_of_the_upstream() -> None:
    client = client_of(Script(404), retry_budget=5)
    client.retry_budget.spend()
    await client.get("/")
    assert client.retry_budget.tokens == pytest.approx(4.1)


async def test_a_client_and_its_views_share_the_budget() -> None:
    script = Script(503)
    client = client_of(script, retry_budget=2)
    with pytest.raises(RetryExhaustedError):
        await client.with_options(retry_max_delay=5).get("/")
    assert (await client.get("/")).status_code == 503
    assert script.count == 4


# -- with the others ---------------------------------------------------------------------------------------------


async def test_an_open_circuit_ends_retrying_at_once() -> None:
    script = Script(503)
    client = client_of(script, retry_attempts=5, enable_circuit_breaker=True, circuit_breaker_failure_threshold=2)
    with pytest.raises(CircuitBreakerOpenError) as caught:
        await client.get("/")
    assert script.count == 2
    assert [a.status for a in caught.value.attempts] == [503, 503]
    assert caught.value.recovery_timeout == pytest.approx(58.0)  # two seconds of waiting have passed


async def test_a_refusal_by_our_own_limiter_is_not_repeated() -> None:
    clock = FakeClock()
    limiter = TokenBucketRateLimiter(rate=0.1, burst=1)
    client = client_of(Script(200), clock=clock, rate_limit_max_wait=1.0, options={"rate_limiter": limiter})
    await client.get("/")
    with pytest.raises(RateLimitError) as caught:
        await client.get("/")
    assert caught.value.response is None
    assert (caught.value.status_code, caught.value.retry_after) == (429, pytest.approx(10.0))
    assert caught.value.attempts == ()
    assert clock.sleeps == []


async def test_every_attempt_takes_a_token_of_the_limiter() -> None:
    clock = FakeClock()
    limiter = TokenBucketRateLimiter(rate=1.0, burst=1)
    client = client_of(Script(503, 503, 200), clock=clock, retry_backoff_factor=0, options={"rate_limiter": limiter})
    await client.get("/")
    assert clock.elapsed == pytest.approx(2.0)


async def test_a_token_that_cannot_be_had_is_not_repeated() -> None:
    asked = []

    def token() -> str:
        asked.append(1)
        raise OSError("no vault")

    script = Script(200)
    with pytest.raises(AuthenticationError):
        await client_of(script, options={"auth": BearerAuth(token)}).get("/")
    assert (len(asked), script.count) == (1, 0)


async def test_a_client_that_shuts_down_repeats_nothing() -> None:
    clock = FakeClock()
    client = client_of(Script(503), clock=clock)

    def drain_first(_: httpx.Request) -> httpx.Response:
        client.lifecycle._draining = True
        return httpx.Response(503)

    client = client_of(Script(drain_first, 200), clock=clock)
    assert (await client.get("/")).status_code == 503
    assert clock.sleeps == []


# -- its place ---------------------------------------------------------------------------------------------------


class Counting(Middleware):
    def __init__(self) -> None:
        self.count = 0

    async def process_request(self, request: httpx.Request, client: AsyncHTTPClient) -> httpx.Request:
        self.count += 1
        return request


@pytest.mark.parametrize("attempts", [1, 3])
async def test_every_client_has_exactly_one_retry_step(attempts: int) -> None:
    for middlewares in ([], [RetryMiddleware()], [Counting(), RetryMiddleware()]):
        client = client_of(Script(200), retry_attempts=attempts, options={"middlewares": middlewares})
        assert client.pipeline.count("retry") == 1


async def test_a_middleware_before_a_given_retry_step_runs_once_and_one_behind_it_each_time() -> None:
    before, behind = Counting(), Counting()
    script = Script(503, 503, 200)
    client = client_of(script, options={"middlewares": [before, RetryMiddleware(), behind]})
    await client.get("/")
    assert (before.count, behind.count, script.count) == (1, 3, 3)


async def test_a_given_retry_step_keeps_the_options_of_the_client() -> None:
    clock, script = FakeClock(), Script(503)
    client = client_of(
        script, clock=clock, retry_attempts=4, retry_backoff_factor=3, options={"middlewares": [RetryMiddleware()]}
    )
    with pytest.raises(RetryExhaustedError):
        await client.get("/")
    assert clock.sleeps == [3.0, 6.0, 12.0]


async def test_a_given_retry_step_with_a_policy_keeps_to_that() -> None:
    clock, script = FakeClock(), Script(503)
    policy = RetryPolicy.of(ClientConfig(retry_attempts=2, retry_backoff_factor=7))
    client = client_of(script, clock=clock, options={"middlewares": [RetryMiddleware(policy)]})
    with pytest.raises(RetryExhaustedError):
        await client.get("/")
    assert clock.sleeps == [7.0]


async def test_a_view_has_retry_options_of_its_own() -> None:
    script = Script(503)
    client = client_of(script)
    with pytest.raises(RetryExhaustedError):
        await client.with_options(retry_attempts=2).get("/")
    assert script.count == 2
    assert (await client.with_options(retry_attempts=1).get("/")).status_code == 503


# -- what is said of it ------------------------------------------------------------------------------------------


async def test_each_repetition_is_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fastapi_http_client")
    client = client_of(Script(503, httpx.ReadError(""), 200), options={"name": "github"})
    await client.get("/users", params={"api_key": "SECRET"})
    first, second = (record.getMessage() for record in caplog.records)
    for part in ("github", "GET", "/users", "attempt 1", "503", "1.00 s"):
        assert part in first
    assert "attempt 2" not in first
    assert "attempt 2 failed with ReadError, trying again in 2.00 s" in second
    assert "SECRET" not in caplog.text


# -- on the wire -------------------------------------------------------------------------------------------------


def on_the_wire(upstream: HostileUpstream, **config: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(upstream.url("/"), config=ClientConfig(**config), clock=FakeClock(), random=lambda: 0.5)


@pytest.mark.parametrize("method", METHODS)
async def test_a_refused_connection_is_tried_again_and_then_exhausted(upstream: HostileUpstream, method: str) -> None:
    async with AsyncHTTPClient(upstream.url("/", listener="refused"), clock=FakeClock(), random=lambda: 0.5) as client:
        with pytest.raises(RetryExhaustedError) as caught:
            await client.request(method, "/")
    assert len(caught.value.attempts) == 3


@pytest.mark.parametrize("fault", ["reset", "close", "garbage", "truncate", "reset-mid-body", "status"])
async def test_a_get_outlasts_two_faults(upstream: HostileUpstream, fault: str) -> None:
    async with on_the_wire(upstream) as client:
        response = await client.get(f"/flaky?fail=2&key=k&mode={fault}")
    assert response.json_data == {"ok": True, "attempt": 3}
    assert upstream.key("k")["count"] == 3


@pytest.mark.parametrize("then", ["reset", "close", "503", "truncate"])
async def test_a_post_never_takes_effect_twice(upstream: HostileUpstream, then: str) -> None:
    async with on_the_wire(upstream) as client:
        with contextlib.suppress(HTTPRequestError):
            await client.post(f"/effect/plain?then={then}", json={"amount": 1})
    assert upstream.stats()["ledgers"]["plain"] | {"by_idempotency_key": {}} == {
        "attempts": 1,
        "effects": 1,
        "without_key": 1,
        "by_idempotency_key": {},
    }


@pytest.mark.parametrize("then", ["reset", "close", "503", "truncate"])
@pytest.mark.parametrize("commit", ["before", "after"])
async def test_a_post_with_a_key_takes_effect_exactly_once(upstream: HostileUpstream, then: str, commit: str) -> None:
    async with on_the_wire(upstream, idempotency_keys=True) as client:
        response = await client.post(f"/effect/keyed?then={then}&commit={commit}&fail=2", json={"amount": 1})
    assert response.status_code == 200
    ledger = upstream.stats()["ledgers"]["keyed"]
    assert (ledger["attempts"], ledger["effects"], len(ledger["by_idempotency_key"])) == (3, 1, 1)


@pytest.mark.parametrize(
    "value",
    [
        *("zero", "negative", "float", "nan", "inf", "exponent", "empty", "space", "garbage", "list", "hex", "plus"),
        *("underscore", "arabic", "date-past", "date-1970", "date-bad", "date-iso"),
    ],
)
async def test_an_absurd_retry_after_from_the_wire_means_the_usual_wait(upstream: HostileUpstream, value: str) -> None:
    clock = FakeClock(wall=SYSTEM_CLOCK.wall())
    async with AsyncHTTPClient(upstream.url("/"), clock=clock, random=lambda: 0.5) as client:
        assert (await client.get(f"/retry-after/{value}")).status_code == 200
    assert clock.sleeps == [1.0]


@pytest.mark.parametrize("value", ["huge", "digits", "date-hour", "date-9999"])
async def test_an_endless_retry_after_from_the_wire_raises(upstream: HostileUpstream, value: str) -> None:
    clock = FakeClock(wall=SYSTEM_CLOCK.wall())
    async with AsyncHTTPClient(upstream.url("/"), clock=clock, random=lambda: 0.5) as client:
        with pytest.raises(RateLimitError) as caught:
            await client.get(f"/retry-after/{value}")
    assert clock.sleeps == []
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 3000


async def test_streams_that_are_given_up_take_no_connection_with_them(upstream: HostileUpstream) -> None:
    async with on_the_wire(upstream, max_connections=1, retry_attempts=5) as client:
        async with client.stream("GET", "/flaky?fail=4&key=k") as response:
            assert response.status_code == 200
        assert (await client.get("/ok")).status_code == 200


async def test_a_connection_that_died_while_idle_costs_a_get_nothing(upstream: HostileUpstream) -> None:
    async with on_the_wire(upstream) as client:
        await client.get("/trap?mode=close")
        response = await client.get("/count/g")
    assert response.status_code == 200
    assert isinstance(response, HTTPResponse)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/reset", "the last with "),
        ("/hang", "(received nothing within 0.05 s)"),
        ("/status/503", "the last with status 503"),
    ],
)
async def test_an_exhausted_call_says_how_the_last_attempt_failed(
    upstream: HostileUpstream, path: str, text: str
) -> None:
    config = ClientConfig(retry_attempts=2, retry_backoff_factor=0, timeout=0.05)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        with pytest.raises(RetryExhaustedError) as caught:
            await client.get(path)
    assert text in str(caught.value)
    assert path != "/reset" or "Error (" in str(caught.value)


def test_the_class_of_an_exhausted_429_is_called_as_documented() -> None:
    error = RetryExhaustedError.from_last(
        "m", last_response=httpx.Response(429), last_error=None, retry_after=3.0, client="a"
    )
    assert type(error).__name__ == "RetryExhaustedError"
    assert isinstance(error, RateLimitError)
    assert (error.status_code, error.retry_after, error.client) == (429, 3.0, "a")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, RateLimitError)
    assert (again.status_code, again.retry_after, str(again)) == (429, 3.0, "m")


async def test_the_total_timeout_of_a_call_lengthens_an_attempt_that_only_followed_the_clients(
    upstream: HostileUpstream,
) -> None:
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(total_timeout=0.05)) as client:
        assert (await client.get("/slow?delay=0.1", total_timeout=5.0)).status_code == 200
        with pytest.raises(HTTPTimeoutError, match=r"within 0\.02 s|0\.0. s and"):
            await client.get("/hang", total_timeout=0.02)
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(total_timeout=0.2, timeout=0.05)) as client:
        with pytest.raises(HTTPTimeoutError):
            await client.get("/hang", total_timeout=5.0, retry=False)
