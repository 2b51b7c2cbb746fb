"""What importing the package takes on top of `import fastapi, httpx`, in new interpreters."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from benchmarks.bench import ROOT, Bench, progress

_PROGRAM = """
import time
started = time.process_time()
import fastapi, httpx
between = time.process_time()
import fastapi_http_client
print(between - started, time.process_time() - between)
"""


def measure(bench: Bench) -> dict[str, Any]:
    found = []
    for _ in range(3 if bench.quick else 15):
        done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, cwd=ROOT, check=True)
        found.append([float(figure) * 1e3 for figure in done.stdout.split()])
        progress(".")
    both, ours = (statistics.median(column) for column in zip(*found, strict=True))
    return {"fastapi, httpx": both, "fastapi_http_client": ours}
