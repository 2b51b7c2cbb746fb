"""Credentials that are known beforehand: bearer tokens, API keys and Basic.

All are ordinary `httpx.Auth`, so they work with a plain `httpx.AsyncClient` too. In our pipeline they only ever see the
copy of a request that goes on the wire. OAuth2, which has to fetch its token, is in `oauth2`.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import quote_plus

import httpx
from pydantic import BaseModel, SecretStr

from fastapi_http_client.arguments import bad_argument, refusal
from fastapi_http_client.config import APIKeyConfig, BasicConfig, BearerConfig, valid_token
from fastapi_http_client.errors import AuthenticationError, ConfigurationError

Token = str | SecretStr
TokenSource = Token | Callable[[], Token] | Callable[[], Awaitable[Token]]

M = TypeVar("M", bound=BaseModel)


def checked(owner: object, config: type[M], **arguments: Any) -> M:
    """The arguments of an auth, by the rules that hold for the same options in the environment.

    Raises `ConfigurationError`.
    """
    try:
        return config(**arguments)
    except ConfigurationError as error:
        problems = error.problems
    raise refusal(type(owner).__name__, *problems)


class CredentialAuth(httpx.Auth):
    """An auth that puts one credential on a request."""

    credential_headers: frozenset[str] = frozenset({"authorization"})
    """The headers it sets, lower case: masked in logs, never sent to a foreign origin."""
    credential_params: frozenset[str] = frozenset()
    """The query keys it sets, likewise."""

    def sign(self, request: httpx.Request) -> Coroutine[Any, Any, None] | None:
        """Put the credential on the request; a coroutine is returned when it has to be fetched first."""
        raise NotImplementedError

    @property
    def has_fixed_header(self) -> bool:
        """Whether `fixed_header()` gives all that it sets, so that `sign()` need not be asked."""
        return False

    def fixed_header(self) -> tuple[bytes, bytes]:
        raise NotImplementedError

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        signing = self.sign(request)
        if signing is not None:
            signing.close()
            raise ConfigurationError(f"{type(self).__name__}: an async token source needs an async client")
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        signing = self.sign(request)
        if signing is not None:
            await signing
        yield request

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret, which must not be written down")


class BearerAuth(CredentialAuth):
    """`Authorization: Bearer <token>` (RFC 6750). `token` may be a callable, sync or async, that is asked every time.

    Raises `ConfigurationError` for an empty token, and `AuthenticationError` on use when the callable fails or what it
    returns is no token.
    """

    def __init__(self, token: TokenSource) -> None:
        self._source = token if callable(token) else None
        self._token: SecretStr | None = None
        if not callable(token):
            self._token = checked(self, BearerConfig, token=token).token

    def sign(self, request: httpx.Request) -> Coroutine[Any, Any, None] | None:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
            return None
        assert self._source is not None
        try:
            token = _wrapped(self._source())
        except Exception as error:
            raise AuthenticationError(f"the bearer token source failed: {type(error).__name__}") from error
        if inspect.isawaitable(token):
            return self._sign_later(request, token)
        self._put(request, token)
        return None

    @property
    def has_fixed_header(self) -> bool:
        return self._token is not None

    def fixed_header(self) -> tuple[bytes, bytes]:
        assert self._token is not None
        return b"Authorization", b"Bearer " + self._token.get_secret_value().encode("ascii")

    async def _sign_later(self, request: httpx.Request, pending: Awaitable[object]) -> None:
        try:
            token = _wrapped(await pending)
        except Exception as error:
            raise AuthenticationError(f"the bearer token source failed: {type(error).__name__}") from error
        self._put(request, token)

    @staticmethod
    def _put(request: httpx.Request, token: object) -> None:
        if not isinstance(token, SecretStr) or not valid_token(token.get_secret_value()):
            raise AuthenticationError("the bearer token source returned no valid token")
        request.headers["Authorization"] = f"Bearer {token.get_secret_value()}"

    def __repr__(self) -> str:
        return "BearerAuth(token=<callable>)" if self._source else "BearerAuth(token='**********')"


def _wrapped(token: object) -> object:
    """A token as no log shows it, not even one that prints the local variables of a traceback."""
    return SecretStr(token) if isinstance(token, str) else token


class APIKeyAuth(CredentialAuth):
    """A key in the header `header_name`, or, when `query_param_name` is given, in the query instead.

    Prefer the header: addresses are written to more logs than headers are.
    """

    def __init__(self, api_key: Token, header_name: str = "X-API-Key", query_param_name: str | None = None) -> None:
        config = checked(
            self, APIKeyConfig, api_key=api_key, header_name=header_name, query_param_name=query_param_name
        )
        self._key = config.api_key
        self.header_name = header_name = config.header_name
        self.query_param_name = config.query_param_name
        self.credential_headers = frozenset() if query_param_name else frozenset({header_name.lower()})
        self.credential_params = frozenset({query_param_name}) if query_param_name else frozenset()

    def sign(self, request: httpx.Request) -> None:
        key = self._key.get_secret_value()
        if self.query_param_name is None:
            request.headers[self.header_name] = key
            return
        pair = f"{quote_plus(self.query_param_name)}={quote_plus(key)}".encode("ascii")
        query = request.url.query
        request.url = request.url.copy_with(query=query + b"&" + pair if query else pair)

    @property
    def has_fixed_header(self) -> bool:
        return self.query_param_name is None

    def fixed_header(self) -> tuple[bytes, bytes]:
        return self.header_name.encode("ascii"), self._key.get_secret_value().encode()

    def __repr__(self) -> str:
        where = (
            f"query_param_name={self.query_param_name!r}"
            if self.query_param_name
            else f"header_name={self.header_name!r}"
        )
        return f"APIKeyAuth(api_key='**********', {where})"


class BasicAuth(CredentialAuth):
    """HTTP Basic credentials in UTF-8 (RFC 7617). A user name with a colon is refused: it could not be told apart."""

    def __init__(self, username: str, password: Token) -> None:
        config = checked(self, BasicConfig, username=username, password=password)
        self.username = config.username
        pair = f"{config.username}:{config.password.get_secret_value()}".encode()
        self._header = SecretStr("Basic " + base64.b64encode(pair).decode("ascii"))

    def sign(self, request: httpx.Request) -> None:
        request.headers["Authorization"] = self._header.get_secret_value()

    @property
    def has_fixed_header(self) -> bool:
        return True

    def fixed_header(self) -> tuple[bytes, bytes]:
        return b"Authorization", self._header.get_secret_value().encode("ascii")

    def __repr__(self) -> str:
        return f"BasicAuth(username={self.username!r}, password='**********')"


def build_auth(auth: Any) -> httpx.Auth | None:
    """What httpx takes as `auth=` (an Auth, a pair, a callable) as an `httpx.Auth`."""
    if auth is None or isinstance(auth, httpx.Auth):
        return auth
    if isinstance(auth, tuple) and len(auth) == 2:
        return BasicAuth(*(part.decode() if isinstance(part, bytes) else part for part in auth))
    if isinstance(auth, type):
        raise bad_argument("AsyncHTTPClient", "auth", f"must be an object, not the class {auth.__name__}")
    if callable(auth):
        return _FunctionAuth(cast("Callable[[httpx.Request], httpx.Request]", auth))
    what = f"must be an httpx.Auth, a pair of user name and password or a callable, not {type(auth).__name__}"
    raise bad_argument("AsyncHTTPClient", "auth", what)


class _FunctionAuth(httpx.Auth):
    def __init__(self, function: Callable[[httpx.Request], httpx.Request]) -> None:
        self._function = function

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        signed = self._function(request)
        if not isinstance(signed, httpx.Request):
            if inspect.iscoroutine(signed):
                signed.close()
            what = f"a function must return the request that it was given, not {type(signed).__name__}"
            raise bad_argument("AsyncHTTPClient", "auth", what)
        yield signed
