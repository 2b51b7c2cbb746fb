"""The middleware on a bare ASGI app and under uvicorn: ids, deadlines, and callers who go away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import Response, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from websockets.asyncio.client import connect

from fastapi_http_client.context import RequestIdFilter, current_context, get_request_id
from fastapi_http_client.edge.asgi import RequestContextMiddleware, cancel_on_disconnect
from fastapi_http_client.errors import ConfigurationError
from tests.servers import serve

# -- one message at a time: an app that is called by hand ---------------------------------------------------------


class Exchange:
    """One HTTP request, played by the test in the place of the server."""

    def __init__(self, *, method="GET", headers=(), endpoint=None, type="http"):
        self.scope = {"type": type, "method": method, "path": "/", "headers": list(headers)}
        if endpoint is not None:
            self.scope["endpoint"] = endpoint
        self.sent = []
        self.inbox = asyncio.Queue()
        self.receives = 0

    async def receive(self):
        self.receives += 1
        message = await self.inbox.get()
        if message["type"] == "http.disconnect":
            self.inbox.put_nowait(message)
        return message

    async def send(self, message):
        self.sent.append(message)

    def body(self, body=b"", more=False):
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def disconnect(self):
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def run(self, app):
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def headers(self):
        return [(name, value) for name, value in self.sent[0]["headers"] if name == b"x-request-id"]


@pytest.fixture(autouse=True)
def watch_at_once(monkeypatch):
    monkeypatch.setattr("fastapi_http_client.edge.asgi._WATCH_AFTER", 0.0)


async def answer(send, headers=(), status=200):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"ok"})


async def hello(scope, receive, send):
    await answer(send)


async def test_a_valid_inbound_id_is_kept_and_echoed():
    exchange = await Exchange(headers=[(b"x-request-id", b"order-42")]).run(RequestContextMiddleware(hello))
    assert exchange.headers == [(b"x-request-id", b"order-42")]


@pytest.mark.parametrize("value", [b"", b"a b", b"\xe9", b"x" * 129, b"a\r\nX: y", b"\x1b[2J", b"9" * 1_000_000])
async def test_any_other_inbound_id_is_replaced(value, caplog):
    caplog.set_level(logging.DEBUG)
    exchange = await Exchange(headers=[(b"x-request-id", value)]).run(RequestContextMiddleware(hello))
    ((_, made),) = exchange.headers
    assert len(made) == 32
    assert made != value
    assert caplog.text == ""


async def test_every_request_without_an_id_gets_one_of_its_own():
    app = RequestContextMiddleware(hello)
    ids = {(await Exchange().run(app)).headers[0][1] for _ in range(10)}
    assert len(ids) == 10


async def test_an_id_that_the_response_has_already_is_not_doubled():
    async def app(scope, receive, send):
        await answer(send, [(b"X-Request-ID", b"own")])

    exchange = await Exchange().run(RequestContextMiddleware(app))
    assert exchange.sent[0]["headers"] == [(b"X-Request-ID", b"own")]


async def test_a_list_of_headers_that_is_sent_twice_does_not_grow():
    shared = [(b"content-type", b"text/plain")]

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": shared})

    app = RequestContextMiddleware(app)
    first, second = await Exchange().run(app), await Exchange().run(app)
    assert len(shared) == 1
    assert first.headers != second.headers


async def test_the_context_is_gone_after_the_request_also_after_an_error():
    async def app(scope, receive, send):
        raise RuntimeError(get_request_id())

    with pytest.raises(RuntimeError, match="order-42"):
        await Exchange(headers=[(b"x-request-id", b"order-42")]).run(RequestContextMiddleware(app))
    assert current_context() is None


async def test_the_lifespan_passes_untouched():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send, current_context()))

    scope, receive, send = {"type": "lifespan"}, object(), object()
    await RequestContextMiddleware(app)(scope, receive, send)
    assert seen == [(scope, receive, send, None)]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"request_timeout": 0}, "request_timeout"),
        ({"request_timeout": "5"}, "request_timeout"),
        ({"request_timeout": float("inf")}, "request_timeout"),
        ({"deadline_header": ""}, "deadline_header"),
        ({"deadline_header": "X Timeout"}, "deadline_header"),
        ({"deadline_header": None}, "deadline_header"),
    ],
)
def test_bad_arguments_are_refused(arguments, name):
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        RequestContextMiddleware(hello, **arguments)


# -- the deadline ------------------------------------------------------------------------------------------------


async def remaining(headers=(), type="http", **options):
    seen = []

    async def app(scope, receive, send):
        seen.append(current_context().remaining())

    await Exchange(headers=headers, type=type).run(RequestContextMiddleware(app, **options))
    return seen[0]


HEADER = [(b"x-request-timeout-ms", b"1000")]


async def test_there_is_no_deadline_unless_one_is_asked_for():
    assert await remaining(HEADER) is None


async def test_the_request_timeout_is_the_deadline():
    assert 4.5 < await remaining(request_timeout=5) <= 5


async def test_an_untrusted_header_changes_nothing():
    assert 4.5 < await remaining(HEADER, request_timeout=5) <= 5


async def test_a_trusted_header_can_shorten_the_deadline():
    assert 0.5 < await remaining(HEADER, request_timeout=5, trust_deadline_header=True) <= 1


async def test_a_trusted_header_cannot_prolong_the_deadline():
    assert await remaining(HEADER, request_timeout=0.5, trust_deadline_header=True) <= 0.5


async def test_a_trusted_header_is_a_deadline_by_itself():
    assert 0.5 < await remaining(HEADER, trust_deadline_header=True) <= 1


async def test_the_trusted_header_has_any_name():
    options = {"trust_deadline_header": True, "deadline_header": "X-Left"}
    assert await remaining(HEADER, **options) is None
    assert await remaining([(b"x-left", b"7")], **options) <= 0.007


@pytest.mark.parametrize("value", [b"", b"-5", b"+5", b"1e9", b"5s", b"0x10", b"1" * 5000, "٣".encode(), b"nan"])
async def test_a_trusted_header_that_is_garbage_is_ignored(value):
    assert await remaining([(b"x-request-timeout-ms", value)], request_timeout=5, trust_deadline_header=True) > 4


async def test_of_several_trusted_headers_the_shortest_counts():
    headers = [(b"x-request-timeout-ms", b"9000"), (b"x-request-timeout-ms", b"10"), *HEADER]
    assert await remaining(headers, trust_deadline_header=True) <= 0.01


async def test_a_websocket_has_no_deadline():
    assert await remaining(HEADER, type="websocket", request_timeout=5, trust_deadline_header=True) is None


async def test_when_the_response_has_been_sent_the_deadline_is_gone():
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        seen.append(current_context().deadline is None)
        await send({"type": "http.response.body", "body": b""})
        seen.append(current_context().deadline is None)

    await Exchange().run(RequestContextMiddleware(app, request_timeout=5))
    assert seen == [False, True]


async def test_a_second_middleware_keeps_the_id_and_shortens_the_deadline():
    seen = []

    async def app(scope, receive, send):
        seen.append((get_request_id(), current_context().remaining()))
        await answer(send)

    inner = RequestContextMiddleware(app, request_timeout=1)
    exchange = await Exchange().run(RequestContextMiddleware(inner, request_timeout=5))
    ((_, echoed),) = exchange.headers
    assert seen[0][0] == echoed.decode()
    assert seen[0][1] <= 1
    longer = RequestContextMiddleware(app, request_timeout=9)
    await Exchange().run(RequestContextMiddleware(longer, request_timeout=5))
    assert seen[1][1] <= 5


# -- callers who go away -----------------------------------------------------------------------------------------


class Slow:
    """An app that answers when it is told to, and remembers how it ended."""

    def __init__(self):
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = None

    async def __call__(self, scope, receive, send):
        self.started.set()
        try:
            await self.go.wait()
            await answer(send)
            self.ended = "answered"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def abandon(exchange, slow, **options):
    """Run the app, let the caller go away, and then let the app go on."""
    task = asyncio.create_task(exchange.run(RequestContextMiddleware(slow, **options)))
    await slow.started.wait()
    exchange.body()
    await asyncio.sleep(0.001)
    exchange.disconnect()
    await turns()
    slow.go.set()
    await task
    return slow.ended


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
async def test_the_handler_of_a_safe_method_is_cancelled(method):
    assert await abandon(Exchange(method=method), Slow()) == "cancelled"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_the_handler_of_any_other_method_is_not(method):
    assert await abandon(Exchange(method=method), Slow()) == "answered"


async def test_an_app_can_opt_out():
    exchange = Exchange()
    assert await abandon(exchange, Slow(), cancel_on_disconnect=False) == "answered"
    await turns()


async def test_a_route_can_opt_out():
    @cancel_on_disconnect(False)
    def endpoint(): ...

    assert await abandon(Exchange(endpoint=endpoint), Slow()) == "answered"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_route_can_opt_in(method):
    @cancel_on_disconnect()
    def endpoint(): ...

    exchange = Exchange(method=method, endpoint=endpoint)
    assert await abandon(exchange, Slow(), cancel_on_disconnect=False) == "cancelled"


async def test_a_mounted_app_decides_for_itself():
    class Nested(Slow):
        def __init__(self, **options):
            super().__init__()
            self.inner = RequestContextMiddleware(super().__call__, **options)

        async def __call__(self, scope, receive, send):
            await self.inner(scope, receive, send)

    assert await abandon(Exchange(), Nested(cancel_on_disconnect=False)) == "answered"
    assert await abandon(Exchange(), Nested(), cancel_on_disconnect=False) == "cancelled"


async def test_after_the_response_has_started_nothing_is_cancelled():
    go = asyncio.Event()
    seen = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await go.wait()  # a body that takes its time, then background tasks
        await send({"type": "http.response.body", "body": b"x"})
        await asyncio.sleep(0)
        seen.append("background task done")

    exchange = Exchange()
    task = asyncio.create_task(exchange.run(RequestContextMiddleware(app)))
    await asyncio.sleep(0.001)
    exchange.disconnect()
    await turns()
    go.set()
    await task
    assert seen == ["background task done"]


async def test_a_watch_that_began_before_the_response_does_not_cancel_after_it():
    go, started, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        started.set()
        await end.wait()
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect", "it stays true"

    exchange = Exchange()
    task = asyncio.create_task(exchange.run(RequestContextMiddleware(app)))
    await asyncio.sleep(0.001)
    assert exchange.receives == 1
    go.set()
    await started.wait()
    exchange.disconnect()
    await turns()
    end.set()
    await task


async def test_the_body_reaches_the_app_whole_and_in_order_though_the_watch_reads_it():
    go = asyncio.Event()
    seen = []

    async def app(scope, receive, send):
        await go.wait()
        while True:
            message = await receive()
            seen.append(message["body"])
            if not message["more_body"]:
                break
        await answer(send)

    exchange = Exchange()
    task = asyncio.create_task(exchange.run(RequestContextMiddleware(app)))
    exchange.body(b"a", more=True)
    exchange.body(b"b", more=True)
    exchange.body(b"c")
    await asyncio.sleep(0.001)
    await turns()
    assert exchange.receives == 1, "the watch reads one message ahead, and does not swallow a large body"
    go.set()
    await task
    assert seen == [b"a", b"b", b"c"]


async def test_only_one_reads_from_the_server_at_a_time():
    """While the app waits for a message by itself, there is no watch; what it reads is enough to notice."""
    ended = []

    async def app(scope, receive, send):
        await receive()
        reader = asyncio.create_task(receive())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append((await reader)["type"])
            raise

    exchange = Exchange()
    exchange.body()
    task = asyncio.create_task(exchange.run(RequestContextMiddleware(app)))
    await asyncio.sleep(0.002)
    assert exchange.receives == 2
    exchange.disconnect()
    await task
    assert ended == ["http.disconnect"]


async def test_asking_whether_the_caller_is_there_works_beside_the_watch():
    answers = []
    ask, asked, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @cancel_on_disconnect(False)
    def endpoint(): ...

    async def app(scope, receive, send):
        request = Request(scope, receive)
        await asyncio.sleep(0.001)
        answers.append(await request.is_disconnected())
        ask.set()
        await go.wait()
        answers.append(await request.is_disconnected())
        asked.set()

    for options in ({}, {"endpoint": endpoint}):
        ask.clear(), go.clear()
        exchange = Exchange(method="POST" if not options else "GET", **options)
        task = asyncio.create_task(exchange.run(RequestContextMiddleware(app)))
        await ask.wait()
        exchange.disconnect()
        await turns()
        go.set()
        await task
    assert answers == [False, True, False, True]


async def test_a_cancellation_from_outside_goes_on():
    slow = Slow()
    task = asyncio.create_task(Exchange().run(RequestContextMiddleware(slow)))
    await slow.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.ended == "cancelled"


async def test_a_cancellation_from_outside_goes_on_also_when_ours_came_too():
    slow = Slow()
    exchange = Exchange()
    task = asyncio.create_task(exchange.run(RequestContextMiddleware(slow)))
    await slow.started.wait()
    await asyncio.sleep(0.001)
    exchange.disconnect()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.ended == "cancelled"


async def test_our_cancellation_leaves_no_trace_on_the_servers_task():
    """The server's own `asyncio.timeout()` around the app has to work as before."""

    async def stubborn(scope, receive, send):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await answer(send)

    async def obedient(scope, receive, send):
        await asyncio.Event().wait()

    for app in (stubborn, obedient):
        exchange = Exchange()
        exchange.disconnect()
        await exchange.run(RequestContextMiddleware(app))
        assert asyncio.current_task().cancelling() == 0
        await turns()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()


async def test_no_task_is_left_behind():
    before = asyncio.all_tasks()
    await abandon(Exchange(), Slow())
    slow = Slow()
    task = asyncio.create_task(Exchange().run(RequestContextMiddleware(slow)))
    await slow.started.wait()
    await asyncio.sleep(0.001)
    slow.go.set()
    await task
    await turns()
    assert asyncio.all_tasks() == before


# -- a real app under a real server ------------------------------------------------------------------------------


class Abandoned:
    """An app whose routes wait, and the upstream call that they stand for."""

    def __init__(self, *middlewares):
        self.events = []
        self.started = threading.Event()
        self.ended = threading.Event()
        app = FastAPI()
        for middleware in middlewares:
            app.add_middleware(middleware)
        app.add_middleware(RequestContextMiddleware)

        async def wait():
            self.started.set()
            try:
                await asyncio.sleep(0.1)
                self.events.append("ran to its end")
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
            finally:
                self.ended.set()

        @app.get("/")
        async def get():
            await wait()

        @app.get("/dependency")
        async def get_with_dependency(waited: None = Depends(wait)): ...

        @app.post("/")
        async def post():
            await wait()

        @app.get("/kept")
        @cancel_on_disconnect(False)
        async def kept():
            await wait()

        @app.post("/marked")
        @cancel_on_disconnect()
        async def marked(request: Request):
            await request.body()
            await wait()

        @app.get("/stream")
        async def stream(background: BackgroundTasks):
            async def body():
                yield b"x"

            background.add_task(wait)
            return StreamingResponse(body(), background=background)

        self.app = app


class Around(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


class Reading(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        await request.body()
        return await call_next(request)


@pytest.mark.parametrize(
    ("middlewares", "http", "loop"),
    [
        ((), "h11", "asyncio"),
        ((Around,), "httptools", "asyncio"),
        ((Around, Reading), "httptools", "uvloop"),
    ],
    ids=["bare", "one around", "two around, uvloop"],
)
@pytest.mark.parametrize(
    ("method", "path", "ending"),
    [
        ("GET", "/", "cancelled"),
        ("GET", "/dependency", "cancelled"),
        ("POST", "/", "ran to its end"),
        ("GET", "/kept", "ran to its end"),
        ("POST", "/marked", "cancelled"),
    ],
)
def test_a_caller_who_hangs_up_ends_the_handler(method, path, ending, middlewares, http, loop, caplog):
    for needed in {http, loop} - {"asyncio"}:
        pytest.importorskip(needed)
    abandoned = Abandoned(*middlewares)
    with serve(abandoned.app, lifespan="off", http=http, loop=loop) as base_url:
        address = urlsplit(base_url)
        with socket.create_connection((address.hostname, address.port)) as sock:
            sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            assert abandoned.started.wait(5)
            # The watch begins a moment later; hanging up before that must be noticed as well.
        assert abandoned.ended.wait(5)
        assert abandoned.events == [ending]
        assert httpx.get(f"{base_url}/nothing").status_code == 404, "the server goes on"
    assert "Exception in ASGI application" not in caplog.text
    assert "without" not in caplog.text


def test_background_tasks_run_to_their_end_though_the_caller_is_gone():
    abandoned = Abandoned()
    with serve(abandoned.app, lifespan="off") as base_url:
        assert httpx.get(f"{base_url}/stream").content == b"x"
        assert abandoned.ended.wait(5)
    assert abandoned.events == ["ran to its end"]


def make_visibility_app():
    app = FastAPI()
    app.add_middleware(RequestContextMiddleware)
    app.state.seen = {}

    def note(place):
        app.state.seen[place] = get_request_id()

    def sync_dependency():
        note("sync dependency")

    async def async_dependency():
        note("async dependency")

    async def yield_dependency():
        note("yield dependency before")
        yield
        note("yield dependency after")

    @app.get("/async", dependencies=[Depends(sync_dependency), Depends(async_dependency), Depends(yield_dependency)])
    async def async_route(background: BackgroundTasks):
        note("async route")
        await asyncio.create_task(asyncio.sleep(0))
        await asyncio.gather(asyncio.to_thread(note, "thread"), asyncio.create_task(noting_task()))
        background.add_task(note, "sync background task")
        background.add_task(noting_background)

        async def body():
            note("streaming body")
            yield b"x"

        return StreamingResponse(body(), background=background)

    async def noting_task():
        note("task")

    async def noting_background():
        note("async background task")
        app.state.done.set()

    @app.get("/sync")
    def sync_route():
        note("sync route")
        logging.getLogger("test").warning("from a sync route")
        return Response()

    @app.websocket("/ws")
    async def websocket(websocket: WebSocket):
        note("websocket")
        await websocket.accept()
        await websocket.send_text(get_request_id())
        await websocket.close()

    app.state.done = threading.Event()
    return app


@pytest.mark.parametrize("around", [(), (Around,)], ids=["bare", "BaseHTTPMiddleware"])
def test_the_id_is_visible_everywhere(around):
    app = make_visibility_app()
    for middleware in around:
        app.add_middleware(middleware)
        app.user_middleware.reverse()
    with serve(app, lifespan="off") as base_url:
        for path in ("/async", "/sync"):
            response = httpx.get(base_url + path, headers={"X-Request-ID": "order-42"})
            assert response.headers["x-request-id"] == "order-42"
        assert app.state.done.wait(5)
    seen = app.state.seen
    assert set(seen.values()) == {"order-42"}, seen
    assert len(seen) == 11


async def test_a_websocket_has_an_id_and_gets_it_with_the_handshake():
    app = make_visibility_app()
    with serve(app, lifespan="off") as base_url:
        url = base_url.replace("http", "ws") + "/ws"
        async with connect(url, additional_headers={"X-Request-ID": "order-42"}) as websocket:
            assert websocket.response.headers["x-request-id"] == "order-42"
            assert await websocket.recv() == "order-42"
        async with connect(url, additional_headers={"X-Request-ID": "bad id"}) as websocket:
            assert websocket.response.headers["x-request-id"] == await websocket.recv()


async def test_requests_at_the_same_time_do_not_see_each_others_ids():
    app = FastAPI()
    app.add_middleware(RequestContextMiddleware)

    @app.get("/{name}")
    async def route(name: str):
        before = get_request_id()
        await asyncio.sleep(0.01)
        return [before, get_request_id(), await asyncio.to_thread(get_request_id)]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answers = await asyncio.gather(*(client.get("/x", headers={"X-Request-ID": f"r{n}"}) for n in range(20)))
    assert [set(answer.json()) for answer in answers] == [{f"r{n}"} for n in range(20)]
    assert get_request_id() is None


def test_the_log_shows_the_id(caplog):
    caplog.handler.addFilter(RequestIdFilter())
    with serve(make_visibility_app(), lifespan="off") as base_url:
        httpx.get(base_url + "/sync", headers={"X-Request-ID": "order-42"})
    (record,) = [record for record in caplog.records if record.name == "test"]
    assert record.request_id == "order-42"


def test_asgi_correlation_ids_own_id_is_echoed_when_its_middleware_is_in_use():
    correlation = pytest.importorskip("asgi_correlation_id")
    app = make_visibility_app()
    app.add_middleware(correlation.CorrelationIdMiddleware, header_name="X-Correlation-ID", validator=None)
    app.user_middleware.reverse()
    with serve(app, lifespan="off") as base_url:
        response = httpx.get(base_url + "/sync", headers={"X-Correlation-ID": "theirs", "X-Request-ID": "ours"})
    assert response.headers["x-request-id"] == response.headers["x-correlation-id"] == "theirs"
    assert app.state.seen == {"sync route": "theirs"}


async def test_an_error_of_the_server_reaches_the_application_that_waits_for_a_message():
    class Broken(Exchange):
        async def receive(self):
            await self.inbox.get()
            raise OSError("the server's side broke")

    seen = []

    async def app(scope, receive, send):
        await asyncio.sleep(0.01)  # the watch reads by now
        exchange.body()
        for _ in range(2):
            try:
                await asyncio.wait_for(receive(), 5)
            except OSError as error:
                seen.append(str(error))
        await answer(send)

    exchange = Broken(endpoint=hello)
    await exchange.run(RequestContextMiddleware(app))
    assert seen == ["the server's side broke"] * 2
