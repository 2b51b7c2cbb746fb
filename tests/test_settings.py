from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from fastapi_http_client import transport
from fastapi_http_client.config import BearerConfig, ClientConfig, OAuth2Config, given_fields
from fastapi_http_client.errors import ConfigurationError, Problem
from fastapi_http_client.settings.load import Settings, load_settings, located
from fastapi_http_client.settings.sections import code_section, merge
from fastapi_http_client.settings.variables import (
    OPTIONS,
    checked_prefix,
    client_name,
    near_miss,
    normalise,
    variable,
)

PREFIX = "HTTP_CLIENT__"
Load = Callable[..., Settings]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads settings from exactly the variables given (and the places given as keywords)."""

    def load(
        variables: Mapping[str, str] | None = None, code: Mapping[str, Mapping[str, Any]] | None = None, **places: Any
    ) -> Settings:
        monkeypatch.setattr(os, "environ", dict(variables or {}))
        sections = {name: code_section(name, options) for name, options in (code or {}).items()}
        return load_settings(sections, **{"prefix": PREFIX, **places})

    return load


def problems(settings: Settings) -> list[str]:
    return [str(problem) for problem in settings.problems]


def config(settings: Settings, name: str = "github") -> ClientConfig:
    assert problems(settings) == []
    return settings.clients[name].config


# -- variables ---------------------------------------------------------------------------------------------------


def test_each_option_is_a_variable(load: Load) -> None:
    settings = load(
        {
            "HTTP_CLIENT__GITHUB__BASE_URL": "https://api.github.com",
            "HTTP_CLIENT__GITHUB__TIMEOUT": "5",
            "HTTP_CLIENT__GITHUB__FOLLOW_REDIRECTS": "true",
            "HTTP_CLIENT__BILLING__RETRY_ATTEMPTS": "1",
        }
    )
    github = config(settings)
    assert (github.base_url, github.timeout, github.follow_redirects) == ("https://api.github.com", 5.0, True)
    assert config(settings, "billing").retry_attempts == 1
    assert settings.names == {"github", "billing"}
    assert str(settings.clients["github"].sources["timeout"]) == "environment HTTP_CLIENT__GITHUB__TIMEOUT"


def test_without_variables_there_are_no_clients_and_no_problems(load: Load) -> None:
    settings = load({"PATH": "/bin", "DATABASE_URL": "x"})
    assert (settings.names, settings.problems, settings.store) == (frozenset(), (), None)


def test_names_are_case_insensitive(load: Load) -> None:
    assert config(load({"http_client__GitHub__timeOut": "5"})).timeout == 5.0


def test_a_dash_equals_an_underscore(load: Load) -> None:
    settings = load({"HTTP_CLIENT__MY-API__TIMEOUT": "5", "HTTP_CLIENT__MY_API__RETRY_ATTEMPTS": "2"})
    assert (config(settings, "my_api").timeout, config(settings, "my_api").retry_attempts) == (5.0, 2)


def test_one_option_under_two_spellings_with_two_values_is_an_error(load: Load) -> None:
    settings = load({"HTTP_CLIENT__MY_API__TIMEOUT": "5", "http_client__my-api__timeout": "6"})
    assert problems(settings) == [
        "http_client__my-api__timeout: is the same option as HTTP_CLIENT__MY_API__TIMEOUT and has another value"
    ]
    assert config(load({"HTTP_CLIENT__A__TIMEOUT": "5", "http_client__a__timeout": "5"}), "a").timeout == 5.0


@pytest.mark.parametrize("text", ["429, 503", "[429, 503]", "429,503"])
def test_a_set_reads_with_commas_or_as_json(load: Load, text: str) -> None:
    assert config(load({"HTTP_CLIENT__GITHUB__RETRY_STATUSES": text})).retry_statuses == {429, 503}


def test_an_empty_variable_is_not_set(load: Load) -> None:
    settings = load(
        {"HTTP_CLIENT__GITHUB__TIMEOUT": "", "HTTP_CLIENT__GITHUB__NONSENSE": "", "HTTP_CLIENTS__X__TIMEOUT": ""}
    )
    assert (settings.names, settings.problems) == (frozenset(), ())


def test_null_is_none(load: Load) -> None:
    settings = load(
        {"HTTP_CLIENT__GITHUB__CONNECT_TIMEOUT": "null", "HTTP_CLIENT__GITHUB__AUTH": "null"},
        {"github": {"connect_timeout": 3.0, "auth": BearerConfig(token=SecretStr("t"))}},
    )
    assert config(settings).connect_timeout is None
    assert config(settings).auth is None


def test_a_client_may_be_called_like_an_option(load: Load) -> None:
    assert config(load({"HTTP_CLIENT__PROXY__TIMEOUT": "5"}), "proxy").timeout == 5.0
    assert config(load({"HTTP_CLIENT__MY_AUTH": '{"timeout": 5}'}), "my_auth").timeout == 5.0


# -- JSON --------------------------------------------------------------------------------------------------------


def test_a_whole_client_may_be_json_and_single_variables_win(load: Load) -> None:
    whole = {"base-url": "http://a", "Timeout": 7, "headers": {"X-A": "1"}, "auth": {"type": "bearer", "token": "t"}}
    settings = load(
        {
            "HTTP_CLIENT__GITHUB": json.dumps(whole),
            "HTTP_CLIENT__GITHUB__TIMEOUT": "3",
            "HTTP_CLIENT__GITHUB__HEADERS": '{"x-a": "2", "X-B": "3"}',
            "HTTP_CLIENT__GITHUB__AUTH__TOKEN": "u",
        }
    )
    github = config(settings)
    assert (github.base_url, github.timeout) == ("http://a", 3.0)
    assert github.headers == {"x-a": "2", "X-B": "3"}
    assert isinstance(github.auth, BearerConfig)
    assert github.auth.token.get_secret_value() == "u"
    assert str(settings.clients["github"].sources["base_url"]) == "environment HTTP_CLIENT__GITHUB, key base-url"


def test_auth_may_be_json(load: Load) -> None:
    settings = load({"HTTP_CLIENT__GITHUB__AUTH": '{"type": "basic", "username": "u", "password": "p"}'})
    assert config(settings).auth is not None


@pytest.mark.parametrize("text", ["{'base_url': 1}", "[1]", "3", "https://api.github.com", "[" * 100_000])
def test_a_whole_client_that_is_no_json_object_is_an_error(load: Load, text: str) -> None:
    assert problems(load({"HTTP_CLIENT__GITHUB": text})) == [
        "HTTP_CLIENT__GITHUB: is not a JSON object with the options of a client; "
        "single options are HTTP_CLIENT__GITHUB__<OPTION>"
    ]


def test_problems_inside_json_name_variable_and_key(load: Load) -> None:
    whole = {"timeout": "abc", "base_ulr": "x", "headers": "y", "auth": {"type": "bearer", "tokn": "z", "token": "t"}}
    assert problems(load({"HTTP_CLIENT__GITHUB": json.dumps(whole)})) == [
        "HTTP_CLIENT__GITHUB, key base_ulr: unknown option, did you mean base_url?",
        "HTTP_CLIENT__GITHUB, key headers: is not a JSON object",
        "HTTP_CLIENT__GITHUB, key auth.tokn: unknown option, did you mean token?",
        "HTTP_CLIENT__GITHUB, key timeout: Input should be a valid number, unable to parse string as a number",
    ]


# -- headers -----------------------------------------------------------------------------------------------------


def test_headers_merge_by_name_whatever_their_case(load: Load) -> None:
    settings = load(
        {
            "HTTP_CLIENT__DEFAULT__HEADERS": '{"User-Agent": "ours", "X-Team": "a"}',
            "HTTP_CLIENT__GITHUB__HEADERS": '{"x-team": "b"}',
        },
        {"github": {"headers": {"X-TEAM": "c", "X-Code": "d"}}},
    )
    assert config(settings).headers == {"User-Agent": "ours", "x-team": "b", "X-Code": "d"}


def test_a_header_called_type_is_a_header_like_any_other(load: Load) -> None:
    settings = load(
        {"HTTP_CLIENT__GITHUB__HEADERS": '{"type": "b"}'}, {"github": {"headers": {"type": "a", "X-Code": "d"}}}
    )
    assert config(settings).headers == {"type": "b", "X-Code": "d"}


def test_null_takes_a_header_away(load: Load) -> None:
    code = {"github": {"headers": {"X-A": "1", "X-B": "2"}}}
    assert config(load({"HTTP_CLIENT__GITHUB__HEADERS": '{"x-a": null}'}, code)).headers == {"X-B": "2"}
    assert config(load({"HTTP_CLIENT__GITHUB__HEADERS": "null"}, code)).headers == {}


def test_bad_headers_are_named(load: Load) -> None:
    settings = load(
        {
            "HTTP_CLIENT__A__HEADERS": "X-A: 1",
            "HTTP_CLIENT__B__HEADERS__X_API_KEY": "sesame",
            "HTTP_CLIENT__C__HEADERS": '{"X.Y": "a\\nb"}',
        }
    )
    assert problems(settings) == [
        "HTTP_CLIENT__A__HEADERS: is not a JSON object",
        "HTTP_CLIENT__B__HEADERS__X_API_KEY: unknown option; headers are one JSON object, "
        'HTTP_CLIENT__B__HEADERS={"X-Name": "value"}',
        "HTTP_CLIENT__C__HEADERS, key X.Y: holds a character that no header value may hold",
    ]


# -- auth --------------------------------------------------------------------------------------------------------


def test_auth_reads_from_single_variables(load: Load) -> None:
    settings = load(
        {
            "HTTP_CLIENT__GITHUB__AUTH__TYPE": "oauth2",
            "HTTP_CLIENT__GITHUB__AUTH__TOKEN_URL": "https://id.example/token",
            "HTTP_CLIENT__GITHUB__AUTH__CLIENT_ID": "id",
            "HTTP_CLIENT__GITHUB__AUTH__CLIENT_SECRET": "sesame",
            "HTTP_CLIENT__GITHUB__AUTH__SCOPE": "null",
        }
    )
    auth = config(settings).auth
    assert isinstance(auth, OAuth2Config)
    assert (auth.client_secret.get_secret_value(), auth.scope) == ("sesame", None)


def test_incomplete_auth_names_the_variable_that_is_missing(load: Load) -> None:
    settings = load(
        {
            "HTTP_CLIENT__A__AUTH__TOKEN": "sesame",
            "HTTP_CLIENT__B__AUTH__TYPE": "bearer",
            "HTTP_CLIENT__C__AUTH__TYPE": "sesame",
            "HTTP_CLIENT__D__AUTH__TYPE": "bearer",
            "HTTP_CLIENT__D__AUTH__TOKN": "sesame",
            "HTTP_CLIENT__E__AUTH": "sesame",
        }
    )
    assert problems(settings) == [
        "HTTP_CLIENT__E__AUTH: is not a JSON object",
        "HTTP_CLIENT__A__AUTH__TYPE: needs a type: one of bearer, api_key, basic, oauth2",
        "HTTP_CLIENT__B__AUTH__TOKEN: is missing",
        "HTTP_CLIENT__C__AUTH__TYPE: unknown type; known are bearer, api_key, basic, oauth2",
        "HTTP_CLIENT__D__AUTH__TOKEN: is missing",
        "HTTP_CLIENT__D__AUTH__TOKN: unknown option, did you mean HTTP_CLIENT__D__AUTH__TOKEN?",
    ]


@pytest.mark.parametrize("kind", [{}, {"HTTP_CLIENT__D__AUTH__TYPE": "foo"}], ids=["no type", "unknown type"])
def test_a_misspelled_field_of_auth_is_named_without_a_type_too(load: Load, kind: dict[str, str]) -> None:
    settings = load({"HTTP_CLIENT__D__AUTH__TYP": "bearer", "HTTP_CLIENT__D__AUTH__TOKEN": "x", **kind})
    found = problems(settings)
    assert "HTTP_CLIENT__D__AUTH__TYP: unknown option, did you mean HTTP_CLIENT__D__AUTH__TYPE?" in found
    assert any(problem.startswith("HTTP_CLIENT__D__AUTH__TYPE: ") for problem in found)
    assert len(found) == 2


def test_a_bad_value_does_not_hide_what_contradicts_itself(load: Load) -> None:
    settings = load(
        {
            "HTTP_CLIENT__D__TIMEOUT": "5",
            "HTTP_CLIENT__D__CONNECT_TIMEOUT": "6",
            "HTTP_CLIENT__D__RETRY_ATTEMPTS": "many",
        }
    )
    first, second = sorted(problems(settings))
    assert first == (
        "HTTP_CLIENT__D__CONNECT_TIMEOUT, HTTP_CLIENT__D__TIMEOUT: connect_timeout (6) is above timeout (5)"
    )
    assert second.startswith("HTTP_CLIENT__D__RETRY_ATTEMPTS: ")


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [("FOLLOW_REDIRECTS", " true ", True), ("PROPAGATION", "internal ", "internal"), ("TIMEOUT", " 5\n", 5.0)],
)
def test_blanks_around_a_value_are_nothing(load: Load, option: str, text: str, value: object) -> None:
    settings = load({f"HTTP_CLIENT__D__{option}": text})
    assert getattr(config(settings, "d"), option.lower()) == value


def test_a_section_with_a_type_replaces_the_one_under_it(load: Load) -> None:
    oauth2 = OAuth2Config(token_url="https://id.example/t", client_id="i", client_secret=SecretStr("s"))
    settings = load(
        {
            "HTTP_CLIENT__GITHUB__AUTH__TYPE": "bearer",
            "HTTP_CLIENT__GITHUB__AUTH__TOKEN": "t",
            "HTTP_CLIENT__DEFAULT__AUTH__TYPE": "api_key",
            "HTTP_CLIENT__DEFAULT__AUTH__API_KEY": "k",
            "HTTP_CLIENT__DEFAULT__AUTH__HEADER_NAME": "X-Old",
            "HTTP_CLIENT__BILLING__AUTH__TYPE": "api_key",
            "HTTP_CLIENT__BILLING__AUTH__API_KEY": "own",
            "HTTP_CLIENT__OTHER__TIMEOUT": "5",
        },
        {"github": {"auth": oauth2}},
    )
    assert getattr(config(settings).auth, "type", None) == "bearer"
    assert getattr(config(settings, "billing").auth, "header_name", None) == "X-API-Key"
    assert getattr(config(settings, "other").auth, "header_name", None) == "X-Old"


def test_a_section_without_a_type_fills_in_what_lies_under_or_over_it(load: Load, tmp_path: Path) -> None:
    """The type in the environment and the secret in a file, or the section in code and its secret outside."""
    (tmp_path / "http_client__github__auth__token").write_text("from-file\n")
    settings = load({"HTTP_CLIENT__GITHUB__AUTH__TYPE": "bearer"}, secrets_dir=tmp_path)
    auth = config(settings).auth
    assert isinstance(auth, BearerConfig)
    assert auth.token.get_secret_value() == "from-file"
    oauth2 = OAuth2Config(token_url="https://id.example/t", client_id="i", client_secret=SecretStr("s"))
    settings = load({"HTTP_CLIENT__GITHUB__AUTH__CLIENT_SECRET": "new"}, {"github": {"auth": oauth2}})
    auth = config(settings).auth
    assert isinstance(auth, OAuth2Config)
    assert (auth.client_id, auth.client_secret.get_secret_value()) == ("i", "new")


def test_an_auth_object_of_code_gives_way_to_the_environment_but_not_to_default(load: Load) -> None:
    auth = httpx.BasicAuth("u", "p")
    bearer = {"HTTP_CLIENT__DEFAULT__AUTH__TYPE": "bearer", "HTTP_CLIENT__DEFAULT__AUTH__TOKEN": "t"}
    settings = load(bearer, {"github": {"auth": auth}})
    assert settings.clients["github"].auth is auth
    assert config(settings).auth is None
    settings = load(
        {name.replace("DEFAULT", "GITHUB"): text for name, text in bearer.items()}, {"github": {"auth": auth}}
    )
    assert settings.clients["github"].auth is None
    assert config(settings).auth is not None
    settings = load({"HTTP_CLIENT__GITHUB__AUTH": "null"}, {"github": {"auth": auth}})
    assert (settings.clients["github"].auth, config(settings).auth) == (None, None)


# -- places ------------------------------------------------------------------------------------------------------


def test_places_in_their_order(load: Load, tmp_path: Path) -> None:
    """Environment > .env (the last file) > .env (the first) > secrets > code > DEFAULT > built-in."""
    secrets, first, last = tmp_path / "secrets", tmp_path / "first.env", tmp_path / "last.env"
    secrets.mkdir()
    options = ["timeout", "max_connections", "retry_attempts", "max_redirects", "retry_budget", "rate_limit_burst"]
    for number, option in enumerate(options):
        if number < 4:
            (secrets / f"http_client__github__{option}").write_text("14\n")
    first.write_text("".join(f"HTTP_CLIENT__GITHUB__{option.upper()}=13\n" for option in options[:3]))
    last.write_text("".join(f"export HTTP_CLIENT__GITHUB__{option.upper()}='12'\n" for option in options[:2]))
    environment = {f"HTTP_CLIENT__DEFAULT__{option.upper()}": "16" for option in options}
    environment["HTTP_CLIENT__GITHUB__TIMEOUT"] = "11"
    code = {"github": dict.fromkeys(options[:5], 15)}
    settings = load(environment, code, env_file=[first, str(last)], secrets_dir=secrets)
    assert [getattr(config(settings), option) for option in options] == [11, 12, 13, 14, 15, 16]
    assert config(settings).max_keepalive_connections == 12  # built-in 20, adapted to max_connections
    sources = settings.clients["github"].sources
    assert [str(sources[option]) for option in options] == [
        "environment HTTP_CLIENT__GITHUB__TIMEOUT",
        f"{last} HTTP_CLIENT__GITHUB__MAX_CONNECTIONS",
        f"{first} HTTP_CLIENT__GITHUB__RETRY_ATTEMPTS",
        "secrets file http_client__github__max_redirects",
        'code clients["github"].retry_budget',
        "environment HTTP_CLIENT__DEFAULT__RATE_LIMIT_BURST",
    ]


def test_default_is_resolved_over_the_same_places(load: Load, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("HTTP_CLIENT__DEFAULT__TIMEOUT=5\nHTTP_CLIENT__DEFAULT__RETRY_ATTEMPTS=5\n")
    settings = load({"HTTP_CLIENT__DEFAULT__TIMEOUT": "4"}, {"github": {}}, env_file=env_file)
    assert (config(settings).timeout, config(settings).retry_attempts) == (4.0, 5)
    assert settings.names == {"github"}


def test_only_fields_that_were_set_in_code_lie_over_default(load: Load) -> None:
    code = {"github": given_fields(ClientConfig(timeout=30.0))}
    variables = {"HTTP_CLIENT__DEFAULT__TIMEOUT": "5", "HTTP_CLIENT__DEFAULT__RETRY_ATTEMPTS": "7"}
    assert (config(load(variables, code)).timeout, config(load(variables, code)).retry_attempts) == (30.0, 7)


def test_an_env_file_may_hold_variables_of_others_and_nothing(load: Load, tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text(
        "DATABASE_URL=x\nHTTP_CLIENT__A__TIMEOUT=\nHTTP_CLIENT__A__PROXY\n# c\nHTTP_CLIENT__B__TIMEOUT=5\n"
    )
    settings = load(env_file=env_file)
    assert problems(settings) == []
    assert settings.names == {"b"}


def test_a_missing_env_file_is_no_problem(load: Load, tmp_path: Path) -> None:
    assert load(env_file=tmp_path / ".env").problems == ()


def test_an_env_file_that_cannot_be_read_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "latin.env").write_bytes(b"A=\xe9\n")
    assert problems(load(env_file=[tmp_path, tmp_path / "latin.env"])) == [
        f"env_file: {tmp_path} cannot be read (IsADirectoryError)",
        f"env_file: {tmp_path / 'latin.env'} cannot be read (UnicodeDecodeError)",
    ]


def test_a_missing_secrets_dir_is_named(load: Load, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert problems(load(secrets_dir=str(missing))) == [
        f"secrets_dir: {missing} is no directory that can be read (FileNotFoundError)"
    ]


def test_secrets_of_others_are_not_opened(load: Load, tmp_path: Path) -> None:
    (tmp_path / "keystore.p12").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text("  t\n")
    (tmp_path / "HTTP_CLIENT__A__AUTH__TOKEN").symlink_to("..data/token")  # as Kubernetes mounts them
    settings = load({"HTTP_CLIENT__A__AUTH__TYPE": "bearer"}, secrets_dir=tmp_path)
    auth = config(settings, "a").auth
    assert isinstance(auth, BearerConfig)
    assert auth.token.get_secret_value() == "t"


def test_a_secret_that_cannot_be_decoded_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "http_client__a__auth__token").write_bytes(b"\xff")
    (tmp_path / "http_clients__a__auth__token").write_bytes(b"\xff")
    assert problems(load(secrets_dir=tmp_path)) == [
        "http_client__a__auth__token (secrets file): cannot be read (UnicodeDecodeError)",
        "http_clients__a__auth__token (secrets file): is not read; did you mean HTTP_CLIENT__A__AUTH__TOKEN?",
    ]


def test_the_store_is_read_from_every_place(load: Load, tmp_path: Path) -> None:
    (tmp_path / "http_clients_store").write_text("redis://secrets")
    (tmp_path / ".env").write_text("HTTP_CLIENTS_STORE=redis://file")
    assert load(secrets_dir=tmp_path).store == "redis://secrets"
    assert load(secrets_dir=tmp_path, env_file=tmp_path / ".env").store == "redis://file"
    settings = load({"HTTP_CLIENTS_STORE": "redis://environment"}, secrets_dir=tmp_path, env_file=tmp_path / ".env")
    assert (settings.store, settings.problems, settings.names) == ("redis://environment", (), frozenset())


def test_importing_the_package_reads_nothing() -> None:
    code = (
        "import os, sys\n"
        "class Closed(dict):\n"
        "    def __getitem__(self, key): self.seen(key); return super().__getitem__(key)\n"
        "    def get(self, key, default=None): self.seen(key); return super().get(key, default)\n"
        "    def items(self): raise AssertionError('all variables were read')\n"
        "    def seen(self, key): assert 'HTTP_CLIENT' not in str(key).upper(), key\n"
        "os.environ = Closed(os.environ)\n"
        "from fastapi_http_client.edge.registry import HTTPClients\n"
        "HTTPClients(env_file='/nowhere', secrets_dir='/nowhere')\n"
    )
    environment = {**os.environ, "HTTP_CLIENT__A__TIMEOUT": "abc"}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- wrong names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HTTP_CLIENT__GITHUB__BASEURL", "HTTP_CLIENT__GITHUB__BASE_URL"),
        ("HTTP_CLIENT__GITHUB__URL", "HTTP_CLIENT__GITHUB__BASE_URL"),
        ("HTTP_CLIENT__GITHUB__TIMOUT", "HTTP_CLIENT__GITHUB__TIMEOUT"),
        ("HTTP_CLIENT__GITHUB__AUTH_TOKEN", "HTTP_CLIENT__GITHUB__AUTH__TOKEN"),
        ("HTTP_CLIENT__GITHUB__RETRY__ATTEMPTS", "HTTP_CLIENT__GITHUB__RETRY_ATTEMPTS"),
        ("HTTP_CLIENT__A__B__BASE_URL", "HTTP_CLIENT__A_B__BASE_URL"),
        ("HTTP_CLIENT__A__B__AUTH__TOKEN", "HTTP_CLIENT__A_B__AUTH__TOKEN"),
        ("HTTP_CLIENT__GITHUB_AUTH__TOKEN", "HTTP_CLIENT__GITHUB__AUTH__TOKEN"),
        ("HTTP_CLIENT__GITHUB_BASE_URL", "HTTP_CLIENT__GITHUB__BASE_URL"),
        ("HTTP_CLIENT__GITHUB_CONNECT_TIMEOUT", "HTTP_CLIENT__GITHUB__CONNECT_TIMEOUT"),
        ("http_client__github__baseurl", "HTTP_CLIENT__GITHUB__BASE_URL"),
        ("HTTP_CLIENT__DEFAULT__TIMOUT", "HTTP_CLIENT__DEFAULT__TIMEOUT"),
        ("HTTP_CLIENT__GITHUB__FROBNICATE_ALL_THE_THINGS", None),
        ("HTTP_CLIENTS__X__TIMEOUT", "HTTP_CLIENT__X__TIMEOUT"),
        ("HTTP_CLIENTS__X__AUTH__TOKEN", "HTTP_CLIENT__X__AUTH__TOKEN"),
        ("HTTP_CLIENT_X__BASE_URL", "HTTP_CLIENT__X__BASE_URL"),
        ("HTTPCLIENT__X__BASE_URL", "HTTP_CLIENT__X__BASE_URL"),
        ("HTTP__CLIENT__X__BASE_URL", "HTTP_CLIENT__X__BASE_URL"),
        ("HTTPCLIENTS__MY-API__BASEURL", "HTTP_CLIENT__MY_API__BASE_URL"),
        ("HTTP_CLIENTS__X_BASE_URL", "HTTP_CLIENT__X__BASE_URL"),
        ("http_clients__x__timeout", "HTTP_CLIENT__X__TIMEOUT"),
    ],
)
def test_a_wrong_name_is_an_error_with_the_right_one(load: Load, name: str, meant: str | None) -> None:
    settings = load({name: "sesame"})
    assert len(settings.problems) == 1
    assert settings.problems[0].argument == name
    assert "sesame" not in settings.problems[0].message
    if meant is None:
        assert settings.problems[0].message == "unknown option"
    else:
        assert settings.problems[0].message.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(
    "name", ["HTTP_CLIENT__", "HTTP_CLIENT____TIMEOUT", "HTTP_CLIENT___X__TIMEOUT", "HTTP_CLIENT__X_"]
)
def test_a_name_without_a_client_is_an_error(load: Load, name: str) -> None:
    settings = load({name: "5"})
    assert problems(settings) == [f"{name}: names no client; a variable is HTTP_CLIENT__<NAME>__<OPTION>"]
    assert settings.names == frozenset()


@pytest.mark.parametrize(
    "name",
    [
        "HTTP_CLIENTS_STORE",
        "HTTP_CLIENT_TIMEOUT",
        "HTTP_CLIENT_BASE_URL",
        "HTTP_CLIENT_GITHUB_BASE_URL",
        "HTTP_CLIENT_SECRET",
        "HTTP_CLIENT",
        "HTTPCLIENT_HOME",
        "HTTPCLIENT_TIMEOUT",
        "HTTP_CLIENT_X__COLOUR",
        "HTTP_CLIENTS__X__COLOUR",
        "HTTP_CLIENTS__X__URL__Y",
        "HTTP_CLIENTS__PER_PAGE",
        "HTTP_CLIENT_INTERNAL__BILLING__TIMEOUT",  # HTTP_CLIENT_INTERNAL__ may be the prefix of another registry
        "MY_HTTP_CLIENT__X__TIMEOUT",
        "HTTP_SERVER__X__TIMEOUT",
        "HTTP_CLIENTELE__X__TIMEOUT",
        "HTTPX_CLIENT__X__TIMEOUT",
        "__HTTP_CLIENT__X__TIMEOUT",
    ],
)
def test_variables_of_others_are_left_alone(load: Load, name: str) -> None:
    settings = load({name: "5"})
    assert (settings.problems, settings.names) == ((), frozenset())


def test_a_client_as_json_under_a_near_miss_is_an_error(load: Load) -> None:
    assert problems(load({"HTTP_CLIENTS__X": '{"base-url": "http://x"}'})) == [
        "HTTP_CLIENTS__X: is not read; did you mean HTTP_CLIENT__X?"
    ]
    assert problems(load({"HTTP_CLIENTS__X": '{"colour": "red"}'})) == []


def test_a_name_that_ends_in_an_option_is_a_client_when_its_value_is_one(load: Load) -> None:
    assert config(load({"HTTP_CLIENT__MY_PROXY": '{"timeout": 5}'}), "my_proxy").timeout == 5.0
    settings = load({"HTTP_CLIENT__GITHUB_HEADERS": '{"X-A": "1"}'})
    assert "did you mean HTTP_CLIENT__GITHUB__HEADERS?" in problems(settings)[0]
    assert settings.names == frozenset()


def test_another_prefix_has_its_own_near_misses(load: Load) -> None:
    variables = {
        "ACME_API__X__TIMEOUT": "5",
        "ACME_APIS__X__TIMEOUT": "6",
        "ACMEAPI__X__TIMEOUT": "7",
        "HTTP_CLIENTS__X__TIMEOUT": "8",
        "HTTP_CLIENT__X__NONSENSE": "9",
    }
    settings = load(variables, prefix="ACME_API__")
    assert [problem.argument for problem in settings.problems] == ["ACME_APIS__X__TIMEOUT", "ACMEAPI__X__TIMEOUT"]
    assert settings.clients["x"].config.timeout == 5.0


def test_a_prefix_with_one_underscore_works(load: Load) -> None:
    settings = load({"APIS_X__TIMEOUT": "5", "API_X__TIMEOUT": "6"}, prefix="APIS_")
    assert settings.clients["x"].config.timeout == 5.0
    assert problems(settings) == ["API_X__TIMEOUT: is not read; did you mean APIS_X__TIMEOUT?"]


@pytest.mark.parametrize("prefix", ["", "_", "__", "HTTP_CLIENT"])
def test_a_prefix_that_cannot_be_told_apart_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="env_prefix"):
        checked_prefix(prefix)


# -- wrong values ------------------------------------------------------------------------------------------------


def test_all_problems_of_all_clients_and_places_come_at_once(load: Load, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HTTP_CLIENT__A__RETRY_ATTEMPTS=many\n")
    (tmp_path / "http_client__b__retry_budget").write_text("much")
    settings = load(
        {
            "HTTP_CLIENT__A__TIMEOUT": "abc",
            "HTTP_CLIENT__A__RETRY_STATUSES": "429, x",
            "HTTP_CLIENT__A__CA_FILE": "/nowhere/ca.pem",
            "HTTP_CLIENT__B__VERIFY_SSL": "perhaps",
            "HTTP_CLIENT__B__BASE_URL": "api.example.com",
            "HTTP_CLIENTS__C__TIMEOUT": "5",
        },
        {"b": {"timeout": -1}},
        env_file=tmp_path / ".env",
        secrets_dir=tmp_path,
    )
    assert {problem.argument for problem in settings.problems} == {
        "HTTP_CLIENT__A__TIMEOUT",
        "HTTP_CLIENT__A__RETRY_STATUSES",
        "HTTP_CLIENT__A__CA_FILE",
        "HTTP_CLIENT__B__VERIFY_SSL",
        "HTTP_CLIENT__B__BASE_URL",
        "HTTP_CLIENTS__C__TIMEOUT",
        f"HTTP_CLIENT__A__RETRY_ATTEMPTS ({tmp_path / '.env'})",
        "http_client__b__retry_budget (secrets file)",
        'clients["b"].timeout',
    }
    assert settings.clients == {}
    assert settings.names == {"a", "b"}


def test_a_problem_of_default_is_reported_once_and_even_without_clients(load: Load) -> None:
    variables = {"HTTP_CLIENT__DEFAULT__TIMEOUT": "abc"}
    expected = ["HTTP_CLIENT__DEFAULT__TIMEOUT: Input should be a valid number, unable to parse string as a number"]
    assert problems(load(variables)) == expected
    assert problems(load(variables, {"a": {}, "b": {}, "c": {"timeout": 3}})) == expected


def test_default_need_not_be_complete(load: Load) -> None:
    variables = {"HTTP_CLIENT__DEFAULT__AUTH__TYPE": "bearer", "HTTP_CLIENT__A__AUTH__TOKEN": "t"}
    assert load(variables).problems == ()
    variables = {"HTTP_CLIENT__DEFAULT__AUTH__TOKEN": "t", "HTTP_CLIENT__A__AUTH__TYPE": "bearer"}
    assert load(variables).problems == ()


def test_options_that_contradict_each_other_are_all_named(load: Load) -> None:
    settings = load({"HTTP_CLIENT__A__CONNECT_TIMEOUT": "9"}, {"a": {"timeout": 3.0}})
    assert problems(settings) == [
        'HTTP_CLIENT__A__CONNECT_TIMEOUT, clients["a"].timeout: connect_timeout (9) is above timeout (3)'
    ]


def test_a_contradiction_with_the_default_section_says_how_to_leave_the_others_alone(load: Load) -> None:
    variables = {"HTTP_CLIENT__DEFAULT__TOTAL_TIMEOUT": "20", "HTTP_CLIENT__A__TIMEOUT": "60"}
    assert problems(load(variables)) == [
        "HTTP_CLIENT__A__TIMEOUT, HTTP_CLIENT__DEFAULT__TOTAL_TIMEOUT: timeout (60) is above total_timeout (20); "
        "for this client alone, set HTTP_CLIENT__A__TOTAL_TIMEOUT"
    ]
    whole = {"http-client--default": '{"total_timeout": 20}'}
    assert problems(load(whole, {"a": {"timeout": 60.0}})) == [
        'clients["a"].timeout, http-client--default, key total_timeout: timeout (60) is above total_timeout (20); '
        "for this client alone, set HTTP_CLIENT__A__TOTAL_TIMEOUT"
    ]
    both = {"HTTP_CLIENT__DEFAULT__TOTAL_TIMEOUT": "20", "HTTP_CLIENT__DEFAULT__TIMEOUT": "60"}
    assert problems(load({**both, "HTTP_CLIENT__A__HTTP2": "off"})) == [
        "HTTP_CLIENT__DEFAULT__TIMEOUT, HTTP_CLIENT__DEFAULT__TOTAL_TIMEOUT: timeout (60) is above total_timeout (20)"
    ]


def test_a_default_that_was_not_set_gives_way(load: Load) -> None:
    settings = load({"HTTP_CLIENT__A__TOTAL_TIMEOUT": "10"}, {"a": given_fields(ClientConfig(connect_timeout=2))})
    assert config(settings, "a").timeout == 10.0


@pytest.mark.parametrize("option", ["ca_file", "client_cert", "client_key"])
def test_files_are_looked_for(load: Load, tmp_path: Path, option: str) -> None:
    file = tmp_path / "file.pem"
    cert = {"HTTP_CLIENT__A__CLIENT_CERT": __file__} if option == "client_key" else {}
    name = f"HTTP_CLIENT__A__{option.upper()}"
    assert problems(load({name: str(file), **cert})) == [f"{name}: there is no such file"]
    assert problems(load({name: str(tmp_path), **cert})) == [f"{name}: there is no such file"]
    file.write_text("x")
    assert problems(load({name: str(file), **cert})) == []
    content = "-----BEGIN PRIVATE KEY-----\nsesame"
    assert problems(load({name: content, **cert})) == [f"{name}: must be the path of a file, and is its content"]


def test_a_file_without_permission_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert problems(load({"HTTP_CLIENT__A__CA_FILE": __file__})) == ["HTTP_CLIENT__A__CA_FILE: the file cannot be read"]


def test_an_option_without_its_extra_names_the_extra(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_is_installed", lambda module: False)
    settings = load({"HTTP_CLIENT__A__HTTP2": "on", "HTTP_CLIENT__B__PROXY": "socks5://localhost:1080"})
    assert problems(settings) == [
        "HTTP_CLIENT__A__HTTP2: needs an extra: pip install fastapi-http-client[http2]",
        "HTTP_CLIENT__B__PROXY: SOCKS needs an extra: pip install fastapi-http-client[socks]",
    ]


def test_http2_with_its_extra_is_no_problem(load: Load) -> None:
    assert config(load({"HTTP_CLIENT__GITHUB__HTTP2": "on"})).http2


def test_verification_that_is_off_is_warned_about(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    settings = load({"HTTP_CLIENT__A__VERIFY_SSL": "off", "HTTP_CLIENT__B__TIMEOUT": "5"})
    with caplog.at_level(logging.WARNING):
        settings.warn()
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "fastapi_http_client.settings",
            "WARNING",
            "client a: TLS certificates are not verified (environment HTTP_CLIENT__A__VERIFY_SSL)",
        )
    ]


@pytest.mark.parametrize(
    ("environ", "without_effect"),
    [
        ({"A__RATE_LIMIT_RATE": "5"}, ["A__RATE_LIMIT_RATE has no effect: enable_rate_limiting is not set"]),
        (
            {"A__CIRCUIT_BREAKER_FAILURE_THRESHOLD": "5"},
            ["A__CIRCUIT_BREAKER_FAILURE_THRESHOLD has no effect: enable_circuit_breaker is not set"],
        ),
        ({"A__RATE_LIMIT_RATE": "5", "A__ENABLE_RATE_LIMITING": "true"}, []),
        ({"A__RATE_LIMIT_RATE": "5", "A__ENABLE_RATE_LIMITING": "false"}, []),
        ({"DEFAULT__RATE_LIMIT_RATE": "5", "A__ENABLE_RATE_LIMITING": "true", "B__TIMEOUT": "5"}, []),
        (
            {"DEFAULT__RATE_LIMIT_RATE": "5", "A__TIMEOUT": "5", "B__TIMEOUT": "5"},
            ["DEFAULT__RATE_LIMIT_RATE has no effect: enable_rate_limiting is not set"],
        ),
    ],
)
def test_options_of_what_nobody_switched_on_are_warned_about(
    load: Load, caplog: pytest.LogCaptureFixture, environ: dict[str, str], without_effect: list[str]
) -> None:
    settings = load({f"HTTP_CLIENT__{name}": text for name, text in environ.items()})
    with caplog.at_level(logging.WARNING):
        settings.warn()
    assert [record.getMessage() for record in caplog.records] == [
        f"environment HTTP_CLIENT__{warning}" for warning in without_effect
    ]


def test_variables_that_may_have_been_meant_for_a_client_are_warned_about(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load(
        {
            "HTTP_CLIENT__GITHUB__TIMEOUT": "5",
            "HTTP_CLIENT__MY_API__TIMEOUT": "5",
            "HTTP_CLIENT_GITHUB_TIMEOUT": "7",
            "http_client_my_api_base_url": "https://api.example.com",
            "HTTP_CLIENT_GITHUB_AUTH_TOKEN": "s3same",
            "HTTP_CLIENT_OTHER_TIMEOUT": "of another",
            "HTTP_CLIENT_GITHUB_COLOUR": "blue",
            "HTTP_CLIENT_TIMEOUT": "1",
            "HTTP_CLENT__GITHUB__TIMEOUT": "5",
            "HTTPS_CLIENTS__GITHUB__COLOUR": "blue",
            "GRPC_CLIENT__GITHUB__TIMEOUT": "5",
            "HTTP_CLIENTS_STORE": "redis://localhost",
            "HTTP_CLIENTS_STORE_PROCESSES": "4",
            "HTTP_CLIENT_STORE": "redis://localhost",
            "HTTP_CLIENTS_STORE_PREFX": "x",
            "HTTP_CLIENTS_STOER": "redis://localhost",
            "MY_STORE": "redis://localhost",
        }
    )
    assert not settings.problems
    with caplog.at_level(logging.WARNING):
        settings.warn()
    assert [record.getMessage() for record in caplog.records] == [
        "HTTP_CLIENT_GITHUB_TIMEOUT is set and not read; was HTTP_CLIENT__GITHUB__TIMEOUT meant?",
        "http_client_my_api_base_url is set and not read; was HTTP_CLIENT__MY_API__BASE_URL meant?",
        "HTTP_CLIENT_GITHUB_AUTH_TOKEN is set and not read; was HTTP_CLIENT__GITHUB__AUTH__TOKEN meant?",
        "HTTP_CLENT__GITHUB__TIMEOUT is set and not read; was HTTP_CLIENT__GITHUB__TIMEOUT meant?",
        "HTTP_CLIENT_STORE is set and not read; was HTTP_CLIENTS_STORE meant?",
        "HTTP_CLIENTS_STORE_PREFX is set and not read; was HTTP_CLIENTS_STORE_PREFIX meant?",
        "HTTP_CLIENTS_STOER is set and not read; was HTTP_CLIENTS_STORE meant?",
    ]


def test_a_problem_of_code_alone_names_the_argument() -> None:
    assert located(Problem("middlewares", "is wrong"), "a", PREFIX, {}) == Problem(
        'clients["a"].middlewares', "is wrong"
    )
    assert located(Problem("", "is wrong"), "a", PREFIX, {}) == Problem("HTTP_CLIENT__A", "is wrong")


# -- secrets -----------------------------------------------------------------------------------------------------

CANARY = "s3same-0pen"
SLOTS = [
    *(f"HTTP_CLIENT__X__{option.upper()}" for option in OPTIONS),
    *(
        f"HTTP_CLIENT__X__AUTH__{field}"
        for field in ("TYPE", "TOKEN", "API_KEY", "PASSWORD", "CLIENT_SECRET", "TOKEN_URL", "NONSENSE")
    ),
    "HTTP_CLIENT__X",
    "HTTP_CLIENT__X__HEADERS__X_KEY",
    "HTTP_CLIENT__X__NONSENSE",
    "HTTP_CLIENT__X_AUTH__TOKEN",
    "HTTP_CLIENTS__X__AUTH__TOKEN",
    "HTTP_CLIENT____X",
]


# The name of a header is no secret, and shown.
@pytest.mark.parametrize("name", sorted(set(SLOTS) - {"HTTP_CLIENT__X__PROPAGATE_HEADERS"}))
@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f"https://user:{CANARY}@host/?token={CANARY}#{CANARY}",
        json.dumps({"timeout": CANARY, "headers": {"X": f"{CANARY}\n"}, "auth": {"type": CANARY}, "base_url": CANARY}),
        json.dumps({"X": f"{CANARY}\n", "type": "bearer", "tokn": CANARY, "token": CANARY}),
        json.dumps([CANARY, 1]),
    ],
)
def test_no_problem_shows_a_value(load: Load, name: str, text: str) -> None:
    settings = load({name: text})
    assert CANARY not in "\n".join(problems(settings))
    assert CANARY not in repr(settings)


def test_settings_do_not_show_their_values() -> None:
    section = code_section("a", {"timeout": CANARY, "auth": BearerConfig(token=SecretStr(CANARY))})
    assert CANARY not in repr(section)


# -- for all inputs ----------------------------------------------------------------------------------------------

NAMES = st.lists(
    st.sampled_from(
        ["HTTP", "CLIENT", "CLIENTS", "X", "my", "TIMEOUT", "BASE", "URL", "AUTH", "TOKEN", "HEADERS", "_", "__", "-"]
    ),
    min_size=1,
    max_size=10,
).map("".join)
TEXTS = st.one_of(st.sampled_from(["", "null", "5", "{}", "[1]", '{"timeout": 5}']), st.text(max_size=20))


@given(st.dictionaries(st.one_of(NAMES, NAMES.map(lambda tail: PREFIX + tail)), TEXTS, max_size=6))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_loading_never_raises(load: Load, variables: dict[str, str]) -> None:
    settings = load(variables)
    assert settings.clients.keys() <= settings.names
    assert all(client_name(name) == name for name in settings.names)


@given(NAMES.filter(lambda name: "__" not in normalise(name)), TEXTS)
def test_without_a_double_underscore_nothing_is_a_near_miss(name: str, text: str) -> None:
    assert near_miss(PREFIX, name, text) is None


@given(st.lists(st.dictionaries(st.sampled_from(OPTIONS), st.integers(), max_size=4), max_size=5))
def test_the_strongest_layer_wins(layers: list[dict[str, int]]) -> None:
    merged: dict[str, Any] = {}
    expected: dict[str, int] = {}
    for layer in layers:
        merged = merge(merged, code_section("x", layer))
        expected |= layer
    assert {option: setting.value for option, setting in merged.items()} == expected


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "normal"), [("GitHub", "github"), ("my-api", "my_api"), ("MY_API2", "my_api2"), ("7digital", "7digital")]
)
def test_a_client_has_one_name(name: str, normal: str) -> None:
    assert client_name(name) == normal
    assert variable(PREFIX, normal, "base_url") == f"HTTP_CLIENT__{normal.upper()}__BASE_URL"


@pytest.mark.parametrize("name", ["", "a__b", "_a", "a_", "a b", "a.b", "default", "DEFAULT", "-", None, 3])
def test_a_name_that_no_variable_can_have_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="client"):
        client_name(name)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        (
            {"AUTH__TYPE": "bearer", "AUTH__TOKEN": "t", "AUTH__USERNAME": "u"},
            "HTTP_CLIENT__A__AUTH__USERNAME: is no option of this type of auth; basic has it",
        ),
        ({"RETRIES": "3"}, "HTTP_CLIENT__A__RETRIES: unknown option, did you mean HTTP_CLIENT__A__RETRY_ATTEMPTS?"),
        ({"URL": "http://x"}, "HTTP_CLIENT__A__URL: unknown option, did you mean HTTP_CLIENT__A__BASE_URL?"),
        (
            {"AUTH__TYPE": "bearer", "AUTH__TOKEN": "Bearer abc"},
            'HTTP_CLIENT__A__AUTH__TOKEN: must be the token alone, without "Bearer " before it',
        ),
        ({"BASE_URL": "https://${HOST}/"}, "HTTP_CLIENT__A__BASE_URL: has a host with a character that no name has"),
    ],
)
def test_a_usual_mistake_is_told_what_was_meant(load: Load, variables: dict[str, str], problem: str) -> None:
    settings = load({f"HTTP_CLIENT__A__{option}": text for option, text in variables.items()})
    assert problems(settings) == [problem]
