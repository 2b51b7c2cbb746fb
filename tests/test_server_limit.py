"""Calls wait in line while their upstream asks for a pause."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import RateLimitError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.server_limit import ServerLimit

Answer = Callable[[httpx.Request], httpx.Response]


def client_of(answer: Answer, clock: FakeClock, **config: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(
        "https://api.example.com",
        config=ClientConfig(**{"retry_attempts": 1, **config}),
        transport=httpx.MockTransport(answer),
        clock=clock,
        random=lambda: 0.5,
    )


def limited_once(headers: dict[str, str], status: int = 429) -> tuple[Answer, list[str]]:
    """An upstream that is busy for its first request and writes down all paths."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(status, headers=headers) if len(seen) == 1 else httpx.Response(200)

    return answer, seen


@pytest.mark.parametrize("status", [429, 503])
async def test_all_callers_wait_until_the_upstream_wants_calls_again(status: int) -> None:
    clock = FakeClock()
    answer, seen = limited_once({"Retry-After": "20"}, status)
    async with client_of(answer, clock) as client:
        assert (await client.get("/first")).status_code == status
        await asyncio.gather(*(client.get(f"/{n}") for n in range(50)))
    assert 20.0 <= clock.elapsed <= 21.0
    assert seen == ["/first", *(f"/{n}" for n in range(50))]


async def test_the_release_is_spread_by_a_share_of_the_pause() -> None:
    clock = FakeClock()
    answer, _ = limited_once({"Retry-After": "4"})
    async with client_of(answer, clock, retry_jitter=0.5) as client:
        await client.get("/")
        await client.get("/")
    assert clock.elapsed == pytest.approx(4 + 4 * 0.5 * 0.5)


async def test_the_call_that_was_told_to_wait_waits_no_longer_than_told() -> None:
    clock = FakeClock()
    answer, _ = limited_once({"Retry-After": "5"})
    async with client_of(answer, clock, retry_attempts=2) as client:
        assert (await client.get("/")).status_code == 200
    assert clock.sleeps == [5.0]


async def test_a_pause_above_the_longest_delay_parks_nobody() -> None:
    clock = FakeClock()
    answer, _ = limited_once({"Retry-After": "3600"})
    async with client_of(answer, clock) as client:
        await client.get("/")
        await client.get("/")
    assert clock.elapsed == 0.0


async def test_a_limit_that_is_used_up_is_a_pause_too() -> None:
    clock = FakeClock()
    answer, _ = limited_once({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "10"}, status=200)
    async with client_of(answer, clock, retry_jitter=0) as client:
        await client.get("/")
        await client.get("/")
    assert clock.elapsed == pytest.approx(10.0)


@pytest.mark.parametrize(
    "bound",
    [{"total_timeout": 5.0}, {"rate_limit_max_wait": 5.0}],
    ids=["total_timeout", "rate_limit_max_wait"],
)
async def test_a_pause_that_is_too_long_for_a_call_refuses_it_at_once(bound: dict[str, float]) -> None:
    clock = FakeClock()
    answer, seen = limited_once({"Retry-After": "20"})
    async with client_of(answer, clock, retry_jitter=0, **bound) as client:
        await client.get("/")
        with pytest.raises(RateLimitError) as refused:
            await client.get("/")
    assert refused.value.retry_after == pytest.approx(20.0)
    assert refused.value.response is None
    assert clock.elapsed == 0.0
    assert len(seen) == 1


async def test_cancelled_waiters_leave_no_gap() -> None:
    clock = FakeClock()
    answer, seen = limited_once({"Retry-After": "10"})
    async with client_of(answer, clock, retry_jitter=0) as client:
        await client.get("/first")
        waiting = [asyncio.create_task(client.get(f"/{n}")) for n in range(10)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert seen[1:] == [f"/{n}" for n in range(1, 10, 2)]
    assert clock.elapsed == pytest.approx(10.0)


async def test_other_clients_do_not_wait() -> None:
    clock = FakeClock()
    answer, _ = limited_once({"Retry-After": "20"})
    async with client_of(answer, clock) as limited, client_of(answer, clock) as other:
        await limited.get("/")
        await other.get("/")
    assert clock.elapsed == 0.0


async def test_a_longer_pause_replaces_a_shorter_one_and_not_the_other_way_round() -> None:
    clock = FakeClock()
    pauses = iter(["10", "3", "30"])

    def answer(request: httpx.Request) -> httpx.Response:
        pause = next(pauses, None)
        return httpx.Response(429, headers={"Retry-After": pause}) if pause else httpx.Response(200)

    async with client_of(answer, clock, retry_jitter=0) as client:
        await client.get("/")
        await client.get("/")
        await client.get("/")
        assert clock.elapsed == pytest.approx(13.0)
        await client.get("/")
    assert clock.elapsed == pytest.approx(43.0)


async def test_a_pause_that_grows_while_a_call_waits_is_not_waited_for_beyond_its_limit() -> None:
    clock = FakeClock()
    limit = ServerLimit(longest=60.0, jitter=0.0, clock=clock, chance=lambda: 0.0)
    limit.note(httpx.Response(429, headers={"Retry-After": "1"}))

    async def ask_for_more() -> None:
        await clock.sleep(0.5)
        limit.note(httpx.Response(429, headers={"Retry-After": "50"}))

    more = asyncio.create_task(ask_for_more())
    with pytest.raises(RateLimitError, match="asked for a pause"):
        await limit.wait(max_wait=2.0, longest=60.0)
    await more
    assert clock.elapsed <= 2.0
