"""Whether a call costs more when there are more of them: an upstream that answers after 50 ms, 10 to 2,000 callers.

*Queued*: a pool of 100 connections, for which the others wait. *Open*: a connection for each.
"""

from __future__ import annotations

from typing import Any

from benchmarks.bench import Bench, Figures, ask, in_turns, medians, progress
from benchmarks.subjects import Target

CALLERS = (10, 100, 500, 1000, 2000)
SUBJECTS = ["ours", "ours-uvloop", "aiohttp", "raw"]
SLOW_SUBJECTS = ["httpx", "httpx2"]
"""Measured once, and not beyond 500 callers: they would take minutes."""


def measure(bench: Bench, names: list[str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("queued", "open"):
        for callers in (100, 2000) if bench.quick else CALLERS:
            limit = 100 if kind == "queued" else callers
            target = bench.target("/slow", connections=limit, keepalive=limit)
            parts = [(names or SUBJECTS, bench.rounds, max(1000, 3 * callers))]
            if names is None and not bench.quick and callers <= 500:
                parts.append((SLOW_SUBJECTS, 1, callers))
            for some, rounds, calls in parts:
                progress(f"\n{kind}, {callers} callers ")
                for name, figures in _figures(bench, some, rounds, target, callers, calls).items():
                    found.setdefault(name, {})[f"{kind}, {callers}"] = figures
    return found


def _figures(
    bench: Bench, names: list[str], rounds: int, target: Target, callers: int, calls: int
) -> dict[str, Figures]:
    with bench.workers(names) as workers:
        turns = in_turns(
            workers, rounds, lambda _, worker: ask(worker, "calls:probe", target, callers=callers, calls=calls)
        )
    return {name: medians(turns[name]) for name in names}
