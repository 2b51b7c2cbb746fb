"""Opening connections: a connected socket, and TLS over it. Nothing is left behind by a cancelled attempt."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import httpx

from fastapi_http_client.engine.connection import Connection
from fastapi_http_client.engine.errors import CONNECT_FAILURES, why_not_connected
from fastapi_http_client.engine.sockets import HANDSHAKE_LIMIT, connect

if TYPE_CHECKING:
    from fastapi_http_client.engine.pool import ConnectionPool, Origin


async def open_connection(
    pool: ConnectionPool,
    origin: Origin,
    ssl_context: ssl.SSLContext | None,
    limit: asyncio.Timeout,
    seconds: float | None,
) -> Connection:
    """A new connection, over TLS when there is a context.

    Raises `httpx.ConnectTimeout` when `limit` (which is of so many `seconds`) ends all the steps, `httpx.ConnectError`
    for everything else.
    """
    step = "connecting to"
    try:
        async with limit:
            sock = await connect(origin.host, origin.port)
            try:
                _, connection = await pool.loop.create_connection(lambda: Connection(pool, origin), sock=sock)
            except BaseException:
                sock.close()
                raise
            if ssl_context is not None:
                step = "the TLS handshake with"
                await _start_tls(connection, ssl_context, origin.server_hostname, pool.loop)
    except TimeoutError as error:
        raise httpx.ConnectTimeout(why_not_connected(f"{step} {origin.netloc}", error, seconds)) from error
    except CONNECT_FAILURES as error:
        raise httpx.ConnectError(why_not_connected(f"{step} {origin.netloc}", error, seconds)) from error
    if connection.closed:
        raise connection.error or httpx.ConnectError(f"{origin.netloc} closed the connection at once")
    return connection


async def _start_tls(
    connection: Connection, context: ssl.SSLContext, server_hostname: str, loop: asyncio.AbstractEventLoop
) -> None:
    """Put TLS over the connection's socket; closes the socket when that fails or is cancelled."""
    transport = connection.transport
    if transport is None:
        raise ConnectionResetError("the server closed the connection, or spoke, before the handshake")
    context.set_alpn_protocols(["http/1.1"])  # others use it too, and httpcore may have offered HTTP/2 with it
    try:
        secured = await loop.start_tls(
            transport,
            connection,
            context,
            server_hostname=server_hostname,
            ssl_handshake_timeout=HANDSHAKE_LIMIT,
        )
        if secured is None:
            raise ConnectionResetError("the server closed the connection during the handshake")
        protocol = secured.get_extra_info("ssl_object").selected_alpn_protocol()
        if protocol not in (None, "http/1.1", "http/1.0"):
            raise ConnectionAbortedError(f"the TLS context negotiated {protocol}, not HTTP/1.1")
    except BaseException:
        transport.abort()
        raise
    connection.connection_made(secured)
