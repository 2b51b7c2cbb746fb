"""The example does what README.md says: each of its console lines is run, and prints exactly what is printed there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator

import httpx
import pytest
import websockets.sync.client
from fastapi import FastAPI, Request

from example_app.__main__ import demo_environment
from tests.documents import README_EXCHANGES, ROOT, Exchange
from tests.servers import free_port, serve

SHOP = "127.0.0.1:8000"  # as written in README.md


@contextlib.contextmanager
def example(**variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m example_app` on free ports: the process and the shop's host and port."""
    environment = {name: value for name, value in os.environ.items() if "HTTP_CLIENT" not in name} | variables
    port = free_port()
    ports = [f"--port={port}", f"--upstream-port={free_port()}", f"--warehouse-port={free_port()}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "example_app", *ports],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in said, said + process.stdout.read()
        yield process, f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
            process.stdout.close()


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    with example() as (_, address):
        yield address


def curl(arguments: list[str], shop: str) -> str:
    """What curl prints, for the options that README.md uses; an option it does not know fails the test."""
    parser = ArgumentParser(prog="curl", exit_on_error=False)
    parser.add_argument("url")
    parser.add_argument("-s", action="store_true", required=True)
    parser.add_argument("-i", action="store_true")
    parser.add_argument("-m", type=float, default=60)
    parser.add_argument("-X", default="GET")
    parser.add_argument("-H", action="append", default=[])
    options = parser.parse_args(arguments)
    headers = dict(re.split(r":\s*", header, maxsplit=1) for header in options.H)
    assert SHOP in options.url
    with httpx.Client(timeout=options.m, trust_env=False) as client:
        try:
            reply = client.request(options.X, options.url.replace(SHOP, shop), headers=headers)
        except httpx.TimeoutException:
            return ""
    if not options.i:
        return reply.text
    head = "".join(f"{name.decode()}: {value.decode()}\n" for name, value in reply.headers.raw)
    return f"{reply.http_version} {reply.status_code} {reply.reason_phrase}\n{head}\n{reply.text}"


def talk(url: str, output: str) -> Iterator[str]:
    """The lines of a conversation with the websockets client: what is sent, and what is received."""
    with websockets.sync.client.connect(url, proxy=None) as websocket:
        for line in output.splitlines():
            if line.startswith("> "):
                websocket.send(line.removeprefix("> "))
                yield line
            else:
                yield f"< {websocket.recv(timeout=10, decode=True)}"


@pytest.mark.parametrize("exchange", README_EXCHANGES, ids=lambda exchange: exchange.command[-1])
def test_readme_line_prints_what_it_says(exchange: Exchange, shop: str) -> None:
    program, *arguments = exchange.command
    if program == "curl":
        assert curl(arguments, shop).rstrip() == exchange.output
    else:
        assert exchange.command[:-1] == [".venv/bin/python", "-m", "websockets"]
        url = arguments[-1].replace(SHOP, shop)
        assert "\n".join(talk(url, exchange.output)) == exchange.output


def test_readme_shows_each_route_of_the_shop() -> None:
    from example_app.app import app

    shown = [exchange.command[-1].partition(SHOP)[2] for exchange in README_EXCHANGES]
    for route in app.router.routes:
        path = getattr(route, "path", "")
        if not path.startswith(("/docs", "/redoc", "/openapi")):
            pattern = re.sub(r"\{\w+\}", "[^/]+", path)
            assert any(re.fullmatch(pattern, line) for line in shown), f"README.md does not show {path}"


def test_variables_point_a_client_elsewhere() -> None:
    """A real API in the place of the catalog, with another kind of credential: no code is changed."""
    real = FastAPI()

    @real.get("/v2/products/{sku}")
    async def product(sku: str, request: Request) -> dict[str, str | None]:
        return {"sku": sku, "authorization": request.headers.get("authorization")}

    with (
        serve(real, lifespan="off") as url,
        example(
            HTTP_CLIENT__CATALOG__BASE_URL=f"{url}/v2",
            HTTP_CLIENT__CATALOG__AUTH__TYPE="bearer",
            HTTP_CLIENT__CATALOG__AUTH__TOKEN="real-token",
        ) as (_, shop),
    ):
        reply = httpx.get(f"http://{shop}/products/teapot", trust_env=False)
    assert reply.json() == {"sku": "teapot", "authorization": "Bearer real-token"}


def test_given_variables_win_and_a_given_kind_of_credential_replaces_the_whole_section() -> None:
    full = demo_environment("http://up", "http://warehouse", {})
    given = {"HTTP_CLIENT__catalog__TIMEOUT": "1", "HTTP_CLIENT__PAYMENTS__AUTH__TYPE": "basic"}
    left = demo_environment("http://up", "http://warehouse", given)
    assert set(full) - set(left) == {name for name in full if name.startswith("HTTP_CLIENT__PAYMENTS__AUTH__")}
    assert "HTTP_CLIENT__CATALOG__BASE_URL" not in demo_environment("", "", {"HTTP_CLIENT__catalog__BASE_URL": "x"})


def test_wrong_variable_stops_the_start_and_is_named() -> None:
    with example(HTTP_CLIENT__CATALOG__TIMEOUT="soon") as (process, _):
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(20) != 0
    assert "HTTP_CLIENT__CATALOG__TIMEOUT" in said


def test_port_in_use_is_said_plainly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "example_app", "--port", str(port)], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"example_app: cannot listen on 127.0.0.1:{port} (Address already in use); "
        "choose another port with --port (make run PORT=...)"
    ]


def test_interrupt_ends_it_cleanly() -> None:
    with example() as (process, shop):
        httpx.get(f"http://{shop}/products/teapot", trust_env=False)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(20) == 0
    assert "Traceback" not in said
