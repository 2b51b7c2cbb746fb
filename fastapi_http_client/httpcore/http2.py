"""HTTP/2 connections of httpcore2 whose calls do not suffer from each other.

Of a call that is given up httpcore2 says nothing to the server. That then goes on with the work, and what it sends for
the forgotten stream counts against the window of the connection (RFC 9113 section 6.9) and is never given back: after
16 MiB, every other call on the connection waits for ever. And the first call whose time is up ends all the others.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, cast

import h2.errors
import h2.events
import h2.exceptions
import httpcore2
import httpx

from fastapi_http_client.engine.errors import NOTHING_SENT, with_facts
from fastapi_http_client.httpcore.network import AsyncioStream, sent_at


def speak_http2(connection: httpcore2.AsyncConnectionInterface) -> None:
    """Let the HTTP/2 connection that this one of httpcore2's opens, behind a proxy too, be one of ours."""
    cls = type(connection)
    base = _HTTPConnection if cls is httpcore2.AsyncHTTPConnection else cls
    connection.__class__ = _opening_ours(base)  # type: ignore[arg-type]


@functools.cache
def _opening_ours(cls: type) -> type:
    return type(cls.__name__, (_OpensOurs, cls), {})


class _OpensOurs:
    """httpcore2's connections create the one that speaks the protocol in the midst of what else they do."""

    @property
    def _connection(self) -> Any:
        return self.__dict__["_connection"]

    @_connection.setter
    def _connection(self, opened: Any) -> None:
        if type(opened) is httpcore2.AsyncHTTP2Connection:
            opened.__class__ = _HTTP2Connection
            cast("AsyncioStream", opened._network_stream).is_shared = True
        self.__dict__["_connection"] = opened


class _HTTPConnection(httpcore2.AsyncHTTPConnection):
    """A connection to an origin that speaks HTTP/2, if the server does.

    The first of its calls opens it, and the others wait. In httpcore2, one of those that is cancelled counts as a
    failure to connect: the pool then forgets the connection, which nobody closes.
    """

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        async with self._request_lock:
            if self._connect_failed:
                raise httpcore2.ConnectionNotAvailable  # the pool goes on with another one
            if self._connection is None:
                try:
                    self._connection = self._speaking(await self._connect(request))
                except BaseException:
                    self._connect_failed = True
                    raise
        return await self._connection.handle_async_request(request)

    def _speaking(self, stream: httpcore2.AsyncNetworkStream) -> httpcore2.AsyncConnectionInterface:
        tls = stream.get_extra_info("ssl_object")
        negotiated = tls is not None and tls.selected_alpn_protocol() == "h2"
        is_http2 = negotiated or not self._http1
        cls = httpcore2.AsyncHTTP2Connection if is_http2 else httpcore2.AsyncHTTP11Connection
        return cls(origin=self._origin, stream=stream, keepalive_expiry=self._keepalive_expiry)


_ENDS = (h2.events.StreamEnded, h2.events.StreamReset)


class _AnsweredError(Exception):
    """The server has ended its side of the stream while we are still sending."""


class _HTTP2Connection(httpcore2.AsyncHTTP2Connection):
    @property
    def _stream(self) -> AsyncioStream:
        return cast("AsyncioStream", self._network_stream)

    async def handle_async_request(self, request: httpcore2.Request) -> httpcore2.Response:
        try:
            return await super().handle_async_request(request)
        except httpcore2.ConnectionNotAvailable as error:
            # The pool would go on with another connection, where a body that can be read once only would be empty.
            if not sent_at.get() or isinstance(request.stream, httpx.ByteStream):
                raise
            raise _refused() from error
        except httpcore2.RemoteProtocolError as error:
            if not _was_refused(error):
                raise
            raise _refused() from error

    async def _send_request_body(self, request: httpcore2.Request, stream_id: int) -> None:
        """A server that has answered need not take the rest: it may never grant the window for it (RFC 9113, 8.1)."""
        with contextlib.suppress(_AnsweredError, h2.exceptions.StreamClosedError):
            await super()._send_request_body(request, stream_id)

    async def _wait_for_outgoing_flow(self, request: httpcore2.Request, stream_id: int) -> int:
        while not any(isinstance(event, _ENDS) for event in self._events[stream_id]):
            local = self._h2_state.local_flow_control_window(stream_id)
            if local > 0:
                return min(local, self._h2_state.max_outbound_frame_size)
            async with self._read_lock:
                if self._h2_state.local_flow_control_window(stream_id) <= 0:
                    await self._receive_events(request)
            await self._write_outgoing_data(request)
        raise _AnsweredError

    def has_expired(self) -> bool:
        """httpcore2 does not look whether the server has closed an idle connection."""
        return super().has_expired() or (self.is_idle() and self._stream.has_ended)

    async def _read_incoming_data(self, request: httpcore2.Request) -> list[h2.events.Event]:
        try:
            return await super()._read_incoming_data(request)
        except httpcore2.ReadTimeout:
            # That was this call's patience. httpcore2 would end all the others with the same error. The connection may
            # be dead, though, and httpcore2 gives it no further calls.
            self._read_exception = None
            raise
        except h2.exceptions.ProtocolError as error:  # for which httpcore2 would blame us
            self._connection_error = True
            raise httpcore2.RemoteProtocolError(f"the server broke the protocol: {error}") from error

    async def _write_outgoing_data(self, request: httpcore2.Request) -> None:
        try:
            await super()._write_outgoing_data(request)
        except httpcore2.WriteTimeout:
            self._write_exception = None  # as above: what was to be written will be, should the server read on
            raise

    async def _response_closed(self, stream_id: int) -> None:
        """A call is at its end. If that was no end of the stream, the server learns of it at once."""
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the stream, or the whole connection, has ended
            for event in self._events.get(stream_id, ()):
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length, stream_id)
            self._h2_state.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
        self._stream.write_at_once(self._h2_state.data_to_send())
        await super()._response_closed(stream_id)


def _refused() -> httpcore2.RemoteProtocolError:
    error = httpcore2.RemoteProtocolError("the server has refused the request, and not processed it")
    return with_facts(error, NOTHING_SENT)


def _was_refused(error: httpcore2.RemoteProtocolError) -> bool:
    """Whether the server says that it has not processed the request (RFC 9113 section 8.7)."""
    event = error.args[0]
    if isinstance(event, h2.events.StreamReset):
        return event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
    # A GOAWAY that leaves out some of the requests is httpcore2's: it repeats those on another connection.
    return isinstance(event, h2.events.ConnectionTerminated) and event.last_stream_id == 0
