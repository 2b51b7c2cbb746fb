"""The pool of connections: any number of origins under one limit, every operation in constant time."""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

import httpx

from fastapi_http_client.engine.connect import open_connection
from fastapi_http_client.engine.connection import Connection
from fastapi_http_client.engine.errors import NOTHING_SENT, DeadlineExceededError, with_facts
from fastapi_http_client.engine.parser import ResponseParser
from fastapi_http_client.sweeper import NEVER, Sweeper

RECEIVE_BUFFER_SIZE = 256 * 1024
"""Bytes of a large body read at once, by all connections into the same buffer."""
SURPLUS_GRACE = 1.0
"""Seconds that an idle connection beyond `max_keepalive_connections` is kept, in case another call wants it."""
_RESOLUTION = 0.002  # seconds that a timer of uvloop may be early

OriginKey = tuple[bytes, bytes, int | None, str | None]


class Origin:
    """A server as the pool knows it, with its idle connections: the one used last is taken first."""

    __slots__ = ("host", "idle", "key", "pins", "port", "server_hostname", "tls")

    def __init__(self, key: OriginKey) -> None:
        scheme, host, port, sni = key
        self.key = key
        self.tls = scheme == b"https"
        self.host = host.decode("ascii")
        self.port = port if port is not None else 443 if self.tls else 80
        self.server_hostname = sni or self.host
        self.idle: dict[Connection, None] = {}
        self.pins = 0
        """Connections and calls that refer to this object; the pool forgets it when there are none."""

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class _Wakeup(Enum):
    """What a call that waits for its turn is told, when it is not handed a connection."""

    OPEN = "a place is free: open a connection of your own"
    TIMED_OUT = "the pool timeout has passed"
    CLOSED = "the pool was closed"


class ConnectionPool:
    """Gives connections to calls: idle ones first, then new ones up to the limit, then strictly in order of arrival.

    `max_connections` bounds the connections to all origins together, open and being opened. At the limit, the longest
    idle connection of another origin makes room. A released connection goes to the call that has waited longest; one
    that nobody waits for is kept idle, and the sweeper closes it when it has been idle too long or there are too many.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        ssl_context: Callable[[], ssl.SSLContext],
        max_connections: int,
        max_keepalive_connections: int,
        keepalive_expiry: float,
        max_connection_age: float | None,
        new_parser: Callable[[], ResponseParser],
    ) -> None:
        self.loop = loop
        self.sweeper = Sweeper(loop, self._sweep)
        self.receive_buffer = memoryview(bytearray(RECEIVE_BUFFER_SIZE))
        self.new_parser = new_parser
        self.closed = False
        self._ssl_context = ssl_context
        self._max_connections = max_connections
        self._max_keepalive = max_keepalive_connections
        self._keepalive_expiry = keepalive_expiry
        self._max_age = max_connection_age
        self._origins: dict[OriginKey, Origin] = {}
        self._places = 0  # taken: by open connections, and by those being opened
        self._connections: set[Connection] = set()
        self._closing: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()  # the longest idle one first
        self._waiters: OrderedDict[asyncio.Future[Connection | _Wakeup], tuple[Origin, float]] = OrderedDict()
        self._opening: set[asyncio.Timeout] = set()
        self._all_closed: asyncio.Future[None] | None = None

    # -- taking a connection

    def take_idle(self, key: OriginKey) -> Connection | None:
        """An idle connection to the origin, if there is one."""
        origin = self._origins.get(key)
        if origin is None or not origin.idle:
            return None
        now = self.loop.time()
        while origin.idle:
            connection, _ = origin.idle.popitem()
            del self._idle[connection]
            if (
                connection.retire_at > now
                and connection.idle_since + self._keepalive_expiry > now
                and not connection.has_ended_unseen()
            ):
                return connection
            connection.abort()
        return None

    async def acquire(
        self, key: OriginKey, *, connect_timeout: float | None, pool_timeout: float | None, end_by: float = NEVER
    ) -> Connection:
        """A connection to the origin, which the caller must start an exchange on or `abort()`.

        Raises `httpx.PoolTimeout`, `httpx.ConnectTimeout` and `httpx.ConnectError`; `DeadlineExceededError` at
        `end_by`, whatever it is that takes so long; and `RuntimeError` once closed.
        """
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = Origin(key)
        origin.pins += 1
        deadline = end_by if pool_timeout is None else min(end_by, self.loop.time() + pool_timeout)
        first = False  # whether it was this call's turn already
        try:
            while True:
                if connection := self.take_idle(key):
                    return connection
                if self._places < self._max_connections:
                    self._places += 1
                    return await self._open(origin, connect_timeout, end_by)
                if self._idle:
                    self._places += 1  # the one that the other connection leaves
                    next(iter(self._idle)).abort()
                    return await self._open(origin, connect_timeout, end_by)
                got = await self._wait_for_turn(origin, deadline, first=first)
                if got is _Wakeup.OPEN:
                    return await self._open(origin, connect_timeout, end_by)
                if got is _Wakeup.CLOSED:
                    raise RuntimeError(CLOSED_MESSAGE)
                if got is _Wakeup.TIMED_OUT:
                    within = "in time" if pool_timeout is None else f"within {pool_timeout:g} s"
                    what = f"no connection became free {within} (all {self._max_connections} are in use)"
                    raise with_facts(httpx.PoolTimeout(what), NOTHING_SENT)
                first = True
                if not got.closed:  # else it was lost on its way here, and its place went to the next
                    if not got.has_ended_unseen():
                        return got
                    self._places += 1  # the one that it leaves
                    got.abort()
                    return await self._open(origin, connect_timeout, end_by)
        except httpx.TimeoutException as error:
            if self.loop.time() < end_by - _RESOLUTION:
                raise
            raise with_facts(DeadlineExceededError("there was no connection in time"), NOTHING_SENT) from error
        finally:
            self._unpin(origin)

    async def _open(self, origin: Origin, connect_timeout: float | None, end_by: float) -> Connection:
        """Open a connection in the place that this call has taken."""
        if end_by != NEVER:
            left = max(0.0, end_by - self.loop.time())
            connect_timeout = left if connect_timeout is None else min(connect_timeout, left)
        limit = asyncio.timeout(connect_timeout)
        self._opening.add(limit)
        try:
            ssl_context = self._ssl_context() if origin.tls else None
            connection = await open_connection(self, origin, ssl_context, limit, connect_timeout)
            if self.closed:
                self._closing.add(connection)
                connection.abort()
                raise RuntimeError(CLOSED_MESSAGE)
        except BaseException as error:
            with_facts(error, NOTHING_SENT)  # also a cancellation: whoever is the cause of it can tell then
            self._give_place_back()
            if self.closed and isinstance(error, httpx.ConnectTimeout):
                raise RuntimeError(CLOSED_MESSAGE) from None
            raise
        finally:
            self._opening.remove(limit)
            self._check_all_closed()
        origin.pins += 1
        self._connections.add(connection)
        if self._max_age is not None:
            connection.retire_at = self.loop.time() + self._max_age
        return connection

    async def _wait_for_turn(self, origin: Origin, deadline: float, *, first: bool) -> Connection | _Wakeup:
        turn: asyncio.Future[Connection | _Wakeup] = self.loop.create_future()
        self._waiters[turn] = (origin, deadline)
        if first:
            self._waiters.move_to_end(turn, last=False)
        if deadline != NEVER:
            self.sweeper.arm(deadline)
        try:
            return await turn
        except asyncio.CancelledError:
            self._waiters.pop(turn, None)
            if not turn.cancelled():  # it was this call's turn, but the call is gone
                self._pass_on(turn.result())
            raise

    # -- giving it back

    def release(self, connection: Connection) -> None:
        """Take back an open connection whose exchange is complete."""
        now = self.loop.time()
        if connection.retire_at <= now:
            connection.abort()
            return
        while self._waiters:
            turn, (origin, _) = self._waiters.popitem(last=False)
            if turn.done():
                continue
            if origin is connection.origin:
                turn.set_result(connection)
            else:
                self._places += 1
                turn.set_result(_Wakeup.OPEN)
                connection.abort()
            return
        if not self._max_keepalive or self._keepalive_expiry <= 0:
            connection.abort()
            return
        connection.idle_since = now
        connection.origin.idle[connection] = None
        self._idle[connection] = None
        surplus = len(self._idle) > self._max_keepalive
        self.sweeper.arm(now + (min(SURPLUS_GRACE, self._keepalive_expiry) if surplus else self._keepalive_expiry))

    def discard(self, connection: Connection) -> None:
        """Forget a connection that has been closed, and give its place to the next call (called by the connection)."""
        if connection not in self._connections:  # it failed while it was being opened
            return
        self._connections.remove(connection)
        self._closing.add(connection)
        if connection in self._idle:
            del self._idle[connection]
            del connection.origin.idle[connection]
        self._unpin(connection.origin)
        self._give_place_back()

    def socket_closed(self, connection: Connection) -> None:
        """The event loop has let go of the socket (called by the connection)."""
        self._closing.discard(connection)
        self._check_all_closed()

    def _check_all_closed(self) -> None:
        if self._all_closed is not None and not self._closing and not self._opening and not self._all_closed.done():
            self._all_closed.set_result(None)

    def _give_place_back(self) -> None:
        """Free a place for the call that has waited longest; there is none while one place too many is taken."""
        while self._waiters and self._places <= self._max_connections:
            turn, _ = self._waiters.popitem(last=False)
            if not turn.done():
                turn.set_result(_Wakeup.OPEN)
                return
        self._places -= 1

    def _pass_on(self, got: Connection | _Wakeup) -> None:
        if isinstance(got, Connection):
            if not got.closed:
                self.release(got)
        elif got is _Wakeup.OPEN:
            self._give_place_back()

    def _unpin(self, origin: Origin) -> None:
        origin.pins -= 1
        if not origin.pins:
            del self._origins[origin.key]

    # -- time and the end

    def _sweep(self, now: float) -> float:
        """Enforce every limit that has passed; returns when the next one falls due."""
        following = NEVER
        for connection in list(self._connections):
            deadline = connection.deadline
            if deadline <= now:
                connection.time_out()
            elif deadline < following:
                following = deadline
        for turn, (_, deadline) in list(self._waiters.items()):
            if deadline <= now:
                del self._waiters[turn]
                if not turn.done():
                    turn.set_result(_Wakeup.TIMED_OUT)
            elif deadline < following:
                following = deadline
        while self._idle:
            connection = next(iter(self._idle))
            surplus = len(self._idle) > self._max_keepalive
            expiry = min(SURPLUS_GRACE, self._keepalive_expiry) if surplus else self._keepalive_expiry
            if connection.idle_since + expiry > now:
                return min(following, connection.idle_since + expiry)
            connection.abort()
        return following

    async def aclose(self) -> None:
        """Close every connection and fail every call that is still running. Returns when the sockets are closed."""
        self.closed = True
        self.sweeper.stop()
        for turn in self._waiters:
            if not turn.done():
                turn.set_result(_Wakeup.CLOSED)
        self._waiters.clear()
        for connection in list(self._connections):
            connection.abort(httpx.ReadError("the transport was closed during the call"))
        for limit in self._opening:
            if not limit.expired():  # by another aclose(), perhaps
                limit.reschedule(self.loop.time())
        if self._closing or self._opening:
            if self._all_closed is None or self._all_closed.done():
                self._all_closed = self.loop.create_future()
            await asyncio.shield(self._all_closed)


CLOSED_MESSAGE = "this transport has been closed and cannot send requests any more"
