"""The server: listeners, routes, and a record of everything it received."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tests.hostile.wire import GONE, HANG_SECONDS, MIB, Conn, Params, Request

MAX_HEAD = 4 * MIB  # request heads larger than this are refused
JOURNAL_SIZE = 20_000
TIMES_KEPT = 5_000

T = TypeVar("T")
Handler = Callable[["HostileUpstream", Conn, Request], Awaitable[None]]


@dataclass(frozen=True)
class Route:
    handler: Handler
    read_body: bool
    keyed: bool


ROUTES: dict[str, Route] = {}


def route(pattern: str, *, read_body: bool = True, keyed: bool = False) -> Callable[[Handler], Handler]:
    """Register a handler. A pattern that ends in `/*` takes any path below it: the request's key, if `keyed`."""

    def register(handler: Handler) -> Handler:
        ROUTES[pattern] = Route(handler, read_body, keyed)
        return handler

    return register


def tail(request: Request) -> str:
    """The last part of a `/name/<tail>` path."""
    parts = request.path.split("/", 2)
    return unquote(parts[2]) if len(parts) > 2 else ""


@dataclass
class KeyStats:
    count: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    methods: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=TIMES_KEPT))

    def describe(self) -> dict[str, Any]:
        times = list(self.times)
        return {
            "count": self.count,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "methods": self.methods,
            "statuses": self.statuses,
            "outcomes": self.outcomes,
            "times": [round(t, 6) for t in times],
            "gaps": [round(b - a, 6) for a, b in itertools.pairwise(times)],
        }


@dataclass
class TokenRealm:
    calls: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    issued: dict[str, float] = field(default_factory=dict)  # token -> expiry on the server's clock
    accepted: int = 0
    rejected: int = 0


@dataclass
class Ledger:
    """What a non-idempotent operation did: the truth about duplicated effects."""

    attempts: int = 0
    effects: int = 0
    by_idempotency_key: dict[str, int] = field(default_factory=dict)
    without_key: int = 0


def disguises(needle: str) -> set[bytes]:
    """The needle as it may appear: raw, percent-encoded, or inside base64 at any of the three alignments."""
    raw = needle.encode()
    forms = {raw, quote(needle, safe="").encode(), quote(needle).encode()}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        # The first and last characters also depend on the needle's neighbours.
        forms.add(encoded[(shift * 8 + 5) // 6 : (shift + len(raw)) * 8 // 6])
    return {form for form in forms if len(form) >= 3}


class HostileUpstream:
    """The server that `running()` gives; its questions may be asked from any thread but the server's own."""

    host = "127.0.0.1"

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, certs: dict[str, str] | None = None, seed: int = 0
    ) -> None:
        self.tls = tls
        self.certs = certs or {}
        self.seed = seed
        self.ports: dict[str, int] = {}
        self._started = time.monotonic()
        self._loop: asyncio.AbstractEventLoop
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._conns: dict[int, Conn] = {}
        self._conn_id = 100_000  # of as many digits always, so that an echo is as long each time
        self._seq = 0
        self.in_flight = 0
        self.clear()

    def clear(self) -> None:
        self.journal: deque[Request] = deque(maxlen=JOURNAL_SIZE)
        self.keys: dict[str, KeyStats] = {}
        self.realms: dict[str, TokenRealm] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.state: dict[str, Any] = {}
        self.requests = 0
        self.peak_in_flight = self.in_flight
        self.conns_total = 0
        self.conns_peak = len(self._conns)
        self.conns_by_listener: dict[str, int] = {}
        self.bad_requests: list[str] = []
        self.client_aborts = 0

    # -- life cycle

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for name in ("main", "other", "accept_reset", "accept_close", "accept_hang", "banner"):
            await self._listen(name)
        if self.tls is not None:
            await self._listen("tls", tls=self.tls)
        self._refused_port()
        self._blackhole_port()

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=3)
        for conn in list(self._conns.values()):
            conn.writer.transport.abort()
        for server in self._servers:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 2)
        for sock in self._sockets:
            sock.close()

    async def _listen(self, name: str, *, tls: ssl.SSLContext | None = None) -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._serve(name, reader, writer)
            except asyncio.CancelledError:
                writer.transport.abort()
            finally:
                self._tasks.discard(task)

        options: dict[str, Any] = {"limit": MAX_HEAD, "backlog": 2048}
        if tls is not None:
            options.update(ssl=tls, ssl_handshake_timeout=10)
        server = await asyncio.start_server(accepted, self.host, 0, **options)
        self._servers.append(server)
        self.ports[name] = server.sockets[0].getsockname()[1]

    def _refused_port(self) -> None:
        """A port that is bound, so that nobody else takes it, and never listens."""
        sock = socket.socket()
        sock.bind((self.host, 0))
        self._sockets.append(sock)
        self.ports["refused"] = sock.getsockname()[1]

    def _blackhole_port(self) -> None:
        """A port with a full backlog: the kernel drops SYNs, so connecting hangs."""
        sock = socket.socket()
        sock.bind((self.host, 0))
        sock.listen(0)
        self._sockets.append(sock)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError, OSError):
                filler.connect(sock.getsockname())
            self._sockets.append(filler)
        self.ports["blackhole"] = sock.getsockname()[1]

    # -- what tests ask

    def _ask(self, question: Callable[[], T]) -> T:
        """Run on the server's loop, so that an answer is never half an update."""

        async def on_loop() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(10)

    def url(self, path: str = "/", listener: str = "main") -> str:
        return f"{'https' if listener == 'tls' else 'http'}://{self.host}:{self.ports[listener]}{path}"

    def key(self, name: str) -> dict[str, Any]:
        """Counters of one key: count, in_flight, peak_in_flight, methods, statuses, outcomes, times, gaps."""
        return self._ask(lambda: self.keys.get(name, KeyStats()).describe())

    def stats(self) -> dict[str, Any]:
        """Everything counted: connections, requests, keys, ledgers, token realms, bad requests."""
        return self._ask(self._stats)

    def requests_seen(self, key: str | None = None, listener: str | None = None) -> list[dict[str, Any]]:
        """The journal, oldest first."""
        return self._ask(
            lambda: [
                entry.describe()
                for entry in self.journal
                if key in (None, entry.key) and listener in (None, entry.listener)
            ]
        )

    def search(self, needle: str) -> list[dict[str, Any]]:
        """Every recorded request that carries the needle in head or body: raw, percent-encoded or inside base64."""
        return self._ask(lambda: self._search(needle))

    def open_connections(self) -> int:
        return len(self._conns)

    def drop_connections(self, *, how: str = "reset") -> int:
        """Reset (or close) every open connection now: what an upstream's redeploy does to a pool. Returns how many."""

        async def drop() -> int:
            victims = list(self._conns.values())
            for conn in victims:
                await (conn.close() if how == "close" else conn.reset(0))
            return len(victims)

        return asyncio.run_coroutine_threadsafe(drop(), self._loop).result(10)

    def forget(self) -> None:
        """Forget all counters and the journal; open connections stay open and counted."""
        self._ask(self.clear)

    def _stats(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "connections": {
                "open": len(self._conns),
                "peak": self.conns_peak,
                "total": self.conns_total,
                "by_listener": self.conns_by_listener,
            },
            "client_aborts": self.client_aborts,
            "bad_requests": self.bad_requests[-50:],
            "keys": {name: stats.describe() for name, stats in self.keys.items()},
            "ledgers": {name: vars(ledger) for name, ledger in self.ledgers.items()},
            "token_realms": {
                name: {
                    "calls": realm.calls,
                    "peak_in_flight": realm.peak_in_flight,
                    "issued": len(realm.issued),
                    "accepted": realm.accepted,
                    "rejected": realm.rejected,
                }
                for name, realm in self.realms.items()
            },
        }

    def _search(self, needle: str) -> list[dict[str, Any]]:
        forms = disguises(needle)
        return [
            {"where": where, **request.describe()}
            for request in self.journal
            for where, data in (("head", request.raw_head), ("body", request.body))
            if any(form in data for form in forms)
        ]

    # -- serving

    def now(self) -> float:
        return time.monotonic() - self._started

    def next_conn_id(self) -> int:
        self._conn_id += 1
        return self._conn_id

    async def _serve(self, listener: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conn = Conn(self, listener, reader, writer)
        self._conns[conn.id] = conn
        self.conns_total += 1
        self.conns_by_listener[listener] = self.conns_by_listener.get(listener, 0) + 1
        self.conns_peak = max(self.conns_peak, len(self._conns))
        try:
            if listener == "accept_reset":
                await conn.reset(0)
            elif listener == "accept_close":
                await conn.close()
            elif listener == "accept_hang":
                await conn.hang(HANG_SECONDS)
            elif listener == "banner":
                await conn.send(b"SSH-2.0-OpenSSH_9.6 hostile\r\n")
                await conn.hang(0.2)
            else:
                while not conn.closing and await self._serve_one(conn):
                    pass
        except GONE:
            pass
        finally:
            self._conns.pop(conn.id, None)
            writer.close()

    async def _serve_one(self, conn: Conn) -> bool:
        try:
            head = await conn.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as exc:
            if exc.partial.strip():
                self.bad_requests.append(f"conn {conn.id}: truncated head {exc.partial[:200]!r}")
            return False
        except asyncio.LimitOverrunError:
            self.bad_requests.append(f"conn {conn.id}: request head over {MAX_HEAD} bytes")
            await conn.send(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return False
        request = self._parse(conn, head)
        if request is None:
            self.bad_requests.append(f"conn {conn.id}: {head[:200]!r}")
            await conn.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False

        found = self.find(request.path)
        self.journal.append(request)
        stats = self.keys.setdefault(request.key, KeyStats())
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        stats.count += 1
        request.attempt = stats.count
        stats.in_flight += 1
        stats.peak_in_flight = max(stats.peak_in_flight, stats.in_flight)
        stats.times.append(request.received)
        stats.methods[request.method] = stats.methods.get(request.method, 0) + 1
        try:
            if conn.trap is not None:
                trap, conn.trap = conn.trap, None
                await self._spring(conn, request, trap)
            elif found is None:
                await conn.read_body(request)
                await conn.respond(request, 404, f"no such fault: {request.path}\n")
            else:
                if found.read_body:
                    await conn.read_body(request)
                await found.handler(self, conn, request)
            request.outcome = "done"
        except GONE:
            request.outcome = "client-gone"
            self.client_aborts += 1
            raise
        except asyncio.CancelledError:
            request.outcome = "server-stopped"
            raise
        except Exception as exc:  # a request so odd that the handler fell over it
            request.outcome = "bad-request"
            self.bad_requests.append(f"conn {conn.id}: {exc!r} at {request.target[:200]!r}")
            return False
        finally:
            request.settle(self.now())
            self.in_flight -= 1
            stats.in_flight -= 1
            stats.outcomes[request.outcome] = stats.outcomes.get(request.outcome, 0) + 1
            if request.status is not None:
                status = str(request.status)
                stats.statuses[status] = stats.statuses.get(status, 0) + 1
        return not conn.closing and request.keep_alive

    def _parse(self, conn: Conn, head: bytes) -> Request | None:
        lines = head[:-4].decode("latin-1").lstrip("\r\n").split("\r\n")
        words = lines[0].split(" ")
        if len(words) < 3:
            return None
        method, target, version = words[0], " ".join(words[1:-1]), words[-1]
        headers: list[tuple[str, str]] = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                return None
            headers.append((name, value.strip(" \t")))
        conn.requests += 1
        self._seq += 1
        request = Request(
            method, target, version, headers, head, conn.listener, conn.id, self._seq, conn.requests, self.now()
        )
        if "://" in target.split("?", 1)[0] or method == "CONNECT":
            request.absolute_form = True
        try:
            parts = urlsplit(target) if request.absolute_form else None
        except ValueError:
            return None
        if method == "CONNECT":
            request.path, query = "/proxy-connect", ""
        elif parts is not None:
            request.path, query = parts.path or "/", parts.query
        else:
            request.path, _, query = target.partition("?")
        request.params = Params(parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=10_000))
        request.key = request.params.text("key") or request.header("x-hostile-key")
        if not request.key:
            named = self.find(request.path)
            request.key = tail(request) if named is not None and named.keyed else request.path
        return request

    @staticmethod
    def find(path: str) -> Route | None:
        if path in ROUTES:
            return ROUTES[path]
        cut = path
        while "/" in cut[1:]:
            cut = cut.rsplit("/", 1)[0]
            if cut + "/*" in ROUTES:
                return ROUTES[cut + "/*"]
        return None

    async def _spring(self, conn: Conn, request: Request, trap: dict[str, Any]) -> None:
        """The next request on a trapped keep-alive connection meets its fault."""
        if trap["read"]:
            await conn.read_body(request)
        how = trap["mode"]
        if how == "garbage":
            await conn.send(b"\x00\x01\x02 not http at all\r\n\r\n")
            how = "close"
        elif how == "stale":
            await conn.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            how = "close"
        await conn.finish(how, trap["seconds"])

    def fault_budget(self, request: Request) -> float:
        return min(request.params.number("seconds", HANG_SECONDS), 600.0)
