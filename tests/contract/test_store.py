"""What every store must do: one suite over all of them."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import OutOfMemoryError

from fastapi_http_client.policies.circuit_breaker import CircuitState
from fastapi_http_client.policies.shared_bucket import Grant, Limit
from fastapi_http_client.stores.base import CircuitRules, TokenAnswer
from tests.contract.stores import Timed, TimedRedis

SECOND = 1_000_000
TEN_A_SECOND = Limit.of(10, 5)
RULES = CircuitRules(
    failure_threshold=3,
    recovery_timeout=2 * SECOND,
    half_open_max_calls=2,
    failure_rate=None,
    window=10 * SECOND,
    minimum_calls=4,
)


# -- limits


async def test_a_bucket_gives_its_burst_and_then_its_rate(timed: Timed) -> None:
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=8) == Grant(5, 0)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=8) == Grant(0, 100_000)
    timed.advance(250_000)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=8) == Grant(2, 0)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=1) == Grant(0, 50_000)


async def test_fewer_than_the_least_are_not_given(timed: Timed) -> None:
    assert await timed.store.take("a", TEN_A_SECOND, least=4, most=4) == Grant(4, 0)
    assert await timed.store.take("a", TEN_A_SECOND, least=3, most=3) == Grant(0, 200_000)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=1) == Grant(1, 0)


async def test_a_token_may_be_given_a_moment_ahead_and_says_so(timed: Timed) -> None:
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=5) == Grant(5, 0)
    timed.advance(96_000)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=5, ahead=5_000) == Grant(1, 4_000)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=5, ahead=5_000) == Grant(0, 104_000)


async def test_returned_tokens_can_be_taken_again_but_never_above_the_burst(timed: Timed) -> None:
    await timed.store.take("a", TEN_A_SECOND, least=5, most=5)
    await timed.store.take("a", TEN_A_SECOND, returned=2)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=9) == Grant(2, 0)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=9, returned=50) == Grant(5, 0)


async def test_tokens_that_come_back_while_others_were_given_ahead_are_dropped(timed: Timed) -> None:
    await timed.store.take("a", TEN_A_SECOND, least=5, most=5)
    await timed.store.take("a", TEN_A_SECOND, least=1, most=1, ahead=100_000)
    await timed.store.take("a", TEN_A_SECOND, returned=1)
    assert (await timed.store.take("a", TEN_A_SECOND, least=1, most=1)).tokens == 0


async def test_more_tokens_than_a_bucket_holds_are_given_when_it_is_full_and_paid_off_before_use(timed: Timed) -> None:
    assert await timed.store.take("a", TEN_A_SECOND, least=7, most=7) == Grant(7, 200_000)
    assert await timed.store.take("a", TEN_A_SECOND, least=1, most=1) == Grant(0, 300_000)


async def test_a_changed_limit_finds_the_bucket_as_full_as_it_was(timed: Timed) -> None:
    await timed.store.take("a", TEN_A_SECOND, least=3, most=3)
    assert await timed.store.take("a", Limit.of(1000, 50), least=1, most=99) == Grant(20, 0)


async def test_names_do_not_share_a_bucket(timed: Timed) -> None:
    assert await timed.store.take("a", TEN_A_SECOND, least=5, most=5) == Grant(5, 0)
    assert await timed.store.take("b", TEN_A_SECOND, least=5, most=5) == Grant(5, 0)


async def test_takers_at_the_same_time_never_get_more_than_there_is(timed: Timed) -> None:
    grants = await asyncio.gather(*(timed.store.take("a", TEN_A_SECOND, least=1, most=2) for _ in range(20)))
    assert sum(grant.tokens for grant in grants) == 5


# -- circuits


async def closed_epoch(timed: Timed) -> int:
    view = await timed.store.admit("c", RULES, probe="p", lease=SECOND)
    assert (view.state, view.admitted) == (CircuitState.CLOSED, True)
    return view.epoch


async def record(timed: Timed, epoch: int, outcomes: str, probe: str = "") -> tuple[CircuitState, int]:
    view = await timed.store.record("c", RULES, epoch=epoch, probe=probe, outcomes=outcomes)
    return view.state, view.wait


async def admit(timed: Timed, probe: str, lease: int = SECOND) -> tuple[CircuitState, bool, int]:
    view = await timed.store.admit("c", RULES, probe=probe, lease=lease)
    return view.state, view.admitted, view.wait


async def test_failures_in_a_row_open_the_circuit(timed: Timed) -> None:
    epoch = await closed_epoch(timed)
    assert await record(timed, epoch, "FFSFF") == (CircuitState.CLOSED, 0)
    assert await record(timed, epoch, "IF") == (CircuitState.OPEN, 2 * SECOND)
    timed.advance(SECOND // 2)
    assert await admit(timed, "p") == (CircuitState.OPEN, False, 3 * SECOND // 2)


async def test_exactly_so_many_probes_are_admitted(timed: Timed) -> None:
    await record(timed, await closed_epoch(timed), "FFF")
    timed.advance(2 * SECOND)
    answers = await asyncio.gather(*(timed.store.admit("c", RULES, probe=f"p{n}", lease=SECOND) for n in range(50)))
    assert sum(answer.admitted for answer in answers) == 2
    assert {answer.state for answer in answers} == {CircuitState.HALF_OPEN}


async def test_no_refused_call_lengthens_the_lease_of_a_lost_probe(timed: Timed) -> None:
    await record(timed, await closed_epoch(timed), "FFF")
    timed.advance(2 * SECOND)
    await admit(timed, "lost 1")
    await admit(timed, "lost 2")
    for passed in range(10):
        assert await admit(timed, "late") == (CircuitState.HALF_OPEN, False, SECOND - passed * SECOND // 10)
        timed.advance(SECOND // 10)
    assert await admit(timed, "late") == (CircuitState.HALF_OPEN, True, 0)


async def probing(timed: Timed, *probes: str) -> int:
    await record(timed, await closed_epoch(timed), "FFF")
    timed.advance(2 * SECOND)
    views = [await timed.store.admit("c", RULES, probe=probe, lease=SECOND) for probe in probes]
    assert all(view.admitted for view in views)
    return views[0].epoch


async def test_a_good_probe_closes_and_the_other_one_no_longer_counts(timed: Timed) -> None:
    epoch = await probing(timed, "p1", "p2")
    assert await record(timed, epoch, "S", "p1") == (CircuitState.CLOSED, 0)
    assert await record(timed, epoch, "F", "p2") == (CircuitState.CLOSED, 0)


async def test_a_bad_probe_opens_again_for_the_whole_time(timed: Timed) -> None:
    epoch = await probing(timed, "p1")
    timed.advance(SECOND // 2)
    assert await record(timed, epoch, "F", "p1") == (CircuitState.OPEN, 2 * SECOND)


async def test_a_cancelled_probe_frees_its_place(timed: Timed) -> None:
    epoch = await probing(timed, "p1", "p2")
    assert await record(timed, epoch, "I", "p1") == (CircuitState.HALF_OPEN, 0)
    assert await admit(timed, "p3") == (CircuitState.HALF_OPEN, True, 0)
    assert (await admit(timed, "p4"))[1] is False


async def test_a_result_after_the_end_of_the_lease_is_dropped(timed: Timed) -> None:
    epoch = await probing(timed, "p1")
    timed.advance(SECOND)
    assert await record(timed, epoch, "S", "p1") == (CircuitState.HALF_OPEN, 0)


async def test_results_of_an_earlier_epoch_are_dropped(timed: Timed) -> None:
    early = await closed_epoch(timed)
    epoch = await probing(timed, "p1")
    await record(timed, epoch, "S", "p1")
    assert await record(timed, early, "FFFFFF") == (CircuitState.CLOSED, 0)
    assert await record(timed, await closed_epoch(timed), "FFF") == (CircuitState.OPEN, 2 * SECOND)


async def test_a_circuit_is_opened_and_closed_by_hand(timed: Timed) -> None:
    epoch = await closed_epoch(timed)
    view = await timed.store.force("c", RULES, "open")
    assert (view.state, view.wait) == (CircuitState.OPEN, 2 * SECOND)
    assert (await timed.store.force("c", RULES, "closed")).state is CircuitState.CLOSED
    assert await record(timed, epoch, "FFF") == (CircuitState.CLOSED, 0)


async def test_a_failure_rate_opens_the_circuit(timed: Timed) -> None:
    rules = CircuitRules(
        failure_threshold=99,
        recovery_timeout=SECOND,
        half_open_max_calls=1,
        failure_rate=0.5,
        window=10 * SECOND,
        minimum_calls=4,
    )
    epoch = (await timed.store.admit("c", rules, probe="p", lease=SECOND)).epoch
    view = await timed.store.record("c", rules, epoch=epoch, probe="", outcomes="FSF")
    assert view.state is CircuitState.CLOSED
    timed.advance(10 * SECOND)  # all of them are too old by now
    view = await timed.store.record("c", rules, epoch=epoch, probe="", outcomes="SFS")
    assert view.state is CircuitState.CLOSED
    view = await timed.store.record("c", rules, epoch=epoch, probe="", outcomes="F")
    assert view.state is CircuitState.OPEN


# -- tokens


async def verdict(timed: Timed, holder: str, unwanted: int = 0, lease: int = SECOND) -> str:
    return (await timed.store.token("t", holder=holder, unwanted=unwanted, lease=lease)).verdict


async def test_one_of_all_is_told_to_fetch_the_token(timed: Timed) -> None:
    verdicts = await asyncio.gather(*(verdict(timed, f"h{n}") for n in range(20)))
    assert sorted(verdicts) == ["fetch", *["wait"] * 19]


async def test_the_token_is_used_until_its_end(timed: Timed) -> None:
    assert await verdict(timed, "h1") == "fetch"
    version = await timed.store.put_token("t", holder="h1", value=b"\x00secret", lifetime=10 * SECOND)
    timed.advance(4 * SECOND)
    answer = await timed.store.token("t", holder="h2", unwanted=0, lease=SECOND)
    assert (answer.verdict, answer.value, answer.version, answer.left) == ("use", b"\x00secret", version, 6 * SECOND)
    timed.advance(6 * SECOND)
    assert await verdict(timed, "h2") == "fetch"


async def test_a_token_that_is_not_wanted_is_fetched_anew_once(timed: Timed) -> None:
    await verdict(timed, "h1")
    version = await timed.store.put_token("t", holder="h1", value=b"1", lifetime=10 * SECOND)
    assert await verdict(timed, "h1", unwanted=version) == "fetch"
    assert await verdict(timed, "h2", unwanted=version) == "wait"
    assert await verdict(timed, "h3") == "use"
    newer = await timed.store.put_token("t", holder="h1", value=b"2", lifetime=10 * SECOND)
    assert newer > version
    answer = await timed.store.token("t", holder="h2", unwanted=version, lease=SECOND)
    assert (answer.verdict, answer.value) == ("use", b"2")


async def test_the_lock_of_a_lost_holder_ends_and_its_token_is_not_stored(timed: Timed) -> None:
    assert await verdict(timed, "lost") == "fetch"
    timed.advance(SECOND // 2)
    assert (await timed.store.token("t", holder="h2", unwanted=0, lease=SECOND)).left == SECOND // 2
    timed.advance(SECOND // 2)
    assert await verdict(timed, "h2") == "fetch"
    assert await timed.store.put_token("t", holder="lost", value=b"late", lifetime=SECOND) == 0
    assert await verdict(timed, "h3") == "wait"


async def test_the_holder_keeps_the_lock_by_asking_again_and_can_give_it_up(timed: Timed) -> None:
    for _ in range(3):
        assert await verdict(timed, "h1") == "fetch"
        timed.advance(SECOND // 2)
    assert await verdict(timed, "h2") == "wait"
    await timed.store.release_token("t", holder="h2")
    assert await verdict(timed, "h2") == "wait"
    await timed.store.release_token("t", holder="h1")
    assert await verdict(timed, "h2") == "fetch"


# -- processes


async def test_processes_are_counted_while_they_say_that_they_are_there(timed: Timed) -> None:
    presence = timed.store.presence
    assert await presence("processes", member="a", lease=2 * SECOND) == 1
    assert await presence("processes", member="b", lease=4 * SECOND) == 2
    timed.advance(2 * SECOND)
    assert await presence("processes", member="c", lease=4 * SECOND) == 2
    assert await presence("processes", member="b", lease=0) == 1


# -- a server whose clock goes back, after a restore or to a replica that is behind


HOUR = 3600 * SECOND


async def test_a_limit_goes_on_when_the_servers_clock_has_gone_back(redis: TimedRedis) -> None:
    assert await redis.store.take("a", TEN_A_SECOND, least=1, most=5) == Grant(5, 0)
    redis.advance(-HOUR)
    assert await redis.store.take("a", TEN_A_SECOND, least=1, most=5) == Grant(0, 100_000)
    redis.advance(200_000)
    assert await redis.store.take("a", TEN_A_SECOND, least=1, most=5) == Grant(2, 0)


async def test_an_open_circuit_recovers_in_time_when_the_servers_clock_has_gone_back(redis: TimedRedis) -> None:
    opened = await redis.store.force("a", RULES, "open")
    redis.advance(-HOUR)
    view = await redis.store.record("a", RULES, epoch=opened.epoch, probe="", outcomes="")
    assert (view.state, view.wait) == (CircuitState.OPEN, 2 * SECOND)
    redis.advance(2 * SECOND)
    view = await redis.store.admit("a", RULES, probe="p", lease=SECOND)
    assert (view.state, view.admitted) == (CircuitState.HALF_OPEN, True)
    redis.advance(-HOUR)
    assert (await redis.store.admit("a", RULES, probe="q", lease=SECOND)).admitted
    assert (await redis.store.admit("a", RULES, probe="r", lease=SECOND)).wait == SECOND
    view = await redis.store.record("a", RULES, epoch=view.epoch, probe="p", outcomes="S")
    assert view.state is CircuitState.CLOSED


async def test_a_tokens_lock_and_life_end_in_time_when_the_servers_clock_has_gone_back(redis: TimedRedis) -> None:
    assert (await redis.store.token("a", holder="one", unwanted=0, lease=SECOND)).verdict == "fetch"
    redis.advance(-HOUR)
    assert await redis.store.token("a", holder="two", unwanted=0, lease=SECOND) == TokenAnswer("wait", left=SECOND)
    redis.advance(SECOND)
    assert (await redis.store.token("a", holder="two", unwanted=0, lease=SECOND)).verdict == "fetch"
    await redis.store.put_token("a", holder="two", value=b"t", lifetime=10 * SECOND)
    redis.advance(-HOUR)
    assert (await redis.store.token("a", holder="one", unwanted=0, lease=SECOND)).left == 10 * SECOND


async def test_processes_that_have_gone_are_forgotten_when_the_servers_clock_has_gone_back(redis: TimedRedis) -> None:
    await redis.store.presence("all", member="gone", lease=SECOND)
    redis.advance(-HOUR)
    assert await redis.store.presence("all", member="here", lease=SECOND) == 1


async def test_a_store_that_is_full_says_so_and_forgets_nobody(redis: TimedRedis) -> None:
    for member in ("one", "two", "three"):
        await redis.store.presence("all", member=member, lease=HOUR)
    redis.admin.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await redis.store.presence("all", member="one", lease=HOUR)
    finally:
        redis.admin.config_set("maxmemory", 0)
    assert await redis.store.presence("all", member="one", lease=HOUR) == 3
