"""The fake network for users' tests."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import httpx
import pytest

from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPResponse, transport
from fastapi_http_client.auth import APIKeyAuth, BearerAuth
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.errors import HTTPRequestError, RetryExhaustedError
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.testing import FakeClock, MockNetwork, MockResponse


# The test of the user's document, as it stands there.
@pytest.mark.asyncio
async def test_my_client(mock_httpx):  # type: ignore[no-untyped-def]
    mock_httpx.request.return_value = MockResponse(200, b'{"ok": true}')

    client = AsyncHTTPClient(base_url="https://test.com")
    response = await client.get("/test")

    assert response.status_code == 200


async def test_the_mock_sees_what_would_go_out(mock_httpx: MockNetwork) -> None:
    client = AsyncHTTPClient("https://test.com/v1", auth=BearerAuth("t"), headers={"X-A": "1"})
    await client.post("/test", params={"q": "1"}, json={"a": 1})
    mock_httpx.request.assert_awaited_once()
    args, kwargs = mock_httpx.request.await_args  # type: ignore[misc]
    assert args == ("POST", "https://test.com/v1/test?q=1")
    assert kwargs["content"] == b'{"a":1}'
    assert (kwargs["headers"]["authorization"], kwargs["headers"]["x-a"]) == ("Bearer t", "1")


async def test_without_a_word_the_answer_is_200(mock_httpx: MockNetwork) -> None:
    assert (await AsyncHTTPClient().get("https://test.com/")).status_code == 200


async def test_it_stands_for_the_network_of_every_client_made_in_the_test(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.side_effect = lambda method, url, **_: MockResponse(200, url)
    one = AsyncHTTPClient("https://one.test")
    two = AsyncHTTPClient(config=ClientConfig(base_url="https://two.test", engine="httpcore"))
    async with HTTPClients({"three": ClientConfig(base_url="https://three.test")}) as clients:
        for client, host in ((one, "one"), (two, "two"), (clients["three"], "three")):
            assert (await client.get("/")).text == f"https://{host}.test/"
    assert (await one.with_options(timeout=5).get("/view")).text == "https://one.test/view"


async def test_an_answer_is_a_response_like_any_other(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.return_value = MockResponse(
        404, b'{"ok": false}', {"Content-Type": "application/json", "X-A": "1"}
    )
    response = await AsyncHTTPClient("https://test.com").get("/test")
    assert isinstance(response, HTTPResponse)
    assert response.json_data == {"ok": False}
    assert (response.headers["x-a"], response.headers["content-type"]) == ("1", "application/json")
    assert response.url == "https://test.com/test"
    assert [attempt.status for attempt in response.attempts] == [404]
    assert response.is_closed


async def test_the_same_answer_may_be_given_many_times_and_at_once(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.return_value = MockResponse(200, b"body")
    client = AsyncHTTPClient("https://test.com")
    first = await client.get("/")
    first.headers["X-Changed"] = "1"
    responses = await asyncio.gather(*(client.get("/") for _ in range(20)))
    assert {response.text for response in responses} == {"body"}
    assert not any("x-changed" in response.headers for response in responses)


async def test_answers_may_be_streamed(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.return_value = MockResponse(200, b"line 1\nline 2\n")
    async with AsyncHTTPClient("https://test.com").stream("GET", "/") as response:
        assert [line async for line in response.aiter_lines()] == ["line 1", "line 2"]


async def test_a_list_of_answers_and_errors_is_given_one_after_the_other(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.side_effect = [MockResponse(503), httpx.ConnectError("refused"), MockResponse(200)]
    clock = FakeClock()
    response = await AsyncHTTPClient("https://test.com", clock=clock, random=lambda: 0.5).get("/")
    assert [attempt.status for attempt in response.attempts] == [503, None, 200]
    assert clock.sleeps == [1.0, 2.0]


async def test_an_error_is_the_networks(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.side_effect = httpx.ConnectError("refused")
    with pytest.raises(RetryExhaustedError) as caught:
        await AsyncHTTPClient("https://test.com", clock=FakeClock()).get("/")
    assert isinstance(caught.value.last_error, HTTPRequestError)
    assert mock_httpx.request.await_count == 3


async def test_httpxs_own_responses_are_answers_too(mock_httpx: MockNetwork) -> None:
    async def body() -> Any:
        yield b"from "
        yield b"an iterator"

    client = AsyncHTTPClient("https://test.com")
    for reply, text in (
        (httpx.Response(200, json=[1]), "[1]"),
        (httpx.Response(200, content=body()), "from an iterator"),
        (httpx.Response(200, content=gzip.compress(b"zipped"), headers={"Content-Encoding": "gzip"}), "zipped"),
        (MockResponse(200, gzip.compress(b"zipped"), {"Content-Encoding": "gzip"}), "zipped"),
        (MockResponse(200, "text"), "text"),
    ):
        mock_httpx.request.return_value = reply
        assert (await client.get("/")).text == text
        assert (await client.get("/")).text == text


async def test_headers_that_are_given_twice_arrive_twice(mock_httpx: MockNetwork) -> None:
    reply = httpx.Response(200, headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    mock_httpx.request.return_value = reply
    response = await AsyncHTTPClient("https://test.com").get("/")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


async def test_what_is_no_response_is_told(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.return_value = {"ok": True}
    with pytest.raises(HTTPRequestError, match=r"mock_httpx\.request must give an httpx\.Response, not dict"):
        await AsyncHTTPClient("https://test.com").get("/")


async def test_token_requests_go_to_the_mock_as_well(mock_httpx: MockNetwork) -> None:
    mock_httpx.request.side_effect = [
        MockResponse(200, b'{"access_token": "tok", "token_type": "Bearer"}'),
        MockResponse(200, b"data"),
    ]
    client = AsyncHTTPClient("https://test.com", auth=OAuth2ClientCredentials("https://auth.test/token", "i", "s"))
    assert (await client.get("/")).text == "data"
    calls = [(call.args[0], call.args[1]) for call in mock_httpx.request.await_args_list]
    assert calls == [("POST", "https://auth.test/token"), ("GET", "https://test.com/")]


async def test_a_transport_that_is_given_is_not_replaced(mock_httpx: MockNetwork) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(204))
    assert (await AsyncHTTPClient("https://test.com", transport=transport).get("/")).status_code == 204
    mock_httpx.request.assert_not_awaited()


async def test_a_client_made_outside_of_the_test_keeps_its_network() -> None:
    real = transport.create_transport
    before = AsyncHTTPClient("https://test.com")
    with pytest.MonkeyPatch.context() as monkeypatch:
        MockNetwork().install(monkeypatch)
        assert not isinstance(before._transport, httpx.MockTransport)
        during = AsyncHTTPClient("https://test.com")
    assert isinstance(during._transport, httpx.MockTransport)
    assert transport.create_transport is real
    assert not isinstance(AsyncHTTPClient("https://test.com")._transport, httpx.MockTransport)


@pytest.mark.parametrize(
    "response",
    [MockResponse(200), MockResponse(204, b"", {}), MockResponse(status_code=500, content="x", headers={"A": "b"})],
)
def test_a_mock_response_is_an_httpx_response(response: MockResponse) -> None:
    assert isinstance(response, HTTPResponse)
    assert response.attempts == ()


def test_a_mock_response_needs_no_network() -> None:
    assert MockResponse(200, b'{"ok": true}').raise_for_status().json_data == {"ok": True}


async def test_an_api_key_in_the_query_is_seen_by_the_mock_only(mock_httpx: MockNetwork) -> None:
    client = AsyncHTTPClient("https://test.com", auth=APIKeyAuth("key", query_param_name="k"))
    response = await client.get("/")
    assert mock_httpx.request.await_args_list[0].args[1] == "https://test.com/?k=key"
    assert response.url == "https://test.com/"
