"""What the engine's tests share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvloop

from fastapi_http_client.engine.transport import AsyncioTransport


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test of the engine runs on both event loops."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def engine() -> None:
    """The tests of the engine name it themselves."""


MakeClient = Callable[..., httpx.AsyncClient]


@pytest_asyncio.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Makes ordinary httpx clients over the engine, and checks at the end that nothing was left behind."""
    transports: list[AsyncioTransport] = []
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    def make(*, timeout: Any = 5.0, **options: Any) -> httpx.AsyncClient:
        transport = AsyncioTransport(**options)
        transports.append(transport)
        return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)

    yield make
    for transport in transports:
        await transport.aclose()
        pool = transport._pool
        if pool is not None:
            assert pool._places == 0
            assert not pool._connections
            assert not pool._closing
            assert not pool._waiters
            assert not pool._origins
    gc.collect(1)  # what has failed unseen complains when it is collected
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "engine" in repr(task.get_coro())]
    assert complaints == []  # such as "Future exception was never retrieved"


@pytest.fixture
def transport_of() -> Callable[[httpx.AsyncClient], AsyncioTransport]:
    def get(client: httpx.AsyncClient) -> AsyncioTransport:
        transport = client._transport
        assert isinstance(transport, AsyncioTransport)
        return transport

    return get
