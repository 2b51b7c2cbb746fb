"""`http_client(name)`: a client of the registry as a FastAPI dependency."""

# No `from __future__ import annotations` here, and no annotation that cannot be imported at run time: FastAPI reads
# those of `__call__`, and older ones (0.115) take a parameter whose annotation is a text for a query parameter.

from typing import Any

from starlette.requests import HTTPConnection

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.edge.registry import HOW_TO_START, HTTPClients
from fastapi_http_client.edge.routes import STATE_KEY, ClientReference
from fastapi_http_client.errors import ConfigurationError
from fastapi_http_client.settings.variables import client_name


class ClientDependency(ClientReference):
    """Gives a route its client. Equal ones are one dependency: for the request's cache and for `dependency_overrides`.

    It is async because FastAPI runs sync dependencies in its thread pool, which costs 15 times as much; and frozen, for
    it has to be hashable.
    """

    async def __call__(self, connection: HTTPConnection) -> AsyncHTTPClient:
        registry = self.clients
        if registry is None:
            registry = self._of(connection.scope)
        client: AsyncHTTPClient = registry[self.name]
        return client

    def _of(self, scope: Any) -> HTTPClients:
        """The registry that was installed on the app of the route, or the nearest around it; else the lifespan's."""
        running: HTTPClients | None = scope.get("state", {}).get(STATE_KEY)
        # Not in the scope: an instrumentation has taken the app's middleware stack apart.
        taken_apart: HTTPClients | None = getattr(getattr(scope.get("app"), "state", None), STATE_KEY, None)
        installed: HTTPClients | None = scope.get(STATE_KEY, taken_apart)
        if installed is not None and (running is None or (installed is not running and installed.is_running)):
            return installed
        if running is None:
            raise ConfigurationError(f'http_client("{self.name}"): this request has no clients; {HOW_TO_START}')
        return running


def http_client(name: str, clients: HTTPClients | None = None) -> ClientDependency:
    """The client `name` for a route: `Annotated[AsyncHTTPClient, Depends(http_client("github"))]`.

    `clients` chooses the registry, which is needed only when the app has several. The app does not start when a route
    asks for a client that nobody configured. Raises `ConfigurationError` for a name that no client can have.
    """
    if clients is not None and not isinstance(clients, HTTPClients):
        raise ConfigurationError(f"clients: must be an HTTPClients, not {type(clients).__name__}")
    return ClientDependency(client_name(name), clients)
