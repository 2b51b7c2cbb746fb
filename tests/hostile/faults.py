"""Faults of one exchange: of the connection, of the head, of the body."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import select
import socket
import struct
import time
import zlib
from collections.abc import Iterator

from tests.hostile.server import ROUTES, HostileUpstream, route, tail
from tests.hostile.tables import BAD_CHUNKS, BAD_HEADS, JSON_BODIES
from tests.hostile.wire import MIB, Conn, Request, reason

# -- plain answers


@route("/ok")
async def ok(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 {"ok": true}. `?delay=` seconds first."""
    await asyncio.sleep(request.params.number("delay", 0))
    await conn.json(request, {"ok": True})


@route("/echo")
async def echo(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 with the request as JSON: method, target, headers in order, body, raw head."""
    await conn.json(
        request,
        {
            "method": request.method,
            "target": request.target,
            "path": request.path,
            "query": request.params.pairs,
            "version": request.version,
            "headers": request.headers,
            "headers_dict": {name.lower(): value for name, value in request.headers},
            "body": request.body.decode("utf-8", "replace"),
            "body_b64": base64.b64encode(request.body).decode(),
            "body_length": len(request.body),
            "raw_head": request.raw_head.decode("latin-1"),
            "listener": conn.listener,
            "port": server.ports[conn.listener],
            "conn": conn.id,
            "number_on_conn": request.number_on_conn,
            "proxy_form": request.absolute_form,
        },
    )


ROUTES["/echo/*"] = ROUTES["/echo"]


@route("/status/*")
async def status(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/status/<code>. `?retry_after=` raw Retry-After value, `?body=`, `?delay=`, `?close=1`."""
    code = tail(request)
    await asyncio.sleep(request.params.number("delay", 0))
    headers = [("Retry-After", request.params.text("retry_after"))] if "retry_after" in request.params else []
    body = request.params.text("body", f"status {code}\n")
    if code.isdigit() and 200 <= int(code) <= 599:
        await conn.respond(request, int(code), body, headers, close=request.params.flag("close"))
        return
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    await conn.send(f"HTTP/1.1 {code} Odd\r\nContent-Length: {len(body)}\r\n{extra}\r\n{body}".encode("latin-1"))


@route("/respond")
async def respond(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Any response: `?status=&header=Name:Value&header=...&body=&delay=&close=1`.
    Header bytes go out unchecked, so `%0d%0a` in them splits the response."""
    params = request.params
    await asyncio.sleep(params.number("delay", 0))
    headers = [(name, value.lstrip()) for name, _, value in (h.partition(":") for h in params.all("header"))]
    await conn.respond(request, params.integer("status", 200), params.text("body"), headers, close=params.flag("close"))


@route("/raw")
async def raw(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Sends exactly the bytes given: `?b64=` or the request's body; then `?then=close|reset|hang|keep`."""
    data = base64.b64decode(request.params.text("b64").replace(" ", "+")) if "b64" in request.params else request.body
    await conn.send(data)
    await conn.finish(request.params.text("then", "close"), server.fault_budget(request))


@route("/large")
async def large(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A correct body of `?bytes=` (1 MiB); header X-Sha256 holds its hash; `?chunked=1`."""
    size = min(request.params.integer("bytes", MIB), 1024 * MIB)
    block = bytes(range(256)) * 256
    digest = hashlib.sha256()
    for offset in range(0, size, len(block)):
        digest.update(block[: size - offset])
    chunked = request.params.flag("chunked")
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    await conn.send(
        f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{framing}\r\n"
        f"X-Sha256: {digest.hexdigest()}\r\n\r\n".encode()
    )
    request.status = 200
    for offset in range(0, size, len(block)):
        part = block[: size - offset]
        await conn.send(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
    if chunked:
        await conn.send(b"0\r\n\r\n")


@route("/stream")
async def stream(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A chunked stream of `?n=` (10) JSON lines, `?interval=` (0.05) s apart; `?sse=1`: as events;
    `?fail_after=k`: ended after k lines by `?then=reset|close|hang` (reset)."""
    params = request.params
    sse, fail_after = params.flag("sse"), params.integer("fail_after", -1)
    kind = b"text/event-stream" if sse else b"application/x-ndjson"
    request.status = 200
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    for i in range(params.integer("n", 10)):
        if i == fail_after:
            await conn.finish(params.text("then", "reset"), server.fault_budget(request))
            return
        line = b'data: {"i": %d}\n\n' % i if sse else b'{"i": %d}\n' % i
        await conn.send(b"%x\r\n%b\r\n" % (len(line), line))
        await asyncio.sleep(params.number("interval", 0.05))
    await conn.send(b"0\r\n\r\n")


# -- connection faults


@route("/reset")
async def reset(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """RST after the request was read, no byte sent."""
    await conn.reset(0)


@route("/close")
async def close(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """FIN after the request was read, no byte sent."""
    await conn.close()


@route("/reset-mid-headers")
async def reset_mid_headers(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """RST in the middle of a header line."""
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Half: abc")
    await conn.reset()


@route("/close-mid-headers")
async def close_mid_headers(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """FIN in the middle of a header line."""
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Half: abc")
    await conn.finish("close")


@route("/reset-mid-body")
async def reset_mid_body(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Content-Length `?length=` (1000), `?sent=` (100) bytes sent, RST."""
    await partial_body(conn, request)
    await conn.reset()


@route("/close-mid-body")
async def close_mid_body(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Content-Length `?length=` (1000), `?sent=` (100) bytes sent, FIN: a truncated body."""
    await partial_body(conn, request)
    await conn.finish("close")


@route("/hang-mid-body")
async def hang_mid_body(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Content-Length `?length=` (1000), `?sent=` (100) bytes sent, then silence for `?seconds=`."""
    await partial_body(conn, request)
    await conn.finish("hang", server.fault_budget(request))


async def partial_body(conn: Conn, request: Request) -> None:
    length, sent = request.params.integer("length", 1000), request.params.integer("sent", 100)
    request.status = 200
    await conn.send(f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n".encode())
    await conn.send(b"x" * sent)


@route("/respond-then-reset")
async def respond_then_reset(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A whole keep-alive response, RST 20 ms later: the pooled connection is dead."""
    await conn.json(request, {"ok": True})
    await conn.reset()


@route("/idle-close")
async def idle_close(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A whole keep-alive response, FIN after `?after=` (0.05) s, whatever arrives meanwhile: the keep-alive race."""
    await conn.json(request, {"ok": True})
    await asyncio.sleep(request.params.number("after", 0.05))
    await conn.close()


@route("/trap")
async def trap(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 keep-alive; the NEXT request on this connection is received, recorded and then meets
    `?mode=close|reset|hang|garbage|stale` (close). `?read=0` leaves its body unread. This makes the
    keep-alive race deterministic."""
    conn.trap = {
        "mode": request.params.text("mode", "close"),
        "read": request.params.flag("read", True),
        "seconds": server.fault_budget(request),
    }
    await conn.json(request, {"ok": True, "trap": conn.trap["mode"]})


@route("/desync")
async def desync(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A whole response with a SECOND unsolicited response behind it, in the same segment or `?wait=` s later.
    A client that pools the connection gives the second one to the next caller."""
    good, poison = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for body in (b'{"owner": "first"}', b'{"owner": "POISON"}')
    )
    request.status = 200
    if "wait" in request.params:
        await conn.send(good)
        await asyncio.sleep(request.params.number("wait", 0))
        await conn.send(poison)
    else:
        await conn.send(good + poison)


@route("/hang")
async def hang(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Reads the request and says nothing for `?seconds=` (60), then closes."""
    await conn.finish("hang", server.fault_budget(request))


@route("/hang-headers")
async def hang_headers(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Status line and one header, then silence."""
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n")
    await conn.finish("hang", server.fault_budget(request))


@route("/slow")
async def slow(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 after `?delay=` (1) s; the client's going away is seen and counted."""
    await conn.hang(request.params.number("delay", 1.0))
    await conn.json(request, {"ok": True, "slow": True})


@route("/drip")
async def drip(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Slow loris: a body of `?bytes=` (600), one byte each `?interval=` (0.1) s. Each read succeeds,
    so a per-read timeout never fires; only a total deadline ends it."""
    count, interval = request.params.integer("bytes", 600), request.params.number("interval", 0.1)
    request.status = 200
    await conn.send(f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {count}\r\n\r\n".encode())
    for _ in range(count):
        await conn.send(b".")
        await asyncio.sleep(interval)


@route("/drip-headers")
async def drip_headers(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Slow loris in the head: one byte of header each `?interval=` (0.1) s for `?seconds=` (60)."""
    interval, end = request.params.number("interval", 0.1), time.monotonic() + server.fault_budget(request)
    await conn.send(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while time.monotonic() < end:
        await conn.send(b"a")
        await asyncio.sleep(interval)
    await conn.send(b"\r\nContent-Length: 2\r\n\r\nok")


@route("/no-read", read_body=False)
async def no_read(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Never reads the request's body, for `?seconds=` (10): a large upload must meet the write timeout."""
    conn.closing = True
    conn.writer.transport.pause_reading()  # type: ignore[attr-defined]
    sock: socket.socket = conn.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end = time.monotonic() + request.params.number("seconds", 10.0)
    while time.monotonic() < end and not peer_is_gone(sock):  # nothing tells us but the socket
        await asyncio.sleep(0.05)
    await conn.reset(0)


def peer_is_gone(sock: socket.socket) -> bool:
    """Whether the other side closed, without reading (Linux; elsewhere never)."""
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


@route("/early", read_body=False)
async def early(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Answers `?status=` (413) before the request's body is read, `?then=close|reset|drain` (close).
    The client must report the status, not only a broken pipe."""
    conn.closing = True
    code = request.params.integer("status", 413)
    await conn.respond(request, code, "too large\n", close=True)
    then = request.params.text("then", "close")
    if then == "drain":
        await conn.read_body(request)
        return
    await conn.finish(then)


@route("/reset-mid-upload", read_body=False)
async def reset_mid_upload(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """RST after `?after=` (65536) bytes of the request's body."""
    left = request.params.integer("after", 65536)
    while left > 0 and (data := await conn.reader.read(min(left, 65536))):
        left -= len(data)
    await conn.reset(0)


@route("/sink", read_body=False)
async def sink(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Reads the body, slowly with `?delay=` s before; answers its length and sha256."""
    await asyncio.sleep(request.params.number("delay", 0))
    await conn.read_body(request)
    digest = hashlib.sha256(request.body).hexdigest()
    await conn.json(request, {"length": len(request.body), "sha256": digest})


# -- header faults


@route("/huge-header")
async def huge_header(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """One response header of `?bytes=` (1 MiB)."""
    size = min(request.params.integer("bytes", MIB), 64 * MIB)
    await conn.send(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    await conn.send(b"h" * size)
    await conn.send(b"\r\nContent-Length: 2\r\n\r\nok")


@route("/many-headers")
async def many_headers(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """`?n=` (10000) response headers."""
    lines = "".join(f"X-H{i}: {i}\r\n" for i in range(min(request.params.integer("n", 10_000), 1_000_000)))
    await conn.send(f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok".encode())


@route("/infinite-headers")
async def infinite_headers(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Header lines without end, up to `?mb=` (256)."""
    await conn.send(b"HTTP/1.1 200 OK\r\n")
    block = b"".join(b"X-Endless-%d: %b\r\n" % (i, b"e" * 1000) for i in range(64))
    for _ in range(request.params.integer("mb", 256) * MIB // len(block)):
        await conn.send(block)
    await conn.finish("hang", server.fault_budget(request))


@route("/long-status-line")
async def long_status_line(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A reason phrase of `?bytes=` (1 MiB)."""
    await conn.send(b"HTTP/1.1 200 " + b"O" * min(request.params.integer("bytes", MIB), 64 * MIB))
    await conn.send(b"\r\nContent-Length: 2\r\n\r\nok")


@route("/bad-head/*")
async def bad_head(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/bad-head/<name>: one malformed head of the BAD_HEADS table, then `?then=` (close)."""
    name = tail(request)
    if name not in BAD_HEADS:
        await conn.respond(request, 404, f"one of: {' '.join(BAD_HEADS)}\n")
        return
    await conn.send(BAD_HEADS[name])
    await conn.finish(request.params.text("then", "close"), server.fault_budget(request))


@route("/interim")
async def interim(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """`?n=` (1) interim responses of `?code=` (103), `?interval=` s apart, then 200. `?n=-1`: for `?seconds=`.
    Endless interim responses defeat a per-read timeout."""
    params = request.params
    code, count, interval = params.integer("code", 103), params.integer("n", 1), params.number("interval", 0.0)
    block = f"HTTP/1.1 {code} {reason(code)}\r\nLink: </style.css>; rel=preload\r\n\r\n".encode()
    end, sent = time.monotonic() + server.fault_budget(request), 0
    while (count < 0 or sent < count) and time.monotonic() < end:
        await conn.send(block)
        sent += 1
        await asyncio.sleep(interval)
    await conn.json(request, {"ok": True, "interim": sent})


# -- body faults


@route("/infinite")
async def infinite(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """A body without end: `?chunked=1` (else until close), at most `?mb=` (512), `?rate=` bytes/s.
    At the end of the budget the body stays open and silent."""
    params = request.params
    chunked, rate = params.flag("chunked"), params.number("rate", 0.0)
    request.status = 200
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Connection: close\r\n"
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n" + framing + b"\r\n")
    block = b"\xaa" * (65536 if not rate else max(1, min(65536, int(rate / 20))))
    left = min(params.integer("mb", 512), 8192) * MIB
    while left > 0:
        await conn.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        left -= len(block)
        if rate:
            await asyncio.sleep(len(block) / rate)
    await conn.finish("hang", server.fault_budget(request))


@route("/length-short")
async def length_short(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """More bytes than Content-Length says (5 of 11): the surplus must not reach the next response."""
    request.status = 200
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello world")


@route("/no-length")
async def no_length(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """No framing at all: the body ends with FIN. `?reset=1`: with RST, so it may be truncated."""
    request.status = 200
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
    await conn.finish("reset" if request.params.flag("reset") else "close")


@route("/chunked-bad/*")
async def chunked_bad(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/chunked-bad/<name>: a malformed chunked body of the BAD_CHUNKS table, then FIN."""
    name = tail(request)
    if name not in BAD_CHUNKS:
        await conn.respond(request, 404, f"one of: {' '.join(BAD_CHUNKS)}\n")
        return
    request.status = 200
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    await conn.send(head + BAD_CHUNKS[name])
    await conn.finish(request.params.text("then", "close"), server.fault_budget(request))


@route("/tiny-chunks")
async def tiny_chunks(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """`?n=` (100000) chunks of one byte: a processor-time attack."""
    request.status = 200
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
    left = min(request.params.integer("n", 100_000), 10_000_000)
    while left > 0:
        part = min(left, 5000)
        await conn.send(b"1\r\n.\r\n" * part)
        left -= part
    await conn.send(b"0\r\n\r\n")


@route("/body-on/*")
async def body_on(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/body-on/<204|304|head>: a body where HTTP forbids one; the bytes must not poison the connection."""
    which = tail(request)
    code = 200 if which == "head" else int(which) if which.isdigit() else 204
    request.status = code
    await conn.send(
        f"HTTP/1.1 {code} {reason(code)}\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nforbidden".encode()
    )


@route("/upgrade")
async def upgrade(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """101 Switching Protocols that nobody asked for, then a WebSocket frame."""
    await conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    await conn.send(b"\x81\x05hello")
    await conn.finish("hang", min(server.fault_budget(request), 5.0))


# 64 MiB of zero bytes in 52 bytes of brotli.
BROTLI_64_MIB = base64.b64decode("z///fwAkAOKxQHLv//n//w+ABEAcFoDu/T////8BkACIwwLQvf/n//8/ABIAcVgAuvf/Aw==")


def zstd_zeros(size: int) -> Iterator[bytes]:
    """A valid zstd frame (RFC 8878) of RLE blocks: 4 bytes make 128 KiB."""
    yield b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([7 << 3])  # magic, descriptor, window 128 KiB
    block = 128 * 1024
    while size > 0:
        part = min(size, block)
        size -= part
        last = 1 if size == 0 else 0
        yield struct.pack("<I", (part << 3) | (1 << 1) | last)[:3] + b"\x00"


def deflated_zeros(size: int, wbits: int, layers: int = 1) -> bytes:
    stages = [zlib.compressobj(9, zlib.DEFLATED, wbits) for _ in range(layers)]
    out = bytearray()

    def feed(data: bytes, index: int) -> None:
        if index == len(stages):
            out.extend(data)
        elif data:
            feed(stages[index].compress(data), index + 1)

    zeros = bytes(MIB)
    while size > 0:
        feed(zeros[: min(size, MIB)], 0)
        size -= MIB
    for index, stage in enumerate(stages):
        feed(stage.flush(), index + 1)
    return bytes(out)


@route("/bomb/*")
async def bomb(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/bomb/<gzip|deflate|br|zstd|nested|layers>: `?mb=` (64) of zeros, compressed; br is always 64 MiB.
    nested: `?layers=` (3) of gzip; layers: `?layers=` (1000) gzip codings around one small body.
    `?json=1` says application/json. X-Decoded-Length tells the true size."""
    kind, params = tail(request), request.params
    size = min(params.integer("mb", 64), 4096) * MIB
    coding = {"gzip": "gzip", "deflate": "deflate", "br": "br", "zstd": "zstd"}.get(kind, "")
    cache_key = f"bomb:{kind}:{size}:{params.text('layers')}"
    body: bytes | None = server.state.get(cache_key)
    if body is None:
        if kind == "gzip":
            body = await asyncio.to_thread(deflated_zeros, size, 31)
        elif kind == "deflate":
            body = await asyncio.to_thread(deflated_zeros, size, 15)
        elif kind == "br":
            body = BROTLI_64_MIB
        elif kind == "zstd":
            body = b"".join(zstd_zeros(size))
        elif kind == "nested":
            body = await asyncio.to_thread(deflated_zeros, size, 31, min(params.integer("layers", 3), 10))
        elif kind == "layers":
            body = b"small"
            for _ in range(min(params.integer("layers", 1000), 5000)):
                body = gzip.compress(body, 1, mtime=0)
        else:
            await conn.respond(request, 404, "one of: gzip deflate br zstd nested layers\n")
            return
        server.state[cache_key] = body
    if kind == "br":
        size = 64 * MIB
    if kind == "nested":
        coding = ", ".join(["gzip"] * min(params.integer("layers", 3), 10))
    if kind == "layers":
        coding, size = ", ".join(["gzip"] * min(params.integer("layers", 1000), 5000)), 5
    kind_of = "application/json" if params.flag("json") else "application/octet-stream"
    await conn.respond(
        request, params.integer("status", 200), body,
        [("Content-Encoding", coding), ("X-Decoded-Length", str(size))], content_type=kind_of,
    )  # fmt: skip


@route("/coding/*")
async def coding(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/coding/<lie|truncated|corrupt|trailing|members|unknown|empty|double>: gzip gone wrong.
    members: two gzip members "hello " and "world"; double: gzip announced twice, applied once."""
    kind = tail(request)
    good = gzip.compress(b"hello world " * 1000)
    bodies: dict[str, tuple[str, bytes]] = {
        "lie": ("gzip", b"this is not gzip"),
        "truncated": ("gzip", good[:-20]),
        "corrupt": ("gzip", good[:-8] + b"\x00\x01\x02\x03" + good[-4:]),
        "trailing": ("gzip", good + b"trailing garbage"),
        "members": ("gzip", gzip.compress(b"hello ") + gzip.compress(b"world")),
        "unknown": ("x-unheard-of", b"plain bytes"),
        "empty": ("gzip", b""),
        "double": ("gzip, gzip", good),
        "br-truncated": ("br", BROTLI_64_MIB[:20]),
        "zstd-truncated": ("zstd", b"".join(zstd_zeros(1000))[:-2]),
    }
    if kind not in bodies:
        await conn.respond(request, 404, f"one of: {' '.join(bodies)}\n")
        return
    name, body = bodies[kind]
    await conn.respond(request, 200, body, [("Content-Encoding", name)])


@route("/json/*")
async def json_body(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/json/<name>: a 200 application/json whose body is of the JSON_BODIES table. `?status=`."""
    name = tail(request)
    if name not in JSON_BODIES:
        await conn.respond(request, 404, f"one of: {' '.join(JSON_BODIES)}\n")
        return
    await conn.respond(
        request, request.params.integer("status", 200), JSON_BODIES[name], content_type="application/json"
    )
