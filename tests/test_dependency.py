# No `from __future__ import annotations` here: the routes below are made inside of functions, and FastAPI could not
# resolve their annotations.

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi.routing
import httpx
import pytest
from asgi_lifespan import LifespanManager
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Host, Mount, Route

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.edge.dependency import ClientDependency, http_client
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.edge.routes import STATE_KEY, client_references
from fastapi_http_client.errors import ConfigurationError
from tests.servers import serve

GitHub = Annotated[AsyncHTTPClient, Depends(http_client("github"))]
USES_GITHUB = Depends(http_client("github"))


@pytest.fixture(autouse=True)
def _only_these_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HTTP_CLIENT")]:
        monkeypatch.delenv(name)


def github(**fields: Any) -> HTTPClients:
    return HTTPClients({"github": ClientConfig(base_url="http://github", **fields)})


async def name_of(client: GitHub) -> str | None:
    return client.name


# -- in routes ---------------------------------------------------------------------------------------------------


def test_it_gives_the_client_to_routes_of_every_kind() -> None:
    clients = github()
    app = FastAPI(lifespan=clients.lifespan)
    app.get("/async")(name_of)

    @app.get("/sync")
    def sync(client: GitHub) -> bool:
        return client is clients["github"]

    async def sub_dependency(client: GitHub) -> str | None:
        return client.name

    @app.get("/sub")
    async def sub(name: Annotated[str, Depends(sub_dependency)]) -> str:
        return name

    @app.websocket("/ws")
    async def ws(socket: WebSocket, client: GitHub) -> None:
        await socket.accept()
        await socket.send_json(client.name)
        await socket.close()

    with TestClient(app) as browser:
        assert browser.get("/async").json() == "github"
        assert browser.get("/sync").json() is True
        assert browser.get("/sub").json() == "github"
        with browser.websocket_connect("/ws") as socket:
            assert socket.receive_json() == "github"


def test_it_makes_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = HTTPClients()
    clients.add(
        "github",
        base_url="http://github",
        transport=httpx.MockTransport(lambda request: httpx.Response(200, json={"path": request.url.path})),
    )
    app = FastAPI(lifespan=clients.lifespan)

    @app.get("/users/{login}")
    async def user(login: str, client: GitHub) -> Any:
        response = await client.get("/users/{login}", path_params={"login": login})
        return response.raise_for_status().json_data

    with TestClient(app) as browser:
        assert browser.get("/users/me").json() == {"path": "/users/me"}


def test_it_works_in_included_routers_and_mounted_apps() -> None:
    app, sub, subsub = FastAPI(lifespan=github().lifespan), FastAPI(), FastAPI()
    router = APIRouter(prefix="/router")
    for place in (router, sub, subsub):
        place.get("/name")(name_of)
    app.include_router(router, prefix="/included")
    sub.mount("/subsub", subsub)
    app.mount("/sub", sub)
    with TestClient(app) as browser:
        for path in ("/included/router/name", "/sub/name", "/sub/subsub/name"):
            assert browser.get(path).json() == "github"


def test_two_apps_in_one_process_have_clients_of_their_own() -> None:
    apps = []
    for timeout in (3, 4):
        app = FastAPI(lifespan=github(timeout=timeout).lifespan)

        @app.get("/")
        async def timeout_of(client: GitHub) -> float:
            return client.config.timeout

        apps.append(app)
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        assert (first.get("/").json(), second.get("/").json()) == (3.0, 4.0)


async def test_it_works_with_asgi_lifespan() -> None:
    app = FastAPI(lifespan=github().lifespan)
    app.get("/")(name_of)
    async with (
        LifespanManager(app) as manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://app") as browser,
    ):
        assert (await browser.get("/")).json() == "github"
        assert (await browser.get("/")).json() == "github"


def test_it_works_under_real_uvicorn() -> None:
    app = FastAPI(lifespan=github().lifespan)
    app.get("/")(name_of)
    with serve(app) as url:
        assert httpx.get(url).json() == "github"


def test_it_adds_nothing_to_openapi() -> None:
    app, plain = FastAPI(), FastAPI()

    @app.get("/")
    async def route(client: GitHub) -> None: ...

    @plain.get("/", name="route")
    async def without() -> None: ...

    schema, expected = app.openapi(), plain.openapi()
    assert "parameters" not in schema["paths"]["/"]["get"]
    assert schema["paths"]["/"]["get"].keys() == expected["paths"]["/"]["get"].keys()
    assert schema.get("components") == expected.get("components")


# -- as a value --------------------------------------------------------------------------------------------------


def test_equal_dependencies_are_one() -> None:
    clients = HTTPClients()
    assert http_client("GitHub") == http_client("github")
    assert http_client("my-api") == http_client("MY_API")
    assert hash(http_client("GitHub")) == hash(http_client("github"))
    assert http_client("github") != http_client("billing")
    assert http_client("github", clients) == http_client("github", clients)
    assert http_client("github", clients) != http_client("github")


def test_it_is_frozen_and_shows_no_more_than_names() -> None:
    dependency = http_client("github")
    assert isinstance(dependency, ClientDependency)
    with pytest.raises(AttributeError):
        dependency.name = "billing"  # type: ignore[misc]
    assert repr(dependency) == "ClientDependency(name='github', clients=None)"


@pytest.mark.parametrize("name", ["default", "a__b", "", 3])
def test_a_name_that_no_client_can_have_is_refused_at_once(name: Any) -> None:
    with pytest.raises(ConfigurationError):
        http_client(name)


def test_clients_must_be_a_registry() -> None:
    with pytest.raises(ConfigurationError, match="clients: must be an HTTPClients, not dict"):
        http_client("github", {})  # type: ignore[arg-type]


# -- where the registry is found ---------------------------------------------------------------------------------


def test_a_registry_that_was_chosen_is_used() -> None:
    first, second = github(timeout=3), github(timeout=4)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with first.lifespan(app) as state, second.lifespan(app):
            yield state

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def timeouts(
        one: Annotated[AsyncHTTPClient, Depends(http_client("github", first))],
        two: Annotated[AsyncHTTPClient, Depends(http_client("github", clients=second))],
    ) -> list[float]:
        return [one.config.timeout, two.config.timeout]

    with TestClient(app) as browser:
        assert browser.get("/").json() == [3.0, 4.0]


async def test_the_state_of_the_app_is_the_fall_back() -> None:
    """As `install` leaves it: then even a transport that hands over no lifespan state works."""
    clients = github()
    app = FastAPI(lifespan=clients.lifespan)
    setattr(app.state, STATE_KEY, clients)
    app.get("/")(name_of)
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as browser,
    ):
        assert (await browser.get("/")).json() == "github"


def test_an_app_mounted_in_a_mounted_app_has_the_clients_of_the_nearest_registry_around_it() -> None:
    outer, inner = github(timeout=3), github(timeout=4)

    async def timeout(client: Annotated[AsyncHTTPClient, Depends(http_client("github"))]) -> float:
        return client.config.timeout

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with outer.lifespan(app) as state, inner.lifespan(mounted):
            yield state

    app, mounted, below = FastAPI(lifespan=lifespan), FastAPI(), FastAPI()
    for each in (app, mounted, below):
        each.get("/timeout")(timeout)
    outer.install(app)
    inner.install(mounted)
    mounted.mount("/below", below)
    app.mount("/mounted", mounted)
    with TestClient(app) as browser:
        paths = ("/timeout", "/mounted/timeout", "/mounted/below/timeout")
        assert [browser.get(path).json() for path in paths] == [3.0, 4.0, 4.0]


@pytest.mark.parametrize("clients", [None, github()])
def test_without_a_lifespan_the_usual_causes_are_listed(clients: HTTPClients | None) -> None:
    app = FastAPI()

    @app.get("/")
    async def route(client: Annotated[AsyncHTTPClient, Depends(http_client("github", clients))]) -> None: ...

    with pytest.raises(ConfigurationError, match="github") as caught:
        TestClient(app).get("/")
    message = str(caught.value)
    assert "lifespan=clients.lifespan" in message
    assert "TestClient without `with`" in message
    assert "ASGITransport(app=manager.app)" in message


async def test_the_app_instead_of_the_manager_lists_the_usual_causes() -> None:
    app = FastAPI(lifespan=github().lifespan)
    app.get("/")(name_of)
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as browser,
    ):
        with pytest.raises(ConfigurationError, match=r"manager\.app"):
            await browser.get("/")


def test_a_lifespan_that_drops_the_state_lists_the_usual_causes() -> None:
    clients = github()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with clients.lifespan(app):
            yield

    app = FastAPI(lifespan=lifespan)
    app.get("/")(name_of)
    with TestClient(app) as browser, pytest.raises(ConfigurationError, match="yield state"):
        browser.get("/")


def test_a_route_added_after_the_start_fails_clearly() -> None:
    app = FastAPI(lifespan=github().lifespan)
    with TestClient(app) as browser:

        @app.get("/late")
        async def late(client: Annotated[AsyncHTTPClient, Depends(http_client("late"))]) -> None: ...

        with pytest.raises(ConfigurationError, match="set HTTP_CLIENT__LATE__BASE_URL"):
            browser.get("/late")


# -- what stops the start ----------------------------------------------------------------------------------------


def start_error(app: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught, TestClient(app):
        pass
    return [str(problem) for problem in caught.value.problems]


def as_route(app: FastAPI) -> None:
    app.get("/r")(name_of)


def as_websocket(app: FastAPI) -> None:
    @app.websocket("/r")
    async def ws(socket: WebSocket, client: GitHub) -> None: ...


def as_sub_dependency(app: FastAPI) -> None:
    async def inner(client: GitHub) -> None: ...

    async def outer(x: Annotated[None, Depends(inner)]) -> None: ...

    @app.get("/r")
    async def route(x: Annotated[None, Depends(outer)]) -> None: ...


def as_route_dependency(app: FastAPI) -> None:
    @app.get("/r", dependencies=[USES_GITHUB])
    async def route() -> None: ...


def as_app_dependency(app: FastAPI) -> None:
    app.router.dependencies.append(USES_GITHUB)

    @app.get("/r")
    async def route() -> None: ...


def as_router_dependency(app: FastAPI) -> None:
    router = APIRouter(dependencies=[USES_GITHUB])

    @router.get("/r")
    async def route() -> None: ...

    app.include_router(router)


def as_include_dependency(app: FastAPI) -> None:
    router = APIRouter()

    @router.get("/r")
    async def route() -> None: ...

    app.include_router(router, dependencies=[USES_GITHUB])


def as_include_dependency_of_a_websocket(app: FastAPI) -> None:
    router = APIRouter()

    @router.websocket("/r")
    async def route(socket: WebSocket) -> None: ...

    app.include_router(router, dependencies=[USES_GITHUB])


def as_included_router(app: FastAPI) -> None:
    router = APIRouter()
    router.get("/r")(name_of)
    app.include_router(router)


def as_nested_routers_included_in_any_order(app: FastAPI) -> None:
    outer, inner = APIRouter(prefix="/outer"), APIRouter(prefix="/inner")
    app.include_router(outer, prefix="/v1")
    outer.include_router(inner)
    inner.get("/r")(name_of)


def as_mounted_app(app: FastAPI) -> None:
    sub = FastAPI()
    sub.get("/r")(name_of)
    app.mount("/sub", sub)


def as_nested_mounts_behind_middlewares(app: FastAPI) -> None:
    class Passing:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    sub, subsub = FastAPI(), FastAPI()
    subsub.get("/r")(name_of)
    sub.mount("/b", Passing(Passing(subsub)))
    app.mount("/a", sub)


def as_mount_in_an_included_router(app: FastAPI) -> None:
    sub, router = FastAPI(), APIRouter()
    sub.get("/r")(name_of)
    router.mount("/sub", sub)
    app.include_router(router, prefix="/v1")


def as_host_in_an_included_router(app: FastAPI) -> None:
    sub, router = FastAPI(), APIRouter()
    sub.get("/r")(name_of)
    router.routes.append(Host("api.example.com", app=sub))
    app.include_router(router, prefix="/v1")


needs_tree = pytest.mark.skipif(
    not hasattr(fastapi.routing, "_IncludedRouter"), reason="this FastAPI copies routes, and drops such ones"
)


@pytest.mark.parametrize(
    ("declare", "route"),
    [
        (as_route, "GET /r"),
        (as_websocket, "/r"),
        (as_sub_dependency, "GET /r"),
        (as_route_dependency, "GET /r"),
        (as_app_dependency, "GET /r"),
        (as_router_dependency, "GET /r"),
        (as_include_dependency, "GET /r"),
        (as_include_dependency_of_a_websocket, "/r"),
        (as_included_router, "GET /r"),
        pytest.param(as_nested_routers_included_in_any_order, "GET /v1/outer/inner/r", marks=needs_tree),
        (as_mounted_app, "GET /sub/r"),
        (as_nested_mounts_behind_middlewares, "GET /a/b/r"),
        pytest.param(as_mount_in_an_included_router, "GET /v1/sub/r", marks=needs_tree),
        pytest.param(as_host_in_an_included_router, "GET /v1/r", marks=needs_tree),
    ],
)
def test_a_client_that_nobody_configured_stops_the_start(declare: Callable[[FastAPI], None], route: str) -> None:
    app = FastAPI(lifespan=HTTPClients({"githbu": ClientConfig()}).lifespan)
    declare(app)
    assert start_error(app) == [
        f'http_client("github") in {route}: no client github is configured, did you mean githbu? '
        "Or set HTTP_CLIENT__GITHUB__BASE_URL (configured are: githbu); for one of another registry pass clients="
    ]


def test_a_static_frontend_has_dependencies_too(tmp_path: Path) -> None:
    if not hasattr(APIRouter, "frontend"):
        pytest.skip("this FastAPI has no frontends")
    app = FastAPI(lifespan=HTTPClients().lifespan)
    router = APIRouter(dependencies=[USES_GITHUB])
    router.frontend("/ui", directory=tmp_path)
    app.include_router(router, prefix="/v1")
    assert 'http_client("github") in' in start_error(app)[0]


def test_routes_and_settings_are_reported_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__BILLING__TIMEOUT", "abc")
    app = FastAPI(lifespan=HTTPClients().lifespan)
    app.get("/a")(name_of)
    app.get("/b")(name_of)

    @app.get("/c")
    async def billing(client: Annotated[AsyncHTTPClient, Depends(http_client("billing"))]) -> None: ...

    assert start_error(app) == [
        "HTTP_CLIENT__BILLING__TIMEOUT: Input should be a valid number, unable to parse string as a number",
        'http_client("github") in GET /a, GET /b: no client github is configured: '
        "set HTTP_CLIENT__GITHUB__BASE_URL (configured are: billing); for one of another registry pass clients=",
    ]


def test_what_is_overridden_needs_no_configuration() -> None:
    app, sub = FastAPI(lifespan=HTTPClients().lifespan), FastAPI()
    router = APIRouter()

    async def needs_more(client: Annotated[AsyncHTTPClient, Depends(http_client("billing"))]) -> str:
        return "real"

    for place in (app, sub, router):

        @place.get("/name")
        async def names(client: GitHub, other: Annotated[str, Depends(needs_more)]) -> list[Any]:
            return [client, other]

    app.include_router(router, prefix="/router")
    app.mount("/sub", sub)
    for overridden in (app, sub):
        overridden.dependency_overrides[http_client("GitHub")] = lambda: "fake"
        overridden.dependency_overrides[needs_more] = lambda: "more"
    with TestClient(app) as browser:
        for path in ("/name", "/sub/name", "/router/name"):
            assert browser.get(path).json() == ["fake", "more"]
    del sub.dependency_overrides[http_client("github")]
    assert [problem.split(":")[0] for problem in start_error(app)] == ['http_client("github") in GET /sub/name']


def test_two_registries_need_to_be_told_apart() -> None:
    first, second = github(), github()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with first.lifespan(app) as state, second.lifespan(app):
            yield state

    app = FastAPI(lifespan=lifespan)
    app.get("/r")(name_of)
    expected = ['http_client("github") in GET /r: the app has several registries; say which by passing clients=']
    assert start_error(app) == expected
    assert "new>" in repr(second)
    assert "closed>" in repr(first)

    @app.get("/chosen")
    async def chosen(client: Annotated[AsyncHTTPClient, Depends(http_client("github", second))]) -> None: ...

    assert start_error(app) == expected  # now the first one knows already


def test_a_reference_to_another_registry_is_the_others_business() -> None:
    first, second = HTTPClients(), HTTPClients()
    app = FastAPI(lifespan=first.lifespan)

    @app.get("/r")
    async def route(client: Annotated[AsyncHTTPClient, Depends(http_client("github", second))]) -> None: ...

    with TestClient(app):
        pass
    app.router.lifespan_context = second.lifespan
    assert 'http_client("github") in GET /r' in start_error(app)[0]


# -- the walk through the routes ---------------------------------------------------------------------------------


def test_apps_that_are_mounted_in_each_other_are_walked_once() -> None:
    app, sub = FastAPI(), FastAPI()
    app.mount("/sub", sub)
    sub.mount("/app", app)
    sub.get("/r")(name_of)
    assert [(route, reference.name) for route, reference in client_references(app, None)] == [("GET /sub/r", "github")]


@pytest.mark.parametrize(
    "app",
    [
        object(),
        Starlette(routes=[Route("/", lambda request: None), Mount("/x", app=object())]),  # type: ignore[arg-type]
        FastAPI(),
    ],
)
def test_apps_without_dependencies_have_no_references(app: Any) -> None:
    assert list(client_references(app, None)) == []


def test_a_route_for_several_methods_names_them() -> None:
    app = FastAPI()
    app.api_route("/r", methods=["POST", "GET"])(name_of)
    assert [route for route, _ in client_references(app, None)] == ["GET|POST /r"]


def test_a_request_object_beside_it_stays_what_it_is() -> None:
    app = FastAPI(lifespan=github().lifespan)

    @app.get("/{item}")
    async def route(item: str, request: Request, client: GitHub, q: int = 1) -> list[Any]:
        return [item, request.url.path, client.name, q]

    with TestClient(app) as browser:
        assert browser.get("/x?q=3").json() == ["x", "/x", "github", 3]


def test_a_mounted_app_with_a_registry_of_its_own_gets_its_own_clients() -> None:
    ours = HTTPClients({"billing": ClientConfig(base_url="https://ours.example.com")}, env_prefix="OURS__")
    theirs = HTTPClients({"billing": ClientConfig(base_url="https://theirs.example.com")}, env_prefix="THEIRS__")
    mounted = FastAPI()
    theirs.install(mounted)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        async with ours.lifespan(app) as state, theirs.lifespan(mounted):
            yield state

    app = FastAPI(lifespan=lifespan)
    ours.install(app)
    for one in (app, mounted):

        @one.get("/who")
        async def who(client: Annotated[AsyncHTTPClient, Depends(http_client("billing"))]) -> str:
            return client.base_url.host

    app.mount("/sub", mounted)
    with TestClient(app) as test:
        assert test.get("/who").json() == "ours.example.com"
        assert test.get("/sub/who").json() == "theirs.example.com"


def test_clients_that_only_a_mounted_apps_own_registry_has_are_no_problem_of_the_app_around_it() -> None:
    ours = HTTPClients({"users": ClientConfig(base_url="https://ours.example.com")}, env_prefix="OURS__")
    theirs = HTTPClients({"billing": ClientConfig(base_url="https://theirs.example.com")}, env_prefix="THEIRS__")
    mounted = FastAPI()
    theirs.install(mounted)

    @mounted.get("/who")
    async def who(client: Annotated[AsyncHTTPClient, Depends(http_client("billing"))]) -> str:
        return client.base_url.host

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        async with ours.lifespan(app) as state, theirs.lifespan(mounted):
            yield state

    app = FastAPI(lifespan=lifespan)
    app.mount("/sub", mounted)
    with TestClient(app) as test:
        assert test.get("/sub/who").json() == "theirs.example.com"
