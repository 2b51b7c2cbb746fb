"""The circuit breaker with its clock, its log and its listeners."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import httpx
import pytest

from fastapi_http_client.circuit_breaker import CircuitBreaker, StateChange
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import CircuitBreakerOpenError, ConfigurationError, HTTPRequestError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.policies.circuit_breaker import CircuitState, Outcome, Ticket

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
SUCCESS, FAILURE, IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED
LOGGER = "fastapi_http_client.circuit_breaker"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=3, recovery_timeout=60.0, name="github", clock=clock)


def run(breaker: CircuitBreaker, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        breaker.record(breaker.admit(lease=30.0), outcome)


def half_open(breaker: CircuitBreaker, clock: FakeClock) -> Ticket:
    breaker.trip()
    clock.advance(60.0)
    return breaker.admit(lease=30.0)


# -- the cycle ---------------------------------------------------------------------------------------------------


def test_the_whole_cycle(breaker: CircuitBreaker, clock: FakeClock) -> None:
    assert breaker.state is CLOSED
    run(breaker, FAILURE, FAILURE, FAILURE)
    assert breaker.state is OPEN
    clock.advance(45.0)
    with pytest.raises(CircuitBreakerOpenError, match=r"'github' is open.* 15 s") as refused:
        breaker.admit(lease=30.0)
    assert refused.value.recovery_timeout == 15.0
    clock.advance(15.0)
    assert breaker.state is HALF_OPEN
    run(breaker, FAILURE)
    assert breaker.state is OPEN
    clock.advance(60.0)
    run(breaker, SUCCESS)
    assert breaker.state is CLOSED


async def test_exactly_one_probe_of_50_concurrent_calls_goes_out(breaker: CircuitBreaker, clock: FakeClock) -> None:
    breaker.trip()
    clock.advance(60.0)
    sent = 0

    async def call() -> None:
        nonlocal sent
        ticket = breaker.admit(lease=30.0)
        sent += 1
        await clock.sleep(1.0)
        breaker.record(ticket, SUCCESS)

    results = await asyncio.gather(*(call() for _ in range(50)), return_exceptions=True)
    assert sent == 1
    assert sum(isinstance(result, CircuitBreakerOpenError) for result in results) == 49
    assert breaker.state is CLOSED


def test_a_full_half_open_circuit_says_when_a_place_may_be_free(breaker: CircuitBreaker, clock: FakeClock) -> None:
    half_open(breaker, clock)
    clock.advance(10.0)
    with pytest.raises(CircuitBreakerOpenError, match=r"half-open: all probes are under way.* 20 s") as refused:
        breaker.admit(lease=30.0)
    assert refused.value.recovery_timeout == 20.0


async def test_cancelled_calls_never_open_it_and_a_cancelled_probe_never_wedges_it(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    async def call() -> None:
        ticket, outcome = breaker.admit(lease=30.0), IGNORED
        try:
            await asyncio.Event().wait()
            outcome = SUCCESS
        finally:
            breaker.record(ticket, outcome)

    async def cancel_one() -> None:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    for _ in range(100):
        await cancel_one()
    assert breaker.state is CLOSED
    breaker.trip()
    clock.advance(60.0)
    for _ in range(100):
        await cancel_one()
        assert breaker.state is HALF_OPEN
    run(breaker, SUCCESS)
    assert breaker.state is CLOSED


def test_a_lost_probe_does_not_wedge_it(breaker: CircuitBreaker, clock: FakeClock) -> None:
    lost = half_open(breaker, clock)
    clock.advance(30.0)
    run(breaker, SUCCESS)
    assert breaker.state is CLOSED
    breaker.record(lost, FAILURE)
    assert breaker.state is CLOSED


def test_the_failure_rate_opens_it_too(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_rate=0.5, window=10.0, minimum_calls=4, clock=clock)
    run(breaker, FAILURE, SUCCESS, FAILURE)
    assert breaker.state is CLOSED
    run(breaker, SUCCESS)
    assert breaker.state is OPEN


def test_reset_and_trip_by_hand(breaker: CircuitBreaker, clock: FakeClock) -> None:
    before = breaker.admit(lease=30.0)
    breaker.trip()
    assert breaker.state is OPEN
    breaker.reset()
    assert breaker.state is CLOSED
    for _ in range(5):
        breaker.record(before, FAILURE)
    assert breaker.state is CLOSED
    breaker.trip()
    clock.advance(60.0)
    assert breaker.state is HALF_OPEN


# -- asking again ------------------------------------------------------------------------------------------------


def test_readmit_is_free_while_closed(breaker: CircuitBreaker) -> None:
    ticket = breaker.admit(lease=30.0)
    assert breaker.readmit(ticket, lease=30.0) is ticket


def test_readmit_refuses_when_the_circuit_has_opened_meanwhile(breaker: CircuitBreaker) -> None:
    ticket = breaker.admit(lease=30.0)
    run(breaker, FAILURE, FAILURE, FAILURE)
    with pytest.raises(CircuitBreakerOpenError):
        breaker.readmit(ticket, lease=30.0)


def test_readmit_keeps_a_probes_place_and_renews_its_lease(breaker: CircuitBreaker, clock: FakeClock) -> None:
    ticket = half_open(breaker, clock)
    clock.advance(29.0)
    renewed = breaker.readmit(ticket, lease=30.0)
    clock.advance(29.0)
    with pytest.raises(CircuitBreakerOpenError):
        breaker.admit(lease=30.0)
    breaker.record(ticket, FAILURE)  # the old ticket is worth nothing
    assert breaker.state is HALF_OPEN
    breaker.record(renewed, SUCCESS)
    assert breaker.state is CLOSED


def test_readmit_of_a_probe_whose_place_was_taken_is_refused(breaker: CircuitBreaker, clock: FakeClock) -> None:
    queued = half_open(breaker, clock)
    clock.advance(30.0)
    other = breaker.admit(lease=30.0)
    with pytest.raises(CircuitBreakerOpenError):
        breaker.readmit(queued, lease=30.0)
    breaker.record(other, SUCCESS)
    assert breaker.state is CLOSED


def test_readmit_after_the_circuit_closed_again_counts_in_the_new_epoch(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    ticket = breaker.admit(lease=30.0)
    half_open(breaker, clock)
    breaker.reset()
    renewed = breaker.readmit(ticket, lease=30.0)
    for _ in range(3):
        breaker.record(renewed, FAILURE)
    assert breaker.state is OPEN


# -- what it tells -----------------------------------------------------------------------------------------------


def test_each_change_is_told_once_and_in_order(breaker: CircuitBreaker, clock: FakeClock) -> None:
    changes: list[StateChange] = []
    breaker.subscribe(changes.append)
    run(breaker, FAILURE, FAILURE, FAILURE)
    breaker.trip()  # open already: no change
    clock.advance(60.0)
    assert breaker.state is HALF_OPEN
    assert len(changes) == 1  # looking is no change either
    run(breaker, IGNORED, FAILURE)
    clock.advance(60.0)
    run(breaker, SUCCESS)
    breaker.reset()
    assert changes == [
        StateChange("github", CLOSED, OPEN, 1_000.0),
        StateChange("github", OPEN, HALF_OPEN, 1_060.0),
        StateChange("github", HALF_OPEN, OPEN, 1_060.0),
        StateChange("github", OPEN, HALF_OPEN, 1_120.0),
        StateChange("github", HALF_OPEN, CLOSED, 1_120.0),
    ]


def test_each_change_is_logged_once(
    breaker: CircuitBreaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOGGER)
    run(breaker, FAILURE, FAILURE, FAILURE)
    for _ in range(20):
        with pytest.raises(CircuitBreakerOpenError):
            breaker.admit(lease=30.0)
    clock.advance(60.0)
    run(breaker, SUCCESS)
    assert caplog.record_tuples == [
        (LOGGER, logging.WARNING, "circuit breaker 'github' opened: no calls for 60 s"),
        (LOGGER, logging.INFO, "circuit breaker 'github' is half-open: probing"),
        (LOGGER, logging.INFO, "circuit breaker 'github' closed"),
    ]


def test_a_listener_that_subscribes_twice_is_called_once(breaker: CircuitBreaker) -> None:
    changes: list[StateChange] = []
    breaker.subscribe(changes.append)
    breaker.subscribe(changes.append)
    breaker.trip()
    assert len(changes) == 1


def test_a_listener_that_raises_is_logged_and_breaks_nothing(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[StateChange] = []

    def broken(change: StateChange) -> None:
        raise RuntimeError("metrics are down")

    breaker.subscribe(broken)
    breaker.subscribe(changes.append)
    run(breaker, FAILURE, FAILURE, FAILURE)
    assert breaker.state is OPEN
    assert len(changes) == 1
    record = caplog.records[-1]
    assert (record.name, record.levelno) == (LOGGER, logging.ERROR)
    assert record.exc_info is not None
    assert "metrics are down" in caplog.text


def test_a_listener_may_use_the_breaker_and_all_hear_the_changes_in_order(breaker: CircuitBreaker) -> None:
    heard: list[tuple[CircuitState, CircuitState]] = []

    def overrules(change: StateChange) -> None:
        if change.new is OPEN:
            breaker.reset()

    breaker.subscribe(overrules)
    breaker.subscribe(lambda change: heard.append((change.old, change.new)))
    run(breaker, FAILURE, FAILURE, FAILURE)
    assert breaker.state is CLOSED
    assert heard == [(CLOSED, OPEN), (OPEN, CLOSED)]


def test_a_change_is_told_even_after_a_listener_was_interrupted(breaker: CircuitBreaker) -> None:
    heard: list[CircuitState] = []

    def interrupted(change: StateChange) -> None:
        heard.append(change.new)
        if len(heard) == 1:
            raise KeyboardInterrupt

    breaker.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        breaker.trip()
    breaker.reset()
    assert heard == [OPEN, CLOSED]


def test_without_a_name_the_message_has_none(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker(clock=clock)
    breaker.trip()
    assert caplog.messages == ["circuit breaker opened: no calls for 60 s"]
    with pytest.raises(CircuitBreakerOpenError, match=r"^circuit breaker is open: nothing was sent"):
        breaker.admit(lease=1.0)


def test_repr_says_name_and_state(breaker: CircuitBreaker) -> None:
    assert repr(breaker) == "CircuitBreaker(name='github', state='closed')"


# -- binding -----------------------------------------------------------------------------------------------------


def test_a_breaker_without_clock_and_name_takes_the_first_it_is_given(clock: FakeClock) -> None:
    breaker = CircuitBreaker()
    breaker.bind(clock, "github")
    breaker.bind(FakeClock(start=5e6), "other")
    assert breaker.name == "github"
    breaker.trip()
    clock.advance(60.0)
    assert breaker.state is HALF_OPEN


def test_binding_leaves_a_closed_circuit_alone(clock: FakeClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2)
    ticket = breaker.admit(lease=1.0)
    breaker.record(ticket, FAILURE)
    breaker.bind(clock)
    assert breaker.state is CLOSED
    breaker.record(ticket, FAILURE)
    assert breaker.state is OPEN


def test_a_breaker_with_clock_and_name_keeps_them(breaker: CircuitBreaker, clock: FakeClock) -> None:
    breaker.bind(FakeClock(), "other")
    assert breaker.name == "github"
    breaker.trip()
    clock.advance(60.0)
    assert breaker.state is HALF_OPEN


@pytest.mark.parametrize("start", [1.0, 1e12])
def test_a_circuit_that_was_opened_before_it_got_its_clock_recovers_by_the_new_one(start: float) -> None:
    breaker, clock = CircuitBreaker(), FakeClock(start=start)
    breaker.trip()
    breaker.bind(clock)
    assert breaker.state is OPEN
    with pytest.raises(CircuitBreakerOpenError) as refused:
        breaker.admit(lease=1.0)
    assert refused.value.recovery_timeout == pytest.approx(60.0)
    clock.advance(60.0)
    assert breaker.state is HALF_OPEN


# -- bad arguments -----------------------------------------------------------------------------------------------

NOT_COUNTS = [0, -1, 1.5, math.nan, "1", None, True]
NOT_SECONDS = [0, -1.0, math.nan, math.inf, "60", None, True]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("failure_threshold", value) for value in NOT_COUNTS),
        *(("half_open_max_calls", value) for value in NOT_COUNTS),
        *(("minimum_calls", value) for value in NOT_COUNTS),
        *(("recovery_timeout", value) for value in NOT_SECONDS),
        *(("window", value) for value in NOT_SECONDS),
        *(("failure_rate", value) for value in [0, -0.1, 1.1, math.nan, math.inf, "0.5", True]),
    ],
)
def test_a_bad_argument_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"CircuitBreaker: {argument}: ") as refused:
        CircuitBreaker(**{argument: value})
    assert [problem.argument for problem in refused.value.problems] == [argument]


def test_all_bad_arguments_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"failure_threshold: .*window: "):
        CircuitBreaker(failure_threshold=0, window=0)


@pytest.mark.parametrize("lease", [0.0, -1.0, math.nan, math.inf])
def test_a_lease_that_never_ends_or_never_begins_is_refused(breaker: CircuitBreaker, lease: float) -> None:
    with pytest.raises(ConfigurationError, match="lease"):
        breaker.admit(lease=lease)


def test_the_bounds_themselves_are_allowed(clock: FakeClock) -> None:
    breaker = CircuitBreaker(1, 0.5, 1, failure_rate=1, window=0.5, minimum_calls=1, clock=clock)
    run(breaker, FAILURE)
    clock.advance(0.5)
    assert breaker.state is HALF_OPEN


def test_the_documented_defaults_of_the_window(clock: FakeClock) -> None:
    breaker = CircuitBreaker(100, failure_rate=1.0, clock=clock)
    run(breaker, *[FAILURE] * 9)
    clock.advance(30.0)
    run(breaker, *[FAILURE] * 9)
    assert breaker.state is CLOSED
    clock.advance(29.9)
    run(breaker, FAILURE)
    assert breaker.state is OPEN


def test_the_documented_defaults(clock: FakeClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    assert (breaker.recovery_timeout, breaker.name) == (60.0, None)
    run(breaker, *[FAILURE] * 4)
    assert breaker.state is CLOSED
    run(breaker, FAILURE)
    assert breaker.state is OPEN
    clock.advance(60.0)
    breaker.admit(lease=1.0)
    with pytest.raises(CircuitBreakerOpenError):
        breaker.admit(lease=1.0)


async def test_a_probe_without_a_time_limit_keeps_its_place() -> None:
    clock, hold = FakeClock(autojump=False), asyncio.Event()
    under_way = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal under_way
        under_way += 1
        await hold.wait()
        return httpx.Response(200)

    breaker = CircuitBreaker(1, 10.0)
    transport = httpx.MockTransport(answer)
    async with AsyncHTTPClient(
        "https://api.test", circuit_breaker=breaker, clock=clock, timeout=None, transport=transport
    ) as client:
        breaker.trip()
        clock.advance(10.0)
        probe = asyncio.create_task(client.get("/"))
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(11.0)
        with pytest.raises(CircuitBreakerOpenError):
            await client.get("/")
        assert under_way == 1
        hold.set()
        await probe


async def test_an_error_of_ours_that_a_transport_raises_without_a_request_counts_too() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise HTTPRequestError("boom")

    breaker = CircuitBreaker(1)
    options: dict[str, Any] = {"circuit_breaker": breaker, "transport": httpx.MockTransport(fail)}
    async with AsyncHTTPClient("https://api.test", config=ClientConfig(retry_attempts=1), **options) as client:
        with pytest.raises(HTTPRequestError, match="boom"):
            await client.get("/")
    assert breaker.state is CircuitState.OPEN
