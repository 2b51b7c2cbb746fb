"""The token bucket's core, in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_http_client.policies.rate_limit import TokenBucket

rates = st.one_of(
    st.sampled_from([0.1, 1 / 3, 1.0, 7.0, 10.0, 1000.0, 1e6]),
    st.floats(1e-6, 1e9, allow_nan=False, allow_infinity=False),
)
bursts = st.integers(1, 50)
starts = st.one_of(st.just(1_000.0), st.floats(1.0, 1e9))
steps = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(0.0, 10.0)), st.integers(1, 50), st.booleans()), min_size=1, max_size=40
)


def assert_no_window_holds_more(taken: list[tuple[float, int]], rate: float, burst: int) -> None:
    """Checks every window that begins and ends with a taking, without any rounding."""
    sums = [0, *accumulate(tokens for _, tokens in taken)]
    for i, (begin, _) in enumerate(taken):
        for j in range(i, len(taken)):
            width = Fraction(taken[j][0]) - Fraction(begin)
            assert sums[j + 1] - sums[i] <= burst + Fraction(rate) * width


@given(rates, bursts, starts, steps)
def test_no_window_ever_holds_more_than_burst_and_rate(
    rate: float, burst: int, start: float, steps: list[tuple[float, int, bool]]
) -> None:
    """Greedy takers, patient ones that wait as long as they are told, and idle times in between."""
    bucket, now, taken = TokenBucket(rate, burst), start, []
    for pause, wanted, patient in steps:
        now += pause
        tokens = min(wanted, burst)
        wait = bucket.take(tokens, now)
        if wait and patient:
            now += wait
            wait = bucket.take(tokens, now)
        if not wait:
            taken.append((now, tokens))
    assert_no_window_holds_more(taken, rate, burst)


@given(rates, bursts, starts, st.integers(1, 50), st.floats(0.0, 1.0))
def test_who_waits_as_long_as_told_is_served_at_the_first_try(
    rate: float, burst: int, start: float, wanted: int, pause: float
) -> None:
    bucket, tokens = TokenBucket(rate, burst), min(wanted, burst)
    bucket.take(burst, start)
    now = start + pause / rate
    if wait := bucket.take(tokens, now):
        assert bucket.take(tokens, now + wait) == 0.0


@given(rates, bursts, starts)
def test_whoever_waits_loses_next_to_nothing_of_the_rate(rate: float, burst: int, start: float) -> None:
    bucket, now, waited = TokenBucket(rate, burst), start, 0.0
    for _ in range(burst + 100):
        if wait := bucket.take(1, now):
            now += wait
            waited += wait
            assert bucket.take(1, now) == 0.0
    rounding = 100 * 2.0**-52 * start * 2
    assert waited <= 100 / rate * (1 + 1e-6) + rounding


def test_starts_full() -> None:
    bucket = TokenBucket(10.0, 3)
    assert bucket.available(1_000.0) == 3.0
    assert [bucket.take(1, 1_000.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(1, 1_000.0) == pytest.approx(0.1)


def test_a_refusal_takes_nothing() -> None:
    bucket = TokenBucket(10.0, 3)
    bucket.take(2, 1_000.0)
    assert bucket.take(2, 1_000.0) == pytest.approx(0.1)
    assert bucket.available(1_000.0) == 1.0
    assert bucket.take(1, 1_000.0) == 0.0


@pytest.mark.parametrize("rate", [0.3, 10.0, 1e6])
def test_ages_of_idleness_save_up_the_burst_and_no_more(rate: float) -> None:
    bucket = TokenBucket(rate, 7)
    bucket.take(7, 1_000.0)
    assert bucket.available(1_000.0 + 1e9) == 7.0
    assert bucket.take(7, 1_000.0 + 1e9) == 0.0
    assert bucket.take(1, 1_000.0 + 1e9) > 0.0


@pytest.mark.parametrize("back", [1e-9, 1.0, 999.0, 1e6])
def test_a_clock_that_goes_back_gives_and_takes_nothing(back: float) -> None:
    bucket = TokenBucket(10.0, 5)
    bucket.take(3, 1_000.0)
    earlier = 1_000.0 - back
    assert bucket.available(earlier) == 2.0
    assert bucket.take(3, earlier) == pytest.approx(0.1)
    assert bucket.available(earlier + 0.1) == pytest.approx(3.0)


def test_a_tiny_lack_is_still_a_lack_and_its_wait_moves_the_clock() -> None:
    bucket = TokenBucket(10.0, 1)
    bucket.take(1, 1e6)
    almost = 1e6 + 0.1 - 2e-10
    wait = bucket.take(1, almost)
    assert 0.0 < wait < 1e-9
    assert almost + wait > almost
    assert bucket.take(1, almost + wait) == 0.0


def test_what_the_clock_can_show_exactly_is_waited_for_exactly() -> None:
    bucket = TokenBucket(10.0, 1)
    bucket.take(1, 1_000.0)
    assert 1_000.0 + bucket.take(1, 1_000.0) == 1_000.1


@pytest.mark.parametrize("start", [1e-3, 0.7, 1_000.0, 123_456.7])
def test_the_wait_is_no_longer_than_the_clock_can_show(start: float) -> None:
    bucket, now = TokenBucket(10.0, 1), start
    for _ in range(50):
        bucket.take(1, now)
        now += bucket.take(1, now)
        assert bucket.take(1, now - 2 * math.ulp(now)) > 0.0
        assert bucket.wait_for(1, now) == 0.0


def test_the_wait_for_a_whole_queue_is_foreseen() -> None:
    bucket = TokenBucket(10.0, 5)
    assert bucket.wait_for(5, 1_000.0) == 0.0
    assert bucket.wait_for(25, 1_000.0) == pytest.approx(2.0)
    assert bucket.available(1_000.0) == 5.0


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e15, 1.7e308])
def test_absurd_rates_are_no_reason_to_fail(rate: float) -> None:
    bucket = TokenBucket(rate, 1)
    assert bucket.take(1, 1_000.0) == 0.0
    assert bucket.take(1, 1_000.0) > 0.0
    assert 0.0 <= bucket.available(1_000.0) < 1.0


def test_a_bucket_that_is_resized_is_as_full_as_before() -> None:
    bucket = TokenBucket(10.0, 8)
    assert bucket.take(6, 100.0) == 0.0
    half = bucket.resized(5.0, 4, 100.0)
    assert half.available(100.0) == 1.0
    assert half.available(100.25) == 2.25
