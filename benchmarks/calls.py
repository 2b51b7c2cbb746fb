"""What a call costs over loopback: processor time and time, by callers at once, over http and TLS."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.bench import Bench, Figures, ask, difference, in_turns, medians, progress, ratio
from benchmarks.subjects import SUBJECTS, Call, Open, Target

CALLERS = {1: 600, 50: 800, 500: 1500}
"""Callers at once, and the calls that they make together in a round."""
LARGE_CALLS = 150


async def run(call: Call, callers: int, calls: int) -> Figures:
    """Processor time and time of one call in µs: user and system, of all threads."""

    async def caller(count: int) -> None:
        for _ in range(count):
            await call()

    await asyncio.gather(*(caller(1) for _ in range(callers)))
    each = max(1, calls // callers)
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(each) for _ in range(callers)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu / (each * callers) * 1e6, "wall": wall / (each * callers) * 1e6}


async def probe(opens: Open, target: Target, *, callers: int, calls: int) -> Figures:
    async with opens(target) as call:
        return await run(call, callers, calls)


def measure(bench: Bench, names: list[str] | None = None) -> dict[str, Any]:
    names = names or list(SUBJECTS)
    found: dict[str, Any] = {}
    with bench.workers(names) as workers:
        for scheme in ("http", "https"):
            for callers, calls in CALLERS.items():
                progress(f"\n{scheme}, {callers} callers ")
                target = bench.target(tls=scheme == "https")
                found[f"{scheme}, {callers}"] = _table(
                    bench,
                    workers,
                    target,
                    callers=callers,
                    calls=max(2 * callers, calls // 5) if bench.quick else calls,
                )
            progress(f"\n{scheme}, 1 MiB ")
            target = bench.target("/large", tls=scheme == "https")
            found[f"{scheme}, 1 MiB"] = _table(
                bench, workers, target, callers=1, calls=LARGE_CALLS // (5 if bench.quick else 1)
            )
    return found


def _table(bench: Bench, workers: Any, target: Target, **arguments: int) -> dict[str, Figures]:
    """For each subject its figures, its ratio to each that it is compared with, and what a span adds."""
    turns = in_turns(workers, bench.rounds, lambda _, worker: ask(worker, "calls:probe", target, **arguments))
    table = {}
    for name in workers:
        row = table[name] = medians(turns[name])
        for base in ("httpx", "httpx-sniffio", "aiohttp", "aiohttp-uvloop", "by-hand", "by-hand-spans", "raw"):
            if base in turns:
                row[f"of {base}"] = ratio(turns, name, base)
        if "ours" in turns:
            row["above ours"] = difference(turns, name, "ours")
    return table
