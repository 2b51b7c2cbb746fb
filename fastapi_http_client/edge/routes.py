"""Which clients the routes of an app ask for.

FastAPI's route objects are read by their attributes, without importing it: since 0.137 included routers are kept as a
tree and worked out on demand, before they were copied into one flat list, and a Starlette app has no dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

STATE_KEY = "fastapi_http_client"
"""Where a route finds the registry: this key of the lifespan state, or this attribute of `app.state`."""


@dataclass(frozen=True)
class ClientReference:
    """A client that a route asks for: its name, and the registry when one was chosen."""

    name: str
    clients: Any = None


def client_references(app: object, registry: object) -> Iterator[tuple[str, ClientReference]]:
    """Every reference in the routes of an app that starts `registry`, with the route (`GET /users/{login}`).

    Included routers, mounted apps, WebSocket routes and sub-dependencies are all looked through; what stands in
    `dependency_overrides` is left out, with everything that it would have needed, and so is a mounted app on which
    another registry was installed.
    """
    return _in_app(app, "", registry, set())


def _in_app(app: Any, prefix: str, registry: object, seen: set[int]) -> Iterator[tuple[str, ClientReference]]:
    while not hasattr(app, "routes") and hasattr(app, "app"):  # wrapped in ASGI middlewares
        app = app.app
    if id(app) in seen:
        return
    installed = getattr(getattr(app, "state", None), STATE_KEY, None)
    if seen and installed not in (None, registry):  # mounted, and the business of another one
        return
    seen.add(id(app))
    for route in _effective(_all_routes(app)):
        path = prefix + (getattr(route, "path", "") or getattr(route, "frontend_prefix", ""))
        dependant = getattr(route, "dependant", None)
        if dependant is None:
            yield from _in_app(getattr(route, "_base_app", None) or getattr(route, "app", None), path, registry, seen)
            continue
        provider = getattr(route, "dependency_overrides_provider", None) or app
        for call in _calls(dependant, getattr(provider, "dependency_overrides", {})):
            if isinstance(call, ClientReference):
                yield _described(route, path), call


def _all_routes(app: object) -> list[Any]:
    """Those of a router, and those it tries last (static frontends, which have dependencies too)."""
    router = getattr(app, "router", app)
    return [*getattr(router, "routes", ()), *getattr(router, "_low_priority_routes", ())]


def _effective(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes with the prefixes and dependencies of the routers that they were included through."""
    for route in routes:
        if not hasattr(route, "effective_route_contexts"):
            yield route
            continue
        low_priority: Callable[[], list[Any]] = getattr(route, "effective_low_priority_routes", list)
        for context in (*route.effective_route_contexts(), *low_priority()):
            yield getattr(context, "starlette_route", None) or context


def _calls(dependant: Any, overrides: Any) -> Iterator[Any]:
    for dependency in dependant.dependencies:
        if dependency.call not in overrides:
            yield dependency.call
            yield from _calls(dependency, overrides)


def _described(route: Any, path: str) -> str:
    methods = getattr(route, "methods", None)
    return f"{'|'.join(sorted(methods))} {path}" if methods else path
