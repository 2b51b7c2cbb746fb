"""Opening connections: name resolution, TCP with happy eyeballs, TLS. Nothing is left behind by a cancelled attempt.

The event loops' own `create_connection(host, port, ssl=...)` would be shorter, but asyncio's drops a socket when it is
cancelled at the moment a connection succeeds, and uvloop's has no happy eyeballs.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

import httpx

from fastapi_http_client.engine.connection import Connection
from fastapi_http_client.engine.errors import describe

if TYPE_CHECKING:
    from fastapi_http_client.engine.pool import ConnectionPool, Origin

ATTEMPT_DELAY = 0.25
"""Seconds before the next address is tried as well (RFC 8305 section 5)."""

Address = tuple[int, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]
"""A family, and what `socket.connect` takes for it."""


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
            sock = await connect_any(await _resolve(origin.host, origin.port))
            try:
                _, connection = await pool.loop.create_connection(lambda: Connection(pool, origin), sock=sock)
            except BaseException:
                sock.close()
                raise
            if ssl_context is not None:
                step = "the TLS handshake with"
                await _start_tls(connection, ssl_context, origin.server_hostname, pool.loop)
    except TimeoutError as error:
        # Also the operating system's own limit, which can be shorter.
        late = f" within {seconds:g} s" if seconds is not None and error.errno is None else f": {describe(error)}"
        raise httpx.ConnectTimeout(f"{step} {origin.netloc} did not succeed{late}") from error
    except (OSError, ValueError, OverflowError) as error:  # also ssl.SSLError, UnicodeError, an impossible port
        raise httpx.ConnectError(f"{step} {origin.netloc} failed: {describe(error)}") from error
    if connection.closed:
        raise connection.error or httpx.ConnectError(f"{origin.netloc} closed the connection at once")
    return connection


async def _resolve(host: str, port: int) -> list[Address]:
    """The host's addresses, families taking turns from the one that the system prefers (RFC 8305 section 4)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family: dict[int, list[Address]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, []).append((family, address))
    rounds = itertools.zip_longest(*by_family.values())
    return [address for one_each in rounds for address in one_each if address is not None]


async def connect_any(addresses: Sequence[Address]) -> socket.socket:
    """A socket connected to one of the addresses: each is tried when the one before fails, or takes its time.

    Raises the `OSError` of the first address when all have failed.
    """
    if len(addresses) == 1:
        return await _connect(addresses[0])
    attempts: list[asyncio.Task[socket.socket]] = []
    winner: asyncio.Task[socket.socket] | None = None
    try:
        for address in addresses:
            attempts.append(asyncio.create_task(_connect(address)))
            is_last = len(attempts) == len(addresses)
            while winner is None and (running := [attempt for attempt in attempts if not attempt.done()]):
                done, _ = await asyncio.wait(
                    running, timeout=None if is_last else ATTEMPT_DELAY, return_when=asyncio.FIRST_COMPLETED
                )
                winner = next((attempt for attempt in done if attempt.exception() is None), None)
                if not is_last:
                    break
            if winner is not None:
                return winner.result()
        return attempts[0].result()
    finally:
        for attempt in attempts:
            if attempt is not winner:
                attempt.cancel()
                attempt.add_done_callback(_discard)


async def _connect(address: Address) -> socket.socket:
    family, place = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _start_tls(
    connection: Connection, context: ssl.SSLContext, server_hostname: str, loop: asyncio.AbstractEventLoop
) -> None:
    """Put TLS over the connection's socket; closes the socket when that fails or is cancelled."""
    transport = connection.transport
    if transport is None:
        raise ConnectionResetError("the server closed the connection, or spoke, before the handshake")
    try:
        secured = await loop.start_tls(transport, connection, context, server_hostname=server_hostname)
        if secured is None:
            raise ConnectionResetError("the server closed the connection during the handshake")
        protocol = secured.get_extra_info("ssl_object").selected_alpn_protocol()
        if protocol not in (None, "http/1.1", "http/1.0"):
            raise ConnectionAbortedError(f"the TLS context negotiated {protocol}, not HTTP/1.1")
    except BaseException:
        transport.abort()
        raise
    connection.connection_made(secured)
