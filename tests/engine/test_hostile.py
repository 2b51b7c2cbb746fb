"""Against the hostile upstream: whatever it does, a call ends in time, in a response or in an httpx error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import httpx
import pytest

from fastapi_http_client.engine.transport import AsyncioTransport
from tests.engine.conftest import MakeClient
from tests.hostile.tables import BAD_CHUNKS, BAD_HEADS
from tests.hostile.upstream import HostileUpstream

TransportOf = Callable[[httpx.AsyncClient], AsyncioTransport]

# RFC 9112 lets a client take these; everything else of the tables is refused.
ACCEPTED_HEADS = {
    "high-bytes",
    "te-http10",
    "connection-weird",
    *("content-type-bad", "charset-bad", "charset-idna", "charset-rot13", "charset-zlib"),
    *("link-bad", "date-bad", "set-cookie-bad"),
}
# Valid, but large: refused or not as the network splits them.
LARGE_FRAMING = {"extension", "trailers"}


async def fetch(client: httpx.AsyncClient, transport: AsyncioTransport, url: str) -> httpx.Response:
    async with asyncio.timeout(3):
        return await transport.fetch(httpx.Request("GET", url, extensions={"timeout": client.timeout.as_dict()}))


@pytest.mark.parametrize("name", sorted(BAD_HEADS))
async def test_malformed_heads(
    make_client: MakeClient, transport_of: TransportOf, upstream: HostileUpstream, name: str
) -> None:
    client = make_client(timeout=0.5)
    url = upstream.url(f"/bad-head/{name}")
    if name in ACCEPTED_HEADS:
        assert (await fetch(client, transport_of(client), url)).status_code == 200
    else:
        with pytest.raises(httpx.RemoteProtocolError, match=r"\w"):
            await fetch(client, transport_of(client), url)


@pytest.mark.parametrize("name", sorted(BAD_CHUNKS))
async def test_malformed_chunks(
    make_client: MakeClient, transport_of: TransportOf, upstream: HostileUpstream, name: str
) -> None:
    client = make_client(timeout=0.5)
    url = upstream.url(f"/chunked-bad/{name}")
    if name in LARGE_FRAMING:
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert (await fetch(client, transport_of(client), url)).text == "hello"
    else:
        with pytest.raises(httpx.RemoteProtocolError, match=r"\w"):
            await fetch(client, transport_of(client), url)


@pytest.mark.parametrize("path", ["/fuzz?seed={}", "/chaos?seed=7&n={}"])
async def test_only_httpx_errors_escape(
    make_client: MakeClient, transport_of: TransportOf, upstream: HostileUpstream, path: str
) -> None:
    client = make_client(timeout=0.3)
    transport = transport_of(client)

    calls = (fetch(client, transport, upstream.url(path.format(n))) for n in range(150))
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        # A body that drips meets no timeout of httpx's: only the limit for the whole call ends it.
        assert isinstance(outcome, httpx.Response | httpx.HTTPError | TimeoutError), repr(outcome)
        assert isinstance(outcome, httpx.Response | TimeoutError) or str(outcome)
    assert (await fetch(client, transport, upstream.url("/ok"))).status_code == 200


@pytest.mark.parametrize("path", ["/desync", "/length-short", "/body-on/204", "/body-on/304"])
async def test_one_answer_never_becomes_anothers(
    make_client: MakeClient, transport_of: TransportOf, upstream: HostileUpstream, path: str
) -> None:
    client = make_client()
    for n in range(10):
        await fetch(client, transport_of(client), upstream.url(path))
        answer = await fetch(client, transport_of(client), upstream.url(f"/echo/mine-{n}"))
        assert answer.json()["target"] == f"/echo/mine-{n}"


async def test_connections_dropped_while_idle_cost_no_errors(
    make_client: MakeClient, transport_of: TransportOf, upstream: HostileUpstream
) -> None:
    client = make_client()
    await asyncio.gather(*(fetch(client, transport_of(client), upstream.url("/ok?delay=0.05")) for _ in range(50)))
    upstream.drop_connections()
    await asyncio.sleep(0.1)
    for _ in range(100):
        await fetch(client, transport_of(client), upstream.url("/ok"))


async def test_cancelled_calls_leave_no_connection(
    make_client: MakeClient, transport_of: TransportOf, upstream: HostileUpstream
) -> None:
    client = make_client(max_connections=20)
    transport = transport_of(client)
    paths = ["/slow?delay=1", "/drip", "/hang", "/hang-headers", "/hang-mid-body"]
    calls = [asyncio.create_task(fetch(client, transport, upstream.url(paths[n % 5]))) for n in range(200)]
    await asyncio.sleep(0.2)
    for call in calls:
        call.cancel()
    assert all(
        isinstance(outcome, asyncio.CancelledError) for outcome in await asyncio.gather(*calls, return_exceptions=True)
    )
    answers = await asyncio.gather(*(fetch(client, transport, upstream.url("/ok")) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}
