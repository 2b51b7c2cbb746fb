"""Sockets: name resolution, TCP with happy eyeballs, and what both networks ask of one.

The event loops' own `create_connection(host, port)` would be shorter, but asyncio's drops a socket when it is cancelled
at the moment a connection succeeds, and uvloop's has no happy eyeballs.
"""

from __future__ import annotations

import asyncio
import itertools
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

HIGH_WATER = 256 * 1024
"""Bytes that may wait for their reader before a connection stops reading."""

HANDSHAKE_LIMIT = 1e6
"""Seconds for the event loop's own limit of a TLS handshake, which else is 60: ours are the caller's to choose."""

ATTEMPT_DELAY = 0.25
"""Seconds before the next address is tried as well (RFC 8305 section 5)."""

Address = tuple[int, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]
"""A family, and what `socket.connect` takes for it."""


async def connect(host: str, port: int) -> socket.socket:
    """A socket connected to the host. Raises `OSError`, or `ValueError` or `OverflowError` for what is no address."""
    return await connect_any(await _resolve(host, port))


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


def extra_info(transport: asyncio.Transport, info: str) -> Any:
    """What httpx and httpcore call `ssl_object`, `client_addr`, `server_addr` or `socket`; None for anything else."""
    name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
    return transport.get_extra_info(name)


def readability(sock: socket.socket) -> Callable[[], bool]:
    """A function that tells whether something can be read from the socket now."""
    descriptor = sock.fileno()
    if not hasattr(select, "poll"):
        return lambda: bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))
