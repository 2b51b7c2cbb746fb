"""Happy eyeballs: several addresses for one name."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from fastapi_http_client.engine import sockets
from fastapi_http_client.engine.sockets import Address, connect_any
from tests.engine.conftest import MakeClient
from tests.engine.raw import OK, a_full_backlog, answer, hang, serve


@pytest_asyncio.fixture
async def silent() -> AsyncIterator[Address]:
    """An address where connecting takes for ever."""
    with a_full_backlog() as port:
        yield socket.AF_INET, ("127.0.0.1", port)


REFUSED: Address = (socket.AF_INET, ("127.0.0.1", 1))


async def test_a_refused_address_leads_to_the_next_at_once() -> None:
    async with serve(hang) as up:
        started = time.perf_counter()
        with await connect_any([REFUSED, REFUSED, (socket.AF_INET, ("127.0.0.1", up.port))]) as sock:
            assert sock.getpeername() == ("127.0.0.1", up.port)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert time.perf_counter() - started < sockets.ATTEMPT_DELAY


async def test_a_silent_address_leads_to_the_next_after_a_while(
    silent: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "ATTEMPT_DELAY", 0.05)
    async with serve(hang) as up:
        with await connect_any([silent, (socket.AF_INET, ("127.0.0.1", up.port)), silent]) as sock:
            assert sock.getpeername() == ("127.0.0.1", up.port)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= 2, "the other attempts have ended"


async def test_a_refusal_after_a_silent_address_does_not_end_the_attempt(silent: Address) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await connect_any([silent, REFUSED])


async def test_the_first_error_is_raised_when_every_address_fails() -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect_any([REFUSED, REFUSED])


async def test_a_name_with_several_addresses(make_client: MakeClient) -> None:
    """`localhost` is ::1 as well on most systems, where nobody listens here."""
    async with serve(answer(OK)) as up, make_client() as client:
        assert (await client.get(f"http://localhost:{up.port}/")).text == "ok"


async def test_cancelled_attempts_leave_no_socket(silent: Address) -> None:
    async with serve(hang) as up:
        for delay in (0, 0.0001, 0.0005, 0.001, 0.002):
            for _ in range(20):
                task = asyncio.create_task(connect_any([silent, (socket.AF_INET, ("127.0.0.1", up.port))]))
                alone = asyncio.create_task(connect_any([(socket.AF_INET, ("127.0.0.1", up.port))]))
                await asyncio.sleep(delay)
                for attempt in (task, alone):
                    attempt.cancel()
                for outcome in await asyncio.gather(task, alone, return_exceptions=True):
                    if isinstance(outcome, socket.socket):
                        outcome.close()
        await up.all_closed()
