"""Memory of a call in flight, of one that waits for a connection, and of one client more.

Resident memory of the process, over many of them at once; the tests take what `tracemalloc` counts instead, which is
the same in every run but leaves out what is not Python's own (TLS, uvloop).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
import tracemalloc
from typing import Any
from urllib.parse import urlsplit

from benchmarks.bench import Bench, Figures
from benchmarks.subjects import Open, Target

SUBJECTS = ["httpx", "httpx2", "aiohttp", "ours", "ours-uvloop", "ours-httpcore", "raw"]
_CALLS, _CLIENTS = 500, 50


def _used(traced: bool) -> float:
    """KiB."""
    gc.collect()
    if traced:
        return tracemalloc.get_traced_memory()[0] / 1024
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)


async def _until_hanging(target: Target, count: int) -> None:
    """Until so many calls have come to the upstream, and all others as far as they can."""
    address = urlsplit(target.origin)
    while True:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /hanging HTTP/1.1\r\n\r\n")
        hanging = int(await reader.readline())
        writer.close()
        await writer.wait_closed()
        if hanging == count:
            break
        await asyncio.sleep(0.05)
    for _ in range(100):
        await asyncio.sleep(0)


async def calls(opens: Open, target: Target, *, before: int, calls: int, traced: bool = False) -> float:
    """KiB of each of so many calls that are not answered, `before` others being there already."""
    await _until_hanging(target, 0)
    if traced:
        tracemalloc.start()
    async with opens(target) as call:
        others = [asyncio.create_task(_never_answered(call)) for _ in range(before)]
        await _until_hanging(target, min(before, target.connections))
        used = _used(traced)
        tasks = [asyncio.create_task(_never_answered(call)) for _ in range(calls)]
        await _until_hanging(target, min(before + calls, target.connections))
        used = _used(traced) - used
        for task in (*tasks, *others):
            task.cancel()
        await asyncio.gather(*tasks, *others, return_exceptions=True)
    return used / calls


async def _never_answered(call: Any) -> None:
    await call()


async def clients(opens: Open, target: Target, *, clients: int = _CLIENTS) -> Figures:
    """KiB and ms of each client after the first ones."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(opens(target))
        used, started = _used(False), time.process_time()
        for _ in range(clients):
            await stack.enter_async_context(opens(target))
        spent = time.process_time() - started
        return {"KiB": (_used(False) - used) / clients, "ms": spent / clients * 1e3}


def measure(bench: Bench, names: list[str] | None = None) -> dict[str, Any]:
    found = {}
    for name in names or SUBJECTS:
        found[name] = {
            "in flight": bench.fresh(
                name, "memory:calls", bench.target("/hang", connections=5000), before=20, calls=_CALLS
            ),
            "queued": bench.fresh(
                name, "memory:calls", bench.target("/hang", connections=20), before=40, calls=2 * _CALLS
            ),
            "client": bench.fresh(name, "memory:clients", bench.target()),
        }
    return found
