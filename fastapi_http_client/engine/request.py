"""Requests written as HTTP/1.1 (RFC 9112), checked completely before a byte is sent."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

import httpx

COALESCE_LIMIT = 64 * 1024
"""Bytes of a body up to which it goes out in one write with the head."""
PIECE_SIZE = 256 * 1024
"""Bytes written at once of a larger body: the write timeout is for one piece."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_LEGAL_IN_HEAD = bytes([*b"\r\n\t", *range(0x20, 0x7F), *range(0x80, 0x100)])
_LEGAL_IN_VALUE = _LEGAL_IN_HEAD.translate(None, b"\r\n")
_FRAMING_NAMES = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
_MAX_KNOWN = 1024

_ORDINARY = b""

_ILLEGAL_BYTE = "a header of the request holds an illegal byte (such as CR, LF or NUL)"
_TWO_FRAMINGS = "a request must not have both Content-Length and Transfer-Encoding"


class OutgoingRequest:
    """A request ready to be sent.

    `head` holds the head and, when it is small, the whole body. `body` is the rest as bytes, `stream` the rest as an
    iterator; at most one of them is there. `last` says that the connection must not be used again.
    """

    __slots__ = ("body", "chunked", "head", "head_only", "last", "length", "stream")

    def __init__(
        self,
        head: bytes,
        body: bytes,
        stream: httpx.AsyncByteStream | None,
        *,
        chunked: bool,
        length: int,
        last: bool,
        head_only: bool,
    ) -> None:
        self.head = head
        self.body = body
        self.stream = stream
        self.chunked = chunked
        self.length = length
        self.last = last
        self.head_only = head_only

    async def pieces(self) -> AsyncGenerator[bytes | memoryview, None]:
        """What is to be written behind `head`, piece by piece.

        Raises `httpx.LocalProtocolError` when an iterator does not yield as much as Content-Length announces.
        """
        if self.stream is None:
            view = memoryview(self.body)
            for start in range(0, len(view), PIECE_SIZE):
                yield view[start : start + PIECE_SIZE]
            return
        left = self.length
        async for piece in self.stream:
            if not piece:  # an empty chunk would be the last one
                continue
            if self.chunked:
                yield b"%x\r\n%b\r\n" % (len(piece), piece)
                continue
            left -= len(piece)
            if left < 0:
                raise httpx.LocalProtocolError(f"the body is larger than its Content-Length of {self.length} bytes")
            yield piece
        if self.chunked:
            yield b"0\r\n\r\n"
        elif left:
            raise httpx.LocalProtocolError(f"the body is {left} bytes smaller than its Content-Length of {self.length}")


def encode_request(request: httpx.Request) -> OutgoingRequest:
    """`encode()` for a request of httpx. Its `extensions["target"]` replaces the request target, as in httpx."""
    target = request.extensions.get("target", request.url.raw_path)
    return encode(request.method, target, request.headers.raw, request.stream)


def encode(
    method: str,
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    stream: httpx.SyncByteStream | httpx.AsyncByteStream,
) -> OutgoingRequest:
    """Write a request, or raise `httpx.LocalProtocolError` for one that would be malformed or ambiguous.

    Refused are bytes that no head may hold (CR, LF and NUL first of all), names that are no token, a Host missing or
    given twice, a Content-Length that contradicts the body, one together with Transfer-Encoding, and any coding but
    chunked.
    """
    lines = [_request_line(method, target)]
    hosts = 0
    length: int | None = None
    chunked = last = False
    for name, value in headers:
        role = _known_names.get(name)
        if role is None:
            role = _learn_name(name)
        if role:
            if role == b"host":
                hosts += 1
            elif role == b"content-length":
                length = _content_length(value, length)
            elif role == b"connection":
                last = last or b"close" in value.lower()
            elif chunked or value.lower() != b"chunked":
                raise httpx.LocalProtocolError("the only Transfer-Encoding that can be sent is chunked, once")
            else:
                chunked = True
        lines.append(b"%b: %b" % (name, value))
    if hosts != 1:
        raise httpx.LocalProtocolError("a request must have exactly one Host header")
    if chunked and length is not None:
        raise httpx.LocalProtocolError(_TWO_FRAMINGS)
    lines.append(b"\r\n")
    head = b"\r\n".join(lines)
    _check_bytes(head, len(lines))
    head_only = method == "HEAD"

    if isinstance(stream, httpx.ByteStream):
        body = b"".join(stream)
        if chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif len(body) != (length or 0):
            raise httpx.LocalProtocolError(
                f"the body has {len(body)} bytes, but Content-Length is {length or 'missing'}"
            )
        if len(body) <= COALESCE_LIMIT:
            head, body = head + body, b""
        return OutgoingRequest(head, body, None, chunked=chunked, length=0, last=last, head_only=head_only)
    if not isinstance(stream, httpx.AsyncByteStream):
        raise RuntimeError("a request with a synchronous body cannot be sent by an asynchronous client")
    return OutgoingRequest(head, b"", stream, chunked=chunked, length=length or 0, last=last, head_only=head_only)


def check_head(request: httpx.Request) -> None:
    """What `encode()` refuses of a method and of headers, for a transport that is less strict, a mock, say."""
    if request.method != "CONNECT":
        _method(request.method)
    roles = set()
    for name, value in request.headers.raw:
        role = _known_names.get(name)
        roles.add(_learn_name(name) if role is None else role)
        if value.translate(None, _LEGAL_IN_VALUE):
            raise httpx.LocalProtocolError(_ILLEGAL_BYTE)
    if {b"content-length", b"transfer-encoding"} <= roles:
        raise httpx.LocalProtocolError(_TWO_FRAMINGS)


class HeaderLines:
    """The header lines of requests without a body, checked once for many of them: only target and context differ.

    Raises what `encode()` raises.
    """

    __slots__ = ("_addable", "_last", "_lines")

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        checked = encode("GET", b"/", headers, _NO_BODY)
        self._last = checked.last
        self._lines = checked.head.partition(b"\r\n")[2][:-2]
        self._addable: set[str] = set()  # names that have been added before

    def request(self, method: str, target: bytes, more: Mapping[str, str]) -> OutgoingRequest:
        """A request with these lines and `more`, which must not be headers of the framing."""
        added = b""
        if more:
            if not more.keys() <= self._addable:
                self._check_names(more)
            added = "".join([f"{name}: {value}\r\n" for name, value in more.items()]).encode("ascii")
            _check_bytes(added, len(more))
        head = b"%b\r\n%b%b\r\n" % (_request_line(method, target), self._lines, added)
        return OutgoingRequest(head, b"", None, chunked=False, length=0, last=self._last, head_only=method == "HEAD")

    def _check_names(self, more: Mapping[str, str]) -> None:
        for name in more:
            if _learn_name(name.encode("ascii")):
                raise httpx.LocalProtocolError(f"{name} belongs to the framing and cannot be added")
        self._addable.update(more)  # a few of them: those of the context


_NO_BODY = httpx.ByteStream(b"")


def _request_line(method: str, target: bytes) -> bytes:
    if not _TARGET.fullmatch(target):
        raise httpx.LocalProtocolError("the request target holds an illegal byte")
    return b"%b %b HTTP/1.1" % (_method(method), target)


def _check_bytes(head: bytes, lines: int) -> None:
    """Whether so many lines hold nothing that could be taken for the end of one of them."""
    if head.count(b"\n") != lines or head.count(b"\r") != lines or head.translate(None, _LEGAL_IN_HEAD):
        raise httpx.LocalProtocolError(_ILLEGAL_BYTE)


# Names and methods that have been checked once: few, and nearly always the same ones.
_known_names: dict[bytes, bytes] = {}
_known_methods: dict[str, bytes] = {}


def _learn_name(name: bytes) -> bytes:
    """Check a header's name, and say in lower case which of the names that matter to framing it is, if any."""
    if not _TOKEN.fullmatch(name):
        raise httpx.LocalProtocolError("the name of a header is empty or holds an illegal byte")
    lower = name.lower()
    role = lower if lower in _FRAMING_NAMES else _ORDINARY
    if len(_known_names) < _MAX_KNOWN:
        _known_names[name] = role
    return role


def _method(method: str) -> bytes:
    known = _known_methods.get(method)
    if known is not None:
        return known
    encoded = method.encode("utf-8", "surrogatepass")
    if not _TOKEN.fullmatch(encoded):
        raise httpx.LocalProtocolError("the request's method is empty or holds an illegal byte")
    if encoded == b"CONNECT":
        raise httpx.UnsupportedProtocol("CONNECT is not supported by this transport")
    if len(_known_methods) < _MAX_KNOWN:
        _known_methods[method] = encoded
    return encoded


def _content_length(value: bytes, previous: int | None) -> int:
    if previous is not None:
        raise httpx.LocalProtocolError("a request must not have more than one Content-Length")
    if not value.isdigit() or len(value) > 19:
        raise httpx.LocalProtocolError("the request's Content-Length is no number")
    return int(value)
