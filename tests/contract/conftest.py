from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.stores import Timed, TimedMemory, TimedRedis
from tests.valkey import ValkeyProcess, valkey

_prefixes = (f"test{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyProcess]:
    with valkey() as process:
        yield process


@pytest.fixture
async def redis(server: ValkeyProcess) -> AsyncIterator[TimedRedis]:
    timed = TimedRedis(server.url, next(_prefixes))
    await timed.store.connect()
    yield timed
    await timed.store.aclose()
    timed.close()


@pytest.fixture(params=["memory", "valkey"])
def timed(request: pytest.FixtureRequest) -> Timed:
    """Each store in turn."""
    if request.param == "memory":
        return TimedMemory()
    redis: TimedRedis = request.getfixturevalue("redis")
    return redis
