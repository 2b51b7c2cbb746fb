"""The network under a client: which transport carries a request, and the TLS context that they share.

Plain HTTP/1.1 goes over the engine, everything else over httpcore2. Tools that patch httpx's or httpcore's network are
noticed and obeyed: a request that they would have caught does not slip past them.
"""

from __future__ import annotations

import functools
import importlib.util
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import httpx

from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import Problem

if TYPE_CHECKING:
    from fastapi_http_client.engine.transport import AsyncioTransport


def create_transport(
    config: ClientConfig, *, ssl_context: ssl.SSLContext, http1: bool = True
) -> httpx.AsyncBaseTransport:
    """The transport for a client's options: the seam where another engine, or a test's fake network, comes in.

    Raises `ConfigurationError` when an extra is missing.
    """
    for problem in missing_extras(config):
        raise bad_argument("AsyncHTTPClient", problem.argument, problem.message)
    if config.engine == "asyncio":
        return _engine(config, ssl_context)
    if config.engine == "httpcore" or config.http2 or config.proxy is not None or not http1:
        return _httpcore(config, ssl_context, http1)
    return AutoTransport(config, ssl_context)


def missing_extras(config: ClientConfig) -> Iterator[Problem]:
    """What a client of this config needs and is not installed."""
    if config.http2 and not _is_installed("h2"):
        yield Problem("http2", "needs an extra: pip install fastapi-http-client[http2]")
    if config.proxy is not None and config.proxy.startswith("socks") and not _is_installed("socksio"):
        yield Problem("proxy", "SOCKS needs an extra: pip install fastapi-http-client[socks]")


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


class AutoTransport(httpx.AsyncBaseTransport):
    """The engine, and httpcore2 for the single request that needs it.

    That is a protocol upgrade or tunnel, one with the `trace` extension, and every request while the network of httpx
    or httpcore is patched.
    """

    def __init__(self, config: ClientConfig, ssl_context: ssl.SSLContext) -> None:
        self._config = config
        self._ssl_context = ssl_context
        self._engine = _engine(config, ssl_context)
        self._httpcore: httpx.AsyncBaseTransport | None = None

    def transport_for(self, request: httpx.Request) -> httpx.AsyncBaseTransport:
        """The transport that carries this request."""
        if (
            httpx.AsyncHTTPTransport.handle_async_request is not _UNPATCHED
            or _httpcore_is_patched()
            or request.method == "CONNECT"
            or "trace" in request.extensions
            or "upgrade" in request.headers
        ):
            if self._httpcore is None:
                self._httpcore = _httpcore(self._config, self._ssl_context, http1=True)
            return self._httpcore
        return self._engine

    def engine_for_plain(self) -> AsyncioTransport | None:
        """The engine, if it is what carries a request that asks for nothing special."""
        if httpx.AsyncHTTPTransport.handle_async_request is not _UNPATCHED or _httpcore_is_patched():
            return None
        return self._engine

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self.transport_for(request).handle_async_request(request)

    async def aclose(self) -> None:
        await self._engine.aclose()
        if self._httpcore is not None:
            await self._httpcore.aclose()


def engine_of(transport: httpx.AsyncBaseTransport, request: httpx.Request) -> AsyncioTransport | None:
    """The engine, if it is what carries this request: it can read a whole response in one step."""
    if type(transport) is AutoTransport:
        transport = transport.transport_for(request)
    return transport if _is_engine(transport) else None


def engine_for_plain(transport: httpx.AsyncBaseTransport) -> AsyncioTransport | None:
    """`engine_of()` for a GET, HEAD, OPTIONS or DELETE without an `Upgrade` and without extensions for the network."""
    if type(transport) is AutoTransport:
        return transport.engine_for_plain()
    return transport if _is_engine(transport) else None


def _is_engine(transport: httpx.AsyncBaseTransport) -> TypeGuard[AsyncioTransport]:
    engine = sys.modules.get("fastapi_http_client.engine.transport")
    return engine is not None and type(transport) is engine.AsyncioTransport


def _engine(config: ClientConfig, ssl_context: ssl.SSLContext) -> AsyncioTransport:
    # Imported with the first client, and not with the package, which some only import.
    from fastapi_http_client.engine.transport import AsyncioTransport

    return AsyncioTransport(
        ssl_context=ssl_context,
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_keepalive_connections,
        keepalive_expiry=config.keepalive_expiry,
        max_connection_age=config.max_connection_age,
    )


def _httpcore(config: ClientConfig, ssl_context: ssl.SSLContext, http1: bool) -> httpx.AsyncBaseTransport:
    # Imported where it is needed, which for most services is never.
    from fastapi_http_client.httpcore.transport import HTTPCoreTransport

    # A proxy over TLS is verified as the upstream is. It gets no certificate of ours, which is for the upstream.
    to_proxy = None
    if config.proxy is not None and config.proxy.lower().startswith("https:"):
        to_proxy = ssl_context_for(config.model_copy(update={"client_cert": None, "client_key": None}))
    return HTTPCoreTransport(
        config,
        ssl_context=ssl_context,
        proxy_ssl_context=to_proxy,
        http1=http1,
        is_caught=_httpcore_is_patched,
        caught_by=functools.partial(_plain_httpx, config, ssl_context),
    )


def _plain_httpx(config: ClientConfig, ssl_context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    limits = httpx.Limits(
        max_connections=config.max_connections,
        max_keepalive_connections=config.max_keepalive_connections,
        keepalive_expiry=config.keepalive_expiry,
    )
    return httpx.AsyncHTTPTransport(verify=ssl_context, limits=limits, proxy=config.proxy)


# -- who has patched the network ---------------------------------------------------------------------------------


def _is_original(function: Any, module: str) -> bool:
    return getattr(function, "__module__", None) == module and not hasattr(function, "__wrapped__")


_UNPATCHED: Any = (
    httpx.AsyncHTTPTransport.handle_async_request
    if _is_original(httpx.AsyncHTTPTransport.handle_async_request, "httpx._transports.default")
    else None
)
"""httpx's own method; None when something had replaced it before this module was imported."""


def _httpcore_is_patched() -> bool:
    """Whether httpcore's pool is replaced, as respx does by default. httpx imports it with its first request."""
    pool = sys.modules.get(_POOL)
    return pool is not None and not _is_original(pool.AsyncConnectionPool.handle_async_request, _POOL)


_POOL = "httpcore._async.connection_pool"


# -- TLS ---------------------------------------------------------------------------------------------------------


def ssl_context_for(config: ClientConfig, password: str | None = None) -> ssl.SSLContext:
    """The TLS context for a client's options, one for all clients whose options are the same.

    A context costs 20 to 30 ms and nearly 1 MB. One with a `password`, of the client's key, is not kept.
    Raises `ConfigurationError` naming the file that cannot be used.
    """
    written = []
    for field in ("ca_file", "client_cert", "client_key"):
        path = getattr(config, field)
        if path is not None and not Path(path).is_file():
            raise bad_argument("", field, f"there is no file {path!r}")
        written.append(None if path is None else Path(path).stat().st_mtime_ns)
    options = _TLSOptions(
        config.verify_ssl,
        config.trust_env,
        config.ca_file,
        config.client_cert,
        config.client_key,
        written=tuple(written),
        http2=config.http2,
    )
    return _shared_ssl_context(options) if password is None else _ssl_context(options, password)


class _TLSOptions(NamedTuple):
    """What a TLS context is made of, and what else makes it another one."""

    verify: bool
    trust_env: bool
    ca_file: str | None
    cert: str | None
    key: str | None
    written: tuple[int | None, ...]
    """When each file was written: a certificate that was renewed is another one."""
    http2: bool
    """The pool sets the protocols that it offers on the context itself."""


def _ssl_context(options: _TLSOptions, password: str = "") -> ssl.SSLContext:
    if options.ca_file is None:
        context = httpx.create_ssl_context(verify=options.verify, trust_env=options.trust_env)
    else:
        try:
            context = ssl.create_default_context(cafile=options.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise bad_argument("", "ca_file", f"{options.ca_file!r} holds no usable certificates") from error
    if options.cert is not None:
        try:
            context.load_cert_chain(options.cert, options.key, password=lambda: password)
        except (OSError, ssl.SSLError) as error:
            field = "client_cert" if options.key is None else "client_key"
            raise bad_argument(
                "", field, f"certificate {options.cert!r} and its key cannot be used ({type(error).__name__})"
            ) from error
    return context


_shared_ssl_context = functools.lru_cache(maxsize=64)(_ssl_context)
