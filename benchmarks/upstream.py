"""A keep-alive HTTP/1.1 upstream for benchmarks, run as its own process: the fastest that plain asyncio can be.

Prints its port, then answers every request head with the same 146 bytes of JSON, or with `/large` 1 MiB. It reads no
request bodies beyond finding the next head, so POST bodies must not hold an empty line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

_BODY = json.dumps({"id": 1, "name": "octocat", "tags": ["a", "b", "c"], "text": "x" * 84}).encode()
_SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: bench\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_LARGE = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1048576\r\n\r\n" + bytes(
    1 << 20
)


class _Answer(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        answer = _LARGE if data.startswith(b"GET /large") else _SMALL
        self._transport.write(answer * data.count(b"\r\n\r\n"))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(_Answer, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
