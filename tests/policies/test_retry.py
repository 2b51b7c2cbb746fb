"""The retry policy's decisions: what is repeated, how long is waited, and how much is retried at most."""

from __future__ import annotations

import math
import sys
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastapi_http_client.config import ClientConfig
from fastapi_http_client.policies.retry import Exposure, RetryBudget, RetryPolicy, parse_retry_after

NOW = 1_700_000_000.0
STANDARD = RetryPolicy.of(ClientConfig())

factors = st.floats(0.0, sys.float_info.max)
shares = st.floats(0.0, 1.0)
chances = st.floats(0.0, 1.0, exclude_max=True)
attempts = st.integers(0, 10**6)


def policy(**options: Any) -> RetryPolicy:
    return RetryPolicy.of(ClientConfig(**options))


# -- delays ------------------------------------------------------------------------------------------------------


@given(factors, st.floats(0.0, 1e12), shares, attempts, chances)
@example(sys.float_info.max, 60.0, 1.0, 10**6, 0.0)  # infinity times nothing
@example(1.0, 60.0, 0.1, 1100, 0.5)  # where a float overflows
def test_a_delay_is_a_number_between_nothing_and_the_most(
    factor: float, most: float, jitter: float, attempt: int, chance: float
) -> None:
    delay = policy(retry_backoff_factor=factor, retry_max_delay=most, retry_jitter=jitter).delay(attempt, chance)
    assert 0.0 <= delay <= most


@given(st.floats(0.001, 100.0), shares, st.integers(0, 20), chances)
def test_a_delay_keeps_to_the_curve_within_the_jitter(
    factor: float, jitter: float, attempt: int, chance: float
) -> None:
    delay = policy(retry_backoff_factor=factor, retry_max_delay=1e9, retry_jitter=jitter).delay(attempt, chance)
    middle = factor * 2.0**attempt
    assert middle * (1 - jitter) * (1 - 1e-9) <= delay <= middle * (1 + jitter) * (1 + 1e-9)


@given(attempts, chances)
def test_without_jitter_chance_has_no_say(attempt: int, chance: float) -> None:
    exact = policy(retry_jitter=0.0)
    assert exact.delay(attempt, chance) == exact.delay(attempt, 0.5) == min(2.0 ** min(attempt, 10), 60.0)


def test_the_default_delays_double_up_to_the_most() -> None:
    assert [STANDARD.delay(n, 0.5) for n in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_the_default_jitter_is_a_tenth_up_and_down() -> None:
    assert STANDARD.delay(0, 0.0) == pytest.approx(0.9)
    assert STANDARD.delay(0, math.nextafter(1.0, 0.0)) == pytest.approx(1.1)


@given(attempts, chances)
def test_a_factor_of_zero_never_waits(attempt: int, chance: float) -> None:
    assert policy(retry_backoff_factor=0.0).delay(attempt, chance) == 0.0


# -- what is repeated --------------------------------------------------------------------------------------------

SAFE = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
UNSAFE = ("POST", "PATCH")


def allowed(method: str, exposure: Exposure, *, key: bool = False, replayable: bool = True, **options: Any) -> bool:
    return policy(**options).allows(method, exposure, has_key=key, replayable=replayable)


@pytest.mark.parametrize("method", [*SAFE, *UNSAFE])
@pytest.mark.parametrize("exposure", [Exposure.NEVER_SENT, Exposure.REFUSED])
def test_what_did_not_run_is_repeated_whatever_the_method(method: str, exposure: Exposure) -> None:
    assert allowed(method, exposure)


@pytest.mark.parametrize("method", SAFE)
def test_an_idempotent_request_is_repeated_though_it_may_have_run(method: str) -> None:
    assert allowed(method, Exposure.MAY_HAVE_RUN)


@pytest.mark.parametrize("method", UNSAFE)
def test_post_and_patch_are_repeated_only_with_a_key_or_leave(method: str) -> None:
    assert not allowed(method, Exposure.MAY_HAVE_RUN)
    assert allowed(method, Exposure.MAY_HAVE_RUN, key=True)
    assert allowed(method, Exposure.MAY_HAVE_RUN, retry_non_idempotent=True)


@given(st.sampled_from([*SAFE, *UNSAFE, "TRACE", "PURGE"]), st.sampled_from(Exposure), st.booleans(), st.booleans())
def test_nothing_outside_of_the_methods_is_ever_repeated(
    method: str, exposure: Exposure, key: bool, leave: bool
) -> None:
    methods = frozenset({"GET", "POST"})
    repeated = allowed(method, exposure, key=key, retry_methods=methods, retry_non_idempotent=leave)
    assert not (repeated and method not in methods)


@given(st.sampled_from([*SAFE, *UNSAFE]), st.sampled_from(Exposure), st.booleans(), st.booleans())
def test_a_body_that_is_used_up_and_a_final_answer_are_never_repeated(
    method: str, exposure: Exposure, key: bool, leave: bool
) -> None:
    assert not allowed(method, exposure, key=key, replayable=False, retry_non_idempotent=leave)
    assert not allowed(method, Exposure.FINAL, key=key, retry_non_idempotent=leave)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_status_to_retry_may_have_run(status: int) -> None:
    assert STANDARD.exposure_of(status) is Exposure.MAY_HAVE_RUN


def test_a_429_is_a_refusal() -> None:
    assert STANDARD.exposure_of(429) is Exposure.REFUSED


@pytest.mark.parametrize("status", [200, 204, 301, 304, 400, 401, 404, 408, 409, 422, 501, 505])
def test_every_other_status_is_final(status: int) -> None:
    assert STANDARD.exposure_of(status) is Exposure.FINAL


def test_the_statuses_are_the_users_to_choose() -> None:
    chosen = policy(retry_statuses={404})
    assert chosen.exposure_of(404) is Exposure.MAY_HAVE_RUN
    assert chosen.exposure_of(429) is Exposure.FINAL
    assert chosen.exposure_of(503) is Exposure.FINAL


# -- the budget --------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 200.0), st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_the_store_and_a_tenth_of_the_successes(capacity: float, events: list[bool]) -> None:
    """True is a success, False a wish to retry."""
    budget = RetryBudget(capacity)
    granted = 0
    for success in events:
        if success:
            budget.earn()
        else:
            granted += budget.spend()
    assert granted <= capacity + 0.1 * sum(events) + 1e-6
    assert 0.0 <= budget.tokens <= capacity


@given(st.integers(1, 100), st.integers(0, 100))
def test_ten_successes_buy_exactly_one_retry(capacity: int, used: int) -> None:
    budget = RetryBudget(capacity)
    while budget.spend():
        pass
    for round_ in range(3):
        for n in range(10):
            assert not budget.spend(), (round_, n)
            budget.earn()
        assert budget.spend()


def test_a_full_budget_gains_nothing() -> None:
    budget = RetryBudget(2.0)
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_a_budget_of_nothing_grants_nothing() -> None:
    budget = RetryBudget(0.0)
    for _ in range(100):
        budget.earn()
    assert not budget.spend()


# -- Retry-After -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("120", 120.0),
        ("007", 7.0),
        (" 5\t", 5.0),
        ("99999999999999999999", 1e20),
        ("9" * 5000, math.inf),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 3600, usegmt=True), 0.0),
        (formatdate(NOW + 2).replace(" -0000", ""), 2.0),  # no zone: UTC
        (formatdate(NOW + 2), 2.0),  # -0000
        ("Tue, 14-Nov-23 22:13:30 GMT", 10.0),  # RFC 850
        ("Tue Nov 14 22:13:30 2023", 10.0),  # asctime
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799.0 - NOW),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == pytest.approx(seconds)


def test_a_date_without_a_zone_is_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_retry_after(formatdate(NOW + 2).replace(" -0000", ""), NOW) == pytest.approx(2.0)
        assert parse_retry_after("Tue Nov 14 22:13:30 2023", NOW) == pytest.approx(10.0)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "-5", "+5", "1.5", "1_0", "0x10", "1e9", "5s", "5 s", "5 seconds", "1, 120", "1;2", "nan", "inf"),
        *("soon", "-0", "\u0661", "\xb2", "５", "½"),
        *("Mon, 99 Foo 2024 99:99:99 GMT", "2099-01-01T00:00:00Z", "1700000000 GMT", "GMT", "Mon,", "a" * 5000),
        "Mon, 01 Jan 99999 00:00:00 GMT",
    ],
)
def test_any_other_retry_after_is_garbage(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text(max_size=40), st.floats(0.0, 1e11))
def test_no_retry_after_ever_raises_or_is_negative(value: str, now: float) -> None:
    seconds = parse_retry_after(value, now)
    assert seconds is None or seconds >= 0.0


@given(st.integers(0, 10**15))
def test_digits_mean_seconds(seconds: int) -> None:
    assert parse_retry_after(str(seconds), NOW) == seconds
