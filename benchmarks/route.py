"""Requests a second of a service: uvicorn, a FastAPI route, and in it one call of the upstream, all on one core.

    python -m benchmarks.route SUBJECT LOOP TARGET        (the service; TARGET is JSON)

50 connections ask it as fast as it answers, from the upstream's core. Two figures: the requests that it answered in a
second, and those that it answers in a second of its processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI

from benchmarks.bench import UPSTREAM_CORE, Bench, Child, Figures, answer_questions, ask, in_turns, medians, ratio
from benchmarks.subjects import SUBJECTS, Call, Target
from benchmarks.subjects.ours import full_config
from fastapi_http_client import AsyncHTTPClient, BearerAuth, HTTPClients, http_client

SERVICES = (
    ("none", "asyncio"),
    ("httpx", "asyncio"),
    ("httpx-sniffio", "asyncio"),
    ("httpx2", "asyncio"),
    ("by-hand", "asyncio"),
    ("aiohttp", "asyncio"),
    ("ours", "asyncio"),
    ("httpx", "uvloop"),
    ("aiohttp", "uvloop"),
    ("ours", "uvloop"),
)
_CONNECTIONS = 50


def measure(bench: Bench) -> dict[str, Any]:
    load = Child("worker", "raw-uvloop", core=UPSTREAM_CORE)
    target = json.dumps(dataclasses.asdict(bench.target()))
    services = {f"{name}, {loop}": Child("route", name, loop, target) for name, loop in SERVICES}
    try:
        origins = {name: service.hear() for name, service in services.items()}
        calls = 500 if bench.quick else 3000

        def turn(name: str, service: Child) -> Figures:
            before = service.ask()
            figures = ask(load, "calls:probe", Target(origins[name]), callers=_CONNECTIONS, calls=calls)
            spent = service.ask() - before
            return {"answered": 1e6 / figures["wall"], "a core": (calls + _CONNECTIONS) / spent}

        turns = in_turns(services, bench.rounds, turn)
    finally:
        for child in (*services.values(), load):
            child.close()
    return {
        name: {**medians(turns[name]), "ratio": ratio(turns, name, "httpx, " + name.partition(", ")[2], "a core")}
        for name in services
    }


def _app(name: str, target: Target) -> FastAPI:
    if name == "ours":
        return _app_with_ours(target)
    calls: list[Call] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with SUBJECTS[name].load()(target) as call:
            calls.append(call)
            yield

    app = FastAPI(lifespan=None if name == "none" else lifespan)

    @app.get("/small")
    async def small() -> Any:
        return await calls[0]() if calls else {"id": 1, "name": "octocat", "tags": ["a", "b", "c"], "text": "x" * 84}

    return app


def _app_with_ours(target: Target) -> FastAPI:
    """Everything that the package does for a service: a client by `Depends`, the inbound context, its error answers."""
    clients = HTTPClients()
    clients.add("api", config=full_config(target), auth=BearerAuth("token"))
    app = FastAPI(lifespan=clients.lifespan)
    clients.install(app)

    @app.get("/small")
    async def small(api: Annotated[AsyncHTTPClient, Depends(http_client("api"))]) -> Any:
        return (await api.get(target.path)).json()

    return app


def main() -> None:
    name, loop, target = sys.argv[1:]
    app = _app(name, Target(**json.loads(target)))
    config = uvicorn.Config(app, port=0, loop=loop, http="httptools", log_level="error", access_log=False)
    server = uvicorn.Server(config)
    startup = server.startup

    async def startup_then_tell(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        _, port = server.servers[0].sockets[0].getsockname()
        print(json.dumps(f"http://127.0.0.1:{port}"), flush=True)

    server.startup = startup_then_tell  # type: ignore[method-assign]
    threading.Thread(target=answer_questions, args=(lambda _: time.process_time(),), daemon=True).start()
    with contextlib.suppress(asyncio.CancelledError):
        server.run()


if __name__ == "__main__":
    main()
