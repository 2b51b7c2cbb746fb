"""What is built by a shorter way is what httpx builds."""

import re
from typing import Any

import httpx
import pytest
from httpx import USE_CLIENT_DEFAULT
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.fast import PlainRequests, below, header_names, is_plain, wire_copy
from fastapi_http_client.urls import join

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


BASES = [
    "https://api.example.com",
    "https://api.example.com/",
    "https://user:secret@api.example.com:8443/v1/",
    "http://[::1]:8000/a%20b/",
    "http://münchen.example/ü/",
]
NO_BASES = [
    "",
    "/",
    "/v1/",
    "https://api.example.com/v1",
    "https://api.example.com/?a=1",
    "https://api.example.com/#top",
]


@given(base=st.sampled_from(BASES), path=st.text("aZ9_~-/.%:@?#\\é \n", max_size=12).map("/{}".format))
@example(base=BASES[0], path="/")
@example(base=BASES[0], path="/" + "a" * 1001)
@example(base=BASES[0], path="/" + "a" * 1002)
@example(base=BASES[1], path="/users/00-af_1~//x/")
def test_a_path_that_needs_no_parsing_is_joined_as_httpx_joins_it(base: str, path: str) -> None:
    url = httpx.URL(base)
    joined = below(url, path)
    if joined is None:
        assert len(path) > 1002 or path.startswith("//") or not set(path) <= set("aZ9_~-/")
        return
    expected = url.copy_with(raw_path=url.raw_path + path.encode()[1:])
    assert vars(joined) == vars(expected) == vars(join(url, path))
    assert (joined, hash(joined), joined.raw_path) == (expected, hash(expected), expected.raw_path)


def _readable(options: dict[str, Any]) -> str:
    """The same in every process, which the address of an object is not."""
    return re.sub(r" object at 0x[0-9a-f]+", "", str(options))


@pytest.mark.parametrize("base", NO_BASES)
def test_only_an_origin_with_a_path_is_joined_without_parsing(base: str) -> None:
    assert below(httpx.URL(base), "/users") is None


def test_without_httpxs_private_attribute_the_path_is_parsed() -> None:
    class Other(httpx.URL):
        def __getattribute__(self, name: str) -> object:
            if name == "_uri_reference":
                raise AttributeError(name)
            return super().__getattribute__(name)

    url = httpx.URL("https://api.example.com/")
    url.__class__ = Other
    assert below(url, "/users") is None


@pytest.mark.parametrize("options", CASES, ids=_readable)
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
