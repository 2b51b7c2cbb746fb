"""Faults drawn by a seed: the same seed always draws the same ones."""

from __future__ import annotations

import gzip
import random
from urllib.parse import parse_qsl

from tests.hostile.server import HostileUpstream, route
from tests.hostile.wire import Conn, Params, Request

CHAOS: list[str] = [
    "/ok", "/ok", "/ok", "/ok", "/large?bytes=200000", "/large?bytes=100000&chunked=1",
    "/status/500", "/status/502", "/status/503?retry_after=0", "/status/429?retry_after=1", "/status/404",
    "/status/401", "/reset", "/close", "/reset-mid-headers", "/close-mid-headers", "/reset-mid-body",
    "/close-mid-body", "/hang?seconds=2", "/hang-headers?seconds=2", "/hang-mid-body?seconds=2",
    "/respond-then-reset", "/idle-close?after=0.01", "/trap?mode=close", "/trap?mode=reset", "/desync",
    "/drip?bytes=40&interval=0.05", "/drip-headers?seconds=2&interval=0.05", "/huge-header?bytes=300000",
    "/many-headers?n=20000", "/bad-head/http09", "/bad-head/cl-twice-differ", "/bad-head/cl-and-te",
    "/bad-head/bare-lf", "/bad-head/nul", "/interim?n=3", "/length-short", "/no-length", "/no-length?reset=1",
    "/chunked-bad/size", "/chunked-bad/no-end", "/chunked-bad/trailers", "/body-on/204", "/bomb/gzip?mb=32",
    "/bomb/zstd?mb=32", "/bomb/br", "/coding/lie", "/coding/truncated", "/json/deep", "/json/invalid",
    "/redirect-loop", "/redirect-cross", "/slow?delay=0.5", "/infinite?mb=8&seconds=1",
    "/retry-after/negative?fail=9", "/retry-after/huge?fail=9", "/retry-after/date-9999?fail=9",
]  # fmt: skip


def chaos_choice(seed: str, index: int) -> str:
    return random.Random(f"{seed}:{index}").choice(CHAOS)


@route("/chaos")
async def chaos(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A fault drawn by `?seed=` and `?n=` (or the request's number for that seed): the same pair always draws
    the same fault. `chaos_choice()` is the draw."""
    seed = request.params.text("seed", str(server.seed))
    index = request.params.integer("n", -1)
    if index < 0:
        index = server.state[f"chaos:{seed}"] = server.state.get(f"chaos:{seed}", -1) + 1
    path, _, query = chaos_choice(seed, index).partition("?")
    request.path = path
    request.params = Params(parse_qsl(query, keep_blank_values=True))
    found = server.find(path)
    assert found is not None
    await found.handler(server, conn, request)


ODD_CHARSETS = [
    b"utf-8", b"latin-1", b"utf-7", b"utf-16", b"idna", b"punycode", b"rot13", b"hex", b"zlib", b"base64", b"undefined",
    b"unicode_escape", b"mbcs", b"none", b"'", b'"', b"", b"\xff", b"utf-8\x00", b"a" * 300, b"../../etc", b"charmap",
]  # fmt: skip
ODD_LOCATIONS = [
    b"http://127.0.0.1:99999/", b"http://127.0.0.1:0/", b"http://127.0.0.1:-1/", b"javascript:alert(1)", b"data:,x",
    b"file:///etc/passwd", b"//", b"///", b"http://", b"http:///x", b"http://[::1", b"http://[v1.x]/",
    b"http://a b/", b"http://\xff/", b"?", b"#", b"", b"http://" + b"a" * 300 + b"/", b"http://xn--/", b"/" * 3000,
    b"http://127.0.0.1:1@127.0.0.1:2/", b"\\\\127.0.0.1\\x", b"http:127.0.0.1", b"HTTP://LOCALHOST:1/", b"http://0/",
]  # fmt: skip


def fuzzed_response(seed: str) -> bytes:
    """A response from a valid template with 1 to 8 mutations; a pure function of the seed."""
    rng = random.Random(f"fuzz:{seed}")
    body = rng.choice([b"hello", b'{"a": 1}', b"x" * 5000, gzip.compress(b"z" * 5000, mtime=0), b""])
    headers = [
        rng.choice([b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked", b"Connection: close"]),
        rng.choice([b"Content-Type: application/json", b"Content-Type: text/html; charset=utf-8", b"X-A: b"]),
    ]
    extras = [
        b"Content-Encoding: gzip", b"Set-Cookie: a=b; Path=/", b"Location: /ok", b"Retry-After: 1",
        b"Link: <a>; rel=next", b"Content-Encoding: br", b"Content-Encoding: zstd", b"Connection: keep-alive",
        b"Trailer: X-T", b"WWW-Authenticate: Basic realm=x",
        b"Content-Type: text/plain; charset=" + rng.choice(ODD_CHARSETS),
        b"Location: " + rng.choice(ODD_LOCATIONS),
        b"Content-Encoding: " + b", ".join([b"gzip"] * rng.choice([2, 20, 300])),
    ]  # fmt: skip
    headers += [extra for extra in extras if rng.random() < 0.12]
    status = rng.choice([200, 200, 200, 204, 206, 301, 302, 304, 307, 401, 404, 429, 500, 503, 100, 101, 103])
    if b"Transfer-Encoding: chunked" in headers:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    data = bytearray(b"HTTP/1.1 %d OK\r\n" % status + b"\r\n".join(headers) + b"\r\n\r\n" + body)
    tokens = [
        b"\r\n", b"\n", b"\r", b"\x00", b":", b" ", b"\xff", b"HTTP/1.1", b"-1", b"9" * 30, b"%", b"\xc3\xa9",
        b";", b"=", b"\t",
    ]  # fmt: skip
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        kind = rng.random()
        if kind < 0.3 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind < 0.6:
            data[at:at] = rng.choice(tokens) * rng.choice([1, 1, 1, 2, 50])
        elif kind < 0.75:
            del data[at : at + rng.randint(1, 20)]
        elif kind < 0.85:
            data[at:at] = data[at : at + rng.randint(1, 60)]
        elif kind < 0.95:
            del data[at:]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 64)))
    return bytes(data)


@route("/fuzz")
async def fuzz(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A mutated response, a pure function of `?seed=`, then `?then=` (close). `fuzzed_response()` makes it."""
    await conn.send(fuzzed_response(request.params.text("seed", "0")))
    await conn.finish(request.params.text("then", "close"), server.fault_budget(request))
