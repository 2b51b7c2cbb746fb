"""Hours of chaos in ten minutes: does anything grow?

    python -m tests.soak [--seconds 600] [--rate 300] [--seed 1]

Calls a hostile upstream, a process of its own, with faults drawn by the seed: GET and POST, streamed and not, some
cancelled at a random moment. Prints the slopes of memory, descriptors and tasks, in units per ten minutes, by least
squares over all but the first fifth of the run. What is measured is the floor, the least of every ten seconds: how much
is going on at a moment is chance, but a leak lifts the floor. Exits with 1 when an error escapes that is none of this
package, a task's error is looked at by nobody, a resource is not closed, or a task or a descriptor is left.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection

from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPClientError
from tests.hostile.upstream import running

CONFIG = ClientConfig(
    timeout=0.25,
    total_timeout=0.6,
    retry_attempts=2,
    retry_backoff_factor=0.01,
    enable_circuit_breaker=True,
    circuit_breaker_failure_threshold=50,
    circuit_breaker_recovery_timeout=0.1,
    enable_rate_limiting=True,
    rate_limit_rate=100_000,
    rate_limit_burst=1_000,
    max_response_bytes=1 << 20,
    max_connections=200,
    retry_max_delay=0.2,
)
EVERY = 1.0  # seconds between two samples
WINDOW = 10  # samples whose least is the floor
IN_FLIGHT = 300


def serve(pipe: Connection) -> None:
    with running() as upstream:
        pipe.send(upstream.url(""))
        pipe.recv()


def sample() -> tuple[float, int, int]:
    """Resident memory in MiB, open descriptors, and tasks."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())


def slope(samples: list[tuple[float, float]]) -> float:
    """Units per second, by least squares."""
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


async def call(client: AsyncHTTPClient, seed: int, number: int, chance: random.Random) -> str:
    path = f"/chaos?seed={seed}&n={number}"
    kind = chance.random()
    try:
        async with asyncio.timeout(chance.random() if kind < 0.1 else None):
            if kind < 0.6:
                await client.get(path)
            elif kind < 0.8:
                await client.post(path, json={"n": number})
            else:
                async with client.stream("GET", path) as response:
                    async for _ in response.aiter_bytes():
                        pass
    except HTTPClientError as error:
        return type(error).__name__
    except TimeoutError:
        return "cancelled"
    return "response"


async def soak(url: str, seconds: float, rate: float, seed: int) -> int:
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    samples: list[tuple[float, tuple[float, int, int]]] = []
    foreign: list[BaseException] = []
    complaints: list[str] = []
    calls: set[asyncio.Task[str]] = set()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(repr(context)))
    sys.unraisablehook = lambda unraisable: complaints.append(repr(unraisable.exc_value))
    before = sample()

    def ended(task: asyncio.Task[str]) -> None:
        calls.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            outcomes[task.result()] += 1
        else:
            foreign.append(error)

    async with AsyncHTTPClient(url, config=CONFIG) as client:
        started = time.monotonic()
        number, next_sample = 0, started
        while (now := time.monotonic()) < started + seconds:
            while number < (now - started) * rate and len(calls) < IN_FLIGHT:
                number += 1
                task = asyncio.get_running_loop().create_task(call(client, seed, number, chance))
                calls.add(task)
                task.add_done_callback(ended)
            if now >= next_sample:
                gc.collect()
                samples.append((now - started, sample()))
                next_sample += EVERY
            await asyncio.sleep(0.005)
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(1.0)
    await asyncio.sleep(0.1)
    settled = samples[len(samples) // 5 :]
    windows = [settled[at : at + WINDOW] for at in range(0, len(settled), WINDOW)]
    sys.stdout.write(f"{number} calls in {seconds:g} s, seed {seed}: {dict(outcomes.most_common())}\n")
    for index, name in enumerate(("memory, MiB", "descriptors", "tasks")):
        floor = [(window[0][0], float(min(values[index] for _, values in window))) for window in windows]
        highest = max(values[index] for _, values in settled)
        grown = slope(floor) * 600
        sys.stdout.write(
            f"{name:12} floor from {floor[0][1]:6.1f} to {floor[-1][1]:6.1f}, slope {grown:+7.2f} in ten minutes; "
            f"highest {highest:.1f}\n"
        )
    memory, descriptors, tasks = sample()
    sys.stdout.write(f"after closing: {memory:.1f} MiB, {descriptors} descriptors, {tasks} task\n")
    for error in foreign[:5]:
        sys.stdout.write(f"escaped: {error!r}\n")
    for complaint in complaints[:5]:
        sys.stdout.write(f"complaint: {complaint}\n")
    return 1 if foreign or complaints or (descriptors, tasks) != before[1:] else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("error")
    logging.getLogger("fastapi_http_client").addHandler(logging.NullHandler())
    ours, theirs = multiprocessing.Pipe()
    upstream = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    upstream.start()
    failed = asyncio.run(soak(ours.recv(), options.seconds, options.rate, options.seed))
    ours.send("stop")
    upstream.join(5)
    sys.exit(failed)


if __name__ == "__main__":
    main()
