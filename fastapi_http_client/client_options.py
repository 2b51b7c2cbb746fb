"""What a client is made of: httpx's own options, checked and put over a `ClientConfig`, and the parts that it names."""

from __future__ import annotations

import functools
import inspect
import os
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import httpx
from httpx import USE_CLIENT_DEFAULT

from fastapi_http_client import transport
from fastapi_http_client.arguments import bad_argument, refusal
from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth
from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.config import APIKeyConfig, AuthConfig, BasicConfig, BearerConfig, ClientConfig, given_fields
from fastapi_http_client.errors import ConfigurationError
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.retry import RetryMiddleware

if TYPE_CHECKING:
    from httpx._client import UseClientDefault
    from httpx._types import (
        AuthTypes,
        CertTypes,
        CookieTypes,
        HeaderTypes,
        ProxyTypes,
        QueryParamTypes,
        RequestContent,
        RequestData,
        RequestFiles,
        TimeoutTypes,
    )

    class HTTPXOptions(TypedDict, total=False):
        """httpx's own constructor options; each wins over the field of `config` that says the same."""

        params: QueryParamTypes | None
        headers: HeaderTypes | None
        cookies: CookieTypes | None
        verify: ssl.SSLContext | str | bool
        cert: CertTypes | None
        http1: bool
        http2: bool
        proxy: ProxyTypes | None
        mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None
        timeout: TimeoutTypes
        follow_redirects: bool
        limits: httpx.Limits
        max_redirects: int
        event_hooks: Mapping[str, list[Callable[..., Any]]] | None
        trust_env: bool
        default_encoding: str | Callable[[bytes], str]

    class _FieldsOfView(TypedDict, total=False):
        """The fields of `ClientConfig` that a view of a client can have of its own, and httpx does not know."""

        connect_timeout: float | None
        total_timeout: float | None
        retry_attempts: int
        retry_backoff_factor: float
        retry_max_delay: float
        retry_jitter: float
        retry_statuses: Collection[int]
        retry_methods: Collection[str]
        retry_non_idempotent: bool
        idempotency_keys: bool
        enable_rate_limiting: bool
        rate_limit_max_wait: float | None
        enable_circuit_breaker: bool
        propagation: Literal["external", "internal", "none"]
        propagate_headers: Sequence[str]
        allowed_origins: Sequence[str]
        max_response_bytes: int | None

    class ViewOptions(_FieldsOfView, total=False):
        """What a view of a client can differ in."""

        base_url: str
        auth: Any
        headers: Mapping[str, str]
        timeout: float
        follow_redirects: bool
        max_redirects: int

    class DeclaredOptions(_FieldsOfView, HTTPXOptions, total=False):
        """What a client of a registry can be declared with."""

        max_connections: int
        max_keepalive_connections: int
        keepalive_expiry: float
        max_connection_age: float | None
        verify_ssl: bool
        ca_file: str | None
        client_cert: str | None
        client_key: str | None
        engine: Literal["auto", "asyncio", "httpcore"]
        retry_budget: float
        rate_limit_rate: float
        rate_limit_burst: int
        circuit_breaker_failure_threshold: int
        circuit_breaker_recovery_timeout: float
        circuit_breaker_half_open_max_calls: int
        circuit_breaker_failure_rate: float | None
        circuit_breaker_window: float
        circuit_breaker_minimum_calls: int
        persist_cookies: bool

    class PlainOptions(TypedDict, total=False):
        """What any request can be built with."""

        params: QueryParamTypes | None
        path_params: Mapping[str, Any] | None
        headers: HeaderTypes | None
        cookies: CookieTypes | None
        timeout: TimeoutTypes | UseClientDefault
        extensions: Mapping[str, Any] | None

    class BuildOptions(PlainOptions, total=False):
        """What a request with a body can be built with."""

        content: RequestContent | None
        data: RequestData | None
        files: RequestFiles | None
        json: Any

    class RequestOptions(PlainOptions, total=False):
        """What every verb takes."""

        auth: AuthTypes | UseClientDefault | None
        follow_redirects: bool | UseClientDefault
        retry: bool
        total_timeout: float | None

    class BodyOptions(RequestOptions, BuildOptions, total=False):
        """What the verbs with a body take."""


SHARED_FIELDS = frozenset(
    {
        *("verify_ssl", "ca_file", "client_cert", "client_key", "proxy", "trust_env", "http2", "engine"),
        *("max_connections", "max_keepalive_connections", "keepalive_expiry", "max_connection_age"),
        *("rate_limit_rate", "rate_limit_burst", "retry_budget", "persist_cookies"),
        *("circuit_breaker_failure_threshold", "circuit_breaker_recovery_timeout"),
        *("circuit_breaker_half_open_max_calls", "circuit_breaker_failure_rate", "circuit_breaker_window"),
        *("circuit_breaker_minimum_calls",),
    }
)
"""Fields of a config that belong to the pool, or to state that a client and its views share."""


_HTTPX_CLIENT = httpx.AsyncClient  # itself, also where a test has put another class in its place


@functools.cache
def option_names() -> frozenset[str]:
    """The names of httpx's own constructor options, without those that are arguments of ours."""
    names = inspect.signature(_HTTPX_CLIENT).parameters.keys()
    return frozenset(names - {"auth", "base_url", "transport"})


def bad(argument: str, what: str) -> ConfigurationError:
    return bad_argument("AsyncHTTPClient", argument, what)


def check_arguments(
    options: Mapping[str, Any],
    *,
    name: Any,
    rate_limiter: Any,
    circuit_breaker: Any,
    transport: Any,
    clock: Any,
) -> None:
    """Raise `ConfigurationError` for an argument of a wrong kind, which httpx or a call would find out later."""
    unknown = options.keys() - option_names()
    if unknown:
        option = min(unknown)
        is_field = option in ClientConfig.model_fields
        hint = f"; it is a field of ClientConfig: config=ClientConfig({option}=...)" if is_field else ""
        raise TypeError(f"AsyncHTTPClient() got an unexpected keyword argument {option!r}{hint}")
    for argument, value, kind in (
        ("name", name, str),
        ("rate_limiter", rate_limiter, TokenBucketRateLimiter),
        ("circuit_breaker", circuit_breaker, CircuitBreaker),
        ("limits", options.get("limits"), httpx.Limits),
        ("mounts", options.get("mounts"), Mapping),
    ):
        if value is not None and not isinstance(value, kind):
            raise bad(argument, f"must be a {kind.__name__}, not {type(value).__name__}")
    if name == "":
        raise bad("name", "must not be empty")
    if transport is not None and (isinstance(transport, type) or not hasattr(transport, "handle_async_request")):
        raise bad("transport", f"must be an httpx.AsyncBaseTransport, not {type(transport).__name__}")
    if clock is not None and not all(callable(getattr(clock, part, None)) for part in ("monotonic", "wall", "sleep")):
        raise bad("clock", "must have the methods monotonic(), wall() and sleep()")
    encoding = options.get("default_encoding", "utf-8")
    if not isinstance(encoding, str) and not callable(encoding):
        raise bad("default_encoding", "must be the name of an encoding, or be callable")
    check_timeout(options.get("timeout"))
    _check_collections(options)


def _check_collections(options: Mapping[str, Any]) -> None:
    for argument, make, what in (
        ("headers", httpx.Headers, "a mapping or a list of pairs of text"),
        ("params", httpx.QueryParams, "a mapping, a list of pairs, or text"),
        ("cookies", _cookies, "a mapping or a list of pairs of text"),
    ):
        try:
            make(options.get(argument))
        except (TypeError, ValueError, AttributeError):
            raise bad(argument, f"must be {what}") from None
    hooks = options.get("event_hooks")
    if hooks is not None and not (
        isinstance(hooks, Mapping)
        and hooks.keys() <= {"request", "response"}
        and all(isinstance(some, Sequence) and all(map(callable, some)) for some in hooks.values())
    ):
        raise bad("event_hooks", "must map 'request' and 'response' to lists of functions")
    for pattern, mounted in (options.get("mounts") or {}).items():
        if not isinstance(pattern, str) or not (mounted is None or hasattr(mounted, "handle_async_request")):
            raise bad("mounts", "must map URL patterns to httpx.AsyncBaseTransports")


def _cookies(cookies: Any) -> None:
    if not (cookies is None or isinstance(cookies, httpx.Cookies | CookieJar)):
        httpx.Cookies(cookies if isinstance(cookies, list) else dict(cookies))


def check_timeout(timeout: object) -> None:
    """Of the many things that httpx takes, the numbers have to be possible: it would find out call by call."""
    if timeout is None or timeout is USE_CLIENT_DEFAULT:
        return
    try:
        limits = httpx.Timeout(timeout).as_dict().values()  # type: ignore[arg-type]
        possible = all(limit is None or limit > 0 for limit in limits)
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise bad("timeout", "must be a number of seconds above 0, an httpx.Timeout of such, or None")


def effective_config(
    config: ClientConfig | None, base_url: httpx.URL | str | None, options: Mapping[str, Any]
) -> ClientConfig:
    """The config with what httpx's own options say put over it, and checked as a whole."""
    if config is not None and not isinstance(config, ClientConfig):
        raise bad("config", f"must be a ClientConfig, not {type(config).__name__}")
    config = config or ClientConfig()
    over: dict[str, Any] = {}
    if base_url is not None and str(base_url):
        over["base_url"] = str(base_url)
    for name, value in options.items():
        over |= as_fields(name, value) or {}
    if isinstance(options.get("verify"), ssl.SSLContext):
        over["verify_ssl"] = True  # or not: that is for the context to say
    try:
        return ClientConfig(**(given_fields(config) | over)) if over else config
    except ConfigurationError as error:
        raise refusal("AsyncHTTPClient", *error.problems) from None


def as_fields(option: str, value: Any) -> dict[str, Any] | None:
    """What one of httpx's options says as fields of a config, or None when no field can say it."""
    match option, value:
        case (("follow_redirects" | "max_redirects" | "trust_env" | "http2"), _):
            return {option: value}
        case "timeout", int() | float():
            return {"timeout": value}
        case "timeout", httpx.Timeout(connect=float() | int() as connect, read=float() | int() as read):
            if not read == value.write == value.pool or connect > read:
                return None
            return {"timeout": read} if connect == read else {"timeout": read, "connect_timeout": connect}
        case "limits", httpx.Limits(max_connections=most, max_keepalive_connections=idle, keepalive_expiry=expiry):
            most = 1_000_000 if most is None else most
            idle, expiry = most if idle is None else idle, 1e9 if expiry is None else expiry
            return {"max_connections": most, "max_keepalive_connections": idle, "keepalive_expiry": expiry}
        case "proxy", str() | httpx.URL() | httpx.Proxy():
            return {"proxy": proxy_url(value)}
        case "verify", bool():
            return {"verify_ssl": value}
        case "verify", str() | os.PathLike():
            return {"verify_ssl": True, "ca_file": os.fspath(value)}
        case "cert", str() | os.PathLike():
            return {"client_cert": os.fspath(value), "client_key": None}
        case "cert", (str() | os.PathLike() as cert, str() | os.PathLike() as key):
            return {"client_cert": os.fspath(cert), "client_key": os.fspath(key)}
    return None


def proxy_url(proxy: Any) -> str:
    """The URL of a proxy, with the user and the password that httpx keeps apart from it."""
    if not isinstance(proxy, httpx.Proxy):
        return str(proxy)
    if proxy.headers or proxy.ssl_context is not None:
        raise bad("proxy", "with headers or a TLS context of its own goes into mounts=, as an httpx.AsyncHTTPTransport")
    url = proxy.url
    if proxy.raw_auth is not None:
        username, password = (part.decode() for part in proxy.raw_auth)
        url = url.copy_with(username=username, password=password)
    return str(url)


def without_userinfo(url: httpx.URL) -> tuple[httpx.URL, BasicAuth | None]:
    """A base URL, and the credential that stood in it."""
    if not url.userinfo:
        return url, None
    return url.copy_with(username=None, password=None), BasicAuth(url.username, url.password)


def timeout_of(config: ClientConfig) -> httpx.Timeout:
    return httpx.Timeout(config.timeout, connect=config.connect_timeout or config.timeout)


def timeout_of_call(config: ClientConfig, timeout: httpx.Timeout, total: float) -> httpx.Timeout:
    """The limits of a call with another `total_timeout` than its client, which has `timeout`.

    They differ when an attempt has its limit only because the whole call has the same, and nobody has set another one.
    """
    if "timeout" in config.model_fields_set or config.timeout != config.total_timeout or timeout != timeout_of(config):
        return timeout
    limit = min(ClientConfig.model_fields["timeout"].default, total)
    return httpx.Timeout(limit, connect=min(config.connect_timeout or limit, limit))


def timeout_within(config: ClientConfig, timeout: httpx.Timeout, *, of: ClientConfig) -> httpx.Timeout:
    """The limits under a config with another `total_timeout` than the one `of` which there is `timeout` now.

    They are the new config's own, or what was put in the place of the old one's, cut to the total. A limit that was
    taken away, for a stream, say, stays away.
    """
    if timeout == timeout_of(of):
        return timeout_of(config)
    total = config.total_timeout
    if total is None:
        return timeout
    cut = {phase: None if limit is None else min(limit, total) for phase, limit in timeout.as_dict().items()}
    return httpx.Timeout(**cut)


def tls_context(config: ClientConfig, options: Mapping[str, Any]) -> ssl.SSLContext:
    """The context for `verify` and `cert`, and for what they leave to the config: its `ca_file` and `client_cert`.

    A context that is given as `verify` is used as it is.
    """
    verify, cert = options.get("verify", True), options.get("cert")
    if isinstance(verify, ssl.SSLContext):
        for field in ("ca_file", "client_cert") if cert is None else ("ca_file",):
            if getattr(config, field) is not None:
                raise bad("verify", f"is an SSLContext, which is used as it is, and {field} is set too")
        return httpx.create_ssl_context(verify=verify, cert=cert)
    if not isinstance(verify, bool | str | os.PathLike):
        raise bad("verify", f"must be True, False, a file or an ssl.SSLContext, not {type(verify).__name__}")
    password = None
    if isinstance(cert, tuple) and len(cert) == 3:
        password = cert[2]
        cert = cert[:2]
    files = as_fields("cert", tuple(cert) if isinstance(cert, list) else cert)
    if cert is not None and files is None:
        raise bad("cert", "must be a file, or a pair of a file and its key's, or these two and a password")
    names = {"ca_file": "verify" if isinstance(verify, str | os.PathLike) else "ca_file"}
    if files:
        names |= {"client_cert": "cert", "client_key": "cert"}
    try:
        return transport.ssl_context_for(config.model_copy(update=files or {}), password)
    except ConfigurationError as error:
        problem = error.problems[0]
        raise bad(names.get(problem.argument, problem.argument), problem.message) from error.__cause__


def auth_from_config(config: AuthConfig | None) -> httpx.Auth | None:
    if config is None:
        return None
    if isinstance(config, BearerConfig):
        return BearerAuth(config.token)
    if isinstance(config, APIKeyConfig):
        return APIKeyAuth(config.api_key, config.header_name, config.query_param_name)
    if isinstance(config, BasicConfig):
        return BasicAuth(config.username, config.password)
    return OAuth2ClientCredentials(
        config.token_url,
        config.client_id,
        config.client_secret,
        config.scope,
        config.cache_duration,
        audience=config.audience,
        resource=config.resource,
    )


def limiter_from_config(config: ClientConfig) -> TokenBucketRateLimiter | None:
    if not config.enable_rate_limiting:
        return None
    return TokenBucketRateLimiter(config.rate_limit_rate, config.rate_limit_burst)


def checked_middlewares(middlewares: Sequence[Middleware]) -> tuple[Middleware, ...]:
    if not isinstance(middlewares, Iterable):
        raise bad("middlewares", f"must be a sequence of Middlewares, not {type(middlewares).__name__}")
    middlewares = tuple(middlewares)
    for middleware in middlewares:
        if not isinstance(middleware, Middleware):
            what = f"holds the class {middleware.__name__}" if isinstance(middleware, type) else f"holds {middleware!r}"
            raise bad("middlewares", f"{what}; each must be an object of a class derived from Middleware")
    if sum(isinstance(middleware, RetryMiddleware) for middleware in middlewares) > 1:
        raise bad("middlewares", "holds more than one RetryMiddleware")
    return middlewares
