"""What is measured: one file a client, and the names under which `SUBJECTS` runs them.

Each client is what its documentation shows first, unless its row says more. All get the same target, limits and TLS
context, and time limits that are armed and never reached.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

Call = Callable[[], Awaitable[object]]
"""One GET: its JSON, or the bytes of a body that is none."""


@dataclass(frozen=True)
class Target:
    """Where the calls go, and the limits of the client that makes them."""

    origin: str
    path: str = "/small"
    ca_file: str | None = None
    connections: int = 100
    keepalive: int = 20
    timeout: float = 120.0

    @property
    def url(self) -> str:
        return self.origin + self.path

    @property
    def is_json(self) -> bool:
        return self.path != "/large"

    def tls(self) -> ssl.SSLContext | Literal[True]:
        """For `verify=` and `ssl=`: trust in the upstream's certificate; without one, the client's own default."""
        return True if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)


Open = Callable[[Target], AbstractAsyncContextManager[Call]]


@dataclass(frozen=True)
class Subject:
    """A row of the tables: the client of a file, with arguments, on an event loop."""

    row: str
    client: str
    """`file:function` in this folder; the function takes a `Target`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    without_sniffio: bool = False
    uvloop: bool = False

    def load(self) -> Open:
        """Import the client. In the subject's own process only: it may change what can be imported."""
        if self.without_sniffio:
            hide_sniffio()
        module, _, function = self.client.partition(":")
        opens: Open = getattr(importlib.import_module(f"benchmarks.subjects.{module}"), function)
        return functools.partial(opens, **self.arguments)


class _Finder(importlib.machinery.PathFinder):
    """Looks for `sniffio` wherever modules are looked for, at the same cost, and never finds it."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return super().find_spec("sniffio_hidden" if fullname == "sniffio" else fullname, path, target)


def hide_sniffio() -> None:
    """Make this process what `pip install httpx` gives: httpcore asks for sniffio with every call and has none."""
    sys.meta_path[:] = [_Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]


SUBJECTS: dict[str, Subject] = {
    "httpx": Subject("bare httpx, as `pip install httpx` gives it", "bare_httpx:client", without_sniffio=True),
    "httpx-sniffio": Subject("bare httpx, with `sniffio` installed", "bare_httpx:client"),
    "httpx-uvloop": Subject("bare httpx on uvloop", "bare_httpx:client", without_sniffio=True, uvloop=True),
    "httpx2": Subject("bare httpx2", "bare_httpx2:client"),
    "httpware": Subject("httpware: retry, breaker, bulkhead and timeout on httpx2", "httpware_client:client"),
    "by-hand": Subject("httpx with retries, limiter, breaker and OpenTelemetry by hand", "by_hand:client"),
    "by-hand-spans": Subject("the same with an OpenTelemetry SDK", "by_hand:client", {"spans": True}),
    "aiohttp": Subject("bare aiohttp", "bare_aiohttp:client"),
    "aiohttp-uvloop": Subject("bare aiohttp on uvloop", "bare_aiohttp:client", uvloop=True),
    "ours": Subject("**this package, everything on**", "ours:client"),
    "ours-uvloop": Subject("the same on uvloop", "ours:client", uvloop=True),
    "ours-spans": Subject("the same with a recording span of an OpenTelemetry SDK", "ours:client", {"spans": True}),
    "ours-httpcore": Subject('the same with `engine="httpcore"`', "ours:client", {"engine": "httpcore"}),
    "ours-bare": Subject("this package, nothing on", "ours:bare_client"),
    "engine": Subject("`httpx.AsyncClient` on this package's transport", "engine:client"),
    "fetch": Subject("that transport alone, without a client", "engine:fetch"),
    "raw": Subject("a minimal `asyncio.Protocol`: the limit of Python", "raw_protocol:client"),
    "raw-uvloop": Subject("the same on uvloop", "raw_protocol:client", uvloop=True),
}
"""The first is what the ratios are of."""
