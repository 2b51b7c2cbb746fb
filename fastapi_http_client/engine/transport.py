"""The transport: httpx's requests in, httpx's responses out."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Mapping

import httpx

from fastapi_http_client.engine.connection import Connection, Exchange
from fastapi_http_client.engine.errors import NOTHING_SENT, with_facts
from fastapi_http_client.engine.parser import ResponseParser
from fastapi_http_client.engine.pool import CLOSED_MESSAGE, ConnectionPool, OriginKey
from fastapi_http_client.engine.request import OutgoingRequest, encode_request
from fastapi_http_client.engine.response import received_response, streamed_response
from fastapi_http_client.sweeper import NEVER

_NO_TIMEOUTS: Mapping[str, float | None] = {}


class AsyncioTransport(httpx.AsyncBaseTransport):
    """An HTTP/1.1 transport for httpx on asyncio's (or uvloop's) own protocols and llhttp.

    Not for HTTP/2, proxies, CONNECT, protocol upgrades, Unix sockets, trio, or the `trace` extension: those are
    `httpx.AsyncHTTPTransport`'s. Of `request.extensions` it knows `timeout`, `sni_hostname` and `target`. Failures are
    httpx's own exceptions with a text; `engine.errors.exchange_facts(error)` tells how far the exchange had come.

    A transport belongs to the event loop of its first call. From another loop, and once closed, every call raises
    `RuntimeError`.

    Args:
        ssl_context: for https; None: httpx's default context, made at the first https request.
        max_connections: to all origins together; further calls wait for their turn, first come, first served.
        max_keepalive_connections: idle ones kept for later; more are closed within about a second.
        keepalive_expiry: seconds after which an idle connection is closed.
        max_connection_age: seconds after which a connection is not used again, so that DNS changes are noticed.
        max_head_bytes: of one response's head, interim responses included; also bounds chunk extensions and trailers.
        max_interim_responses: 1xx responses before the final one.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 100,
        max_keepalive_connections: int = 20,
        keepalive_expiry: float = 30.0,
        max_connection_age: float | None = None,
        max_head_bytes: int = 64 * 1024,
        max_interim_responses: int = 16,
    ) -> None:
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        self._ssl_context = ssl_context
        self._new_pool = functools.partial(
            ConnectionPool,
            ssl_context=self._get_ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            max_connection_age=max_connection_age,
            new_parser=functools.partial(
                ResponseParser, max_head_bytes=max_head_bytes, max_interim_responses=max_interim_responses
            ),
        )
        self._pool: ConnectionPool | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the response when its head is there; its body is read from the response.

        The request is sent whole first, unless the server refuses it before (a status of 300 or more): a server that
        reads no more until somebody reads its answer meets the write timeout, as it does under httpx's own transport.
        Raises httpx's `TransportError` classes, and `RuntimeError` for a wrong loop or a closed transport.
        """
        key, outgoing = _prepared(request)
        pool, timeouts = self._current_pool(), _timeouts(request)
        try:
            connection = pool.take_idle(key) or await pool.acquire(
                key, connect_timeout=timeouts.get("connect"), pool_timeout=timeouts.get("pool")
            )
        except httpx.RequestError as error:
            error.request = request
            raise
        exchange = self._begun(connection, outgoing, request, timeouts, streamed=True)
        try:
            if exchange.sending:
                await exchange.send_rest(outgoing)
            await exchange.wait_for_head()
            return streamed_response(exchange)
        except BaseException as error:
            self._give_up(exchange, request, error)
            raise

    async def fetch(self, request: httpx.Request, *, max_bytes: int | None = None) -> httpx.Response:
        """Send the request and return the response when its body has been received: the fast path.

        A body with a content coding is still to be read from the response, which decodes it. `max_bytes` bounds the
        body on the wire; a larger one raises `engine.errors.ResponseTooLargeError` (an `httpx.ReadError`).
        `response.elapsed` is left for the caller to set, as transports do.

        Raises httpx's `TransportError` classes, and `RuntimeError` for a wrong loop or a closed transport.
        """
        key, outgoing = _prepared(request)
        exchange = await self.exchange(key, outgoing, request, max_bytes=max_bytes)
        return received_response(exchange, request, httpx.Response)

    async def exchange(
        self,
        key: OriginKey,
        outgoing: OutgoingRequest,
        request: httpx.Request,
        *,
        max_bytes: int | None = None,
        within: float = NEVER,
    ) -> Exchange:
        """Send what has been encoded already and return the exchange, complete with its body as it was received.

        `request` is what its timeouts and errors belong to. After `within` seconds, whatever has come by then,
        `engine.errors.DeadlineExceededError` (an `httpx.ReadTimeout`) is raised. Otherwise like `fetch()`.
        """
        # As above, and not by a coroutine of both: each call that waits for a connection would hold one more.
        pool, timeouts = self._current_pool(), _timeouts(request)
        end_by = NEVER if within == NEVER else pool.loop.time() + within
        try:
            connection = pool.take_idle(key) or await pool.acquire(
                key, connect_timeout=timeouts.get("connect"), pool_timeout=timeouts.get("pool"), end_by=end_by
            )
        except httpx.RequestError as error:
            error.request = request
            raise
        exchange = self._begun(
            connection, outgoing, request, timeouts, streamed=False, max_bytes=max_bytes, end_by=end_by
        )
        try:
            if exchange.sending:
                await exchange.send_rest(outgoing)
            await exchange.wait_for_end()
        except BaseException as error:
            self._give_up(exchange, request, error)
            raise
        return exchange

    async def aclose(self) -> None:
        """Close every connection; calls still running fail. May be called again.

        When the transport's event loop is closed already, its sockets are gone with it and nothing is left to do.
        """
        self._closed = True
        pool = self._pool
        if pool is None or pool.loop.is_closed():
            return
        if pool.loop is not asyncio.get_running_loop():
            raise RuntimeError(_OTHER_LOOP_MESSAGE)
        await pool.aclose()

    def _current_pool(self) -> ConnectionPool:
        pool = self._pool
        if pool is None or self._closed or pool.loop is not asyncio.get_running_loop():
            return self._bind()
        return pool

    @classmethod
    def _begun(
        cls,
        connection: Connection,
        outgoing: OutgoingRequest,
        request: httpx.Request,
        timeouts: Mapping[str, float | None],
        *,
        streamed: bool,
        max_bytes: int | None = None,
        end_by: float = NEVER,
    ) -> Exchange:
        """An exchange on the connection, with the request's head sent."""
        exchange = connection.start(
            outgoing,
            read_timeout=timeouts.get("read"),
            write_timeout=timeouts.get("write"),
            streamed=streamed,
            max_bytes=max_bytes,
            end_by=end_by,
        )
        try:
            exchange.send_head(outgoing)
        except BaseException as error:
            cls._give_up(exchange, request, error)
            raise
        return exchange

    def _bind(self) -> ConnectionPool:
        """The pool, made for the running loop at the first call."""
        if self._closed:
            raise RuntimeError(CLOSED_MESSAGE)
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = self._new_pool(loop)
        elif self._pool.loop is not loop:
            raise RuntimeError(_OTHER_LOOP_MESSAGE)
        return self._pool

    def _get_ssl_context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        return self._ssl_context

    @staticmethod
    def _give_up(exchange: Exchange, request: httpx.Request, error: BaseException) -> None:
        """End an exchange that its caller gives up, for whatever reason, and complete the error that says so."""
        exchange.abandon()
        if isinstance(error, httpx.RequestError):
            error.request = request
        if isinstance(error, httpx.RequestError | asyncio.CancelledError):  # whoever has cancelled it may ask
            with_facts(error, exchange.facts())


_OTHER_LOOP_MESSAGE = "this transport belongs to another event loop: make one for each loop"


def _timeouts(request: httpx.Request) -> Mapping[str, float | None]:
    return request.extensions.get("timeout") or _NO_TIMEOUTS


def _prepared(request: httpx.Request) -> tuple[OriginKey, OutgoingRequest]:
    try:
        return origin_key(request), encode_request(request)
    except httpx.RequestError as error:
        error.request = request
        with_facts(error, NOTHING_SENT)
        raise


def origin_key(request: httpx.Request) -> OriginKey:
    """The server that a request goes to, as the pool knows it. Raises `httpx.UnsupportedProtocol`."""
    url = request.url
    scheme, host = url.raw_scheme, url.raw_host
    if scheme != b"http" and scheme != b"https":
        raise httpx.UnsupportedProtocol(f"the URL's scheme must be http or https, not {url.scheme!r}")
    if not host:
        raise httpx.UnsupportedProtocol("the URL has no host")
    return scheme, host, url.port, request.extensions.get("sni_hostname")
