"""One process of a fleet: `python -m tests.fleet_worker <name of a job> <its arguments as JSON>`.

It says "ready", waits for a line, works, and writes what it has seen as one line of JSON. Times are of the machine's
monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter, defaultdict
from hashlib import sha1
from typing import Any

import httpx
from pydantic import SecretStr

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig, OAuth2Config
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.errors import CircuitBreakerOpenError
from fastapi_http_client.fleet import Fleet, link
from fastapi_http_client.policies.circuit_breaker import Outcome
from fastapi_http_client.policies.shared_bucket import Grant, Limit
from fastapi_http_client.stores.redis import RedisStore


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _go() -> None:
    _say("ready")
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


class LedgerStore(RedisStore):
    """Valkey, with a ledger of each limit: (from when on in its own µs, how many permits it granted, how many came
    back)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ledgers: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
        self.takes: Counter[str] = Counter()
        text = self._limit.text.replace("return {granted, wait}", "return {granted, wait, now}")
        self._limit.text, self._limit.digest = text, sha1(text.encode()).hexdigest()

    async def take(self, name: str, limit: Limit, *, returned: int = 0, **wanted: int) -> Grant:
        self.takes[name] += 1
        numbers = (wanted.get(key, 0) for key in ("least", "most", "ahead"))
        arguments = (limit.price, limit.capacity, 1 << limit.shift, *numbers, returned)
        tokens, wait, now = await self._run(self._limit, "limit", name, *arguments)
        self.ledgers[name] += [(now, 0, returned), (now + wait, tokens, 0)] if tokens else [(now, 0, returned)]
        return Grant(tokens, wait)


async def permits(url: str, cases: list[dict[str, Any]]) -> Any:
    """One case after the other, all processes at the same time."""
    link.PATIENCE = link.SLOW = 30.0  # a busy machine is no outage
    store = LedgerStore(url)
    async with Fleet(store) as fleet:
        return [await _take_permits(fleet, store, number, **case) for number, case in enumerate(cases)]


async def _take_permits(
    fleet: Fleet,
    store: LedgerStore,
    number: int,
    *,
    rate: float,
    burst: int,
    seconds: float,
    callers: int,
    cancel_every: int = 0,
) -> Any:
    """Take permits with so many callers for so long; every n-th call is given up after a moment."""
    name = f"case{number}"
    limiter, ledger = fleet.rate_limiter(name, rate, burst), store.ledgers[name]
    order: list[int] = []
    numbers = iter(range(10**9))
    await _go()
    end = time.monotonic() + seconds

    async def take(number: int) -> None:
        await limiter.acquire()
        order.append(number)

    async def caller() -> None:
        while time.monotonic() < end:
            number = next(numbers)
            if cancel_every and number % cancel_every == 0:
                try:
                    async with asyncio.timeout(0.003):
                        await take(number)
                except TimeoutError:
                    continue
            else:
                await take(number)

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(30):  # what was not used is given back
        while sum(granted - returned for _, granted, returned in ledger) != len(order):
            await asyncio.sleep(0.01)
    return {
        "used": len(order),
        "ledger": ledger,
        "in_order": order == sorted(order),
        "commands": store.takes[name],
        "was_up": fleet.is_up,
    }


async def hold_probe(url: str, recovery: float) -> Any:
    """Become the probe and never come back."""
    async with Fleet(url) as fleet:
        breaker = fleet.circuit_breaker("api", failure_threshold=3, recovery_timeout=recovery)
        while True:
            try:
                ticket = await breaker.ask(lease=1.0)
                break
            except CircuitBreakerOpenError:
                await asyncio.sleep(0.01)
        assert breaker.state == "half_open", (breaker.state, ticket)
        await _go()
        await asyncio.sleep(60)


async def probes(url: str, recovery: float, calls: int) -> Any:
    """Ask with many calls at once; those let through succeed slowly."""
    async with Fleet(url) as fleet:
        breaker = fleet.circuit_breaker("api", failure_threshold=3, recovery_timeout=recovery)
        await _go()
        admitted = 0

        async def call() -> None:
            nonlocal admitted
            try:
                ticket = await breaker.ask(lease=1.0)
            except CircuitBreakerOpenError:
                return
            admitted += 1
            await asyncio.sleep(0.5)
            breaker.record(ticket, Outcome.SUCCESS)

        await asyncio.gather(*(call() for _ in range(calls)))
        return {"admitted": admitted}


async def tokens(url: str, key: str, token_url: str) -> Any:
    """A few calls with a shared token to the API beside the token endpoint, some of which find the token revoked."""
    fleet = Fleet(url, encryption_key=key)
    clients = HTTPClients(store=fleet)
    clients.add(
        "api",
        config=ClientConfig(
            base_url=token_url.removesuffix("/token"),
            auth=OAuth2Config(type="oauth2", token_url=token_url, client_id="me", client_secret=SecretStr("sesame")),
        ),
    )
    async with clients:
        await _go()
        first = await asyncio.gather(*(clients["api"].get("/data") for _ in range(5)))
        await _go()
        second = await asyncio.gather(*(clients["api"].get("/data") for _ in range(5)))
        return {"statuses": [response.status_code for response in (*first, *second)]}


async def outage(url: str, seconds: float, rate: float, burst: int) -> Any:
    """Calls every few milliseconds while things happen to the store: none may fail, and how long each took."""
    warnings: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logger = logging.getLogger("fastapi_http_client.fleet")
    handler = Keep(logging.WARNING)
    logger.addHandler(handler)
    clients = HTTPClients(store=url)
    clients.add(
        "api",
        config=ClientConfig(
            base_url="http://api.test",
            enable_rate_limiting=True,
            rate_limit_rate=rate,
            rate_limit_burst=burst,
            enable_circuit_breaker=True,
            retry_attempts=1,
        ),
        transport=httpx.MockTransport(lambda _: httpx.Response(200)),
    )
    async with clients:
        client: AsyncHTTPClient = clients["api"]
        seen: list[tuple[float, float]] = []
        errors: list[str] = []
        await _go()
        end = time.monotonic() + seconds

        async def call() -> None:
            started = time.monotonic()
            try:
                await client.get("/")
            except Exception as error:
                errors.append(repr(error))
            seen.append((started, time.monotonic() - started))

        calls = []
        while time.monotonic() < end:
            calls.append(asyncio.create_task(call()))
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls)
        fleet = clients._fleet
        assert fleet is not None
        return {"seen": seen, "errors": errors, "warnings": warnings, "up": fleet.is_up}


def main() -> None:
    job, arguments = sys.argv[1:]
    _say(json.dumps(asyncio.run(globals()[job](**json.loads(arguments)))))


if __name__ == "__main__":
    main()
