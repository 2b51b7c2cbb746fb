"""From what a caller writes to the URL that is asked for: below the base URL, whatever the caller writes."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.errors import HTTPRequestError
from fastapi_http_client.urls import InvalidURLError, Joiner, expand, join, with_params
from tests.hostile.upstream import HostileUpstream
from tests.scripted import Script, client_of

BASE = httpx.URL("https://api.test/v1/")
anything = st.text(max_size=30) | st.text("./\\%2eE5fFcC?#@:;{}a\x00", max_size=20)


# -- path_params -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "params", "path"),
    [
        ("/users/{login}", {"login": "ann"}, "/users/ann"),
        ("/users/{login}", {"login": "a/b"}, "/users/a%2Fb"),
        ("/users/{login}", {"login": "../admin"}, "/users/..%2Fadmin"),
        ("/users/{login}", {"login": "a?b#c"}, "/users/a%3Fb%23c"),
        ("/users/{login}", {"login": "50%"}, "/users/50%25"),
        ("/users/{login}", {"login": "%2e%2e"}, "/users/%252e%252e"),
        ("/users/{login}", {"login": "ü \\"}, "/users/%C3%BC%20%5C"),
        ("/users/{login}", {"login": "{other}"}, "/users/%7Bother%7D"),
        ("/users/{login}", {"login": "..."}, "/users/..."),
        ("/{a}/{b}/{a}", {"a": 1, "b": True}, "/1/True/1"),
        ("/x", {}, "/x"),
        ("/files/{name}.json", {"name": "a"}, "/files/a.json"),
    ],
)
def test_each_value_is_quoted_whole(template: str, params: Mapping[str, Any], path: str) -> None:
    assert expand(template, params) == path


@pytest.mark.parametrize("value", ["", ".", "..", "\ud800", None])
def test_a_value_that_is_no_segment_is_refused(value: Any) -> None:
    with pytest.raises(InvalidURLError, match="login"):
        expand("/users/{login}", {"login": value})


def test_what_is_missing_or_not_needed_is_named() -> None:
    with pytest.raises(InvalidURLError, match="login"):
        expand("/users/{login}", {"id": 1})
    with pytest.raises(InvalidURLError, match="nonsense"):
        expand("/users/{login}", {"login": "a", "nonsense": 1})


@given(anything, anything)
def test_a_value_is_always_one_segment_and_comes_back_whole(first: str, second: str) -> None:
    try:
        path = expand("/a/{x}/b/{y}", {"x": first, "y": second})
    except InvalidURLError:
        assert any(value in ("", ".", "..") for value in (first, second))
        return
    segments = join(BASE, path, "/a/{x}/b/{y}").raw_path.decode().split("/")
    assert segments[:3] == ["", "v1", "a"]
    assert (unquote(segments[3]), segments[4], unquote(segments[5]), len(segments)) == (first, "b", second, 6)


async def test_the_template_is_filled_by_every_verb_and_stream() -> None:
    script = Script()
    client = client_of(script)
    for verb in ("get", "options", "head", "post", "put", "patch", "delete"):
        await getattr(client, verb)("/users/{login}", path_params={"login": "a/b"})
    async with client.stream("GET", "/users/{login}", path_params={"login": "a/b"}):
        pass
    assert {request.url.raw_path for request in script.requests} == {b"/users/a%2Fb"}


@pytest.mark.parametrize(
    "value", ["../../admin", "..\\admin", "%2e%2e/", "a/../..", "....//", "..;/x", "\x00", "\r\nX: 1"]
)
async def test_no_value_escapes_on_the_wire(upstream: HostileUpstream, value: str) -> None:
    async with AsyncHTTPClient(upstream.url("/echo/v1/")) as client:
        response = await client.get("/users/{id}/x", path_params={"id": value})
    target = response.json_data["target"]
    assert target.startswith("/echo/v1/users/")
    assert target.count("/") == 5
    assert unquote(target.split("/")[4]) == value


async def test_a_bad_value_is_an_error_of_ours_before_anything_is_sent() -> None:
    script = Script()
    with pytest.raises(HTTPRequestError) as caught:
        await client_of(script).get("/users/{login}", path_params={"login": ".."})
    assert isinstance(caught.value, ValueError)
    assert (caught.value.may_have_run, caught.value.transient, script.count) == (False, False, 0)


# -- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://api.test", "/users", "https://api.test/users"),
        ("https://api.test", "users", "https://api.test/users"),
        ("https://api.test/", "/users", "https://api.test/users"),
        ("https://api.test/v1", "/users", "https://api.test/v1/users"),
        ("https://api.test/v1/", "users", "https://api.test/v1/users"),
        ("https://api.test/v1", "", "https://api.test/v1/"),
        ("https://api.test/v1", "/", "https://api.test/v1/"),
        ("https://api.test/v1", "?a=1", "https://api.test/v1/?a=1"),
        ("https://api.test/v1", "/users?a=1&a=2", "https://api.test/v1/users?a=1&a=2"),
        ("https://api.test/v1", "a/./b", "https://api.test/v1/a/b"),
        ("https://api.test/v1", "a/b/../../c", "https://api.test/v1/c"),
        ("https://api.test/v1", "/a.b/c..d/...", "https://api.test/v1/a.b/c..d/..."),
        ("https://api.test/v1", "/a%2Fb", "https://api.test/v1/a%2Fb"),
        ("https://api.test/v1", "/ü", "https://api.test/v1/%C3%BC"),
        ("https://api.test/v1", "/a:b@c", "https://api.test/v1/a:b@c"),
        ("https://api.test/v1", "https://api.test/other", "https://api.test/other"),
        ("", "https://api.test/x", "https://api.test/x"),
    ],
)
async def test_a_path_is_appended_to_the_base_url(base: str, path: str, url: str) -> None:
    script = Script()
    await client_of(script, base_url=base).get(path)
    assert str(script.requests[0].url) == url


@pytest.mark.parametrize(
    ("template", "value"),
    [("/a/.{x}", "."), ("/a/{x}.", "."), ("/a/%2e{x}", "."), ("/../{x}", "a"), ("{x}/../..", "a/b/c")],
)
async def test_a_template_cannot_leave_the_base_url_either(template: str, value: str) -> None:
    script = Script()
    with pytest.raises(HTTPRequestError):
        await client_of(script, base_url="https://api.test/v1").get(template, path_params={"x": value})
    assert script.count == 0


async def test_what_is_allowed_as_a_value_is_not_when_it_is_written_out() -> None:
    script = Script()
    client = client_of(script, base_url="https://api.test/v1")
    for _ in range(2):
        await client.get("/users/{x}", path_params={"x": "../../admin"})
        with pytest.raises(HTTPRequestError):
            await client.get("/users/..%2F..%2Fadmin")
    assert {request.url.raw_path for request in script.requests} == {b"/v1/users/..%2F..%2Fadmin"}


async def test_a_colon_is_not_taken_for_a_scheme_by_silence() -> None:
    script = Script()
    client = client_of(script, base_url="https://api.test/v1")
    with pytest.raises(HTTPRequestError, match="scheme"):
        await client.get("users:search")
    await client.get("/users:search")
    assert script.requests[0].url == "https://api.test/v1/users:search"


ESCAPES = [
    *("../admin", "/../admin", "users/../../admin", "..", "/..", "%2e%2e/admin", "%2E%2E/admin", ".%2e/admin"),
    *("./../admin", "/./../admin", "a//../../b", "a/.././../b", "a/b/../../../c", "%2e/../admin"),
    *("..%2fadmin", "..%5cadmin", "a/%2e%2e/%2e%2e/b", "%252e%252e/admin", "..%252fadmin", "a/b/../../../c"),
    *("//other.test/x", "///other.test", "\\\\other.test", "/\\other.test", "a\\b", "..\\admin", "a?b/../..\\"),
    *("/a\x00b", "/a\r\nHost: x", "/a\tb", "/a\x7f", "\n/a"),
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_a_path_cannot_leave_the_base_url(path: str) -> None:
    script = Script()
    with pytest.raises(HTTPRequestError) as caught:
        await client_of(script, base_url="https://api.test/v1").get(path)
    assert isinstance(caught.value, ValueError)
    assert script.count == 0


@pytest.mark.parametrize(
    "path", ["http:/x", "https:///x", "mailto:a@b", "file:///etc/passwd", "http://[::1", "/\ud800", "data:,x"]
)
async def test_an_address_that_cannot_be_used_is_an_error_of_ours(path: str) -> None:
    for base in ("https://api.test/v1", ""):
        script = Script()
        with pytest.raises(HTTPRequestError):
            await client_of(script, base_url=base).get(path)
        assert script.count == 0


@given(anything)
@example("..%c0%af")
@example("/..;/admin")
@example("\uff0e\uff0e/")
def test_whatever_is_written_stays_below_the_base_or_is_refused(path: str) -> None:
    try:
        url = join(BASE, path)
    except InvalidURLError:
        return
    if httpx.URL(path).is_absolute_url:
        return  # which the client compares with its origins
    assert (url.scheme, url.netloc, url.userinfo) == ("https", b"api.test", b"")
    for path_seen in (url.path, unquote(url.path)):
        resolved = posixpath.normpath("/" + path_seen.replace("\\", "/").lstrip("/"))
        assert resolved == "/v1" or resolved.startswith("/v1/")


@given(anything)
def test_remembering_changes_nothing(path: str) -> None:
    joiner = Joiner(BASE)

    def outcome(call: Any) -> Any:
        try:
            return call()
        except InvalidURLError as error:
            return str(error)

    expected = outcome(lambda: join(BASE, path))
    assert outcome(lambda: joiner(path)) == expected
    assert outcome(lambda: joiner(path)) == expected


def test_what_is_remembered_is_bounded_and_holds_no_query() -> None:
    joiner = Joiner(BASE)
    for n in range(3000):
        joiner(f"/{n}")
        joiner(f"/x?token={n}")
    assert len(joiner._known) == Joiner.MOST
    assert not any("token" in path for path in joiner._known)


# -- params ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "params", "query"),
    [
        ("/x", {"a": "1"}, "a=1"),
        ("/x?a=1", {"b": "2"}, "a=1&b=2"),
        ("/x?a=1", {"a": "2"}, "a=1&a=2"),
        ("/x?a=1&a=2", {}, "a=1&a=2"),
        ("/x?a=1", None, "a=1"),
        ("/x?q=a%20b+c", {"d": "e f"}, "q=a%20b+c&d=e+f"),
        ("/x?flag", {"a": "1"}, "flag&a=1"),
        ("/x", [("a", "1"), ("a", "2")], "a=1&a=2"),
        ("/x", {"a": ["1", "2"], "n": 3, "t": True, "none": None}, "a=1&a=2&n=3&t=true&none="),
    ],
)
async def test_params_are_added_to_the_urls_own(url: str, params: Any, query: str) -> None:
    script = Script()
    await client_of(script).get(url, params=params)
    assert script.requests[0].url.query.decode() == query


async def test_the_clients_params_are_added_too() -> None:
    script = Script()
    client = client_of(script, options={"params": {"key": "k"}})
    await client.get("/x?a=1", params={"b": "2"})
    await client.get("/x?a=1")
    assert [parse_qsl(request.url.query.decode()) for request in script.requests] == [
        [("a", "1"), ("key", "k"), ("b", "2")],
        [("a", "1"), ("key", "k")],
    ]


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
    )
)
def test_any_params_come_back(params: list[Any]) -> None:
    url = with_params(httpx.URL("https://api.test/?own=1"), httpx.QueryParams(params))
    given_back = parse_qsl(url.query.decode(), keep_blank_values=True)
    assert sorted(given_back) == sorted([("own", "1"), *params])
