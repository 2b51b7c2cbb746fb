"""The parser against h11: the same bytes, valid and broken, split anywhere, through both.

Where the two disagree on purpose:

This parser refuses, h11 accepts (never the cause of a wrong answer, only of an error):
  * a bare LF as the end of a line, and obs-fold: RFC 9112 allows a recipient to take them, smuggling lives on them
  * Content-Length twice, or as a list, even when all values agree; together with Transfer-Encoding
  * control characters in header values; a Transfer-Encoding given for a status that has no body
  * white space behind a chunk's size; chunk extensions that are not well formed; framing fields in trailers
  * HTTP versions other than 1.0 and 1.1, and status codes below 100
  * an interim response (1xx) that says `Connection: close` and is followed by another response
This parser accepts, h11 refuses:
  * a chunk's size with more than 20 digits, when its value fits in 64 bits (leading zeros)
  * heads between h11's limit for them and `max_head_bytes`, and the other way round
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11
import httpx
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from fastapi_http_client.engine.parser import ResponseParser


@dataclass(frozen=True)
class Parsed:
    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    reusable: bool


class Refused(Exception):  # noqa: N818 - one of two outcomes
    pass


def by_engine(pieces: list[bytes], *, head_only: bool = False) -> Parsed:
    parser = ResponseParser(max_head_bytes=65536, max_interim_responses=16)
    parser.begin(head_only=head_only)
    surplus = False
    try:
        for piece in pieces:
            if parser.complete:  # a connection closes itself when bytes arrive that no request has asked for
                surplus = True
                break
            parser.feed(piece)
        parser.end()
    except httpx.RemoteProtocolError as error:
        raise Refused(str(error)) from error
    headers = tuple((lower, value) for _, lower, value in parser.headers)
    return Parsed(parser.status, parser.reason, headers, b"".join(parser.chunks), parser.reusable and not surplus)


def by_h11(pieces: list[bytes], *, head_only: bool = False) -> Parsed:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=65536)
    connection.send(h11.Request(method="HEAD" if head_only else "GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    response: h11.Response | None = None
    body = b""
    interims = 0
    try:
        for piece in [*pieces, b""]:
            connection.receive_data(piece)
            while (got := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(got, h11.InformationalResponse):
                    interims += 1
                    if got.status_code == 101 or interims > 16:
                        raise Refused("interim")
                elif isinstance(got, h11.Response):
                    response = got
                elif isinstance(got, h11.Data):
                    body += bytes(got.data)
                elif isinstance(got, h11.EndOfMessage):
                    assert response is not None
                    rest = connection.trailing_data[0] or b"".join(pieces[pieces.index(piece) + 1 :] if piece else [])
                    reusable = connection.their_state is h11.DONE and not rest
                    headers = tuple((bytes(n), bytes(v)) for n, v in response.headers)
                    return Parsed(response.status_code, bytes(response.reason), headers, body, reusable)
                elif isinstance(got, h11.ConnectionClosed):
                    raise Refused("closed")
    except h11.RemoteProtocolError as error:
        raise Refused(str(error)) from error
    raise Refused("incomplete")


# -- what the streams are made of

FIELDS = st.sampled_from(
    [
        b"Content-Type: text/plain",
        b"X-A:",
        b"X-B:  two words \t ",
        b"Server: caf\xe9",
        b"Connection: close",
        b"Connection: keep-alive",
        b"connection: upgrade, Close",
        b"Upgrade: h2c",
        b"Set-Cookie: a=b; Path=/",
        b"X-Bad : space",
        b"X-\xc3\xa9: name",
        b": empty",
        b"no-colon",
        b"X-Nul: a\x00b",
        b"X-Ctl: a\x01b",
        b" folded",
        b"X-Lf: a\nb",
        b"X-Cr: a\rb",
    ]
)
FRAMING = st.sampled_from(
    [
        (b"Content-Length: 5", b"hello"),
        (b"Content-Length: 5", b"hel"),
        (b"Content-Length: 5", b"hello\r\n"),
        (b"Content-Length: 5", b"hello world"),
        (b"content-length:0005 ", b"hello"),
        (b"Content-Length: 0", b""),
        (b"Content-Length: 5\r\nContent-Length: 5", b"hello"),
        (b"Content-Length: 5\r\nContent-Length: 6", b"hello!"),
        (b"Content-Length: 5, 5", b"hello"),
        (b"Content-Length: +5", b"hello"),
        (b"Content-Length: -5", b"hello"),
        (b"Content-Length: 0x5", b"hello"),
        (b"Content-Length:", b"hello"),
        (b"Content-Length: 99999999999999999999999999", b"hello"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"transfer-encoding: Chunked", b"2\r\nhe\r\n0003\r\nllo\r\n000\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"5 \r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"5\nhello\n0\n\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"-5\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: gzip, chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: xchunked", b"hello"),
        (b"Transfer-Encoding: identity", b"hello"),
        (b"X-No-Framing: 1", b"until the end"),
    ]
)
START_LINES = st.sampled_from(
    [
        *[b"HTTP/1.1 %d OK" % status for status in (200, 204, 304, 205, 404, 500, 999)],
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 O\x01K",
        b"HTTP/1.1 200 O\x00K",
        b"HTTP/1.1 200 caf\xe9",
        b"HTTP/2.0 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.1 099 Low",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1  200 OK",
        b"http/1.1 200 OK",
        b"RTSP/1.0 200 OK",
        b"ICE/1.0 200 OK",
        b"\r\nHTTP/1.1 200 OK",
        b"SSH-2.0-OpenSSH_9.6",
        b"GET / HTTP/1.1",
    ]
)
INTERIMS = st.sampled_from(
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 102 \r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n",
    ]
)
SURPLUS = st.sampled_from([b"", b"", b"", b"\r\n", b"\n", b"\r", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
LINE_ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A response, mostly a valid one, with one thing or another wrong and a few bytes changed."""
    ends = draw(LINE_ENDS)
    framing, body = draw(FRAMING)
    fields = draw(st.lists(FIELDS, max_size=3))
    position = draw(st.integers(0, len(fields)))
    lines = [draw(START_LINES | st.just(b"HTTP/1.1 200 OK")), *fields[:position], framing, *fields[position:]]
    interims = draw(st.lists(INTERIMS, max_size=2)) if draw(st.integers(0, 3)) == 0 else []
    stream = b"".join(interims) + ends.join(lines) + ends + ends + body + draw(SURPLUS)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(stream)))
        new = draw(st.binary(max_size=2) | st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"0", b"\x00"]))
        stream = stream[:at] + new + stream[at + draw(st.integers(0, 2)) :]
    return stream or b"\n"


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % len(stream) for cut in cuts} - {0})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


# -- the differences on purpose, as far as the bytes show them


def stricter_on_purpose(stream: bytes, accepted: Parsed) -> bool:
    """Whether this parser may refuse what h11 accepts."""
    names = [name for name, _ in accepted.headers]
    lowered = stream.lower()
    return bool(
        re.search(rb"(?<!\r)\n", stream)  # bare LF
        or re.search(rb"\r?\n[ \t]", stream)  # obs-fold
        or lowered.count(b"content-length") > 1
        or re.search(rb"content-length:[^\r\n]*,", lowered)
        or (b"content-length" in lowered and b"transfer-encoding" in names)
        or re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", stream)
        or (b"transfer-encoding" in names and re.search(rb"[0-9a-f][ \t]+\r\n", lowered))  # behind a chunk's size
        or (b"transfer-encoding" in names and b";" in stream.split(b"\r\n\r\n", 1)[1])  # chunk extensions
        or not re.search(rb"HTTP/1\.[01] ", stream)
        or re.search(rb"HTTP/[02-9]\.|HTTP/1\.[2-9]", stream)
        or re.search(rb"HTTP/1\.[01] 0", stream)
        or re.search(rb"HTTP/1\.[01] 1\d\d.*close", lowered.replace(b"http", b"HTTP"), re.DOTALL)
    )


def laxer_on_purpose(stream: bytes) -> bool:
    """Whether this parser may accept what h11 refuses."""
    return bool(re.search(rb"[0-9a-fA-F]{21,}", stream))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(), st.lists(st.integers(0, 10_000), max_size=6), st.booleans())
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\r\n", [], False)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\n", [30], False)
def test_accepts_nothing_that_h11_refuses_and_reads_the_same(stream: bytes, cuts: list[int], head_only: bool) -> None:
    pieces = split(stream, cuts)
    try:
        own = by_engine(pieces, head_only=head_only)
    except Refused:
        event("refused by the engine")
        own = None
    try:
        other = by_h11(pieces, head_only=head_only)
    except Refused:
        event("refused by h11")
        other = None
    if own is None:
        assert other is None or stricter_on_purpose(stream, other), (stream, other)
        return
    if other is None:
        assert laxer_on_purpose(stream), (stream, own)
        return
    assert (own.status, own.reason, own.body) == (other.status, other.reason, other.body)
    # h11 lowers the case of the coding's name.
    assert [(n, v.lower() if n == b"transfer-encoding" else v) for n, v in own.headers] == list(other.headers)
    assert other.reusable or not own.reusable, "a connection that h11 would close must not be used again"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(), st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_reads_the_same_however_the_stream_is_split(stream: bytes, cuts: list[int], head_only: bool) -> None:
    def outcome(pieces: list[bytes]) -> Parsed | None:
        try:
            return by_engine(pieces, head_only=head_only)
        except Refused:
            return None

    whole = outcome([stream])
    assert outcome(split(stream, cuts)) == whole
    assert outcome([stream[i : i + 1] for i in range(len(stream))]) == whole
