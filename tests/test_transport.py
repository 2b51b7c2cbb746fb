"""The network under a client: pooling, limits in time, TLS, proxies, and bytes that nobody asked for."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from fastapi import HTTPException

from fastapi_http_client import transport
from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import (
    ConfigurationError,
    HTTPRequestError,
    HTTPTimeoutError,
    RetryExhaustedError,
)
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.policies.circuit_breaker import CircuitState
from tests.faults import NOISE, nothing_left
from tests.hostile.certs import make_certs
from tests.hostile.upstream import HostileUpstream, running


@pytest.fixture(scope="module")
def tls_upstream() -> Iterator[HostileUpstream]:
    with running(tls=True) as server:
        yield server


pytestmark = pytest.mark.usefixtures("engine")


def a_client(upstream: HostileUpstream, **fields: Any) -> AsyncHTTPClient:
    return AsyncHTTPClient(upstream.url(), config=ClientConfig(**{"retry_attempts": 1, **fields}))


# -- limits in time


@pytest.mark.parametrize(
    ("path", "phases"),
    [
        ("/hang", {"read", "attempt"}),
        ("/hang-headers", {"read", "attempt"}),
        ("/hang-mid-body", {"read", "attempt"}),
        ("/drip?interval=0.02", {"attempt"}),
        ("/drip-headers?interval=0.02", {"attempt"}),
        ("/interim?n=-1&interval=0.05", {"attempt"}),
        ("/infinite?rate=10000", {"attempt"}),
        ("/stream?n=1000&interval=0.01", {"attempt"}),
    ],
)
async def test_an_attempt_is_limited_by_the_wall_clock(upstream: HostileUpstream, path: str, phases: set[str]) -> None:
    async with nothing_left(upstream), a_client(upstream, timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(HTTPTimeoutError, match=r"GET .* within 0\.2 s") as caught:
            await client.get(path)
        assert 0.19 < time.monotonic() - started < 0.3 + NOISE
        assert caught.value.phase in phases
        assert isinstance(caught.value, httpx.TimeoutException)


async def test_interim_responses_without_end_are_ended(upstream: HostileUpstream, engine: str) -> None:
    async with nothing_left(upstream), a_client(upstream, timeout=0.2) as client:
        started = time.monotonic()
        with pytest.raises(HTTPRequestError, match=r"within 0\.2 s" if engine == "httpcore" else "interim responses"):
            await client.get("/interim?n=-1")
        assert time.monotonic() - started < 0.3 + NOISE


@pytest.mark.parametrize("path", ["/hang", "/hang-headers", "/drip-headers?interval=0.02"])
async def test_the_head_of_a_stream_is_limited_too(upstream: HostileUpstream, path: str) -> None:
    async with a_client(upstream, timeout=0.1) as client:
        started = time.monotonic()
        with pytest.raises(HTTPTimeoutError):
            async with client.stream("GET", path):
                pass
        assert time.monotonic() - started < 0.2 + NOISE


async def test_the_body_of_a_stream_may_take_longer_than_an_attempt(upstream: HostileUpstream) -> None:
    async with (
        a_client(upstream, timeout=0.1) as client,
        client.stream("GET", "/stream?n=6&interval=0.04") as response,
    ):
        assert len([line async for line in response.aiter_lines()]) == 6


async def test_a_stream_that_falls_silent_is_ended(upstream: HostileUpstream) -> None:
    async with (
        a_client(upstream, timeout=0.1) as client,
        client.stream("GET", "/stream?n=6&interval=0&fail_after=2&then=hang") as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        await anext(lines)
        with pytest.raises(HTTPTimeoutError) as caught:
            await anext(lines)
        assert caught.value.phase == "read"


async def test_the_total_timeout_holds_for_a_streams_body(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream), a_client(upstream, timeout=5.0) as client:
        started = time.monotonic()
        async with client.stream("GET", "/drip?interval=0.02", total_timeout=0.2) as response:
            chunks = response.aiter_bytes()
            await anext(chunks)
            await anext(chunks)
            with pytest.raises(HTTPTimeoutError) as caught:
                [_ async for _ in chunks]
        assert caught.value.phase == "total"
        assert time.monotonic() - started < 0.3 + NOISE


async def test_the_total_timeout_is_for_all_attempts_and_waits(upstream: HostileUpstream) -> None:
    async with a_client(upstream, timeout=0.1, retry_attempts=10, retry_backoff_factor=0.01, retry_jitter=0) as client:
        started = time.monotonic()
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.get("/hang?key=k", total_timeout=0.35)
        assert 0.25 < time.monotonic() - started < 0.45 + NOISE
        assert caught.value.attempts
    assert 2 <= upstream.key("k")["count"] <= 4


async def test_the_timeout_of_a_call_bounds_its_attempt(upstream: HostileUpstream) -> None:
    async with a_client(upstream, timeout=10.0) as client:
        started = time.monotonic()
        with pytest.raises(HTTPTimeoutError):
            await client.get("/drip", timeout=0.1)
        with pytest.raises(HTTPTimeoutError):
            await client.get("/drip", timeout=httpx.Timeout(0.1))
        assert time.monotonic() - started < 0.3 + NOISE


async def test_no_timeout_is_no_limit(upstream: HostileUpstream) -> None:
    async with a_client(upstream, timeout=0.05) as client:
        assert (await client.get("/slow?delay=0.15", timeout=None)).status_code == 200


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="a full backlog is dropped on Linux only")
@pytest.mark.parametrize("listener", ["blackhole", "accept_hang"])
async def test_connecting_has_a_limit_of_its_own(upstream: HostileUpstream, listener: str) -> None:
    scheme = "http" if listener == "blackhole" else "https"
    url = f"{scheme}://{upstream.host}:{upstream.ports[listener]}/"
    async with AsyncHTTPClient(config=ClientConfig(connect_timeout=0.1, timeout=10.0, retry_attempts=1)) as client:
        started = time.monotonic()
        with pytest.raises(HTTPTimeoutError, match=r"could not connect within 0\.1 s") as caught:
            await client.get(url)
        assert time.monotonic() - started < 0.2 + NOISE
        assert caught.value.phase == "connect"
        assert not caught.value.may_have_run


async def test_a_slow_resolver_is_ended_by_the_limit_for_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never, raising=False)
    config = ClientConfig(connect_timeout=0.1, timeout=10.0, retry_attempts=1)
    async with nothing_left(), AsyncHTTPClient("http://slow.test", config=config) as client:
        started = time.monotonic()
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.post("/", content=b"x")
        assert time.monotonic() - started < 0.2 + NOISE
        assert caught.value.phase == "connect"
        assert not caught.value.may_have_run


async def test_a_body_without_a_length_ends_with_the_connection(upstream: HostileUpstream) -> None:
    """That it may be cut off cannot be told from that it is whole: no header says how long it is."""
    async with nothing_left(upstream), a_client(upstream) as client:
        response = await client.get("/no-length")
        assert response.content
        assert not {"content-length", "transfer-encoding"} & response.headers.keys()
        with pytest.raises(HTTPRequestError, match="ReadError"):
            await client.get("/no-length?reset=1")


@pytest.mark.parametrize("total_timeout", [None, 0.25], ids=["attempt", "total"])
async def test_a_limit_that_strikes_while_connecting_says_that_nothing_was_sent(
    upstream: HostileUpstream, total_timeout: float | None
) -> None:
    """The wait for a place in the pool has used up a part of the attempt's time, and the TLS handshake stalls."""
    url = f"https://{upstream.host}:{upstream.ports['accept_hang']}/"
    config = ClientConfig(max_connections=1, timeout=0.3, retry_attempts=1)
    async with nothing_left(upstream), AsyncHTTPClient(config=config) as client:
        first = asyncio.ensure_future(client.get(upstream.url("/slow?delay=0.15")))
        await asyncio.sleep(0.02)
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.post(url, content=b"x", total_timeout=total_timeout)
        assert caught.value.phase == ("connect" if total_timeout is None else "total")
        assert not caught.value.may_have_run
        await first


async def test_a_post_that_was_never_sent_is_tried_again(upstream: HostileUpstream) -> None:
    url = f"https://{upstream.host}:{upstream.ports['accept_hang']}/"
    config = ClientConfig(timeout=0.1, retry_attempts=3, retry_backoff_factor=0.001)
    async with nothing_left(upstream), AsyncHTTPClient(config=config) as client:
        with pytest.raises(RetryExhaustedError) as caught:
            await client.post(url, content=b"x")
        assert len(caught.value.attempts) == 3


async def test_connecting_is_repeated_whatever_the_method(upstream: HostileUpstream) -> None:
    url = f"http://{upstream.host}:{upstream.ports['refused']}/"
    async with AsyncHTTPClient(config=ClientConfig(retry_backoff_factor=0.001)) as client:
        with pytest.raises(RetryExhaustedError) as caught:
            await client.post(url, content=b"x")
        assert len(caught.value.attempts) == 3


async def test_waiting_for_the_pool_has_the_attempts_limit(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream), a_client(upstream, max_connections=1, timeout=5.0) as client:
        first = asyncio.ensure_future(client.get("/slow?delay=0.3"))
        await asyncio.sleep(0.05)
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.get("/ok", timeout=0.1)
        assert caught.value.phase == "pool"
        assert not caught.value.may_have_run
        assert (await client.get("/ok")).status_code == 200
        await first


async def test_an_upload_that_nobody_reads_is_ended(upstream: HostileUpstream) -> None:
    async with a_client(upstream, timeout=0.2) as client:
        with pytest.raises(HTTPTimeoutError) as caught:
            await client.post("/no-read?seconds=1", content=bytes(16 * 1024 * 1024))
        assert caught.value.phase in ("write", "attempt")


# -- the pool


async def test_connections_are_reused_and_bounded(upstream: HostileUpstream) -> None:
    async with a_client(upstream, max_connections=5) as client:
        for _ in range(5):
            await asyncio.gather(*(client.get("/slow?delay=0.01") for _ in range(20)))
    assert upstream.stats()["connections"]["total"] <= 5


async def test_a_connection_is_free_when_its_response_has_arrived_though_nobody_has_read_it(
    upstream: HostileUpstream, engine: str
) -> None:
    timeout = 0.1 if engine == "httpcore" else 5.0
    async with (
        a_client(upstream, max_connections=1, timeout=timeout) as client,
        client.stream("GET", "/ok") as response,
    ):
        if engine == "httpcore":
            with pytest.raises(HTTPTimeoutError) as caught:
                await client.get("/ok")
            assert caught.value.phase == "pool"
        else:
            assert (await client.get("/ok")).status_code == 200
        assert await response.aread()


async def test_surplus_idle_connections_are_closed(upstream: HostileUpstream) -> None:
    async with a_client(upstream, max_connections=10, max_keepalive_connections=2) as client:
        await asyncio.gather(*(client.get("/slow?delay=0.05") for _ in range(10)))
        async with asyncio.timeout(3):
            while upstream.open_connections() > 2:
                await asyncio.sleep(0.01)


async def test_a_connection_ends_at_its_age(upstream: HostileUpstream) -> None:
    async with a_client(upstream, max_connection_age=0.05) as client:
        seen = set()
        for _ in range(3):
            seen.add((await client.get("/echo")).json_data["conn"])
            await asyncio.sleep(0.06)
        assert len(seen) == 3
        first, second = [(await client.get("/echo")).json_data["conn"] for _ in range(2)]
        assert first == second


async def test_an_idle_connection_expires(upstream: HostileUpstream) -> None:
    async with a_client(upstream, keepalive_expiry=0.05) as client:
        first = (await client.get("/echo")).json_data["conn"]
        await asyncio.sleep(0.1)
        assert (await client.get("/echo")).json_data["conn"] != first


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_connections_that_the_upstream_has_dropped_are_not_used(upstream: HostileUpstream, how: str) -> None:
    async with nothing_left(upstream), a_client(upstream) as client:
        for _ in range(5):
            await asyncio.gather(*(client.get("/ok") for _ in range(10)))
            upstream.drop_connections(how=how)
            await asyncio.sleep(0.02)
        await asyncio.gather(*(client.get("/ok") for _ in range(10)))


# -- bytes that nobody asked for


@pytest.mark.parametrize("listener", ["main", "tls"])
@pytest.mark.parametrize("path", ["/desync", "/length-short", "/body-on/204", "/body-on/304", "/body-on/head"])
async def test_what_comes_behind_a_response_never_answers_the_next_call(
    tls_upstream: HostileUpstream, path: str, listener: str
) -> None:
    context = ssl.create_default_context(cafile=tls_upstream.certs["ca.pem"])
    config = ClientConfig(retry_attempts=1)
    async with AsyncHTTPClient(tls_upstream.url("", listener), config=config, verify=context) as client:
        for _ in range(5):
            await client.request("HEAD" if path.endswith("head") else "GET", path)
            assert (await client.get("/echo/mine")).json_data["path"] == "/echo/mine"


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"


@pytest.mark.parametrize("listener", ["main", "tls"])
@pytest.mark.parametrize("size", [0, 10, 16_384 - 38, 65_536 - 43, 65_536, 131_072 - 44, 262_144, 1_000_000])
@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
async def test_a_second_response_never_answers_the_next_call_wherever_it_was_cut(
    tls_upstream: HostileUpstream, size: int, listener: str, streamed: bool
) -> None:
    content = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b%b" % (size, b"x" * size, POISON)
    context = ssl.create_default_context(cafile=tls_upstream.certs["ca.pem"])
    config = ClientConfig(retry_attempts=1)
    async with AsyncHTTPClient(tls_upstream.url("", listener), config=config, verify=context) as client:
        async with client.stream("POST", "/raw?then=keep", content=content) as response:
            body = b"".join([chunk async for chunk in response.aiter_raw()]) if streamed else await response.aread()
        assert len(body) == size
        assert (await client.get("/echo/mine")).json_data["path"] == "/echo/mine"


async def test_surplus_that_comes_late_closes_the_connection(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as client:
        await client.get("/desync?wait=0.01")
        await asyncio.sleep(0.05)
        assert (await client.get("/echo/mine")).json_data["path"] == "/echo/mine"


# -- errors


@pytest.mark.parametrize(
    ("error", "ours", "may_have_run"),
    [
        (httpx.ConnectError("x"), HTTPRequestError, False),
        (httpx.ConnectTimeout("x"), HTTPTimeoutError, False),
        (httpx.PoolTimeout("x"), HTTPTimeoutError, False),
        (httpx.ProxyError("x"), HTTPRequestError, False),
        (httpx.ReadError("x"), HTTPRequestError, True),
        (httpx.WriteError("x"), HTTPRequestError, True),
        (httpx.ReadTimeout("x"), HTTPTimeoutError, True),
        (httpx.WriteTimeout("x"), HTTPTimeoutError, True),
        (httpx.CloseError("x"), HTTPRequestError, True),
        (httpx.RemoteProtocolError("x"), HTTPRequestError, True),
        (httpx.LocalProtocolError("x"), HTTPRequestError, False),
        (httpx.UnsupportedProtocol("x"), HTTPRequestError, False),
        (TimeoutError("x"), HTTPRequestError, True),
        (ConnectionResetError("x"), HTTPRequestError, True),
        (ValueError("x"), HTTPRequestError, True),
        (AssertionError("x"), HTTPRequestError, True),
        (ExceptionGroup("x", [OSError()]), HTTPRequestError, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_whatever_a_transport_raises_becomes_ours(
    error: Exception, ours: type[HTTPRequestError], may_have_run: bool
) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    config = ClientConfig(retry_attempts=1)
    async with AsyncHTTPClient("https://api.example.com", config=config, transport=httpx.MockTransport(fail)) as client:
        with pytest.raises(ours) as caught:
            await client.get("/")
    assert caught.value.__cause__ is error
    assert caught.value.may_have_run is may_have_run
    assert str(caught.value).startswith("GET https://api.example.com/")
    assert type(error).__name__ in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
async def test_what_is_no_error_is_left_alone(error: type[BaseException]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    async with AsyncHTTPClient("https://api.example.com", transport=httpx.MockTransport(fail)) as client:
        call = client.get("/")
        with pytest.raises(error):
            call.send(None)


async def read_by(client: AsyncHTTPClient, path: str, read: str) -> None:
    async with client.stream("GET", path) as response:
        if read == "aread":
            await response.aread()
        else:
            async for _ in getattr(response, read)():
                pass


@pytest.mark.parametrize("path", ["/reset-mid-body", "/close-mid-body", "/no-length?reset=1", "/chunked-bad/size"])
async def test_errors_in_the_middle_of_a_stream_are_ours(upstream: HostileUpstream, path: str) -> None:
    async with nothing_left(upstream), a_client(upstream) as client:
        for read in ("aiter_bytes", "aiter_raw", "aiter_text", "aiter_lines"):
            with pytest.raises(HTTPRequestError, match=f"GET {upstream.url(path.split('?', 1)[0])}"):
                await read_by(client, path, read)
        with pytest.raises(HTTPRequestError):
            await read_by(client, path, "aread")


# -- TLS


async def test_an_unknown_authority_is_refused(tls_upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(tls_upstream.url("", "tls"), config=ClientConfig(retry_attempts=1)) as client:
        with pytest.raises(HTTPRequestError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get("/ok")


async def test_a_ca_file_makes_its_authority_known(tls_upstream: HostileUpstream) -> None:
    config = ClientConfig(ca_file=tls_upstream.certs["ca.pem"])
    async with AsyncHTTPClient(tls_upstream.url("", "tls"), config=config) as client:
        assert (await client.get("/ok")).status_code == 200


async def test_an_authority_of_the_environment_counts_only_when_it_is_trusted(
    tls_upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_upstream.certs["ca.pem"]))
    for trust_env in (False, True):
        transport._shared_ssl_context.cache_clear()
        config = ClientConfig(retry_attempts=1, trust_env=trust_env)
        async with AsyncHTTPClient(tls_upstream.url("", "tls"), config=config) as client:
            if trust_env:
                assert (await client.get("/ok")).status_code == 200
            else:
                with pytest.raises(HTTPRequestError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get("/ok")
    transport._shared_ssl_context.cache_clear()


async def test_verification_can_be_switched_off(tls_upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(tls_upstream.url("", "tls"), verify=False) as client:
        assert client.config.verify_ssl is False
        assert (await client.get("/ok")).status_code == 200


async def test_a_client_certificate_is_presented() -> None:
    with running(tls=True, require_client=True) as up:
        certs = up.certs
        config = ClientConfig(
            ca_file=certs["ca.pem"], client_cert=certs["client.pem"], client_key=certs["client.key"], retry_attempts=1
        )
        async with AsyncHTTPClient(up.url("", "tls"), config=config) as client:
            assert (await client.get("/ok")).status_code == 200
        async with AsyncHTTPClient(
            up.url("", "tls"), config=ClientConfig(ca_file=certs["ca.pem"], retry_attempts=1)
        ) as stranger:
            with pytest.raises(HTTPRequestError):
                await stranger.get("/ok")


def write_client_files(files: dict[str, str], folder: Path) -> tuple[Path, Path]:
    """The client's key behind the password "pass", and its certificate and key in one file."""
    certificate, key = (Path(files[name]).read_bytes() for name in ("client.pem", "client.key"))
    locked, both = folder / "locked.key", folder / "both.pem"
    lock = serialization.BestAvailableEncryption(b"pass")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked.write_bytes(serialization.load_pem_private_key(key, None).private_bytes(*form, lock))
    both.write_bytes(certificate + key)
    return locked, both


async def test_a_certificate_given_to_the_client_goes_with_the_authorities_of_its_config(tmp_path: Path) -> None:
    with running(tls=True, require_client=True) as up:
        files = up.certs
        locked, both = write_client_files(files, tmp_path)
        ca = {"ca_file": files["ca.pem"]}
        for cert, config, options in (
            ((files["client.pem"], files["client.key"]), ca, {}),
            ((files["client.pem"], files["client.key"]), {}, {"verify": files["ca.pem"]}),
            ((files["client.pem"], str(locked), "pass"), ca, {}),
            (str(both), {"verify_ssl": False}, {}),
            (None, {"client_cert": str(both)}, {"verify": files["ca.pem"]}),
        ):
            client = AsyncHTTPClient(up.url("", "tls"), config=ClientConfig(**config), cert=cert, **options)
            async with client:
                assert (await client.get("/ok")).status_code == 200
        with pytest.raises(ConfigurationError, match=r"AsyncHTTPClient: cert: .* cannot be used"):
            AsyncHTTPClient(cert=(files["client.pem"], str(locked), "wrong"))
        with pytest.raises(ConfigurationError, match=r"verify: is an SSLContext, .* and ca_file is set too"):
            AsyncHTTPClient(config=ClientConfig(**ca), verify=ssl.create_default_context())


async def test_a_certificate_for_another_host_is_refused() -> None:
    with running(tls=True, tls_name="wronghost") as up:
        config = ClientConfig(ca_file=up.certs["ca.pem"], retry_attempts=1)
        async with AsyncHTTPClient(up.url("", "tls"), config=config) as client:
            with pytest.raises(HTTPRequestError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get("/ok")


def test_one_tls_context_is_made_for_the_same_options() -> None:
    first, second = (AsyncHTTPClient(f"https://{name}.example.com") for name in ("one", "two"))
    third = AsyncHTTPClient("https://three.example.com", config=ClientConfig(verify_ssl=False))
    assert transport.ssl_context_for(first.config) is transport.ssl_context_for(second.config)
    assert transport.ssl_context_for(first.config) is not transport.ssl_context_for(third.config)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("ca_file", {"ca_file": "missing.pem"}),
        ("client_cert", {"client_cert": "missing.pem"}),
        ("client_key", {"client_cert": "CERT", "client_key": "missing.pem"}),
        ("client_key", {"client_cert": "CERT", "client_key": "CERT"}),
        ("ca_file", {"ca_file": "GARBAGE"}),
        ("client_cert", {"client_cert": "GARBAGE"}),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, field: str, fields: dict[str, str]) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate at all")
    certs = make_certs(tmp_path)
    places = {"CERT": certs["client.pem"], "GARBAGE": str(garbage)}
    config = ClientConfig(**{name: places.get(value, value) for name, value in fields.items()})
    with pytest.raises(ConfigurationError, match=field) as caught:
        AsyncHTTPClient("https://api.example.com", config=config)
    assert [problem.argument for problem in caught.value.problems] == [field]


# -- proxies


async def test_a_proxy_is_told_what_it_has_to_know(upstream: HostileUpstream) -> None:
    proxy = f"http://user:{quote('p@ss')}@{upstream.host}:{upstream.ports['other']}"
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(proxy=proxy)) as client:
        reply = (await client.get("/echo/x")).json_data
    assert reply["proxy_form"]
    assert reply["listener"] == "other"
    assert reply["headers_dict"]["proxy-authorization"] == "Basic dXNlcjpwQHNz"


async def test_a_proxy_of_the_environment_counts_only_when_it_is_trusted(
    upstream: HostileUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", upstream.url("", "other"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    for trusted in (False, True):
        async with AsyncHTTPClient(upstream.url(), config=ClientConfig(trust_env=trusted)) as client:
            assert (await client.get("/echo/x")).json_data["proxy_form"] is trusted


async def test_a_proxy_that_refuses_the_tunnel_is_an_error_of_ours(upstream: HostileUpstream) -> None:
    config = ClientConfig(proxy=upstream.url("", "other"), retry_attempts=1)
    async with nothing_left(upstream), AsyncHTTPClient("https://api.example.com", config=config) as client:
        with pytest.raises(HTTPRequestError, match="502"):
            await client.get("/")


async def test_a_proxy_object_takes_its_credential_along(upstream: HostileUpstream) -> None:
    proxy = httpx.Proxy(upstream.url("", "other"), auth=("user", "p@ss"))
    async with AsyncHTTPClient("http://up.example", proxy=proxy, config=ClientConfig(retry_attempts=1)) as client:
        assert client.config.proxy == upstream.url("", "other").replace("//", "//user:p%40ss@")


def test_a_proxy_of_the_environment_is_not_passed_over_by_an_engine_that_knows_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    with pytest.raises(ConfigurationError, match="engine: 'asyncio' knows no proxies, and the environment names one"):
        AsyncHTTPClient("http://up.example", config=ClientConfig(engine="asyncio", trust_env=True))
    AsyncHTTPClient("http://up.example", config=ClientConfig(engine="asyncio"))


# -- what is not the upstream's doing


def guarded(upstream: HostileUpstream, **fields: Any) -> AsyncHTTPClient:
    return a_client(upstream, enable_circuit_breaker=True, circuit_breaker_failure_threshold=1, **fields)


async def test_a_body_that_comes_slowly_is_no_failure_of_the_upstream(upstream: HostileUpstream) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(5)

    async with guarded(upstream, timeout=0.05) as client:
        with pytest.raises(HTTPTimeoutError, match=r"its own body was not complete within 0\.05 s"):
            await client.put("/echo", content=slow())
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
        with pytest.raises(HTTPTimeoutError):
            await client.get("/hang")
        assert client.circuit_breaker.state is CircuitState.OPEN


@pytest.mark.parametrize("error", [OSError("disk"), TimeoutError("own"), HTTPException(413)])
async def test_what_a_body_raises_is_passed_on_and_no_failure_of_the_upstream(
    upstream: HostileUpstream, error: Exception
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise error from LookupError("why")

    async with guarded(upstream) as client:
        with pytest.raises(type(error)) as caught:
            await client.put("/echo", content=failing())
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
        assert (await client.get("/ok")).status_code == 200
    assert caught.value is error
    assert isinstance(error.__cause__, LookupError)
    assert error.__context__ is None


async def test_a_body_that_fails_with_another_calls_error_is_no_failure_of_the_upstream(
    upstream: HostileUpstream,
) -> None:
    error = httpx.ReadError("another's")

    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise error

    async with guarded(upstream) as client:
        with pytest.raises(HTTPRequestError, match="the request's body failed") as caught:
            await client.put("/echo", content=failing())
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
    assert caught.value.__cause__ is error
    assert not caught.value.transient


async def test_the_error_of_another_clients_stream_stays_that_clients(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as source, guarded(upstream) as client:
        with pytest.raises(HTTPRequestError) as caught:
            async with source.stream("GET", "/reset-mid-body") as response:
                await client.put("/echo", content=response.aiter_bytes())
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
    assert caught.value.request.url.path == "/echo"
    cause = caught.value.__cause__
    assert isinstance(cause, HTTPRequestError)
    assert cause.request.url.path == "/reset-mid-body"


@pytest.mark.parametrize("middlewares", [[], [Middleware()]])
async def test_waiting_for_our_own_full_pool_is_no_failure_of_the_upstream(
    upstream: HostileUpstream, middlewares: list[Middleware]
) -> None:
    config = ClientConfig(
        timeout=0.4, max_connections=1, retry_attempts=1,
        enable_circuit_breaker=True, circuit_breaker_failure_threshold=1,
    )  # fmt: skip
    async with AsyncHTTPClient(upstream.url(), config=config, middlewares=middlewares) as client:
        calls = (client.get("/slow?delay=0.25") for _ in range(4))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
    phases = [result.phase if isinstance(result, HTTPTimeoutError) else "" for result in results]
    assert phases.count("") >= 1
    assert set(phases) <= {"", "attempt", "pool"}


async def test_a_slow_request_hook_is_no_failure_of_the_upstream(upstream: HostileUpstream) -> None:
    async def hook(request: httpx.Request) -> None:
        await asyncio.sleep(5)

    async with guarded(upstream, timeout=0.05) as client:
        client.event_hooks["request"].append(hook)
        with pytest.raises(HTTPTimeoutError, match=r"not sent within 0\.05 s") as caught:
            await client.post("/ok")
        assert client.circuit_breaker is not None
        assert client.circuit_breaker.state is CircuitState.CLOSED
    assert not caught.value.may_have_run


@pytest.mark.parametrize(
    ("config", "argument"), [({"http2": True}, "http2"), ({"proxy": "socks5://127.0.0.1:1"}, "proxy")]
)
def test_a_client_that_lacks_an_extra_is_refused_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], argument: str
) -> None:
    monkeypatch.setattr(transport, "_is_installed", lambda module: False)
    with pytest.raises(ConfigurationError, match=rf"AsyncHTTPClient: {argument}: .*pip install fastapi-http-client\["):
        AsyncHTTPClient("http://api.test", config=ClientConfig(**config))
