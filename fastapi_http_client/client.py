"""`AsyncHTTPClient`: an `httpx.AsyncClient` whose `send()` goes through the pipeline."""

from __future__ import annotations

import asyncio
import copy
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import httpx
from httpx import USE_CLIENT_DEFAULT
from httpx._multipart import MultipartStream

from fastapi_http_client import arguments
from fastapi_http_client import transport as _transport
from fastapi_http_client.auth import BasicAuth, CredentialAuth, build_auth
from fastapi_http_client.call import OPTIONS, TEMPLATE, Call, origin
from fastapi_http_client.chance import chance_from
from fastapi_http_client.circuit_breaker import CircuitBreaker, rules_of
from fastapi_http_client.client_options import (
    SHARED_FIELDS,
    auth_from_config,
    bad,
    check_arguments,
    check_timeout,
    checked_middlewares,
    effective_config,
    limiter_from_config,
    proxy_url,
    timeout_of,
    timeout_of_call,
    timeout_within,
    tls_context,
    without_userinfo,
)
from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.config import UNKNOWN_OPTION, ClientConfig, given_fields
from fastapi_http_client.decoding import ACCEPT_ENCODING
from fastapi_http_client.errors import HTTPRequestError, of_call
from fastapi_http_client.exchange import Body, ExchangeStep
from fastapi_http_client.fast import PlainRequests, is_plain
from fastapi_http_client.lifecycle import ClientStateError, Lifecycle, shielded
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse, copy_request
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.pipeline import build
from fastapi_http_client.policies.retry import RetryBudget, RetryPolicy
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.redaction import redact_url
from fastapi_http_client.server_limit import ServerLimit
from fastapi_http_client.telemetry import report_circuit_change
from fastapi_http_client.urls import InvalidURLError, Joiner, check_address, expand, path_template, with_params

if TYPE_CHECKING:
    from typing import Self

    from httpx._types import QueryParamTypes
    from typing_extensions import Unpack

    from fastapi_http_client.client_options import (
        BodyOptions,
        BuildOptions,
        HTTPXOptions,
        RequestOptions,
        ViewOptions,
    )

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
        base_url: httpx.URL | str | None = "",
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
        check_arguments(
            options,
            name=name,
            rate_limiter=rate_limiter,
            circuit_breaker=circuit_breaker,
            transport=transport,
            clock=clock,
        )
        config = effective_config(config, base_url, options)
        self.config = config
        self.name = name
        self.clock: Clock = clock or SYSTEM_CLOCK
        self.chance = chance_from(random)
        self.lifecycle = Lifecycle(name)
        self.default_encoding: Any = options.get("default_encoding", "utf-8")

        url, in_url = without_userinfo(httpx.URL(config.base_url))
        auth = build_auth(auth) or auth_from_config(config.auth) or in_url
        if isinstance(auth, OAuth2ClientCredentials):
            auth.bind(self.clock)

        headers = httpx.Headers(config.headers)
        headers.update(options.get("headers"))
        self._tls = tls_context(config, options)
        self._http1 = bool(options.get("http1", True))
        super().__init__(
            auth=auth,
            params=options.get("params"),
            headers=headers,
            cookies=options.get("cookies"),
            mounts=options.get("mounts"),
            timeout=options.get("timeout", timeout_of(config)),
            follow_redirects=config.follow_redirects,
            max_redirects=config.max_redirects,
            event_hooks=options.get("event_hooks"),
            base_url=url,
            transport=transport,
            trust_env=config.trust_env and config.proxy is None,  # a proxy that is given wins over HTTP_PROXY
            default_encoding=self.default_encoding,
        )
        if "accept-encoding" not in headers:
            self.headers["Accept-Encoding"] = ACCEPT_ENCODING  # in its place among httpx's own

        self.rate_limiter = rate_limiter or limiter_from_config(config)
        if self.rate_limiter is not None:
            self.rate_limiter.bind(self.clock)
        if circuit_breaker is None and (rules := rules_of(config)) is not None:
            circuit_breaker = CircuitBreaker(**rules._asdict())
        self.circuit_breaker = circuit_breaker
        if self.circuit_breaker is not None:
            self.circuit_breaker.bind(self.clock, name)
            self.circuit_breaker.subscribe(report_circuit_change)
        self.middlewares = checked_middlewares(middlewares)
        self.retry_budget = RetryBudget(config.retry_budget)
        self.server_limit = ServerLimit(
            longest=config.retry_max_delay, jitter=config.retry_jitter, clock=self.clock, chance=self.chance
        )
        self._owner: AsyncHTTPClient | None = None
        self._closing: asyncio.Task[None] | None = None
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
        if self.config.engine == "asyncio":
            raise bad("engine", "'asyncio' knows no proxies, and the environment names one (trust_env)")
        config = self.config.model_copy(update={"proxy": proxy_url(proxy)})
        return _transport.create_transport(config, ssl_context=self._tls, http1=self._http1)

    def _build_pipeline(self) -> None:
        from fastapi_http_client.fast_attempt import FastAttempt  # with the first client: it brings the engine

        self.retry_policy = RetryPolicy.of(self.config)
        self.keeps_cookies = self.config.persist_cookies
        self.max_bytes = self.config.max_response_bytes
        self.exchange = ExchangeStep(self)
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

    def with_options(self, **options: Unpack[ViewOptions]) -> AsyncHTTPClient:
        """A view of this client with other options: it shares the pool, the limiter, the circuit and the budget.

        Closing the client closes its views; closing a view does nothing. Raises `ConfigurationError` for a field that
        belongs to what is shared.
        """
        config_fields = cast("dict[str, Any]", options)
        for field in config_fields:
            if field not in ClientConfig.model_fields:
                raise bad(field, UNKNOWN_OPTION)
            if field in SHARED_FIELDS:
                raise bad(field, "belongs to what a client shares with its views; make another client for it")
        for field, shared in (
            ("enable_rate_limiting", self.rate_limiter),
            ("enable_circuit_breaker", self.circuit_breaker),
        ):
            if config_fields.get(field) and shared is None:
                raise bad(field, "the client has none that the view could share")
        auth = config_fields.get("auth")
        given = auth if isinstance(auth, httpx.Auth | tuple) or callable(auth) else None
        fields: dict[str, Any] = config_fields if given is None else {**config_fields, "auth": None}
        config = ClientConfig(**(given_fields(self.config) | fields))
        view = copy.copy(self)
        view._owner = self._owner or self
        view.config = config
        if config_fields.get("enable_rate_limiting") is False:
            view.rate_limiter = None
        if config_fields.get("enable_circuit_breaker") is False:
            view.circuit_breaker = None
        view.headers, view.params, view.event_hooks = self.headers, self.params, self.event_hooks  # httpx copies them
        if "headers" in config_fields:
            view.headers.update(config.headers)
        if "base_url" in config_fields:
            view.base_url, in_url = without_userinfo(httpx.URL(config.base_url))
            view._auth = in_url or view._auth
        if "auth" in config_fields:
            view._auth = build_auth(given) or auth_from_config(config.auth)
        if isinstance(view._auth, OAuth2ClientCredentials):
            view._auth.bind(self.clock)
        if config_fields.keys() & {"timeout", "connect_timeout"}:
            view.timeout = timeout_of(config)
        elif "total_timeout" in config_fields:
            view.timeout = timeout_within(config, self.timeout, of=self.config)
        if "follow_redirects" in config_fields:
            view.follow_redirects = config.follow_redirects
        if "max_redirects" in config_fields:
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
                url = expand(template, path_params)
                extensions[TEMPLATE] = path_template(template, self.base_url)
            joined = self._join(url, template)
        except InvalidURLError as error:
            self._complete(error, method)
            raise
        if "timeout" in rest:
            check_timeout(rest["timeout"])
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
                f"{method} {redact_url(joined)}: the request cannot be built: {_why_not(error)}",
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
        **build_options: Unpack[BuildOptions],
    ) -> HTTPResponse:
        """Send a request and read the response.

        Takes what httpx takes, and `path_params={}`, `retry=False`, `total_timeout=` (seconds for the whole call);
        `timeout=` also bounds each attempt. Raises the errors of this package only.
        """
        request = self.build_request(method, url, **self._call_options(build_options, retry, total_timeout))
        return await self.send(request, auth=auth, follow_redirects=follow_redirects)

    def _call_options(self, given: BuildOptions, retry: bool, total_timeout: float | None) -> dict[str, Any]:
        build_options = cast("dict[str, Any]", given)
        if retry is True and total_timeout is None:
            return build_options
        if not isinstance(retry, bool):
            raise bad("retry", "must be True or False")
        extensions = build_options.get("extensions") or {}
        options = {"retry": retry, "total_timeout": total_timeout}
        build_options = {**build_options, "extensions": {**extensions, OPTIONS: options}}
        if total_timeout is not None:
            arguments.check("AsyncHTTPClient", arguments.seconds("total_timeout", total_timeout))
            if "timeout" not in build_options:
                build_options["timeout"] = timeout_of_call(self.config, self.timeout, total_timeout)
        return build_options

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
        **build_options: Unpack[BuildOptions],
    ) -> AsyncIterator[HTTPResponse]:
        """Send a request and hand out the response before its body is read; the options are those of `request()`."""
        request = self.build_request(method, url, **self._call_options(build_options, retry, total_timeout))
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
        if follow_redirects is USE_CLIENT_DEFAULT:
            follow_redirects = self.follow_redirects
        elif follow_redirects is not None and not isinstance(follow_redirects, bool):
            raise bad("follow_redirects", "must be True or False")
        at_home = self._join.is_below(request.url)
        if not at_home:
            self._check_address(request)
            if request.url.userinfo:
                auth = auth or BasicAuth(request.url.username, request.url.password)
                request = _fresh(request)
                request.url = request.url.copy_with(username=None, password=None)
        call = self.new_call(
            request,
            stream=stream,
            auth=auth,
            follow_redirects=bool(follow_redirects),
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
        _when_done(response, request, self.lifecycle.leave)
        return response

    def _check_address(self, request: httpx.Request) -> None:
        url = request.url
        try:
            is_mounted = bool(self._mounts) and self._transport_for_url(url) is not self._transport
            check_address(url, any_scheme=is_mounted)
        except InvalidURLError as error:
            self._complete(error, request.method, request)
            raise

    def _complete(self, error: InvalidURLError, method: str, request: httpx.Request | None = None) -> None:
        message = f"{self.name or 'AsyncHTTPClient'}: {method} refused: {error.message}"
        of_call(error, message=message, request=request, client=self.name)

    def new_call(
        self,
        request: httpx.Request,
        *,
        auth: httpx.Auth | None,
        stream: bool = False,
        follow_redirects: bool = False,
        retry: bool = True,
        total_timeout: float | None = None,
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
            max_bytes=self.max_bytes,
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
        if self._owner is not None or (self._closing is not None and self._closing.done()):
            return
        if not self.lifecycle.is_stranded:
            self.lifecycle.check_loop()
        loop = asyncio.get_running_loop()
        if self._closing is None or self._closing.get_loop() is not loop:
            self._closing = loop.create_task(self._close(close_transports))
        await shielded(self._closing)

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


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE_IN_COOKIE = re.compile(r"[;\x00-\x1f\x7f]")


class _InjectionError(httpx.InvalidURL):
    """Its text holds no value."""


def _refuse_injection(request: httpx.Request, cookies: Any) -> None:
    """Raise `httpx.InvalidURL`, as httpx does for an address, when a value would end the place that it is put in."""
    pairs = cookies.items() if isinstance(cookies, Mapping) else cookies if isinstance(cookies, list) else ()
    if any(_UNSAFE_IN_COOKIE.search(f"{name}{value}") for name, value in pairs):
        raise _InjectionError("a cookie holds a semicolon or a control character")
    if isinstance(request.stream, MultipartStream):
        for field in request.stream.fields:
            headers = getattr(field, "headers", {})  # of a file
            if any(_CONTROL.search(f"{name}{value}") for name, value in headers.items()):
                raise _InjectionError("a part's header holds a control character")


def _why_not(error: Exception) -> str:
    """What is wrong with a request, without a value of it."""
    if isinstance(error, UnicodeError):
        return "a header or a parameter holds a character that cannot be sent"
    return str(error) if isinstance(error, _InjectionError) else type(error).__name__


def _fresh(request: httpx.Request) -> httpx.Request:
    fresh = copy_request(request)
    if isinstance(request.stream, httpx.ByteStream):
        fresh.read()
    return fresh


def _when_done(response: HTTPResponse, request: httpx.Request, leave: Callable[[], None]) -> None:
    """Count the call out at the end of its body, which for most calls has been read already."""
    if response.is_closed:
        leave()
        return
    if not isinstance(response.stream, Body) and isinstance(response.stream, httpx.AsyncByteStream):
        # What a middleware has put in the place of ours.
        response.stream = Body(response, request, SYSTEM_CLOCK.monotonic())
    if isinstance(response.stream, Body):
        response.stream.when_done(lambda _: leave())
    else:
        leave()


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
