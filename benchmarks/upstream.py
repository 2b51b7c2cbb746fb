"""The upstream of all measurements, run as its own process: the fastest that Python can be, and the same for all.

    python -m benchmarks.upstream FOLDER

It listens for http and for https, with a certificate that it makes and whose authority it leaves in the folder, and
tells its ports on the first line. `/small` is 146 bytes of JSON, `/slow` the same after 50 ms, `/large` is 1 MiB,
`/hang` is never answered, and `/hanging` is how many such calls there are. For each further line on
its input it tells what it has seen. It reads no request bodies.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import trustme
import uvloop

DELAY = 0.05

_BODY = json.dumps({"id": 1, "name": "octocat", "tags": ["a", "b", "c"], "text": "x" * 84}).encode()
_SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nServer: bench\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
_LARGE = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1048576\r\n\r\n" + bytes(
    1 << 20
)


class _Answer(asyncio.Protocol):
    accepted = hanging = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._hangs = False
        _Answer.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        _Answer.hanging -= self._hangs

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /small"):
            self._transport.write(_SMALL)
        elif data.startswith(b"GET /slow"):
            asyncio.get_running_loop().call_later(DELAY, self._answer_late)
        elif data.startswith(b"GET /large"):
            self._transport.write(_LARGE)
        elif data.startswith(b"GET /hanging"):
            self._transport.write(b"%d\n" % _Answer.hanging)
        elif data.startswith(b"GET /hang"):
            self._hangs = True
            _Answer.hanging += 1

    def _answer_late(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_SMALL)


def _tls(folder: Path) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _answer_questions() -> None:
    for _ in sys.stdin:
        _say({"accepted": _Answer.accepted, "cpu": time.process_time()})


async def main() -> None:
    folder = Path(sys.argv[1])
    loop = asyncio.get_running_loop()
    plain = await loop.create_server(_Answer, "127.0.0.1", 0, backlog=4096)
    secure = await loop.create_server(_Answer, "127.0.0.1", 0, backlog=4096, ssl=_tls(folder))
    ports = [server.sockets[0].getsockname()[1] for server in (plain, secure)]
    _say({"http": ports[0], "https": ports[1], "ca_file": str(folder / "ca.pem")})
    threading.Thread(target=_answer_questions, daemon=True).start()
    await asyncio.gather(plain.serve_forever(), secure.serve_forever())


if __name__ == "__main__":
    uvloop.run(main())
