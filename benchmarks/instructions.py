"""Bytecode instructions of a GET, counted by the interpreter: the same in every run, whatever else the machine does.

They are what the Python code of a client does, on one interpreter; what C code does in them (TLS, parsers, JSON) is one
instruction. So they show that the hot path has become longer, not how long it takes.
"""

from __future__ import annotations

import statistics
import sys
from types import FrameType
from typing import Any

from benchmarks.bench import Bench
from benchmarks.subjects import Call, Open, Target


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def enter(self, frame: FrameType, event: str, argument: object) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.step

    def step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self.count += 1
        return self.step


async def instructions(call: Call, calls: int = 9) -> float:
    """Those of one call in this thread, its event loop's included: the median, the connection being open."""
    for _ in range(20):
        await call()
    counts = []
    before = sys.gettrace()  # a coverage tool's
    for _ in range(calls):
        counter = _Counter()
        sys.settrace(counter.enter)
        try:
            await call()
        finally:
            sys.settrace(before)
        counts.append(counter.count)
    return statistics.median(counts)


async def probe(opens: Open, target: Target) -> float:
    async with opens(target) as call:
        return await instructions(call)


def measure(bench: Bench, names: list[str] | None = None) -> dict[str, Any]:
    names = names or [
        "httpx",
        "httpx2",
        "httpware",
        "by-hand",
        "aiohttp",
        "ours",
        "ours-bare",
        "engine",
        "fetch",
        "raw",
    ]
    return {name: bench.fresh(name, "instructions:probe", bench.target()) for name in names}
