"""What goes over the wire: one request as received, one connection with every way to answer or to fail."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.hostile.server import HostileUpstream

MIB = 1024 * 1024
MAX_BODY = 256 * MIB  # request bodies larger than this are refused
KEPT_BYTES = 64 * 1024  # of each body and head, in the journal
HANG_SECONDS = 60.0  # no fault lasts longer than this unless told to
GONE = (ConnectionError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError)


def reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Odd"


class Params:
    """Query parameters with typed access; the last of repeated values wins."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._last = dict(pairs)

    def __contains__(self, name: str) -> bool:
        return name in self._last

    def text(self, name: str, default: str = "") -> str:
        return self._last.get(name, default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]

    def integer(self, name: str, default: int) -> int:
        try:
            return int(self._last[name])
        except (KeyError, ValueError):
            return default

    def number(self, name: str, default: float) -> float:
        try:
            return float(self._last[name])
        except (KeyError, ValueError):
            return default

    def flag(self, name: str, default: bool = False) -> bool:
        if name not in self._last:
            return default
        return self._last[name].lower() in {"1", "true", "yes", "on", ""}


@dataclass
class Request:
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    raw_head: bytes
    listener: str
    conn_id: int
    seq: int
    number_on_conn: int
    received: float
    path: str = ""
    params: Params = field(default_factory=lambda: Params([]))
    body: bytes = b""
    body_complete: bool = False
    body_length: int = 0
    body_sha256: str = ""
    key: str = ""
    attempt: int = 0  # the number of this request among those of its key
    outcome: str = "pending"
    status: int | None = None
    finished: float | None = None
    absolute_form: bool = False

    def header(self, name: str, default: str = "") -> str:
        name = name.lower()
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return default

    def set_body(self, body: bytes) -> None:
        self.body, self.body_length, self.body_complete = body, len(body), True
        self.body_sha256 = hashlib.sha256(body).hexdigest()

    def settle(self, now: float) -> None:
        """Keep what the journal needs and let go of the rest."""
        self.finished = now
        self.body = self.body[:KEPT_BYTES]
        self.raw_head = self.raw_head[:KEPT_BYTES]

    @property
    def keep_alive(self) -> bool:
        connection = self.header("connection").lower()
        if self.version == "HTTP/1.0":
            return "keep-alive" in connection
        return "close" not in connection

    def describe(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "t": round(self.received, 6),
            "listener": self.listener,
            "conn": self.conn_id,
            "number_on_conn": self.number_on_conn,
            "method": self.method,
            "target": self.target,
            "path": self.path,
            "key": self.key,
            "attempt": self.attempt,
            "outcome": self.outcome,
            "status": self.status,
            "seconds": None if self.finished is None else round(self.finished - self.received, 6),
            "body_length": self.body_length,
            "body_complete": self.body_complete,
            "proxy_form": self.absolute_form,
            "version": self.version,
            "headers": self.headers,
            "body_sha256": self.body_sha256,
            "body_preview": self.body[:2048].decode("latin-1"),
        }


class Conn:
    """One accepted connection; all writes of every fault go through here."""

    def __init__(
        self, server: HostileUpstream, listener: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.listener = listener
        self.reader = reader
        self.writer = writer
        self.id = server.next_conn_id()
        self.opened = server.now()
        self.requests = 0
        self.trap: dict[str, Any] | None = None
        self.closing = False
        self.peer = writer.get_extra_info("peername")

    async def read_body(self, request: Request, limit: int = MAX_BODY) -> None:
        reader = self.reader
        if "100-continue" in request.header("expect").lower():
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in request.header("transfer-encoding").lower():
            body = bytearray()
            while True:
                size = int((await reader.readuntil(b"\r\n")).split(b";")[0].strip() or b"0", 16)
                if size == 0:
                    while (await reader.readuntil(b"\r\n")) != b"\r\n":
                        pass
                    break
                body += await reader.readexactly(size)
                await reader.readexactly(2)
                if len(body) > limit:
                    raise ConnectionResetError("request body too large")
            request.set_body(bytes(body))
        else:
            try:
                length = max(0, int(request.header("content-length", "0")))
            except ValueError:
                length = 0
            if length > limit:
                raise ConnectionResetError("request body too large")
            request.set_body(await reader.readexactly(length) if length else b"")

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def respond(
        self,
        request: Request,
        status: int = 200,
        body: bytes | str = b"",
        headers: list[tuple[str, str]] | None = None,
        *,
        content_type: str = "text/plain; charset=utf-8",
        close: bool = False,
        send_body: bool = True,
    ) -> None:
        """A correct response with a right Content-Length."""
        raw = body.encode() if isinstance(body, str) else body
        request.status = status
        lines = [f"HTTP/1.1 {status} {reason(status)}"]
        names = {name.lower() for name, _ in headers or []}
        bodyless = status == 204 or status == 304 or 100 <= status < 200
        if "content-type" not in names and not bodyless:
            lines.append(f"Content-Type: {content_type}")
        if not bodyless:
            lines.append(f"Content-Length: {len(raw)}")
        lines += [f"{name}: {value}" for name, value in headers or []]
        close = close or not request.keep_alive
        if close:
            lines.append("Connection: close")
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        if bodyless or request.method == "HEAD" or not send_body:
            raw = b""
        await self.send(head + raw)
        if close:
            self.closing = True

    async def json(self, request: Request, obj: Any, status: int = 200, **kwargs: Any) -> None:
        await self.respond(request, status, json.dumps(obj, indent=None), content_type="application/json", **kwargs)

    async def reset(self, pause: float = 0.02) -> None:
        """Close with RST. The pause lets bytes already sent reach the client first."""
        self.closing = True
        await asyncio.sleep(pause)
        sock = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close with FIN."""
        self.closing = True
        with contextlib.suppress(*GONE):
            self.writer.close()
            await asyncio.wait_for(self.writer.wait_closed(), 2.0)

    async def hang(self, seconds: float) -> None:
        """Stay silent; a client that goes away meanwhile is noticed at once."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                data = await asyncio.wait_for(self.reader.read(65536), left)
            except TimeoutError:
                return
            if not data:
                raise ConnectionResetError("client went away")

    async def finish(self, how: str, seconds: float = HANG_SECONDS) -> None:
        """End a fault: reset, close, hang or keep."""
        if how == "reset":
            await self.reset()
        elif how == "hang":
            self.closing = True
            await self.hang(seconds)
        elif how == "keep":
            return
        else:
            await self.close()
