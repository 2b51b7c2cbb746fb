from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.requests import Request

from fastapi_http_client.auth import BasicAuth
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.edge.routes import STATE_KEY
from fastapi_http_client.errors import ConfigurationError, HTTPRequestError
from fastapi_http_client.lifecycle import ClientStateError, Lifecycle
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from tests.servers import serve


@pytest.fixture(autouse=True)
def _only_these_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HTTP_CLIENT")]:
        monkeypatch.delenv(name)


class Network(httpx.AsyncBaseTransport):
    """Answers when `answer` is set; keeps the last request and counts how often it is closed."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.request: httpx.Request | None = None
        self.closed = 0
        self.close_error: Exception | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.request = request
        self.asked.set()
        await self.answer.wait()
        return httpx.Response(200, json={"ok": True})

    async def aclose(self) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


def open_network() -> Network:
    network = Network()
    network.answer.set()
    return network


# -- declaring ---------------------------------------------------------------------------------------------------


async def test_clients_come_from_code_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = HTTPClients({"GitHub": ClientConfig(base_url="http://code", timeout=7, retry_attempts=2)})
    clients.add("billing", base_url="http://billing")
    monkeypatch.setenv("HTTP_CLIENT__GITHUB__TIMEOUT", "3")
    monkeypatch.setenv("HTTP_CLIENT__EXTRA__BASE_URL", "http://extra")
    async with clients:
        assert clients.names == ("billing", "extra", "github")
        github = clients["github"]
        assert isinstance(github, AsyncHTTPClient)
        assert github.name == "github"
        config = github.config
        assert (config.base_url, config.timeout, config.retry_attempts) == ("http://code", 3.0, 2)
        assert clients["billing"].config.base_url == "http://billing"
        assert clients["extra"].config.base_url == "http://extra"


async def test_the_environment_is_read_at_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "nonsense")
    clients = HTTPClients()
    for timeout in ("3", "4"):
        monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", timeout)
        async with clients:
            assert clients["a"].config.timeout == float(timeout)


async def test_prefix_env_file_and_secrets_dir_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ACME__A__TIMEOUT=3\n")
    (tmp_path / "acme__a__max_redirects").write_text("4")
    monkeypatch.setenv("ACME__A__RETRY_ATTEMPTS", "5")
    monkeypatch.setenv("HTTP_CLIENT__A__RETRY_ATTEMPTS", "nonsense")
    async with HTTPClients(env_prefix="ACME__", env_file=tmp_path / ".env", secrets_dir=tmp_path) as clients:
        config = clients["a"].config
        assert (config.timeout, config.max_redirects, config.retry_attempts) == (3.0, 4, 5)


async def test_add_hands_its_arguments_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    network, limiter, middleware, auth = open_network(), TokenBucketRateLimiter(5), Middleware(), BasicAuth("u", "p")
    clients = HTTPClients()
    clients.add(
        "a",
        base_url="http://a",
        auth=auth,
        middlewares=[middleware],
        rate_limiter=limiter,
        transport=network,
        params={"p": "q"},
    )
    async with clients:
        client = clients["a"]
        assert (client.auth, client.rate_limiter, client.middlewares) == (auth, limiter, (middleware,))
        await client.get("/x")
    assert network.request is not None
    assert str(network.request.url) == "http://a/x?p=q"


async def test_httpx_options_that_are_config_fields_give_way_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clients = HTTPClients()
    clients.add("a", config=ClientConfig(timeout=9, headers={"X-A": "config"}), timeout=8, headers={"X-B": "code"})
    clients.add("b", timeout=httpx.Timeout(7), follow_redirects=True)
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "3")
    monkeypatch.setenv("HTTP_CLIENT__A__HEADERS", '{"x-b": "environment"}')
    async with clients:
        assert clients["a"].config.timeout == 3.0
        assert clients["a"].headers["x-b"] == "environment"
        assert clients["b"].timeout == httpx.Timeout(7)
        assert clients["b"].follow_redirects


async def test_verification_switched_off_in_code_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    clients = HTTPClients()
    clients.add("a", verify=False)
    with caplog.at_level(logging.WARNING):
        async with clients:
            pass
    assert [record.getMessage() for record in caplog.records] == [
        'client a: TLS certificates are not verified (code clients["a"].verify_ssl)'
    ]


async def test_auth_of_the_environment_replaces_that_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_network()
    clients = HTTPClients()
    clients.add("a", base_url="http://a", auth=BasicAuth("u", "p"), transport=network)
    monkeypatch.setenv("HTTP_CLIENT__A__AUTH__TYPE", "bearer")
    monkeypatch.setenv("HTTP_CLIENT__A__AUTH__TOKEN", "t")
    async with clients:
        await clients["a"].get("/")
    assert network.request is not None
    assert network.request.headers["Authorization"] == "Bearer t"


def test_two_names_with_one_normal_form_collide() -> None:
    with pytest.raises(ConfigurationError, match='client "my_api": declared twice \\(as "my-api" before\\)'):
        HTTPClients({"my-api": ClientConfig(), "my_api": ClientConfig()})
    clients = HTTPClients({"a": ClientConfig()})
    with pytest.raises(ConfigurationError, match="declared twice"):
        clients.add("A")


def test_default_is_reserved() -> None:
    with pytest.raises(ConfigurationError, match="DEFAULT"):
        HTTPClients().add("default")


@pytest.mark.parametrize("config", [{"timeout": 5}, "x", object()])
def test_a_config_is_a_client_config(config: Any) -> None:
    with pytest.raises(ConfigurationError, match='client "a": config must be a ClientConfig, not'):
        HTTPClients({"a": config})


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan"), "10", None])
def test_a_grace_is_a_number_of_seconds(grace: Any) -> None:
    with pytest.raises(ConfigurationError, match="shutdown_grace"):
        HTTPClients(shutdown_grace=grace)


async def test_nothing_is_added_while_running() -> None:
    clients = HTTPClients()
    async with clients:
        with pytest.raises(ConfigurationError, match="started already"):
            clients.add("a")
    clients.add("a")
    async with clients:
        assert "a" in clients


# -- using -------------------------------------------------------------------------------------------------------


async def test_names_are_found_in_any_spelling() -> None:
    async with HTTPClients({"my-api": ClientConfig()}) as clients:
        assert clients["MY-API"] is clients["my_api"]
        assert "My-Api" in clients
        assert "other" not in clients
        assert 3 not in clients
        assert list(clients) == ["my_api"]


async def test_an_unknown_name_lists_the_known_ones_and_the_variable() -> None:
    async with HTTPClients({"github": ClientConfig(), "billing": ClientConfig()}) as clients:
        with pytest.raises(ConfigurationError) as caught:
            clients["githbu"]
    assert str(caught.value) == (
        "no client githbu is configured, did you mean github? "
        "Or set HTTP_CLIENT__GITHBU__BASE_URL (configured are: billing, github)"
    )


async def test_before_the_start_and_after_the_end_there_are_no_clients() -> None:
    clients = HTTPClients({"github": ClientConfig()})
    assert clients.names == ("github",)
    with pytest.raises(
        ConfigurationError, match=r'client "github" cannot be used: the clients have not been started.*TestClient'
    ):
        clients["github"]
    async with clients:
        client = clients["github"]
    with pytest.raises(ConfigurationError, match="the clients are closed"):
        clients["github"]
    with pytest.raises(Exception, match="closed"):
        await client.get("http://x/")


def test_the_repr_shows_names_and_state() -> None:
    assert repr(HTTPClients({"b": ClientConfig(), "a": ClientConfig()})) == "<HTTPClients(a, b), new>"


# -- starting ----------------------------------------------------------------------------------------------------


async def test_all_problems_come_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "sesame")
    monkeypatch.setenv("HTTP_CLIENT__B__AUTH__TYPE", "bearer")
    monkeypatch.setenv("HTTP_CLIENT__B__AUTH__TOKEN", "sesame open")
    monkeypatch.setenv("HTTP_CLIENTS__C__TIMEOUT", "5")
    clients = HTTPClients({"d": ClientConfig()}, secrets_dir="/nowhere")
    with pytest.raises(ConfigurationError) as caught:
        await clients.start()
    assert [problem.argument for problem in caught.value.problems] == [
        "secrets_dir",
        "HTTP_CLIENTS__C__TIMEOUT",
        "HTTP_CLIENT__A__TIMEOUT",
        "HTTP_CLIENT__B__AUTH__TOKEN",
    ]
    assert str(caught.value).startswith("the HTTP clients cannot start, 4 problems:\n  secrets_dir: ")
    assert "sesame" not in str(caught.value)
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)


async def test_after_a_start_that_failed_another_may_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "abc")
    clients = HTTPClients()
    with pytest.raises(ConfigurationError, match="1 problem:"):
        await clients.start()
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "5")
    async with clients:
        assert clients["a"].config.timeout == 5.0


async def test_clients_built_before_one_that_fails_are_closed() -> None:
    network = open_network()
    clients = HTTPClients()
    clients.add("a", transport=network)
    clients.add("b", middlewares=["no middleware"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match=r'clients\["b"\]\.middlewares'):
        await clients.start()
    assert network.closed == 1


async def test_an_error_that_is_no_configuration_error_passes_and_names_the_client() -> None:
    network = open_network()
    network.close_error = OSError("must not hide the cause")
    clients = HTTPClients()
    clients.add("a", transport=network)

    class Broken:
        @property
        def random(self) -> float:
            raise LookupError("nonsense")

    clients.add("b", random=Broken())
    with pytest.raises(LookupError, match="nonsense") as caught:
        await clients.start()
    assert caught.value.__notes__ == ['while the client "b" was built']
    assert network.closed == 1


async def test_a_start_that_fails_at_its_end_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_network()
    clients = HTTPClients()
    clients.add("a", transport=network)
    with monkeypatch.context() as patch:
        patch.setattr(Lifecycle, "bind", lambda self: asyncio.get_running_loop().nothing)  # as on another kind of loop
        with pytest.raises(AttributeError, match="nothing"):
            await clients.start()
    assert network.closed == 1
    async with clients:
        assert clients.is_running


async def test_starting_twice_is_an_error() -> None:
    clients = HTTPClients({"a": ClientConfig()})
    async with clients:
        client = clients["a"]
        with pytest.raises(ConfigurationError, match="started already"):
            await clients.start()
        assert clients["a"] is client


# -- ending ------------------------------------------------------------------------------------------------------


async def test_the_end_waits_for_calls_in_flight_and_takes_no_new_ones() -> None:
    network = Network()
    clients = HTTPClients()
    clients.add("a", base_url="http://a", transport=network)
    await clients.start()
    client = clients["a"]
    call = asyncio.create_task(client.get("/"))
    await network.asked.wait()
    closing = asyncio.create_task(clients.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    with pytest.raises(Exception, match="shutting down"):
        await client.get("/")
    with pytest.raises(ConfigurationError, match="closed"):
        clients["a"]
    with pytest.raises(ConfigurationError, match="started already"):
        await clients.start()
    network.answer.set()
    assert (await call).json_data == {"ok": True}
    await closing
    assert network.closed == 1


async def test_the_end_waits_no_longer_than_the_grace() -> None:
    network = Network()
    clients = HTTPClients(shutdown_grace=0.02)
    clients.add("a", base_url="http://a", transport=network)
    await clients.start()
    call = asyncio.create_task(clients["a"].get("/"))
    await network.asked.wait()
    async with asyncio.timeout(1):
        await clients.aclose()
    assert network.closed == 1
    with pytest.raises(HTTPRequestError, match="was closed while this call"):
        await call


async def test_clients_are_drained_all_at_once() -> None:
    networks = [Network() for _ in range(5)]
    clients = HTTPClients(shutdown_grace=0.2)
    for number, network in enumerate(networks):
        clients.add(f"c{number}", base_url="http://a", transport=network)
    await clients.start()
    calls = [asyncio.create_task(clients[name].get("/")) for name in clients.names]
    await asyncio.gather(*(network.asked.wait() for network in networks))
    async with asyncio.timeout(0.6):
        await clients.aclose()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def with_a_call_under_way() -> tuple[HTTPClients, Network, asyncio.Task[HTTPResponse]]:
    network = Network()
    clients = HTTPClients()
    clients.add("a", base_url="http://a", transport=network)
    await clients.start()
    call = asyncio.create_task(clients["a"].get("/"))
    await network.asked.wait()
    return clients, network, call


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_end_is_carried_to_its_end(times: int) -> None:
    clients, network, call = await with_a_call_under_way()
    closing = asyncio.create_task(clients.aclose())
    for _ in range(times):
        await asyncio.sleep(0.005)
        closing.cancel()
    await asyncio.sleep(0.005)
    assert not closing.done()
    network.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (await call).status_code == 200
    assert network.closed == 1
    async with clients:  # and it left no state behind
        pass


async def test_a_cancelled_scope_around_the_clients_does_not_cut_their_end_short() -> None:
    network = Network()
    clients = HTTPClients()
    clients.add("a", base_url="http://a", transport=network)
    with anyio.CancelScope() as scope:
        async with clients:
            call = asyncio.create_task(clients["a"].get("/"))
            await network.asked.wait()
            asyncio.get_running_loop().call_later(0.05, network.answer.set)
            scope.cancel()
            await asyncio.sleep(10)
    assert scope.cancelled_caught
    assert (await call).status_code == 200
    assert network.closed == 1


async def test_one_client_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    networks = [open_network() for _ in range(3)]
    networks[0].close_error = OSError("one")
    networks[2].close_error = ValueError("three")
    clients = HTTPClients()
    for number, network in enumerate(networks):
        clients.add(f"c{number}", transport=network)
    await clients.start()
    with pytest.raises(ExceptionGroup) as caught:
        await clients.aclose()
    assert [network.closed for network in networks] == [1, 1, 1]
    assert [str(error) for error in caught.value.exceptions] == ["one", "three"]
    assert caught.value.exceptions[0].__notes__ == ['while the client "c0" was closed']
    assert repr(clients).endswith("closed>")


async def test_closing_what_is_not_running_does_nothing() -> None:
    clients = HTTPClients()
    await clients.aclose()
    await clients.start()
    await clients.aclose()
    await clients.aclose()


async def test_who_closes_while_they_are_being_closed_waits_for_the_same_end() -> None:
    clients, network, call = await with_a_call_under_way()
    both = [asyncio.create_task(clients.aclose()) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(closing.done() for closing in both)
    network.answer.set()
    await asyncio.gather(*both)
    assert (await call).status_code == 200
    assert network.closed == 1


async def test_an_error_in_the_body_closes_the_clients() -> None:
    network = open_network()
    clients = HTTPClients()
    clients.add("a", transport=network)
    with pytest.raises(KeyError):
        async with clients:
            raise KeyError
    assert network.closed == 1


# -- the app's lifespan ------------------------------------------------------------------------------------------


def state_of(request: Request) -> list[str]:
    return sorted(request.scope["state"])


def test_it_is_a_lifespan() -> None:
    clients = HTTPClients({"a": ClientConfig()})
    app = FastAPI(lifespan=clients.lifespan)
    app.get("/")(state_of)
    app.openapi()
    with TestClient(app) as browser:
        assert clients["a"].name == "a"
        assert not clients["a"].is_closed
        assert clients.names == ("a",)
    with pytest.raises(ConfigurationError, match="closed"):
        clients["a"]
    with TestClient(app) as browser:
        assert browser.get("/docs").status_code == 200


async def test_it_fits_into_a_lifespan_of_ones_own() -> None:
    clients = HTTPClients({"a": ClientConfig()})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with clients.lifespan(app) as state:
            assert clients["a"].name == "a"  # already usable in the start-up code
            yield {**state, "mine": 1}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def keys(request: Request) -> list[str]:
        return state_of(request)

    async with (
        LifespanManager(app) as manager,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=manager.app), base_url="http://app") as browser,
    ):
        assert (await browser.get("/")).json() == sorted([STATE_KEY, "mine"])


def test_it_works_in_plain_starlette() -> None:
    clients = HTTPClients({"a": ClientConfig()})
    with TestClient(Starlette(lifespan=clients.lifespan)):
        assert "a" in clients


def test_a_wrong_configuration_stops_the_start_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "abc")
    app = FastAPI(lifespan=HTTPClients().lifespan)
    with pytest.raises(ConfigurationError, match="HTTP_CLIENT__A__TIMEOUT"), TestClient(app):
        pass


def test_one_registry_serves_one_app_at_a_time() -> None:
    clients = HTTPClients()
    app = FastAPI(lifespan=clients.lifespan)
    with (
        TestClient(app),
        pytest.raises(ConfigurationError, match="one registry serves one app"),
        TestClient(FastAPI(lifespan=clients.lifespan)),
    ):
        pass
    with TestClient(app):
        pass


def test_real_uvicorn_starts_and_stops_the_clients() -> None:
    clients = HTTPClients({"a": ClientConfig()})
    app = FastAPI(lifespan=clients.lifespan)

    @app.get("/")
    async def names(request: Request) -> list[str]:
        return list(request.scope["state"][STATE_KEY].names)

    with serve(app) as url:
        assert httpx.get(url).json() == ["a"]
    assert repr(clients) == "<HTTPClients(a), closed>"


def test_install_puts_the_registry_into_the_state_of_the_app() -> None:
    clients = HTTPClients()
    app = FastAPI()
    clients.install(app, request_timeout=5.0)
    assert getattr(app.state, STATE_KEY) is clients


@pytest.mark.parametrize(
    ("argument", "value"), [("clients", 5), ("clients", ["github"]), ("env_prefix", 5), ("shutdown_grace", "x")]
)
def test_an_argument_of_a_wrong_kind_is_named(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{argument}: must be"):
        HTTPClients(**{argument: value})


async def test_a_store_of_a_wrong_kind_is_named() -> None:
    with pytest.raises(ConfigurationError, match="store: must be a URL or a Store, not int"):
        await HTTPClients(store=5).start()


async def test_clients_belong_to_the_loop_that_started_them_whoever_calls_first() -> None:
    clients = HTTPClients()
    clients.add("api", base_url="https://api.example.com", transport=httpx.MockTransport(lambda _: httpx.Response(200)))
    async with clients:
        with pytest.raises(ClientStateError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(_get(clients["api"])))
        assert (await _get(clients["api"])).status_code == 200


async def _get(client: AsyncHTTPClient) -> HTTPResponse:
    return await client.get("/")


async def test_httpx_objects_given_in_code_give_way_to_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for option, value in {"TIMEOUT": "9", "MAX_CONNECTIONS": "7", "PROXY": "http://env.example:3128"}.items():
        monkeypatch.setenv(f"HTTP_CLIENT__ENV__{option}", value)
    clients = HTTPClients()
    for name in ("env", "code"):
        clients.add(
            name,
            timeout=httpx.Timeout(3, connect=1),
            limits=httpx.Limits(max_connections=3, max_keepalive_connections=2),
            proxy=httpx.Proxy("http://code.example:3128", auth=("u", "p")),
        )
    async with clients:
        env, code = clients["env"], clients["code"]
        assert (env.config.timeout, env.timeout.read, env.timeout.connect) == (9.0, 9.0, 1.0)
        assert (env.config.max_connections, env.config.max_keepalive_connections) == (7, 2)
        assert env.config.proxy == "http://env.example:3128"
        assert (code.config.timeout, code.timeout) == (3.0, httpx.Timeout(3, connect=1))
        assert (code.config.max_connections, code.config.proxy) == (3, "http://u:p@code.example:3128")
        assert "timeout = 9.0  (environment HTTP_CLIENT__ENV__TIMEOUT)" in clients.explain()
        assert 'timeout = 3.0  (code clients["code"].timeout)' in clients.explain()


async def test_a_timeout_that_no_field_can_say_is_used_as_it_is() -> None:
    clients = HTTPClients()
    clients.add("stream", timeout=httpx.Timeout(10, read=None))
    async with clients:
        assert clients["stream"].timeout == httpx.Timeout(10, read=None)
        assert "timeout = Timeout  (code)" in clients.explain()


def test_an_option_that_there_is_not_is_refused_where_it_is_given() -> None:
    with pytest.raises(TypeError, match=r"'totl_timeout'; did you mean total_timeout\?"):
        HTTPClients().add("a", totl_timeout=3)  # type: ignore[call-arg]


async def test_a_middleware_that_is_not_in_a_list_is_a_problem_of_the_start() -> None:
    clients = HTTPClients()
    clients.add("a", middlewares=Middleware())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r'clients\["a"\]\.middlewares: must be a sequence of Middlewares'):
        await clients.start()
