"""What can be imported, and that it is what it is promised to be."""

from __future__ import annotations

import importlib.metadata
import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

import fastapi_http_client

ROOT = Path(__file__).parent.parent

PUBLIC = {
    # clients
    "AsyncHTTPClient",
    "ClientConfig",
    "HTTPClients",
    "http_client",
    "HTTPRequest",
    "HTTPResponse",
    "Attempt",
    # credentials
    "APIKeyAuth",
    "BasicAuth",
    "BearerAuth",
    "OAuth2ClientCredentials",
    # policies
    "CircuitBreaker",
    "CircuitState",
    "TokenBucketRateLimiter",
    # middlewares
    "LoggingMiddleware",
    "Middleware",
    "RetryMiddleware",
    # context
    "RequestContextMiddleware",
    "get_request_id",
    "request_context",
    # errors
    "AuthenticationError",
    "CircuitBreakerOpenError",
    "ConfigurationError",
    "HTTPClientError",
    "HTTPRequestError",
    "HTTPResponseError",
    "HTTPTimeoutError",
    "RateLimitError",
    "RetryExhaustedError",
}


def test_all_holds_what_is_promised_once() -> None:
    assert set(fastapi_http_client.__all__) >= PUBLIC
    assert len(set(fastapi_http_client.__all__)) == len(fastapi_http_client.__all__)


def test_all_names_every_public_name_and_nothing_else() -> None:
    public = {
        name
        for name, value in vars(fastapi_http_client).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == {name for name in fastapi_http_client.__all__ if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(PUBLIC - {"HTTPRequest"}))  # httpx's own class
def test_public_names_have_docstrings(name: str) -> None:
    assert inspect.getdoc(getattr(fastapi_http_client, name))


def test_testing_helpers() -> None:
    from fastapi_http_client.testing import FakeClock, MockResponse

    assert FakeClock().monotonic() == FakeClock().monotonic()
    assert MockResponse(200, b'{"ok": true}').json() == {"ok": True}


def test_fixture_plugin_is_registered() -> None:
    (entry,) = importlib.metadata.entry_points(group="pytest11", name="fastapi_http_client")
    assert hasattr(entry.load(), "mock_httpx")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("AsyncHTTPClient", httpx.AsyncClient),
        ("HTTPResponse", httpx.Response),
        ("HTTPRequest", httpx.Request),
        ("APIKeyAuth", httpx.Auth),
        ("BasicAuth", httpx.Auth),
        ("BearerAuth", httpx.Auth),
        ("OAuth2ClientCredentials", httpx.Auth),
        ("HTTPRequestError", httpx.TransportError),
        ("HTTPTimeoutError", httpx.TimeoutException),
        ("HTTPResponseError", httpx.HTTPStatusError),
        ("RateLimitError", httpx.HTTPStatusError),
        ("RetryExhaustedError", httpx.HTTPError),
        ("CircuitBreakerOpenError", httpx.HTTPError),
        ("AuthenticationError", httpx.HTTPError),
    ],
)
def test_what_has_a_counterpart_in_httpx_is_one(name: str, base: type) -> None:
    assert issubclass(getattr(fastapi_http_client, name), base)


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("HTTPRequestError", "HTTPClientError"),
        ("HTTPTimeoutError", "HTTPRequestError"),
        ("HTTPResponseError", "HTTPClientError"),
        ("RateLimitError", "HTTPResponseError"),
        ("RetryExhaustedError", "HTTPClientError"),
        ("CircuitBreakerOpenError", "HTTPClientError"),
        ("AuthenticationError", "HTTPClientError"),
        ("ConfigurationError", "HTTPClientError"),
    ],
)
def test_errors_are_the_tree_that_is_drawn(name: str, parent: str) -> None:
    assert getattr(fastapi_http_client, name).__bases__[0] is getattr(fastapi_http_client, parent)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("BearerAuth", ["token"]),
        ("APIKeyAuth", ["api_key", "header_name", "query_param_name"]),
        ("BasicAuth", ["username", "password"]),
        ("OAuth2ClientCredentials", ["token_url", "client_id", "client_secret", "scope", "cache_duration"]),
        ("TokenBucketRateLimiter", ["rate", "burst"]),
        ("CircuitBreaker", ["failure_threshold", "recovery_timeout", "half_open_max_calls"]),
        ("LoggingMiddleware", ["log_request_body", "log_response_body", "sensitive_headers"]),
        ("HTTPClients", ["clients"]),
        ("AsyncHTTPClient", ["base_url"]),
        ("http_client", ["name", "clients"]),
    ],
)
def test_positional_arguments(name: str, parameters: list[str]) -> None:
    """Their order is part of the contract; everything else is by keyword."""
    signature = inspect.signature(getattr(fastapi_http_client, name))
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == parameters


def test_config_defaults() -> None:
    config = fastapi_http_client.ClientConfig()
    defaults = {
        "base_url": "", "timeout": 30.0, "connect_timeout": None, "total_timeout": None,
        "max_connections": 100, "max_keepalive_connections": 20, "keepalive_expiry": 30.0,
        "follow_redirects": False, "max_redirects": 20, "verify_ssl": True, "trust_env": False, "http2": False,
        "retry_attempts": 3, "retry_backoff_factor": 1.0, "retry_max_delay": 60.0, "retry_jitter": 0.1,
        "retry_statuses": {429, 500, 502, 503, 504},
        "retry_methods": {"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"},
        "retry_non_idempotent": False, "idempotency_keys": False, "retry_budget": 100,
        "enable_rate_limiting": False, "rate_limit_rate": 10.0, "rate_limit_burst": 1, "rate_limit_max_wait": None,
        "enable_circuit_breaker": False, "circuit_breaker_failure_threshold": 5,
        "circuit_breaker_recovery_timeout": 60.0, "circuit_breaker_half_open_max_calls": 1,
        "circuit_breaker_failure_rate": None, "circuit_breaker_window": 30.0, "circuit_breaker_minimum_calls": 10,
        "propagation": "external", "propagate_headers": (), "allowed_origins": (), "persist_cookies": False,
        "max_response_bytes": None, "engine": "auto", "max_connection_age": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in defaults} == defaults


def test_errors_survive_pickling() -> None:
    error = fastapi_http_client.CircuitBreakerOpenError("open", recovery_timeout=2.5, client="github")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.recovery_timeout, copy.client) == (type(error), "open", 2.5, "github")


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("fastapi-http-client") == project["version"]
    assert (Path(fastapi_http_client.__file__).parent / "py.typed").exists()


def test_importing_reads_no_environment_and_loads_no_optional_package() -> None:
    code = (
        "import os, sys, fastapi_http_client\n"
        "print(*sorted({'redis', 'h2', 'pytest', 'opentelemetry.sdk', 'brotli', 'socksio'} & set(sys.modules)))"
    )
    environment = {"HTTP_CLIENT__X__TIMEOUT": "not a number", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("", "brotli h2", "brotli", "h2")  # httpx itself looks for its own two
