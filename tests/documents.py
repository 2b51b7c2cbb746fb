"""The fenced blocks of the project's Markdown files, and the exchanges shown in its console blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SHELLS = ("sh", "bash", "shell", "console")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\s`]*)")
_DIRECTIVE = re.compile(r"<!--\s*docs:\s*(?P<name>\w+)(?P<argument>.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, or a directive (`<!-- docs: ... -->`, language "docs")."""

    path: Path
    line: int
    """Of the first line of the text, from 1."""
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """README.md and everything under docs/."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a file, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if lines[at].lstrip().startswith("<!--") and "docs:" in lines[at]:
            end = next(i for i in range(at, len(lines)) if "-->" in lines[i])
            yield Block(path, at + 1, "docs", "\n".join(lines[at : end + 1]))
            at = end + 1
        elif fence := _FENCE.match(lines[at]):
            closing = re.compile(rf"^ *{re.escape(fence['fence'])}[`~]* *$")
            end = next((i for i in range(at + 1, len(lines)) if closing.match(lines[i])), -1)
            assert end > 0, f"{path}:{at + 1}: the block has no end"
            indent = len(fence["indent"])
            text = "\n".join(line[indent:] if line[:indent].isspace() else line for line in lines[at + 1 : end])
            yield Block(path, at + 2, fence["language"].lower(), text)
            at = end + 1
        else:
            at += 1


def directive(block: Block) -> tuple[str, str]:
    """The name and the argument of a directive; for one with code below its first line, the code as it stands."""
    found = _DIRECTIVE.search(block.text)
    assert found is not None, f"{block.where}: a directive is <!-- docs: NAME ... -->"
    return found["name"], found["argument"].removeprefix(" ").rstrip()


@dataclass(frozen=True)
class Exchange:
    """A command of a console block, and all that the block says it prints."""

    command: list[str]
    output: str
    where: str


def exchanges(block: Block) -> Iterator[Exchange]:
    """The commands of a console block: `$ command`, then its output; lines that start with `# ` are comments."""
    command, line = "", 0
    output: list[str] = []
    for number, text in enumerate([*block.text.splitlines(), "$ "], start=block.line):
        if text.startswith("$ "):
            if command:
                yield Exchange(shlex.split(command), "\n".join(output).rstrip(), f"{block.path.name}:{line}")
            command, output, line = text[2:], [], number
        elif not text.startswith("# "):
            output.append(text)


def curl_lines(block: Block) -> list[str]:
    """Every curl command of a shell block, as written."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.removeprefix("$ ").strip()
        if re.match(r"curl\s", line):
            found.append(" ".join(shlex.split(line, comments=True)))
    return found


README_EXCHANGES = [
    exchange for block in blocks(README) if block.language == "console" for exchange in exchanges(block)
]
"""What README.md shows of the example app."""
