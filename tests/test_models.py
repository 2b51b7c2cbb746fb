"""Responses: httpx's own, with the parsed body, the ledger and our errors."""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import dataclass
from email.utils import formatdate
from typing import Annotated, Any, NotRequired

import httpx
import pytest
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from fastapi_http_client.auth import APIKeyAuth
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.errors import HTTPRequestError, HTTPResponseError, RateLimitError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.models import HTTPRequest, HTTPResponse, as_http_response, copy_request
from tests.hostile.tables import JSON_BODIES
from tests.scripted import Script, Stream, client_of

# -- what they are -----------------------------------------------------------------------------------------------


async def test_a_response_is_an_httpx_response_and_a_request_is_httpxs() -> None:
    response = await client_of(Script()).get("/")
    assert isinstance(response, HTTPResponse)
    assert isinstance(response, httpx.Response)
    assert HTTPRequest is httpx.Request


async def test_a_response_of_a_class_of_its_own_keeps_it() -> None:
    class Special(httpx.Response):
        special = True

    first, second = as_http_response(Special(200)), as_http_response(Special(200))
    assert isinstance(first, Special)
    assert isinstance(first, HTTPResponse)
    assert type(first) is type(second)
    assert as_http_response(first) is first


async def test_everything_httpx_says_of_a_response_is_there() -> None:
    reply = httpx.Response(201, headers=[("X-A", "1"), ("X-A", "2"), ("Set-Cookie", "a=b")], json={"a": 1})
    response = await client_of(Script(reply)).get("/users", params={"q": "1"})
    assert (response.status_code, response.reason_phrase, response.http_version) == (201, "Created", "HTTP/1.1")
    assert response.headers.get_list("x-a") == ["1", "2"]
    assert response.cookies["a"] == "b"
    assert response.url == "https://api.test/users?q=1"
    assert (response.is_success, response.is_error, response.is_closed) == (True, False, True)
    assert response.elapsed.total_seconds() >= 0
    assert (response.text, response.content, response.json()) == ('{"a":1}', b'{"a":1}', {"a": 1})
    assert repr(response) == "<Response [201 Created]>"


async def test_a_mocks_response_that_is_read_already_is_not_read_again() -> None:
    """A body that raises when it is read twice."""
    reply = httpx.Response(200, stream=Stream(b"once"))
    await reply.aread()
    response = await client_of(Script(reply)).get("/")
    assert response.content == b"once"
    async with client_of(Script(httpx.Response(200, json=[1, 2]))).stream("GET", "/") as streamed:
        assert b"".join([chunk async for chunk in streamed.aiter_bytes()]) == b"[1,2]"


async def test_a_response_can_be_pickled() -> None:
    response = await client_of(Script(httpx.Response(200, json={"a": 1})), options={"name": "api"}).get("/")
    copy = pickle.loads(pickle.dumps(response))
    assert isinstance(copy, HTTPResponse)
    assert (copy.status_code, copy.json_data, copy.attempts) == (200, {"a": 1}, response.attempts)


# -- the body ----------------------------------------------------------------------------------------------------


def test_json_data_is_parsed_once() -> None:
    response = HTTPResponse(200, json={"a": [1]})
    assert response.json_data == {"a": [1]}
    assert response.json_data is response.json_data


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}])
def test_json_data_may_be_anything(value: Any) -> None:
    response = HTTPResponse(200, content=json.dumps(value))
    assert response.json_data == value
    assert response.json_data == value


@pytest.mark.parametrize("name", ["invalid", "empty", "html", "deep", "deep-object", "latin1", "trailing", "lines"])
def test_what_is_no_json_is_a_value_error(name: str) -> None:
    response = HTTPResponse(200, content=JSON_BODIES[name])
    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011  # the kinds are Python's own
            _ = response.json_data
        with pytest.raises(ValueError):  # noqa: PT011
            response.json()


def outcome_of_json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        return type(error), str(error)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", "[ü]", '{"a": "ü"}', '["\\ud800"]', "[1] ", " [1]", "1", '"\ud800"', ""]
)
def test_json_is_read_in_every_coding_as_httpx_reads_it(text: str, coding: str) -> None:
    body = text.encode(coding, "surrogatepass")
    for part in (body, body[:1], body[:2], body[:3]):
        assert outcome_of_json(HTTPResponse(200, content=part)) == outcome_of_json(httpx.Response(200, content=part))


@pytest.mark.parametrize(
    ("name", "value"), [("bom", {"a": 1}), ("utf16", {"a": "b"}), ("scalar", "just a string"), ("null", None)]
)
def test_json_is_read_in_every_encoding_of_unicode(name: str, value: Any) -> None:
    assert HTTPResponse(200, content=JSON_BODIES[name]).json_data == value


def test_json_takes_the_arguments_of_json_loads() -> None:
    assert HTTPResponse(200, content="[1.5]").json(parse_float=str) == ["1.5"]


def test_json_data_of_a_stream_that_was_not_read_is_httpxs_error() -> None:
    with pytest.raises(httpx.ResponseNotRead):
        _ = HTTPResponse(200, stream=Stream(b"{}")).json_data


class User(BaseModel):
    id: int
    name: str = "nobody"


@dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    a: int
    b: NotRequired[int]


@pytest.mark.parametrize(
    ("type_", "body", "value"),
    [
        (User, {"id": 1}, User(id=1)),
        (list[User], [{"id": 1}, {"id": "2"}], [User(id=1), User(id=2)]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Point, {"x": 1, "y": 2}, Point(1, 2)),
        (Row, {"a": 1}, {"a": 1}),
        (int | None, None, None),
        (Annotated[int, Field(gt=0)], 5, 5),
        (Annotated[list[int], {"un": "hashable"}], [1], [1]),
    ],
)
def test_a_body_is_validated_as_any_type(type_: Any, body: Any, value: Any) -> None:
    response = HTTPResponse(200, content=json.dumps(body))
    assert response.parse(type_) == value
    assert response.parse(type_) == value


@pytest.mark.parametrize("content", [b'{"id": "x"}', b"[]", b"", b"<html>"])
def test_a_body_that_does_not_fit_is_a_validation_error(content: bytes) -> None:
    with pytest.raises(ValidationError):
        HTTPResponse(200, content=content).parse(User)


# -- its size ----------------------------------------------------------------------------------------------------


def zipped(size: int) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Stream(gzip.compress(b"0" * size)))


@pytest.mark.parametrize("size", [0, 1, 1000])
async def test_a_body_of_the_most_bytes_is_read(size: int) -> None:
    for reply in (
        httpx.Response(200, content=b"0" * size),
        httpx.Response(200, stream=Stream(b"0" * size)),
        zipped(size),
    ):
        response = await client_of(Script(reply), max_response_bytes=1000).get("/")
        assert len(response.content) == size


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_a_body_of_more_bytes_is_an_error_and_not_tried_again(status: int) -> None:
    stream = Stream(b"0" * 600, b"0" * 600, AssertionError("read on"))
    for reply in (httpx.Response(status, stream=stream), httpx.Response(status, content=b"0" * 1001), zipped(1001)):
        script = Script(reply)
        client = client_of(script, max_response_bytes=1000, options={"name": "github"})
        with pytest.raises(HTTPRequestError, match="max_response_bytes") as caught:
            await client.get("/users")
        assert script.count == 1
        assert len(caught.value.attempts) == 1
        assert "github: GET https://api.test/users" in str(caught.value)
        assert caught.value.client == "github"
    assert stream.closed


async def test_the_limit_holds_for_streams() -> None:
    for reply in (httpx.Response(200, stream=Stream(b"0" * 600, b"0" * 600)), zipped(100_000)):
        client = client_of(Script(reply), max_response_bytes=1000)
        received = []
        async with client.stream("GET", "/") as response:
            with pytest.raises(HTTPRequestError, match="max_response_bytes"):
                received.extend([chunk async for chunk in response.aiter_bytes(100)])
            assert response.is_closed
        assert len(b"".join(received)) <= 1000
        assert client.lifecycle.in_flight == 0


async def test_the_limit_holds_for_a_raw_body_that_needs_no_decoding() -> None:
    client = client_of(Script(httpx.Response(200, stream=Stream(b"0" * 600, b"0" * 600))), max_response_bytes=1000)
    async with client.stream("GET", "/") as response:
        with pytest.raises(HTTPRequestError, match="max_response_bytes"):
            _ = [chunk async for chunk in response.aiter_raw()]
        assert response.is_closed


async def test_without_a_limit_there_is_none() -> None:
    assert len((await client_of(Script(zipped(5_000_000))).get("/")).content) == 5_000_000


# -- the status --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [100, 200, 204, 299, 301, 302, 304, 399])
def test_below_400_the_response_is_returned(status: int) -> None:
    response = HTTPResponse(status)
    assert response.raise_for_status() is response


@pytest.mark.parametrize("status", [400, 401, 404, 418, 499, 500, 503, 599])
async def test_4xx_and_5xx_raise_our_error(status: int) -> None:
    script = Script(httpx.Response(status, json={"detail": "x"}))
    client = client_of(script, retry_attempts=1, options={"name": "github"})
    response = await client.get("/users", params={"token": "SECRET"})
    with pytest.raises(HTTPResponseError) as caught:
        response.raise_for_status()
    error = caught.value
    assert isinstance(error, httpx.HTTPStatusError)
    assert not isinstance(error, RateLimitError)
    assert error.status_code == status
    assert error.response is response
    assert error.response.json() == {"detail": "x"}
    assert error.request.url.path == "/users"
    assert error.attempts is response.attempts
    assert error.client == "github"
    assert error.message == str(error)
    for part in ("github", "GET", "https://api.test/users?token=", "attempt 1", "after 0.00 s", str(status)):
        assert part in error.message
    assert "SECRET" not in error.message


async def test_the_error_says_how_long_the_whole_call_took() -> None:
    response = await client_of(Script(503, 503, 404)).get("/")
    with pytest.raises(HTTPResponseError, match=r"attempt 3, after 3\.00 s: 404 Not Found"):
        response.raise_for_status()


async def test_a_429_is_a_rate_limit_error() -> None:
    clock = FakeClock(wall=1_700_000_000.0)
    for value, seconds in (("7", 7.0), (formatdate(1_700_000_030, usegmt=True), 30.0), ("soon", None), (None, None)):
        reply = httpx.Response(429, headers={} if value is None else {"Retry-After": value})
        response = await client_of(Script(reply), retry_attempts=1, clock=clock).get("/")
        with pytest.raises(RateLimitError) as caught:
            response.raise_for_status()
        assert caught.value.retry_after == seconds
        assert (caught.value.status_code, caught.value.response) == (429, response)


def test_a_response_made_by_hand_raises_too() -> None:
    with pytest.raises(HTTPResponseError, match="404") as caught:
        HTTPResponse(404).raise_for_status()
    assert (caught.value.request, caught.value.client, caught.value.attempts) == (None, None, ())
    with pytest.raises(RateLimitError) as limited:
        HTTPResponse(
            429, headers={"Retry-After": formatdate(SYSTEM_CLOCK.wall() + 100, usegmt=True)}
        ).raise_for_status()
    assert limited.value.retry_after == pytest.approx(100, abs=2)


def test_a_hostile_reason_phrase_cannot_forge_a_line() -> None:
    response = HTTPResponse(500, extensions={"reason_phrase": b"Oops\r\nforged\x1b[2J" + b"x" * 1000})
    with pytest.raises(HTTPResponseError) as caught:
        response.raise_for_status()
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_an_own_query_key_is_masked_though_the_caller_put_it_there() -> None:
    client = client_of(Script(404), options={"auth": APIKeyAuth("key", query_param_name="odd")})
    response = await client.get("/", params={"odd": "SECRET"})
    with pytest.raises(HTTPResponseError) as caught:
        response.raise_for_status()
    assert "SECRET" not in str(caught.value)


# -- copies ------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_request_shares_the_body_and_nothing_else() -> None:
    request = httpx.Request("POST", "https://api.test/", json={"a": 1}, extensions={"timeout": {}})
    copy = copy_request(request)
    copy.headers["X-New"] = "1"
    copy.extensions["new"] = 1
    copy.url = httpx.URL("https://api.test/other")
    assert copy.stream is request.stream
    assert "x-new" not in request.headers
    assert "new" not in request.extensions
    assert request.url == "https://api.test/"
    assert json.loads(copy.read()) == {"a": 1}


def test_the_repr_of_a_copy_holds_no_credential() -> None:
    copy = copy_request(httpx.Request("GET", "https://u:SECRET@api.test/?token=SECRET&a=1"))
    assert repr(copy) == "<Request('GET', 'https://[redacted]@api.test/?token=[redacted]&a=1')>"
    assert isinstance(copy, httpx.Request)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_parse_reads_every_encoding_that_json_data_reads(encoding: str) -> None:
    response = HTTPResponse(200, content='{"a": "\u00e9"}'.encode(encoding))
    assert response.parse(dict[str, str]) == response.json_data == {"a": "\u00e9"}
