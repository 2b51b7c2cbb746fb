"""Real ASGI servers for tests, on 127.0.0.1, each in its own thread and event loop."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(app: Any, **options: Any) -> Iterator[str]:
    """Run an ASGI app under uvicorn and yield its base URL; `options` are uvicorn's own (`http="h11"`, `loop=` …).

    Raises RuntimeError when the app does not start; its own error is in uvicorn's log, which pytest captures.
    """
    config = uvicorn.Config(app, **{"log_level": "warning", "lifespan": "on", **options})
    server = uvicorn.Server(config)
    sock = socket.create_server((HOST, 0))
    started = threading.Event()
    startup = server.startup

    async def startup_then_tell(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = startup_then_tell  # type: ignore[method-assign]

    def run() -> None:
        try:
            server.run(sockets=[sock])
        except SystemExit:
            pass  # uvicorn's way to say that the start failed
        finally:
            started.set()

    thread = threading.Thread(target=run, name="uvicorn", daemon=True)
    thread.start()
    started.wait(30)
    try:
        if not server.started:
            raise RuntimeError("the app did not start")
        yield f"http://{HOST}:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
