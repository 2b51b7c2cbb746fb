"""Paths with a memory: sequences of faults, effects, load, tokens, redirects, cookies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import time
from typing import Any
from urllib.parse import parse_qsl, unquote

from tests.hostile.faults import drip, partial_body, slow
from tests.hostile.server import HostileUpstream, KeyStats, Ledger, TokenRealm, route, tail
from tests.hostile.wire import Conn, Request, reason

# -- sequences and retries


@route("/count/*", keyed=True)
async def count(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/count/<key>: 200 with the number of requests of this key so far; `up.key()` has times and gaps."""
    await conn.json(request, {"key": request.key, "count": request.attempt})


@route("/flaky")
async def flaky(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """The first `?fail=` (2) requests of `?key=` fail, later ones are 200. `?mode=status|reset|close|
    hang|garbage|truncate|drip|slow`, `?status=` (503), `?retry_after=` raw, `?seconds=`, `?delay=`."""
    params = request.params
    attempt = request.attempt
    if attempt > params.integer("fail", 2):
        await conn.json(request, {"ok": True, "attempt": attempt}, headers=[("X-Attempt", str(attempt))])
        return
    await fail_with(server, conn, request, params.text("mode", "status"), params.text("status", "503"))


async def fail_with(server: HostileUpstream, conn: Conn, request: Request, mode: str, status: str) -> None:
    """One failure of the kind named by mode."""
    params = request.params
    await asyncio.sleep(params.number("delay", 0))
    if mode == "status":
        headers = [("Retry-After", params.text("retry_after"))] if "retry_after" in params else []
        await conn.respond(request, int(status), f"failing with {status}\n", headers)
    elif mode == "garbage":
        await conn.send(b"\x00\xffgarbage\r\n\r\n")
        await conn.finish("close")
    elif mode == "truncate":
        await partial_body(conn, request)
        await conn.finish("close")
    elif mode == "reset-mid-body":
        await partial_body(conn, request)
        await conn.reset()
    elif mode == "drip":
        await drip(server, conn, request)
    elif mode == "slow":
        await slow(server, conn, request)
    elif mode in {"reset", "close", "hang"}:
        await conn.finish(mode, server.fault_budget(request))
    else:
        await conn.respond(request, 500, f"unknown mode {mode}\n")


@route("/sequence/*", keyed=True)
async def sequence(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/sequence/<key>?steps=503,reset,429:2,hang,200: one step a request, the last repeats.
    A step is a status (with `:<Retry-After>`) or a mode of /flaky."""
    steps = [step for step in request.params.text("steps", "503,200").split(",") if step]
    step = steps[min(request.attempt, len(steps)) - 1]
    code, colon, retry_after = step.partition(":")
    if code.isdigit():
        headers = [("Retry-After", unquote(retry_after))] if colon else []
        await conn.json(request, {"step": step, "attempt": request.attempt}, int(code), headers=headers)
    else:
        await fail_with(server, conn, request, code, "503")


def retry_after_values() -> dict[str, str]:
    def date(offset: float) -> str:
        return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + offset))

    return {
        "zero": "0", "one": "1", "negative": "-5", "huge": "99999999999999999999", "float": "1.5",
        "nan": "nan", "inf": "inf", "exponent": "1e9", "empty": "", "space": "   ", "garbage": "soon",
        "list": "1, 120", "hex": "0x10", "plus": "+5", "underscore": "1_0", "arabic": "\u0661",
        "date-past": date(-3600), "date-soon": date(2), "date-hour": date(3600),
        "date-9999": "Fri, 31 Dec 9999 23:59:59 GMT", "date-1970": "Thu, 01 Jan 1970 00:00:00 GMT",
        "date-nozone": time.strftime("%a, %d %b %Y %H:%M:%S", time.gmtime(time.time() + 2)),
        "date-minus0": time.strftime("%a, %d %b %Y %H:%M:%S -0000", time.gmtime(time.time() + 2)),
        "date-bad": "Mon, 99 Foo 2024 99:99:99 GMT", "date-iso": "2099-01-01T00:00:00Z",
        "digits": "9" * 5000,
    }  # fmt: skip


@route("/retry-after/*")
async def retry_after(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/retry-after/<name>: 429 (`?status=`) with an absurd Retry-After for the first `?fail=` (1) requests
    of `?key=`, then 200. Names: `retry_after_values()`."""
    values, name = retry_after_values(), tail(request)
    if name not in values:
        await conn.respond(request, 404, f"one of: {' '.join(values)}\n")
        return
    if request.attempt > request.params.integer("fail", 1):
        await conn.json(request, {"ok": True})
        return
    code = request.params.integer("status", 429)
    request.status = code
    head = f"HTTP/1.1 {code} {reason(code)}\r\nContent-Length: 0\r\nRetry-After: "
    await conn.send(head.encode() + values[name].encode("utf-8") + b"\r\n\r\n")


# -- effects


@route("/effect/*", keyed=True)
async def effect(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/effect/<key>: an operation with a side effect, deduplicated by the Idempotency-Key header. The
    first `?fail=` (1) attempts end in `?then=reset|close|hang|503|...` (reset), with the effect committed
    `?commit=before|after` (before) that failure. `up.stats()["ledgers"]` tells effects, attempts and keys seen."""
    params = request.params
    ledger = server.ledgers.setdefault(request.key, Ledger())
    ledger.attempts += 1
    failing = ledger.attempts <= params.integer("fail", 1)

    if not failing or params.text("commit", "before") == "before":
        idempotency = request.header("idempotency-key")
        if idempotency:
            seen = ledger.by_idempotency_key.get(idempotency, 0)
            ledger.by_idempotency_key[idempotency] = seen + 1
            ledger.effects += 0 if seen else 1
        else:
            ledger.without_key += 1
            ledger.effects += 1
    if not failing:
        await conn.json(request, {"ok": True, **vars(ledger)})
        return
    then = params.text("then", "reset")
    if then.isdigit():
        await fail_with(server, conn, request, "status", then)
    else:
        await fail_with(server, conn, request, then, "503")


# -- load


@route("/limited/*", keyed=True)
async def limited(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/limited/<key>?rate=10&burst=1: an honest server-side token bucket; 429 with Retry-After above it."""
    rate, burst = request.params.number("rate", 10.0), request.params.number("burst", 1.0)
    state = server.state.setdefault(f"limited:{request.key}", {"tokens": burst, "at": time.monotonic()})
    now = time.monotonic()
    state["tokens"] = min(burst, state["tokens"] + (now - state["at"]) * rate)
    state["at"] = now
    if state["tokens"] >= 1 - 1e-9:
        state["tokens"] -= 1
        await conn.json(request, {"ok": True})
    else:
        wait = (1 - state["tokens"]) / rate
        headers = [("Retry-After", str(max(1, round(wait + 0.5))))]
        await conn.json(request, {"error": "rate limited", "wait": wait}, 429, headers=headers)


@route("/capacity/*", keyed=True)
async def capacity(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/capacity/<key>?max=10&service=0.05&mode=reject|share: an upstream that can do max/service requests a
    second. reject: 503 above `max` concurrent requests; share: requests share the capacity, so all of them slow
    down, and the work of clients that went away is still done, as in real overload: retries can keep it down."""
    params = request.params
    limit, service = max(1, params.integer("max", 10)), params.number("service", 0.05)
    busy = server.keys.setdefault(request.key, KeyStats()).in_flight
    if params.text("mode", "reject") == "reject":
        if busy > limit:
            await conn.json(request, {"error": "overloaded"}, 503)
            return
        await asyncio.sleep(service)
    else:
        # One queue served at limit/service a second: this request ends after all the work queued before it.
        state = server.state.setdefault(f"capacity:{request.key}", {"free_at": 0.0})
        now = time.monotonic()
        state["free_at"] = max(state["free_at"], now) + service / limit
        await asyncio.sleep(max(service, state["free_at"] - now))
    await conn.json(request, {"ok": True, "busy": busy})


@route("/outage/*", keyed=True)
async def outage(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/outage/<key>?up=0&down=3&mode=status&status=503: the first request starts a clock: up for `up` s,
    failing for `down` s, then up for good (`?cycle=1`: again and again)."""
    params = request.params
    start = server.state.setdefault(f"outage:{request.key}", time.monotonic())
    up, down = params.number("up", 0.0), params.number("down", 3.0)
    at = time.monotonic() - start
    if params.flag("cycle"):
        at %= max(up + down, 1e-6)
    if up <= at < up + down:
        await fail_with(server, conn, request, params.text("mode", "status"), params.text("status", "503"))
    else:
        await conn.json(request, {"ok": True, "at": round(at, 3)})


@route("/barrier/*", keyed=True)
async def barrier(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """/barrier/<key>?n=5&timeout=5: answers when n requests are here at once, else 503: proves concurrency."""
    n = request.params.integer("n", 5)
    state = server.state.setdefault(f"barrier:{request.key}", {"waiting": 0, "event": asyncio.Event()})
    event: asyncio.Event = state["event"]
    state["waiting"] += 1
    try:
        if state["waiting"] >= n:
            event.set()
            server.state.pop(f"barrier:{request.key}", None)
        await asyncio.wait_for(event.wait(), request.params.number("timeout", 5.0))
        await conn.json(request, {"ok": True})
    except TimeoutError:
        await conn.json(request, {"error": "barrier not reached", "waiting": state["waiting"]}, 503)
    finally:
        state["waiting"] -= 1


# -- authentication


@route("/oauth/token")
async def oauth_token(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """OAuth2 token endpoint of `?realm=`. `?expires_in=` raw JSON (3600), `?ttl=` what the server enforces,
    `?delay=`, `?fail=` first N fail, `?mode=` ok or html empty array null scalar no-token null-token
    empty-token number-token crlf-token unicode-token huge-token no-type mac echo-secret refresh reset close
    hang truncate drip redirect (`?to=` port) or a status such as 400. `?check=id:secret` verifies."""
    params = request.params
    realm = server.realms.setdefault(params.text("realm", "default"), TokenRealm())
    realm.calls += 1
    realm.in_flight += 1
    realm.peak_in_flight = max(realm.peak_in_flight, realm.in_flight)
    try:
        await asyncio.sleep(params.number("delay", 0))
        await issue(server, conn, request, realm)
    finally:
        realm.in_flight -= 1


def client_credentials(request: Request) -> tuple[str, str]:
    scheme, _, value = request.header("authorization").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            user, _, password = base64.b64decode(value).decode("utf-8", "replace").partition(":")
            return unquote(user), unquote(password)
    form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
    return form.get("client_id", ""), form.get("client_secret", "")


async def issue(server: HostileUpstream, conn: Conn, request: Request, realm: TokenRealm) -> None:
    params = request.params
    mode = params.text("mode", "ok")
    client_id, secret = client_credentials(request)
    if "fail" in params and realm.calls > params.integer("fail", 0):
        mode = "ok"
    if params.text("check") and f"{client_id}:{secret}" != params.text("check"):
        await conn.json(request, {"error": "invalid_client"}, 401)
        return
    token: Any = (
        f"tok-{params.text('realm', 'default')}-{realm.calls}-{random.Random(realm.calls).getrandbits(64):016x}"
    )
    ttl = params.number("ttl", 3600.0)
    realm.issued[token] = time.monotonic() + ttl
    reply: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
    raw_expiry = params.text("expires_in", "3600")
    if raw_expiry != "absent":
        try:
            reply["expires_in"] = json.loads(raw_expiry)
        except ValueError:
            reply["expires_in"] = raw_expiry
    if mode == "ok":
        await conn.json(request, reply, headers=[("Cache-Control", "no-store")])
    elif mode.isdigit():
        error = {400: "invalid_request", 401: "invalid_client"}.get(int(mode), "temporarily_unavailable")
        await conn.json(request, {"error": error, "error_description": "told to fail"}, int(mode))
    elif mode == "html":
        await conn.respond(request, 200, "<html>login page</html>", content_type="text/html")
    elif mode == "empty":
        await conn.respond(request, 200, "", content_type="application/json")
    elif mode in {"array", "null", "scalar"}:
        await conn.json(request, {"array": [reply], "null": None, "scalar": "token"}[mode])
    elif mode == "no-token":
        await conn.json(request, {"token_type": "Bearer", "expires_in": 3600})
    elif mode == "echo-secret":
        await conn.json(
            request, {"error": "invalid_client", "error_description": f"bad secret {secret} for {client_id}"}, 401
        )
    elif mode == "refresh":
        await conn.json(request, {**reply, "refresh_token": "refresh-secret-value", "id_token": "id-secret-value"})
    elif mode in {"no-type", "mac"}:
        reply.pop("token_type")
        await conn.json(request, reply if mode == "no-type" else {**reply, "token_type": "mac"})
    elif mode == "redirect":
        to = params.text("to", str(server.ports["other"]))
        await conn.respond(request, 307, "", [("Location", f"http://{server.host}:{to}/oauth/token?realm=stolen")])
    elif mode.endswith("-token"):
        odd = {
            "null-token": None, "empty-token": "", "number-token": 12345,
            "crlf-token": "abc\r\nX-Injected: yes", "unicode-token": "t\u00f6k\u2603n", "huge-token": "t" * 200_000,
        }.get(mode, "")  # fmt: skip
        await conn.json(request, {**reply, "access_token": odd})
    else:
        await fail_with(server, conn, request, mode, "503")


@route("/oauth/protected")
async def oauth_protected(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 for a live token of `?realm=`, else 401 with WWW-Authenticate. `?delay=`."""
    await asyncio.sleep(request.params.number("delay", 0))
    realm = server.realms.setdefault(request.params.text("realm", "default"), TokenRealm())
    scheme, _, token = request.header("authorization").partition(" ")
    if scheme.lower() == "bearer" and realm.issued.get(token, 0) > time.monotonic():
        realm.accepted += 1
        await conn.json(request, {"ok": True, "token": token})
        return
    realm.rejected += 1
    challenge = [("WWW-Authenticate", 'Bearer error="invalid_token"')]
    await conn.json(request, {"error": "invalid_token"}, 401, headers=challenge)


@route("/oauth/revoke")
async def oauth_revoke(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Revokes every token of `?realm=`: cached ones now get 401."""
    realm = server.realms.setdefault(request.params.text("realm", "default"), TokenRealm())
    revoked = len(realm.issued)
    realm.issued.clear()
    await conn.json(request, {"revoked": revoked})


@route("/auth/401")
async def auth_401(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """401 for ever, whatever the credentials: a refresh loop shows in the counts. `?challenge=`."""
    challenge = request.params.text("challenge", "Bearer")
    await conn.json(request, {"error": "unauthorized"}, 401, headers=[("WWW-Authenticate", challenge)])


@route("/auth/basic")
async def auth_basic(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 for Basic `?user=` `?password=`, else 401."""
    scheme, _, value = request.header("authorization").partition(" ")
    expected = f"{request.params.text('user', 'user')}:{request.params.text('password', 'pass')}".encode()
    good = False
    with contextlib.suppress(ValueError):
        good = scheme.lower() == "basic" and base64.b64decode(value) == expected
    headers = [] if good else [("WWW-Authenticate", 'Basic realm="hostile"')]
    await conn.json(request, {"ok": good}, 200 if good else 401, headers=headers)


@route("/auth/key")
async def auth_key(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """200 when X-API-Key or `?api_key=` equals `?value=` (key), else 403; says where it was."""
    expected = request.params.text("value", "key")
    where = [
        place
        for place, value in (("header", request.header("x-api-key")), ("query", request.params.text("api_key")))
        if value == expected
    ]
    await conn.json(request, {"ok": bool(where), "where": where}, 200 if where else 403)


# -- redirects and cookies


@route("/redirect")
async def redirect(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """`?n=` (1) relative redirects of `?code=` (302), then /echo."""
    n, code = request.params.integer("n", 1), request.params.integer("code", 302)
    where = f"/redirect?n={n - 1}&code={code}" if n > 1 else "/echo"
    await conn.respond(request, code, "", [("Location", where)])


@route("/redirect-loop")
async def redirect_loop(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """To itself, for ever."""
    await conn.respond(request, request.params.integer("code", 302), "", [("Location", request.target)])


@route("/redirect-grow")
async def redirect_grow(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """For ever, to an address that doubles: never the same one twice."""
    longer = (request.params.text("a", "x") * 2)[:4096]
    n = request.params.integer("n", 0) + 1
    await conn.respond(request, 302, "", [("Location", f"/redirect-grow?n={n}&a={longer}")])


@route("/redirect-cross")
async def redirect_cross(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """To /echo on another origin: `?to=` port (the "other" listener), `?host=`, `?code=` (302), `?path=`,
    `?scheme=`, `?userinfo=`. What leaks is in the answer and in the journal of that listener."""
    params = request.params
    host, to = params.text("host", server.host), params.text("to", str(server.ports["other"]))
    userinfo = params.text("userinfo") + "@" if params.text("userinfo") else ""
    where = f"{params.text('scheme', 'http')}://{userinfo}{host}:{to}{params.text('path', '/echo')}"
    await conn.respond(request, params.integer("code", 302), "", [("Location", where)])


@route("/redirect-to")
async def redirect_to(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Location is `?url=` byte for byte (any scheme, relative, `//host`, CRLF ...); `?none=1`: no Location."""
    headers = [] if request.params.flag("none") else [("Location", request.params.text("url"))]
    await conn.respond(request, request.params.integer("code", 302), "", headers)


@route("/cookie/set")
async def cookie_set(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Set-Cookie for each `?c=` given as a raw value, `?n=` for that many, `?bytes=` for their size."""
    cookies = list(request.params.all("c"))
    size = request.params.integer("bytes", 10)
    cookies += [f"bulk{i}={'c' * size}" for i in range(request.params.integer("n", 0))]
    await conn.json(request, {"set": len(cookies)}, headers=[("Set-Cookie", c) for c in cookies])


@route("/cookie/login")
async def cookie_login(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """Set-Cookie session=`?user=`: the second half of a cross-user leak test is /cookie/whoami."""
    user = request.params.text("user", "alice")
    await conn.json(request, {"user": user}, headers=[("Set-Cookie", f"session={user}; Path=/; HttpOnly")])


@route("/cookie/whoami")
async def cookie_whoami(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """The Cookie header as received."""
    await conn.json(request, {"cookie": request.header("cookie")})


@route("/proxy-connect")
async def proxy_connect(server: HostileUpstream, conn: Conn, request: Request) -> None:
    """CONNECT meets 502; the journal shows that a proxy was used and what it was told."""
    await conn.respond(request, 502, "hostile proxy\n", close=True)
