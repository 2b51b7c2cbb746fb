"""The processes of a measurement: an upstream and a worker for each subject, each pinned to a core, in turns.

Every figure is taken in interleaved rounds: within a round each subject has its turn, ratios are those of one round,
and the median over the rounds is shown, so that a noisy machine disturbs all of them alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.subjects import Target

ROOT = Path(__file__).resolve().parents[1]
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
CLIENT_CORE, UPSTREAM_CORE = (CORES[0], CORES[1]) if len(CORES) > 1 else (None, None)

Figures = dict[str, float]


class Child:
    """A process of this package that answers questions, one line of JSON each."""

    def __init__(self, module: str, *arguments: str, core: int | None = CLIENT_CORE) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    def ask(self, question: Mapping[str, Any] | None = None) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process of the benchmark has failed: {self._process.args!r}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def answer_questions(answer: Callable[[dict[str, Any]], Any]) -> None:
    """The child's side."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


class Bench:
    """What a measurement needs: the upstream, workers, and how much time there is."""

    def __init__(self, upstream: Child, *, rounds: int, quick: bool) -> None:
        self.upstream = upstream
        self.rounds = rounds
        self.quick = quick
        self._where = upstream.hear()

    def target(self, path: str = "/small", *, tls: bool = False, **fields: Any) -> Target:
        scheme = "https" if tls else "http"
        return Target(
            f"{scheme}://127.0.0.1:{self._where[scheme]}",
            path,
            ca_file=self._where["ca_file"] if tls else None,
            **fields,
        )

    @contextlib.contextmanager
    def workers(self, names: Iterable[str]) -> Iterator[dict[str, Child]]:
        workers = {name: Child("worker", name) for name in names}
        try:
            yield workers
        finally:
            for worker in workers.values():
                worker.close()

    def fresh(self, name: str, probe: str, target: Target, **arguments: Any) -> Figures:
        """A measurement in a worker of its own."""
        with self.workers([name]) as workers:
            return ask(workers[name], probe, target, **arguments)


@contextlib.contextmanager
def bench(*, rounds: int, quick: bool) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        upstream = Child("upstream", folder, core=UPSTREAM_CORE)
        try:
            yield Bench(upstream, rounds=rounds, quick=quick)
        finally:
            upstream.close()


def ask(worker: Child, probe: str, target: Target, **arguments: Any) -> Figures:
    """Run a probe, a function of the module of that name, in a worker."""
    figures: Figures = worker.ask({"probe": probe, "target": dataclasses.asdict(target), "arguments": arguments})
    return figures


def in_turns(
    workers: Mapping[str, Child], rounds: int, turn: Callable[[str, Child], Figures]
) -> dict[str, list[Figures]]:
    """The figures of each worker in each round; every other round goes backwards."""
    found: dict[str, list[Figures]] = {name: [] for name in workers}
    for number in range(rounds):
        names = list(workers)
        for name in reversed(names) if number % 2 else names:
            found[name].append(turn(name, workers[name]))
        progress(".")
    return found


def medians(found: Sequence[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in found) for key in found[0]}


def ratio(found: Mapping[str, Sequence[Figures]], name: str, base: str, key: str = "cpu") -> float:
    """How much dearer one is than another: the median of the rounds' ratios."""
    return statistics.median(a[key] / b[key] for a, b in zip(found[name], found[base], strict=True))


def difference(found: Mapping[str, Sequence[Figures]], name: str, base: str, key: str = "cpu") -> float:
    return statistics.median(a[key] - b[key] for a, b in zip(found[name], found[base], strict=True))


def progress(what: str) -> None:
    sys.stderr.write(what)
    sys.stderr.flush()
