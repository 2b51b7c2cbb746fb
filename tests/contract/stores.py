"""The stores under test, each with a time that only the test moves."""

from __future__ import annotations

from typing import Any, Protocol

from redis import Redis

from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.stores.base import Store
from fastapi_http_client.stores.memory import MemoryStore
from fastapi_http_client.stores.redis import RedisStore

START = 1_000_000_000_000_000  # µs

# The real first lines of the scripts take the server's time, and let keys expire by it.
_TEST_TIME = """
local function now_in_us() return tonumber(redis.call('GET', 'test:now')) end
local function keep_for(us) redis.call('PEXPIRE', KEYS[1], 3600000) end
"""


class Timed(Protocol):
    """A store, and the hand on its clock."""

    store: Store

    def advance(self, us: int) -> None: ...


class TimedMemory:
    def __init__(self) -> None:
        self._clock = FakeClock(start=START / 1e6)
        self.store: Store = MemoryStore(clock=self._clock)

    def advance(self, us: int) -> None:
        self._clock.advance(us / 1e6)


class _RedisStoreOnTestTime(RedisStore):
    @staticmethod
    def _prelude() -> str:
        return _TEST_TIME


class TimedRedis:
    def __init__(self, url: str, prefix: str) -> None:
        self.admin: Any = Redis.from_url(url)
        self._now = START
        self.admin.set("test:now", self._now)
        self.store: Store = _RedisStoreOnTestTime(url, prefix=prefix)

    def advance(self, us: int) -> None:
        self._now += us
        self.admin.set("test:now", self._now)

    def close(self) -> None:
        self.admin.close()
