"""What is shown of URLs, headers and foreign text, and what never is."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_http_client.redaction import (
    MASK,
    is_secret,
    printable,
    redact_headers,
    redact_request,
    redact_text,
    redact_url,
)

CANARY = "c4n4ry-s3cret"
PROMISED_HEADERS = ("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-API-Key", "X-Auth-Token")
PROMISED_KEYS = ("api_key", "access_token", "token", "password", "secret", "sig")


# -- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [*PROMISED_KEYS, "API_KEY", "Token", "client_secret", "refresh_token", "X-Amz-Signature"]
)
def test_the_value_of_a_secret_key_is_masked(key: str) -> None:
    url = redact_url(f"https://api.test/a?x=1&{key}={CANARY}&y=2&{key}={CANARY}")
    assert url == f"https://api.test/a?x=1&{key}={MASK}&y=2&{key}={MASK}"


def test_a_key_in_percent_quotes_is_the_same_key() -> None:
    for key in ("api%5Fkey", "%74oken", "access%5ftoken"):
        assert CANARY not in redact_url(f"https://api.test/?{key}={CANARY}")


def test_further_keys_may_be_given() -> None:
    url = f"https://api.test/?odd={CANARY}&My+Thing={CANARY}"
    assert CANARY not in redact_url(url, {"ODD", "my thing"})
    assert redact_url(url).count(CANARY) == 2


@pytest.mark.parametrize("userinfo", [f"user:{CANARY}", CANARY, f":{CANARY}", f"us%40er:{CANARY}"])
def test_user_info_is_masked(userinfo: str) -> None:
    assert redact_url(f"https://{userinfo}@api.test:8443/a") == f"https://{MASK}@api.test:8443/a"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.test", "https://api.test/"),
        ("https://api.test:443/", "https://api.test/"),
        ("http://[::1]:8080/a?b=c", "http://[::1]:8080/a?b=c"),
        ("https://api.test/a%20b?q=%C3%BC", "https://api.test/a%20b?q=%C3%BC"),
        ("https://api.test/?flag&a=&=b&a=1=2", "https://api.test/?flag&a=&=b&a=1=2"),
        ("https://api.test/?token", "https://api.test/?token"),
        (f"https://api.test/#token={CANARY}", "https://api.test/"),
        ("/relative?a=1", "/relative?a=1"),
        ("", ""),
    ],
)
def test_the_rest_is_shown_as_it_is(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    assert redact_url(httpx.URL(url)) == shown


def test_a_url_without_end_is_cut() -> None:
    assert len(redact_url("https://api.test/" + "a" * 50_000)) < 2100


@given(st.sampled_from(PROMISED_KEYS), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_value_gets_through(key: str, text: str) -> None:
    url = httpx.URL("https://api.test/", params={"a": "1", key: f"{CANARY}{text}", "b": text})
    assert CANARY not in redact_url(url)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *PROMISED_HEADERS,
        *PROMISED_KEYS,
        *("Private-Token", "X-Vault-Token", "DD-API-KEY", "DD-APPLICATION-KEY", "Ocp-Apim-Subscription-Key", "apikey"),
        *("accessToken", "clientSecret", "user_password", "idToken", "AWSAccessKeyId", "X-Amz-Credential", "APIKey"),
        *("X-Csrf-Token", "x-goog-signature", "auth", "pwd", "passphrase", "sessionid", "JSESSIONID", "key", "jwt"),
    ],
)
def test_a_name_that_tells_of_a_secret_is_one(name: str) -> None:
    assert is_secret(name)
    assert CANARY not in str(redact_headers({name: CANARY}))
    assert CANARY not in redact_url(httpx.URL("https://api.test/", params={name: CANARY}))


@pytest.mark.parametrize(
    "name",
    [
        *("Idempotency-Key", "Sec-WebSocket-Key", "X-RateLimit-Remaining-Tokens", "max_tokens", "token_type"),
        *("author", "keyboard", "X-Request-Id", "ETag", "Content-Type", "monkey", "design", "pinned", "compass", "q"),
    ],
)
def test_a_name_that_only_looks_like_one_is_shown(name: str) -> None:
    assert not is_secret(name)


JSON = st.recursive(
    st.text(st.sampled_from('"\\:{}[], é')) | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@given(before=JSON, secret=JSON, after=JSON)
def test_the_whole_value_of_a_secret_field_is_masked_and_nothing_else(
    separators: tuple[str, str], before: Any, secret: Any, after: Any
) -> None:
    body = {"a": before, "credentials": {"b": secret, "c": [secret, {"d": CANARY}]}, "z": [{"pin": secret}, after]}
    masked = json.loads(redact_text(json.dumps(body, separators=separators), "application/json"))
    assert masked == {"a": before, "credentials": MASK, "z": [{"pin": MASK}, after]}


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        ("text/plain", '{"access_token":"S","a":1}', '{"access_token":[redacted],"a":1}'),
        ("text/plain", '{"secret":{"a":1,"b":"S"},"c":2}', '{"secret":[redacted],"c":2}'),
        ("text/event-stream", 'data: {"token": "S"}', 'data: {"token": [redacted]}'),
        ("text/javascript", "cb({'password':'S'})", "cb({'password':[redacted]})"),
        ("application/xml", "<password><![CDATA[S]]></password><a>1</a>", "<password>[redacted]</password><a>1</a>"),
        ("application/xml", "<secret><value>S</value></secret>", "<secret>[redacted]</secret>"),
        ("application/xml", "<ns:pin>S</ns:pin>", "<ns:pin>[redacted]</ns:pin>"),
        ("application/xml", "<token/><a>1</a>", "<token/><a>1</a>"),
        ("application/xml", "<password>S", "<password>[redacted]"),
        ("application/x-www-form-urlencoded", "card[pin]=S&a=1", "card[pin]=[redacted]&a=1"),
    ],
)
def test_fields_are_found_in_every_kind_of_text(kind: str, text: str, shown: str) -> None:
    assert redact_text(text, kind) == shown


@pytest.mark.parametrize(
    ("header", "value", "shown"),
    [
        ("Location", "/users/?k=S&page=2", "/users/?k=[redacted]&page=2"),
        ("Referer", "https://u:S@a.test/x?access_token=S#f", "https://[redacted]@a.test/x?access_token=[redacted]#f"),
        ("Link", '<https://a.test/?page=2&sig=S>; rel="next"', '<https://a.test/?page=2&sig=[redacted]>; rel="next"'),
        ("Location", "http://[no address?token=S", "http://[no address?token=[redacted]"),
    ],
)
def test_a_header_that_holds_a_url_shows_no_secret_of_it(header: str, value: str, shown: str) -> None:
    assert redact_headers({header: value}, extra_keys={"k"}) == {header: shown}


@given(st.text(st.sampled_from('"\\:{}[], \nkey12ab')))
def test_any_text_with_a_secret_in_it_is_masked_and_nothing_is_lost_without_one(text: str) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        redact_text(text, kind)
    harmless = json.dumps({"a": text, "b": [text]})
    assert redact_text(harmless, "application/json") == harmless
    secret = json.dumps({"a": text, "password": {"x": [f"{text}{CANARY}"]}, "z": text})
    masked = json.loads(redact_text(secret, "application/json"))
    assert masked == {"a": text, "password": MASK, "z": text}


# -- headers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PROMISED_HEADERS, "AUTHORIZATION", "x-api-key"])
def test_the_value_of_a_secret_header_is_masked(name: str) -> None:
    for headers in ({name: CANARY}, httpx.Headers({name: CANARY})):
        assert list(redact_headers(headers).values()) == [MASK]


def test_further_headers_may_be_given_and_the_others_are_shown() -> None:
    shown = redact_headers({"X-Mine": CANARY, "Accept": "text/plain", "X-Id": "a\r\nb"}, {"x-mine"})
    assert shown == {"X-Mine": MASK, "Accept": "text/plain", "X-Id": "a\\x0d\\x0ab"}


def test_a_header_that_is_given_twice_is_masked_twice() -> None:
    headers = httpx.Headers([("Set-Cookie", f"a={CANARY}"), ("Set-Cookie", f"b={CANARY}")])
    assert CANARY not in str(redact_headers(headers))


def test_a_request_is_masked_in_a_copy() -> None:
    headers = [*((name, CANARY) for name in PROMISED_HEADERS), ("Cookie", CANARY), ("Accept", "text/plain")]
    request = httpx.Request("POST", "https://api.test/", headers=headers, json={"a": 1}, extensions={"x": 1})
    masked = redact_request(request)
    assert CANARY not in str(masked.headers.raw)
    assert (masked.method, str(masked.url), masked.headers["accept"]) == ("POST", "https://api.test/", "text/plain")
    assert (masked.content, masked.extensions) == (request.content, request.extensions)
    assert request.headers["authorization"] == CANARY


def test_a_request_without_secrets_is_itself() -> None:
    request = httpx.Request("GET", "https://api.test/")
    assert redact_request(request) is request


# -- text --------------------------------------------------------------------------------------------------------


@given(st.text())
def test_foreign_text_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() or all(ord(c) > 0x9F or c == " " for c in shown if not c.isprintable())
    assert len(shown.splitlines()) <= 1
    assert len(printable(text, 10)) <= 10 * 6 + 1


@pytest.mark.parametrize("text", ["a\r\nb", "a\x1b[2Jb", "a\x00b", "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b"])
def test_what_could_forge_a_line_is_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.startswith("a\\x")
    assert shown.endswith("b")


def test_long_text_is_cut_visibly() -> None:
    assert printable("x" * 20, 10) == "x" * 10 + "…"
    assert printable("x" * 10, 10) == "x" * 10
