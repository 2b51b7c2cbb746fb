"""The documents are true: every ```python block of README.md and docs/**/*.md runs.

What a writer of documents can count on:

* The ```python blocks of one file run in order and share their names, as when a reader pastes them one after the other
  into one session. `await`, `async with` and `async for` may stand at top level; `asyncio.run(main())` works too, in a
  block that has no `await` at top level. A warning is an error. `__name__` is not "__main__".
* No block reaches the network. These hosts are answered in the process, all others cannot be connected to:
  `example.com` and everything below it, `api.github.com`, `test.com`. They answer
      POST …/token            an OAuth2 token
      GET  …/users            [{"id": 1, "name": "Ada"}, {"id": 2, "name": "Alan"}]
      GET  …/users/<login>    {"login": "<login>", "name": "<Login>", "id": 1}
      …/status/<code>         that status; 429 with `Retry-After: 1`
      …/flaky/<n>             503 to the first n calls in the document, then 200
      any other               200 and {"ok": true, "method": …, "path": …, "query": {…}, "body": …}
  So write `https://api.example.com`, not `...`. The clock is real: a block should wait for nothing (with a retry, give
  `retry_backoff_factor=0`).
* `export NAME=value` and `NAME=value` lines of a ```sh (or bash, shell, console) or ```dotenv block are in the
  environment of the blocks that follow it in the file.
* A block whose first line is a comment with a file name (`# shop.py`) is also written to a file of that name, and later
  blocks may import it.
* A block that defines `test_…` functions is a test module (`test_line_<n>.py`, unless it has a file name), run by
  pytest after the other blocks, with this project's settings and plugins. It does not see the names of other blocks,
  but may import their files.
* `<!-- docs: output -->` before a ```text block: that is what the ```python block before it prints.
* `<!-- docs: check` NEWLINE code NEWLINE `-->` is code that runs in the same way, invisible to the reader.
* `<!-- docs: skip REASON -->` before a block that is not ```python takes it out of the checks below. A ```python block
  is never skipped.
* Each `curl` line of a shell block must be one of README.md, which `test_example_app.py` runs against the example.
* Relative links must lead to a file, and their #fragment to a heading.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
import opentelemetry.trace
import pytest
from opentelemetry.util._once import Once

from tests.documents import README_EXCHANGES, ROOT, SHELLS, Block, blocks, curl_lines, directive, documents

DOCUMENTS = pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))

_FILE_NAME = re.compile(r"# (\w+\.py)\s*$", re.MULTILINE)


# -- a world without a network


class Internet:
    """The hosts that the documents speak of."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def answer(self, request: httpx.Request) -> httpx.Response:
        host, path = request.url.host, request.url.path
        if not re.fullmatch(r"(.+\.)?example\.com|api\.github\.com|test\.com", host):
            raise httpx.ConnectError(f"the documents' hosts do not include {host!r}", request=request)
        self.calls[path] += 1
        if request.method == "POST" and path.endswith("/token"):
            return httpx.Response(200, json={"access_token": "docs", "token_type": "Bearer", "expires_in": 3600})
        if path.endswith("/users"):
            return httpx.Response(200, json=[{"id": 1, "name": "Ada"}, {"id": 2, "name": "Alan"}])
        if found := re.search(r"/users/([^/]+)$", path):
            return httpx.Response(200, json={"login": found[1], "name": found[1].title(), "id": 1})
        if found := re.search(r"/status/(\d{3})$", path):
            return httpx.Response(int(found[1]), headers={"Retry-After": "1"} if found[1] == "429" else {})
        if (found := re.search(r"/flaky/(\d+)$", path)) and self.calls[path] <= int(found[1]):
            return httpx.Response(503)
        body = request.content.decode("utf-8", "replace")
        with contextlib.suppress(ValueError):
            body = json.loads(body)
        query = dict(request.url.params)
        return httpx.Response(
            200, json={"ok": True, "method": request.method, "path": path, "query": query, "body": body}
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Canned hosts, and everything that a block may change put back afterwards. The value is the working directory."""
    internet = Internet()

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return internet.answer(request)

    def handle_sync(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        request.read()
        return internet.answer(request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle_sync)
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    loggers = [logging.getLogger(name) for name in (None, "fastapi_http_client", "httpx")]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield tmp_path
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or tmp_path).startswith(str(tmp_path)):
            del sys.modules[name]


# -- running a document


class Session:
    """One document being read by somebody who tries everything."""

    def __init__(self, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = types.ModuleType("document_" + re.sub(r"\W", "_", path.stem))
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.printed = ""
        self.test_modules: list[Path] = []
        self.ran = 0

    def read(self, document: Iterator[Block], runner: asyncio.Runner) -> None:
        self.monkeypatch.setitem(sys.modules, self.module.__name__, self.module)
        previous = ("", "")
        for block in document:
            here = ("", "")
            if block.language == "docs":
                here = directive(block)
                if here[0] == "check":
                    self.run(block, "\n" + here[1].lstrip("\n"), runner)
            elif block.language == "python":
                assert previous[0] != "skip", f"{block.where}: a python block is never skipped"
                self.python(block, runner)
            elif block.language in (*SHELLS, "dotenv") and previous[0] != "skip":
                self.shell(block)
            elif block.language == "text" and previous[0] == "output":
                assert self.printed.rstrip() == block.text.rstrip(), f"{block.where}: something else is printed"
            previous = here
        if self.test_modules:
            run_pytest(self.test_modules, self.folder)

    def python(self, block: Block, runner: asyncio.Runner) -> None:
        named = _FILE_NAME.match(block.text)
        tests = any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            for node in ast.parse(block.text, block.where).body
        )
        if named or tests:
            file = self.folder / (named[1] if named else f"test_line_{block.line}.py")
            file.write_text(block.text + "\n", encoding="utf-8")
            if tests:
                self.ran += 1
                self.test_modules.append(file)
                return
        self.run(block, block.text, runner)

    def run(self, block: Block, code: str, runner: asyncio.Runner) -> None:
        self.ran += 1
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        # Empty lines in front, so that a traceback names the line of the document.
        compiled = compile("\n" * (block.line - 1) + code, str(block.path), "exec", flags=flags, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            if compiled.co_flags & inspect.CO_COROUTINE:
                runner.run(eval(compiled, self.module.__dict__))
            else:
                exec(compiled, self.module.__dict__)
        self.printed = output.getvalue()

    def shell(self, block: Block) -> None:
        for line in block.text.splitlines():
            try:
                words = shlex.split(line.removeprefix("$ ").removeprefix("export "), comments=True)
            except ValueError:  # an apostrophe in something printed
                continue
            pairs = [word.partition("=") for word in words]
            if all(name.isidentifier() and equals for name, equals, _ in pairs):  # else it is a command
                for name, _, value in pairs:
                    self.monkeypatch.setenv(name, value)


def run_pytest(files: list[Path], folder: Path) -> None:
    settings = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}"]
    command = [sys.executable, "-m", "pytest", "-q", *settings, *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@DOCUMENTS
def test_python_blocks_run(path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(path, world, monkeypatch)
    with asyncio.Runner() as runner:
        session.read(blocks(path), runner)
    assert session.ran == sum(1 for block in blocks(path) if is_code(block))


def is_code(block: Block) -> bool:
    return block.language == "python" or (block.language == "docs" and directive(block)[0] == "check")


# -- what else a document says


@DOCUMENTS
def test_languages_and_directives_are_known(path: Path) -> None:
    """A misspelled word must not take a block out of the checks."""
    for block in blocks(path):
        assert block.language not in ("py", "python3", "pycon"), f"{block.where}: write python"
        if block.language == "docs":
            name, argument = directive(block)
            assert name in ("check", "output", "skip"), f"{block.where}: unknown directive {name!r}"
            assert name != "skip" or argument.strip(), f"{block.where}: a skip needs its reason"


@DOCUMENTS
def test_curl_lines_are_those_of_the_example(path: Path) -> None:
    tested = {" ".join(exchange.command) for exchange in README_EXCHANGES}
    skipped = False
    for block in blocks(path):
        if block.language in SHELLS and not skipped:
            unknown = [line for line in curl_lines(block) if line not in tested]
            assert not unknown, f"{block.where}: no test runs {unknown}"
        skipped = block.language == "docs" and directive(block)[0] == "skip"


def headings(path: Path) -> set[str]:
    """The fragments that GitHub gives a file's headings."""
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: Counter[str] = Counter()
    fragments = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", text, flags=re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        fragments.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return fragments


@pytest.mark.parametrize("path", [*documents(), ROOT / "CONTRIBUTING.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", text)):
        target, _, fragment = link.partition("#")
        file = (path.parent / unquote(target)) if target else path
        assert file.exists(), f"{path.name}: no file {link}"
        if fragment:
            assert unquote(fragment) in headings(file), f"{path.name}: no heading {link}"


# -- the harness itself


def document(tmp_path: Path, text: str) -> Iterator[Block]:
    file = tmp_path / "document.md"
    file.write_text(text, encoding="utf-8")
    return blocks(file)


SAMPLE = """
```sh
export GREETING="good morning" OTHER=1
```
```python
# hello.py
import asyncio, os
greeting = os.environ["GREETING"]
async def main(): return greeting
```
<!-- docs: check
assert asyncio.run(main()) == "good morning"
-->
```python
import hello
print(await hello.main())
```
<!-- docs: output -->
```text
good morning
```
1. in a list

   ```python
   import httpx
   async with httpx.AsyncClient() as client:
       users = (await client.get("https://api.example.com/users")).json()
   assert len(users) == 2
   ```
"""


def test_harness_runs_a_document(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(world / "document.md", world, monkeypatch)
    monkeypatch.setattr("tests.documents.ROOT", world)
    with asyncio.Runner() as runner:
        session.read(document(world, SAMPLE), runner)
    assert session.ran == 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\n1 / 0\n```", ZeroDivisionError),
        ("<!-- docs: skip it is slow -->\n```python\n1\n```", AssertionError),
        ("```python\nprint(1)\n```\n<!-- docs: output -->\n```text\n2\n```", AssertionError),
        ("```python\ndef test_one(): assert 0\n```", AssertionError),
        (
            "```python\nimport httpx\nasync with httpx.AsyncClient() as c: await c.get('http://x')\n```",
            httpx.ConnectError,
        ),
        ("```python\nimport warnings\nwarnings.warn('old')\n```", UserWarning),
    ],
)
def test_harness_notices(text: str, error: type[Exception], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(world / "document.md", world, monkeypatch)
    monkeypatch.setattr("tests.documents.ROOT", world)
    with asyncio.Runner() as runner, pytest.raises(error):
        session.read(document(world, text), runner)
