"""Responses parsed strictly by llhttp, plus the checks that llhttp leaves out.

No I/O here: bytes go in, the attributes of `ResponseParser` say what has been understood so far. What this parser
refuses or accepts differently from h11, and why, is listed in `tests/engine/test_parser_differential.py`.
"""

from __future__ import annotations

import re

import httptools
import httpx

LARGE = 64 * 1024
"""Bytes still to come of a body from which it pays to leave llhttp out: a new one is needed afterwards."""

_END_OF_HEAD = b"\r\n\r\n"
_ILLEGAL_IN_REASON = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")  # RFC 9112 section 4


class _EndOfHead(Exception):  # noqa: N818 - a signal, not an error
    """Stops llhttp behind the head of an answer to HEAD: it would wait for the body that the head announces."""


class _Surplus(Exception):  # noqa: N818 - a signal, not an error
    """Stops llhttp at a second message behind a complete one."""


class ResponseParser:
    """Parses the responses of one connection, one after the other; `begin()` prepares for the next one.

    `head_complete` and `complete` tell how far the final response has come. `chunks` grows with the body and may be
    emptied by its reader at any time; `body_bytes` counts what went through it. When `complete` is true, `reusable`
    says whether the connection can carry another request.
    """

    __slots__ = (
        "_at_start",
        "_close_delimited",
        "_coded",
        "_framing_bytes",
        "_head_only",
        "_interims",
        "_interims_in_piece",
        "_left_out",
        "_length",
        "_llhttp",
        "_max_head_bytes",
        "_max_interim_responses",
        "_spent",
        "_tail",
        "body_bytes",
        "chunks",
        "complete",
        "head_complete",
        "headers",
        "http_version",
        "reason",
        "reusable",
        "status",
    )

    def __init__(self, *, max_head_bytes: int, max_interim_responses: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_interim_responses = max_interim_responses
        self._spent = True  # an llhttp parser that has stopped in the middle of a message cannot go on
        self.begin(head_only=False)

    def begin(self, *, head_only: bool) -> None:
        """Expect the response to a new request; `head_only` when that is a HEAD."""
        if self._spent:
            self._llhttp = httptools.HttpResponseParser(self)
            self._spent = False
        self._head_only = head_only
        self._at_start = True
        self._interims = 0
        self._framing_bytes = 0
        self._tail = b""
        self._start_message()
        self.chunks: list[bytes] = []
        self.body_bytes = 0
        self.complete = self.reusable = False

    def _start_message(self) -> None:
        self.status = 0
        self.reason = b""
        self.http_version = ""
        self.headers: list[tuple[bytes, bytes, bytes]] = []  # name as it came, in lower case, and value
        self.head_complete = False
        self._coded = False  # by Transfer-Encoding: chunked
        self._length = 0
        self._left_out = False  # llhttp, for the rest of the body
        self._close_delimited = True

    def feed(self, piece: bytes | memoryview) -> None:
        """Parse the next bytes of the stream, at least one, split anywhere.

        Raises `httpx.RemoteProtocolError` for what is no valid response, or goes beyond a limit.
        """
        in_head = not self.head_complete
        if in_head and self._at_start:
            self._check_start(piece, 0)
        body_before = self.body_bytes
        self._interims_in_piece = 0
        try:
            self._llhttp.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._spent = True
            if not self.complete:
                raise self._violation(error) from None
            if not isinstance(error.__context__, _EndOfHead):
                self.reusable = False
        body = self.body_bytes - body_before
        head = self._measure_head(piece) if in_head else 0
        if self.complete:
            self.reusable = self.reusable and self._ends_with(piece, head, body)
            return
        self._tail = (self._tail + bytes(piece[-5:]))[-5:]
        if not in_head:
            self._check_progress(len(piece), body)

    @property
    def uncounted(self) -> int:
        """Bytes that are all that is still to come, when they are many: to be counted with `count()` and not fed."""
        if not self.head_complete or self.complete or self._coded:
            return 0
        left = self._length - self.body_bytes
        return left if left >= LARGE or self._left_out else 0

    def count(self, size: int) -> int:
        """Take note of the next bytes of the stream; returns how many of them belong to the body.

        They need no parsing and no copy: what follows until the end of `uncounted` is the body and nothing else.
        """
        self._left_out = self._spent = True
        left = self._length - self.body_bytes
        if size >= left:
            self.complete = True
            self.reusable = size == left and self._llhttp.should_keep_alive()
            size = left
        self.body_bytes += size
        return size

    def end(self) -> None:
        """The peer has closed its side: the end of a body that has no other, else a `httpx.RemoteProtocolError`."""
        if self.complete:
            return
        if not self.head_complete:
            what = "without sending a response" if self._at_start else "in the middle of the response's head"
            raise httpx.RemoteProtocolError(f"server disconnected {what}")
        if not self._close_delimited:
            raise httpx.RemoteProtocolError(
                f"server disconnected before the end of the response's body ({self.body_bytes} bytes received)"
            )
        self.complete = True
        self.reusable = False

    def close(self) -> None:
        """Break the reference cycle with llhttp, so that a closed connection needs no garbage collection."""
        self._spent = True
        del self._llhttp

    # -- callbacks of llhttp, in the order of a message

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Surplus

    def on_status(self, fragment: bytes) -> None:
        self.reason += fragment

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:  # a trailer: nothing in this package uses one, and merging them is unsafe
            return
        lower = name.lower()
        value = value.rstrip(b" \t")
        self.headers.append((name, lower, value))
        if lower == b"content-length":
            self._close_delimited = False
            self._length = int(value) if value.isdigit() else 0  # llhttp refuses the response in the other case
        elif lower == b"transfer-encoding":
            self._take_transfer_encoding(value)

    def on_headers_complete(self) -> None:
        llhttp = self._llhttp
        status = self.status = llhttp.get_status_code()
        version = self.http_version = llhttp.get_http_version()
        if version != "1.1" and version != "1.0":
            raise httpx.RemoteProtocolError(f"the response is of HTTP/{version}")
        reason = self.reason
        if reason != b"OK" and _ILLEGAL_IN_REASON.search(reason):
            raise httpx.RemoteProtocolError("the response's reason phrase holds an illegal byte")
        if status < 200:
            self._take_interim(status)
            return
        self.head_complete = True
        if self._head_only:
            self.complete = True
            self.reusable = version == "1.1" and not self._says_close()
            raise _EndOfHead

    def on_body(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.body_bytes += len(chunk)

    def on_message_complete(self) -> None:
        if not self.head_complete:  # an interim response: the next message is the one that counts
            self._start_message()
            return
        self.complete = True
        # A coded body in HTTP/1.0 is faulty framing: the connection must be closed (RFC 9112 section 6.1).
        self.reusable = self._llhttp.should_keep_alive() and not (self._coded and self.http_version == "1.0")

    # -- details

    def _take_transfer_encoding(self, value: bytes) -> None:
        if self._coded or value.lower() != b"chunked":
            raise httpx.RemoteProtocolError("the response has a Transfer-Encoding other than chunked")
        self._coded = True
        self._close_delimited = False

    def _take_interim(self, status: int) -> None:
        if status == 101:
            raise httpx.RemoteProtocolError("the server switched protocols although nobody asked for it (101)")
        if status < 100:
            raise httpx.RemoteProtocolError(f"the response has the illegal status {status:03}")
        self._interims += 1
        self._interims_in_piece += 1
        if self._interims > self._max_interim_responses:
            raise httpx.RemoteProtocolError(f"more than {self._max_interim_responses} interim responses (1xx)")

    def _says_close(self) -> bool:
        return any(
            b"close" in [token.strip() for token in value.lower().split(b",")]
            for _, lower, value in self.headers
            if lower == b"connection"
        )

    def _check_start(self, text: bytes | memoryview, at: int) -> None:
        self._at_start = at == len(text)
        if not self._at_start and text[at] != 0x48:  # "H": llhttp also takes empty lines, RTSP/ and ICE/
            raise httpx.RemoteProtocolError("the response does not start with HTTP/")

    def _measure_head(self, piece: bytes | memoryview) -> int:
        """How many bytes of the piece belong to heads: llhttp does not say, but takes no other end than an empty line.

        Raises `httpx.RemoteProtocolError` when they are too many.
        """
        # Not more of a large piece than could be a head; a head that ends behind that is too large.
        if self.head_complete and not self._tail and not self._interims_in_piece and not self._framing_bytes:
            size = self._find_end(bytes(piece[: self._max_head_bytes + 1]), 0)  # all of it at once, as nearly always
            if size > self._max_head_bytes:
                raise httpx.RemoteProtocolError(f"the response's head is larger than {self._max_head_bytes} bytes")
            return size
        text = self._tail + bytes(piece[: self._max_head_bytes + 1])
        end = max(0, len(self._tail) - 3)
        for _ in range(self._interims_in_piece):
            end = self._find_end(text, end)
            self._check_start(text, end)
        end = self._find_end(text, end) if self.head_complete else len(text)
        size = end - len(self._tail)
        self._framing_bytes += size
        if self._framing_bytes > self._max_head_bytes:
            raise httpx.RemoteProtocolError(f"the response's head is larger than {self._max_head_bytes} bytes")
        if self.head_complete:
            self._framing_bytes = 0
        return size

    @staticmethod
    def _find_end(text: bytes, start: int) -> int:
        at = text.find(_END_OF_HEAD, start)
        return len(text) if at < 0 else at + 4

    def _ends_with(self, piece: bytes | memoryview, head: int, body: int) -> bool:
        """Whether the complete message ends where the piece does: llhttp silently skips CR and LF behind a message."""
        if not self._coded or self._head_only or self.status in (204, 304):
            return head + body == len(piece)
        # A chunked body ends with an empty line behind the last chunk or the trailers.
        end = bytes(piece[-5:]) if len(piece) >= 5 else (self._tail + piece)[-5:]
        return end[-4:] == _END_OF_HEAD and end[0] not in b"\r\n"

    def _check_progress(self, size: int, body: int) -> None:
        """Bound chunk extensions and trailers, which are no body and belong to no head."""
        if body or not self._coded:
            self._framing_bytes = 0
            return
        self._framing_bytes += size
        if self._framing_bytes > self._max_head_bytes:
            raise httpx.RemoteProtocolError(f"more than {self._max_head_bytes} bytes of chunk extensions or trailers")

    @staticmethod
    def _violation(error: Exception) -> httpx.RemoteProtocolError:
        if isinstance(error.__context__, httpx.RemoteProtocolError):
            return error.__context__
        if isinstance(error, httptools.HttpParserUpgrade):
            return httpx.RemoteProtocolError("the server switched protocols although nobody asked for it")
        return httpx.RemoteProtocolError(f"the server's response is malformed: {error or type(error).__name__}")
