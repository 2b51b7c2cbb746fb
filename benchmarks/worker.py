"""The process of one subject, which measures itself when it is asked to.

python -m benchmarks.worker SUBJECT
"""

from __future__ import annotations

import asyncio
import importlib
import resource
import sys
from typing import Any

from benchmarks.bench import answer_questions
from benchmarks.subjects import SUBJECTS, Target


def main() -> None:
    subject = SUBJECTS[sys.argv[1]]
    opens = subject.load()
    new_loop = asyncio.new_event_loop
    if subject.uvloop:
        import uvloop

        new_loop = uvloop.new_event_loop
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # thousands of connections

    def answer(question: dict[str, Any]) -> Any:
        module, _, function = question["probe"].partition(":")
        probe = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(probe(opens, Target(**question["target"]), **question["arguments"]))

    answer_questions(answer)


if __name__ == "__main__":
    main()
