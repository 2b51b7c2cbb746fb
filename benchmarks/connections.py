"""Connections that 3,000 calls of 100 callers open, at httpx's default limits: 100, and 20 of them kept alive."""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench, ask


def measure(bench: Bench, names: list[str] | None = None) -> dict[str, Any]:
    found = {}
    for name in names or ["httpx", "httpx2", "aiohttp", "ours", "ours-httpcore"]:
        before = bench.upstream.ask()["accepted"]
        with bench.workers([name]) as workers:
            ask(workers[name], "calls:probe", bench.target("/slow"), callers=100, calls=2800)  # and 200 to begin with
        found[name] = bench.upstream.ask()["accepted"] - before
    return found
