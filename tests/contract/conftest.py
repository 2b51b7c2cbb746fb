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


@pytest.fixture(params=["memory", "valkey"])
async def timed(request: pytest.FixtureRequest) -> AsyncIterator[Timed]:
    """Each store in turn."""
    if request.param == "memory":
        yield TimedMemory()
        return
    server: ValkeyProcess = request.getfixturevalue("server")
    redis = TimedRedis(server.url, next(_prefixes))
    await redis.store.connect()
    yield redis
    await redis.store.aclose()
    redis.close()
