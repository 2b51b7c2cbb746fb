"""The life of one client: on which event loop it lives, how many calls are in flight, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from fastapi_http_client.errors import HTTPRequestError

T = TypeVar("T")


class ClientStateError(HTTPRequestError, RuntimeError):
    """The client cannot be used now: it is closed, or belongs to another event loop.

    Nothing was sent, unless it was closed while the call was going on. Also a `RuntimeError`, as httpx raises here.
    """

    def __init__(self, message: str, *, may_have_run: bool = False, **facts: Any) -> None:
        HTTPRequestError.__init__(self, message, may_have_run=may_have_run, transient=False, **facts)


class Lifecycle:
    """Shared by a client and all views that `with_options()` makes of it."""

    __slots__ = ("_closed", "_draining", "_idle", "_limits", "_loop", "_name", "_tasks", "in_flight")

    def __init__(self, name: str | None) -> None:
        self._name = name or "AsyncHTTPClient"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False
        self._closed = False
        self._idle: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._limits: set[asyncio.Timeout] = set()
        self.in_flight = 0

    @property
    def draining(self) -> bool:
        """Whether new calls are refused and no attempt is to be repeated."""
        return self._draining

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def is_stranded(self) -> bool:
        """Whether the client's event loop is gone, and with it all that could still be done for its connections."""
        return self._loop is not None and self._loop.is_closed()

    def check_open(self) -> None:
        """Raises `ClientStateError` when the client was closed under a call that is still going on."""
        if self._closed:
            raise self.closed_meanwhile(may_have_run=False)

    def check_loop(self) -> None:
        """Raises `ClientStateError` on another event loop than the client's own."""
        self._check_loop(asyncio.get_running_loop())

    def _check_loop(self, running: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and self._loop is not running:
            raise ClientStateError(
                f"{self._name}: this client belongs to another event loop, whose connections cannot be used here; "
                "make one client for each loop (in tests: one for each test, or one loop for all), and in a sync route "
                "call anyio.from_thread.run(client.get, ...)"
            )

    def bind(self) -> None:
        """Belong to the running event loop from now on, as from the first call; raises like `check_loop()`."""
        running = asyncio.get_running_loop()
        self._check_loop(running)
        self._loop = running

    def enter(self) -> None:
        """Count a call in; raises `ClientStateError` when there must not be one."""
        if not self._closed:
            self.bind()
        if self._closed:
            raise ClientStateError(f"{self._name}: the client is closed; nothing was sent")
        if self._draining:
            raise ClientStateError(f"{self._name}: the client is shutting down and takes no new calls")
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0 and self._idle is not None:
            self._idle.set()

    async def until_closed(self, work: Awaitable[T]) -> T:
        """Await the work of a call; when the client is closed meanwhile, end it with `ClientStateError`."""
        limit = asyncio.timeout(None)
        self._limits.add(limit)
        try:
            async with limit:
                return await work
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self.closed_meanwhile(may_have_run=True) from error
        finally:
            self._limits.discard(limit)

    def closed_meanwhile(self, *, may_have_run: bool) -> ClientStateError:
        """The error of a call that was going on when the client was closed."""
        return ClientStateError(
            f"{self._name}: the client was closed while this call was going on", may_have_run=may_have_run
        )

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run work that belongs to the client and not to a caller; it ends with the client at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, grace: float) -> None:
        """Refuse new calls and wait up to `grace` seconds for those in flight."""
        self._draining = True
        if self.in_flight:
            self._idle = self._idle or asyncio.Event()
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                pass

    def close(self) -> list[asyncio.Task[Any]]:
        """Refuse all calls from now on, end those in flight, and cancel the work that `spawn()` began.

        The caller awaits what is returned.
        """
        self._closed = self._draining = True
        if self.is_stranded:
            return []
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        return tasks


async def shielded(work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    """Await work to its end, however often we are cancelled meanwhile; the cancellation is raised afterwards."""
    task = work if isinstance(work, asyncio.Task) else asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:
            if cancelled is None:
                raise
    if cancelled is not None:
        raise cancelled
