"""What a small GET with `.json()` costs: this package with everything on, bare, and others, as ratios of bare httpx.

    python -m benchmarks [--rounds 5] [--requests 2000] [--subjects ours,aiohttp,…] [--callers 1,50,500] [--large]

The upstream is a process of its own. Each subject is a process of its own as well; they take turns inside each round,
and every figure is the subject's processor time a request divided by bare httpx's of the same round (the median over
the rounds), so that a noisy machine disturbs all of them alike. With two cores or more, the upstream and the subjects
are pinned to one each. `+uvloop` behind a name runs it on uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import uvloop

from benchmarks.subjects import SUBJECTS, Call


async def _measure(
    make: Callable[[str], AbstractAsyncContextManager[Call]], url: str, callers: int, requests: int
) -> float:
    """Processor time of one request, in microseconds."""
    async with make(url) as call:

        async def caller(count: int) -> None:
            for _ in range(count):
                await call()

        await asyncio.gather(*(caller(2) for _ in range(callers)))
        each = max(1, requests // callers)
        started = time.process_time()
        await asyncio.gather(*(caller(each) for _ in range(callers)))
        return (time.process_time() - started) / (each * callers) * 1e6


def serve_measurements(name: str) -> None:
    """The process of one subject: reads `url callers requests` lines, answers each with a figure."""
    kind, _, loop = name.partition("+")
    new_loop = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    for line in sys.stdin:
        url, callers, requests = line.split()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            figure = runner.run(_measure(SUBJECTS[kind], url, int(callers), int(requests)))
        sys.stdout.write(f"{figure}\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--callers", default="1,50,500")
    parser.add_argument("--subjects", default=",".join([*SUBJECTS, "ours+uvloop", "aiohttp+uvloop"]))
    parser.add_argument("--large", action="store_true", help="1 MiB bodies instead of small ones")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_measurements(options.serve)
        return

    here = Path(__file__).resolve()
    pinned = len(os.sched_getaffinity(0)) > 1 if hasattr(os, "sched_getaffinity") else False
    cores = sorted(os.sched_getaffinity(0)) if pinned else []

    def start(*arguments: str, core: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(here.parents[1])])},
        )
        if pinned:
            os.sched_setaffinity(process.pid, {cores[core]})
        return process

    upstream = start(str(here.with_name("upstream.py")), core=1)
    names = options.subjects.split(",")
    clients = {name: start("-m", "benchmarks", "--serve", name, core=0) for name in names}
    try:
        assert upstream.stdout is not None
        port = upstream.stdout.readline().strip()
        url = f"http://127.0.0.1:{port}/{'large' if options.large else 'small'}"
        for callers in map(int, options.callers.split(",")):
            figures: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(options.rounds):
                for name, process in clients.items():
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write(f"{url} {callers} {options.requests}\n")
                    process.stdin.flush()
                    figures[name].append(float(process.stdout.readline()))
            sys.stdout.write(f"{callers} callers\n")
            base = figures[names[0]]
            for name in names:
                ratio = statistics.median(own / other for own, other in zip(figures[name], base, strict=True))
                sys.stdout.write(f"  {name:16} {ratio:7.3f}  {statistics.median(figures[name]):9.1f} µs\n")
    finally:
        for process in (*clients.values(), upstream):
            process.terminate()
            process.communicate()


if __name__ == "__main__":
    main()
