"""Measures everything, prints the tables, and writes them to docs/performance.md.

    python -m benchmarks                      all of it, about a quarter of an hour
    python -m benchmarks --quick              the same in a few minutes, to try it out: writes nothing
    python -m benchmarks --only calls,memory  some of it: writes nothing; with --subjects only some clients

`--figures FILE` keeps the figures as JSON. With figures that the file holds already, `--only` measures its kinds anew
and writes the document from all of them; `--only ""` only writes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import (
    calls,
    connections,
    edge,
    imports,
    instructions,
    memory,
    overhead,
    report,
    route,
    scaling,
    system_calls,
)
from benchmarks.bench import ROOT, bench, progress

KINDS: dict[str, Any] = {
    "calls": calls.measure,
    "overhead": overhead.measure,
    "edge": edge.measure,
    "route": route.measure,
    "scaling": scaling.measure,
    "memory": memory.measure,
    "connections": connections.measure,
    "system_calls": system_calls.measure,
    "instructions": instructions.measure,
    "imports": imports.measure,
}
WITHOUT_SUBJECTS = ("overhead", "edge", "route", "imports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--subjects", default="")
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()

    found: dict[str, Any] = {}
    if options.figures is not None and options.figures.exists():
        found = json.loads(options.figures.read_text())
    rounds = options.rounds or (1 if options.quick else 5)
    with bench(rounds=rounds, quick=options.quick) as running:
        for kind in filter(None, options.only.split(",")):
            started = time.monotonic()
            progress(f"{kind} ")
            if options.subjects and kind not in WITHOUT_SUBJECTS:
                found[kind] = KINDS[kind](running, options.subjects.split(","))
            else:
                found[kind] = KINDS[kind](running)
            progress(f"  {time.monotonic() - started:.0f} s\n")
            found["conditions"] = report.conditions(rounds)
            if options.figures is not None:
                options.figures.write_text(json.dumps(found, indent=1))
    is_whole = all(kind in found for kind in KINDS) and not options.subjects
    text = report.document(found) if is_whole else report.tables(found)
    sys.stdout.write(text)
    if is_whole and not options.quick:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
