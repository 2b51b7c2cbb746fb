"""The faults of the hostile upstream by name, and what must be left behind after any of them: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from tests.hostile.scenarios import retry_after_values
from tests.hostile.tables import BAD_CHUNKS, BAD_HEADS, JSON_BODIES
from tests.hostile.upstream import HostileUpstream

NOISE = 0.5
"""Seconds that a busy machine may add to any limit in time."""


class Fault(NamedTuple):
    """A path of the hostile upstream, on one of its listeners; `upload` for one that needs a large request body."""

    path: str
    listener: str = "main"
    scheme: str = "http"
    upload: bool = False

    def url(self, upstream: HostileUpstream) -> str:
        return f"{self.scheme}://{upstream.host}:{upstream.ports[self.listener]}{self.path}"

    def __str__(self) -> str:
        listener = "" if self.listener == "main" else f"{self.listener}:"
        return f"{'' if self.scheme == 'http' else 'https:'}{listener}{self.path}"


def named_faults() -> Iterator[Fault]:
    """Every fault that has a name, in all its variants."""
    for path in (
        "/reset", "/close", "/reset-mid-headers", "/close-mid-headers", "/reset-mid-body", "/close-mid-body",
        "/hang-mid-body", "/respond-then-reset", "/idle-close?after=0.001", "/trap?mode=close", "/trap?mode=reset",
        "/trap?mode=hang", "/trap?mode=garbage", "/trap?mode=stale", "/desync", "/desync?wait=0.001", "/hang",
        "/hang-headers", "/slow", "/drip", "/drip?interval=0.01", "/drip-headers?interval=0.01", "/huge-header",
        "/many-headers", "/infinite-headers", "/long-status-line", "/interim?n=3", "/interim?n=-1",
        "/interim?n=-1&code=100&interval=0.01", "/infinite", "/infinite?chunked=1", "/infinite?rate=1000",
        "/length-short", "/no-length", "/no-length?reset=1", "/tiny-chunks?n=5000", "/body-on/204", "/body-on/304",
        "/body-on/head", "/upgrade", "/bomb/gzip?mb=16", "/bomb/deflate?mb=16", "/bomb/br", "/bomb/zstd?mb=16",
        "/bomb/nested?mb=16", "/bomb/layers", "/bomb/gzip?mb=16&status=500", "/stream?fail_after=3&interval=0",
        "/stream?fail_after=3&interval=0&then=close", "/stream?fail_after=3&interval=0&then=hang", "/redirect",
        "/redirect-loop", "/redirect-grow", "/redirect-cross", "/redirect-cross?code=307", "/redirect-to?none=1",
        "/redirect-to?url=http://127.0.0.1:99999/", "/redirect-to?url=javascript:alert(1)", "/auth/401",
        "/cookie/set?n=50",
        "/status/500", "/status/502", "/status/599", "/status/600", "/status/199", "/status/404?close=1",
        "/status/503?retry_after=3600", "/status/429?retry_after=0", "/status/429?retry_after=3600",
        "/flaky?fail=1&mode=garbage", "/flaky?fail=1&mode=truncate", "/sequence/k?steps=503,reset,hang,200",
        "/large?bytes=300000&chunked=1", "/respond?header=Content-Length:7%0d%0a%0d%0asplit",
    ):  # fmt: skip
        yield Fault(path)
    for path in (
        "/no-read?seconds=0.5",
        "/early",
        "/early?then=reset",
        "/early?then=drain",
        "/reset-mid-upload",
        "/sink",
    ):
        yield Fault(path, upload=True)
    yield from (Fault(f"/bad-head/{name}") for name in BAD_HEADS)
    yield from (Fault(f"/chunked-bad/{name}") for name in BAD_CHUNKS)
    yield from (Fault(f"/json/{name}") for name in JSON_BODIES)
    yield from (Fault(f"/retry-after/{name}?fail=9") for name in retry_after_values())
    for name in (
        "lie", "truncated", "corrupt", "trailing", "members", "unknown", "empty", "double", "br-truncated",
        "zstd-truncated",
    ):  # fmt: skip
        yield Fault(f"/coding/{name}")
    for listener in ("refused", "blackhole", "accept_reset", "accept_close", "accept_hang", "banner"):
        for scheme in ("http", "https"):
            yield Fault("/", listener, scheme)
    yield Fault("/ok", "main", "https")  # TLS to a server that speaks plain HTTP


@contextlib.asynccontextmanager
async def nothing_left(*upstreams: HostileUpstream) -> AsyncIterator[None]:
    """Afterwards there is no new task, no open connection, and no error that nobody has looked at."""
    end = time.monotonic() + 10.0
    while any(upstream.open_connections() for upstream in upstreams) and time.monotonic() < end:
        await asyncio.sleep(0.005)  # of the test before, whose upstream still makes a large body
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    yield
    end = time.monotonic() + 3.0

    async def until(nothing: bool) -> bool:
        await asyncio.sleep(0.005)
        return nothing or time.monotonic() > end

    while not await until(asyncio.all_tasks() <= before):
        pass
    assert asyncio.all_tasks() <= before, asyncio.all_tasks() - before
    while not await until(sum(upstream.open_connections() for upstream in upstreams) == 0):
        pass
    assert [upstream.open_connections() for upstream in upstreams] == [0] * len(upstreams)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
