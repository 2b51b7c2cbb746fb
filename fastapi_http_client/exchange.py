"""One request on the wire, one response back: the innermost part of the pipeline.

It hands the request to the transport and reads the body unless the call is streamed; what goes wrong becomes one of
this package's errors (`failures`).
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx

from fastapi_http_client.arguments import awaitable
from fastapi_http_client.call import Call
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.engine.errors import ResponseTooLargeError
from fastapi_http_client.engine.request import check_head
from fastapi_http_client.errors import HTTPClientError, HTTPRequestError
from fastapi_http_client.failures import (
    CallersBodyError,
    body_error,
    described,
    failure,
    is_of_a_call,
    request_error,
    total_timeout,
    without_secrets,
)
from fastapi_http_client.fast import header_names
from fastapi_http_client.models import HTTPResponse, as_http_response
from fastapi_http_client.transport import engine_of

if TYPE_CHECKING:
    from fastapi_http_client.client import AsyncHTTPClient


class ExchangeStep:
    """What the pipeline ends in: `await exchange(request)` sends it."""

    def __init__(self, client: AsyncHTTPClient) -> None:
        self._client = client

    async def __call__(self, request: httpx.Request) -> HTTPResponse:
        client = self._client
        call = Call.of(request)
        client.lifecycle.check_open()
        hooks = client.event_hooks
        call.waits_for_body = False
        goes_home = bool(hooks["request"]) and call.is_home(request)
        for hook in hooks["request"]:
            await awaitable(hook(request), "event_hooks: request")
        if goes_home and not call.is_home(request):
            raise HTTPRequestError(
                described(request, "refused: a request hook sends it, with the client's credential, to another origin"),
                request=request,
                client=call.client_name,
                attempts=call.attempts,
                may_have_run=False,
                transient=False,
            )
        started = SYSTEM_CLOCK.monotonic()
        stream, body = request.stream, None
        callers_error: Exception | None = None
        response = None
        try:
            if not isinstance(stream, httpx.AsyncByteStream):
                raise TypeError("the body is a sync iterator, which cannot be sent by an async client")
            if not isinstance(stream, httpx.ByteStream):
                body = request.stream = CallersBody(stream, call)
            # respx replaces this method of httpx; it also finds the transport of a mount.
            transport = client._transport_for_url(request.url)
            call.resends += 1
            engine = engine_of(transport, request)
            if engine is None:
                check_head(request)
            if engine is None or call.stream or hooks["response"]:
                response = as_http_response(await transport.handle_async_request(request))
            else:
                response = as_http_response(await engine.fetch(request, max_bytes=call.max_bytes))
        except HTTPClientError:
            raise
        except CallersBodyError as error:
            if is_of_a_call(error.error):
                raise body_error(error, request) from error.error
            callers_error = error.error
        except Exception as error:
            raise failure(error, request, call.max_bytes) from without_secrets(error)
        finally:
            if request.stream is body:
                request.stream = stream
        if response is None:
            assert callers_error is not None
            raise callers_error  # here, where it gets no context: what a caller's own code raises stays as it is
        response.request = request
        return await self.settle(response, request, started)

    async def settle(self, response: HTTPResponse, request: httpx.Request, started: float) -> HTTPResponse:
        """Make a transport's response one of this client, and read it unless the call is streamed."""
        client = self._client
        call = Call.of(request)
        response.default_encoding = client.default_encoding
        response._client_name = call.client_name
        call.head = (response.status_code, response.http_version)
        names = header_names(response.headers.raw)
        if b"retry-after" in names:
            response._received_at = call.clock.wall()
        response._max_bytes = call.max_bytes
        if response.history:  # a transport's own response, which it has given before
            response.history = []
        if not hasattr(response, "_content"):  # a mock's response may come already read
            response.stream = Body(response, request, started)
        try:
            if client.keeps_cookies and b"set-cookie" in names:
                _keep_cookies(client.cookies, response)
            for hook in client.event_hooks["response"]:
                try:
                    await awaitable(hook(response), "event_hooks: response")
                except httpx.HTTPStatusError as error:
                    response._verdict = error  # for the caller, when the attempts are over
                    break
            if not call.stream:
                await response.aread()
        except HTTPClientError:
            await response.aclose()
            raise
        except (httpx.DecodingError, httpx.StreamError) as error:
            await response.aclose()
            raise request_error(error, request) from error
        except BaseException:
            await response.aclose()
            raise
        if response.is_closed:
            response.elapsed = timedelta(seconds=SYSTEM_CLOCK.monotonic() - started)
        return response


def _keep_cookies(kept: httpx.Cookies, response: httpx.Response) -> None:
    """Keep the response's cookies, without those that no header can hold: they would spoil every later request."""
    kept.extract_cookies(response)
    for cookie in tuple(kept.jar):
        text = f"{cookie.name}={cookie.value}"
        if not (text.isascii() and text.isprintable()):
            kept.jar.clear(cookie.domain, cookie.path, cookie.name)


class CallersBody(httpx.AsyncByteStream):
    """A request's body that the caller produces while it is sent: what goes wrong there is not the upstream's doing."""

    def __init__(self, stream: httpx.AsyncByteStream, call: Call) -> None:
        self._stream = stream
        self._call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        call = self._call
        parts = aiter(self._stream)
        try:
            while True:
                call.waits_for_body = True  # and it stays so when a limit strikes meanwhile
                try:
                    part = await anext(parts)
                except StopAsyncIteration:
                    call.waits_for_body = False
                    return
                except Exception as error:
                    raise CallersBodyError(error) from error
                call.waits_for_body = False
                yield part
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Body(httpx.AsyncByteStream):
    """A response's body on its way in: errors become ours, a deadline holds, and its end is told."""

    def __init__(self, response: HTTPResponse, request: httpx.Request, started: float) -> None:
        self._response = weakref.ref(response)  # which holds this: a cycle would keep both until the collector comes
        self._stream: Any = response.stream
        self._request = request
        self._started = started
        # A coded body is bounded by its decoder (`HTTPResponse.aiter_bytes`), one without a coding here.
        self._most = None if "content-encoding" in response.headers else response._max_bytes
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._error: Exception | None = None
        self._listeners: list[Callable[[Exception | None], None]] = []

    def when_done(self, listener: Callable[[Exception | None], None]) -> None:
        """Call `listener` once, at the end of the body: with its error, or with None when it was read or closed."""
        if self._closed:
            listener(self._error)
        else:
            self._listeners.append(listener)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        call = Call.of(self._request)
        chunks = aiter(self._stream)
        while True:
            limit = asyncio.timeout(call.remaining() if call.stream else None)
            try:
                if call.stream and call.deadline is not None:
                    async with limit:
                        chunk = await anext(chunks)
                else:
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except HTTPClientError as error:
                self._error = error
                raise
            except Exception as error:
                request = self._callers_request()
                self._error = total_timeout(request) if limit.expired() else request_error(error, request)
                raise self._error from without_secrets(error)
            self._size += len(chunk)
            if self._most is not None and self._size > self._most:
                too_large = ResponseTooLargeError(f"the response's body is larger than {self._most} bytes")
                self._error = failure(too_large, self._callers_request(), self._most)
                await (self._response() or self).aclose()
                raise self._error
            yield chunk

    def _callers_request(self) -> httpx.Request:
        """The request that holds no credential: the response is given it on its way to the caller."""
        response = self._response()
        return self._request if response is None else response.request

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        response = self._response()
        if response is not None:
            response.elapsed = timedelta(seconds=SYSTEM_CLOCK.monotonic() - self._started)
        try:
            await self._stream.aclose()
        except Exception as error:
            # The body is over for the caller; a connection that cannot be closed properly is dropped by its pool.
            self._error = self._error or error
        finally:
            for listener in self._listeners:
                listener(self._error)
            self._listeners.clear()

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        """Nobody can close it any more: give its connection back, and say whose it was.

        This may run in any thread, and as late as at the interpreter's own end, when the loop is gone.
        """
        if self._closed:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so are its connections
            self._loop.call_soon_threadsafe(self._close_late)
        what = "a streamed response was never closed: use `async with client.stream()`, or `await response.aclose()`"
        warn(described(self._request, what, attempt=False), ResourceWarning, source=self)

    def _close_late(self) -> None:
        self._closing = self._loop.create_task(self.aclose())
