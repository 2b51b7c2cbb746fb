"""httpx's response objects made of finished or running exchanges."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from fastapi_http_client.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from fastapi_http_client.engine.connection import Exchange

R = TypeVar("R", bound=httpx.Response)

_NO_BODY = httpx.ByteStream(b"")


class ResponseStream(httpx.AsyncByteStream):
    """The body of a response that is still being received."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            while part := await exchange.wait_for_body():
                if not exchange.complete:
                    # A fast server is always ahead: without a turn for the others, no request of theirs would get one,
                    # nor anyio, which tries again and again to cancel a task until it finds it waiting.
                    await SYSTEM_CLOCK.sleep(0)
                yield part
        except BaseException:
            exchange.abandon()
            raise

    async def aclose(self) -> None:
        self._exchange.abandon()


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
