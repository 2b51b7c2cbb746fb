"""What the codings of a body depend on: the libraries that are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from fastapi_http_client import AsyncHTTPClient

OLD_BROTLI = """
class error(Exception): ...

class Decompressor:  # as before brotli 1.2: its output cannot be bounded
    def process(self, data): ...
    def is_finished(self): ...
"""
CALL = """
import asyncio, httpx
from fastapi_http_client import AsyncHTTPClient, HTTPRequestError

offered = []

def answer(request):
    offered.append(request.headers["accept-encoding"])
    return httpx.Response(200, headers={"Content-Encoding": "br"}, stream=httpx.ByteStream(b"not text at all"))

async def main():
    async with AsyncHTTPClient("http://up.example", transport=httpx.MockTransport(answer)) as client:
        try:
            print("undecoded:", (await client.get("/")).content)
        except HTTPRequestError as error:
            print(offered[0], "|", error)

asyncio.run(main())
"""


def test_a_brotli_that_is_too_old_is_not_offered_and_never_left_undone(tmp_path: Path) -> None:
    (tmp_path / "brotli.py").write_text(OLD_BROTLI)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=True, env=env)
    offered, _, error = done.stdout.partition(" | ")
    assert "br" not in offered.split(", ")
    assert "gzip" in offered
    assert "brotli that is installed is older than 1.2" in error


def test_what_is_offered_is_what_httpx_offers_and_can_be_changed() -> None:
    assert AsyncHTTPClient().headers["accept-encoding"] == httpx.AsyncClient().headers["accept-encoding"]
    assert AsyncHTTPClient(headers={"Accept-Encoding": "identity"}).headers["accept-encoding"] == "identity"
