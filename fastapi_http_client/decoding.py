"""Content codings undone piece by piece, so that a small body cannot become a huge one before anybody has looked.

httpx decodes whatever has arrived in one step: 231 bytes can become a gigabyte of memory, while the event loop stands
still. Here every decoder hands out at most `PIECE` bytes at a time (zstd: one block, 128 KiB), and goes on only when it
is asked to. A body that ends before its coding does is an error, where httpx takes what there is.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import Any, Protocol

import httpx

from fastapi_http_client.clock import SYSTEM_CLOCK


def _first_of(*names: str) -> Any:
    """The first of these modules that is installed, or None."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


brotli = _first_of("brotli", "brotlicffi")
zstandard = _first_of("zstandard")

PIECE = 64 * 1024
MAX_CODINGS = 5
"""Codings around one body; urllib3 and curl draw the line at the same number."""
MAX_ZSTD_WINDOW = 8 * 1024 * 1024
"""What an encoder for HTTP may use at most (RFC 9659, section 3)."""


TURN = 256 * 1024
"""Bytes that are decoded before other tasks have their turn: a few milliseconds."""
_LEAST_WORK = 512  # bytes that an empty or a tiny piece counts for


class BodyTooLargeError(httpx.DecodingError):
    """A body is larger than the limit that it was given."""


async def decoded(raw: AsyncIterator[bytes], content_encoding: str, limit: int | None) -> AsyncIterator[bytes]:
    """A body's decoded bytes, at most `limit` of them; now and then it gives way to other tasks.

    Raises `httpx.DecodingError`, and `BodyTooLargeError` for a body beyond the limit, or one that is far longer on the
    wire than the limit, whatever little it may decode to.
    """
    decoder = decoder_for(content_encoding)
    on_the_wire = size = work = 0
    async for data in raw:
        on_the_wire += len(data)
        for piece in (data,) if decoder is None else decoder.feed(data):
            size += len(piece)
            if limit is not None and (size > limit or on_the_wire > 2 * limit + PIECE):
                raise BodyTooLargeError(f"the response is larger than max_response_bytes ({limit})")
            if piece:
                yield piece
            work += max(len(piece), _LEAST_WORK)
            if work > TURN:
                work = 0
                await SYSTEM_CLOCK.sleep(0)
    if decoder is not None:
        decoder.end()


class Decoder(Protocol):
    """One content coding of one body."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes decode to, in small pieces; also empty ones, for work that has shown no result yet.

        Raises `httpx.DecodingError`.
        """
        ...

    def end(self) -> None:
        """There are no more bytes. Raises `httpx.DecodingError` when there should be."""
        ...


class _Inflate:
    """gzip (RFC 1952), of one or more members, or deflate: zlib (RFC 1950), or without its header, as some send it."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._head = b""  # of a member, until there is enough of it to tell what it is
        self._inflater: Any = None
        self._complete = False  # with the last member; another may follow
        self._over = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), PIECE):  # zlib copies what it has not used yet: let that be little
            yield from self._feed(data[start : start + PIECE])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._over:
            if self._inflater is None:
                data = self._begin(data)
                continue
            try:
                piece = self._inflater.decompress(data, PIECE)
                data = self._inflater.unconsumed_tail
                yield piece
                while len(piece) == PIECE and not data and not self._inflater.eof:
                    piece = self._inflater.decompress(b"", PIECE)
                    yield piece
            except zlib.error as error:
                raise httpx.DecodingError(str(error)) from error
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = None
                self._complete = True
                self._over = not self._gzip

    def _begin(self, data: bytes) -> bytes:
        """Begin a member, if that is what comes next; behind one that is complete, anything else is passed over."""
        self._head += data
        if len(self._head) < 2:
            return b""
        head, self._head = self._head, b""
        if self._complete and not head.startswith(b"\x1f\x8b"):
            self._over = True
            return b""
        self._inflater = zlib.decompressobj(self._format(head))
        self._complete = False
        return head

    def _format(self, head: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS

    def end(self) -> None:
        if not self._complete and (self._head or self._inflater is not None):
            raise httpx.DecodingError("the compressed body is incomplete")


class _Brotli:
    """Brotli (RFC 7932)."""

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        decompressor = self._decompressor
        self._begun = self._begun or bool(data)
        while not decompressor.is_finished():
            try:
                piece = decompressor.process(data, output_buffer_limit=PIECE)
            except brotli.error as error:
                raise httpx.DecodingError(str(error)) from error
            yield piece
            data = b""
            if len(piece) < PIECE and decompressor.can_accept_more_data():
                return

    def end(self) -> None:
        if self._begun and not self._decompressor.is_finished():
            raise httpx.DecodingError("the compressed body is incomplete")


class _Zstd:
    """Zstandard (RFC 8878), of one or more frames.

    The library has no bound for its output, but a block decodes to 128 KiB at most: it is given one block at a time.
    """

    def __init__(self) -> None:
        self._layout = _zstd_layout()
        self._left = next(self._layout)
        self._unit = b""
        self._decompressor: Any = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            piece = data[at : at + self._left]
            at += len(piece)
            if self._decompressor is None:
                self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).decompressobj()
            try:
                decoded = self._decompressor.decompress(piece)
            except zstandard.ZstdError as error:
                raise httpx.DecodingError(str(error)) from error
            yield decoded
            self._left -= len(piece)
            self._unit = (self._unit + piece)[-_LONGEST_HEAD:]
            while not self._left:
                self._left = self._layout.send(self._unit)
                self._unit = b""
            if self._decompressor.eof:
                self._decompressor = None

    def end(self) -> None:
        if self._decompressor is not None:
            raise httpx.DecodingError("the compressed body is incomplete")


_LONGEST_HEAD = 4


def _zstd_layout() -> Generator[int, bytes, None]:
    """How many bytes belong together, from the start of a zstd stream on; each answer is sent back what they were."""
    while True:
        magic = yield 4
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:  # a frame to be skipped
            yield int.from_bytes((yield 4), "little")
            continue
        descriptor = (yield 1)[0]
        single = descriptor >> 5 & 1
        yield (not single) + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]
        last = False
        while not last:
            block = int.from_bytes((yield 3), "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            yield 1 if kind == 1 else size
        yield 4 if descriptor & 4 else 0


class _Stack:
    """Several codings of one body, the outermost first."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self._decoders = decoders

    def feed(self, data: bytes) -> Iterator[bytes]:
        return self._through(0, data)

    def _through(self, number: int, data: bytes) -> Iterator[bytes]:
        pieces = self._decoders[number].feed(data)
        if number == len(self._decoders) - 1:
            yield from pieces
            return
        for piece in pieces:
            yield b""
            yield from self._through(number + 1, piece)

    def end(self) -> None:
        for decoder in self._decoders:
            decoder.end()


def _has_bounded_brotli() -> bool:
    """Whether the installed brotli can bound its output, as 1.2 and later can."""
    try:
        brotli.Decompressor().process(b"", output_buffer_limit=PIECE)
    except (AttributeError, TypeError):
        return False
    return True


def _gzip() -> Decoder:
    return _Inflate(gzip=True)


_DECODERS: dict[str, Callable[[], Decoder]] = {"gzip": _gzip, "deflate": lambda: _Inflate(gzip=False)}
if _has_bounded_brotli():
    _DECODERS["br"] = _Brotli
if zstandard is not None:
    _DECODERS["zstd"] = _Zstd

ACCEPT_ENCODING = ", ".join(_DECODERS)
"""The codings that can be undone here. httpx would also offer the one of a brotli that is too old."""


def _too_old() -> Decoder:
    raise httpx.DecodingError("the body is compressed with brotli, and the brotli that is installed is older than 1.2")


if brotli is not None:
    _DECODERS.setdefault("br", _too_old)


def decoder_for(content_encoding: str) -> Decoder | None:
    """The decoder for a `Content-Encoding`, or None when there is nothing to decode.

    Names that are unknown are passed over, as httpx does. Raises `httpx.DecodingError` for more than `MAX_CODINGS`.
    """
    names = [name.strip().lower().removeprefix("x-") for name in content_encoding.split(",")]
    known = [_DECODERS[name] for name in names if name in _DECODERS]
    if len(known) > MAX_CODINGS:
        raise httpx.DecodingError(f"the body has {len(known)} content codings, more than {MAX_CODINGS}")
    if len(known) < 2:
        return known[0]() if known else None
    return _Stack([decoder() for decoder in reversed(known)])
