"""Clients whose upstream is a list of answers, on a clock of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.fake_clock import FakeClock

Answer = int | httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Script:
    """An upstream that gives each request the next answer of its list, the last one for ever: a status, a response, an
    error to raise, or a function of the request. `requests` holds what came over the wire, `bodies` their bodies."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers or (200,)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        self.bodies.append(await request.aread())
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer)
        return answer if isinstance(answer, httpx.Response) else answer(request)

    @property
    def count(self) -> int:
        return len(self.requests)

    def sent(self, header: str) -> list[str | None]:
        """The value of a header on each request."""
        return [request.headers.get(header) for request in self.requests]


class Stream(httpx.AsyncByteStream):
    """A response's body that tells whether it was closed; an exception among its parts is raised in its turn."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = parts
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def aclose(self) -> None:
        self.closed = True


def client_of(
    upstream: Script,
    *,
    base_url: str = "https://api.test",
    clock: FakeClock | None = None,
    options: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncHTTPClient:
    """A client of the upstream, whose chance is always 0.5: no jitter. `options` go to the client, the rest is its
    config."""
    return AsyncHTTPClient(
        base_url,
        config=ClientConfig(**config),
        transport=httpx.MockTransport(upstream),
        clock=clock or FakeClock(),
        random=lambda: 0.5,
        **(options or {}),
    )
