"""A fleet of real processes and a real Valkey server, which is killed, stopped, filled and emptied under them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar

import pytest
from cryptography.fernet import Fernet
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from fastapi_http_client.config import ClientConfig, OAuth2Config
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.errors import AuthenticationError, CircuitBreakerOpenError, ConfigurationError, RateLimitError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.fleet import Fleet
from fastapi_http_client.fleet.circuit_breaker import FleetCircuitBreaker
from fastapi_http_client.fleet.link import Link
from fastapi_http_client.fleet.rate_limiter import FleetRateLimiter
from fastapi_http_client.policies.circuit_breaker import CircuitState, Outcome, Ticket
from fastapi_http_client.stores.base import Store
from fastapi_http_client.stores.memory import MemoryStore
from fastapi_http_client.stores.redis import RedisStore
from tests.engine.raw import until
from tests.fleet_worker import LedgerStore
from tests.servers import HOST, free_port, serve
from tests.valkey import ValkeyProcess, valkey


@pytest.fixture(scope="module")
def _server() -> Iterator[ValkeyProcess]:
    with valkey() as process:
        yield process


@pytest.fixture
def server(_server: ValkeyProcess) -> ValkeyProcess:
    """A server that is well and empty."""
    _server.command("FLUSHALL")
    return _server


@pytest.fixture
def own_server() -> Iterator[ValkeyProcess]:
    """A server to do anything with."""
    with valkey() as process:
        yield process


class Worker:
    """A process that does one job of `tests/fleet_worker.py`."""

    running: ClassVar[list[Worker]] = []

    def __init__(self, job: str, **arguments: Any) -> None:
        self.running.append(self)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fleet_worker", job, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        assert self._process.stdout is not None
        result = json.loads(self._process.stdout.readline())
        self._process.communicate()
        return result

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(ValueError):  # its output was read to the end
            self._process.communicate()


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    while Worker.running:
        Worker.running.pop().kill()


async def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# -- limits ------------------------------------------------------------------------------------------------------


CASES: list[dict[str, Any]] = [
    {"rate": 40, "burst": 1, "seconds": 1.5, "callers": 4},
    {"rate": 100, "burst": 10, "seconds": 1.5, "callers": 10, "cancel_every": 3},
    {"rate": 1000, "burst": 100, "seconds": 1.5, "callers": 20},
    {"rate": 1000, "burst": 100, "seconds": 1.5, "callers": 20, "cancel_every": 3},
]


@pytest.fixture(scope="module")
def permits(_server: ValkeyProcess) -> list[tuple[Any, ...]]:
    """What four processes saw in each case."""
    workers = [Worker("permits", url=_server.url, cases=CASES) for _ in range(4)]
    for _ in CASES:
        for worker in workers:
            worker.ready()
        for worker in workers:
            worker.go()
    return list(zip(*(worker.result() for worker in workers), strict=True))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_four_processes_use_no_more_than_the_rate_of_one(permits: list[tuple[Any, ...]], number: int) -> None:
    """By the server's own time, so exactly, in every window. Every third call is given up while it waits: nothing is
    lost by it, and those behind it keep their order."""
    case, results = CASES[number], permits[number]
    assert all(result["was_up"] and result["in_order"] for result in results)
    level, last = 0.0, 0  # of a bucket of our own, which what was granted fills and time empties
    for at, granted, returned in sorted(entry for result in results for entry in result["ledger"]):
        level = max(level - case["rate"] * (at - last) / 1e6 - returned, 0.0) + granted
        last = at
        assert level <= case["burst"] + 0.001
    used = sum(result["used"] for result in results)
    assert used >= case["burst"]
    assert sum(result["commands"] for result in results) / used < (0.8 if case["rate"] >= 1000 else 7)


@pytest.mark.parametrize("case", CASES)
def test_four_processes_use_the_whole_rate_of_one(case: dict[str, Any]) -> None:
    """On a clock without noise, with 0.3 ms to the store and back."""
    clock = FakeClock()
    store, used = MemoryStore(clock=clock), 0
    end = clock.monotonic() + case["seconds"]

    async def process() -> None:
        limiter = await limiter_of(Distant(store, clock), case["rate"], case["burst"], processes=4)
        limiter.bind(clock)
        numbers = itertools.count()

        async def take() -> None:
            nonlocal used
            await limiter.acquire()
            used += clock.monotonic() <= end

        async def caller() -> None:
            while clock.monotonic() < end:
                call = asyncio.create_task(take())
                if next(numbers) % case.get("cancel_every", math.inf) == 1:
                    await clock.sleep(0.003)
                    call.cancel()
                await asyncio.wait({call})

        await asyncio.gather(*(caller() for _ in range(case["callers"])))
        await limiter._link.aclose()

    async def run() -> None:
        await asyncio.gather(*(process() for _ in range(4)))

    asyncio.run(run())
    assert used >= 0.98 * (case["burst"] + case["rate"] * case["seconds"]) - 1


class Distant:
    """A store that takes 0.3 ms of a clock to answer."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self._store = store
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._store, name)

        async def there_and_back(*arguments: Any, **more: Any) -> Any:
            await self._clock.sleep(0.00015)
            answer = await command(*arguments, **more)
            await self._clock.sleep(0.00015)
            return answer

        return there_and_back


async def limiter_of(store: Store, rate: float, burst: int, processes: int | None = None) -> FleetRateLimiter:
    link = Link(store, processes=processes)
    await link.open()
    return FleetRateLimiter(rate, burst, name="api", link=link)


async def test_a_lone_call_takes_one_command_and_many_take_few(server: ValkeyProcess) -> None:
    store = LedgerStore(server.url)
    async with Fleet(store) as fleet:
        limiter = fleet.rate_limiter("api", 100_000, 1000)
        await limiter.acquire()
        assert store.takes["api"] == 1
        await asyncio.gather(*(limiter.acquire() for _ in range(500)))
        assert store.takes["api"] <= 3
        for _ in range(500):
            await limiter.acquire()
        assert store.takes["api"] <= 100


async def test_what_a_process_does_not_use_it_gives_back(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as one, Fleet(server.url) as two:
        first, second = one.rate_limiter("api", 250, 250), two.rate_limiter("api", 250, 250)
        for _ in range(20):
            await first.acquire()
        assert first.available > 0
        await wait_until(lambda: first.available == 0, 1)
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(second.acquire(230), 0.5) < 0.1  # 250, less those 20


async def test_a_call_cancelled_while_the_store_is_asked_leaves_its_permit_to_the_next(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as fleet:
        limiter = fleet.rate_limiter("api", 0.1, 1)
        call = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        assert await asyncio.wait_for(limiter.acquire(), 1) < 0.5
        assert limiter.waiting == 0


async def test_a_wait_that_would_be_too_long_is_refused_at_once(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as fleet:
        limiter = fleet.rate_limiter("api", 1, 2)
        await limiter.acquire(2)
        started = time.monotonic()
        with pytest.raises(RateLimitError) as caught:
            await limiter.acquire(max_wait=0.5)
        assert caught.value.retry_after == pytest.approx(1, abs=0.1)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.02)
        with pytest.raises(RateLimitError):
            await limiter.acquire(2, max_wait=0.5)
        assert time.monotonic() - started < 0.3
        waiting.cancel()


async def test_without_the_store_a_process_has_its_fair_share(own_server: ValkeyProcess) -> None:
    async with contextlib.AsyncExitStack() as stack:
        fleets = [await stack.enter_async_context(Fleet(own_server.url)) for _ in range(4)]
        await wait_until(lambda: all(fleet.link.processes == 4 for fleet in fleets))
        limiters = [fleet.rate_limiter("api", 100, 8) for fleet in fleets]
        own_server.kill()
        taken, end = 0, time.monotonic() + 1.0

        async def caller(limiter: FleetRateLimiter) -> None:
            nonlocal taken
            while True:
                await limiter.acquire()
                if time.monotonic() > end:
                    return
                taken += 1

        async with asyncio.timeout(5):
            await asyncio.gather(*(caller(limiter) for limiter in limiters for _ in range(3)))
        assert 85 <= taken <= 108


async def test_the_number_of_processes_can_be_set(caplog: pytest.LogCaptureFixture) -> None:
    async with Fleet(f"redis://{HOST}:{free_port()}", processes=10) as fleet:
        limiter = fleet.rate_limiter("api", 100, 10)
        assert await limiter.acquire() == 0.0
        assert await limiter.acquire() == pytest.approx(0.1, abs=0.05)


# -- circuits ----------------------------------------------------------------------------------------------------


def breaker_of(fleet: Fleet, recovery: float = 0.3, probes: int = 1) -> FleetCircuitBreaker:
    return fleet.circuit_breaker("api", failure_threshold=3, recovery_timeout=recovery, half_open_max_calls=probes)


async def call(breaker: FleetCircuitBreaker, outcome: Outcome) -> None:
    breaker.record(await breaker.ask(lease=1.0), outcome)


async def is_refused(breaker: FleetCircuitBreaker) -> bool:
    try:
        breaker.record(await breaker.ask(lease=1.0), Outcome.IGNORED)
    except CircuitBreakerOpenError:
        return True
    return False


@pytest.fixture
async def pair(server: ValkeyProcess) -> AsyncIterator[tuple[FleetCircuitBreaker, FleetCircuitBreaker]]:
    """The same circuit as two processes see it."""
    async with Fleet(server.url) as one, Fleet(server.url) as two:
        yield breaker_of(one), breaker_of(two)


async def test_failures_count_over_the_fleet_and_one_trip_opens_all(
    pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker],
) -> None:
    one, two = pair
    await call(one, Outcome.FAILURE)
    await call(two, Outcome.FAILURE)
    await call(one, Outcome.FAILURE)
    with pytest.raises(CircuitBreakerOpenError) as caught:  # the very next call knows
        await one.ask(lease=1.0)
    assert 0.2 < caught.value.recovery_timeout <= 0.3
    await asyncio.sleep(0.05)  # and any other process in no more than this
    assert await is_refused(two)
    assert two.state is CircuitState.OPEN


async def test_a_process_that_does_nothing_learns_of_a_trip_before_its_next_call(
    pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker],
) -> None:
    one, two = pair
    await call(two, Outcome.SUCCESS)
    await asyncio.sleep(0.1)
    for _ in range(3):
        await call(one, Outcome.FAILURE)
    assert await is_refused(one)
    assert await is_refused(two)


async def test_the_call_after_a_good_probe_finds_the_circuit_closed(
    pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker],
) -> None:
    one, two = pair
    for _ in range(3):
        await call(one, Outcome.FAILURE)
    assert await is_refused(one)
    await asyncio.sleep(0.32)
    probe = await two.ask(lease=1.0)
    assert await is_refused(one)
    two.record(probe, Outcome.SUCCESS)
    assert not await is_refused(two)
    assert not await is_refused(one)


async def test_late_results_of_any_process_are_dropped(
    pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker],
) -> None:
    one, two = pair
    early: list[Ticket] = [await two.ask(lease=1.0) for _ in range(5)]
    for _ in range(3):
        await call(one, Outcome.FAILURE)
    assert await is_refused(one)
    await asyncio.sleep(0.32)
    await call(one, Outcome.SUCCESS)
    assert not await is_refused(one)
    for ticket in early:
        two.record(ticket, Outcome.FAILURE)
    assert not await is_refused(two)
    assert not await is_refused(one)


async def test_a_call_cancelled_while_it_asks_for_a_probe_gives_the_place_back(
    pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker],
) -> None:
    one, two = pair
    for _ in range(3):
        await call(one, Outcome.FAILURE)
    assert await is_refused(one)
    await asyncio.sleep(0.32)
    for turns in range(12):
        asking = asyncio.create_task(one.ask(lease=30.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, CircuitBreakerOpenError):
            one.record(await asking, Outcome.IGNORED)
    await asyncio.sleep(0.05)
    assert not await is_refused(two)


async def test_trip_and_reset_by_hand_are_for_all(pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker]) -> None:
    one, two = pair
    assert not await is_refused(two)
    one.trip()
    assert one.state is CircuitState.OPEN
    assert await is_refused(one)
    await asyncio.sleep(0.06)
    assert await is_refused(two)
    two.reset()
    assert not await is_refused(two)
    await asyncio.sleep(0.06)
    assert not await is_refused(one)


async def test_each_process_reports_each_change_once(
    pair: tuple[FleetCircuitBreaker, FleetCircuitBreaker],
) -> None:
    one, two = pair
    changes: dict[str, list[str]] = {"one": [], "two": []}
    one.subscribe(lambda change: changes["one"].append(f"{change.old}>{change.new}"))
    two.subscribe(lambda change: changes["two"].append(f"{change.old}>{change.new}"))
    assert not await is_refused(two)
    for _ in range(3):
        await call(one, Outcome.FAILURE)
    assert await is_refused(one)
    await asyncio.sleep(0.06)
    assert await is_refused(two)
    await asyncio.sleep(0.3)
    await call(one, Outcome.SUCCESS)
    assert not await is_refused(one)
    await asyncio.sleep(0.06)
    assert not await is_refused(two)
    assert changes["one"] == ["closed>open", "open>half_open", "half_open>closed"]
    assert changes["two"] == ["closed>open", "open>closed"]


async def test_four_processes_admit_exactly_as_many_probes_as_are_allowed(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as fleet:
        breaker = breaker_of(fleet, 0.5)
        workers = [Worker("probes", url=server.url, recovery=0.5, calls=50) for _ in range(4)]
        for worker in workers:
            worker.ready()
        breaker.trip()
        await asyncio.sleep(0.55)
        for worker in workers:
            worker.go()
        results = await asyncio.to_thread(lambda: [worker.result() for worker in workers])
    assert sum(result["admitted"] for result in results) == 1


async def test_a_killed_probe_delays_the_recovery_by_no_more_than_its_lease(server: ValkeyProcess) -> None:
    """Though calls are refused all the time."""
    async with Fleet(server.url) as fleet:
        breaker = breaker_of(fleet, 0.1)
        breaker.trip()
        assert await is_refused(breaker)
        worker = Worker("hold_probe", url=server.url, recovery=0.1)
        await asyncio.to_thread(worker.ready)
        worker.kill()
        killed = time.monotonic()
        while await is_refused(breaker):
            await asyncio.sleep(0.01)
        assert time.monotonic() - killed < 1.15


# -- tokens ------------------------------------------------------------------------------------------------------


class Endpoint:
    """A token endpoint and an API that honours the latest token only."""

    def __init__(self) -> None:
        self.fetches = 0
        self.revoked = 0
        self.kinds: list[str] = []
        """Types of the tokens, if not Bearer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        status, body = 200, b"{}"
        if scope["path"] == "/token":
            self.fetches += 1
            number = self.fetches
            await asyncio.sleep(0.1)
            kind = self.kinds.pop(0) if self.kinds else "Bearer"
            body = json.dumps({"access_token": f"secret-{number}", "token_type": kind, "expires_in": 60}).encode()
        else:
            authorization = dict(scope["headers"]).get(b"authorization", b"").decode()
            good = authorization.startswith("Bearer secret-") and int(authorization[14:]) > self.revoked
            status = 200 if good else 401
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


def test_the_fleet_fetches_one_token_and_replaces_a_revoked_one_once(server: ValkeyProcess) -> None:
    endpoint = Endpoint()
    with serve(endpoint) as base:
        key = Fernet.generate_key().decode()
        workers = [Worker("tokens", url=server.url, key=key, token_url=f"{base}/token") for _ in range(4)]
        for worker in workers:
            worker.ready()
        for worker in workers:
            worker.go()
        for worker in workers:
            worker.ready()
        assert endpoint.fetches == 1
        endpoint.revoked = 1
        for worker in workers:
            worker.go()
        statuses = [status for worker in workers for status in worker.result()["statuses"]]
    assert statuses == [200] * 40
    assert endpoint.fetches == 2


async def token_clients(store: Fleet | str, base: str) -> HTTPClients:
    clients = HTTPClients(store=store)
    secret = SecretStr("sesame")
    auth = OAuth2Config(type="oauth2", token_url=f"{base}/token", client_id="me", client_secret=secret)
    clients.add("api", config=ClientConfig(base_url=base, auth=auth))
    await clients.start()
    return clients


@pytest.mark.usefixtures("engine")
async def test_a_shared_token_is_stored_encrypted_and_names_nobody(server: ValkeyProcess) -> None:
    endpoint = Endpoint()
    with serve(endpoint) as base:
        clients = await token_clients(Fleet(server.url, encryption_key=Fernet.generate_key().decode()), base)
        assert (await clients["api"].get("/data")).status_code == 200
        keys = server.command("KEYS", "*")
        name = next(part.decode() for part in keys.split(b"\r\n") if b":token:" in part)
        stored = server.command("HGETALL", name)
        await clients.aclose()
    assert name.startswith("http_clients:token:api:")
    for secret in (b"secret-1", b"sesame", b"access_token"):
        assert secret not in stored
        assert secret not in keys


@pytest.mark.usefixtures("engine")
async def test_without_a_key_no_token_leaves_the_process(server: ValkeyProcess) -> None:
    endpoint = Endpoint()
    with serve(endpoint) as base:
        for _ in range(2):
            clients = await token_clients(server.url, base)
            assert (await clients["api"].get("/data")).status_code == 200
            await clients.aclose()
    assert endpoint.fetches == 2
    assert b":token:" not in server.command("KEYS", "*")


@pytest.mark.usefixtures("engine")
async def test_a_token_that_another_key_has_encrypted_is_fetched_anew(server: ValkeyProcess) -> None:
    endpoint = Endpoint()
    old, new, third = (Fernet.generate_key().decode() for _ in range(3))
    with serve(endpoint) as base:
        fetches = []
        for keys in (old, f"{new},{old}", f"{third},{old}"):  # the second reads the first's; the name stays
            clients = await token_clients(Fleet(server.url, encryption_key=keys), base)
            assert (await clients["api"].get("/data")).status_code == 200
            fetches.append(endpoint.fetches)
            await clients.aclose()
        assert fetches == [1, 1, 1]


@pytest.mark.usefixtures("engine")
async def test_a_reply_that_one_process_refuses_is_not_shared(server: ValkeyProcess) -> None:
    endpoint = Endpoint()
    endpoint.kinds = ["mac"]
    with serve(endpoint) as base:
        key = Fernet.generate_key().decode()
        clients = await token_clients(Fleet(server.url, encryption_key=key), base)
        with pytest.raises(AuthenticationError, match="Bearer"):
            await clients["api"].get("/data")
        other = await token_clients(Fleet(server.url, encryption_key=key), base)
        assert (await other["api"].get("/data")).status_code == 200
        await clients.aclose()
        await other.aclose()
    assert endpoint.fetches == 2


# -- the store in trouble ----------------------------------------------------------------------------------------


async def under(server_url: str, happen: Callable[[], Awaitable[None]], seconds: float = 2.5) -> Any:
    """A process that calls all the time, while something happens."""
    worker = Worker("outage", url=server_url, seconds=seconds, rate=10_000, burst=1000)
    await asyncio.to_thread(worker.ready)
    worker.go()
    started = time.monotonic()
    await happen()
    result = await asyncio.to_thread(worker.result)
    result["started"] = started
    return result


def check_calls(result: Any, at: float) -> None:
    """No call failed; in the second after it was held up by 50 ms at most (and what a busy machine adds), later not."""
    assert result["errors"] == []
    first = [took for begun, took in result["seen"] if at - 0.05 <= begun < at + 1]
    later = sorted(took for begun, took in result["seen"] if begun >= at + 1)
    assert max(first) < 0.09
    assert sorted(first)[len(first) // 2] < 0.02
    assert later[len(later) // 2] < 0.005


async def test_a_killed_or_hanging_store_fails_no_call_and_is_used_again_when_it_is_back() -> None:
    async def trouble(server: ValkeyProcess, begin: Callable[[], None], end: Callable[[], None]) -> None:
        at = 0.0

        async def happen() -> None:
            nonlocal at
            await asyncio.sleep(0.4)
            at = time.monotonic()
            begin()
            await asyncio.sleep(1.2)
            end()

        result = await under(server.url, happen, 3.0)
        check_calls(result, at)
        assert len(result["warnings"]) == 1
        assert result["up"]

    with valkey() as killed, valkey() as hanging:
        await asyncio.gather(trouble(killed, killed.kill, killed.start), trouble(hanging, hanging.hang, hanging.go_on))


async def test_a_slow_store_is_no_longer_asked(own_server: ValkeyProcess) -> None:
    """Every command takes 30 ms, through a proxy."""
    delay = 0.0

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if wait:
                    await asyncio.sleep(delay)
                writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, own_server.port)
        await asyncio.gather(pipe(reader, back, True), pipe(there, writer, False))

    proxy = await asyncio.start_server(connected, HOST, 0)
    port = proxy.sockets[0].getsockname()[1]
    async with Fleet(f"redis://{HOST}:{port}") as fleet:
        limiter = fleet.rate_limiter("api", 100_000, 1)
        assert fleet.is_up
        await limiter.acquire()
        delay = 0.03
        await limiter.acquire()
        await wait_until(lambda: not fleet.is_up, 0.5)
        started = time.monotonic()
        assert await limiter.acquire() < 0.01
        assert time.monotonic() - started < 0.02
        await asyncio.sleep(0.4)
        assert not fleet.is_up
        delay = 0.0
        await wait_until(lambda: fleet.is_up, 3)
    proxy.close()


async def refuse(server: ValkeyProcess, trouble: str) -> None:
    """Make every script fail, one way or the other."""
    match trouble:
        case "full":
            server.command("CONFIG", "SET", "maxmemory", "1")
        case "wrong password":
            kill = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            server.commands(("CONFIG", "SET", "requirepass", "sesame"), kill)
        case "replica":  # what a failover leaves behind: READONLY
            server.command("REPLICAOF", HOST, "1")


@pytest.mark.parametrize("trouble", ["full", "wrong password", "replica"])
async def test_a_store_that_refuses_fails_no_call(
    own_server: ValkeyProcess, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Fleet(own_server.url) as fleet:
        assert fleet.is_up
        limiter, breaker = fleet.rate_limiter("api", 1000, 100), breaker_of(fleet)
        await limiter.acquire()
        await call(breaker, Outcome.SUCCESS)
        await asyncio.sleep(0.06)
        await refuse(own_server, trouble)
        with caplog.at_level(logging.WARNING):
            started = time.monotonic()
            for _ in range(3):
                await call(breaker, Outcome.FAILURE)
            assert await is_refused(breaker)
            assert await limiter.acquire() < 0.1
            assert time.monotonic() - started < 0.2
        assert not fleet.is_up
        assert len([record for record in caplog.records if "is away" in record.message]) == 1
        assert "sesame" not in caplog.text


@pytest.mark.parametrize("down", ["refused", "wrong password", "silent"])
async def test_a_store_that_is_away_at_the_start_is_warned_of_once_and_found_later(
    down: str, own_server: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    if down == "refused":
        own_server.kill()
    elif down == "silent":
        own_server.hang()
    else:
        own_server.command("CONFIG", "SET", "requirepass", "sesame")
    clients = HTTPClients(store=own_server.url)
    clients.add("api", base_url="http://api.test", config=ClientConfig(enable_rate_limiting=True))
    started = time.monotonic()
    async with clients:
        assert time.monotonic() - started < 1.5
        limiter = clients["api"].rate_limiter
        assert isinstance(limiter, FleetRateLimiter)
        assert await limiter.acquire() < 0.05
        assert "each process decides for itself" in clients.explain()
        if down == "refused":
            own_server.start()
        elif down == "silent":
            own_server.go_on()
        else:
            own_server.kill()
            own_server.start()
        await wait_until(lambda: "in use" in clients.explain())
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1


async def test_a_server_that_lost_its_scripts_and_keys_is_healed_without_a_pause(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as fleet:
        limiter, breaker = fleet.rate_limiter("api", 1, 2), breaker_of(fleet)
        await limiter.acquire(2)
        await call(breaker, Outcome.SUCCESS)
        server.command("FLUSHALL")
        server.command("SCRIPT", "FLUSH")
        assert await limiter.acquire(2) < 0.5
        for _ in range(4):
            await call(breaker, Outcome.FAILURE) if not await is_refused(breaker) else None
        await asyncio.sleep(0.06)
        assert fleet.is_up


async def test_local_decisions_begin_where_the_fleet_was(own_server: ValkeyProcess) -> None:
    async with Fleet(own_server.url) as fleet:
        breaker = breaker_of(fleet, 0.3)
        for _ in range(3):
            await call(breaker, Outcome.FAILURE)
        assert await is_refused(breaker)
        own_server.kill()
        await wait_until(lambda: not fleet.is_up)
        assert await is_refused(breaker)
        await asyncio.sleep(0.35)
        await call(breaker, Outcome.SUCCESS)
        assert breaker.state is CircuitState.CLOSED


async def test_a_cancel_storm_never_mixes_up_answers(server: ValkeyProcess) -> None:
    async with Fleet(server.url) as fleet:
        limiter = fleet.rate_limiter("api", 1e6, 1000)
        breaker = breaker_of(fleet)

        async def use() -> None:
            await limiter.acquire()
            await call(breaker, Outcome.SUCCESS)

        for turns in range(200):
            tasks = [asyncio.create_task(use()) for _ in range(5)]
            for _ in range(turns % 17):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(use(), 1)
        assert fleet.is_up
        assert breaker.state is CircuitState.CLOSED


# -- keys and settings -------------------------------------------------------------------------------------------


async def test_every_key_has_the_prefix_and_ends(server: ValkeyProcess) -> None:
    async with Fleet(server.url, prefix="shop") as fleet:
        limiter, breaker = fleet.rate_limiter("api", 1, 10), breaker_of(fleet)
        await limiter.acquire()
        await call(breaker, Outcome.FAILURE)
        await is_refused(breaker)
        await asyncio.sleep(0.02)
        names = sorted(part for part in server.command("KEYS", "*").split(b"\r\n") if part[:1] not in (b"*", b"$", b""))
        assert names == [b"shop:circuit:api", b"shop:limit:api", b"shop:processes"]
        lives = [int(server.command("PTTL", name.decode())[1:]) for name in names]
        assert 0 < lives[0] <= 25 * 3600 * 1000
        assert 0 < lives[1] <= 1000  # one token of ten is missing
        assert 0 < lives[2] <= 6000


@pytest.mark.parametrize("key", ["shop:limit:api", "shop:circuit:api", "shop:processes"])
@pytest.mark.parametrize("garbage", [("SET", "nonsense"), ("SADD", "a"), ("HSET", "state", "?")])
async def test_somebody_elses_value_in_a_key_is_overwritten(
    server: ValkeyProcess, key: str, garbage: tuple[str, ...]
) -> None:
    command, *rest = garbage
    server.command(command, key, *rest)
    async with Fleet(server.url, prefix="shop") as fleet:
        limiter, breaker = fleet.rate_limiter("api", 1, 10), breaker_of(fleet)
        await limiter.acquire()
        for _ in range(3):
            await call(breaker, Outcome.FAILURE)
        assert await is_refused(breaker)
        assert fleet.is_up


async def test_the_environment_configures_the_store(server: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENTS_STORE", server.url)
    monkeypatch.setenv("HTTP_CLIENTS_STORE_PREFIX", "shop")
    monkeypatch.setenv("HTTP_CLIENTS_STORE_PROCESSES", "7")
    monkeypatch.setenv("HTTP_CLIENTS_STORE_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("HTTP_CLIENT__API__BASE_URL", "http://api.test")
    monkeypatch.setenv("HTTP_CLIENT__API__ENABLE_RATE_LIMITING", "true")
    monkeypatch.setenv("HTTP_CLIENT__API__ENABLE_CIRCUIT_BREAKER", "true")
    async with HTTPClients() as clients:
        assert isinstance(clients["api"].rate_limiter, FleetRateLimiter)
        assert isinstance(clients["api"].circuit_breaker, FleetCircuitBreaker)
        await clients["api"].rate_limiter.acquire()
        assert b"shop:limit:api" in server.command("KEYS", "*")
        assert "store redis://" in clients.explain()
        assert "in use" in clients.explain()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HTTP_CLIENTS_STORE", "http://u:sesame@host", "HTTP_CLIENTS_STORE: .*must start with one of redis://"),
        ("HTTP_CLIENTS_STORE_KEY", "sesame", "HTTP_CLIENTS_STORE_KEY: is no Fernet key"),
        ("HTTP_CLIENTS_STORE_PROCESSES", "0", "HTTP_CLIENTS_STORE_PROCESSES: must be a whole number"),
        ("HTTP_CLIENTS_STORE_PROCESSES", "many", "HTTP_CLIENTS_STORE_PROCESSES: must be a whole number"),
    ],
)
async def test_a_bad_setting_of_the_store_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv("HTTP_CLIENTS_STORE", "redis://host")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=message) as caught:
        await HTTPClients().start()
    assert "sesame" not in str(caught.value)


async def test_options_of_a_store_that_is_not_set_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENTS_STORE_PREFIX", "shop")
    with pytest.raises(ConfigurationError, match="HTTP_CLIENTS_STORE_PREFIX: needs HTTP_CLIENTS_STORE"):
        await HTTPClients().start()


@pytest.mark.parametrize("package", ["redis", "cryptography"])
def test_a_missing_package_is_named_by_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("redis.asyncio", "cryptography.fernet"):
        if module.startswith(package):
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=r"fastapi-http-client\[redis\]"):
        Fleet("redis://host", encryption_key=Fernet.generate_key().decode())


def test_a_store_is_given_by_url_or_client() -> None:
    with pytest.raises(ConfigurationError, match="either a url or a client"):
        RedisStore()


# -- leases, exactly ---------------------------------------------------------------------------------------------


async def test_several_registries_of_a_process_share_a_store_in_memory() -> None:
    store = MemoryStore()
    one, two = await limiter_of(store, 1, 2), await limiter_of(store, 1, 2)
    await one.acquire()
    await two.acquire()
    with pytest.raises(RateLimitError):
        await one.acquire(max_wait=0.5)
    await one._link.aclose()
    await two._link.aclose()


async def test_a_lease_is_part_of_the_burst_and_not_on_top_of_it() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    one, two = await limiter_of(store, 1000, 100), await limiter_of(store, 1000, 100)
    one.bind(clock)
    two.bind(clock)
    await asyncio.gather(*(one.acquire() for _ in range(10)))
    clock.advance(0.001)
    await one.acquire()
    assert one.available == 10
    clock.advance(0.019)
    taken = 0
    for limiter in (one, two):
        with contextlib.suppress(RateLimitError):
            while taken < 200:
                await limiter.acquire(max_wait=0)
                taken += 1
    assert 80 <= taken <= 100
    await one._link.aclose()
    await two._link.aclose()


@settings(max_examples=150)
@given(
    rate=st.sampled_from([3.0, 150.0, 250.0, 1000.0, 4000.0]),
    burst=st.sampled_from([1, 7, 40, 200]),
    arrivals=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.0, 0.0004, 0.003, 0.02, 0.5]), st.booleans()),
        min_size=1,
        max_size=120,
    ),
)
def test_permits_held_back_never_add_up_to_more_than_the_limit(
    rate: float, burst: int, arrivals: list[tuple[int, float, bool]]
) -> None:
    """Three processes on a clock without noise, some calls given up: every window of every length, exactly."""
    clock, times = FakeClock(), []

    async def run() -> None:
        store = MemoryStore(clock=clock)
        limiters = [await limiter_of(store, rate, burst) for _ in range(3)]
        for limiter in limiters:
            limiter.bind(clock)

        async def take(limiter: FleetRateLimiter) -> None:
            await limiter.acquire()
            times.append(clock.monotonic())

        calls = []
        for number, pause, given_up in arrivals:
            if pause:
                await clock.sleep(pause)
            call = asyncio.create_task(take(limiters[number]))
            if given_up:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                call.cancel()
            calls.append(call)
        await asyncio.gather(*calls, return_exceptions=True)
        for limiter in limiters:
            await limiter._link.aclose()

    asyncio.run(run())
    assert len(times) >= sum(not given_up for _, _, given_up in arrivals)
    for i, start in enumerate(times):
        for j in range(i, len(times)):
            assert j - i + 1 <= burst + rate * (times[j] - start) + 1e-6


async def test_a_start_that_is_cancelled_leaves_nothing_behind(own_server: ValkeyProcess) -> None:
    own_server.hang()
    before = asyncio.all_tasks()
    clients = HTTPClients(store=own_server.url)
    clients.add("api", base_url="http://api.test")
    starting = asyncio.create_task(clients.start())
    await wait_until(lambda: len(asyncio.all_tasks()) > len(before) + 1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert asyncio.all_tasks() == before
    own_server.go_on()
    async with clients:
        assert "in use" in clients.explain()


async def test_what_does_not_ask_the_store_takes_only_what_the_process_has(own_server: ValkeyProcess) -> None:
    async with Fleet(own_server.url) as fleet:
        limiter, breaker = fleet.rate_limiter("api", rate=1, burst=5), fleet.circuit_breaker("api")
        assert not limiter.try_acquire()
        assert breaker.admit_if_closed() is None
        own_server.kill()
        await call(breaker, Outcome.SUCCESS)
        assert not fleet.is_up
        assert limiter.try_acquire()


async def test_registries_with_prefixes_of_their_own_share_nothing_in_a_store(server: ValkeyProcess) -> None:
    config = ClientConfig(base_url="http://api.test", enable_circuit_breaker=True, circuit_breaker_failure_threshold=1)
    ours = HTTPClients({"stock": config}, env_prefix="OURS__", store=server.url)
    theirs = HTTPClients({"stock": config}, env_prefix="THEIRS__", store=server.url)
    async with ours, theirs:
        breakers = [registry["stock"].circuit_breaker for registry in (ours, theirs)]
        assert all(isinstance(breaker, FleetCircuitBreaker) for breaker in breakers)
        await call(breakers[0], Outcome.FAILURE)  # type: ignore[arg-type]
        assert await is_refused(breakers[0])  # type: ignore[arg-type]
        assert not await is_refused(breakers[1])  # type: ignore[arg-type]


async def test_a_store_that_comes_and_goes_is_warned_of_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(MemoryStore())
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.INFO):
        for now in (1000.0, 1050.0, 1100.0, 1150.0, 1200.0):
            link.is_up = True
            monkeypatch.setattr(loop, "time", lambda now=now: now)
            link._set_down("it said no")
    monkeypatch.undo()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING", "INFO", "WARNING"]


async def test_circuits_of_past_starts_no_longer_listen_to_the_store() -> None:
    fleet = Fleet(MemoryStore())
    config = ClientConfig(base_url="https://a.example", enable_circuit_breaker=True)
    clients = HTTPClients({"a": config}, store=fleet)
    for _ in range(3):
        async with clients:
            pass
    gc.collect()
    assert len(fleet.link.listeners) <= 1


async def test_a_store_that_has_forgotten_the_processes_makes_no_share_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    link, now = Link(MemoryStore()), 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    link._count(4)
    link._set_up()
    link._set_down("it was killed")
    link._set_up()
    link._count(1)  # the others have not been there yet
    assert link.processes == 4
    link._set_down("it was killed again")
    assert link.processes == 4
    link._set_up()
    now += 6.0
    link._count(2)
    assert link.processes == 2


class Breakable(MemoryStore):
    is_broken = False

    async def connect(self) -> None:
        if self.is_broken:
            raise ConnectionError


async def test_an_outage_that_began_quietly_is_warned_of_when_it_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi_http_client.fleet.link.QUIET", 0.3)
    store = Breakable()
    link = Link(store)
    await link.open()
    with caplog.at_level(logging.INFO):
        link._set_down("a moment")
        await until(lambda: link.is_up)
        store.is_broken = True
        link._set_down("for long")
        await until(lambda: len([r for r in caplog.records if r.levelname == "WARNING"]) == 2)
    await link.aclose()
    shown = [(record.levelname, "for long" in record.getMessage()) for record in caplog.records]
    assert shown == [("WARNING", False), ("INFO", False), ("INFO", True), ("WARNING", True)]
