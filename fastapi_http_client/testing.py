"""What users' tests need: a fake network, a fake clock, and nothing else to set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import httpx

from fastapi_http_client import transport
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.models import HTTPResponse

if TYPE_CHECKING:
    import pytest

_OF_THE_CODED_BODY = ("content-encoding", "content-length", "transfer-encoding")

__all__ = ["FakeClock", "MockNetwork", "MockResponse"]


class MockResponse(HTTPResponse):
    """A response for `mock_httpx.request.return_value`. The same one may answer many requests."""

    def __init__(self, status_code: int, content: bytes | str = b"", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code, content=content, headers=headers)


class MockNetwork:
    """The network of every client that is made while it is installed.

    `request` is awaited as `request(method, url, headers=…, content=…)` and answers with an `httpx.Response` (or a
    `MockResponse`), or raises; set its `return_value` or `side_effect`.
    """

    def __init__(self) -> None:
        self.request = AsyncMock(name="mock_httpx.request")
        self.request.return_value = MockResponse(200)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create_transport(*_: Any, **__: Any) -> httpx.AsyncBaseTransport:
            return httpx.MockTransport(self._answer)

        monkeypatch.setattr(transport, "create_transport", create_transport)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        try:
            answer = await self.request(
                request.method, str(request.url), headers=dict(request.headers), content=content
            )
        except StopAsyncIteration:
            raise AssertionError("mock_httpx.request has no more answers: its side_effect is used up") from None
        if not isinstance(answer, httpx.Response):
            raise TypeError(f"mock_httpx.request must give an httpx.Response, not {type(answer).__name__}")
        # A response is used up by the call that it answers: each call gets one of its own. Its body is decoded already.
        headers = [(name, value) for name, value in answer.headers.multi_items() if name not in _OF_THE_CODED_BODY]
        return httpx.Response(
            answer.status_code, headers=headers, content=await answer.aread(), extensions=answer.extensions
        )
