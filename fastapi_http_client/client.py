"""`AsyncHTTPClient`: an `httpx.AsyncClient` whose `send()` goes through the pipeline."""

from __future__ import annotations

import asyncio
import copy
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

import httpx
from httpx import USE_CLIENT_DEFAULT
from httpx._multipart import MultipartStream

from fastapi_http_client import transport as _transport
from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.auth import APIKeyAuth, BasicAuth, BearerAuth, CredentialAuth, build_auth
from fastapi_http_client.call import OPTIONS, Call, origin
from fastapi_http_client.chance import chance_from
from fastapi_http_client.circuit_breaker import CircuitBreaker, rules_of
from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.config import (
    APIKeyConfig,
    AuthConfig,
    BasicConfig,
    BearerConfig,
    ClientConfig,
)
from fastapi_http_client.decoding import ACCEPT_ENCODING
from fastapi_http_client.errors import ConfigurationError, HTTPRequestError, of_call
from fastapi_http_client.exchange import Body, Exchange
from fastapi_http_client.fast import PlainRequests, is_plain
from fastapi_http_client.lifecycle import ClientStateError, Lifecycle, shielded
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse, copy_request
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.pipeline import build
from fastapi_http_client.policies.retry import RetryBudget, RetryPolicy
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.redaction import redact_url
from fastapi_http_client.retry import RetryMiddleware
from fastapi_http_client.server_limit import ServerLimit
from fastapi_http_client.telemetry import report_circuit_change
from fastapi_http_client.urls import InvalidURLError, Joiner, expand, with_params

if TYPE_CHECKING:
    import ssl
    from typing import Self

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
    from typing_extensions import Unpack

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

    class RequestOptions(TypedDict, total=False):
        """What every verb takes."""

        params: QueryParamTypes | None
        path_params: Mapping[str, Any] | None
        headers: HeaderTypes | None
        cookies: CookieTypes | None
        auth: AuthTypes | UseClientDefault | None
        follow_redirects: bool | UseClientDefault
        timeout: TimeoutTypes | UseClientDefault
        extensions: Mapping[str, Any] | None
        retry: bool
        total_timeout: float | None

    class BodyOptions(RequestOptions, total=False):
        """What the verbs with a body take too."""

        content: RequestContent | None
        data: RequestData | None
        files: RequestFiles | None
        json: Any


_HTTPX_OPTIONS = frozenset(
    [
        "params",
        "headers",
        "cookies",
        "verify",
        "cert",
        "http1",
        "http2",
        "proxy",
        "mounts",
        "timeout",
        "follow_redirects",
        "limits",
        "max_redirects",
        "event_hooks",
        "trust_env",
        "default_encoding",
    ]
)
# What belongs to the pool, or to state that a client and its views share: a view cannot have its own.
_SHARED_FIELDS = frozenset(
    name
    for name in ClientConfig.model_fields
    if name.startswith(("max_connection", "max_keepalive", "keepalive", "client_", "circuit_breaker_", "rate_limit_"))
    or name in ("verify_ssl", "ca_file", "proxy", "trust_env", "http2", "engine", "retry_budget", "persist_cookies")
) - {"rate_limit_max_wait"}

_NO_OPTIONS: Mapping[str, Any] = {}


class AsyncHTTPClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` with authentication, retries, rate limit, circuit breaker and middlewares.

    It takes httpx's own options too, and they win over `config`. A `rate_limiter` or `circuit_breaker` given is used
    whatever `config.enable_…` says; without one it is made from `config` if switched on. `name` is shown in errors,
    logs and metrics. `clock` and `random` (an object with `random()`, or a callable, giving a float in [0, 1)) are for
    tests.

    With a `base_url`, credentials, default headers and cookies go to its origin and to `config.allowed_origins` only.

    Raises `ConfigurationError`, which names the argument.
    """

    def __init__(
        self,
        base_url: httpx.URL | str = "",
        *,
        config: ClientConfig | None = None,
        auth: Any = None,
        rate_limiter: TokenBucketRateLimiter | None = None,
        circuit_breaker: CircuitBreaker | None = None,
        middlewares: Sequence[Middleware] = (),
        name: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        random: Any = None,
        **httpx_options: Unpack[HTTPXOptions],
    ) -> None:
        options: dict[str, Any] = dict(httpx_options)
        _refuse_unknown(options)
        _refuse_other_kinds(
            name=(name, str),
            rate_limiter=(rate_limiter, TokenBucketRateLimiter),
            circuit_breaker=(circuit_breaker, CircuitBreaker),
        )
        if name == "":
            raise _bad("name", "must not be empty")
        if transport is not None and not hasattr(transport, "handle_async_request"):
            raise _bad("transport", f"must be an httpx.AsyncBaseTransport, not {type(transport).__name__}")
        config = _effective_config(config, base_url, options)
        self.config = config
        self.name = name
        self.clock: Clock = clock or SYSTEM_CLOCK
        self.chance = chance_from(random)
        self.lifecycle = Lifecycle(name)
        self.default_encoding: Any = options.get("default_encoding", "utf-8")

        url = httpx.URL(config.base_url)
        auth = build_auth(auth) or _auth_from_config(config.auth)
        if url.userinfo:
            auth = auth or BasicAuth(url.username, url.password)
            url = url.copy_with(username=None, password=None)
        if isinstance(auth, OAuth2ClientCredentials):
            auth.bind(self.clock)

        headers = httpx.Headers(config.headers)
        try:
            headers.update(options.get("headers"))
        except (TypeError, ValueError, AttributeError):
            raise _bad("headers", "must be a mapping or a list of pairs of text") from None
        headers.setdefault("Accept-Encoding", ACCEPT_ENCODING)
        self._tls = _tls(config, options)
        self._http1 = bool(options.get("http1", True))
        super().__init__(
            auth=auth,
            params=options.get("params"),
            headers=headers,
            cookies=options.get("cookies"),
            mounts=options.get("mounts"),
            timeout=options.get("timeout", _timeout(config)),
            follow_redirects=config.follow_redirects,
            max_redirects=config.max_redirects,
            event_hooks=options.get("event_hooks"),
            base_url=url,
            transport=transport,
            trust_env=config.trust_env and config.proxy is None,  # a proxy that is given wins over HTTP_PROXY
            default_encoding=self.default_encoding,
        )

        self.rate_limiter = rate_limiter or _limiter_from_config(config)
        if self.rate_limiter is not None:
            self.rate_limiter.bind(self.clock)
        if circuit_breaker is None and (rules := rules_of(config)) is not None:
            circuit_breaker = CircuitBreaker(**rules._asdict())
        self.circuit_breaker = circuit_breaker
        if self.circuit_breaker is not None:
            self.circuit_breaker.bind(self.clock, name)
            self.circuit_breaker.subscribe(report_circuit_change)
        self.middlewares = _checked_middlewares(middlewares)
        self.retry_budget = RetryBudget(config.retry_budget)
        self.server_limit = ServerLimit(
            longest=config.retry_max_delay, jitter=config.retry_jitter, clock=self.clock, chance=self.chance
        )
        self._owner: AsyncHTTPClient | None = None
        self._build_pipeline()

    def _init_transport(
        self, *_: Any, transport: httpx.AsyncBaseTransport | None = None, **__: Any
    ) -> httpx.AsyncBaseTransport:
        """httpx asks here for its transport."""
        if transport is not None:
            return transport
        return _transport.create_transport(self.config, ssl_context=self._tls, http1=self._http1)

    def _init_proxy_transport(self, proxy: httpx.Proxy, *_: Any, **__: Any) -> httpx.AsyncBaseTransport:
        """httpx asks here for the transport of each proxy that the environment names."""
        url = proxy.url
        if proxy.raw_auth is not None:
            username, password = (part.decode() for part in proxy.raw_auth)
            url = url.copy_with(username=username, password=password)
        config = self.config.model_copy(update={"proxy": str(url)})
        return _transport.create_transport(config, ssl_context=self._tls, http1=self._http1)

    def _build_pipeline(self) -> None:
        from fastapi_http_client.fast_attempt import FastAttempt  # with the first client: it brings the engine

        self.retry_policy = RetryPolicy.of(self.config)
        self.keeps_cookies = self.config.persist_cookies
        self.max_bytes = self.config.max_response_bytes
        self.exchange = Exchange(self)
        self._handler, self.pipeline = build(self)
        self._fast_attempt = FastAttempt.of(self)
        self._take_base_url()

    def _take_base_url(self) -> None:
        """Join paths to the base URL, and keep credentials to its origin: again when it is set anew."""
        self._join = Joiner(self.base_url)
        self.plain_requests = PlainRequests()
        self._origins: frozenset[tuple[str, str, int | None]] = frozenset()
        if self.base_url.host:
            allowed = (origin(httpx.URL(allowed)) for allowed in self.config.allowed_origins)
            self._origins = frozenset({origin(self.base_url), *allowed})

    def with_options(self, **config_fields: Any) -> AsyncHTTPClient:
        """A view of this client with other options: it shares the pool, the limiter, the circuit and the budget.

        Closing the client closes its views; closing a view does nothing. Raises `ConfigurationError` for a field that
        belongs to what is shared.
        """
        for field in config_fields:
            if field not in ClientConfig.model_fields:
                raise _bad(field, "unknown option")
            if field in _SHARED_FIELDS:
                raise _bad(field, "belongs to what a client shares with its views; make another client for it")
        for field, shared in (
            ("enable_rate_limiting", self.rate_limiter),
            ("enable_circuit_breaker", self.circuit_breaker),
        ):
            if config_fields.get(field) and shared is None:
                raise _bad(field, "the client has none that the view could share")
        config = ClientConfig(**(_set_fields(self.config) | config_fields))
        view = copy.copy(self)
        view._owner = self._owner or self
        view.config = config
        if config_fields.get("enable_rate_limiting") is False:
            view.rate_limiter = None
        if config_fields.get("enable_circuit_breaker") is False:
            view.circuit_breaker = None
        if "base_url" in config_fields:
            view.base_url = httpx.URL(config.base_url)
        view.headers, view.params, view.event_hooks = self.headers, self.params, self.event_hooks  # httpx copies them
        if "headers" in config_fields:
            view.headers.update(config.headers)
        if "auth" in config_fields:
            view._auth = _auth_from_config(config.auth)
            if isinstance(view._auth, OAuth2ClientCredentials):
                view._auth.bind(self.clock)
        if config_fields.keys() & {"timeout", "connect_timeout", "total_timeout"}:
            view.timeout = _timeout(config)
        view.follow_redirects = config.follow_redirects
        view.max_redirects = config.max_redirects
        view._build_pipeline()
        return view

    # -- requests ------------------------------------------------------------------------------------------------

    def build_request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        params: QueryParamTypes | None = None,
        path_params: Mapping[str, Any] | None = None,
        extensions: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> httpx.Request:
        """A request with the client's defaults merged in, as httpx builds it, except that `params` are added to the
        URL's own query instead of replacing it, and that a path cannot leave the base URL.

        `path_params` fills the `{fields}` of the path, each value percent-quoted whole. Raises `HTTPRequestError` (also
        a `ValueError`) for an address that cannot be used.
        """
        extensions = dict(extensions) if extensions else {}
        if self._join.base is not self.base_url:
            self._take_base_url()
        template = None
        try:
            if path_params is not None:
                template = str(url)
                extensions[OPTIONS] = {**extensions.get(OPTIONS, {}), "url_template": template}
                url = expand(template, path_params)
            joined = self._join(url, template)
        except InvalidURLError as error:
            message = f"{self.name or 'AsyncHTTPClient'}: {method} refused: {error.message}"
            of_call(error, message=message, client=self.name)
            raise
        if "timeout" in rest:
            _check_timeout(rest["timeout"])
        try:
            if params or self.params:
                joined = with_params(joined, self.params.merge(params))
            if is_plain(method, rest) and not self.cookies:
                timeout = rest.get("timeout", USE_CLIENT_DEFAULT)
                limits = self.timeout if timeout is USE_CLIENT_DEFAULT else httpx.Timeout(timeout)
                extensions.setdefault("timeout", limits.as_dict())
                return self.plain_requests.request(method, joined, self.headers, rest.get("headers"), extensions)
            request = super().build_request(method, joined, extensions=extensions, **rest)
            if "cookies" in rest or "files" in rest:
                _refuse_injection(request, rest.get("cookies"))
            return request
        except (UnicodeError, httpx.InvalidURL) as error:
            raise HTTPRequestError(
                f"{method} {redact_url(joined)}: the request cannot be built: {type(error).__name__}",
                client=self.name,
                may_have_run=False,
                transient=False,
            ) from error

    def _merge_url(self, url: httpx.URL | str) -> httpx.URL:
        return httpx.URL(url)  # build_request() has joined it already

    def _merge_queryparams(self, params: QueryParamTypes | None = None) -> None:
        return None  # and added the params; httpx would put them in the place of the URL's own

    async def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        auth: Any = USE_CLIENT_DEFAULT,
        follow_redirects: Any = USE_CLIENT_DEFAULT,
        retry: bool = True,
        total_timeout: float | None = None,
        **build_options: Any,
    ) -> HTTPResponse:
        """Send a request and read the response.

        Takes what httpx takes, and `path_params={}`, `retry=False`, `total_timeout=` (seconds for the whole call);
        `timeout=` also bounds each attempt. Raises the errors of this package only.
        """
        request = self.build_request(method, url, **_with_options(build_options, retry, total_timeout))
        return await self.send(request, auth=auth, follow_redirects=follow_redirects)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        auth: Any = USE_CLIENT_DEFAULT,
        follow_redirects: Any = USE_CLIENT_DEFAULT,
        retry: bool = True,
        total_timeout: float | None = None,
        **build_options: Any,
    ) -> AsyncIterator[HTTPResponse]:
        """Send a request and hand out the response before its body is read; the options are those of `request()`."""
        request = self.build_request(method, url, **_with_options(build_options, retry, total_timeout))
        response = await self.send(request, auth=auth, follow_redirects=follow_redirects, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def get(self, url: httpx.URL | str, **options: Unpack[RequestOptions]) -> HTTPResponse:
        return await self.request("GET", url, **options)

    async def options(self, url: httpx.URL | str, **options: Unpack[RequestOptions]) -> HTTPResponse:
        return await self.request("OPTIONS", url, **options)

    async def head(self, url: httpx.URL | str, **options: Unpack[RequestOptions]) -> HTTPResponse:
        return await self.request("HEAD", url, **options)

    async def post(self, url: httpx.URL | str, **options: Unpack[BodyOptions]) -> HTTPResponse:
        return await self.request("POST", url, **options)

    async def put(self, url: httpx.URL | str, **options: Unpack[BodyOptions]) -> HTTPResponse:
        return await self.request("PUT", url, **options)

    async def patch(self, url: httpx.URL | str, **options: Unpack[BodyOptions]) -> HTTPResponse:
        return await self.request("PATCH", url, **options)

    async def delete(self, url: httpx.URL | str, **options: Unpack[RequestOptions]) -> HTTPResponse:
        return await self.request("DELETE", url, **options)

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = USE_CLIENT_DEFAULT,
        follow_redirects: Any = USE_CLIENT_DEFAULT,
    ) -> HTTPResponse:
        """Send a request through the pipeline. Every verb, `stream()` and every SDK ends here."""
        if self._join.base is not self.base_url:
            self._take_base_url()
        if Call.is_on(request):  # the same object is sent again, perhaps while its first call is still going on
            request = _fresh(request)
        if "timeout" not in request.extensions:
            request.extensions = {**request.extensions, "timeout": self.timeout.as_dict()}
        auth = self.auth if auth is USE_CLIENT_DEFAULT else build_auth(auth)
        at_home = self._join.is_below(request.url)
        if not at_home and request.url.userinfo:
            auth = auth or BasicAuth(request.url.username, request.url.password)
            request = _fresh(request)
            request.url = request.url.copy_with(username=None, password=None)
        call = self.new_call(
            request,
            stream=stream,
            auth=auth,
            follow_redirects=self.follow_redirects
            if follow_redirects is USE_CLIENT_DEFAULT
            else bool(follow_redirects),
            **request.extensions.get(OPTIONS, _NO_OPTIONS),
        )
        call.attach(request)
        call.at_home = at_home
        if not at_home and self._origins and origin(request.url) not in self._origins:
            raise HTTPRequestError(
                f"{self.name or 'AsyncHTTPClient'}: {request.method} {redact_url(request.url)} refused: the client's "
                "credentials are for another origin (allowed_origins adds to base_url)",
                request=request,
                client=self.name,
                may_have_run=False,
                transient=False,
            )
        try:
            self.lifecycle.enter()
        except ClientStateError as error:
            of_call(error, request=request, client=self.name)
            raise
        try:
            if self._fast_attempt is not None and not stream:
                answer = await self._fast_attempt(request, call)
                if answer is not None:
                    self.lifecycle.leave()
                    return answer
            response = await self.lifecycle.until_closed(self._handler(request))
        except ClientStateError as error:
            self.lifecycle.leave()
            of_call(error, request=request, client=self.name, attempts=call.attempts)
            raise
        except BaseException:
            self.lifecycle.leave()
            raise
        _when_done(response, self.lifecycle.leave)
        return response

    def new_call(
        self,
        request: httpx.Request,
        *,
        auth: httpx.Auth | None,
        stream: bool = False,
        follow_redirects: bool = False,
        retry: bool = True,
        total_timeout: float | None = None,
        url_template: str | None = None,
    ) -> Call:
        """The state of a new call that begins with this request."""
        return Call(
            clock=self.clock,
            client_name=self.name,
            stream=stream,
            retry=retry,
            follow_redirects=follow_redirects,
            auth=auth,
            origins=self._origins or frozenset({origin(request.url)}),
            total_timeout=self.config.total_timeout if total_timeout is None else total_timeout,
            url_template=url_template,
            secret_params=auth.credential_params if isinstance(auth, CredentialAuth) else frozenset(),
        )

    @property
    def credential_headers(self) -> frozenset[str]:
        """Names of the headers that the client's auth sets, lower case."""
        return self.auth.credential_headers if isinstance(self.auth, CredentialAuth) else frozenset()

    # -- life ----------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self.lifecycle.closed

    async def drain(self, grace: float) -> None:
        """Refuse new calls from now on and wait up to `grace` seconds for those in flight."""
        await self.lifecycle.drain(grace)

    async def aclose(self) -> None:
        """Close the client and its connections; calls in flight end with an error. A second time does nothing.

        On another event loop than that of its calls it raises `ClientStateError`, unless that loop is gone.
        """
        await self._end(super().aclose)

    async def _end(self, close_transports: Callable[[], Awaitable[None]]) -> None:
        if self._owner is not None or self.lifecycle.closed:
            return
        if not self.lifecycle.is_stranded:
            self.lifecycle.check_loop()
        await shielded(self._close(close_transports))

    async def _close(self, close_transports: Callable[[], Awaitable[None]]) -> None:
        for task in self.lifecycle.close():
            await _ended(task)
        if not self.lifecycle.is_stranded:
            await close_transports()

    async def __aenter__(self) -> Self:
        if self._owner is None:
            self.lifecycle.bind()
            await super().__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._end(functools.partial(super().__aexit__, exc_type, exc_value, traceback))

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<AsyncHTTPClient({name}{redact_url(self.base_url)!r})>"


# -- from arguments to parts -------------------------------------------------------------------------------------


def _bad(argument: str, what: str) -> ConfigurationError:
    return bad_argument("AsyncHTTPClient", argument, what)


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    unknown = options.keys() - _HTTPX_OPTIONS
    if unknown:
        raise TypeError(f"AsyncHTTPClient() got an unexpected keyword argument {sorted(unknown)[0]!r}")


def _refuse_other_kinds(**arguments: tuple[object, type]) -> None:
    for argument, (value, kind) in arguments.items():
        if value is not None and not isinstance(value, kind):
            raise _bad(argument, f"must be a {kind.__name__}, not {type(value).__name__}")


def _check_timeout(timeout: object) -> None:
    """Of the many things that httpx takes, the numbers have to be possible: it would find out call by call."""
    if timeout is None or timeout is USE_CLIENT_DEFAULT:
        return
    try:
        limits = httpx.Timeout(timeout).as_dict().values()  # type: ignore[arg-type]
        possible = all(limit is None or limit > 0 for limit in limits)
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise _bad("timeout", "must be a number of seconds above 0, an httpx.Timeout of such, or None")


def _set_fields(config: ClientConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def _refuse_injection(request: httpx.Request, cookies: Any) -> None:
    """Raise `httpx.InvalidURL`, as httpx does for an address, when a value would end the place that it is put in."""
    pairs = cookies.items() if isinstance(cookies, Mapping) else cookies if isinstance(cookies, list) else ()
    if any(_UNSAFE_IN_COOKIE.search(f"{name}{value}") for name, value in pairs):
        raise httpx.InvalidURL("a cookie holds a semicolon or a control character")
    if isinstance(request.stream, MultipartStream):
        for field in request.stream.fields:
            headers = getattr(field, "headers", {})  # of a file
            if any(_CONTROL.search(f"{name}{value}") for name, value in headers.items()):
                raise httpx.InvalidURL("a part's header holds a control character")


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE_IN_COOKIE = re.compile(r"[;\x00-\x1f\x7f]")


def _effective_config(
    config: ClientConfig | None, base_url: httpx.URL | str, options: Mapping[str, Any]
) -> ClientConfig:
    """The config with what httpx's own options say put over it, and checked as a whole."""
    if config is not None and not isinstance(config, ClientConfig):
        raise _bad("config", f"must be a ClientConfig, not {type(config).__name__}")
    config = config or ClientConfig()
    over: dict[str, Any] = {}
    if str(base_url):
        over["base_url"] = str(base_url)
    timeout = options.get("timeout")
    _check_timeout(timeout)
    if isinstance(timeout, int | float):
        over["timeout"] = timeout
    limits = options.get("limits")
    if limits is not None:
        over["max_connections"] = limits.max_connections or 1_000_000
        over["max_keepalive_connections"] = (
            over["max_connections"] if limits.max_keepalive_connections is None else limits.max_keepalive_connections
        )
        over["keepalive_expiry"] = 1e9 if limits.keepalive_expiry is None else limits.keepalive_expiry
    for name in ("follow_redirects", "max_redirects", "trust_env", "http2"):
        if name in options:
            over[name] = options[name]
    proxy = options.get("proxy")
    if proxy is not None:
        over["proxy"] = str(proxy.url if isinstance(proxy, httpx.Proxy) else proxy)
    if "verify" in options:
        over["verify_ssl"] = options["verify"] is not False
    return ClientConfig(**(_set_fields(config) | over)) if over else config


def _timeout(config: ClientConfig) -> httpx.Timeout:
    return httpx.Timeout(config.timeout, connect=config.connect_timeout or config.timeout)


def _tls(config: ClientConfig, options: Mapping[str, Any]) -> ssl.SSLContext:
    verify, cert = options.get("verify", True), options.get("cert")
    if isinstance(verify, bool) and cert is None:
        return _transport.ssl_context_for(config)
    return httpx.create_ssl_context(verify=verify, cert=cert, trust_env=config.trust_env)


def _auth_from_config(config: AuthConfig | None) -> httpx.Auth | None:
    if config is None:
        return None
    if isinstance(config, BearerConfig):
        return BearerAuth(config.token)
    if isinstance(config, APIKeyConfig):
        return APIKeyAuth(config.api_key, config.header_name, config.query_param_name)
    if isinstance(config, BasicConfig):
        return BasicAuth(config.username, config.password)
    return OAuth2ClientCredentials(
        config.token_url, config.client_id, config.client_secret, config.scope, config.cache_duration
    )


def _limiter_from_config(config: ClientConfig) -> TokenBucketRateLimiter | None:
    if not config.enable_rate_limiting:
        return None
    return TokenBucketRateLimiter(config.rate_limit_rate, config.rate_limit_burst)


def _checked_middlewares(middlewares: Sequence[Middleware]) -> tuple[Middleware, ...]:
    if not isinstance(middlewares, Iterable):
        raise _bad("middlewares", f"must be a sequence of Middlewares, not {type(middlewares).__name__}")
    middlewares = tuple(middlewares)
    for middleware in middlewares:
        if not isinstance(middleware, Middleware):
            raise _bad("middlewares", f"{middleware!r} is no Middleware")
    if sum(isinstance(middleware, RetryMiddleware) for middleware in middlewares) > 1:
        raise _bad("middlewares", "holds more than one RetryMiddleware")
    return middlewares


def _with_options(build_options: dict[str, Any], retry: bool, total_timeout: float | None) -> dict[str, Any]:
    if retry is True and total_timeout is None:
        return build_options
    if not isinstance(retry, bool):
        raise _bad("retry", "must be True or False")
    if total_timeout is not None and not (isinstance(total_timeout, int | float) and 0 < total_timeout < float("inf")):
        raise _bad("total_timeout", "must be a number of seconds above 0")
    extensions = build_options.get("extensions") or {}
    options = {"retry": retry, "total_timeout": total_timeout}
    return {**build_options, "extensions": {**extensions, OPTIONS: options}}


def _fresh(request: httpx.Request) -> httpx.Request:
    fresh = copy_request(request)
    if isinstance(request.stream, httpx.ByteStream):
        fresh.read()
    return fresh


def _when_done(response: HTTPResponse, leave: Callable[[], None]) -> None:
    """Count the call out at the end of its body, which for most calls has been read already."""
    if isinstance(response.stream, Body) and not response.is_closed:
        response.stream.when_done(lambda _: leave())
    else:
        leave()


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
