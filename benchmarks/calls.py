"""What a call costs over loopback: processor time and time, by callers at once, over http and TLS."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.bench import Bench, Child, Figures, ask, in_turns, medians, progress, ratio
from benchmarks.subjects import SUBJECTS, Call, Open, Target

CALLERS = {1: 600, 50: 800, 500: 3000}
"""Callers at once, and the calls that they make together in a round: a third of them with a slow client."""
SLOW = ("httpx", "httpx-sniffio", "httpx-uvloop", "httpx2", "httpware", "by-hand", "by-hand-spans", "ours-httpcore")
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
    found: dict[str, Any] = {}
    with bench.workers(names or list(SUBJECTS)) as workers:
        for scheme in ("http", "https"):
            for callers, calls in CALLERS.items():
                progress(f"\n{scheme}, {callers} callers ")
                target = bench.target(tls=scheme == "https")
                found[f"{scheme}, {callers}"] = _table(bench, workers, target, callers, calls)
            progress(f"\n{scheme}, 1 MiB ")
            target = bench.target("/large", tls=scheme == "https")
            found[f"{scheme}, 1 MiB"] = _table(bench, workers, target, 1, LARGE_CALLS)
    return found


def _table(bench: Bench, workers: dict[str, Child], target: Target, callers: int, calls: int) -> dict[str, Figures]:
    """For each subject its figures, and its ratio to each that it is compared with."""

    def turn(name: str, worker: Child) -> Figures:
        share = (3 if name in SLOW else 1) * (3 if bench.quick else 1)
        return ask(worker, "calls:probe", target, callers=callers, calls=calls // share)

    turns = in_turns(workers, bench.rounds, turn)
    table = {}
    for name in workers:
        row = table[name] = medians(turns[name])
        for base in ("httpx", "aiohttp", "by-hand-spans"):
            if base in turns:
                row[f"of {base}"] = ratio(turns, name, base)
    return table
