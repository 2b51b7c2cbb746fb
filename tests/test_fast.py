"""What is built by a shorter way is what httpx builds."""

import httpx
import pytest
from httpx import USE_CLIENT_DEFAULT

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.fast import PlainRequests, header_names, is_plain, wire_copy

CASES = [
    {},
    {"headers": None},
    {"headers": {}},
    {"headers": {"X-Own": "1", "ACCEPT": "text/plain"}},
    {"headers": [("X-Twice", "1"), ("X-Twice", "2")]},
    {"headers": httpx.Headers({"Host": "other.example.com"})},
    {"headers": {"X-Bytes": "é".encode("latin-1")}},
    {"timeout": 3.0},
    {"timeout": None},
    {"timeout": httpx.Timeout(1, read=2)},
    {"timeout": USE_CLIENT_DEFAULT},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
async def test_a_plain_request_is_the_one_that_httpx_builds(method: str, options: dict) -> None:
    headers = {"X-Default": "d", "Accept": "application/json"}
    ours = AsyncHTTPClient("https://api.example.com/v1", headers=headers, timeout=30.0)
    theirs = httpx.AsyncClient(base_url="https://api.example.com/v1", headers=headers, timeout=30.0)
    built = ours.build_request(method, "/users", **options)
    expected = theirs.build_request(method, "/users", **options)
    assert (built.method, built.url, built.content) == (expected.method, expected.url, expected.content)
    assert built.headers.raw == expected.headers.raw
    assert built.extensions["timeout"] == expected.extensions["timeout"]


@pytest.mark.parametrize(
    "options", [{"json": {}}, {"content": b"x"}, {"cookies": {"a": "b"}}, {"data": {}}, {"files": {}}]
)
def test_a_request_with_a_body_or_cookies_is_left_to_httpx(options: dict) -> None:
    assert not is_plain("GET", options)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "get"])
def test_a_method_that_may_have_a_body_is_left_to_httpx(method: str) -> None:
    assert not is_plain(method, {})


def test_requests_do_not_share_their_headers() -> None:
    defaults = httpx.Headers({"Accept": "*/*"})
    url = httpx.URL("https://api.example.com/")
    plain = PlainRequests()
    first = plain.request("GET", url, defaults, None, {})
    first.headers["X-Own"] = "1"
    assert "x-own" not in defaults
    assert "x-own" not in plain.request("GET", url, defaults, None, {}).headers


def test_a_change_of_the_default_headers_and_of_the_host_is_noticed() -> None:
    defaults = httpx.Headers({"Accept": "*/*"})
    plain = PlainRequests()
    plain.request("GET", httpx.URL("https://api.example.com/"), defaults, None, {})
    defaults["X-New"] = "1"
    request = plain.request("GET", httpx.URL("https://other.example.com/"), defaults, None, {})
    assert request.headers["x-new"] == "1"
    assert request.headers["host"] == "other.example.com"


@pytest.mark.parametrize("value", [b"plain", "ünicode".encode()])
def test_a_wire_copy_has_the_same_headers_of_its_own(value: bytes) -> None:
    request = httpx.Request("POST", "https://api.example.com/", headers={"X-Value": value}, content=b"body")
    copy = wire_copy(request)
    assert copy.headers == request.headers
    copy.headers["Authorization"] = "Bearer token"
    assert "authorization" not in request.headers
    assert copy.stream is request.stream


def test_header_names_are_lower_case() -> None:
    assert header_names([(b"X-One", b"1"), (b"two", b"2")]) == {b"x-one", b"two"}
