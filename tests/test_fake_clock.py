"""The fake clock: time passes when the test says so, or when everybody waits for it."""

from __future__ import annotations

import asyncio
import math

import pytest

from fastapi_http_client.clock import Clock
from fastapi_http_client.fake_clock import FakeClock


async def test_starts_where_it_is_told_and_stands_still() -> None:
    clock: Clock = FakeClock(start=5.0, wall=100.0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert clock.monotonic() == 5.0
    assert clock.wall() == 100.0


async def test_both_times_move_together() -> None:
    clock = FakeClock(start=5.0, wall=100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall(), clock.elapsed) == (7.5, 102.5, 2.5)


async def test_time_jumps_to_the_deadline_of_a_lonely_sleeper() -> None:
    clock = FakeClock()
    await asyncio.wait_for(clock.sleep(3600.0), 5.0)
    assert clock.elapsed == 3600.0


async def test_sleepers_wake_at_their_own_deadlines_in_their_order() -> None:
    clock = FakeClock(start=0.0)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woken.append((name, clock.monotonic()))

    await asyncio.gather(sleeper("a", 3.0), sleeper("b", 1.0, 1.0, 5.0), sleeper("c", 2.5))
    assert woken == [("b", 1.0), ("b", 2.0), ("c", 2.5), ("a", 3.0), ("b", 7.0)]


async def test_equal_deadlines_wake_in_the_order_they_were_asked_for() -> None:
    clock = FakeClock()
    woken: list[int] = []

    async def sleeper(number: int) -> None:
        await clock.sleep(1.0)
        woken.append(number)

    await asyncio.gather(*(sleeper(number) for number in range(100)))
    assert woken == list(range(100))


@pytest.mark.parametrize("turns", [1, 9, 10, 11, 500])
async def test_a_task_that_is_about_to_sleep_gets_its_turn_before_time_jumps(turns: int) -> None:
    clock = FakeClock(start=0.0)
    woken: list[float] = []

    async def sleeper(turns: int, seconds: float) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await clock.sleep(seconds)
        woken.append(clock.monotonic())

    await asyncio.gather(sleeper(0, 10.0), sleeper(turns, 1.0))
    assert woken == [1.0, 10.0]


async def test_traffic_on_a_socket_of_the_same_loop_does_not_take_time() -> None:
    clock = FakeClock()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        sleeper = asyncio.create_task(clock.sleep(1.0))
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(20):
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
        assert clock.elapsed == 0.0
        writer.close()
        await writer.wait_closed()
        await sleeper


async def test_somebody_who_spins_does_not_stop_time() -> None:
    clock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(1.0))
    async with asyncio.timeout(5.0):
        while not sleeper.done():  # the very thing that is tested
            await asyncio.sleep(0)
    assert clock.elapsed == 1.0


async def test_two_clocks_in_one_loop_do_not_stop_each_other() -> None:
    first, second = FakeClock(), FakeClock()
    async with asyncio.timeout(5.0):
        await asyncio.gather(first.sleep(1.0), second.sleep(2.0))
    assert (first.elapsed, second.elapsed) == (1.0, 2.0)


@pytest.mark.parametrize("seconds", [0, 0.0, -1.0, 1e-30, math.nan])
async def test_a_sleep_of_no_time_gives_way_once(seconds: float) -> None:
    clock = FakeClock(autojump=False)
    events: list[str] = []
    other = asyncio.create_task(asyncio.sleep(0))
    other.add_done_callback(lambda _: events.append("other"))
    asyncio.get_running_loop().call_soon(events.append, "turn")
    await clock.sleep(seconds)
    events.append("slept")
    await other
    assert events[:2] == ["turn", "slept"]
    assert clock.elapsed == 0.0


async def test_remembers_every_sleep_that_was_asked_for() -> None:
    clock = FakeClock()
    await asyncio.gather(clock.sleep(2.0), clock.sleep(0), clock.sleep(1.0))
    assert clock.sleeps == [2.0, 0, 1.0]


async def test_without_autojump_only_advance_moves_the_time() -> None:
    clock = FakeClock(autojump=False)
    sleeper = asyncio.create_task(clock.sleep(1.0))
    for _ in range(3000):
        await asyncio.sleep(0)
    assert not sleeper.done()
    clock.advance(1.0)
    await asyncio.wait_for(sleeper, 5.0)
    assert clock.elapsed == 1.0


async def test_advance_wakes_those_who_are_due_by_deadline_and_nobody_else() -> None:
    clock = FakeClock(autojump=False)
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3.0, 1.0, 2.0, 2.1)]
    await asyncio.sleep(0)
    clock.advance(2.0)
    assert woken == []  # they run when the loop does
    await asyncio.sleep(0)
    assert woken == [1.0, 2.0]
    clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert woken == [1.0, 2.0, 2.1, 3.0]


@pytest.mark.parametrize("start", [0.0, 0.7, 1_000.0, 1e9])
async def test_many_small_advances_reach_the_deadline_that_they_add_up_to(start: float) -> None:
    clock = FakeClock(start=start, autojump=False)
    for naps in range(1, 30):
        sleeper = asyncio.create_task(clock.sleep(0.1 * naps))
        await asyncio.sleep(0)
        for nap in range(naps):
            assert not sleeper.done(), nap
            clock.advance(0.1)
            await asyncio.sleep(0)
        assert sleeper.done()
        assert clock.elapsed == pytest.approx(sum(range(naps + 1)) * 0.1, abs=1e-3)


async def test_advance_by_nothing_is_allowed() -> None:
    clock = FakeClock()
    clock.advance(0)
    assert clock.elapsed == 0.0


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_advance_refuses_what_is_no_passing_of_time(seconds: float) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="forward only"):
        clock.advance(seconds)
    assert clock.elapsed == 0.0


async def test_a_cancelled_sleeper_moves_no_time_and_disturbs_nobody() -> None:
    clock = FakeClock()
    cancelled = asyncio.create_task(clock.sleep(1.0))
    other = asyncio.create_task(clock.sleep(5.0))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert clock.elapsed == 0.0
    await other
    assert clock.elapsed == 5.0


async def test_when_only_cancelled_sleepers_are_left_time_stands_still() -> None:
    clock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    sleeper.cancel()
    await asyncio.wait([sleeper])
    for _ in range(50):
        await asyncio.sleep(0)
    assert clock.elapsed == 0.0
    await clock.sleep(2.0)
    assert clock.elapsed == 2.0


async def test_an_endless_sleep_does_not_move_the_time_to_infinity() -> None:
    clock = FakeClock()
    endless = asyncio.create_task(clock.sleep(math.inf))
    await clock.sleep(1.0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert clock.elapsed == 1.0
    endless.cancel()
    await asyncio.wait([endless])


def test_serves_several_loops_one_after_another() -> None:
    clock = FakeClock()
    for _ in range(3):
        asyncio.run(clock.sleep(1.0))
    assert clock.elapsed == 3.0


def test_sleepers_of_a_closed_loop_are_forgotten() -> None:
    clock = FakeClock()

    async def leave_behind() -> None:
        behind.append(asyncio.create_task(clock.sleep(0.5)))
        await asyncio.sleep(0)

    behind: list[asyncio.Task[None]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_behind())
    loop.close()
    asyncio.run(clock.sleep(1.0))
    assert clock.elapsed == 1.0
    assert clock.sleeps == [0.5, 1.0]
    behind[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # it was left pending on purpose


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts its turns."""

    turns = 0

    def _run_once(self) -> None:
        self.turns += 1
        super()._run_once()  # type: ignore[misc]


def test_a_jump_takes_a_few_turns_of_the_loop_and_no_sleeper_none() -> None:
    clock = FakeClock()
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)

        async def naps() -> None:
            for _ in range(10):
                await clock.sleep(1.0)
            loop.turns = 0
            await asyncio.sleep(0.05)  # real time: the loop must block in it, not go round

        runner.run(naps())
        assert loop.turns < 20
        loop.turns = 0
        runner.run(clock.sleep(1.0))
        assert 10 <= loop.turns < 30


def test_a_loop_that_runs_again_after_another_one_has_only_one_watcher() -> None:
    clock = FakeClock()

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(clock.sleep(5.0))
        await asyncio.sleep(0)
        return task

    async def end(task: asyncio.Task[None]) -> None:
        await clock.sleep(1.0)
        await task

    loop = CountingLoop()
    task = loop.run_until_complete(begin())
    asyncio.run(clock.sleep(1.0))
    loop.turns = 0
    loop.run_until_complete(end(task))
    assert loop.turns < 50
    assert clock.elapsed == 5.0
    loop.close()


async def test_many_sleepers_are_quick() -> None:
    clock = FakeClock(start=0.0)
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    await asyncio.gather(*(sleeper(float((n * 7919) % 1009 + 1)) for n in range(1009)))
    assert woken == sorted(woken)
    assert clock.elapsed == 1009.0
