"""httpx's transport class over httpcore2's connection pool: for all that the engine does not speak.

httpx 0.28.1 brings httpcore 1.0, whose pool loses a slot for ever when a request is cancelled while it connects
(encode/httpcore#1093) and does not reuse connections under load. httpcore2 has neither fault and the same shapes.
Keeping `httpx.AsyncHTTPTransport.handle_async_request` in the path keeps respx, pytest-httpx and the OpenTelemetry
instrumentation working, since all of them patch that method.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import httpcore2
import httpx
from httpcore2._async.http_proxy import AsyncTunnelHTTPConnection

from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.engine.errors import NOTHING_SENT, ExchangeFacts, exchange_facts, with_facts
from fastapi_http_client.httpcore.network import AsyncioBackend, sent_at
from fastapi_http_client.redaction import MASK


class _MaskedHeaders(logging.Filter):
    """At DEBUG, httpcore2 logs the response's headers: a cookie is a session, and a Location may repeat our key."""

    _SECRET = re.compile(r"(b'(?:set-cookie|location)', b)(?:'[^']*'|\"[^\"]*\")", re.IGNORECASE)

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str):
            record.msg = self._SECRET.sub(rf"\1'{MASK}'", record.msg)
        return True


for _name in ("http11", "http2", "connection", "proxy"):
    logging.getLogger(f"httpcore2.{_name}").addFilter(_MaskedHeaders())
for _name in ("hpack", "table"):  # HTTP/2's compression, whose DEBUG lines are the headers themselves, ours too
    logging.getLogger(f"hpack.{_name}").addFilter(lambda _: False)


class HTTPCoreTransport(httpx.AsyncHTTPTransport):
    """`httpx.AsyncHTTPTransport` with httpcore2's pool in the place of httpcore's.

    While `is_caught` says that somebody has patched httpcore to catch all calls, they go over what `caught_by` makes.
    """

    def __init__(
        self,
        config: ClientConfig,
        *,
        ssl_context: ssl.SSLContext,
        proxy_ssl_context: ssl.SSLContext | None = None,
        http1: bool = True,
        is_caught: Callable[[], bool],
        caught_by: Callable[[], httpx.AsyncBaseTransport],
    ) -> None:
        self._is_caught = is_caught
        self._caught_by = caught_by
        self._catcher: httpx.AsyncBaseTransport | None = None
        # The base class's __init__ would build a TLS context and a pool only to have them replaced.
        proxy = None if config.proxy is None else _proxy(config.proxy, proxy_ssl_context)
        self._pool = _Pool(config, ssl_context=ssl_context, proxy=proxy, http1=http1)  # type: ignore[assignment]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._is_caught():
            self._catcher = self._catcher or self._caught_by()
            return await self._catcher.handle_async_request(request)
        return await super().handle_async_request(request)

    async def aclose(self) -> None:
        await super().aclose()
        if self._catcher is not None:
            await self._catcher.aclose()


class _Pool:
    """httpcore2's pool in the shape that httpx calls: its requests in, httpx's errors out."""

    def __init__(
        self, config: ClientConfig, *, ssl_context: ssl.SSLContext, proxy: httpcore2.Proxy | None, http1: bool
    ) -> None:
        self._pool = _ConnectionPool(
            max_connection_age=config.max_connection_age,
            ssl_context=ssl_context,
            proxy=proxy,
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_keepalive_connections,
            keepalive_expiry=config.keepalive_expiry,
            http1=http1,
            http2=config.http2,
            network_backend=AsyncioBackend(),
        )

    async def handle_async_request(self, request: Any) -> httpcore2.Response:
        noted: list[float] = []
        token = sent_at.set(noted)
        try:
            response = await self._pool.handle_async_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(
                        scheme=request.url.scheme,
                        host=request.url.host,
                        port=request.url.port,
                        target=request.url.target,
                    ),
                    headers=request.headers,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except BaseException as error:
            _note_progress(error, noted)
            _raise_as_httpx(error)
        finally:
            sent_at.reset(token)
        response.stream = _Body(response.stream)
        return response

    async def aclose(self) -> None:
        try:
            await self._pool.aclose()
        except Exception as error:
            _raise_as_httpx(error)

    async def __aenter__(self) -> _Pool:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class _ConnectionPool(httpcore2.AsyncConnectionPool):
    """httpcore2's pool, whose connections also end at an age (in seconds)."""

    def __init__(self, *, max_connection_age: float | None, **options: Any) -> None:
        super().__init__(**options)
        self._max_connection_age = max_connection_age

    def create_connection(self, origin: httpcore2.Origin) -> httpcore2.AsyncConnectionInterface:
        connection = super().create_connection(origin)
        if self._http2:
            from fastapi_http_client.httpcore.http2 import speak_http2  # needs the extra `http2`

            speak_http2(connection)
        if isinstance(connection, AsyncTunnelHTTPConnection):
            _close_failed_tunnel(connection)
        if self._max_connection_age is not None:
            _limit_age(connection, self._max_connection_age)
        return connection


def _limit_age(connection: httpcore2.AsyncConnectionInterface, limit: float) -> None:
    """Give a connection of that age no further calls, and let it expire once it is idle."""
    end = SYSTEM_CLOCK.monotonic() + limit
    has_expired, is_available = connection.has_expired, connection.is_available
    connection.has_expired = lambda: SYSTEM_CLOCK.monotonic() > end or has_expired()  # type: ignore[method-assign]
    connection.is_available = lambda: SYSTEM_CLOCK.monotonic() <= end and is_available()  # type: ignore[method-assign]


def _close_failed_tunnel(connection: AsyncTunnelHTTPConnection) -> None:
    """Close a tunnel whose handshake has failed or was cancelled: httpcore2 keeps its place in the pool for ever."""
    handle, lock = connection.handle_async_request, connection._connect_lock

    async def handle_async_request(request: httpcore2.Request) -> httpcore2.Response:
        try:
            return await handle(request)
        except BaseException as error:
            is_being_opened = bool(lock._backend) and lock._anyio_lock.locked()  # by another call
            if not connection._connected:
                with_facts(error, NOTHING_SENT)  # what was sent was for the proxy
                if not is_being_opened:
                    await connection._connection.aclose()  # does not give way
            raise

    connection.handle_async_request = handle_async_request  # type: ignore[method-assign]


class _Body:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except Exception as error:
            _raise_as_httpx(error)

    async def aclose(self) -> None:
        _note_surplus(self._stream)
        try:
            await self._stream.aclose()
        except Exception as error:
            _raise_as_httpx(error)


def _note_surplus(body: Any) -> None:
    """See to it that a connection on which there is more than the response is not used again.

    What came behind the response is in the parser, where the pool does not look, and would answer the next request.
    """
    connection = getattr(getattr(body, "_stream", None), "_connection", None)
    parser = getattr(connection, "_h11_state", None)
    if connection is not None and parser is not None and parser.trailing_data[0]:
        connection._network_stream.has_surplus = True


_ERRORS: dict[type, type[httpx.TransportError]] = {
    getattr(httpcore2, cls.__name__): cls
    for cls in (
        httpx.ConnectTimeout,
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.PoolTimeout,
        httpx.TimeoutException,
        httpx.ConnectError,
        httpx.ReadError,
        httpx.WriteError,
        httpx.NetworkError,
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        httpx.RemoteProtocolError,
        httpx.ProtocolError,
    )
}


def _raise_as_httpx(error: BaseException) -> NoReturn:
    for cls in type(error).__mro__:
        if cls in _ERRORS:
            translated, facts = _ERRORS[cls](str(error)), exchange_facts(error)
            raise (translated if facts is None else with_facts(translated, facts)) from error
    raise error


def _note_progress(error: BaseException, sent: list[float]) -> None:
    """Say with an error, also a cancellation, how far the request had come: httpcore2 does not."""
    if sent and exchange_facts(error) is None:
        lasted = SYSTEM_CLOCK.monotonic() - sent[0]
        with_facts(error, ExchangeFacts(True, response_started=False, connection_reused=False, lasted=lasted))


def _proxy(url: str, ssl_context: ssl.SSLContext | None) -> httpcore2.Proxy:
    parsed = httpx.URL(url)
    auth = (parsed.username.encode(), parsed.password.encode()) if parsed.userinfo else None
    return httpcore2.Proxy(
        url=str(parsed.copy_with(username=None, password=None)),
        auth=auth,
        ssl_context=ssl_context if parsed.scheme == "https" else None,
    )
