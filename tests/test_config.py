"""`ClientConfig`: its defaults, what it refuses, and what gives way to what."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import APIKeyConfig, BasicConfig, BearerConfig, ClientConfig, OAuth2Config
from fastapi_http_client.errors import ConfigurationError, HTTPClientError

CANARY = "c4n4ry-s3cret"

DEFAULTS: dict[str, Any] = {
    "base_url": "",
    "headers": {},
    "auth": None,
    "timeout": 30.0,
    "connect_timeout": None,
    "total_timeout": None,
    "max_connections": 100,
    "max_keepalive_connections": 20,
    "keepalive_expiry": 30.0,
    "follow_redirects": False,
    "max_redirects": 20,
    "verify_ssl": True,
    "ca_file": None,
    "client_cert": None,
    "client_key": None,
    "proxy": None,
    "trust_env": False,
    "http2": False,
    "retry_attempts": 3,
    "retry_backoff_factor": 1.0,
    "retry_max_delay": 60.0,
    "retry_jitter": 0.1,
    "retry_statuses": {429, 500, 502, 503, 504},
    "retry_methods": {"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"},
    "retry_non_idempotent": False,
    "idempotency_keys": False,
    "retry_budget": 100,
    "enable_rate_limiting": False,
    "rate_limit_rate": 10.0,
    "rate_limit_burst": 1,
    "rate_limit_max_wait": None,
    "enable_circuit_breaker": False,
    "circuit_breaker_failure_threshold": 5,
    "circuit_breaker_recovery_timeout": 60.0,
    "circuit_breaker_half_open_max_calls": 1,
    "circuit_breaker_failure_rate": None,
    "circuit_breaker_window": 30.0,
    "circuit_breaker_minimum_calls": 10,
    "propagation": "external",
    "propagate_headers": (),
    "allowed_origins": (),
    "persist_cookies": False,
    "max_response_bytes": None,
    "engine": "auto",
    "max_connection_age": None,
}


def bad(**options: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        ClientConfig(**options)
    return caught.value


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", DEFAULTS)
def test_each_option_has_its_default(option: str) -> None:
    assert getattr(ClientConfig(), option) == DEFAULTS[option]


def test_there_is_no_other_option() -> None:
    assert set(ClientConfig.model_fields) == set(DEFAULTS)


def test_the_users_document_is_taken() -> None:
    config = ClientConfig(
        timeout=30.0,
        max_connections=100,
        max_keepalive_connections=20,
        keepalive_expiry=30.0,
        follow_redirects=False,
        verify_ssl=True,
        retry_attempts=3,
        retry_backoff_factor=1.0,
        retry_max_delay=60.0,
        retry_statuses={429, 500, 502, 503, 504},
        retry_methods={"GET", "POST", "PUT", "DELETE", "PATCH"},
        enable_rate_limiting=False,
        rate_limit_rate=10.0,
        rate_limit_burst=1,
        enable_circuit_breaker=False,
        circuit_breaker_failure_threshold=5,
        circuit_breaker_recovery_timeout=60.0,
    )
    assert config.retry_methods == {"GET", "POST", "PUT", "DELETE", "PATCH"}


def test_it_is_frozen() -> None:
    config = ClientConfig()
    with pytest.raises(ConfigurationError, match="ClientConfig: timeout: cannot be set"):
        config.timeout = 5.0
    with pytest.raises(ConfigurationError) as caught:
        ClientConfig(auth={"type": "bearer", "token": "t"}).auth.token = CANARY
    assert CANARY not in str(caught.value)
    assert isinstance(config.retry_statuses, frozenset)
    assert isinstance(config.retry_methods, frozenset)


def test_two_of_the_same_are_equal() -> None:
    assert ClientConfig(total_timeout=10) == ClientConfig(total_timeout=10)
    assert ClientConfig(total_timeout=10) != ClientConfig(total_timeout=11)


@pytest.mark.parametrize(
    "written", ["429,503", " 429 , 503 ", "429,503,", "[429, 503]", "[503,429,429]", {429, 503}, [429, 503], (503, 429)]
)
def test_statuses_are_a_set_or_a_text_with_commas_or_json(written: Any) -> None:
    assert ClientConfig(retry_statuses=written).retry_statuses == frozenset({429, 503})


@pytest.mark.parametrize("written", ["get, Post", '["get", "POST"]', {"GET", "post"}, ["GET", "POST", " get "]])
def test_methods_are_read_in_any_case(written: Any) -> None:
    assert ClientConfig(retry_methods=written).retry_methods == frozenset({"GET", "POST"})


@pytest.mark.parametrize("option", ["retry_statuses", "retry_methods"])
@pytest.mark.parametrize("written", ["", "[]", set()])
def test_a_set_may_be_empty(option: str, written: Any) -> None:
    assert getattr(ClientConfig(**{option: written}), option) == frozenset()


def test_lists_of_names_and_origins_are_read_likewise() -> None:
    config = ClientConfig(
        propagate_headers="X-Tenant, x-user",
        allowed_origins='["https://B.test/", "https://c.test:8443"]',
    )
    assert config.propagate_headers == ("X-Tenant", "x-user")
    assert config.allowed_origins == ("https://b.test", "https://c.test:8443")
    assert ClientConfig(propagate_headers=["X-Tenant"]).propagate_headers == ("X-Tenant",)


def test_headers_may_be_json() -> None:
    config = ClientConfig(headers='{"X-Tenant": "acme"}')  # type: ignore[arg-type]
    assert config.headers == {"X-Tenant": "acme"}


@pytest.mark.parametrize("value", ["true", "1", "on", "yes", True])
def test_switches_are_read_as_people_write_them(value: Any) -> None:
    assert ClientConfig(enable_rate_limiting=value).enable_rate_limiting is True


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({"type": "bearer", "token": "t"}, BearerConfig),
        ({"type": "api_key", "api_key": "k"}, APIKeyConfig),
        ({"type": "basic", "username": "u", "password": ""}, BasicConfig),
        ({"type": "oauth2", "token_url": "https://a.test/t", "client_id": "i", "client_secret": "s"}, OAuth2Config),
    ],
)
def test_auth_is_of_the_kind_that_its_type_says(section: dict[str, str], kind: type) -> None:
    config = ClientConfig(auth=section)  # type: ignore[arg-type]
    assert type(config.auth) is kind
    assert ClientConfig(auth=config.auth).auth == config.auth


# -- what is refused ---------------------------------------------------------------------------------------------

BAD: list[tuple[str, list[Any]]] = [
    (
        "base_url",
        ["api.test", "/v1", "ftp://api.test", "https://", "https:///v1", "https://a.test?x=1", "https://a.test/?"],
    ),
    ("base_url", ["https://a.test/#x", "https://a.test:99999", "https://a b/", "https://[::1", 7, "//a.test"]),
    *(
        (name, [0, -1, float("nan"), float("inf"), "x", None, "", [1]])
        for name in ("timeout", "circuit_breaker_window")
    ),
    *((name, [0, -1, float("nan"), float("inf"), "x"]) for name in ("connect_timeout", "total_timeout")),
    ("max_connection_age", [0, -1, float("inf")]),
    ("circuit_breaker_recovery_timeout", [0, -1, float("nan"), float("inf"), None]),
    ("rate_limit_rate", [0, -1, float("nan"), float("inf"), None]),
    *((name, [0, -1, 1.5, "x", None]) for name in ("max_connections", "rate_limit_burst", "retry_attempts")),
    ("retry_attempts", [1000]),
    *(
        (name, [0, -1, 1.5, None])
        for name in ("circuit_breaker_failure_threshold", "circuit_breaker_half_open_max_calls")
    ),
    ("circuit_breaker_minimum_calls", [0, -1, 1.5]),
    ("max_response_bytes", [0, -1, 1.5, "x"]),
    *((name, [-1, 1.5, None]) for name in ("max_keepalive_connections", "max_redirects")),
    *(
        (name, [-1, float("nan"), float("inf"), None])
        for name in ("keepalive_expiry", "retry_max_delay", "retry_budget")
    ),
    ("retry_backoff_factor", [-0.1, float("nan"), float("inf")]),
    ("rate_limit_max_wait", [-1, float("nan"), float("inf")]),
    ("retry_jitter", [-0.1, 1.1, float("nan"), None]),
    ("circuit_breaker_failure_rate", [0, -0.5, 1.01, float("nan")]),
    ("retry_statuses", [{99}, {600}, "429,x", "429 503", "[429", '{"a": 1}', 429, None, {"x"}]),
    ("retry_methods", [{"PURGE"}, "GET POST", "[GET", 7, None, {7}]),
    (
        "headers",
        [{"a b": "1"}, {"": "1"}, {"A": "x\r\ny"}, {"A": "\x00"}, {"A": "é"}, {"A": 7}, "{", "[]", [("A", "1")], None],
    ),
    ("propagate_headers", [["a b"], "x:y", [""], 7]),
    ("allowed_origins", [["a.test"], ["https://a.test/path"], ["https://u:p@a.test"], ["https://a.test?x"], "*", 7]),
    ("proxy", ["proxy:3128", "ftp://proxy", "http://", "socks4://proxy", 7]),
    *(
        (name, ["maybe", 2, None])
        for name in ("follow_redirects", "verify_ssl", "trust_env", "http2", "enable_rate_limiting")
    ),
    ("persist_cookies", ["maybe"]),
    *((name, ["", "Internal", "all", None, True]) for name in ("propagation", "engine")),
    ("ca_file", [7]),
    ("auth", ["bearer", {}, {"token": CANARY}, {"type": "digest"}, {"type": None}, 7]),
]


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in BAD for value in values])
def test_a_bad_value_is_an_error_that_names_the_option(option: str, value: Any) -> None:
    error = bad(**{option: value})
    assert isinstance(error, HTTPClientError | ValueError)
    assert option in str(error)
    assert [problem.argument.split(".")[0] for problem in error.problems] == [option]


@pytest.mark.parametrize(
    ("section", "argument"),
    [
        ({"type": "bearer"}, "auth.token"),
        ({"type": "bearer", "token": ""}, "auth.token"),
        ({"type": "bearer", "token": f"{CANARY}\n"}, "auth.token"),
        ({"type": "bearer", "tokn": CANARY, "token": "t"}, "auth.tokn"),
        ({"type": "api_key"}, "auth.api_key"),
        ({"type": "api_key", "api_key": ""}, "auth.api_key"),
        ({"type": "api_key", "api_key": f"{CANARY}\r\n"}, "auth.api_key"),
        ({"type": "api_key", "api_key": CANARY, "header_name": "a b"}, "auth.header_name"),
        ({"type": "api_key", "api_key": CANARY, "query_param_name": ""}, "auth.query_param_name"),
        ({"type": "basic", "password": CANARY}, "auth.username"),
        ({"type": "basic", "username": "u"}, "auth.password"),
        ({"type": "basic", "username": "u:v", "password": CANARY}, "auth.username"),
        ({"type": "oauth2", "token_url": "x", "client_id": "i", "client_secret": CANARY}, "auth.token_url"),
        ({"type": "oauth2", "token_url": "https://a.test", "client_id": "", "client_secret": CANARY}, "auth.client_id"),
        (
            {"type": "oauth2", "token_url": "https://a.test", "client_id": "i", "client_secret": ""},
            "auth.client_secret",
        ),
        (
            {
                "type": "oauth2",
                "token_url": "https://a.test",
                "client_id": "i",
                "client_secret": "s",
                "cache_duration": 0,
            },
            "auth.cache_duration",
        ),
    ],
)
def test_a_bad_credential_is_named_by_its_path_and_not_shown(section: dict[str, Any], argument: str) -> None:
    error = bad(auth=section)
    assert [problem.argument for problem in error.problems] == [argument]
    assert argument in str(error)
    assert CANARY not in f"{error} {error!r} {error.problems}"
    assert error.__cause__ is None
    assert error.__suppress_context__


@pytest.mark.parametrize("option", ["timout", "Timeout", "retries", "headres", "model_config"])
def test_an_unknown_option_is_an_error(option: str) -> None:
    assert option in str(bad(**{option: 1}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timout": 1}, "timout: unknown option"),
        ({"auth": {"token": "t"}}, "auth: needs a type: one of bearer, api_key, basic, oauth2"),
        ({"auth": {"type": "digest"}}, "auth: unknown type; known are bearer, api_key, basic, oauth2"),
        ({"retry_statuses": "[429"}, "retry_statuses: is neither a JSON list nor values separated by commas"),
        ({"retry_methods": "PURGE"}, "retry_methods.0: unknown method; known are DELETE, GET, HEAD"),
        ({"headers": "{"}, "headers: is not a JSON object"),
        ({"headers": {"A": "\n"}}, "headers.A: holds a character that no header value may hold"),
        ({"headers": {"a b": "x"}}, "headers.a b: is no header name"),
        ({"base_url": "https://a.test#x"}, "base_url: must not have a fragment"),
        ({"base_url": "https://a.test:65536"}, "base_url: has a port that is not between 1 and 65535"),
        ({"base_url": "https://a.test:0"}, "base_url: has a port that is not between 1 and 65535"),
        ({"proxy": "http://[::1"}, "proxy: is no valid URL"),
        ({"timeout": 2, "total_timeout": 1}, "timeout (2) is above total_timeout (1)"),
    ],
)
def test_a_message_says_what_to_do(options: dict[str, Any], message: str) -> None:
    assert str(bad(**options)).startswith(f"ClientConfig: {message}")


def test_pydantics_own_error_shows_no_value() -> None:
    with pytest.raises(ValidationError) as caught:
        ClientConfig.model_validate({"timeout": CANARY, "auth": {"type": "bearer", "token": f"{CANARY}\n"}})
    assert CANARY not in str(caught.value)


def test_the_default_of_cache_duration_is_an_hour() -> None:
    config = OAuth2Config(token_url="https://a.test", client_id="i", client_secret=SecretStr("s"))
    assert config.cache_duration == 3600.0


def test_all_problems_are_told_at_once() -> None:
    error = bad(timeout=-1, retry_attempts=0, retry_statuses="x,429,y", auth={"type": "bearer"}, nonsense=1)
    assert {problem.argument for problem in error.problems} == {
        "timeout",
        "retry_attempts",
        "retry_statuses.0",
        "retry_statuses.2",
        "auth.token",
        "nonsense",
    }
    assert all(problem.argument in str(error) for problem in error.problems)


def test_all_contradictions_are_told_at_once() -> None:
    error = bad(
        connect_timeout=20,
        timeout=10,
        total_timeout=5,
        max_connections=5,
        max_keepalive_connections=6,
        client_key="k",
        ca_file="c",
        verify_ssl=False,
    )
    assert len(error.problems) == 6


@given(st.text(max_size=200))
def test_whatever_the_token_is_it_is_not_shown(text: str) -> None:
    secret = f"{CANARY}{text}"
    try:
        shown = repr(ClientConfig(auth=BearerConfig(token=SecretStr(secret))))
    except ConfigurationError as error:
        shown = f"{error} {error!r}"
    assert CANARY not in shown


# -- one against the other ---------------------------------------------------------------------------------------

CONTRADICTIONS: list[dict[str, Any]] = [
    {"connect_timeout": 11, "timeout": 10},
    {"timeout": 11, "total_timeout": 10},
    {"connect_timeout": 11, "total_timeout": 10},
    {"connect_timeout": 40, "total_timeout": 35},
    {"max_keepalive_connections": 11, "max_connections": 10},
    {"timeout": 30, "total_timeout": 29.9},  # a default that is written out is set
    {"max_keepalive_connections": 20, "max_connections": 10},
    {"client_key": "key.pem"},
    {"ca_file": "ca.pem", "verify_ssl": False},
    {"engine": "asyncio", "http2": True},
    {"engine": "asyncio", "proxy": "http://proxy:3128"},
]


@pytest.mark.parametrize("options", CONTRADICTIONS)
def test_what_was_set_must_not_contradict(options: dict[str, Any]) -> None:
    message = str(bad(**options))
    assert all(option in message for option in options)


@pytest.mark.parametrize(
    "options",
    [
        {"connect_timeout": 10, "timeout": 10, "total_timeout": 10},
        {"max_keepalive_connections": 10, "max_connections": 10},
        {"max_keepalive_connections": 0, "max_connections": 1},
        {"client_cert": "both.pem"},
        {"client_cert": "cert.pem", "client_key": "key.pem"},
        {"engine": "httpcore", "http2": True, "proxy": "socks5://proxy"},
        {"retry_attempts": 1},
        {"retry_attempts": 100},
        {"retry_backoff_factor": 0, "retry_max_delay": 0, "retry_jitter": 1, "retry_budget": 0},
        {"retry_statuses": {100, 599}},
        {"max_redirects": 0, "rate_limit_max_wait": 0, "keepalive_expiry": 0},
        {"circuit_breaker_failure_rate": 1},
        {"rate_limit_rate": 1e-9},
        {"base_url": "http://a.test:1"},
        {"base_url": "https://a.test:65535/v1"},
        {"ca_file": "ca.pem"},
        {"verify_ssl": False},
        {"auth": BearerConfig(token=SecretStr("x" * 16384))},
        {
            "auth": OAuth2Config(
                token_url="https://a.test", client_id="i", client_secret=SecretStr("s"), cache_duration=1
            )
        },
    ],
)
def test_equal_and_boundary_values_are_taken(options: dict[str, Any]) -> None:
    config = ClientConfig(**options)
    assert {option: getattr(config, option) for option in options} == options


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        ({"total_timeout": 10}, {"timeout": 10.0, "connect_timeout": None}),
        ({"total_timeout": 100}, {"timeout": 30.0}),
        ({"connect_timeout": 40}, {"timeout": 40.0, "total_timeout": None}),
        ({"connect_timeout": 5}, {"timeout": 30.0}),
        ({"connect_timeout": 5, "total_timeout": 8}, {"timeout": 8.0}),
        ({"connect_timeout": 40, "total_timeout": 50}, {"timeout": 40.0}),
        ({"max_connections": 5}, {"max_keepalive_connections": 5}),
        ({"max_connections": 50}, {"max_keepalive_connections": 20}),
        ({"max_keepalive_connections": 500}, {"max_connections": 500}),
    ],
)
def test_a_default_that_was_not_set_gives_way(options: dict[str, Any], adapted: dict[str, Any]) -> None:
    config = ClientConfig(**options)
    assert {option: getattr(config, option) for option in adapted} == adapted
    assert config.model_fields_set == set(options)


def test_what_gave_way_does_not_count_as_set_in_a_view_and_over_another_option() -> None:
    client = AsyncHTTPClient(config=ClientConfig(total_timeout=10))
    assert client.config.timeout == 10.0
    assert client.with_options(total_timeout=20).config.timeout == 20.0
    assert client.with_options(total_timeout=5).config.timeout == 5.0


positive = st.floats(0.001, 1000.0)
maybe = st.none() | positive


@given(st.fixed_dictionaries({}, optional={"timeout": positive, "connect_timeout": maybe, "total_timeout": maybe}))
def test_whatever_is_set_the_limits_are_in_order_or_refused(options: dict[str, Any]) -> None:
    given_limits = [options.get(name) for name in ("connect_timeout", "timeout", "total_timeout")]
    in_order = [limit for limit in given_limits if limit is not None]
    if in_order != sorted(in_order):
        bad(**options)
        return
    config = ClientConfig(**options)
    limits = [limit for limit in (config.connect_timeout, config.timeout, config.total_timeout) if limit is not None]
    assert limits == sorted(limits)
    assert all(getattr(config, name) == value for name, value in options.items())


# -- what is shown -----------------------------------------------------------------------------------------------

SECRETS: list[dict[str, Any]] = [
    {"auth": {"type": "bearer", "token": CANARY}},
    {"auth": {"type": "api_key", "api_key": CANARY}},
    {"auth": {"type": "basic", "username": "u", "password": CANARY}},
    {"auth": {"type": "oauth2", "token_url": "https://a.test/", "client_id": "i", "client_secret": CANARY}},
    {
        "auth": {
            "type": "oauth2",
            "token_url": f"https://u:{CANARY}@a.test/?client_secret={CANARY}",
            "client_id": "i",
            "client_secret": "s",
        }
    },
    {"base_url": f"https://user:{CANARY}@api.test/v1"},
    {"proxy": f"http://user:{CANARY}@proxy:3128"},
    *(
        {"headers": {name: CANARY}}
        for name in ("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-API-Key", "X-Auth-Token")
    ),
]


@pytest.mark.parametrize("options", SECRETS)
def test_its_text_holds_no_secret(options: dict[str, Any]) -> None:
    config = ClientConfig(**options)
    client = AsyncHTTPClient(config=config, name="api")
    for shown in (repr(config), str(config), f"{config}", repr(config.auth), repr(client), str(client)):
        assert CANARY not in shown
    assert "timeout=30.0" in repr(config)


def test_a_dump_holds_no_secret_of_auth() -> None:
    config = ClientConfig(auth=BearerConfig(token=SecretStr(CANARY)))
    assert CANARY not in str(config.model_dump()) + config.model_dump_json()


@pytest.mark.parametrize("option", ["timeout", "max_connections", "retry_jitter", "rate_limit_burst", "base_url"])
def test_a_truth_value_is_neither_a_number_nor_a_text(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}: must not be True or False"):
        ClientConfig(**{option: True})


def test_two_names_of_one_header_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="headers: X-A and x-a are one header"):
        ClientConfig(headers={"X-A": "1", "x-a": "2"})


@pytest.mark.parametrize("kind", ["Bearer", "BEARER", " bearer "])
def test_the_type_of_auth_may_be_written_in_any_case(kind: str) -> None:
    assert isinstance(ClientConfig(auth={"type": kind, "token": "t"}).auth, BearerConfig)
    assert isinstance(ClientConfig(auth={"type": "API-Key", "api_key": "k"}).auth, APIKeyConfig)


def test_a_schema_can_be_made_of_it() -> None:
    assert set(json.loads(json.dumps(ClientConfig.model_json_schema()))["properties"]) == set(DEFAULTS)


def test_inside_of_a_model_of_the_users_it_names_the_option_and_no_secret() -> None:
    class Settings(BaseModel):
        github: ClientConfig

    section = {"timeout": -1, "auth": {"type": "bearer", "token": f"{CANARY}\n"}}
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"github": section})
    messages = [error["msg"] for error in caught.value.errors(include_input=False)]
    assert any("timeout" in message and "auth.token" in message for message in messages)
    assert CANARY not in "".join(messages)
    assert Settings(github=ClientConfig(timeout=5)).github.timeout == 5.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClientConfig(auth={"type": "bearer", "token": CANARY}),  # type: ignore[arg-type]
        lambda: ClientConfig(headers={"X-Vendor": CANARY}),
        lambda: ClientConfig(auth={"type": "bearer", "token": CANARY}).auth,  # type: ignore[arg-type]
    ],
)
def test_it_cannot_be_written_down_but_copied(make: Callable[[], Any]) -> None:
    config = make()
    with pytest.raises(TypeError, match="must not be written down"):
        pickle.dumps(config)
    assert config.model_copy() == copy.deepcopy(config) == config
