"""The circuit breaker's state machine, without clock, loop or log."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastapi_http_client.policies.circuit_breaker import (
    Circuit,
    CircuitRules,
    CircuitState,
    Outcome,
    Refusal,
    SlidingWindow,
    Ticket,
)

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
SUCCESS, FAILURE, IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED
LEASE = 30.0


def circuit(
    failure_threshold: int = 3,
    recovery_timeout: float = 60.0,
    half_open_max_calls: int = 1,
    failure_rate: float | None = None,
    window: float = 30.0,
    minimum_calls: int = 10,
) -> Circuit:
    return Circuit(
        CircuitRules(
            failure_threshold=failure_threshold,
            recovery_timeout=recovery_timeout,
            half_open_max_calls=half_open_max_calls,
            failure_rate=failure_rate,
            window=window,
            minimum_calls=minimum_calls,
        )
    )


def admitted(circuit: Circuit, now: float = 0.0, lease: float = LEASE) -> Ticket:
    answer = circuit.admit(now, lease)
    assert isinstance(answer, Ticket)
    return answer


def refused(circuit: Circuit, now: float = 0.0, lease: float = LEASE) -> float:
    answer = circuit.admit(now, lease)
    assert isinstance(answer, Refusal)
    return answer.seconds


def run(circuit: Circuit, *outcomes: Outcome, now: float = 0.0) -> None:
    for outcome in outcomes:
        circuit.record(admitted(circuit, now), outcome, now)


def half_open(half_open_max_calls: int = 1) -> tuple[Circuit, Ticket]:
    """A circuit that opened at 0 and admitted its first probe at 60."""
    broken = circuit(half_open_max_calls=half_open_max_calls)
    run(broken, FAILURE, FAILURE, FAILURE)
    return broken, admitted(broken, 60.0)


# -- closed ------------------------------------------------------------------------------------------------------


def test_the_states_have_the_usual_names() -> None:
    assert [state.value for state in CircuitState] == ["closed", "open", "half_open"]
    assert f"{CircuitState.OPEN}" == "open"


def test_opens_at_the_threshold_and_not_before() -> None:
    breaker = circuit()
    run(breaker, FAILURE, FAILURE)
    assert breaker.state is CLOSED
    run(breaker, FAILURE)
    assert breaker.state is OPEN


def test_a_success_starts_the_count_again() -> None:
    breaker = circuit()
    run(breaker, FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE)
    assert breaker.state is CLOSED


def test_an_ignored_call_neither_counts_nor_starts_the_count_again() -> None:
    breaker = circuit()
    run(breaker, *[IGNORED] * 100)
    assert breaker.state is CLOSED
    run(breaker, FAILURE, IGNORED, FAILURE, IGNORED, FAILURE)
    assert breaker.state is OPEN


def test_closed_calls_share_one_ticket() -> None:
    breaker = circuit()
    assert admitted(breaker) is admitted(breaker)


# -- the failure rate --------------------------------------------------------------------------------------------


def test_alternating_failures_open_by_the_rate_and_never_by_the_count() -> None:
    by_count, by_rate = circuit(), circuit(failure_rate=0.5)
    for second in range(5):
        for breaker in (by_count, by_rate):
            assert breaker.state is CLOSED
            run(breaker, FAILURE, SUCCESS, now=float(second))
    assert by_count.state is CLOSED
    assert by_rate.state is OPEN


def test_the_rate_says_nothing_below_the_minimum_of_calls() -> None:
    breaker = circuit(failure_threshold=100, failure_rate=0.1)
    run(breaker, *[FAILURE] * 9)
    assert breaker.state is CLOSED
    run(breaker, SUCCESS)
    assert breaker.state is OPEN


@pytest.mark.parametrize("percent", range(1, 101))
def test_the_rate_is_reached_exactly(percent: int) -> None:
    breaker = circuit(failure_threshold=1000, failure_rate=percent / 100, minimum_calls=100)
    run(breaker, *[SUCCESS] * (100 - percent), *[FAILURE] * (percent - 1))
    assert breaker.state is CLOSED
    run(breaker, FAILURE)
    assert breaker.state is OPEN


def test_just_below_the_rate_it_stays_closed() -> None:
    breaker = circuit(failure_threshold=1000, failure_rate=0.5)
    run(breaker, *[SUCCESS, FAILURE, SUCCESS] * 50)
    assert breaker.state is CLOSED


def test_ignored_calls_are_no_part_of_the_rate() -> None:
    breaker = circuit(failure_threshold=100, failure_rate=0.5)
    run(breaker, *[FAILURE] * 9, *[IGNORED] * 50)
    assert breaker.state is CLOSED


@pytest.mark.parametrize(("later", "state"), [(29.9, OPEN), (30.1, CLOSED), (1e9, CLOSED), (-5.0, CLOSED)])
def test_calls_older_than_the_window_do_not_count(later: float, state: CircuitState) -> None:
    breaker = circuit(failure_threshold=100, failure_rate=0.9)
    run(breaker, *[FAILURE] * 9, now=1_000.0)
    run(breaker, FAILURE, now=1_000.0 + later)
    assert breaker.state is state


def test_a_recovered_circuit_starts_with_an_empty_window() -> None:
    breaker = circuit(failure_threshold=100, failure_rate=0.5, recovery_timeout=1.0)
    run(breaker, *[FAILURE] * 10)
    run(breaker, SUCCESS, now=1.0)
    assert breaker.state is CLOSED
    run(breaker, *[FAILURE] * 9, now=1.0)
    assert breaker.state is CLOSED


@given(st.lists(st.tuples(st.floats(0.0, 12.0), st.booleans()), max_size=80))
def test_the_window_holds_the_last_seconds_to_a_tenth(calls: list[tuple[float, bool]]) -> None:
    """Everything younger than nine tenths of the window, nothing older than the window."""
    window, now, seen = SlidingWindow(10.0), 0.0, []
    for pause, failed in calls:
        now += pause
        window.add(failed, now)
        seen.append((now, failed))
        surely = [f for at, f in seen if now - at < 9.0 - 1e-6]
        perhaps = [f for at, f in seen if now - at <= 10.0 + 1e-6]
        assert len(surely) <= window.calls <= len(perhaps)
        assert sum(surely) <= window.failures <= sum(perhaps)


# -- open --------------------------------------------------------------------------------------------------------


def test_an_open_circuit_says_how_long_until_the_next_probe() -> None:
    breaker = circuit()
    run(breaker, FAILURE, FAILURE, FAILURE, now=1_000.0)
    assert refused(breaker, 1_000.0) == 60.0
    assert refused(breaker, 1_059.5) == 0.5
    assert breaker.state_at(1_059.5) is OPEN


def test_after_the_recovery_timeout_it_is_half_open_and_one_probe_goes_out() -> None:
    breaker = circuit()
    run(breaker, FAILURE, FAILURE, FAILURE, now=1_000.1)
    assert breaker.state_at(1_060.1) is HALF_OPEN
    assert breaker.state is OPEN  # looking changes nothing
    admitted(breaker, 1_060.1)
    assert breaker.state is HALF_OPEN


@given(st.floats(1.0, 1e7), st.floats(1e-3, 1e4), st.floats(0.0, 0.999))
def test_who_comes_back_when_told_is_not_refused_again(start: float, recovery: float, share: float) -> None:
    breaker = circuit(recovery_timeout=recovery)
    breaker.trip(start)
    now = start + recovery * share
    answer = breaker.admit(now, LEASE)
    if isinstance(answer, Refusal):
        admitted(breaker, now + answer.seconds)


@pytest.mark.parametrize("early", [0.0, 0.0015])
def test_a_timer_that_ends_a_moment_early_is_in_time(early: float) -> None:
    """Those of uvloop do, by up to 1.5 ms."""
    breaker = circuit()
    breaker.trip(1_000.0)
    admitted(breaker, 1_000.0 + refused(breaker, 1_000.0) - early)
    again = refused(breaker, 1_060.0)
    admitted(breaker, 1_060.0 + again - early)


def test_a_late_success_does_not_close_an_open_circuit_nor_a_late_failure_prolong_it() -> None:
    breaker = circuit()
    late = [admitted(breaker) for _ in range(5)]
    run(breaker, FAILURE, FAILURE, FAILURE)
    breaker.record(late[0], SUCCESS, 10.0)
    breaker.record(late[1], FAILURE, 50.0)
    assert breaker.state_at(59.0) is OPEN
    assert breaker.state_at(60.0) is HALF_OPEN


# -- half-open ---------------------------------------------------------------------------------------------------


def test_a_probes_success_closes() -> None:
    breaker, probe = half_open()
    breaker.record(probe, SUCCESS, 61.0)
    assert breaker.state is CLOSED
    run(breaker, FAILURE, FAILURE, now=61.0)
    assert breaker.state is CLOSED  # the count starts anew


def test_a_probes_failure_opens_for_another_recovery_timeout() -> None:
    breaker, probe = half_open()
    breaker.record(probe, FAILURE, 61.0)
    assert breaker.state is OPEN
    assert refused(breaker, 61.0) == 60.0


@pytest.mark.parametrize("places", [1, 3])
def test_exactly_so_many_probes_are_under_way(places: int) -> None:
    breaker, _ = half_open(places)
    answers = [breaker.admit(60.0, LEASE) for _ in range(50)]
    assert sum(isinstance(answer, Ticket) for answer in answers) == places - 1


def test_a_full_half_open_circuit_says_when_the_first_lease_ends() -> None:
    breaker, _ = half_open(2)
    admitted(breaker, 65.0, lease=10.0)
    assert refused(breaker, 66.0) == 9.0


def test_an_ignored_probe_frees_its_place_at_once_and_changes_nothing() -> None:
    breaker, probe = half_open()
    refused(breaker, 61.0)
    breaker.record(probe, IGNORED, 61.0)
    assert breaker.state is HALF_OPEN
    admitted(breaker, 61.0)
    refused(breaker, 61.0)


def test_a_lost_probes_place_is_free_when_its_lease_ends() -> None:
    breaker, _ = half_open()
    assert refused(breaker, 60.0 + LEASE - 1.0) == 1.0
    admitted(breaker, 60.0 + LEASE)


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("replaced", [True, False])
def test_what_comes_after_the_lease_is_dropped(outcome: Outcome, replaced: bool) -> None:
    breaker, hung = half_open()
    if replaced:
        admitted(breaker, 60.0 + LEASE)
    breaker.record(hung, outcome, 60.0 + LEASE)
    assert breaker.state is HALF_OPEN
    if replaced:
        refused(breaker, 60.0 + LEASE)  # the late one did not free the other's place
    else:
        admitted(breaker, 60.0 + LEASE)


def test_a_probes_result_counts_once() -> None:
    breaker, probe = half_open(2)
    breaker.record(probe, IGNORED, 61.0)
    breaker.record(probe, FAILURE, 61.0)
    assert breaker.state is HALF_OPEN


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE])
def test_calls_begun_before_it_opened_decide_nothing_in_half_open(outcome: Outcome) -> None:
    breaker = circuit()
    late = admitted(breaker)
    run(breaker, FAILURE, FAILURE, FAILURE)
    admitted(breaker, 60.0)
    breaker.record(late, outcome, 61.0)
    assert breaker.state is HALF_OPEN
    refused(breaker, 61.0)


def test_the_second_probe_of_a_closed_circuit_is_dropped() -> None:
    breaker, first = half_open(2)
    second = admitted(breaker, 60.0)
    breaker.record(first, SUCCESS, 61.0)
    breaker.record(second, FAILURE, 61.0)
    run(breaker, FAILURE, FAILURE, now=61.0)
    assert breaker.state is CLOSED


# -- by hand -----------------------------------------------------------------------------------------------------


def test_trip_opens_and_recovers_as_usual() -> None:
    breaker = circuit()
    breaker.trip(10.0)
    assert breaker.state is OPEN
    assert refused(breaker, 10.0) == 60.0
    run(breaker, SUCCESS, now=70.0)
    assert breaker.state is CLOSED


def test_trip_prolongs_an_open_circuit() -> None:
    breaker = circuit()
    breaker.trip(10.0)
    breaker.trip(40.0)
    assert refused(breaker, 40.0) == 60.0


def test_trip_and_reset_drop_what_began_before() -> None:
    breaker = circuit(failure_threshold=1)
    before = admitted(breaker)
    breaker.reset(1.0)
    breaker.record(before, FAILURE, 1.0)
    assert breaker.state is CLOSED
    probe_breaker, probe = half_open()
    probe_breaker.trip(60.0)
    probe_breaker.record(probe, SUCCESS, 60.0)
    assert probe_breaker.state is OPEN


def test_reset_closes_and_forgets_the_count() -> None:
    breaker = circuit()
    run(breaker, FAILURE, FAILURE)
    breaker.reset(0.0)
    run(breaker, FAILURE, FAILURE)
    assert breaker.state is CLOSED
    run(breaker, FAILURE)
    breaker.reset(0.0)
    assert breaker.state is CLOSED


# -- everything at once ------------------------------------------------------------------------------------------


class Call:
    """What the test itself knows about a ticket."""

    def __init__(self, ticket: Ticket, era: int, expires: float) -> None:
        self.ticket = ticket
        self.era = era
        self.expires = expires


class BreakerMachine(RuleBasedStateMachine):
    """Calls that end, hang, get lost, are cancelled or come late, against a book kept independently of the circuit."""

    @initialize(threshold=st.integers(1, 3), places=st.integers(1, 3), recovery=st.sampled_from([1.0, 5.0, 60.0]))
    def build(self, threshold: int, places: int, recovery: float) -> None:
        self.circuit = circuit(threshold, recovery, places)
        self.threshold, self.places, self.recovery = threshold, places, recovery
        self.now = 1_000.0
        self.state = CLOSED
        self.recovers_at = 0.0
        self.era = 0  # counts the changes of state
        self.failures = 0
        self.calls: list[Call] = []  # without outcome yet; some will never have one
        self.probes: list[Call] = []

    def change(self, state: CircuitState) -> None:
        self.state = state
        self.era += 1
        self.failures = 0
        self.probes = []
        if state is OPEN:
            self.recovers_at = self.now + self.recovery

    def live(self) -> list[Call]:
        return [probe for probe in self.probes if self.now < probe.expires]

    @rule(lease=st.sampled_from([0.5, 5.0, 100.0]))
    def call(self, lease: float) -> None:
        answer = self.circuit.admit(self.now, lease)
        if self.state is OPEN and self.now >= self.recovers_at:
            self.change(HALF_OPEN)
        if self.state is OPEN:
            assert answer == Refusal(self.recovers_at - self.now)
        elif self.state is HALF_OPEN and len(self.live()) == self.places:
            assert isinstance(answer, Refusal)
            assert 0.0 < answer.seconds <= max(probe.expires for probe in self.live()) - self.now
        else:
            assert isinstance(answer, Ticket)
            call = Call(answer, self.era, self.now + lease if self.state is HALF_OPEN else math.inf)
            self.calls.append(call)
            if self.state is HALF_OPEN:
                self.probes.append(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome))
    def end(self, data: st.DataObject, outcome: Outcome) -> None:
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.circuit.record(call.ticket, outcome, self.now)
        counts = call.era == self.era and self.now < call.expires
        if call in self.probes:
            self.probes.remove(call)
        if not counts or outcome is IGNORED:
            return
        if self.state is HALF_OPEN:
            self.change(CLOSED if outcome is SUCCESS else OPEN)
            return
        self.failures = self.failures + 1 if outcome is FAILURE else 0
        if self.failures == self.threshold:
            self.change(OPEN)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def wait_and_ask_again(self, data: st.DataObject) -> None:
        """What a call does that waited for the rate limiter: it gives its ticket back and asks anew."""
        index = data.draw(st.integers(0, len(self.calls) - 1))
        call = self.calls.pop(index)
        was_probe = call.era == self.era and self.state is HALF_OPEN and call in self.live()
        self.circuit.record(call.ticket, IGNORED, self.now)
        if call in self.probes:
            self.probes.remove(call)
        before = len(self.calls)
        self.call(5.0)
        assert not was_probe or len(self.calls) == before + 1

    @rule(seconds=st.sampled_from([0.25, 1.0, 5.0, 60.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def trip(self) -> None:
        self.circuit.trip(self.now)
        self.change(OPEN)

    @rule()
    def reset(self) -> None:
        self.circuit.reset(self.now)
        self.change(CLOSED)

    @invariant()
    def agrees_with_the_book(self) -> None:
        assert self.circuit.state is self.state
        due = self.state is OPEN and self.now >= self.recovers_at
        assert self.circuit.state_at(self.now) is (HALF_OPEN if due else self.state)
        assert len(self.live()) <= self.places

    def teardown(self) -> None:
        """Whatever happened, a healthy upstream closes the circuit: the longest lease and a recovery later at most."""
        if not hasattr(self, "circuit"):
            return
        self.now += max(self.recovery, 100.0)
        answer = self.circuit.admit(self.now, 1.0)
        assert isinstance(answer, Ticket)
        self.circuit.record(answer, SUCCESS, self.now)
        assert self.circuit.state is CLOSED


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=150, stateful_step_count=40)
