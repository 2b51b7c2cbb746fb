"""The least that can be done in Python: one fixed request, keep-alive, and the length of the body is looked for.

It understands the benchmarks' upstream and no other server, has no time limits, and reports no errors.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

from benchmarks.subjects import Call, Target


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.expected = 0
        self.body_starts = 0
        self.done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        received = self.received
        received += data
        if not self.expected:
            head_ends = received.find(b"\r\n\r\n")
            if head_ends < 0:
                return
            length = received.lower().find(b"content-length:", 0, head_ends) + 15
            line_ends = received.find(b"\r\n", length)
            self.body_starts = head_ends + 4
            self.expected = self.body_starts + int(received[length:line_ends])
        if len(received) >= self.expected and self.done is not None:
            body = bytes(memoryview(received)[self.body_starts :])
            self.received = bytearray()
            self.expected = 0
            done, self.done = self.done, None
            done.set_result(body)


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[Call]:
    loop = asyncio.get_running_loop()
    address = urlsplit(target.origin)
    assert address.hostname is not None
    assert address.port is not None
    host, port = address.hostname, address.port
    tls = target.tls() if address.scheme == "https" else None
    request = f"GET {target.path} HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: */*\r\n\r\n".encode()
    idle: list[_Connection] = []
    waiting: deque[asyncio.Future[_Connection]] = deque()
    opened: list[_Connection] = []

    async def connection() -> _Connection:
        if idle:
            return idle.pop()
        if len(opened) < target.connections:
            new = _Connection()
            opened.append(new)
            await loop.create_connection(lambda: new, host, port, ssl=tls)
            return new
        turn: asyncio.Future[_Connection] = loop.create_future()
        waiting.append(turn)
        return await turn

    async def call() -> object:
        chosen = await connection()
        chosen.done = loop.create_future()
        chosen.transport.write(request)
        body = await chosen.done
        if waiting:
            waiting.popleft().set_result(chosen)
        else:
            idle.append(chosen)
        return json.loads(body) if target.is_json else body

    yield call
    for each in opened:
        each.transport.abort()
