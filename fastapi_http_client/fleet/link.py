"""The way to the store: bounded in time, never cancelled with a caller, and closed while the store is not well.

The store's own circuit breaker is here. A command that fails or is not answered in time, or three in a row that are
slow, close the way: `ask` then raises at once, and everybody decides locally. In the background the store is tried
again, soon and then once a second, and the way opens again when it answers as fast as it should.

Waiting for a socket is measured by the event loop's own time: a test's clock cannot rule it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import weakref
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from fastapi_http_client.stores.base import Store

logger = logging.getLogger("fastapi_http_client.fleet")

T = TypeVar("T")

PATIENCE = 0.04  # seconds for an answer; a call is held up no longer
LAG = 0.005  # seconds; a timer that fires so late says that this process was busy, not that the store was
SLOW = 0.02  # seconds; slower than this is no better than none
SLOW_IN_A_ROW = 3
FIRST_CONTACT = 1.0  # seconds that a start waits for the store
FIRST_RETRY, LAST_RETRY = 0.1, 1.0  # seconds between two looks whether the store is back
FIRST_HEARTBEAT, HEARTBEAT = 0.2, 2.0  # seconds; soon after the start, when the other processes start too
ASSUMED = 4  # processes, as long as none have been counted
PRESENCE = 6_000_000  # µs that a process counts after its last heartbeat
QUIET = 60.0  # seconds between two warnings


class StoreUnavailableError(Exception):
    """The store has not answered in time: decide locally. Never seen by a caller of the package."""


class LinkListener(Protocol):
    """Who wants to know, as long as somebody uses it, when the store goes away or comes back."""

    def link_changed(self) -> None: ...


class Link:
    """One process's way to the store.

    `processes` is how many share the limits when the store is away; None: as many as there were when it was last seen,
    or 4 when it never was.
    """

    def __init__(self, store: Store, *, processes: int | None = None) -> None:
        self.store = store
        self.is_up = False
        self.member = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.listeners: weakref.WeakSet[LinkListener] = weakref.WeakSet()
        self._fixed = processes
        self._seen = ASSUMED
        self._trusts_from = float("-inf")  # when a store has heard of all processes; infinite while it is away
        self._kept_quiet: str | None = None  # why the store is away, when that was not news enough for a warning
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._slow = 0
        self._warned_at = float("-inf")

    @property
    def processes(self) -> int:
        """How many processes share what the store holds."""
        return self._fixed or max(self._seen, 1)

    # -- life ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Get in touch, for a moment: a store that is down delays a start, and does not prevent it."""
        self._wake = asyncio.Event()
        first = self.start(self._is_well())
        await asyncio.wait({first}, timeout=FIRST_CONTACT)
        if first.done() and not first.cancelled() and first.exception() is None:
            self._set_up()
        else:
            self._warn(_reason(first.exception()) if first.done() and not first.cancelled() else "no answer")
            first.cancel()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def aclose(self) -> None:
        """Say good-bye, end what is under way, and close the store."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
            self._watcher = None
        if self.is_up:
            under_way = set(self._tasks)
            under_way.add(self.start(self.store.presence("processes", member=self.member, lease=0)))
            await asyncio.wait(under_way, timeout=FIRST_CONTACT)
        self.is_up = False
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.store.aclose()

    # -- asking --------------------------------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work that belongs to no caller."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    async def ask(self, command: Coroutine[Any, Any, T]) -> T:
        """The store's answer. Raises `StoreUnavailableError` at once when the way is closed, else in `PATIENCE`.

        The command is not cancelled with the caller: a connection that loses its reader would give the answer to the
        next one. When time is up it is, and then its connection is dropped.
        """
        if not self.is_up:
            command.close()
            raise StoreUnavailableError
        loop = asyncio.get_running_loop()
        started = loop.time()
        task = self.start(command)
        await asyncio.wait({task}, timeout=PATIENCE)
        if not task.done() and loop.time() - started > PATIENCE + LAG:
            await asyncio.wait({task}, timeout=2 * LAG)
        if not task.done():
            task.cancel()
            self._set_down(f"no answer within {PATIENCE * 1000:g} ms")
            raise StoreUnavailableError
        if task.cancelled():  # the link was closed
            raise StoreUnavailableError
        error = task.exception()
        if error is not None:
            self._set_down(_reason(error))
            raise StoreUnavailableError from error
        self._note(loop.time() - started)
        return task.result()

    def _note(self, elapsed: float) -> None:
        if elapsed <= SLOW:
            self._slow = 0
            return
        self._slow += 1
        if self._slow >= SLOW_IN_A_ROW:
            self._set_down(f"it takes {elapsed * 1000:.0f} ms")
        elif self._wake is not None:
            self._wake.set()  # looks again at once, so that the verdict does not take many calls

    # -- up and down ---------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self._slow = 0
        self._kept_quiet = None
        if self._trusts_from == float("inf"):
            self._trusts_from = asyncio.get_running_loop().time() + PRESENCE / 1e6
        self.is_up = True
        self._tell()

    def _count(self, seen: int) -> None:
        """So many processes have said to the store that they are there.

        A store that lost everything has not heard of all of them at once. Until it has, the number only grows: should
        the store go away again, each process would take too large a share.
        """
        settled = asyncio.get_running_loop().time() >= self._trusts_from
        self._seen = seen if settled else max(seen, self._seen)

    def _set_down(self, reason: str) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self._trusts_from = float("inf")
        if self._wake is not None:
            self._wake.set()
        self._warn(reason)
        self._tell()

    def _tell(self) -> None:
        for listener in tuple(self.listeners):
            listener.link_changed()

    def _warn(self, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        is_news = now - self._warned_at > QUIET
        self._kept_quiet = None if is_news else reason
        if is_news:
            self._warned_at = now
        logger.log(
            logging.WARNING if is_news else logging.INFO,
            "the store (%s) is away: %s; until it is back each process decides for itself, with 1/%d of the limits",
            self.store.place,
            reason,
            self.processes,
        )

    async def _watch(self) -> None:
        """Keep our place among the processes while the store is up, and look for it while it is away."""
        retry, beat = FIRST_RETRY, FIRST_HEARTBEAT
        while True:
            if not self._slow or not self.is_up:
                await self._until_woken(beat if self.is_up else retry)
            if self.is_up:
                retry, beat = FIRST_RETRY, min(2 * beat, HEARTBEAT)
                await self._beat()
                continue
            retry = min(2 * retry, LAST_RETRY)
            try:
                await self._is_well()
            except Exception as error:
                logger.debug("the store (%s) is still away: %s", self.store.place, _reason(error))
                if self._kept_quiet and asyncio.get_running_loop().time() - self._warned_at > QUIET:
                    self._warn(self._kept_quiet)
            else:
                beat = FIRST_HEARTBEAT
                logger.info("the store (%s) is back", self.store.place)
                self._set_up()

    async def _until_woken(self, seconds: float) -> None:
        assert self._wake is not None
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
        if not self.is_up and self._wake.is_set():  # it went down just now: give it a moment
            await self._until_woken(FIRST_RETRY)

    async def _beat(self) -> None:
        with contextlib.suppress(StoreUnavailableError):
            self._count(await self.ask(self.store.presence("processes", member=self.member, lease=PRESENCE)))

    async def _is_well(self) -> None:
        """Raises when it does not answer, or not fast enough."""
        loop = asyncio.get_running_loop()
        elapsed = 0.0
        async with asyncio.timeout(FIRST_CONTACT):
            await self.store.connect()
            for _ in range(2):  # the second one at the latest finds an open connection
                started = loop.time()
                self._count(await self.store.presence("processes", member=self.member, lease=PRESENCE))
                elapsed = loop.time() - started
        if elapsed > SLOW:
            raise TimeoutError(f"it takes {elapsed * 1000:.0f} ms")


def _reason(error: BaseException | None) -> str:
    """The kind of an error, and the code of a server's reply (`OOM`, `READONLY`): its text might hold anything."""
    code = str(error).partition(" ")[0]
    return type(error).__name__ + (f" ({code})" if code.isalpha() and code.isupper() and len(code) > 2 else "")
