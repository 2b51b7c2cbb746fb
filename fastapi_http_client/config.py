"""`ClientConfig`: every option of one client, checked when it is made and frozen after."""

# No `from __future__ import annotations` here: pydantic would compile each annotation anew, at every import.

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Literal, NoReturn, Self

import httpx
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic import field_validator as _field_validator
from pydantic import model_validator as _model_validator

from fastapi_http_client.arguments import bad_argument, refusal
from fastapi_http_client.errors import ConfigurationError, Problem
from fastapi_http_client.redaction import redact_headers, redact_url

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"})
HEADER_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
MAX_TOKEN = 16 * 1024


# -- values ------------------------------------------------------------------------------------------------------


def _several(value: object) -> object:
    """A set or a tuple may be written as one text, as JSON (`[429, 503]`) or with commas (`429,503`)."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise ValueError("is neither a JSON list nor values separated by commas") from None
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapping(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not a JSON object") from None


def _method(value: object) -> object:
    if isinstance(value, str) and value.strip().upper() not in METHODS:
        raise ValueError(f"unknown method; known are {', '.join(sorted(METHODS))}")
    return value.strip().upper() if isinstance(value, str) else value


def _without_twins(headers: dict[str, str]) -> dict[str, str]:
    """Names of headers differ in more than their case."""
    names: dict[str, str] = {}
    for name in headers:
        other = names.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"{other} and {name} are one header")
    return headers


def _auth(value: object) -> object:
    """Whatever the case and the dashes of the type."""
    if isinstance(value, httpx.Auth):
        raise ValueError("is an object, which goes to AsyncHTTPClient(auth=...) or add(auth=...)")
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return {**value, "type": value["type"].strip().lower().replace("-", "_")}
    return value


def _header_name(value: str) -> str:
    if not re.fullmatch(HEADER_NAME, value):
        raise ValueError("is no header name")
    return value


def _header_value(value: str) -> str:
    text = value.replace("\t", " ")
    if not (text.isascii() and text.isprintable()):  # RFC 9110, section 5.5; httpx sends nothing else
        raise ValueError("holds a character that no header value may hold")
    return value


def is_host(host: bytes) -> bool:
    """Whether it can be a host as it is sent: a name in ASCII, or an address of IPv4 or IPv6.

    httpx lets placeholders that nobody has filled in pass, `${HOST}` or `{region}`.
    """
    return re.fullmatch(rb"[A-Za-z0-9_.-]+|(?=[^%]*:)[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?", host) is not None


def is_port(port: int | None) -> bool:
    """Whether a server can listen there; None is the scheme's own port."""
    return port is None or 0 < port < 65536


def _http_url(value: str) -> httpx.URL:
    try:
        url = httpx.URL(value)
    except (httpx.InvalidURL, UnicodeError):
        raise ValueError("is no valid URL") from None
    if url.scheme not in ("http", "https"):
        raise ValueError("must start with http:// or https://")
    if not url.host:
        raise ValueError("has no host")
    if not is_host(url.raw_host):
        raise ValueError("has a host with a character that no name has")
    if not is_port(url.port):
        raise ValueError("has a port that is not between 1 and 65535")
    return url


def _base_url(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str) or value == "":
        return value
    url = _http_url(value)
    if url.query or "?" in value:
        raise ValueError("must not have a query")
    if url.fragment or "#" in value:
        raise ValueError("must not have a fragment")
    return value


def _endpoint(value: str) -> str:
    _http_url(value)
    return value


def valid_token(token: str) -> bool:
    """Whether a text can stand in `Authorization: Bearer …`: visible ASCII, and not absurdly long."""
    return 0 < len(token) <= MAX_TOKEN and token.isascii() and token.isprintable() and " " not in token


def _token(value: SecretStr) -> SecretStr:
    if not valid_token(value.get_secret_value()):
        what = "is empty, too long, or holds a character that a bearer token cannot have"
        if value.get_secret_value().lower().startswith("bearer "):
            what = 'must be the token alone, without "Bearer " before it'
        raise ValueError(what)
    return value


def _encodable(value: SecretStr) -> SecretStr:
    try:
        value.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("holds a character that has no encoding") from None
    return value


def _secret(value: SecretStr) -> SecretStr:
    if not value.get_secret_value():
        raise ValueError("must not be empty")
    return _encodable(value)


def _api_key(value: SecretStr, info: ValidationInfo) -> SecretStr:
    key = _secret(value).get_secret_value()
    if info.data.get("query_param_name") is None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise ValueError("holds a character that no header value may hold")
    return value


def _user_name(value: str) -> str:
    if ":" in value:
        raise ValueError("must not hold a colon, which ends the user name in HTTP Basic")
    _encodable(SecretStr(value))
    return value


def _origin(value: str) -> str:
    url = _http_url(value)
    if url.path not in ("", "/") or url.query or url.userinfo:
        raise ValueError("must be an origin: scheme, host and perhaps a port")
    return str(url.copy_with(path="/", fragment=None)).rstrip("/")


def _proxy(value: str) -> str:
    try:
        url = httpx.URL(value)
    except (httpx.InvalidURL, UnicodeError):
        raise ValueError("is no valid URL") from None
    if url.scheme not in ("http", "https", "socks5", "socks5h") or not url.host:
        raise ValueError("must be an http://, https://, socks5:// or socks5h:// URL")
    return value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Wait = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
HeaderName = Annotated[str, BeforeValidator(lambda v: _header_name(v.strip()) if isinstance(v, str) else v)]
Text = Annotated[str, Field(min_length=1)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]


def given_fields(model: BaseModel) -> dict[str, Any]:
    """The fields that were set, and not left at their defaults."""
    return {name: getattr(model, name) for name in model.model_fields_set}


class _Model(BaseModel):
    # The schema is built with the first instance: at start-up, where it is needed, and not by every import.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            problems = tuple(_problems(error))
            raise refusal(type(self).__name__, *problems) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise bad_argument(type(self).__name__, name, "cannot be set: a configuration does not change")

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} may hold secrets, which must not be written down")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, self.shown(name, value) if name else value

    @staticmethod
    def shown(name: str, value: Any) -> Any:
        """The value of a field as it may be shown: secrets masked."""
        if name == "headers":
            return redact_headers(value)
        if name.endswith(("base_url", "proxy", "token_url")) and value:
            return redact_url(value)
        return value


def _problems(error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_input=False, include_url=False, include_context=True):
        cause = item.get("ctx", {}).get("error")
        path = ".".join(_path(item["loc"]))
        if isinstance(cause, ConfigurationError) and cause.problems:
            for problem in cause.problems:
                yield Problem(".".join(filter(None, (path, problem.argument))), problem.message)
            continue
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = UNKNOWN_OPTION
        elif item["type"] == "missing":
            text = "is missing"
        elif item["type"] == "union_tag_not_found":
            text = f"needs a type: one of {', '.join(AUTH_TYPES)}"
        elif item["type"] == "union_tag_invalid":
            text = f"unknown type; known are {', '.join(AUTH_TYPES)}"
        yield Problem(path, text)


def _path(location: tuple[int | str, ...]) -> list[str]:
    """Where a value stands, as one would write it: pydantic also names the kind of auth, and a key as `[key]`."""
    parts = [str(part) for part in location if part != "[key]"]
    if parts[:1] == ["auth"] and len(parts) > 1:
        del parts[1]
    return parts


# -- credentials -------------------------------------------------------------------------------------------------


class BearerConfig(_Model):
    """`Authorization: Bearer <token>`."""

    type: Literal["bearer"] = "bearer"
    token: Annotated[SecretStr, AfterValidator(_token)]


class APIKeyConfig(_Model):
    """A key in a header, or in the query when `query_param_name` is given."""

    type: Literal["api_key"] = "api_key"
    header_name: HeaderName = "X-API-Key"
    query_param_name: Text | None = None
    api_key: Annotated[SecretStr, AfterValidator(_api_key)]  # the last, because the others say where it has to fit


class BasicConfig(_Model):
    """HTTP Basic credentials (RFC 7617)."""

    type: Literal["basic"] = "basic"
    username: Annotated[str, AfterValidator(_user_name)]
    password: Annotated[SecretStr, AfterValidator(_encodable)]


class OAuth2Config(_Model):
    """OAuth2 client credentials (RFC 6749, section 4.4)."""

    type: Literal["oauth2"] = "oauth2"
    token_url: Annotated[str, BeforeValidator(lambda v: _endpoint(v) if isinstance(v, str) else v)]
    client_id: Text
    client_secret: Secret
    scope: str | None = None
    audience: Text | None = None
    """For which API the token is, where the endpoint wants to know (Auth0)."""
    resource: Text | None = None
    """The same by the standard's name (RFC 8707)."""
    cache_duration: Seconds = 3600.0


UNKNOWN_OPTION = "unknown option"
AUTH_TYPES = ("bearer", "api_key", "basic", "oauth2")
AuthConfig = Annotated[BearerConfig | APIKeyConfig | BasicConfig | OAuth2Config, Discriminator("type")]


# -- the client --------------------------------------------------------------------------------------------------


class ClientConfig(_Model):
    """All options of one client. Durations are in seconds. Immutable.

    Raises `ConfigurationError`, which names every bad argument.
    """

    base_url: Annotated[str, BeforeValidator(_base_url)] = ""
    """The API's root; paths are appended to it, and credentials go to its origin only."""
    headers: Annotated[
        dict[HeaderName, Annotated[str, BeforeValidator(lambda v: _header_value(v) if isinstance(v, str) else v)]],
        BeforeValidator(_mapping),
        AfterValidator(_without_twins),
    ] = Field(default_factory=dict)
    """Sent with every request to the client's own origins."""
    auth: Annotated[AuthConfig | None, BeforeValidator(_auth)] = None

    timeout: Seconds = 30.0
    """The limit of one attempt, wall clock, from connecting to the last byte of the body (streamed: to the headers)."""
    connect_timeout: Seconds | None = None
    total_timeout: Seconds | None = None
    """The limit of the whole call: all attempts and all waits."""

    max_connections: Count = 100
    max_keepalive_connections: Annotated[int, Field(ge=0)] = 20
    keepalive_expiry: Wait = 30.0
    max_connection_age: Seconds | None = None
    """Connections older than this are not used again, so that a change in DNS is noticed."""

    follow_redirects: bool = False
    max_redirects: Annotated[int, Field(ge=0)] = 20

    verify_ssl: bool = True
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    proxy: Annotated[str, BeforeValidator(lambda v: _proxy(v.strip()) if isinstance(v, str) else v)] | None = None
    trust_env: bool = False
    """Whether HTTP_PROXY, SSL_CERT_FILE and the like count. Off: a variable must not redirect credentials."""
    http2: bool = False
    engine: Literal["auto", "asyncio", "httpcore"] = "auto"

    retry_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """All attempts, the first included; 1 turns retrying off."""
    retry_backoff_factor: Wait = 1.0
    """The delay after attempt n (from 0) is `retry_backoff_factor * 2**n`."""
    retry_max_delay: Wait = 60.0
    retry_jitter: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """Each delay is varied by at most this share of itself, up or down."""
    # Declared wider than they are, so that type checkers let a set or a list be given.
    retry_statuses: Annotated[
        Set[Annotated[int, Field(ge=100, le=599)]], BeforeValidator(_several), AfterValidator(frozenset)
    ] = frozenset({429, 500, 502, 503, 504})
    retry_methods: Annotated[
        Set[Annotated[str, BeforeValidator(_method)]], BeforeValidator(_several), AfterValidator(frozenset)
    ] = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"})
    retry_non_idempotent: bool = False
    """Retry POST and PATCH also when the first attempt may have taken effect."""
    idempotency_keys: bool = False
    """Send an `Idempotency-Key` with every POST and PATCH, the same on all attempts, so that they may be retried."""
    retry_budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 100.0
    """A retry takes one token of this store, a success gives back a tenth; when it is empty nothing is retried."""

    enable_rate_limiting: bool = False
    rate_limit_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Attempts a second."""
    rate_limit_burst: Count = 1
    rate_limit_max_wait: Wait | None = None

    enable_circuit_breaker: bool = False
    circuit_breaker_failure_threshold: Count = 5
    """Opens after this many failures in a row."""
    circuit_breaker_recovery_timeout: Seconds = 60.0
    circuit_breaker_half_open_max_calls: Count = 1
    circuit_breaker_failure_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """Also opens when this share of the window's calls failed."""
    circuit_breaker_window: Seconds = 30.0
    circuit_breaker_minimum_calls: Count = 10

    propagation: Literal["external", "internal", "none"] = "external"
    propagate_headers: Annotated[Sequence[HeaderName], BeforeValidator(_several), AfterValidator(tuple)] = ()
    allowed_origins: Annotated[
        Sequence[Annotated[str, BeforeValidator(lambda v: _origin(v) if isinstance(v, str) else v)]],
        BeforeValidator(_several),
        AfterValidator(tuple),
    ] = ()
    """Other origins that may be called, and get this client's credentials."""
    persist_cookies: bool = False
    """Keep cookies between calls. Off: one client serves many users."""
    max_response_bytes: Count | None = None
    """The most bytes of a decoded body that are read."""

    @_field_validator("*", mode="before")
    @classmethod
    def _trim(cls, value: Any, info: ValidationInfo) -> Any:
        """Blanks around a value are of a file's making; within headers and secrets they are looked at."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be True or False")  # which pydantic takes for 1 and 0
        return value.strip() if isinstance(value, str) else value

    @_model_validator(mode="after")
    def _check_against_each_other(self) -> Self:
        """Only what was set can contradict; a default that was not set gives way."""
        problems = tuple(Problem("", contradiction) for contradiction in self._contradictions())
        if problems:
            raise ConfigurationError(problems=problems)
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from self._at_most("connect_timeout", "timeout")
        yield from self._at_most("timeout", "total_timeout")
        yield from self._at_most("connect_timeout", "total_timeout")
        yield from self._at_most("max_keepalive_connections", "max_connections")
        if self.client_key is not None and self.client_cert is None:
            yield "client_key is set and client_cert is not"
        if self.ca_file is not None and not self.verify_ssl:
            yield "ca_file is set and verify_ssl is off"
        if self.engine == "asyncio" and self.http2:
            yield "engine 'asyncio' speaks HTTP/1.1 only, and http2 is on"
        if self.engine == "asyncio" and self.proxy is not None:
            yield "engine 'asyncio' knows no proxies, and proxy is set"

    def _at_most(self, lower: str, upper: str) -> Iterator[str]:
        low, high = getattr(self, lower), getattr(self, upper)
        if low is None or high is None or low <= high:
            return
        if lower in self.model_fields_set and upper in self.model_fields_set:
            yield f"{lower} ({low:g}) is above {upper} ({high:g})"
            return
        given, default = (lower, upper) if lower in self.model_fields_set else (upper, lower)
        object.__setattr__(self, default, getattr(self, given))  # frozen, and it must not count as set
