"""The map of failures (`docs/failures.md`) names tests that exist, and has an answer in every row."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"\| ([A-M]\d+) \| (.+?) \| (.+?) \| (.*?)\|")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

ROWS = [match.groups() for line in (ROOT / "docs/failures.md").read_text().splitlines() if (match := ROW.match(line))]


@functools.cache
def names_in(file: str) -> frozenset[str]:
    nodes = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    functions = (node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(name for name in functions if name.startswith("test_"))


def test_the_rows_of_each_part_are_numbered() -> None:
    parts = itertools.groupby((case for case, *_ in ROWS), key=lambda case: case[0])
    assert "".join(letter for letter, _ in parts) == "ABCDEFGHIJKLM"
    for letter, cases in itertools.groupby((case for case, *_ in ROWS), key=lambda case: case[0]):
        assert [int(case[1:]) for case in cases] == list(range(1, 1 + sum(case[0] == letter for case, *_ in ROWS)))


@pytest.mark.parametrize(("case", "what", "seen", "held_by"), ROWS, ids=[case for case, *_ in ROWS])
def test_every_case_is_held_by_a_test_or_answered(case: str, what: str, seen: str, held_by: str) -> None:
    named = TEST.findall(held_by)
    assert [f"`{file}::{name}`" for file, name in named] == [part for part in held_by.strip().split(", ") if part]
    for file, name in named:
        assert name in names_in(file), f"{case}: there is no {file}::{name}"
    assert named or "**documented**" in seen.lower() or "**your part**" in seen.lower()
