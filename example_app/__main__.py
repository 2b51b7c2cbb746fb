"""Run the shop, and beside it, each on its own port, the warehouse and the upstream."""

import argparse
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import uvicorn
from fastapi import FastAPI

from example_app import app as shop
from example_app import tracing, upstream, warehouse

HOST = "127.0.0.1"


def demo_environment(upstream_url: str, warehouse_url: str, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that configure the clients, as far as they are not given: set one to point its client elsewhere."""
    demo = {
        "HTTP_CLIENT__DEFAULT__TIMEOUT": "15",
        "HTTP_CLIENT__DEFAULT__RETRY_BACKOFF_FACTOR": "0.05",
        #
        "HTTP_CLIENT__CATALOG__BASE_URL": f"{upstream_url}/catalog",
        "HTTP_CLIENT__CATALOG__AUTH__TYPE": "api_key",
        "HTTP_CLIENT__CATALOG__AUTH__API_KEY": upstream.API_KEY,
        "HTTP_CLIENT__CATALOG__ENABLE_RATE_LIMITING": "true",
        "HTTP_CLIENT__CATALOG__RATE_LIMIT_RATE": "20",
        "HTTP_CLIENT__CATALOG__RATE_LIMIT_BURST": "5",
        #
        "HTTP_CLIENT__PAYMENTS__BASE_URL": f"{upstream_url}/payments",
        "HTTP_CLIENT__PAYMENTS__AUTH__TYPE": "oauth2",
        "HTTP_CLIENT__PAYMENTS__AUTH__TOKEN_URL": f"{upstream_url}/oauth/token",
        "HTTP_CLIENT__PAYMENTS__AUTH__CLIENT_ID": upstream.CLIENT_ID,
        "HTTP_CLIENT__PAYMENTS__AUTH__CLIENT_SECRET": upstream.CLIENT_SECRET,
        "HTTP_CLIENT__PAYMENTS__ENABLE_CIRCUIT_BREAKER": "true",
        "HTTP_CLIENT__PAYMENTS__CIRCUIT_BREAKER_FAILURE_THRESHOLD": "3",
        "HTTP_CLIENT__PAYMENTS__CIRCUIT_BREAKER_RECOVERY_TIMEOUT": "1",
        #
        "HTTP_CLIENT__WAREHOUSE__BASE_URL": warehouse_url,
        "HTTP_CLIENT__WAREHOUSE__PROPAGATION": "internal",
    }
    names = {name.upper() for name in given}
    # Another kind of credential replaces the demo's as a whole.
    replaced = tuple(name.removesuffix("TYPE") for name in names if name.endswith("__AUTH__TYPE"))
    return {name: value for name, value in demo.items() if name not in names and not name.startswith(replaced)}


def listen(port: int, option: str) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        sys.exit(f"example_app: cannot listen on {HOST}:{port} ({reason}); choose another port with {option}")


def url(sock: socket.socket) -> str:
    return f"http://{HOST}:{sock.getsockname()[1]}"


def server(app: FastAPI) -> uvicorn.Server:
    # Without uvicorn's own headers, `curl -i` prints exactly what the README shows.
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, date_header=False))


@contextlib.contextmanager
def beside(app: FastAPI, sock: socket.socket) -> Iterator[None]:
    """Run an app in a thread with its own event loop."""
    running = server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        running.should_exit = True
        thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="example_app", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the shop")
    parser.add_argument("--upstream-port", type=int, default=8001)
    parser.add_argument("--warehouse-port", type=int, default=8002)
    args = parser.parse_args()

    shop_socket = listen(args.port, "--port (make run PORT=...)")
    upstream_socket = listen(args.upstream_port, "--upstream-port (make run UPSTREAM_PORT=...)")
    warehouse_socket = listen(args.warehouse_port, "--warehouse-port (make run WAREHOUSE_PORT=...)")

    os.environ.update(demo_environment(url(upstream_socket), url(warehouse_socket), os.environ))
    tracing.start()
    with beside(upstream.app, upstream_socket), beside(warehouse.app, warehouse_socket):
        print(f"The shop is on {url(shop_socket)}; try the curl lines of README.md. Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server(shop.app).run(sockets=[shop_socket])


if __name__ == "__main__":
    main()
