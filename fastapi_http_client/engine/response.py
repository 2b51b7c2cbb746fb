"""httpx's response objects made of finished or running exchanges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx

from fastapi_http_client.engine.errors import ResponseTooLargeError, with_facts

if TYPE_CHECKING:
    from fastapi_http_client.engine.connection import Exchange

R = TypeVar("R", bound=httpx.Response)

_NO_BODY = httpx.ByteStream(b"")
_DECODED_AT_ONCE = 1024
"""Bytes given to a decoder at once under a limit: what they can grow to before the limit is looked at."""


class ResponseStream(httpx.AsyncByteStream):
    """The body of a response that is still being received."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            while part := await exchange.wait_for_body():
                yield part
        except BaseException:
            exchange.abandon()
            raise

    async def aclose(self) -> None:
        self._exchange.abandon()


class _Pieces(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A whole encoded body, in pieces small enough for its decoder."""

    def __init__(self, body: bytes, size: int) -> None:
        self._body = body
        self._size = size

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), self._size):
            yield self._body[start : start + self._size]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def streamed_response(exchange: Exchange) -> httpx.Response:
    """The response as soon as its head is there."""
    return httpx.Response(
        exchange.status,
        headers=_headers_by_private_attribute(exchange.headers),
        stream=ResponseStream(exchange),
        extensions=_extensions(exchange),
    )


def received_response(exchange: Exchange, request: httpx.Request, cls: type[R]) -> R:
    """The response with its body read; an encoded one can be read from it, and is decoded then."""
    body = exchange.take_body()
    response = cls(
        exchange.status,
        headers=_headers_by_private_attribute(exchange.headers),
        stream=_NO_BODY,
        request=request,
        extensions=_extensions(exchange),
    )
    if b"content-encoding" in exchange.header_names:
        response.stream = httpx.ByteStream(body)
    else:
        _set_content_by_private_attributes(response, body, body)
    return response


def whole_response(exchange: Exchange, request: httpx.Request) -> httpx.Response:
    """The response with its body read and decoded.

    Raises `ResponseTooLargeError` for a body that grows beyond the exchange's `max_bytes` when it is decoded, and
    `httpx.DecodingError` for one that cannot be.
    """
    response = received_response(exchange, request, httpx.Response)
    if response.is_closed:
        return response
    limit = exchange.max_bytes
    if limit is None:
        response.read()
        return response
    body = b"".join(cast("httpx.ByteStream", response.stream))
    response.stream = _Pieces(body, _DECODED_AT_ONCE)
    parts = []
    size = 0
    for part in response.iter_bytes():
        size += len(part)
        if size > limit:
            error = ResponseTooLargeError(f"the response's decoded body is larger than {limit} bytes", request=request)
            raise with_facts(error, exchange.facts())
        parts.append(part)
    _set_content_by_private_attributes(response, b"".join(parts), body)
    return response


# What follows touches httpx's private attributes (as of 0.28), for speed, and is the only place that does so here. Were
# they to be renamed, `test_fetch_leaves_a_response_as_httpx_would` fails; the public ways are named with each.


def _headers_by_private_attribute(received: list[tuple[bytes, bytes, bytes]]) -> httpx.Headers:
    """`httpx.Headers([(name, value) for name, _, value in received])`, without asking each of them for its type."""
    headers = httpx.Headers()
    headers._list = received
    return headers


def _set_content_by_private_attributes(response: httpx.Response, content: bytes, on_the_wire: bytes) -> None:
    """Leave the response as `response.read()` would: in 1.6 µs instead of 10."""
    response._content = content
    response._num_bytes_downloaded = len(on_the_wire)
    response.is_stream_consumed = True
    response.is_closed = True


def _extensions(exchange: Exchange) -> dict[str, Any]:
    return {
        "http_version": b"HTTP/1.1" if exchange.http_version == "1.1" else b"HTTP/1.0",
        "reason_phrase": exchange.reason,
        "network_stream": exchange.network_stream,
    }
