"""https: certificates, server names, and the same framing rules as without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from fastapi_http_client.engine.transport import AsyncioTransport
from tests.engine.conftest import MakeClient
from tests.engine.raw import OK, Reader, Writer, answer, close, hang, serve, until


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "named.example").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_connections_over_tls_are_used_again(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with serve(answer(OK), ssl_context=server_context) as up, make_client(ssl_context=client_context) as client:
        for _ in range(3):
            response = await client.get(up.url())
            assert response.text == "ok"
        assert up.accepted == 1
        assert response.extensions["network_stream"].get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_an_unknown_authority_is_a_connect_error_and_leaves_no_socket(
    make_client: MakeClient, server_context: ssl.SSLContext
) -> None:
    async with serve(answer(OK), ssl_context=server_context) as up, make_client() as client:
        with pytest.raises(httpx.ConnectError, match=r"TLS handshake with 127\.0\.0\.1:\d+ failed: .*CERTIFICATE"):
            await client.get(up.url())
        await up.all_closed()


async def test_the_server_name_can_be_given(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with serve(answer(OK), ssl_context=server_context) as up, make_client(ssl_context=client_context) as client:
        assert (await client.get(up.url(), extensions={"sni_hostname": "named.example"})).text == "ok"
        with pytest.raises(httpx.ConnectError, match=r"doesn't match|mismatch"):
            await client.get(up.url(), extensions={"sni_hostname": "other.example"})


async def test_plain_text_on_a_tls_port_is_a_connect_error(make_client: MakeClient) -> None:
    async def plain(reader: Reader, writer: Writer) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with serve(plain) as up, make_client() as client:
        with pytest.raises(httpx.ConnectError, match="TLS handshake"):
            await client.get(f"https://127.0.0.1:{up.port}/")
        await up.all_closed()


async def test_a_negotiated_protocol_other_than_http_1_is_a_connect_error(
    make_client: MakeClient, server_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    class Shared(ssl.SSLContext):
        """One on which another client sets its own protocols at the same moment."""

        def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
            super().set_alpn_protocols(["h2", "http/1.1"])

    server_context.set_alpn_protocols(["h2"])
    shared = Shared(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(shared)
    async with serve(answer(OK), ssl_context=server_context) as up, make_client(ssl_context=shared) as client:
        with pytest.raises(httpx.ConnectError, match="negotiated h2"):
            await client.get(up.url())
        await up.all_closed()


async def test_large_bodies_over_tls(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    body = os.urandom(2_000_000)
    message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serve(answer(message), ssl_context=server_context) as up:
        client = make_client(ssl_context=client_context)
        for _ in range(2):
            assert (await client.post(up.url(), content=body)).content == body
        assert up.accepted == 1


@pytest.mark.parametrize("surplus", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"])
async def test_large_bodies_that_are_fetched_whole_over_tls(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext, surplus: bytes
) -> None:
    body = os.urandom(2_000_000)
    message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body + surplus
    async with serve(answer(message), ssl_context=server_context) as up:
        client = make_client(ssl_context=client_context)
        transport = client._transport
        assert isinstance(transport, AsyncioTransport)
        for n in range(3):
            assert (await transport.fetch(client.build_request("GET", up.url()))).content == body
            assert up.accepted == (n + 1 if surplus else 1)


@pytest.mark.parametrize("room_left", [0, 1])
async def test_a_connection_is_not_used_again_when_tls_may_hold_more(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext, room_left: int
) -> None:
    """What was deciphered beyond a full buffer is read a turn later, and would answer whoever comes in between."""
    async with serve(hang, ssl_context=server_context) as up:
        client = make_client(ssl_context=client_context)
        transport = client._transport
        assert isinstance(transport, AsyncioTransport)
        call = asyncio.create_task(transport.fetch(client.build_request("GET", up.url())))
        await until(lambda: transport._pool and transport._pool._connections)
        assert transport._pool is not None
        (connection,) = transport._pool._connections
        await until(lambda: connection._exchange)
        buffer = connection.get_buffer(-1)
        size = len(buffer) - room_left
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %06d\r\n\r\n"
        body = size - len(head % 0)
        buffer[:size] = head % body + bytes(body)
        connection.buffer_updated(size)
        assert len((await call).content) == body
        assert connection.closed is (room_left == 0)


async def test_a_body_ended_by_the_end_of_the_connection(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    message = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
    async with serve(answer(message, then=close), ssl_context=server_context) as up:
        assert (await make_client(ssl_context=client_context).get(up.url())).text == "until the end"


REFUSES_UPLOADS = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    try:
        connection = context.wrap_socket(connection, server_side=True)
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            head += connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Too Large\\r\\nContent-Length: 3\\r\\n\\r\\nbig")
    except OSError:
        pass
    connection.close()  # with most of the upload unread, so that what is still written is answered with a reset
"""


@pytest.fixture
def refusing_url(authority: trustme.CA, tmp_path: Path) -> Iterator[str]:
    """A server in another process, which our own work does not hold up."""
    certificate = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    command = [sys.executable, "-c", REFUSES_UPLOADS, str(certificate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"https://127.0.0.1:{int(server.stdout.readline())}/"
        server.kill()


async def test_an_early_refusal_of_an_upload_can_be_read(
    refusing_url: str, client_context: ssl.SSLContext, make_client: MakeClient
) -> None:
    """Not always, for the reset may come while we write: nearly always on an idle machine, half the time on a busy one.

    Without looking before each piece it never is.
    """
    status = None
    async with make_client(ssl_context=client_context) as client:
        for _ in range(60):
            with contextlib.suppress(httpx.TransportError):
                status = (await client.put(refusing_url, content=bytes(3_000_000))).status_code
                break
    assert status == 413


async def test_a_context_with_which_others_offer_http2_still_speaks_http1(
    make_client: MakeClient, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server_context.set_alpn_protocols(["h2", "http/1.1"])
    client_context.set_alpn_protocols(["h2", "http/1.1"])  # as httpcore does with the context that it is given
    async with serve(answer(OK), ssl_context=server_context) as up, make_client(ssl_context=client_context) as client:
        assert (await client.get(up.url())).text == "ok"
