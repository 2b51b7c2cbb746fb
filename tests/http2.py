"""An HTTP/2 upstream on `h2`, for what the hostile one does not speak."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from tests.engine.raw import Reader, Upstream, Writer, serve


class HTTP2Upstream:
    """Answers by path; each connection and stream is counted.

    `/early`: a refusal before the body, whose rest is not wanted. `/big/N`: N bytes. `/hang`: nothing. `/later`: a
    status once `answer_later` is set. `/deaf`: from its head on, nothing more is read until then. `/refuse`: a reset,
    by which nothing was done. `/goaway`: the end of the connection, on which nothing was done; `/left-out`: not
    this one. `/broken`: more than its length. Others: what was sent, as JSON.
    """

    def __init__(self, raw: Upstream, window: int) -> None:
        self.raw = raw
        self.window = window
        self.requests: list[tuple[int, int, str]] = []
        """Connection, stream and path of each request."""
        self.resets: list[int] = []
        """Streams that the client has reset."""
        self.answer_later = asyncio.Event()

    def url(self, path: str = "/") -> str:
        return self.raw.url(path)


class _Connection:
    def __init__(self, upstream: HTTP2Upstream, number: int, reader: Reader, writer: Writer) -> None:
        self._upstream = upstream
        self._number = number
        self._reader = reader
        self._writer = writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._unsent: dict[int, memoryview] = {}
        self._later: list[int] = []
        self._is_deaf = False

    async def run(self) -> None:
        self._h2.initiate_connection()
        if self._upstream.window > self._h2.inbound_flow_control_window:
            self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._upstream.window})
            self._h2.increment_flow_control_window(self._upstream.window - self._h2.inbound_flow_control_window)
        self._flush()
        late = asyncio.create_task(self._answer_later())
        try:
            await self._serve()
        finally:
            late.cancel()

    async def _answer_later(self) -> None:
        await self._upstream.answer_later.wait()
        for stream in self._later:
            self._h2.send_headers(stream, [(":status", "200")], end_stream=True)
        self._flush()

    async def _serve(self) -> None:
        while data := await self._reader.read(65536):
            for event in self._h2.receive_data(data):
                self._handle(event)
            self._send_bodies()
            self._flush()
            if self._h2.state_machine.state is h2.connection.ConnectionState.CLOSED:
                return
            if self._is_deaf:
                await self._upstream.answer_later.wait()

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=int(stream)):
                headers = {name.decode(): value.decode() for name, value in event.headers}
                self._requests[stream] = headers, bytearray()
                self._is_deaf = headers[":path"] == "/deaf"
                if headers[":path"] == "/early":
                    self._h2.send_headers(stream, [(":status", "413")])
                    self._h2.send_data(stream, b"too big", end_stream=True)
            case h2.events.DataReceived(stream_id=int(stream)):
                headers, body = self._requests[stream]
                body.extend(event.data)
                if headers[":path"] != "/early":
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
            case h2.events.StreamReset(stream_id=int(stream)):
                self._upstream.resets.append(stream)
                self._unsent.pop(stream, None)
            case h2.events.StreamEnded(stream_id=int(stream)):
                with contextlib.suppress(h2.exceptions.ProtocolError):  # the client has reset it meanwhile
                    self._answer(stream, *self._requests.pop(stream))

    def _answer(self, stream: int, headers: dict[str, str], body: bytearray) -> None:
        path = headers[":path"]
        self._upstream.requests.append((self._number, stream, path))
        match path.strip("/").split("/"):
            case ["hang"]:
                return
            case ["refuse"]:
                self._h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            case ["left-out"]:
                self._h2.close_connection(last_stream_id=stream - 2)
            case ["broken"]:
                self._h2.send_headers(stream, [(":status", "200"), ("content-length", "5")])
                self._h2.send_data(stream, b"more than that", end_stream=True)
            case ["goaway"]:
                self._h2.close_connection(last_stream_id=0)
            case ["big", size]:
                self._h2.send_headers(stream, [(":status", "200")])
                self._unsent[stream] = memoryview(bytes(int(size)))
            case ["later"]:
                self._later.append(stream)
            case _:
                told = {"method": headers[":method"], "path": path, "size": len(body), "headers": headers}
                self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
                self._unsent[stream] = memoryview(json.dumps(told).encode())

    def _send_bodies(self) -> None:
        for stream in list(self._unsent):
            while self._unsent[stream]:
                size = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
                if size <= 0:
                    break
                self._h2.send_data(stream, self._unsent[stream][:size].tobytes())
                self._unsent[stream] = self._unsent[stream][size:]
            else:
                del self._unsent[stream]
                self._h2.end_stream(stream)


@contextlib.asynccontextmanager
async def serve_http2(
    ssl_context: ssl.SSLContext | None = None, *, window: int = 65_535
) -> AsyncIterator[HTTP2Upstream]:
    """Without a TLS context it speaks HTTP/2 from the first byte (prior knowledge). `window`: bytes that it takes."""

    async def handle(reader: Reader, writer: Writer) -> None:
        await _Connection(upstream, raw.accepted, reader, writer).run()

    if ssl_context is not None:
        ssl_context.set_alpn_protocols(["h2"])
    async with serve(handle, ssl_context=ssl_context) as raw:
        upstream = HTTP2Upstream(raw, window)
        yield upstream
