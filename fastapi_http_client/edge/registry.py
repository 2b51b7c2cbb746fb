"""`HTTPClients`: the named clients of a service, built when it starts and closed when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import anyio
import httpx

from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.circuit_breaker import rules_of
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.client_options import as_fields, option_names
from fastapi_http_client.config import ClientConfig, given_fields
from fastapi_http_client.edge.install import install
from fastapi_http_client.edge.routes import STATE_KEY, client_references
from fastapi_http_client.errors import ConfigurationError, Problem
from fastapi_http_client.lifecycle import shielded
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.settings.sections import Section, code_section
from fastapi_http_client.settings.variables import (
    STORE,
    STORE_KEY,
    STORE_PREFIX,
    STORE_PROCESSES,
    checked_prefix,
    client_name,
    closest,
    normalise,
)

if TYPE_CHECKING:
    from typing import Self, Unpack

    from fastapi_http_client.circuit_breaker import CircuitBreaker
    from fastapi_http_client.client_options import DeclaredOptions
    from fastapi_http_client.clock import Clock
    from fastapi_http_client.fleet import Fleet
    from fastapi_http_client.middleware import Middleware
    from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
    from fastapi_http_client.settings.load import ClientSettings, EnvFiles, FilePath, Settings

RUNNING = "fastapi_http_client_running"
"""The attribute of `app.state` that holds all registries which the app's lifespan has started."""

HOW_TO_START = (
    "the usual causes: the app has no lifespan that starts the clients (FastAPI(lifespan=clients.lifespan), or your "
    "own lifespan with `async with clients.lifespan(app) as state: yield state`); a TestClient without `with`; "
    "ASGITransport(app=app) instead of ASGITransport(app=manager.app) with asgi-lifespan's LifespanManager"
)


_USUAL_PREFIX = "http_client__"
"""With another, the prefix is part of the names in a store: two registries of an app may have clients of one name."""


class _Declared:
    """What code says about one client."""

    __slots__ = ("arguments", "name", "section")

    def __init__(self, name: str, section: Section, arguments: dict[str, Any]) -> None:
        self.name = name
        self.section = section  # what the environment can override
        self.arguments = arguments  # what it cannot: objects, and httpx options that are no fields of `ClientConfig`

    def shown(self) -> dict[str, str]:
        return {name: _kinds(value) for name, value in self.arguments.items() if value is not None and value != ()}


class HTTPClients:
    """The registry: named clients, configured by code and environment, started and closed with the app.

    `clients` are configurations by name, over which the environment goes field by field. The environment is read at
    each start: variables `<env_prefix><NAME>__<OPTION>`, `.env` files (`env_file`; the last of several is the
    strongest, one that does not exist is passed over) and the files of `secrets_dir`, which must exist.
    `shutdown_grace` is how long, in seconds, the end waits for calls in flight. A registry serves one app at a time,
    and can be started again after it was closed.

    With a `store` (the URL of a Redis or Valkey server, a `Store`, or a `Fleet`; `HTTP_CLIENTS_STORE` goes over a URL)
    all processes on it share the limits and circuits that are configured, by the clients' names, and with
    `HTTP_CLIENTS_STORE_KEY` the OAuth2 tokens. A limiter or breaker object that code gives stays its process's own.

    Raises `ConfigurationError` for arguments that can never be right.
    """

    def __init__(
        self,
        clients: Mapping[str, ClientConfig] | None = None,
        *,
        env_prefix: str = "HTTP_CLIENT__",
        env_file: EnvFiles = None,
        secrets_dir: FilePath | None = None,
        store: Any = None,
        shutdown_grace: float = 10.0,
    ) -> None:
        if not isinstance(shutdown_grace, int | float) or not 0 <= shutdown_grace < math.inf:
            raise bad_argument("HTTPClients", "shutdown_grace", "must be a number of seconds, 0 or more")
        self._prefix = checked_prefix(env_prefix)
        self._env_file = env_file
        self._secrets_dir = secrets_dir
        self._store = store
        self._fleet: Fleet | None = None
        self._closing: asyncio.Task[None] | None = None
        self._grace = shutdown_grace
        self._declared: dict[str, _Declared] = {}
        self._phase: Literal["new", "starting", "running", "closing", "closed"] = "new"
        self._settings: Settings | None = None
        self._clients: dict[str, AsyncHTTPClient] = {}
        if clients is not None and not isinstance(clients, Mapping):
            what = f"must be a mapping of names to ClientConfig, not {type(clients).__name__}"
            raise bad_argument("HTTPClients", "clients", what)
        for name, config in (clients or {}).items():
            self.add(name, config=config)

    # -- declaring -----------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        *,
        base_url: str = "",
        config: ClientConfig | None = None,
        auth: Any = None,
        middlewares: Sequence[Middleware] = (),
        rate_limiter: TokenBucketRateLimiter | None = None,
        circuit_breaker: CircuitBreaker | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
        random: Any = None,
        **options: Unpack[DeclaredOptions],
    ) -> None:
        """Declare a client, or give a client of the environment what no variable can say.

        The arguments are those of `AsyncHTTPClient`. What is a field of `ClientConfig` too (`auth`, `timeout`,
        `headers` …) is a default like `config`, which the environment overrides.

        Raises `ConfigurationError` after the start, for a name that is taken or reserved, and for a wrong `config`.
        """
        normal = client_name(name)
        if self._phase not in ("new", "closed"):
            raise ConfigurationError(f'client "{name}": the clients are started already; add it before')
        if normal in self._declared:
            raise ConfigurationError(f'client "{name}": declared twice (as "{self._declared[normal].name}" before)')
        if config is not None and not isinstance(config, ClientConfig):
            raise ConfigurationError(f'client "{name}": config must be a ClientConfig, not {type(config).__name__}')
        unknown = options.keys() - option_names() - ClientConfig.model_fields.keys()
        if unknown:
            guess = closest(min(unknown), [*option_names(), *ClientConfig.model_fields])
            question = f"; did you mean {guess}?" if guess else ""
            raise TypeError(f"HTTPClients.add() got an unexpected keyword argument {min(unknown)!r}{question}")
        fields, rest = _split(dict(options))
        fields = {**(given_fields(config) if config else {}), **fields}
        if base_url:
            fields["base_url"] = base_url
        if auth is not None:
            fields["auth"] = auth
        arguments = {
            "middlewares": tuple(middlewares) if isinstance(middlewares, Iterable) else middlewares,
            "rate_limiter": rate_limiter,
            "circuit_breaker": circuit_breaker,
            "transport": transport,
            "clock": clock,
            "random": random,
            **rest,
        }
        self._declared[normal] = _Declared(name, code_section(normal, fields), arguments)

    install = install  # with this registry as its first argument

    # -- using ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> AsyncHTTPClient:
        """A running client. Raises `ConfigurationError` when there is none of this name, or none is running."""
        client = self._clients.get(name)
        return self._find(name) if client is None else client

    def _find(self, name: str) -> AsyncHTTPClient:
        normal = client_name(name)
        if not self.is_running or self._settings is None:
            state = {"new": "have not been started", "starting": "are still starting"}.get(self._phase, "are closed")
            raise ConfigurationError(f'client "{name}" cannot be used: the clients {state}; {HOW_TO_START}')
        if normal not in self._clients:
            raise ConfigurationError(self._settings.missing(normal))
        return self._clients[normal]

    @property
    def is_running(self) -> bool:
        """Whether the clients can be used now."""
        return self._phase == "running"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the running clients, sorted; when none is running, of those that code declares."""
        return tuple(sorted(self._clients if self.is_running else self._declared))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normalise(name) in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def explain(self) -> str:
        """The settings of all clients with the source of each value, secrets masked; read afresh when not running."""
        from fastapi_http_client.settings.explain import explain

        settings = self._settings if self.is_running and self._settings is not None else self._load()
        given = {name: declared.shown() for name, declared in self._declared.items()}
        for name, client in settings.clients.items():
            if client.auth is not None:
                given[name]["auth"] = _kinds(client.auth)
        pipelines = {name: client.pipeline for name, client in self._clients.items()}
        text = explain(settings, given=given, pipelines=pipelines if self.is_running else None)
        if self._fleet is None:
            return text
        state = "in use" if self._fleet.is_up else "away: each process decides for itself"
        return f"{text}\n\nstore {self._fleet.place}, {state}"

    def __repr__(self) -> str:
        return f"<HTTPClients({', '.join(self.names)}), {self._phase}>"

    # -- life ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncGenerator[dict[str, Any]]:
        """The app's lifespan, or a part of it: what it yields has to be yielded on.

        At the start all routes of the app are looked through: one that asks for a client which nobody configured is a
        problem too.
        """
        await self._start(app)
        others = _running_on(app)
        _set_running(app, (*others, self))
        try:
            yield {STATE_KEY: self}
        finally:
            _set_running(app, tuple(registry for registry in _running_on(app) if registry is not self))
            await self.aclose()

    async def start(self) -> None:
        """Read the environment and build all clients.

        Raises one `ConfigurationError` with every problem of every client.
        """
        await self._start(None)

    async def aclose(self) -> None:
        """Refuse new calls, wait up to `shutdown_grace` seconds for those in flight, close every client.

        Once begun it is carried to its end, even if it is cancelled; whoever calls it meanwhile waits for the same end.
        Does nothing when nothing is running. Raises an `ExceptionGroup` of what went wrong, after all clients were
        closed.
        """
        if self.is_running:
            clients, self._clients = self._clients, {}
            self._phase = "closing"
            self._closing = asyncio.get_running_loop().create_task(self._close_all(clients))
        if self._closing is not None:
            # Two kinds of cancellation: a task's own, and a cancel scope's, which would come back at every await.
            with anyio.CancelScope(shield=True):
                await shielded(self._closing)

    async def _close_all(self, clients: Mapping[str, AsyncHTTPClient]) -> None:
        try:
            await _close(clients, self._grace)
        finally:
            try:
                if self._fleet is not None:
                    await self._fleet.aclose()
            finally:
                self._phase = "closed"
                self._closing = self._fleet = self._settings = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def _start(self, app: object | None) -> None:
        if self._phase not in ("new", "closed"):
            raise ConfigurationError("the clients are started already: one registry serves one app at a time")
        before, self._phase = self._phase, "starting"
        clients: dict[str, AsyncHTTPClient] = {}
        try:
            settings = self._load()
            problems = list(settings.problems)
            self._fleet = self._build_fleet(settings, problems)
            if app is not None:
                problems.extend(self._route_problems(app, settings))
            for name, client in settings.clients.items():
                try:
                    clients[name] = self._build(name, client)
                except ConfigurationError as error:
                    found = error.problems or (Problem("", str(error)),)
                    problems.extend(settings.located(name, problem) for problem in found)
            if problems:
                raise ConfigurationError(_summary(problems), problems=problems)
            for made in clients.values():
                made.lifecycle.bind()
            if self._fleet is not None:
                await self._fleet.start()
            settings.warn()
        except BaseException:
            self._phase, self._fleet = before, None
            with contextlib.suppress(Exception):  # why the start failed is what has to be seen
                await shielded(_close(clients, 0.0))
            raise
        self._settings, self._clients, self._phase = settings, clients, "running"

    def _load(self) -> Settings:
        from fastapi_http_client.settings.load import load_settings  # when an app starts, and not when it is imported

        code = {name: declared.section for name, declared in self._declared.items()}
        return load_settings(code, prefix=self._prefix, env_file=self._env_file, secrets_dir=self._secrets_dir)

    def _build(self, name: str, settings: ClientSettings) -> AsyncHTTPClient:
        arguments = dict(self._declared[name].arguments) if name in self._declared else {}
        shared_name = name if normalise(self._prefix) == _USUAL_PREFIX else f"{normalise(self._prefix)}{name}"
        if self._fleet is not None:
            _share(self._fleet, shared_name, settings.config, arguments)
        try:
            client = AsyncHTTPClient(config=settings.config, auth=settings.auth, name=name, **arguments)
        except Exception as error:
            error.add_note(f'while the client "{name}" was built')
            raise
        if self._fleet is not None and isinstance(client.auth, OAuth2ClientCredentials):
            self._fleet.share_token(shared_name, client.auth)
        return client

    def _build_fleet(self, settings: Settings, problems: list[Problem]) -> Fleet | None:
        """What the processes share, if there is a store; what is wrong with it goes to the problems."""
        given, options = self._store, settings.store_options
        from_code = given is not None and not (isinstance(given, str) and settings.store)
        store = given if from_code else settings.store
        if store is None:
            problems.extend(Problem(name, f"needs {STORE}") for name in options)
            return None
        from fastapi_http_client.fleet.fleet import PREFIX, Fleet  # only here: most services share nothing

        if isinstance(store, Fleet):
            return store
        places = {"processes": STORE_PROCESSES, "encryption_key": STORE_KEY}
        try:
            processes = _whole(options.get(STORE_PROCESSES))
            prefix, key = options.get(STORE_PREFIX, PREFIX), options.get(STORE_KEY)
            return Fleet(store, prefix=prefix, processes=processes, encryption_key=key)
        except ConfigurationError as error:
            found = error.problems or (Problem("", str(error)),)
            fallback = "store" if from_code else STORE
            problems.extend(Problem(places.get(one.argument, fallback), one.message) for one in found)
            return None

    def _route_problems(self, app: object, settings: Settings) -> Iterator[Problem]:
        routes: dict[Any, list[str]] = {}
        for route, reference in client_references(app, self):
            routes.setdefault(reference, []).append(route)
        several = {*_running_on(app), *(reference.clients for reference in routes)} - {None, self}
        for reference, places in routes.items():
            place = f'http_client("{reference.name}") in {", ".join(dict.fromkeys(places))}'
            if reference.clients is None and several:
                yield Problem(place, "the app has several registries; say which by passing clients=")
            elif reference.clients in (None, self) and reference.name not in settings.names:
                yield Problem(place, f"{settings.missing(reference.name)}; for one of another registry pass clients=")


def _whole(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise bad_argument("", "processes", "must be a whole number of at least 1")
    return int(text)


def _share(fleet: Fleet, name: str, config: ClientConfig, arguments: dict[str, Any]) -> None:
    """The limiter and the breaker that the configuration asks for, shared by all processes."""
    if config.enable_rate_limiting and arguments.get("rate_limiter") is None:
        arguments["rate_limiter"] = fleet.rate_limiter(name, config.rate_limit_rate, config.rate_limit_burst)
    rules = rules_of(config)
    if rules is not None and arguments.get("circuit_breaker") is None:
        arguments["circuit_breaker"] = fleet.circuit_breaker(name, **rules._asdict())


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a client: what is a field of `ClientConfig`, or says the same as some, and the rest."""
    fields: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in options.items():
        said = as_fields(name, value)
        is_field = name in ClientConfig.model_fields and name not in option_names()
        if said is not None:
            fields |= said
        elif is_field or (name == "headers" and isinstance(value, Mapping)):
            fields[name] = value
        else:
            rest[name] = value
    return fields, rest


def _kinds(value: Any) -> str:
    """Objects as the names of their classes: their own repr may show anything."""
    return ", ".join(type(item).__name__ for item in (value if isinstance(value, list | tuple) else (value,)))


def _summary(problems: Sequence[Problem]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"the HTTP clients cannot start, {count}:", *(str(problem) for problem in problems)])


async def _close(clients: Mapping[str, AsyncHTTPClient], grace: float) -> None:
    """Close all clients at once, whatever becomes of any of them."""

    async def close(name: str, client: AsyncHTTPClient) -> None:
        try:
            try:
                await client.drain(grace)
            finally:
                await client.aclose()
        except Exception as error:
            error.add_note(f'while the client "{name}" was closed')
            raise

    results = await asyncio.gather(*(close(*item) for item in clients.items()), return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise BaseExceptionGroup("not all HTTP clients could be closed in order", errors)


def _running_on(app: object) -> tuple[HTTPClients, ...]:
    return getattr(getattr(app, "state", None), RUNNING, ())


def _set_running(app: object, registries: tuple[HTTPClients, ...]) -> None:
    state = getattr(app, "state", None)
    if state is not None:
        setattr(state, RUNNING, registries)
