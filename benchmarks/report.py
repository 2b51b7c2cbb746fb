"""The figures as Markdown. The text says what was measured and how, and never what came out: the figures say that."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.subjects import SUBJECTS
from benchmarks.upstream import DELAY

Found = Mapping[str, Any]

# -- the goals ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A figure, and what it is meant to be."""

    what: str
    figure: Callable[[Found], float]
    bound: float
    unit: str = ""
    at_least: bool = False

    def row(self, found: Found) -> list[str]:
        try:
            figure = self.figure(found)
        except KeyError:
            return [self.what, self._shown(self.bound), "not measured", ""]
        met = figure >= self.bound if self.at_least else figure <= self.bound
        return [self.what, self._shown(self.bound), _number(figure) + self.unit, "met" if met else "**missed**"]

    def _shown(self, bound: float) -> str:
        return f"{'≥' if self.at_least else '≤'} {bound:g}{self.unit}"


def _ratio(name: str, base: str, *keys: str) -> list[Callable[[Found], float]]:
    def figure(key: str) -> Callable[[Found], float]:
        return lambda found: float(found["calls"][key][name][f"of {base}"])

    return [figure(key) for key in keys]


def _ratios(what: str, name: str, base: str, bounds: Mapping[str, float]) -> list[Goal]:
    figures = _ratio(name, base, *bounds)
    return [
        Goal(f"{what}, {_where(key)}", figure, bound)
        for (key, bound), figure in zip(bounds.items(), figures, strict=True)
    ]


def _growth(kind: str) -> Goal:
    def figure(found: Found) -> float:
        ours = found["scaling"]["ours"]
        return float(ours[f"{kind}, 2000"]["cpu"] / ours[f"{kind}, 100"]["cpu"])

    return Goal(f"processor time of a call, 2,000 callers against 100, {kind}", figure, 1.2)


def _where(key: str) -> str:
    scheme, callers = key.split(", ")
    size = callers if callers == "1 MiB" else "1 caller" if callers == "1" else f"{callers} callers"
    return size + (", TLS" if scheme == "https" else "")


GOALS = [
    *_ratios(
        "of bare httpx's processor time",
        "ours",
        "httpx",
        {
            "http, 1": 0.16,
            "http, 50": 0.05,
            "http, 500": 0.035,
            "https, 1": 0.18,
            "https, 50": 0.05,
            "https, 500": 0.035,
        },
    ),
    *_ratios(
        "of bare aiohttp's",
        "ours",
        "aiohttp",
        {"http, 1": 0.85, "http, 50": 0.75, "http, 500": 0.7, "https, 1": 0.85, "https, 50": 0.75, "https, 500": 0.7},
    ),
    *_ratios(
        "of the hand-made stack's, both with spans of an SDK",
        "ours-spans",
        "by-hand-spans",
        {"http, 1": 0.18, "http, 50": 0.06},
    ),
    *_ratios("of bare httpx's, downloading", "ours", "httpx", {"http, 1 MiB": 0.2, "https, 1 MiB": 0.25}),
    *_ratios(
        'of bare httpx\'s, with `engine="httpcore"`',
        "ours-httpcore",
        "httpx",
        {"http, 1": 0.45, "http, 50": 0.45, "http, 500": 0.25},
    ),
    Goal(
        "FastAPI route with a call, 50 callers: requests a second against bare httpx",
        lambda found: found["route"]["ours, asyncio"]["ratio"],
        8,
        " times",
        at_least=True,
    ),
    _growth("queued"),
    _growth("open"),
    Goal("memory of a call in flight", lambda found: found["memory"]["ours"]["in flight"], 12, " KiB"),
    Goal("memory of a call that waits", lambda found: found["memory"]["ours"]["queued"], 5, " KiB"),
    Goal("memory of a further client", lambda found: found["memory"]["ours"]["client"]["KiB"], 10, " KiB"),
    Goal("time of a further client", lambda found: found["memory"]["ours"]["client"]["ms"], 0.2, " ms"),
    Goal("system calls of a GET", lambda found: found["system_calls"]["ours"], 8),
    Goal(
        "connections opened by 3,000 calls of 100 callers, limits 100 and 20",
        lambda found: found["connections"]["ours"],
        100,
    ),
    Goal("a recording span adds", lambda found: found["overhead"]["/users/octocat"]["by a span"], 35, " µs"),
    Goal("a client by `Depends` adds", lambda found: found["edge"]["by dependency"], 15, " µs"),
    Goal("the ASGI middleware adds", lambda found: found["edge"]["by middleware"], 15, " µs"),
    Goal("the import adds", lambda found: found["imports"]["fastapi_http_client"], 15, " ms"),
]

# -- the document ------------------------------------------------------------------------------------------------

_DISTRIBUTIONS = (
    "httpx",
    "httpcore",
    "h11",
    "anyio",
    "sniffio",
    "httpx2",
    "httpware",
    "aiohttp",
    "httpx-retries",
    "aiolimiter",
    "purgatory",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-httpx",
    "httptools",
    "fastapi",
    "uvicorn",
    "uvloop",
)


def conditions(rounds: int) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} on {platform.machine()}",
        "cores": os.cpu_count(),
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: importlib.metadata.version(name) for name in _DISTRIBUTIONS},
    }


def document(found: Found) -> str:
    about = found["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return _prose(f"""\
# Performance

What a call costs, compared with other clients. `make bench` measures all of this on your machine and writes
this page: only the words around the figures are written by hand.

```sh
make bench                                                  # all of it
.venv/bin/python -m benchmarks --quick                      # in a few minutes, printed only
.venv/bin/python -m benchmarks --only calls --subjects httpx,ours
```

Measured on {about["date"]}: {about["python"]}, {about["system"]}, {about["cores"]} cores, load {about["load"]}
at the end. {versions}.

*Everything on* means: retries, circuit breaker and rate limiter enabled, a bearer token, and the inbound request's
id and trace passed on. There is no OpenTelemetry SDK unless the row says so. The limits are httpx's defaults, 100
connections of which 20 are kept alive, unless a table says otherwise.

All clients call the same upstream process (`benchmarks/upstream.py`: plain asyncio on uvloop), which has a core of
its own. Each client is a separate process on another core. They take turns, in {about["rounds"]} rounds: a ratio
compares the two clients within one round, and the median over the rounds is shown. The machine also runs other
work, so the figures differ from run to run: by a tenth with one caller, by a fifth and more with many. The tests
(`tests/test_costs.py`) check counts instead, which do not vary.

{tables(found)}
## What to expect in a service

- A timeout, a wait for a limiter or a retry costs more than all of the above: look at `response.attempts` before you
  look at a profiler.
- HTTP/2 and proxied requests use httpcore2 and cost what the rows for `engine="httpcore"` show.
- The first client of a process creates a TLS context, as every client of bare httpx does (see its row under
  *Memory*). Further clients with the same options share it.
- Bare httpx has no single figure. The cost of a call depends on how many connections its pool holds by then, and on
  whether `sniffio` happens to be installed: httpcore looks for it three times a call, and httpx does not require it.
  Both rows are shown; the ratios refer to the one without.

{_goals(found)}""")


def tables(found: Found) -> str:
    parts = []
    for kind, part in _PARTS.items():
        if kind in found:
            parts.append(part(found))
    return _prose("\n".join(parts))


def _goals(found: Found) -> str:
    rows = [goal.row(found) for goal in GOALS]
    met = sum(row[-1] == "met" for row in rows)
    return (
        "## Goals\n\nWhat the project aims at, with everything on unless the row says otherwise; the sections above "
        f"say how each figure was measured. {met} of {len(rows)} are met.\n\n"
        + _table(["what", "goal", "measured", ""], rows)
    )


def _calls(found: Found) -> str:
    text = """\
## A call over loopback

One call is a GET of 146 bytes of JSON over HTTP/1.1 and its `.json()`. The figures are the processor time of the
client's process (user and system, all threads) per call, with the ratio to bare httpx in brackets. Concurrent
callers share one client. Each measurement uses a new client; the first call of each caller, which opens a
connection, is not counted. *1 MiB* is a download by one caller, read into memory.

"""
    for scheme, title in (("http", "Without TLS"), ("https", "With TLS 1.3")):
        keys = [key for key in found["calls"] if key.startswith(scheme + ",")]
        names = list(found["calls"][keys[0]])
        rows = [[SUBJECTS[name].row, *(_cost(found["calls"][key][name]) for key in keys)] for name in names]
        text += f"{title}:\n\n" + _table(["CPU of a call", *map(_where_in_table, keys)], rows) + "\n"
    keys = [key for key in found["calls"] if key.endswith(", 1")]
    rows = [
        [SUBJECTS[name].row, *(f"{found['calls'][key][name]['wall']:.0f} µs" for key in keys)]
        for name in found["calls"][keys[0]]
    ]
    text += "Elapsed time of a call with one caller, the upstream's part included:\n\n"
    return text + _table(["time of a call", *(key.removesuffix(", 1") for key in keys)], rows)


def _where_in_table(key: str) -> str:
    return _where(key).removesuffix(", TLS")


def _cost(figures: Mapping[str, float]) -> str:
    ratio = f" ({figures['of httpx']:.3f})" if "of httpx" in figures else ""
    return f"{figures['cpu']:.0f} µs{ratio}"


def _overhead(found: Found) -> str:
    rows = [
        [
            title,
            f"{row['httpx']:.0f} µs",
            f"{row['ours']:.0f} µs",
            f"{row['ratio']:.2f}",
            f"+{row['by a span']:.0f} µs",
            f"{row['sdk']:.0f} µs",
        ]
        for title, row in (
            ("the same path", found["overhead"]["/users/octocat"]),
            ("a new path each time", found["overhead"]["/users/{}"]),
        )
    ]
    return """\
## A call without a network

Processor time of a call to an `httpx.MockTransport`, which answers at once, so that only the client's own work is
left: httpx's, and this package's with everything on. *A span* is what a recording span of an OpenTelemetry SDK adds.
*SDK alone* is the same span made in a tight loop, where processor caches favour it.

""" + _table(["a call", "bare httpx", "this package", "ratio", "a span", "SDK alone"], rows)


def _edge(found: Found) -> str:
    row = found["edge"]
    rows = [
        [
            "a FastAPI route, without and with a client by `Depends`",
            row["plain"],
            row["dependency"],
            row["by dependency"],
        ],
        [
            "a bare ASGI app, without and with `RequestContextMiddleware`",
            row["app"],
            row["middleware"],
            row["by middleware"],
        ],
    ]
    return """\
## The inbound side

Processor time of one request to an app called in-process, without a server.

""" + _table(
        ["", "without", "with", "added"], [[what, *(f"{figure:.1f} µs" for figure in rest)] for what, *rest in rows]
    )


def _route(found: Found) -> str:
    rows = []
    for key, row in found["route"].items():
        name, loop = key.split(", ")
        title = "no call at all" if name == "none" else SUBJECTS[name].row
        rows.append([title, loop, f"{row['answered']:.0f}", f"{row['a core']:.0f}", f"{row['ratio']:.1f}"])
    return """\
## A service

uvicorn serves a FastAPI route that makes one call and returns its JSON, all in one process on one core. 50
connections send requests as fast as they are answered. With this package the route gets its client by `Depends`,
and `clients.install(app)` is in effect. *Answered* is requests per second. *A core's worth* is requests per second of
the process's processor time, which other work on the machine disturbs less. *Of httpx* is the latter as a multiple of
bare httpx on the same event loop.

""" + _table(["the call is made with", "event loop", "answered", "a core's worth", "of httpx"], rows)


def _scaling(found: Found) -> str:
    text = f"""\
## Many callers

Processor time of a call when the upstream takes {DELAY * 1000:.0f} ms to answer, so that all callers wait at the
same time. *Queued*: a pool of 100 connections. *Open*: a connection for each caller. All connections are kept alive.

"""
    for kind in ("queued", "open"):
        columns = [key for key in next(iter(found["scaling"].values())) if key.startswith(kind)]
        rows = [
            [SUBJECTS[name].row, *(f"{row[key]['cpu']:.0f} µs" if key in row else "" for key in columns)]
            for name, row in found["scaling"].items()
        ]
        text += _table([kind, *(key.split(", ")[1] for key in columns)], rows) + "\n"
    return text.removesuffix("\n")


def _memory(found: Found) -> str:
    rows = [
        [
            SUBJECTS[name].row,
            f"{row['in flight']:.1f} KiB",
            f"{row['queued']:.1f} KiB",
            f"{row['client']['KiB']:.1f} KiB",
            f"{row['client']['ms']:.2f} ms",
        ]
        for name, row in found["memory"].items()
    ]
    return """\
## Memory

Resident memory that the process gains: per call, with 500 calls in flight, each on a connection of its own; per
call, with 1,000 calls waiting for 20 connections; and per client, for 50 more clients with the same options. The
last column is the time to create such a client. A call's asyncio task, about 1 KiB, is included.

""" + _table(["", "in flight", "waiting", "a further client", "made in"], rows)


def _connections(found: Found) -> str:
    rows = [[SUBJECTS[name].row, f"{count}"] for name, count in found["connections"].items()]
    return f"""\
## Connections

Connections that the upstream accepted during 3,000 calls by 100 callers, each answered after {DELAY * 1000:.0f} ms.

""" + _table(["", "connections"], rows)


def _system_calls(found: Found) -> str:
    rows = [[SUBJECTS[name].row, _number(count)] for name, count in found["system_calls"].items()]
    return """\
## System calls

System calls of the client's main thread for one GET by one caller on an open connection, counted with ptrace
over 50 GETs. CPython 3.11 makes one (`getpid`) each time a program asks for the running event loop; 3.12 and
newer do not.

""" + _table(["", "system calls"], rows)


def _instructions(found: Found) -> str:
    rows = [[SUBJECTS[name].row, f"{count:,.0f}"] for name, count in found["instructions"].items()]
    return """\
## Instructions

Bytecode instructions for one GET by one caller on an open connection, including the event loop's, as counted by
the interpreter. The count is the same in every run; work inside C code does not show.

""" + _table(["", "instructions"], rows)


def _imports(found: Found) -> str:
    rows = [[f"`import {name}`", f"{figure:.1f} ms"] for name, figure in found["imports"].items()]
    return """\
## Importing

Processor time in a fresh interpreter; the second import follows the first.

""" + _table(["", "takes"], rows)


_PARTS: dict[str, Callable[[Found], str]] = {
    "calls": _calls,
    "overhead": _overhead,
    "edge": _edge,
    "route": _route,
    "scaling": _scaling,
    "memory": _memory,
    "connections": _connections,
    "system_calls": _system_calls,
    "instructions": _instructions,
    "imports": _imports,
}


def _prose(text: str) -> str:
    """Paragraphs filled again, for the figures in them have any length."""
    blocks = text.split("\n\n")
    plain = (block[0] not in "#`|-" for block in blocks)
    filled = (textwrap.fill(block, 120, break_on_hyphens=False, break_long_words=False) for block in blocks)
    return "\n\n".join(new if is_plain else old for new, old, is_plain in zip(filled, blocks, plain, strict=True))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(figure: float) -> str:
    """Three significant digits, and no more zeros than that."""
    return f"{figure:.3g}" if figure < 1000 else f"{figure:,.0f}"
