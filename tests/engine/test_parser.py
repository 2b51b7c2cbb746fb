"""The parser's own rules: what ends a message, what makes a connection reusable, what is bounded."""

from __future__ import annotations

import httpx
import pytest

from fastapi_http_client.engine.parser import ResponseParser


def new_parser(
    *, head_only: bool = False, max_head_bytes: int = 1000, max_interim_responses: int = 3
) -> ResponseParser:
    parser = ResponseParser(max_head_bytes=max_head_bytes, max_interim_responses=max_interim_responses)
    parser.begin(head_only=head_only)
    return parser


def test_parses_a_response_with_a_length() -> None:
    parser = new_parser()
    parser.feed(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nX-A:  b \r\n\r\nok")
    assert (parser.status, parser.reason, parser.http_version) == (201, b"Created", "1.1")
    assert parser.headers == [(b"Content-Length", b"content-length", b"2"), (b"X-A", b"x-a", b"b")]
    assert parser.chunks == [b"ok"]
    assert parser.complete
    assert parser.reusable


def test_one_parser_serves_one_response_after_the_other() -> None:
    parser = new_parser()
    for body in (b"one", b"two"):
        parser.begin(head_only=False)
        parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)
        assert parser.chunks == [body]
        assert parser.reusable


def test_the_chunks_belong_to_whoever_took_them() -> None:
    parser = new_parser()
    taken = parser.chunks
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    parser.begin(head_only=False)
    assert taken == [b"ok"]
    assert parser.chunks == []


@pytest.mark.parametrize(
    "surplus", [b"\r\n", b"\n", b"\r", b" ", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
)
@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_surplus_bytes_make_a_connection_unusable(response: bytes, surplus: bytes) -> None:
    """In one piece, and in two wherever the cut is before the end of the response."""
    for cut in range(len(response)):
        parser = new_parser()
        for piece in (response[:cut], response[cut:] + surplus):
            if piece:
                parser.feed(piece)
        assert parser.complete
        assert not parser.reusable
        parser = new_parser()
        for piece in (response[:cut], response[cut:]):
            if piece:
                parser.feed(piece)
        assert parser.reusable


def test_the_answer_to_head_has_no_body_whatever_its_head_says() -> None:
    for framing in (b"Content-Length: 1000", b"Transfer-Encoding: chunked", b"X-Nothing: 1"):
        parser = new_parser(head_only=True)
        parser.feed(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        assert parser.complete
        assert parser.reusable
        parser.begin(head_only=False)
        parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert parser.chunks == [b"ok"]


def test_a_body_behind_the_answer_to_head_is_surplus() -> None:
    parser = new_parser(head_only=True)
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert parser.complete
    assert not parser.reusable


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", False),
    ],
)
def test_keeps_alive_what_both_sides_agree_on(head: bytes, reusable: bool) -> None:
    parser = new_parser()
    parser.feed(head)
    assert parser.complete
    assert parser.reusable is reusable


def test_the_end_of_the_stream_ends_a_body_without_framing() -> None:
    parser = new_parser()
    parser.feed(b"HTTP/1.1 200 OK\r\n\r\nuntil ")
    parser.feed(b"the end")
    assert not parser.complete
    parser.end()
    assert parser.complete
    assert not parser.reusable
    assert b"".join(parser.chunks) == b"until the end"


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "without sending a response"),
        (b"HTTP/1.1 200 OK\r\nX: ", "in the middle of the response's head"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "without sending a response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", r"\(2 bytes received\)"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", r"\(2 bytes received\)"),
    ],
)
def test_the_end_of_the_stream_anywhere_else_is_an_error(stream: bytes, message: str) -> None:
    parser = new_parser()
    if stream:
        parser.feed(stream)
    with pytest.raises(httpx.RemoteProtocolError, match=message):
        parser.end()


def test_interim_responses_are_passed_over() -> None:
    parser = new_parser()
    parser.feed(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" * 3)
    assert not parser.head_complete
    parser.feed(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n")
    assert parser.status == 204
    assert parser.headers == [(b"X", b"x", b"y")]


def test_trailers_are_dropped() -> None:
    parser = new_parser()
    parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nSet-Cookie: a=b\r\n\r\n")
    assert parser.headers == [(b"Transfer-Encoding", b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("size", [1, 7, 500, 100_000])
@pytest.mark.parametrize(
    "endless",
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 ", b"y"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=", b"y"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"y"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"),
    ],
)
def test_what_is_no_body_is_bounded(endless: tuple[bytes, bytes], size: int) -> None:
    start, more = endless
    parser = new_parser()
    if start:
        parser.feed(start)
    stream = more * (200_000 // len(more))

    def feed_all() -> None:
        for at in range(0, len(stream), size):
            parser.feed(stream[at : at + size])

    with pytest.raises(httpx.RemoteProtocolError, match=r"larger than 1000|more than (1000|3)"):
        feed_all()


def test_a_head_of_exactly_the_limit_is_taken() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: %b\r\n\r\n"
    for extra, taken in ((0, True), (1, False)):
        parser = new_parser()
        stream = head % (b"y" * (1000 - len(head) + 2 + extra))
        if taken:
            parser.feed(stream)
            assert parser.complete
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                parser.feed(stream)


def test_a_large_body_is_not_taken_for_framing() -> None:
    parser = new_parser()
    parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(5000):
        parser.feed(b"1\r\n.\r\n")
    parser.feed(b"0\r\n\r\n")
    assert parser.reusable
    assert parser.body_bytes == 5000


@pytest.mark.parametrize("stream", [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"])
def test_an_upgrade_that_nobody_asked_for_is_an_error(stream: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="101"):
        new_parser().feed(stream)


# -- large bodies, which are counted

LARGE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize("surplus", [0, 1, 5])
def test_the_rest_of_a_large_body_is_counted_up_to_its_end(surplus: int) -> None:
    parser = new_parser()
    parser.feed(LARGE_HEAD + bytes(100))
    assert parser.uncounted == 99_900
    assert parser.count(99_000) == 99_000
    assert parser.uncounted == 900
    assert not parser.complete
    assert parser.count(900 + surplus) == 900
    assert parser.complete
    assert parser.body_bytes == 100_000
    assert parser.uncounted == 0
    assert parser.reusable is (surplus == 0)


def test_a_response_behind_a_counted_body_is_parsed() -> None:
    parser = new_parser()
    for _ in range(2):
        parser.begin(head_only=False)
        parser.feed(LARGE_HEAD)
        parser.count(100_000)
        parser.begin(head_only=False)
        assert parser.uncounted == 0
        parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert parser.chunks == [b"ok"]
        assert parser.reusable


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n",
    ],
)
def test_a_counted_body_keeps_no_connection_that_is_to_be_closed(head: bytes) -> None:
    parser = new_parser()
    parser.feed(head)
    parser.count(100_000)
    assert parser.complete
    assert not parser.reusable


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        LARGE_HEAD[:-2],
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n",
    ],
)
def test_nothing_but_a_large_body_of_known_length_is_counted(stream: bytes) -> None:
    parser = new_parser()
    if stream:
        parser.feed(stream)
    assert parser.uncounted == 0


def test_the_end_of_the_stream_within_a_counted_body_is_an_error() -> None:
    parser = new_parser()
    parser.feed(LARGE_HEAD)
    parser.count(70_000)
    with pytest.raises(httpx.RemoteProtocolError, match=r"\(70000 bytes received\)"):
        parser.end()
