"""httpx's transport class over httpcore2's connection pool: for all that the engine does not speak.

httpx 0.28.1 brings httpcore 1.0, whose pool loses a slot for ever when a request is cancelled while it connects
(encode/httpcore#1093) and does not reuse connections under load. httpcore2 has neither fault and the same shapes.
Keeping `httpx.AsyncHTTPTransport.handle_async_request` in the path keeps respx, pytest-httpx and the OpenTelemetry
instrumentation working, since all of them patch that method.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import httpcore2
import httpx

from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.engine.errors import NOTHING_SENT, ExchangeFacts, exchange_facts, with_facts
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
    """`httpx.AsyncHTTPTransport` with httpcore2's pool in the place of httpcore's."""

    def __init__(self, config: ClientConfig, *, ssl_context: ssl.SSLContext, http1: bool = True) -> None:
        # The base class's __init__ would build a TLS context and a pool only to have them replaced.
        self._pool = _Pool(config, ssl_context=ssl_context, http1=http1)  # type: ignore[assignment]


class _Pool:
    """httpcore2's pool in the shape that httpx calls: its requests in, httpx's errors out."""

    def __init__(self, config: ClientConfig, *, ssl_context: ssl.SSLContext, http1: bool) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context,
            proxy=_proxy(config.proxy),
            max_connections=config.max_connections,
            max_keepalive_connections=config.max_keepalive_connections,
            keepalive_expiry=config.keepalive_expiry,
            http1=http1,
            http2=config.http2,
            network_backend=_Network(),  # pyright: ignore[reportArgumentType]
        )
        if config.max_connection_age is not None:
            _limit_age(self._pool, config.max_connection_age)

    async def handle_async_request(self, request: Any) -> httpcore2.Response:
        with _as_httpx_errors(), _noting_progress():
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
        response.stream = _Body(response.stream)
        return response

    async def aclose(self) -> None:
        with _as_httpx_errors():
            await self._pool.aclose()

    async def __aenter__(self) -> _Pool:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class _Body:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_errors():
            async for chunk in self._stream:
                yield chunk

    async def aclose(self) -> None:
        _note_surplus(self._stream)
        with _as_httpx_errors():
            await self._stream.aclose()


def _note_surplus(body: Any) -> None:
    """See to it that a connection on which there is more than the response is not used again.

    What came behind the response is in the parser, where the pool does not look, and would answer the next request.
    """
    connection = getattr(getattr(body, "_stream", None), "_connection", None)
    parser = getattr(connection, "_h11_state", None)
    if connection is not None and parser is not None and parser.trailing_data[0]:
        connection._network_stream.has_surplus = True


_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
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


@contextlib.contextmanager
def _as_httpx_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for cls in type(error).__mro__:
            if cls in _ERRORS:
                raise _ERRORS[cls](str(error)) from error
        raise


_sent_at: ContextVar[list[float] | None] = ContextVar("fastapi_http_client_sent_at", default=None)
"""Where the call of this task notes when the first byte of its request was written."""


@contextlib.contextmanager
def _noting_progress() -> Iterator[None]:
    """Say with an error, also a cancellation, how far the request had come: httpcore2 does not."""
    sent_at: list[float] = []
    token = _sent_at.set(sent_at)
    try:
        yield
    except BaseException as error:
        if sent_at and exchange_facts(error) is None:
            lasted = SYSTEM_CLOCK.monotonic() - sent_at[0]
            with_facts(error, ExchangeFacts(True, response_started=False, connection_reused=False, lasted=lasted))
        raise
    finally:
        _sent_at.reset(token)


class _Network(httpcore2.AnyIOBackend):
    """httpcore2's network, whose streams are mended."""

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        try:
            stream = await super().connect_tcp(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        except ExceptionGroup as group:  # anyio's, for what is no OSError: an impossible port
            raise with_facts(httpcore2.ConnectError(str(group.exceptions[0])), NOTHING_SENT) from group
        except BaseException as error:
            with_facts(error, NOTHING_SENT)  # also a cancellation: whoever is the cause of it can tell then
            raise
        return _Stream(stream)


_AT_ONCE = 256 * 1024  # bytes; no event loop reads more in one step


class _Stream(httpcore2.AsyncNetworkStream):
    """The bytes of one connection.

    It closes in one step, also when a TLS handshake is cancelled, and tells the pool of every byte that waits on a
    connection that should be idle.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._unread = b""
        self.has_surplus = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore2 calls it
        # What anyio reads too much of it keeps where `is_readable` does not look.
        if self._unread:
            data = self._unread
            await SYSTEM_CLOCK.sleep(0)
        else:
            data = await self._stream.read(_AT_ONCE, timeout)
        self._unread = data[max_bytes:]
        return data[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  # httpcore2 calls it
        sent_at = _sent_at.get()
        if sent_at is not None and not sent_at:
            sent_at.append(SYSTEM_CLOCK.monotonic())
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close without giving way: a cancellation here would leave a closed connection in the pool's books."""
        closing = self._stream.aclose()
        try:
            closing.send(None)  # aborts the transport; what is left only waits for a turn
        except StopIteration:
            pass
        finally:
            closing.close()

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        try:
            return _Stream(await self._stream.start_tls(*args, **kwargs))
        except BaseException as error:
            with_facts(error, NOTHING_SENT)
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return (
                self.has_surplus or bool(self._unread) or self._stream.get_extra_info(info) or self._holds_decrypted()
            )
        return self._stream.get_extra_info(info)

    def _holds_decrypted(self) -> bool:
        tls = self._stream.get_extra_info("ssl_object")
        if tls is None:
            return False
        try:
            tls.read(1)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:  # the end
            return True
        return True


def _proxy(url: str | None) -> httpcore2.Proxy | None:
    if url is None:
        return None
    parsed = httpx.URL(url)
    auth = (parsed.username.encode(), parsed.password.encode()) if parsed.userinfo else None
    return httpcore2.Proxy(url=str(parsed.copy_with(username=None, password=None)), auth=auth)


def _limit_age(pool: httpcore2.AsyncConnectionPool, limit: float) -> None:
    """Let every connection of the pool expire at an age of `limit` seconds, once it is idle."""
    create = pool.create_connection

    def create_mortal(origin: httpcore2.Origin) -> Any:
        connection = create(origin)
        born = SYSTEM_CLOCK.monotonic()
        has_expired = connection.has_expired
        connection.has_expired = lambda: SYSTEM_CLOCK.monotonic() - born > limit or has_expired()  # type: ignore[method-assign]
        return connection

    pool.create_connection = create_mortal  # type: ignore[method-assign]
