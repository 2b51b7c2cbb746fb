"""The rate limiter: order, cancellation and waiting, on a clock of our own."""

from __future__ import annotations

import asyncio
import gc
import math
import random
from collections.abc import Coroutine
from fractions import Fraction
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastapi_http_client.errors import ConfigurationError, RateLimitError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter


class Served:
    """Acquires, and remembers who was served and when."""

    def __init__(self, limiter: TokenBucketRateLimiter, clock: FakeClock) -> None:
        self.limiter = limiter
        self.clock = clock
        self.names: list[int] = []
        self.times: list[float] = []
        self.waits: list[float] = []

    async def acquire(self, name: int, tokens: int = 1, max_wait: float | None = None) -> None:
        self.waits.append(await self.limiter.acquire(tokens, max_wait=max_wait))
        self.names.append(name)
        self.times.append(self.clock.elapsed)

    def start(self, name: int, tokens: int = 1, max_wait: float | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.acquire(name, tokens, max_wait))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def served(clock: FakeClock, rate: float, burst: int = 1) -> Served:
    return Served(TokenBucketRateLimiter(rate, burst, clock=clock), clock)


async def settle() -> None:
    """Lets tasks that are ready run, for fewer turns than the fake clock needs to jump."""
    for _ in range(5):
        await asyncio.sleep(0)


def runs_without_suspending(coroutine: Coroutine[Any, Any, float]) -> float:
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return float(stopped.value.value)


# -- without contention ------------------------------------------------------------------------------------------


def test_without_contention_there_is_no_wait_and_no_suspension_and_no_loop(clock: FakeClock) -> None:
    limiter = TokenBucketRateLimiter(10.0, burst=3, clock=clock)
    assert [runs_without_suspending(limiter.acquire()) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert clock.sleeps == []


async def test_a_burst_passes_at_once_and_the_rest_at_the_rate(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0, burst=5)
    await asyncio.gather(*(calls.acquire(n) for n in range(8)))
    assert calls.times == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2, 0.3])
    assert calls.waits == pytest.approx(calls.times)


async def test_21_calls_at_10_a_second_take_2_seconds(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0)
    await asyncio.gather(*(calls.acquire(n) for n in range(21)))
    assert clock.elapsed == pytest.approx(2.0, abs=1e-9)
    assert clock.sleeps == pytest.approx([0.1] * 20)  # one sleep for each that had to wait


async def test_one_after_another_waits_as_well(clock: FakeClock) -> None:
    limiter = TokenBucketRateLimiter(10.0, clock=clock)
    assert [await limiter.acquire() for _ in range(4)] == pytest.approx([0.0, 0.1, 0.1, 0.1])


async def test_ages_of_idleness_are_worth_one_burst(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0, burst=5)
    await calls.acquire(0, tokens=5)
    clock.advance(1e9)
    assert calls.limiter.available == 5.0
    await asyncio.gather(*(calls.acquire(n) for n in range(6)))
    assert calls.waits == pytest.approx([0, 0, 0, 0, 0, 0, 0.1], abs=1e-6)


async def test_says_what_it_is_and_how_it_stands(clock: FakeClock) -> None:
    limiter = TokenBucketRateLimiter(10, burst=2, clock=clock)
    assert (limiter.rate, limiter.burst, limiter.available, limiter.waiting) == (10.0, 2, 2.0, 0)
    assert repr(limiter) == "TokenBucketRateLimiter(rate=10, burst=2)"
    await limiter.acquire()
    clock.advance(0.05)
    assert limiter.available == pytest.approx(1.5)
    tasks = [asyncio.create_task(limiter.acquire(2)) for _ in range(3)]
    await settle()
    assert limiter.waiting == 3
    await asyncio.gather(*tasks)
    assert limiter.waiting == 0


# -- order -------------------------------------------------------------------------------------------------------


async def test_1000_waiters_are_served_in_order_and_at_the_full_rate(clock: FakeClock) -> None:
    calls = served(clock, rate=200.0, burst=20)
    await asyncio.gather(*(calls.acquire(n) for n in range(1000)))
    assert calls.names == list(range(1000))
    assert clock.elapsed == pytest.approx(4.9)


async def test_newcomers_do_not_overtake() -> None:
    """Not even one that comes just when the first in line has been woken and its token lies there."""
    clock = FakeClock(autojump=False)
    calls = served(clock, rate=10.0)
    await calls.acquire(0)
    tasks = [calls.start(1), calls.start(2)]
    await settle()
    clock.advance(0.1)
    tasks.append(calls.start(3))
    await settle()
    assert calls.names == [0, 1]
    clock.advance(0.1)
    await settle()
    clock.advance(0.1)
    await asyncio.gather(*tasks)
    assert calls.names == [0, 1, 2, 3]


async def test_a_heavy_waiter_is_not_starved_by_light_ones(clock: FakeClock) -> None:
    calls = served(clock, rate=100.0, burst=10)
    await calls.acquire(0, tokens=10)

    async def stream() -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(2, 60):
                group.create_task(calls.acquire(n))
                await clock.sleep(0.01)

    light = asyncio.create_task(stream())
    heavy = calls.start(1, tokens=10)
    await asyncio.gather(light, heavy)
    assert calls.names.index(1) <= 2
    assert calls.times[calls.names.index(1)] <= 0.111


# -- the wait is foreseen ----------------------------------------------------------------------------------------


async def test_a_wait_above_max_wait_is_refused_at_once_and_leaves_no_trace(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0, burst=5)
    await calls.acquire(0, tokens=5)
    tasks = [calls.start(1, tokens=5), calls.start(2, tokens=3)]
    await settle()
    with pytest.raises(RateLimitError) as refused:
        await calls.limiter.acquire(2, max_wait=0.9)
    assert refused.value.retry_after == pytest.approx(1.0)
    assert refused.value.status_code == 429
    assert refused.value.response is None
    assert clock.elapsed == 0.0
    assert calls.limiter.waiting == 2
    tasks.append(calls.start(3, tokens=2, max_wait=1.0))
    await asyncio.gather(*tasks)
    assert calls.times == pytest.approx([0.0, 0.5, 0.8, 1.0])


@pytest.mark.parametrize("max_wait", [0.0, 0, -1.0, math.nan, 0.0999])
async def test_too_small_a_max_wait_never_suspends(clock: FakeClock, max_wait: float) -> None:
    limiter = TokenBucketRateLimiter(10.0, clock=clock)
    assert await limiter.acquire(max_wait=max_wait) == 0.0
    with pytest.raises(RateLimitError):
        await limiter.acquire(max_wait=max_wait)
    assert clock.sleeps == []


async def test_a_wait_of_just_max_wait_is_allowed(clock: FakeClock) -> None:
    limiter = TokenBucketRateLimiter(10.0, clock=clock)
    await limiter.acquire()
    assert await limiter.acquire(max_wait=0.1) == pytest.approx(0.1)


async def test_under_endless_overload_the_wait_is_bounded(clock: FakeClock) -> None:
    """Five times the rate: what is served waited at most `max_wait`, and the whole rate is used."""
    calls, refused = served(clock, rate=10.0), 0

    async def call(n: int) -> None:
        nonlocal refused
        try:
            await calls.acquire(n, max_wait=1.0)
        except RateLimitError:
            refused += 1

    async with asyncio.TaskGroup() as group:
        for n in range(500):
            group.create_task(call(n))
            await clock.sleep(0.02)
    assert max(calls.waits) <= 1.0 + 1e-6
    assert calls.names == sorted(calls.names)
    assert len(calls.names) + refused == 500
    assert len(calls.names) in (110, 111)


# -- cancellation ------------------------------------------------------------------------------------------------


async def test_a_cancelled_first_in_line_hands_over_and_takes_nothing(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0, burst=10)
    await calls.acquire(0, tokens=10)
    heavy, light = calls.start(1, tokens=10), calls.start(2)
    await settle()
    heavy.cancel()
    await asyncio.wait([heavy])
    assert heavy.cancelled()
    await light
    assert calls.times == pytest.approx([0.0, 0.1])


async def test_one_cancelled_in_the_middle_leaves_no_gap(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0)
    tasks = [calls.start(n) for n in range(5)]
    await settle()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert tasks[2].cancelled()
    assert calls.names == [0, 1, 3, 4]
    assert calls.times == pytest.approx([0.0, 0.1, 0.2, 0.3])


async def test_the_foreseen_wait_forgets_the_cancelled(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0, burst=10)
    await calls.acquire(0, tokens=10)
    first, second = calls.start(1), calls.start(2, tokens=10)
    await settle()
    second.cancel()
    await asyncio.wait([second])
    await calls.acquire(3, max_wait=0.2)
    await first
    assert calls.names == [0, 1, 3]


async def test_cancelled_between_waking_and_running_it_loses_no_token() -> None:
    clock = FakeClock(autojump=False)
    calls = served(clock, rate=10.0)
    await calls.acquire(0)
    first, second = calls.start(1), calls.start(2)
    await settle()
    clock.advance(0.1)  # wakes the first
    first.cancel()
    await settle()
    assert calls.names == [0, 2]
    assert second.done()


async def test_cancelled_between_getting_its_turn_and_running_it_hands_the_turn_on() -> None:
    clock = FakeClock(autojump=False)
    calls = served(clock, rate=10.0)
    await calls.acquire(0)
    first, second, third = calls.start(1), calls.start(2), calls.start(3)
    await settle()
    first.cancel()
    await asyncio.sleep(0)  # the first leaves and gives the second its turn, which has not run yet
    second.cancel()
    await settle()
    clock.advance(0.1)
    await third
    assert calls.names == [0, 3]
    assert calls.limiter.waiting == 0


async def test_all_cancelled_at_once_leave_an_idle_limiter(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0)
    tasks = [calls.start(n) for n in range(1001)]
    await settle()
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks)
    assert calls.limiter.waiting == 0
    assert runs_without_suspending_after(calls.limiter, clock, 0.1) == 0.0


def runs_without_suspending_after(limiter: TokenBucketRateLimiter, clock: FakeClock, seconds: float) -> float:
    clock.advance(seconds + 1e-9)
    return runs_without_suspending(limiter.acquire())


async def test_half_of_500_cancelled_cost_the_others_nothing(clock: FakeClock) -> None:
    calls = served(clock, rate=200.0, burst=20)
    tasks = [calls.start(n) for n in range(500)]
    await clock.sleep(0.2001)
    gone = random.Random(7).sample([n for n, task in enumerate(tasks) if not task.done()], 230)
    for n in gone:
        tasks[n].cancel()
    await asyncio.wait(tasks)
    assert calls.names == [n for n in range(500) if n not in set(gone)]
    assert clock.elapsed == pytest.approx((270 - 20) / 200)


async def test_an_anyio_scope_cancels_like_a_task(clock: FakeClock) -> None:
    calls = served(clock, rate=10.0)
    await calls.acquire(0)
    scope = anyio.CancelScope()

    async def scoped() -> None:
        with scope:
            await calls.acquire(1)

    first, second = asyncio.create_task(scoped()), calls.start(2)
    await settle()
    scope.cancel()
    await asyncio.gather(first, second)
    assert calls.names == [0, 2]
    assert calls.times == pytest.approx([0.0, 0.1])


async def test_a_clock_that_fails_does_not_wedge_the_line() -> None:
    class FailingOnce(FakeClock):
        failed = False

        async def sleep(self, seconds: float) -> None:
            if not self.failed:
                self.failed = True
                raise OSError("no timer")
            await super().sleep(seconds)

    clock = FailingOnce()
    calls = served(clock, rate=10.0)
    results = await asyncio.gather(*(calls.acquire(n) for n in range(3)), return_exceptions=True)
    assert isinstance(results[1], OSError)
    assert calls.names == [0, 2]


arrivals = st.lists(
    st.tuples(
        st.integers(0, 12),  # quarters of a second until the next one comes
        st.integers(1, 4),  # tokens
        st.one_of(st.none(), st.integers(0, 12)),  # quarters of a second until it is cancelled
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60)
@given(arrivals, st.integers(4, 6))
def test_every_waiter_is_served_as_an_ideal_queue_would(
    arrivals: list[tuple[int, int, int | None]], burst: int
) -> None:
    """Each goes at the first moment at which it is first in line and its tokens are there; cancelled ones vanish."""
    rate = 4.0
    clock = FakeClock(start=1_000.0)
    calls = served(clock, rate, burst)

    async def caller(number: int, tokens: int, patience: int | None) -> None:
        task = calls.start(number, tokens)
        if patience is not None:
            await clock.sleep(patience * 0.25 + 0.1)  # never at the moment at which somebody is served
            task.cancel()
        await asyncio.wait([task])

    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for number, (pause, tokens, patience) in enumerate(arrivals):
                await clock.sleep(pause * 0.25)
                group.create_task(caller(number, tokens, patience))

    asyncio.run(everybody())

    expected: list[tuple[int, float]] = []
    now = turn = settled = 0.0
    credit = float(burst)
    for number, (pause, tokens, patience) in enumerate(arrivals):
        now += pause * 0.25
        begin = max(now, turn)
        saved = min(burst, credit + (begin - settled) * rate)
        at = begin + max(0.0, tokens - saved) / rate
        leaves = math.inf if patience is None else now + patience * 0.25 + 0.1
        if at < leaves:
            expected.append((number, at))
            turn, settled, credit = at, at, saved + (at - begin) * rate - tokens
        else:
            turn = max(turn, min(leaves, at))
    assert calls.names == [number for number, _ in expected]
    assert calls.times == pytest.approx([at for _, at in expected], abs=1e-6)
    assert calls.limiter.waiting == 0
    for i, begin in enumerate(calls.times):
        for j in range(i, len(calls.times)):
            taken = sum(arrivals[number][1] for number in calls.names[i : j + 1])
            assert taken <= burst + rate * (Fraction(calls.times[j]) - Fraction(begin))


# -- loops and clocks --------------------------------------------------------------------------------------------


def test_an_idle_limiter_moves_to_another_loop(clock: FakeClock) -> None:
    limiter = TokenBucketRateLimiter(10.0, clock=clock)

    async def twice() -> None:
        await asyncio.gather(limiter.acquire(), limiter.acquire())

    for _ in range(3):
        asyncio.run(twice())
    assert clock.elapsed == pytest.approx(0.5)


@pytest.mark.parametrize("start", [0.0, 0.7, 1_000.0])
async def test_a_clock_moved_by_hand_in_steps_of_one_token_serves_one_at_each(start: float) -> None:
    clock = FakeClock(start=start, autojump=False)
    calls = served(clock, rate=10.0)
    tasks = [calls.start(n) for n in range(101)]
    for step in range(101):
        await settle()
        assert len(calls.names) == step + 1
        clock.advance(0.1)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("closed", [True, False])
def test_waiters_of_a_dead_loop_hold_up_nobody(clock: FakeClock, closed: bool) -> None:
    limiter = TokenBucketRateLimiter(10.0, clock=clock)

    async def leave_behind() -> list[asyncio.Task[float]]:
        tasks = [asyncio.create_task(limiter.acquire()) for _ in range(4)]
        await asyncio.sleep(0)
        return tasks

    loop = asyncio.new_event_loop()
    behind = loop.run_until_complete(leave_behind())
    if closed:
        loop.close()
        assert limiter.waiting == 0
    assert asyncio.run(limiter.acquire()) == pytest.approx(0.1)
    assert limiter.waiting == 0
    if not closed:
        assert loop.run_until_complete(asyncio.gather(*behind)) == pytest.approx([0.0, 0.2, 0.3, 0.4])
        loop.close()
    for task in behind:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # they were left pending on purpose
    del behind, task
    gc.collect()  # closes what they were waiting in: an error there would be one of this test
    assert asyncio.run(limiter.acquire()) == pytest.approx(0.1)


async def test_a_limiter_without_a_clock_takes_the_first_one_it_is_given(clock: FakeClock) -> None:
    limiter = TokenBucketRateLimiter(1.0)
    limiter.bind(clock)
    limiter.bind(FakeClock())
    await limiter.acquire()
    await limiter.acquire()
    assert clock.elapsed == pytest.approx(1.0)


async def test_a_limiter_with_a_clock_keeps_it(clock: FakeClock) -> None:
    limiter, other = TokenBucketRateLimiter(1.0, clock=clock), FakeClock()
    limiter.bind(other)
    await limiter.acquire()
    await limiter.acquire()
    assert clock.elapsed == pytest.approx(1.0)
    assert other.elapsed == 0.0


async def test_without_any_clock_it_waits_in_real_time() -> None:
    limiter = TokenBucketRateLimiter(200.0)
    assert await limiter.acquire() == 0.0
    begin = asyncio.get_running_loop().time()
    waited = await limiter.acquire()
    assert waited > 0.0
    assert asyncio.get_running_loop().time() - begin >= waited - 0.001


# -- bad arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, 10**400, "10", None, True])
def test_a_bad_rate_is_refused_by_name(rate: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"TokenBucketRateLimiter: rate: ") as refused:
        TokenBucketRateLimiter(rate)
    assert [problem.argument for problem in refused.value.problems] == ["rate"]


@pytest.mark.parametrize("burst", [0, -1, 1.0, 2.5, math.nan, math.inf, "1", None, True])
def test_a_bad_burst_is_refused_by_name(burst: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"TokenBucketRateLimiter: burst: ") as refused:
        TokenBucketRateLimiter(1.0, burst)
    assert [problem.argument for problem in refused.value.problems] == ["burst"]


def test_both_bad_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"rate: .*burst: "):
        TokenBucketRateLimiter(-1.0, 0)


@pytest.mark.parametrize("tokens", [0, -1, 6, 1.0, math.nan, "1", None, True])
async def test_tokens_that_can_never_be_had_are_refused_by_name(clock: FakeClock, tokens: Any) -> None:
    limiter = TokenBucketRateLimiter(1.0, burst=5, clock=clock)
    with pytest.raises(ConfigurationError, match=r"tokens: .*burst \(5\)") as refused:
        await limiter.acquire(tokens)
    assert [problem.argument for problem in refused.value.problems] == ["tokens"]
    assert limiter.available == 5.0
