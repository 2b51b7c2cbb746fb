"""What is imported, and when: at an import of the package, at a start, at the first call, in every pytest run."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

IMPORT_ADDS = """
import asyncio, fastapi, httpx, json, sys
before = set(sys.modules)
import fastapi_http_client
print(json.dumps(sorted(set(sys.modules) - before)))
"""

START_AND_CALL_ADD = """
import asyncio, fastapi, json, os, sys
from fastapi_http_client import HTTPClients, http_client

clients = HTTPClients()
app = fastapi.FastAPI(lifespan=clients.lifespan)
clients.install(app)

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 2\\r\\n\\r\\n{}")

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    os.environ["HTTP_CLIENT__API__BASE_URL"] = f"http://127.0.0.1:{port}"
    imported = set(sys.modules)
    async with clients.lifespan(app):
        started = set(sys.modules)
        assert (await clients["api"].get("/")).json_data == {}
        called = set(sys.modules)
    server.close()
    print(json.dumps([sorted(started - imported), sorted(called - started)]))

asyncio.run(main())
"""

PLUGIN_ADDS = """
import json, pytest, sys
before = set(sys.modules)
import pytest_fastapi_http_client
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def added_by(program: str) -> Any:
    """What the program prints, in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout)


def ours(modules: list[str]) -> set[str]:
    return {name.removeprefix("fastapi_http_client.") for name in modules if name.startswith("fastapi_http_client.")}


def theirs(modules: list[str]) -> set[str]:
    """The packages of others, the interpreter's own left out."""
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"fastapi_http_client"}
    return {name for name in packages if "cython" not in name}  # which leaves these behind in what it compiles


def test_importing_the_package_imports_no_more_than_every_service_needs() -> None:
    """Besides what `import fastapi, httpx` has imported already. The rest is for those who use it."""
    added = added_by(IMPORT_ADDS)
    assert theirs(added) == set()
    for late in (
        "fleet",
        "stores",
        "settings.load",
        "settings.explain",
        "engine.transport",
        "httpcore",
        "testing",
    ):
        assert late not in ours(added)
    assert not {"difflib", "importlib.resources", "asyncio.subprocess", "unittest.mock"} & set(added)


def test_an_app_starts_without_what_it_does_not_use_and_imports_nothing_in_its_first_call() -> None:
    started, called = added_by(START_AND_CALL_ADD)
    assert "settings.load" in ours(started)
    assert not {"redis", "cryptography", "httpcore", "httpcore2", "h11", "h2"} & theirs(started)
    assert not {"fleet", "stores", "httpcore", "settings.explain"} & ours(started)
    assert (ours(called), theirs(called)) == (set(), set())


def test_the_pytest_plugin_imports_nothing_until_its_fixture_is_used() -> None:
    assert added_by(PLUGIN_ADDS) == ["pytest_fastapi_http_client"]


def test_the_pytest_plugin_is_the_one_that_is_quick_to_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"fastapi_http_client": "pytest_fastapi_http_client"}
