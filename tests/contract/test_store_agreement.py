"""The stores are driven with the same random sequences, and every answer is compared."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastapi_http_client.policies.rate_limit import TokenBucket
from fastapi_http_client.policies.shared_bucket import Limit, SharedBucket
from fastapi_http_client.stores.base import CircuitRules, CircuitView
from tests.contract.stores import Timed, TimedMemory, TimedRedis
from tests.valkey import ValkeyProcess

LIMITS = [Limit.of(*pair) for pair in [(10, 1), (10, 5), (3, 7), (0.37, 2), (1234.5, 50), (250_000.0, 1000)]]
times = st.one_of(st.integers(0, 50), st.integers(0, 5_000_000))

limit_steps = st.tuples(
    st.just("take"),
    st.sampled_from(LIMITS),
    st.integers(0, 8),  # least
    st.integers(0, 8),  # and so many more at most
    st.sampled_from([0, 3000, 100_000]),
    st.sampled_from([0, 0, 1, 4]),
)
rules = st.builds(
    CircuitRules,
    failure_threshold=st.integers(1, 4),
    recovery_timeout=st.integers(1, 3_000_000),
    half_open_max_calls=st.integers(1, 3),
    failure_rate=st.sampled_from([None, 0.3, 0.5, 1.0]),
    window=st.integers(1, 500_000).map(lambda tenth: tenth * 10),
    minimum_calls=st.integers(1, 6),
)
circuit_steps = st.one_of(
    st.tuples(st.just("admit"), st.integers(1, 3_000_000)),
    st.tuples(st.just("record"), st.integers(0, 30), st.text("SFI", max_size=6)),
    st.tuples(st.just("force"), st.sampled_from(["open", "closed"])),
)
token_steps = st.one_of(
    st.tuples(st.just("token"), st.sampled_from("abc"), st.integers(-1, 4), st.integers(1, 3_000_000)),
    st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(1, 3_000_000)),
    st.tuples(st.just("release"), st.sampled_from("abc")),
)


class Both:
    """Two stores on the same time, and a loop to ask them on."""

    def __init__(self, server: ValkeyProcess) -> None:
        self._runner = asyncio.Runner()
        self._redis = TimedRedis(server.url, "agreement")
        self._names = (f"n{number}" for number in itertools.count())
        self._runner.run(self._redis.store.connect())

    def example(self) -> tuple[tuple[Timed, Timed], str]:
        self._redis.advance(0)
        memory = TimedMemory()
        memory.advance(self._redis._now - round(memory._clock.monotonic() * 1e6))
        return (memory, self._redis), next(self._names)

    def run(self, steps: Any) -> None:
        self._runner.run(steps)

    def close(self) -> None:
        self._runner.run(self._redis.store.aclose())
        self._redis.close()
        self._runner.close()


@pytest.fixture(scope="module")
def both(server: ValkeyProcess) -> Iterator[Both]:
    pair = Both(server)
    yield pair
    pair.close()


examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(steps=st.lists(st.tuples(times, limit_steps), max_size=25))
def test_every_store_gives_the_same_tokens(both: Both, steps: list[Any]) -> None:
    stores, name = both.example()

    async def drive() -> None:
        for passed, (_, limit, least, more, ahead, returned) in steps:
            answers = []
            for timed in stores:
                timed.advance(passed)
                answers.append(
                    await timed.store.take(name, limit, least=least, most=least + more, ahead=ahead, returned=returned)
                )
            assert answers[0] == answers[1]

    both.run(drive())


@examples
@given(rules=rules, steps=st.lists(st.tuples(times, circuit_steps), max_size=40))
def test_every_store_decides_the_same_about_a_circuit(both: Both, rules: CircuitRules, steps: list[Any]) -> None:
    stores, name = both.example()

    async def drive() -> None:
        admitted: list[tuple[str, tuple[int, ...]]] = []  # the probe's name, and the epoch as each store calls it
        for number, (passed, (operation, *arguments)) in enumerate(steps):
            views: list[CircuitView] = []
            for index, timed in enumerate(stores):
                timed.advance(passed)
                store = timed.store
                if operation == "admit":
                    views.append(await store.admit(name, rules, probe=f"p{number}", lease=arguments[0]))
                elif operation == "force":
                    views.append(await store.force(name, rules, arguments[0]))
                elif admitted:
                    probe, epochs = admitted[arguments[0] % len(admitted)]
                    outcomes = arguments[1][:1] if probe else arguments[1]
                    views.append(await store.record(name, rules, epoch=epochs[index], probe=probe, outcomes=outcomes))
            assert len({(view.state, view.wait, view.admitted) for view in views}) <= 1
            if operation == "admit" and views[0].admitted:
                probe = f"p{number}" if views[0].state == "half_open" else ""
                admitted.append((probe, tuple(view.epoch for view in views)))

    both.run(drive())


@examples
@given(steps=st.lists(st.tuples(times, token_steps), max_size=25))
def test_every_store_hands_out_the_same_token(both: Both, steps: list[Any]) -> None:
    stores, name = both.example()

    async def drive() -> None:
        versions: list[tuple[int, ...]] = []
        for passed, (operation, holder, *rest) in steps:
            answers: list[Any] = []
            for index, timed in enumerate(stores):
                timed.advance(passed)
                store = timed.store
                if operation == "token":
                    unwanted = versions[rest[0]][index] if -1 < rest[0] < len(versions) else 0
                    answer = await store.token(name, holder=holder, unwanted=unwanted, lease=rest[1])
                    known = [version[index] for version in versions]
                    number = known.index(answer.version) if answer.version else None
                    answers.append((answer.verdict, answer.value, answer.left, number))
                elif operation == "put":
                    value = str(len(versions)).encode()
                    answers.append(await store.put_token(name, holder=holder, value=value, lifetime=rest[0]))
                else:
                    await store.release_token(name, holder=holder)
                    answers.append(None)
            if operation == "put":
                assert bool(answers[0]) == bool(answers[1])
                if answers[0]:
                    versions.append(tuple(answers))
            else:
                assert answers[0] == answers[1]

    both.run(drive())


@settings(max_examples=200)
@given(
    rate=st.floats(0.01, 1e6),
    burst=st.integers(1, 100),
    steps=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 5)), max_size=60),
)
def test_the_shared_bucket_gives_what_the_bucket_of_one_process_gives(
    rate: float, burst: int, steps: list[tuple[int, int]]
) -> None:
    """Up to the rounding of a price to a millionth, and never more."""
    limit = Limit.of(rate, burst)
    shared, own, now = SharedBucket(limit, 0), TokenBucket(rate, burst), 0
    given_by_shared = given_by_own = 0
    for passed, tokens in steps:
        now += passed
        tokens = min(tokens, burst)
        given_by_shared += shared.take(limit, now, least=tokens, most=tokens, ahead=0, returned=0).tokens
        given_by_own += 0 if own.take(tokens, now / 1e6) else tokens
    elapsed = now / 1e6
    assert given_by_shared <= burst + rate * elapsed
    assert abs(given_by_shared - given_by_own) <= 5 + 1e-5 * rate * elapsed


@pytest.mark.parametrize(("rate", "burst"), [(1e10, 1), (1e-300, 1), (1.0, 2**53)])
def test_a_limit_that_cannot_be_counted_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="must be at most"):
        Limit.of(rate, burst)
