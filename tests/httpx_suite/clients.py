"""What stands in httpx's place: our client, and a sync one that drives it, so that httpx's sync tests serve too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from fastapi_http_client import AsyncHTTPClient, ClientConfig, HTTPResponse


class Run:
    """One run of one test: its event loop, the options of its clients, and the clients that it has made."""

    def __init__(self, runner: asyncio.Runner, options: Mapping[str, Any]) -> None:
        self.clients: list[AsyncHTTPClient] = []
        self.options = options
        self._runner = runner

    def wait_for(self, awaitable: Awaitable[Any]) -> Any:
        async def waiting() -> Any:
            return await awaitable

        return self._runner.run(waiting())

    def iterate(self, chunks: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()
        while (chunk := self.wait_for(anext(chunks, end))) is not end:
            yield chunk

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()


_current: Run


@contextmanager
def running(options: Mapping[str, Any]) -> Iterator[Run]:
    global _current
    with asyncio.Runner() as runner:
        _current = Run(runner, options)
        try:
            yield _current
        finally:
            runner.run(_current.close())


class AsyncClient(AsyncHTTPClient):
    """Our client with its defaults, unless the run says otherwise; only its retries are quick."""

    def __init__(self, **httpx_options: Any) -> None:
        config = ClientConfig(retry_backoff_factor=0.001, **_current.options)
        super().__init__(config=config, **httpx_options)
        _current.clients.append(self)


class Client:
    """The API of `httpx.Client`, as far as httpx's tests use it: each call runs our client on the test's loop."""

    def __init__(self, *, event_hooks: Any = None, **httpx_options: Any) -> None:
        transports = (httpx_options.get("transport"), *(httpx_options.get("mounts") or {}).values())
        if not all(transport is None or isinstance(transport, httpx.AsyncBaseTransport) for transport in transports):
            pytest.skip("the test is about a sync transport")
        self.__dict__["_client"] = AsyncClient(event_hooks=_hooks(event_hooks), **httpx_options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._client, name, _hooks(value) if name == "event_hooks" else value)

    def __enter__(self) -> Client:
        _current.wait_for(self._client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        _current.wait_for(self._client.__aexit__(*error))

    def close(self) -> None:
        _current.wait_for(self._client.aclose())

    def build_request(self, method: str, url: Any, *, content: Any = None, **options: Any) -> httpx.Request:
        content = _async_body(content)
        return self._client.build_request(method, url, content=content, **options)

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        return _sync(_current.wait_for(self._client.send(request, **options)))

    def request(self, method: str, url: Any, *, content: Any = None, **options: Any) -> httpx.Response:
        content = _async_body(content)
        return _sync(_current.wait_for(self._client.request(method, url, content=content, **options)))

    @contextmanager
    def stream(self, method: str, url: Any, **options: Any) -> Iterator[httpx.Response]:
        streamed = self._client.stream(method, url, **options)
        response = _sync(_current.wait_for(streamed.__aenter__()))
        try:
            yield response
        finally:
            _current.wait_for(response.aclose())

    def get(self, url: Any, **options: Any) -> httpx.Response:
        return _sync(_current.wait_for(self._client.get(url, **options)))

    def head(self, url: Any, **options: Any) -> httpx.Response:
        return _sync(_current.wait_for(self._client.head(url, **options)))

    def options(self, url: Any, **options: Any) -> httpx.Response:
        return _sync(_current.wait_for(self._client.options(url, **options)))

    def delete(self, url: Any, **options: Any) -> httpx.Response:
        return _sync(_current.wait_for(self._client.delete(url, **options)))

    def post(self, url: Any, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def put(self, url: Any, **options: Any) -> httpx.Response:
        return self.request("PUT", url, **options)

    def patch(self, url: Any, **options: Any) -> httpx.Response:
        return self.request("PATCH", url, **options)


class _SyncResponse(HTTPResponse):
    def read(self) -> bytes:
        return _current.wait_for(self.aread())

    def iter_raw(self, chunk_size: int | None = None) -> Iterator[bytes]:
        return _current.iterate(self.aiter_raw(chunk_size))

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        return _current.iterate(self.aiter_bytes(chunk_size))

    def close(self) -> None:
        _current.wait_for(self.aclose())


def _sync(response: HTTPResponse) -> HTTPResponse:
    assert type(response) is HTTPResponse
    response.__class__ = _SyncResponse
    return response


def _async_body(content: Any) -> Any:
    if not isinstance(content, Iterable) or isinstance(content, str | bytes):
        return content

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in content:
            yield chunk

    return chunks()


class _Hook:
    """A sync event hook made async, equal to what it was made of."""

    def __init__(self, hook: Callable[[Any], None]) -> None:
        self._hook = hook

    async def __call__(self, about: Any) -> None:
        self._hook(about)

    def __eq__(self, other: object) -> bool:
        return other == self._hook

    __hash__ = None  # type: ignore[assignment]


def _hooks(hooks: Mapping[str, list[Callable[[Any], None]]] | None) -> dict[str, list[_Hook]] | None:
    return None if hooks is None else {event: [_Hook(hook) for hook in those] for event, those in hooks.items()}
