"""A hostile HTTP/1.1 upstream, to judge an HTTP client by what the server saw.

The request's path selects the fault: `/reset-mid-body` resets the connection halfway through the body, `/drip` sends
one byte at a time, `/flaky` fails the first N attempts. Everything received is recorded, so a test asks the *server*
what happened instead of trusting the client under test:

    with running() as up:
        await client.get(up.url("/flaky?fail=2&status=503&key=a"))
        assert up.key("a")["count"] == 3          # attempts the server saw
        assert up.search("my-secret") == []       # no request carried it, raw, %-encoded or inside base64
        assert up.stats()["connections"]["open"] == 0

The paths are the functions of `faults`, `scenarios` and `generated`; each one's docstring says what it does and takes.
Counters are kept per key: `?key=`, else the header `X-Hostile-Key`, else the last part of paths such as `/count/<key>`,
else the path. Every fault ends by itself (`?seconds=`, 60 at most unless told).

The listeners (`up.url(path, listener=...)`, `up.ports`): `main`, `other` (a second origin), `tls` (with `tls=True`;
certificates in `up.certs`), `refused` (nobody listens), `blackhole` (connecting hangs; Linux), `accept_reset`,
`accept_close`, `accept_hang` (also a TLS handshake that stalls, or a dead Redis) and `banner` (speaks SSH at once).

Standard library and trustme only; loopback only; HTTP/1.1 only.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.hostile import faults, generated, scenarios  # they register their paths
from tests.hostile.certs import make_certs, server_context
from tests.hostile.server import HostileUpstream

__all__ = ["HostileUpstream", "faults", "generated", "running", "scenarios"]


@contextlib.contextmanager
def running(
    *, tls: bool = False, tls_name: str = "server", require_client: bool = False, seed: int = 0
) -> Iterator[HostileUpstream]:
    """The server in a thread with its own loop, so that a blocked client cannot block it."""
    with contextlib.ExitStack() as stack:
        context, certs = None, None
        if tls:
            certs = make_certs(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-"))))
            context = server_context(certs, name=tls_name, require_client=require_client)
        server = HostileUpstream(tls=context, certs=certs, seed=seed)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _loop, _context: None)  # a client that resets is no news here
        thread = threading.Thread(target=loop.run_forever, name="hostile-upstream", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()
