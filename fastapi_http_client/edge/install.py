"""Puts the inbound side into an application: the request context around everything, and the problem responses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware

from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.edge.asgi import ASGIApp, Receive, RequestContextMiddleware, Scope, Send
from fastapi_http_client.edge.problems import ProblemResponses
from fastapi_http_client.edge.routes import STATE_KEY
from fastapi_http_client.errors import HTTPClientError

if TYPE_CHECKING:
    from fastapi_http_client.edge.registry import HTTPClients


def install(
    registry: HTTPClients,
    app: Starlette,
    *,
    request_timeout: float | None = None,
    deadline_header: str = "X-Request-Timeout-Ms",
    trust_deadline_header: bool = False,
    cancel_on_disconnect: bool = True,
    problem_responses: bool = True,
    expose_client_names: bool = False,
) -> None:
    """Give an app's requests their context, and its callers proper answers when an upstream fails.

    To be called before the app starts, and again for a mounted app, whose handlers are its own.

    `request_timeout` (seconds), `deadline_header`, `trust_deadline_header` and `cancel_on_disconnect` are those of
    `RequestContextMiddleware`. `problem_responses` registers the handler of `problems`; `expose_client_names` lets it
    name the client that failed.

    Raises `ConfigurationError` for a bad argument, and when the app has started already.
    """
    if not isinstance(app, Starlette):
        raise bad_argument("", "app", f"must be a FastAPI or Starlette application, not {type(app).__name__}")
    if app.middleware_stack is not None:
        raise bad_argument("", "app", "has started already; call install() where the app is made")
    in_context = functools.partial(
        RequestContextMiddleware,
        request_timeout=request_timeout,
        deadline_header=deadline_header,
        trust_deadline_header=trust_deadline_header,
        cancel_on_disconnect=cancel_on_disconnect,
    )
    in_context(_nothing)  # checks the arguments now, not at the first request
    handler = None
    if problem_responses:
        handler = ProblemResponses(expose_client_names=expose_client_names)
        for cls in (HTTPClientError, ExceptionGroup):
            app.exception_handlers.setdefault(cls, cast("Any", handler))
    _wrap_middleware_stack(app, registry, in_context, handler)
    setattr(app.state, STATE_KEY, registry)


class _ContextStack(ServerErrorMiddleware):
    """An app's whole middleware stack, within the request context.

    `add_middleware()` would put the context inside of `ServerErrorMiddleware`: the answer to an unhandled error would
    lack the request id, and so would its handler. OpenTelemetry's FastAPIInstrumentor takes a stack apart and keeps
    only what is inside of its `ServerErrorMiddleware`: so this is one, and the context is bound inside of it as well.
    """

    def __init__(
        self,
        stack: ServerErrorMiddleware,
        registry: HTTPClients,
        in_context: Callable[[ASGIApp], ASGIApp],
        problems: ProblemResponses | None,
    ) -> None:
        inner = stack.app if problems is None else problems.around(stack.app)
        super().__init__(in_context(inner), handler=stack.handler, debug=stack.debug)
        self._whole = in_context(super().__call__)
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[STATE_KEY] = self._registry  # for what is mounted below, too
        await self._whole(scope, receive, send)


def _wrap_middleware_stack(
    app: Starlette,
    registry: HTTPClients,
    in_context: Callable[[ASGIApp], ASGIApp],
    problems: ProblemResponses | None,
) -> None:
    build = app.build_middleware_stack

    def build_in_context() -> ASGIApp:
        stack = build()
        if isinstance(stack, ServerErrorMiddleware):
            return _ContextStack(stack, registry, in_context, problems)
        return in_context(stack)

    app.build_middleware_stack = build_in_context  # type: ignore[method-assign]


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application for a middleware that is only made to check its arguments."""
