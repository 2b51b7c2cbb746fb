"""Requests and responses: httpx's own classes, and what this package adds to a response."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
from pydantic import TypeAdapter

from fastapi_http_client.errors import Attempt, HTTPRequestError, HTTPResponseError, RateLimitError
from fastapi_http_client.policies.retry import parse_retry_after
from fastapi_http_client.redaction import printable, redact_url

if TYPE_CHECKING:
    from collections.abc import Mapping

HTTPRequest = httpx.Request

T = TypeVar("T")


class HTTPResponse(httpx.Response):
    """An `httpx.Response` that knows how it came about and raises this package's errors."""

    # Set on every response that a client returns; the class attributes are for responses built by hand.
    attempts: tuple[Attempt, ...] = ()
    """The ledger of the call: one entry for each attempt, this response's own last."""
    _client_name: str | None = None
    _received_at: float | None = None
    _max_bytes: int | None = None

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        """The decoded body in chunks; `HTTPRequestError` when it is longer than the client's `max_response_bytes`."""
        most = self._max_bytes
        if most is None:
            async for chunk in super().aiter_bytes(chunk_size):
                yield chunk
            return
        received = 0
        async for chunk in super().aiter_bytes(chunk_size):
            received += len(chunk)
            if received > most:
                await self.aclose()
                raise HTTPRequestError(
                    f"the response is larger than max_response_bytes ({most})",
                    request=self._request,
                    client=self._client_name,
                    transient=False,
                )
            yield chunk

    @property
    def json_data(self) -> Any:
        """The body parsed as JSON: parsed once, and the same object on every access.

        Raises `json.JSONDecodeError` or `UnicodeDecodeError` (both `ValueError`) when the body is no JSON.
        """
        if "_json_data" not in self.__dict__:
            self._json_data = self.json()
        return self._json_data

    def parse(self, type_: type[T]) -> T:
        """The JSON body validated as `type_`: a pydantic model, a dataclass, `list[int]` …

        Raises `pydantic.ValidationError`.
        """
        adapter: TypeAdapter[T] = _adapter(type_)  # type: ignore[arg-type]  # a type is hashable
        return adapter.validate_json(self.content)

    def raise_for_status(self) -> HTTPResponse:
        """Return the response when its status is below 400.

        Raises `RateLimitError` for a 429 and `HTTPResponseError` for every other 4xx and 5xx. Unlike httpx, a redirect
        that was not followed is no error.
        """
        if self.status_code < 400:
            return self
        request = self._request
        what = "" if request is None else f" for {request.method} {redact_url(request.url)}"
        reason = printable(self.reason_phrase, 100)
        facts: dict[str, Any] = {
            "response": self,
            "request": request,
            "attempts": self.attempts,
            "client": self._client_name,
        }
        message = f"{self.status_code} {reason}{what}"
        if self._client_name:
            message = f"{self._client_name}: {message}"
        if self.status_code == 429:
            raise RateLimitError(message, retry_after=retry_after(self), **facts)
        raise HTTPResponseError(message, status_code=self.status_code, **facts)


@functools.cache
def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


@functools.cache
def _response_class(cls: type[httpx.Response]) -> type[HTTPResponse]:
    return cast("type[HTTPResponse]", type("HTTPResponse", (HTTPResponse, cls), {}))


def as_http_response(response: httpx.Response) -> HTTPResponse:
    """The same object as an `HTTPResponse`.

    A transport answers with an `httpx.Response` that already holds a stream, or a body, and private state such as its
    decoder: changing its class keeps all of it, where a copy would have to know every private attribute.
    """
    if not isinstance(response, HTTPResponse):
        cls = type(response)
        response.__class__ = HTTPResponse if cls is httpx.Response else _response_class(cls)  # type: ignore[arg-type]
    return cast("HTTPResponse", response)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the response's `Retry-After` asks for, or None. A date counts from the response's own receipt."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    return parse_retry_after(value, now=getattr(response, "_received_at", None))


def copy_request(
    request: httpx.Request, *, url: httpx.URL | None = None, headers: Mapping[str, str] | None = None
) -> httpx.Request:
    """A request with the same body, and headers and extensions of its own."""
    return httpx.Request(
        request.method,
        url or request.url,
        headers=request.headers if headers is None else headers,
        stream=request.stream,
        extensions=request.extensions,
    )
