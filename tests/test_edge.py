"""`install()` on real apps, and the whole way from the inbound request to the upstream's socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import Router
from starlette.testclient import TestClient

from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPClients, http_client
from fastapi_http_client.context import current_context, get_request_id
from fastapi_http_client.edge.asgi import cancel_on_disconnect
from fastapi_http_client.edge.routes import STATE_KEY
from fastapi_http_client.errors import ConfigurationError, HTTPClientError, HTTPRequestError
from tests.servers import serve

ID = {"X-Request-ID": "order-42"}
Up = Annotated[AsyncHTTPClient, Depends(http_client("up"))]


def make_app(**options):
    app = FastAPI(**options.pop("fastapi", {}))
    HTTPClients().install(app, **options)

    @app.get("/")
    async def route():
        return get_request_id()

    @app.get("/number/{n}")
    async def number(n: int): ...

    @app.get("/broken")
    async def broken():
        raise RuntimeError("broken")

    @app.get("/upstream")
    async def upstream():
        raise HTTPRequestError("no answer")

    return app


def ask(app, path="/", **options):
    return TestClient(app, raise_server_exceptions=False).get(path, headers=ID, **options)


# -- what install() does to an app -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/nothing", 404), ("/number/x", 422), ("/broken", 500), ("/upstream", 502)],
)
@pytest.mark.parametrize("debug", [False, True])
def test_every_response_has_the_request_id(path, status, debug):
    answer = ask(make_app(fastapi={"debug": debug}), path)
    assert answer.status_code == status
    assert answer.headers.get_list("x-request-id") == ["order-42"]


def test_a_middleware_that_answers_by_itself_has_it_too_though_it_was_added_later():
    app = make_app()
    app.add_middleware(CORSMiddleware, allow_origins=["http://a.example"])
    seen = []

    @app.middleware("http")
    async def note(request, call_next):
        seen.append(get_request_id())
        return await call_next(request)

    headers = {**ID, "Origin": "http://b.example", "Access-Control-Request-Method": "GET"}
    answer = TestClient(app).options("/", headers=headers)
    assert answer.status_code == 400
    assert answer.headers["x-request-id"] == "order-42"
    assert ask(app).json() == "order-42"
    assert set(seen) == {"order-42"}


@pytest.mark.parametrize("key", [Exception, 500])
def test_a_handler_of_the_user_for_unhandled_errors_knows_the_id(key):
    app = make_app()

    @app.exception_handler(key)
    async def handle(request, exc):
        return PlainTextResponse(get_request_id(), 500)

    answer = ask(app, "/broken")
    assert answer.text == answer.headers["x-request-id"] == "order-42"


def test_a_starlette_app_will_do():
    app = Starlette()
    HTTPClients().install(app)
    assert ask(app).headers["x-request-id"] == "order-42"


def test_problem_responses_can_be_left_out():
    app = make_app(problem_responses=False)
    assert ask(app, "/upstream").status_code == 500


def test_client_names_can_be_shown():
    app = FastAPI()
    HTTPClients().install(app, expose_client_names=True)

    @app.get("/")
    async def route():
        raise HTTPRequestError("no answer", client="billing")

    problem = ask(app).json()
    assert problem["client"] == "billing"
    assert problem["request_id"] == "order-42"


@pytest.mark.parametrize("before", [True, False])
def test_the_users_own_handler_wins_whether_it_came_before_or_after(before):
    async def handle(request, exc):
        return JSONResponse({}, 418)

    app = FastAPI()
    if before:
        app.add_exception_handler(HTTPClientError, handle)
    HTTPClients().install(app)
    if not before:
        app.add_exception_handler(HTTPClientError, handle)

    @app.get("/")
    async def route():
        raise HTTPRequestError("no answer")

    assert ask(app).status_code == 418


def test_a_failed_call_of_a_middleware_is_answered_too():
    app = make_app()

    class Gate:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["path"] == "/after":
                await self.app(scope | {"path": "/"}, receive, send)
            raise HTTPRequestError("no answer")

    app.add_middleware(Gate)
    answer = ask(app)
    assert answer.status_code == 502
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get_list("x-request-id") == ["order-42"]
    assert ask(app, "/after").status_code == 200, "an answer that has begun stays"


def test_a_failed_call_of_a_middleware_is_the_users_handlers_if_there_is_one():
    app = make_app()

    class Gate:
        def __init__(self, app):
            pass

        async def __call__(self, scope, receive, send):
            raise HTTPRequestError("no answer")

    app.add_middleware(Gate)
    app.add_exception_handler(HTTPClientError, lambda request, exc: JSONResponse({}, 418))
    assert ask(app).status_code == 418


def test_the_registry_is_on_the_apps_state():
    app, clients = FastAPI(), HTTPClients()
    clients.install(app)
    assert getattr(app.state, STATE_KEY) is clients


def test_an_app_that_has_started_is_refused():
    app = FastAPI()
    TestClient(app).get("/")
    with pytest.raises(ConfigurationError, match=r"^app: has started already"):
        HTTPClients().install(app)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"request_timeout": -1}, "request_timeout"),
        ({"request_timeout": "5"}, "request_timeout"),
        ({"deadline_header": "a b"}, "deadline_header"),
    ],
)
def test_bad_arguments_are_refused_at_once_and_change_nothing(arguments, name):
    app = FastAPI()
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        HTTPClients().install(app, **arguments)
    assert HTTPClientError not in app.exception_handlers
    assert "x-request-id" not in ask(app).headers


def test_anything_but_an_app_is_refused():
    with pytest.raises(ConfigurationError, match=r"^app: must be a FastAPI or Starlette application, not Router"):
        HTTPClients().install(Router())


def test_installing_twice_is_as_good_as_once():
    app = make_app(request_timeout=60)
    HTTPClients().install(app, request_timeout=5)
    seen = []

    @app.get("/left")
    async def left():
        seen.append(current_context().remaining())

    answer = ask(app, "/left")
    assert answer.headers.get_list("x-request-id") == ["order-42"]
    assert 4 < seen[0] <= 5
    assert ask(app, "/upstream").status_code == 502


def test_a_mounted_app_has_handlers_and_settings_of_its_own():
    seen = []
    sub = FastAPI()
    HTTPClients().install(sub, request_timeout=1)

    @sub.get("/left")
    async def left():
        seen.append((get_request_id(), current_context().remaining()))

    @sub.get("/upstream")
    async def upstream():
        raise HTTPRequestError("no answer")

    app = make_app(request_timeout=5)
    app.mount("/sub", sub)
    assert ask(app, "/sub/left").headers.get_list("x-request-id") == ["order-42"]
    assert seen[0][0] == "order-42"
    assert seen[0][1] <= 1
    assert ask(app, "/sub/upstream").json()["request_id"] == "order-42"
    assert ask(app, "/sub/nothing").headers.get_list("x-request-id") == ["order-42"]


def test_the_context_survives_an_instrumentor_that_takes_the_stack_apart():
    """OpenTelemetry's FastAPIInstrumentor rebuilds the stack from the attributes of its ServerErrorMiddleware."""
    app = make_app()
    build = app.build_middleware_stack

    def rebuilt():
        stack = build()
        assert isinstance(stack, ServerErrorMiddleware)
        return ServerErrorMiddleware(stack.app, handler=stack.handler, debug=stack.debug)

    app.build_middleware_stack = rebuilt
    assert ask(app).json() == "order-42"
    assert ask(app, "/upstream").headers["x-request-id"] == "order-42"


def test_it_works_around_a_stack_that_an_instrumentor_has_changed_before():
    class Outermost:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(scope, receive, send)

    app = FastAPI()
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: Outermost(build())
    HTTPClients().install(app)
    assert ask(app).headers["x-request-id"] == "order-42"


def test_websocket_routes_get_their_client_and_their_problem():
    app = FastAPI()
    HTTPClients().install(app)

    @app.websocket("/ws")
    async def route(connection: WebSocket):
        await connection.accept()
        await connection.send_text(get_request_id())
        raise HTTPRequestError("no answer")

    with TestClient(app).websocket_connect("/ws", headers=ID) as websocket:
        assert websocket.receive_text() == "order-42"
        assert websocket.receive()["code"] == 1014


# -- the whole way -----------------------------------------------------------------------------------------------


class Upstream:
    """An upstream that answers after a while, and knows which callers hung up before that."""

    def __init__(self, delay=0.0, status=200):
        self.delay = delay
        self.status = status
        self.headers = []
        self.abandoned = threading.Event()
        self.called = threading.Event()

    async def __call__(self, scope, receive, send):
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.called.set()
        message = await receive()
        gone = asyncio.ensure_future(receive())
        done, _ = await asyncio.wait([gone], timeout=self.delay)
        if done and message["type"] == "http.request":
            self.abandoned.set()
            return
        gone.cancel()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b'"fine"'})


class Around(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


def make_service(base_url, *, around=False, config=None, **options):
    clients = HTTPClients({"up": ClientConfig(**{"base_url": base_url, "retry_attempts": 1, **(config or {})})})
    app = FastAPI(lifespan=clients.lifespan)
    clients.install(app, **options)
    if around:
        app.add_middleware(Around)
    app.state.results = []
    app.state.done = threading.Event()

    @app.get("/")
    @app.get("/x")
    @app.post("/")
    async def route(up: Up):
        try:
            return (await up.get("/x")).raise_for_status().json_data
        except BaseException as error:
            app.state.results.append(type(error))
            raise
        finally:
            app.state.done.set()

    @app.get("/kept")
    @cancel_on_disconnect(False)
    async def kept(up: Up):
        app.state.results.append((await up.get("/x")).status_code)
        app.state.done.set()

    @app.get("/later")
    async def later(up: Up, background: BackgroundTasks):
        async def task():
            try:
                app.state.results.append((await up.get("/x")).status_code)
            except Exception as error:
                app.state.results.append(type(error))
            app.state.done.set()

        background.add_task(task)
        return current_context().remaining()

    return app


@pytest.mark.usefixtures("engine")
def test_a_request_that_is_too_slow_is_a_504_in_time():
    upstream = Upstream(delay=5)
    with serve(upstream, lifespan="off") as up, serve(make_service(up, request_timeout=0.2)) as base_url:
        started = time.monotonic()
        answer = httpx.get(base_url, headers=ID)
        assert time.monotonic() - started < 2
    assert answer.status_code == 504
    assert answer.json()["request_id"] == "order-42"
    assert upstream.abandoned.is_set()


@pytest.mark.usefixtures("engine")
def test_the_deadline_goes_from_hop_to_hop_and_only_shrinks():
    upstream = Upstream()
    trusting = {"request_timeout": 3, "trust_deadline_header": True}
    with (
        serve(upstream, lifespan="off") as up,
        serve(make_service(up, config={"propagation": "internal"}, **trusting)) as inner,
        serve(make_service(inner, config={"propagation": "internal"}, **trusting)) as outer,
    ):
        answer = httpx.get(outer, headers={**ID, "X-Request-Timeout-Ms": "2000"})
        assert answer.json() == "fine"
        answer = httpx.get(outer, headers={**ID, "X-Request-Timeout-Ms": "999999"})
        assert answer.json() == "fine"
        assert httpx.get(outer, headers={**ID, "X-Request-Timeout-Ms": "0"}).status_code == 504
    shortened, capped = (int(headers["x-request-timeout-ms"]) for headers in upstream.headers)
    assert 0 < shortened < 2000
    assert 2000 < capped < 3000
    assert {headers["x-request-id"] for headers in upstream.headers} == {"order-42"}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("around", [False, True], ids=["bare", "BaseHTTPMiddleware"])
def test_background_tasks_are_free_of_the_deadline(around):
    upstream = Upstream(delay=0.4)
    with (
        serve(upstream, lifespan="off") as up,
        serve(app := make_service(up, around=around, request_timeout=0.2)) as base_url,
    ):
        assert 0 < httpx.get(f"{base_url}/later").json() <= 0.2
        assert app.state.done.wait(5)
    assert app.state.results == [200]


def hang_up(base_url, upstream, method, path):
    address = urlsplit(base_url)
    with socket.create_connection((address.hostname, address.port)) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert upstream.called.wait(5)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("around", [False, True], ids=["bare", "BaseHTTPMiddleware"])
def test_a_caller_who_hangs_up_ends_the_upstream_call_on_the_wire(around):
    upstream = Upstream(delay=10)
    with (
        serve(upstream, lifespan="off") as up,
        serve(app := make_service(up, around=around)) as base_url,
    ):
        hang_up(base_url, upstream, "GET", "/")
        assert upstream.abandoned.wait(5)
        assert app.state.done.wait(5)
        assert app.state.results == [asyncio.CancelledError]
        upstream.delay = 0
        assert httpx.get(base_url).json() == "fine", "the client is as good as new"


@pytest.mark.parametrize("is_sync", [True, False], ids=["route", "dependency"])
def test_what_a_request_uses_stays_open_while_a_thread_works_for_it(is_sync):
    """A thread cannot be cancelled: with the handler cancelled, it would go on with a session that is closed."""
    entered, go, done = (threading.Event() for _ in range(3))
    events = []
    app = FastAPI()
    HTTPClients().install(app)

    async def session():
        try:
            yield
        finally:
            events.append("closed")
            done.set()

    def work():
        entered.set()
        assert go.wait(5)
        events.append("worked")

    @app.get("/", dependencies=[Depends(session)] + ([] if is_sync else [Depends(work)]))
    def route():
        if is_sync:
            work()

    @app.get("/async", dependencies=[Depends(session), Depends(work)])
    async def with_dependency():
        events.append("route")

    with serve(app, lifespan="off") as base_url:
        address = urlsplit(base_url)
        with socket.create_connection((address.hostname, address.port)) as sock:
            sock.sendall(f"GET {'/' if is_sync else '/async'} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert entered.wait(5)
        assert not done.wait(0.3), "longer than the watch takes to begin"
        go.set()
        assert done.wait(5)
    assert (events[0], events[-1]) == ("worked", "closed")


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("method", "path", "options"), [
    ("POST", "/", {}),
    ("GET", "/kept", {}),
    ("GET", "/", {"cancel_on_disconnect": False}),
])  # fmt: skip
def test_a_route_that_is_not_to_be_cancelled_gets_its_answer(method, path, options):
    upstream = Upstream(delay=0.3)
    with serve(upstream, lifespan="off") as up, serve(app := make_service(up, **options)) as base_url:
        hang_up(base_url, upstream, method, path)
        assert app.state.done.wait(5)
    assert not upstream.abandoned.is_set()
    assert app.state.results in ([], [200])


@pytest.mark.usefixtures("engine")
def test_an_upstreams_answer_is_never_ours():
    upstream = Upstream(status=401)
    with serve(upstream, lifespan="off") as up, serve(make_service(up)) as base_url:
        answer = httpx.get(base_url)
    assert answer.status_code == 502
    assert "fine" not in answer.text
    assert urlsplit(up).netloc not in answer.text
