"""Where our client does not do what httpx's own tests ask of it, and why.

`make httpx-suite` runs the tests that are named here too, and each of them has to fail: one that passes does not belong
here any more. A test is named without its parameters when all its cases are meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from fastapi_http_client import ConfigurationError, HTTPRequestError

Kinds = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True)
class Difference:
    """Something that is different on purpose, and the tests that show it.

    `options` of `ClientConfig`, if there are any, make the client do what httpx does: with them the tests pass.
    `raises` is what ends the tests without them, and `engine` the only one over which they fail.
    """

    reason: str
    tests: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    raises: Kinds = AssertionError
    engine: Literal["auto", "httpcore"] | None = None


DIFFERENCES = (
    Difference(
        "A GET that is answered with a 5xx is sent again, and in the end raises `RetryExhaustedError`.",
        (
            "client/test_async_client.py::test_raise_for_status",
            "client/test_client.py::test_raise_for_status",
            "test_asgi.py::test_asgi_exc_no_raise",
        ),
        options={"retry_attempts": 1},
        raises=Exception,
    ),
    Difference(
        "Cookies that an upstream sets are not kept for the next call.",
        (
            "client/test_cookies.py::test_get_cookie",
            "client/test_cookies.py::test_cookie_persistence",
            "client/test_redirects.py::test_redirect_cookie_behavior",
        ),
        options={"persist_cookies": True},
        raises=(AssertionError, KeyError),
    ),
    Difference(
        "`HTTP_PROXY`, `NO_PROXY` and their like are not read.",
        ("client/test_properties.py::test_client_trust_env", "client/test_proxies.py::test_proxies_environ"),
        options={"trust_env": True},
        raises=(AssertionError, AttributeError),
    ),
    Difference(
        "`cookies=` of a call is not deprecated: no jar is kept, so it can only mean this call.",
        ("client/test_cookies.py::test_set_per_request_cookie_is_deprecated",),
        raises=pytest.fail.Exception,
    ),
    Difference(
        "`..` in a path does not lead out of the `base_url`: such a path is refused.",
        ("client/test_client.py::test_merge_relative_url_with_dotted_path",),
        raises=HTTPRequestError,
    ),
    Difference(
        "An address without a host is refused before anything is sent, with an error that is also a `ValueError`.",
        (
            "client/test_async_client.py::test_get_invalid_url[no-host]",
            "client/test_client.py::test_get_invalid_url[no-host]",
        ),
        raises=(HTTPRequestError, ValueError),
    ),
    Difference(
        "What a transport raised, `ASGITransport` say, is the `__cause__` of one of this package's errors.",
        ("test_asgi.py::test_asgi_exc", "test_asgi.py::test_asgi_exc_after_response"),
        raises=HTTPRequestError,
    ),
    Difference(
        "A sync iterator as a body is also one of these errors, not a `RuntimeError`.",
        ("client/test_async_client.py::test_cannot_stream_sync_request",),
        raises=HTTPRequestError,
    ),
    Difference(
        "An `auth` of the wrong kind is a `ConfigurationError` that names the argument, not a `TypeError`.",
        ("client/test_auth.py::test_auth_invalid_type",),
        raises=ConfigurationError,
    ),
    Difference(
        "`response.request` is what the caller asked for: credentials are put on the copy that goes over the wire.",
        (
            "client/test_auth.py::test_auth_hidden_header",
            "client/test_auth.py::test_digest_auth_resets_nonce_count_after_401",
        ),
        raises=(AssertionError, KeyError),
    ),
    Difference(
        "A redirect from http to https leads to another origin, so it carries no credential.",
        ("client/test_redirects.py::test_same_domain_https_redirect_with_auth_header",),
        raises=KeyError,
    ),
    Difference(
        "A `Location` without a host is refused, not completed.",
        ("client/test_redirects.py::test_malformed_redirect",),
        raises=HTTPRequestError,
    ),
    Difference(
        "A redirect that would resend a body that can be read only once is returned, not followed.",
        ("client/test_redirects.py::test_cannot_redirect_streaming_body",),
        raises=pytest.fail.Exception,
    ),
    Difference(
        "A redirect that was not followed, or a 304, is not an error for `raise_for_status()`.",
        ("models/test_responses.py::test_raise_for_status",),
        raises=pytest.fail.Exception,
    ),
    Difference(
        "The texts of errors are this package's own.",
        ("client/test_redirects.py::test_redirect_custom_scheme",),
    ),
    Difference(
        "The logger `httpx` is silent, because its lines show whole addresses; `LoggingMiddleware` masks them.",
        ("test_utils.py::test_logging_request", "test_utils.py::test_logging_redirect_chain"),
    ),
    Difference(
        "A connection is free again as soon as its response has arrived, also before a streamed body has been read.",
        ("test_timeouts.py::test_pool_timeout",),
        raises=pytest.fail.Exception,
        engine="auto",
    ),
)
"""What a user can notice. Each reason is a line of docs/httpx.md, word for word."""

INAPPLICABLE = (
    Difference(
        "the test is about the flow that a sync client runs",
        ("client/test_auth.py::test_sync_auth",),
    ),
    Difference(
        "the test is about a body that a sync client cannot send",
        ("client/test_client.py::test_cannot_stream_async_request",),
        raises=pytest.fail.Exception,
    ),
    Difference(
        "half of the test is about the sync transport",
        ("client/test_proxies.py::test_socks_proxy",),
    ),
    Difference(
        "the test is about the import of httpcore, which is not imported at all",
        ("test_api.py::test_httpcore_lazy_loading",),
        raises=(AssertionError, KeyError),
    ),
)
"""Tests that say nothing about an async client, and why."""

LEFT_OUT = {"test_main.py": "httpx's command line"}
"""Files that are not even collected."""
