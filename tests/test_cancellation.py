"""Cancellation leaves nothing behind: no connection, no task, no place in any queue, and no error but itself.

`CANCELLATIONS` sets how many calls a storm cancels, for each engine and size of the pool, and `CANCELLATIONS_SEED` by
which seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

import anyio
import httpx
import pytest

from fastapi_http_client.circuit_breaker import CircuitBreaker
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import HTTPClientError, HTTPTimeoutError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.policies.circuit_breaker import CircuitState, Outcome
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from tests.faults import nothing_left
from tests.hostile.upstream import HostileUpstream, running

pytestmark = pytest.mark.usefixtures("engine")


POOL = 10


def a_client(upstream: HostileUpstream, **fields: Any) -> AsyncHTTPClient:
    fields = {"max_connections": POOL, "timeout": 10.0, "retry_attempts": 1, **fields}
    return AsyncHTTPClient(upstream.url(), config=ClientConfig(**fields))


async def works(client: AsyncHTTPClient, calls: int = 100) -> None:
    responses = await asyncio.gather(*(client.get("/ok") for _ in range(calls)))
    assert {response.status_code for response in responses} == {200}


# -- storms


async def by_deadline(call: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """Each of these says whether the call was cancelled: it may have ended before."""
    try:
        async with asyncio.timeout(seconds):
            await call
    except TimeoutError:
        return True
    return False


async def by_scope(call: Coroutine[Any, Any, Any], seconds: float) -> bool:
    with anyio.move_on_after(seconds) as scope:
        await call
    return scope.cancelled_caught


async def by_task(call: Coroutine[Any, Any, Any], seconds: float) -> bool:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def twice(call: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """The second cancellation strikes while the first is being dealt with."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def one_get(client: AsyncHTTPClient, path: str) -> None:
    await client.get(path)


async def one_stream(client: AsyncHTTPClient, path: str) -> None:
    async with client.stream("GET", path) as response:
        async for _ in response.aiter_bytes():
            pass


CANCELLATIONS = int(os.environ.get("CANCELLATIONS", "1500"))
SEED = int(os.environ.get("CANCELLATIONS_SEED", "7"))
SLOW = ("/slow?delay=0.05", "/drip?interval=0.01", "/hang", "/large?bytes=200000", "/ok", "/close-mid-body")


@pytest.mark.timeout(0)
@pytest.mark.parametrize("pool", [1, 5, 20])
async def test_a_pool_survives_thousands_of_cancelled_calls(upstream: HostileUpstream, pool: int) -> None:
    chance = random.Random(SEED)
    cancelled = 0
    descriptors = len(os.listdir("/dev/fd"))
    async with nothing_left(upstream), a_client(upstream, max_connections=pool) as client:

        async def worker(number: int) -> None:
            nonlocal cancelled
            cancel = (by_deadline, by_scope, by_task, twice)[number % 4]
            while cancelled < CANCELLATIONS:
                call = chance.choice((one_get, one_stream))(client, chance.choice(SLOW))
                with contextlib.suppress(HTTPClientError):
                    was_cancelled = await cancel(call, chance.uniform(0, 0.03))
                    cancelled += was_cancelled

        await asyncio.gather(*(worker(number) for number in range(64)))
        assert client.lifecycle.in_flight == 0
        # Every place in the pool is there: so many calls are with the upstream at once.
        together = await asyncio.gather(*(client.get(f"/barrier/all?n={pool}") for _ in range(pool)))
        assert {response.status_code for response in together} == {200}
        await works(client)
    assert cancelled >= CANCELLATIONS
    assert len(os.listdir("/dev/fd")) <= descriptors


async def test_deadlines_of_our_own_do_not_use_up_the_pool(upstream: HostileUpstream) -> None:
    """The limits of attempt and call fall due nearly together, so that the second meets the first's cleaning up."""
    async with nothing_left(upstream), a_client(upstream) as client:

        async def worker() -> None:
            for _ in range(15):
                with pytest.raises(HTTPTimeoutError):
                    await client.get("/drip", timeout=0.02, total_timeout=0.03)

        await asyncio.gather(*(worker() for _ in range(40)))
        await works(client)


# -- at every await


@types.coroutine
def cancelled_at(work: Coroutine[Any, Any, Any], steps: frozenset[int], counted: list[int]) -> Generator[Any, Any, Any]:
    """Await work, but cancel the task at those of its suspensions (from 1); their number is put into `counted`."""
    count = 0
    resume: Callable[[Any], Any] = work.send
    value: Any = None
    try:
        while True:
            waiting = resume(value)
            count += 1
            if count in steps:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value = yield waiting
                resume = work.send
            except BaseException as error:
                value = error
                resume = work.throw
    except StopIteration as stop:
        return stop.value
    finally:
        counted.append(count)


async def at_every_await(
    begin: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[], Awaitable[None]], *, also: tuple[int, ...] = ()
) -> int:
    """Run the work again and again, each time cancelled at a later await, and `also` so many awaits after that.

    Returns at how many awaits it was cancelled.
    """
    for step in range(1, 500):
        counted: list[int] = []

        async def work(step: int = step, counted: list[int] = counted) -> None:
            await cancelled_at(begin(), frozenset({step, *(step + more for more in also)}), counted)

        task = asyncio.ensure_future(work())
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None or isinstance(task.exception(), HTTPClientError)
        await check()
        if counted[0] < step:
            return step - 1
        assert task.cancelled() or task.cancelling(), f"swallowed at await {step}"
    raise AssertionError("the work has no end")


async def get_large(client: AsyncHTTPClient) -> None:
    await client.get("/large?bytes=100000")


async def post_large(client: AsyncHTTPClient) -> None:
    await client.post("/sink", content=bytes(3_000_000))


async def read_stream(client: AsyncHTTPClient) -> None:
    await one_stream(client, "/large?bytes=100000")


async def leave_stream(client: AsyncHTTPClient) -> None:
    async with client.stream("GET", "/large?bytes=3000000") as response:
        async for _ in response.aiter_bytes():
            break


async def get_broken(client: AsyncHTTPClient) -> None:
    with contextlib.suppress(HTTPClientError):
        await client.get("/close-mid-body")


async def get_redirected(client: AsyncHTTPClient) -> None:
    await client.get("/redirect?n=2", follow_redirects=True)


@pytest.mark.parametrize("also", [(), (1,), (1, 2), (2,)], ids=["once", "twice", "thrice", "later"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("call", [get_large, post_large, read_stream, leave_stream, get_broken, get_redirected])
async def test_a_call_may_be_cancelled_at_every_await(
    upstream: HostileUpstream, call: Callable[[AsyncHTTPClient], Coroutine[Any, Any, Any]], warm: bool, also: tuple[int]
) -> None:
    async with nothing_left(upstream), a_client(upstream, max_connections=2, timeout=2.0) as client:

        async def as_new() -> None:
            await works(client, 4)
            if not warm:
                upstream.drop_connections()

        await as_new()
        assert await at_every_await(lambda: call(client), as_new, also=also) >= 1


@pytest.fixture(scope="module")
def tls_upstream() -> Iterator[HostileUpstream]:
    with running(tls=True) as server:
        yield server


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_call_over_tls_may_be_cancelled_at_every_await(
    tls_upstream: HostileUpstream, also: tuple[int, ...]
) -> None:
    context = ssl.create_default_context(cafile=tls_upstream.certs["ca.pem"])
    config = ClientConfig(max_connections=2, timeout=5.0, retry_attempts=1)
    async with (
        nothing_left(tls_upstream),
        AsyncHTTPClient(tls_upstream.url("", "tls"), config=config, verify=context) as client,
    ):

        async def as_new() -> None:
            await works(client, 4)
            tls_upstream.drop_connections()

        assert await at_every_await(lambda: get_large(client), as_new, also=also) >= 1


async def test_a_cancelled_tls_handshake_closes_its_socket(upstream: HostileUpstream) -> None:
    url = f"https://{upstream.host}:{upstream.ports['accept_hang']}/"
    async with nothing_left(upstream), AsyncHTTPClient(config=ClientConfig(retry_attempts=1)) as client:
        for _ in range(10):
            await by_deadline(client.get(url), 0.02)
        async with asyncio.timeout(2):
            while upstream.open_connections():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_retry_may_be_cancelled_at_every_await(upstream: HostileUpstream, also: tuple[int, ...]) -> None:
    async with (
        nothing_left(upstream),
        a_client(upstream, max_connections=1, retry_attempts=3, retry_backoff_factor=0.001) as client,
    ):

        async def call() -> None:
            upstream.forget()
            async with client.stream("GET", "/sequence/k?steps=503,reset,200") as response:
                await response.aread()

        async def as_new() -> None:
            await works(client, 2)

        assert await at_every_await(call, as_new, also=also) >= 3


async def test_a_token_fetch_outlives_the_caller_who_began_it(upstream: HostileUpstream) -> None:
    auth = OAuth2ClientCredentials(upstream.url("/oauth/token?realm=r&delay=0.05"), "id", "secret")
    async with nothing_left(upstream), AsyncHTTPClient(upstream.url(), auth=auth) as client:
        first = asyncio.ensure_future(client.get("/oauth/protected?realm=r"))
        await asyncio.sleep(0.02)
        others = [asyncio.ensure_future(client.get("/oauth/protected?realm=r")) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        assert {response.status_code for response in await asyncio.gather(*others)} == {200}
        assert first.cancelled()
    assert upstream.stats()["token_realms"]["r"]["calls"] == 1


async def test_a_call_that_fetches_a_token_may_be_cancelled_at_every_await(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream):
        number = 0

        async def call() -> None:
            nonlocal number
            number += 1
            auth = OAuth2ClientCredentials(upstream.url(f"/oauth/token?realm={number}"), "id", "secret")
            async with AsyncHTTPClient(upstream.url(), auth=auth) as client:
                response = await client.get(f"/oauth/protected?realm={number}")
                assert response.status_code == 200

        async def as_new() -> None:
            pass

        assert await at_every_await(call, as_new) >= 3


async def test_a_renewal_of_a_dead_token_may_be_cancelled_at_every_await(upstream: HostileUpstream) -> None:
    auth = OAuth2ClientCredentials(upstream.url("/oauth/token"), "id", "secret")
    config = ClientConfig(retry_attempts=1, max_connections=1)
    async with nothing_left(upstream), AsyncHTTPClient(upstream.url(), auth=auth, config=config) as client:

        async def as_new() -> None:
            assert (await client.get("/oauth/protected")).status_code == 200
            await client.get("/oauth/revoke", auth=None)

        async def call() -> None:
            assert (await client.get("/oauth/protected")).status_code == 200

        await as_new()
        assert await at_every_await(call, as_new) >= 3


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_cancelled_probe_gives_its_place_back(upstream: HostileUpstream, also: tuple[int, ...]) -> None:
    clock = FakeClock(autojump=False)
    breaker = CircuitBreaker(recovery_timeout=10.0)
    config = ClientConfig(retry_attempts=1, timeout=5.0)
    async with (
        nothing_left(upstream),
        AsyncHTTPClient(upstream.url(), config=config, circuit_breaker=breaker, clock=clock) as client,
    ):
        breaker.trip()
        clock.advance(10.0)

        async def as_new() -> None:
            assert breaker.state in (CircuitState.HALF_OPEN, CircuitState.CLOSED)
            if breaker.state is CircuitState.HALF_OPEN:
                breaker.record(breaker.admit(lease=1.0), Outcome.IGNORED)  # its only place is free
            else:
                breaker.trip()
                clock.advance(10.0)

        assert await at_every_await(lambda: get_large(client), as_new, also=also) >= 1


async def test_a_cancelled_streaming_probe_gives_its_place_back(upstream: HostileUpstream) -> None:
    clock = FakeClock(autojump=False)
    breaker = CircuitBreaker(recovery_timeout=10.0)
    config = ClientConfig(retry_attempts=1, timeout=5.0)
    async with AsyncHTTPClient(upstream.url(), config=config, circuit_breaker=breaker, clock=clock) as client:
        breaker.trip()
        clock.advance(10.0)
        await by_deadline(one_stream(client, "/drip"), 0.1)
        assert breaker.state is CircuitState.CLOSED  # there was an answer below 500


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_streaming_probe_may_be_cancelled_at_every_await(
    upstream: HostileUpstream, also: tuple[int, ...]
) -> None:
    clock = FakeClock(autojump=False)
    breaker = CircuitBreaker(recovery_timeout=10.0)
    async with (
        nothing_left(upstream),
        AsyncHTTPClient(
            upstream.url(), config=ClientConfig(retry_attempts=1), circuit_breaker=breaker, clock=clock
        ) as client,
    ):

        async def as_new() -> None:
            assert breaker.state in (CircuitState.HALF_OPEN, CircuitState.CLOSED)
            breaker.trip()
            clock.advance(10.0)
            breaker.record(breaker.admit(lease=1.0), Outcome.IGNORED)  # its only place is free

        await as_new()
        assert await at_every_await(lambda: read_stream(client), as_new, also=also) >= 2


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_wait_for_the_limiter_may_be_cancelled_at_every_await(
    upstream: HostileUpstream, also: tuple[int, ...]
) -> None:
    limiter = TokenBucketRateLimiter(rate=1.0, burst=1)
    clock = FakeClock()
    async with (
        nothing_left(upstream),
        AsyncHTTPClient(
            upstream.url(), config=ClientConfig(retry_attempts=1), rate_limiter=limiter, clock=clock
        ) as client,
    ):

        async def as_new() -> None:
            assert limiter.waiting == 0
            before = clock.monotonic()
            await client.get("/ok")
            assert clock.monotonic() - before <= 1.0  # no debt is left by those who gave up
            assert await limiter.acquire() <= 1.0  # and the bucket is empty for the next

        await as_new()
        assert await at_every_await(lambda: get_large(client), as_new, also=also) >= 2


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_pause_that_the_upstream_asks_for_may_be_cancelled_at_every_await(
    upstream: HostileUpstream, also: tuple[int, ...]
) -> None:
    clock = FakeClock()
    config = ClientConfig(retry_attempts=1, retry_jitter=0.0)
    async with nothing_left(upstream), AsyncHTTPClient(upstream.url(), config=config, clock=clock) as client:

        async def told_to_wait() -> None:
            assert (await client.get("/status/429?retry_after=1")).status_code == 429
            assert client.server_limit.is_pausing

        async def as_new() -> None:
            before = clock.monotonic()
            await asyncio.gather(*(client.get("/ok") for _ in range(3)))
            assert clock.monotonic() - before <= 1.0
            assert not client.server_limit.is_pausing
            await told_to_wait()

        await told_to_wait()
        assert await at_every_await(lambda: get_large(client), as_new, also=also) >= 2


@pytest.mark.parametrize("also", [(), (1,)], ids=["once", "twice"])
async def test_a_shutdown_may_be_cancelled_at_every_await(upstream: HostileUpstream, also: tuple[int, ...]) -> None:
    """It is carried to its end all the same: closed is closed, and each call in flight ends."""
    calls: list[asyncio.Future[Any]] = []
    clients: list[AsyncHTTPClient] = []
    async with nothing_left(upstream):

        async def shut_down() -> None:
            client = clients[-1]
            await client.drain(0.02)
            await client.aclose()

        async def begin() -> None:
            client = a_client(upstream, max_connections=2)
            clients.append(client)
            await works(client, 2)
            calls[:] = [asyncio.ensure_future(client.get("/hang")) for _ in range(3)]
            await asyncio.sleep(0.01)

        async def as_new() -> None:
            client = clients[-1]
            with pytest.raises(HTTPClientError):
                await client.get("/ok")  # no new calls, from its first step on
            await client.aclose()
            for call in calls:
                with pytest.raises(HTTPClientError):
                    await call
            assert client.is_closed
            assert client.lifecycle.in_flight == 0
            await begin()

        await begin()
        assert await at_every_await(shut_down, as_new, also=also) >= 2
        await shut_down()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_cancelled_calls_are_no_failures(upstream: HostileUpstream) -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    async with AsyncHTTPClient(upstream.url(), circuit_breaker=breaker) as client:
        await asyncio.gather(*(by_deadline(client.get("/hang"), 0.02) for _ in range(20)))
        assert breaker.state is CircuitState.CLOSED
        await works(client, 5)


async def test_a_cancelled_wait_for_the_limiter_leaves_no_gap(upstream: HostileUpstream) -> None:
    clock = FakeClock(autojump=False)
    limiter = TokenBucketRateLimiter(rate=1.0, burst=1)
    async with AsyncHTTPClient(upstream.url(), rate_limiter=limiter, clock=clock) as client:
        await client.get("/ok")
        waiting = [asyncio.ensure_future(client.get(f"/count/{number}")) for number in range(5)]
        await asyncio.sleep(0.01)
        assert limiter.waiting == 5
        for number in (0, 1, 3):
            waiting[number].cancel()
        await asyncio.sleep(0.01)
        assert limiter.waiting == 2
        for number in (2, 4):
            clock.advance(1.0)
            assert (await waiting[number]).status_code == 200
    assert {key for key in upstream.stats()["keys"] if key.isdigit()} == {"2", "4"}


async def test_a_cancelled_back_off_sends_nothing_more(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream), a_client(upstream, retry_attempts=3, retry_backoff_factor=0.1) as client:
        await by_deadline(client.get("/status/503?key=k"), 0.05)
        await asyncio.sleep(0.3)
    assert upstream.key("k")["count"] == 1


# -- whose cancellation it is


async def test_a_cancellation_is_never_wrapped(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as client:
        call = asyncio.ensure_future(client.get("/hang"))
        await asyncio.sleep(0.05)
        call.cancel("by hand")
        with pytest.raises(asyncio.CancelledError, match="by hand"):
            await call


async def test_the_callers_own_deadline_is_not_disturbed(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as client:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await client.get("/hang", total_timeout=5.0)
        assert not isinstance(caught.value, HTTPClientError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_our_deadline_inside_of_the_callers_is_ours(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as client, asyncio.timeout(5.0) as outer:
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.get("/hang", total_timeout=0.05)
        assert caught.value.phase == "total"
        assert not outer.expired()
        await client.get("/ok")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_task_group_ends_its_calls(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream), a_client(upstream) as client:

        async def calls() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(client.get("/hang"))
                group.create_task(client.get("/hang", total_timeout=0.05))

        with pytest.raises(ExceptionGroup) as caught:
            await calls()
        assert [type(error) for error in caught.value.exceptions] == [HTTPTimeoutError]
        await works(client)


async def test_a_slow_custom_transport_is_ended_too() -> None:
    closed = 0

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=Endless())

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b"."
                await asyncio.sleep(0.01)

        async def aclose(self) -> None:
            nonlocal closed
            closed += 1

    async with AsyncHTTPClient("https://api.example.com", transport=Slow()) as client:
        await by_deadline(client.get("/"), 0.05)
        await by_deadline(one_stream(client, "/"), 0.05)
        with pytest.raises(HTTPTimeoutError):
            await client.get("/", total_timeout=0.05)
    assert closed == 3
