"""What the inbound side costs: a client by `Depends`, and the ASGI middleware that binds the request's context.

python -m benchmarks.edge        (the process)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Response

from benchmarks.bench import Bench, Child, answer_questions, difference, in_turns, medians
from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPClients, RequestContextMiddleware, http_client

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


def measure(bench: Bench) -> dict[str, Any]:
    child = Child("edge")
    names = ("plain", "dependency", "app", "middleware")
    try:
        turns = in_turns(
            dict.fromkeys(names, child),
            4 * bench.rounds + 1,
            lambda name, child: child.ask({"app": name, "requests": 300 if bench.quick else 2000}),
        )
    finally:
        child.close()
    return {
        **{name: medians(turns[name])["cpu"] for name in names},
        "by dependency": difference(turns, "dependency", "plain"),
        "by middleware": difference(turns, "middleware", "app"),
    }


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _routes() -> tuple[FastAPI, HTTPClients]:
    clients = HTTPClients({"api": ClientConfig(base_url="https://api.example.com")})
    app = FastAPI(lifespan=clients.lifespan, openapi_url=None)
    ready = Response(b"ok")

    @app.get("/plain")
    async def plain() -> Response:
        return ready

    @app.get("/dependency")
    async def dependency(client: Annotated[AsyncHTTPClient, Depends(http_client("api"))]) -> Response:
        return ready

    return app, clients


_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "method": "GET",
    "query_string": b"",
    "headers": [
        (b"host", b"localhost"),
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        (b"x-request-id", b"0123456789abcdef"),
    ],
    "http_version": "1.1",
    "scheme": "http",
    "server": ("localhost", 80),
    "client": ("localhost", 1),
}


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Any) -> None:
    pass


async def _run(app: ASGIApp, path: str, state: dict[str, Any], requests: int) -> float:
    for _ in range(20):
        await app({**_SCOPE, "path": path, "raw_path": path.encode(), "state": dict(state)}, _receive, _send)
    started = time.process_time()
    for _ in range(requests):
        await app({**_SCOPE, "path": path, "raw_path": path.encode(), "state": dict(state)}, _receive, _send)
    return (time.process_time() - started) / requests * 1e6


def main() -> None:
    fastapi, clients = _routes()
    apps: dict[str, ASGIApp] = {
        "plain": fastapi,
        "dependency": fastapi,
        "app": _answer,
        "middleware": RequestContextMiddleware(_answer),
    }
    with asyncio.Runner() as runner:
        runner.run(clients.start())
        state = {"fastapi_http_client": clients}

        def answer(question: dict[str, Any]) -> dict[str, float]:
            name = question["app"]
            return {"cpu": runner.run(_run(apps[name], f"/{name}", state, question["requests"]))}

        answer_questions(answer)


if __name__ == "__main__":
    main()
