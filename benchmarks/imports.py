"""What importing the package takes on top of `import fastapi, httpx`, in new interpreters, with all of it compiled."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
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
    """Processor time in ms."""
    found = []
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        command = [sys.executable, "-c", _PROGRAM]
        for _ in range(4 if bench.quick else 16):
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
            found.append([float(figure) * 1e3 for figure in done.stdout.split()])
            progress(".")
    both, ours = (statistics.median(column) for column in zip(*found[1:], strict=True))  # the first has compiled it
    return {"fastapi, httpx": both, "fastapi_http_client": ours}
