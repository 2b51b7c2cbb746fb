"""What the pipeline and a span cost without a network: every client asks the same `httpx.MockTransport`.

python -m benchmarks.overhead httpx|ours|spans|sdk        (the process of one of them)
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from benchmarks.bench import Bench, Child, answer_questions, difference, in_turns, medians, ratio
from benchmarks.subjects import Target
from benchmarks.subjects.ours import full_config, inbound_context
from benchmarks.subjects.spans import record_spans
from fastapi_http_client import AsyncHTTPClient, BearerAuth
from fastapi_http_client.context import bind

Get = Callable[[str], Awaitable[httpx.Response]]
ORIGIN = "https://api.example.com"


def measure(bench: Bench) -> dict[str, Any]:
    children = {name: Child("overhead", name) for name in ("httpx", "ours", "spans", "sdk")}
    try:
        return {path: _figures(bench, children, path) for path in ("/users/octocat", "/users/{}")}
    finally:
        for child in children.values():
            child.close()


def _figures(bench: Bench, children: dict[str, Child], path: str) -> dict[str, float]:
    question = {"path": path, "calls": 400 if bench.quick else 3000}
    turns = in_turns(children, 2 * bench.rounds + 1, lambda _, child: child.ask(question))
    return {
        **{name: medians(turns[name])["cpu"] for name in children},
        "ratio": ratio(turns, "ours", "httpx"),
        "by a span": difference(turns, "spans", "ours"),
    }


def _sdk_alone() -> Get:
    """What the SDK does for one span of ours, and nothing else: what no client can save."""
    record_spans()
    tracer = trace.get_tracer("benchmark")
    parent = propagate.extract({name.decode(): value.decode() for name, value in inbound_context().headers})
    response = httpx.Response(200)

    async def span(path: str) -> httpx.Response:
        attributes: dict[str, str | int] = {
            "http.request.method": "GET",
            "server.address": "api.example.com",
            "server.port": 443,
            "url.scheme": "https",
            "url.full": ORIGIN + path,
        }
        started = tracer.start_span("GET", context=parent, kind=trace.SpanKind.CLIENT, attributes=attributes)
        token = otel_context.attach(trace.set_span_in_context(started, parent))
        propagate.inject({})
        otel_context.detach(token)
        started.set_attributes({"http.response.status_code": 200, "network.protocol.version": "1.1"})
        started.end()
        return response

    return span


def _client(who: str) -> Get:
    if who == "sdk":
        return _sdk_alone()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b'{"id": 1, "name": "octocat"}'))
    if who == "httpx":
        return httpx.AsyncClient(base_url=ORIGIN, headers={"Authorization": "Bearer token"}, transport=transport).get
    if who == "spans":
        record_spans()
    return AsyncHTTPClient(config=full_config(Target(ORIGIN)), auth=BearerAuth("token"), transport=transport).get


def main() -> None:
    get = _client(sys.argv[1])
    first = True

    async def answer(question: dict[str, Any]) -> dict[str, float]:
        nonlocal first
        bind(inbound_context())
        path, calls = question["path"], question["calls"]
        for number in range(calls if first else 20):
            await get(path.format(number))
        first = False
        started = time.process_time()
        for number in range(calls):
            await get(path.format(number))
        return {"cpu": (time.process_time() - started) / calls * 1e6}

    with asyncio.Runner() as runner:
        answer_questions(lambda question: runner.run(answer(question)))


if __name__ == "__main__":
    main()
