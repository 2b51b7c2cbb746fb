"""The life of a client: where it may be used, how it drains, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator
from typing import Any

import anyio.from_thread
import anyio.to_thread
import httpx
import pytest

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import AuthenticationError, HTTPClientError, HTTPRequestError, RetryExhaustedError
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.lifecycle import ClientStateError, Lifecycle, shielded
from fastapi_http_client.middleware import Middleware
from fastapi_http_client.models import HTTPRequest, HTTPResponse
from fastapi_http_client.oauth2 import OAuth2ClientCredentials
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from tests.faults import NOISE, nothing_left
from tests.hostile.upstream import HostileUpstream
from tests.scripted import Script, Stream, client_of


def offline(**options: Any) -> AsyncHTTPClient:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"ok": True}))
    return AsyncHTTPClient("https://api.example.com", transport=transport, name="api", **options)


# -- where and when it may be used


async def test_a_transport_is_entered_and_left_with_its_client() -> None:
    seen = []

    class Entered(httpx.MockTransport):
        async def __aenter__(self) -> Entered:
            seen.append("entered")
            return self

        async def __aexit__(self, *error: Any) -> None:
            seen.append("left")

    async with AsyncHTTPClient(transport=Entered(lambda _: httpx.Response(200))):
        assert seen == ["entered"]
    assert seen == ["entered", "left"]


async def test_a_client_works_without_a_context_manager(upstream: HostileUpstream) -> None:
    client = AsyncHTTPClient(upstream.url())
    assert not client.is_closed
    assert (await client.get("/ok")).status_code == 200
    await client.aclose()
    assert client.is_closed


async def test_a_closed_client_refuses_at_once() -> None:
    client = offline()
    await client.aclose()
    with pytest.raises(HTTPRequestError, match="api: the client is closed; nothing was sent") as caught:
        await client.get("/")
    assert isinstance(caught.value, RuntimeError)
    assert not caught.value.may_have_run
    with pytest.raises(RuntimeError, match="closed"):
        async with client.stream("GET", "/"):
            pass


async def test_a_closed_client_cannot_be_entered() -> None:
    client = offline()
    async with client:
        pass
    with pytest.raises(RuntimeError):
        await client.__aenter__()


async def test_closing_twice_does_nothing() -> None:
    class Counting(httpx.MockTransport):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    transport = Counting(lambda request: httpx.Response(200))
    client = AsyncHTTPClient("https://api.example.com", transport=transport)
    await client.aclose()
    await client.aclose()
    await asyncio.gather(client.aclose(), client.aclose())
    assert transport.closed == 1


async def test_mounted_transports_are_closed_too() -> None:
    closed = []

    class Mounted(httpx.MockTransport):
        async def aclose(self) -> None:
            closed.append(self)

    mounted, main = Mounted(lambda request: httpx.Response(200)), Mounted(lambda request: httpx.Response(200))
    async with AsyncHTTPClient(transport=main, mounts={"all://api.example.com": mounted}):
        pass
    assert closed == [main, mounted]


def test_another_event_loop_is_refused_at_once() -> None:
    client = offline()
    asyncio.run(_get(client))
    with pytest.raises(HTTPRequestError, match="api: this client belongs to another event loop") as caught:
        asyncio.run(_get(client))
    assert isinstance(caught.value, RuntimeError)
    asyncio.run(client.aclose())
    with pytest.raises(RuntimeError, match="api: the client is closed"):
        asyncio.run(_get(client))


async def test_a_client_belongs_to_the_loop_that_it_was_started_on_whoever_calls_first() -> None:
    async with offline() as client:
        with pytest.raises(ClientStateError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(_get(client)))
        assert (await _get(client)).status_code == 200


async def test_a_closed_client_names_the_request_that_it_refuses() -> None:
    client = offline()
    await client.aclose()
    with pytest.raises(ClientStateError) as caught:
        await _get(client)
    assert caught.value.client == "api"
    assert caught.value.request.method == "GET"


async def _get(client: AsyncHTTPClient) -> HTTPResponse:
    return await client.get("/")


async def test_a_client_of_a_running_loop_cannot_be_closed_from_another_thread() -> None:
    client = offline()
    await client.get("/")
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(client.aclose()))
    assert not client.is_closed
    await client.get("/")
    await client.aclose()


# -- draining


async def test_draining_refuses_new_calls_and_waits_for_those_in_flight(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream), AsyncHTTPClient(upstream.url(), name="api") as client:
        running = asyncio.ensure_future(client.get("/slow?delay=0.1"))
        await asyncio.sleep(0.03)
        draining = asyncio.ensure_future(client.drain(5.0))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="api: the client is shutting down"):
            await client.get("/ok")
        assert not draining.done()
        await draining
        assert running.done() or (await running).status_code == 200
        assert (await running).status_code == 200


async def test_draining_waits_for_streams(upstream: HostileUpstream) -> None:
    async with (
        nothing_left(upstream),
        AsyncHTTPClient(upstream.url()) as client,
        client.stream("GET", "/stream?n=3&interval=0.01") as response,
    ):
        draining = asyncio.ensure_future(client.drain(5.0))
        await asyncio.sleep(0.01)
        assert not draining.done()
        assert len([line async for line in response.aiter_lines()]) == 3
        await draining


async def test_draining_waits_no_longer_than_the_grace(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        running = asyncio.ensure_future(client.get("/hang"))
        await asyncio.sleep(0.03)
        started = time.monotonic()
        await client.drain(0.1)
        assert 0.09 < time.monotonic() - started < 0.1 + NOISE
        assert not running.done()
        await client.aclose()
        with pytest.raises(HTTPRequestError, match="closed"):
            await running


async def test_a_call_that_fails_while_draining_is_not_repeated(upstream: HostileUpstream) -> None:
    config = ClientConfig(retry_attempts=5, retry_backoff_factor=0.01)
    async with AsyncHTTPClient(upstream.url(), config=config) as client:
        running = asyncio.ensure_future(client.get("/status/503?delay=0.3&key=k"))
        async with asyncio.timeout(5):
            while upstream.key("k")["count"] == 0:
                await asyncio.sleep(0.005)
        await client.drain(5.0)
        assert (await running).status_code == 503
    assert upstream.key("k")["count"] == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["read", "streamed"])
async def test_a_call_that_waits_for_its_next_attempt_sends_none_once_draining(
    upstream: HostileUpstream, streamed: bool
) -> None:
    config, clock = ClientConfig(retry_attempts=5, retry_backoff_factor=0.1), FakeClock(autojump=False)
    async with AsyncHTTPClient(upstream.url(), config=config, clock=clock) as client:

        async def call() -> None:
            request = client.build_request("GET", "/status/503?key=k")
            await client.send(request, stream=streamed)

        running = asyncio.ensure_future(call())
        async with asyncio.timeout(5):
            while not clock.sleeps:
                await asyncio.sleep(0.005)
        draining = asyncio.ensure_future(client.drain(5.0))
        await asyncio.sleep(0)
        clock.advance(10.0)
        await draining
        with pytest.raises(RetryExhaustedError, match="all 1 attempts failed"):
            await running
    assert upstream.key("k")["count"] == 1
    assert client.lifecycle.in_flight == 0


async def test_a_sync_route_calls_through_the_loop_of_its_client(upstream: HostileUpstream) -> None:
    """A route without `async` runs in a thread: `anyio.from_thread` hands the call over; another loop is refused."""
    async with AsyncHTTPClient(upstream.url()) as client:
        await client.get("/ok")

        def route() -> tuple[int, str]:
            status: int = anyio.from_thread.run(client.get, "/ok").status_code
            with pytest.raises(ClientStateError, match="another event loop") as caught:
                asyncio.run(client.get("/ok"))
            return status, str(caught.value)

        statuses = await asyncio.gather(*(anyio.to_thread.run_sync(route) for _ in range(10)))
        assert {status for status, _ in statuses} == {200}


def test_a_forked_process_cannot_use_the_connections_of_its_parent(upstream: HostileUpstream) -> None:
    program = f"""
import asyncio, os
from fastapi_http_client import AsyncHTTPClient, HTTPClientError

async def child(client):
    try:
        await client.get("/count/child")
    except HTTPClientError as error:
        print(type(error).__name__, "another event loop" in str(error), flush=True)

async def main():
    async with AsyncHTTPClient({upstream.url()!r}) as client:
        await client.get("/ok")
        pid = os.fork()
        if pid == 0:
            asyncio.run(child(client))
            os._exit(0)
        os.waitpid(pid, 0)
        print((await client.get("/ok")).status_code)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ClientStateError True\n200\n", done.stderr
    assert "child" not in upstream.stats()["keys"]


async def test_two_who_drain_are_both_told(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        running = asyncio.ensure_future(client.get("/slow?delay=0.05"))
        await asyncio.sleep(0.02)
        async with asyncio.timeout(2):
            await asyncio.gather(client.drain(60.0), client.drain(60.0))
        await running


# -- closing under calls


class Slow(Middleware):
    async def process_request(self, request: HTTPRequest, client: AsyncHTTPClient) -> HTTPRequest:
        await asyncio.sleep(60)
        return request


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/hang", {}),
        ("/drip", {}),
        ("/ok", {"middlewares": [Slow()]}),
        ("/status/503", {"config": ClientConfig(retry_backoff_factor=60.0, retry_max_delay=60.0)}),
        ("/ok", {"rate_limiter": TokenBucketRateLimiter(0.001)}),
        ("/hang", {"config": ClientConfig(max_connections=1)}),
    ],
    ids=["waiting for the head", "reading the body", "in a middleware", "in back-off", "in the limiter", "in the pool"],
)
async def test_closing_ends_calls_in_flight_at_once_with_our_errors(
    upstream: HostileUpstream, path: str, options: dict[str, Any]
) -> None:
    async with nothing_left(upstream):
        client = AsyncHTTPClient(upstream.url(), name="api", **options)
        calls = [asyncio.ensure_future(client.get(path)) for _ in range(5)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        await client.aclose()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < 0.2 + NOISE
        errors = [result for result in results if not isinstance(result, HTTPResponse)]
        assert len(errors) >= 4  # the limiter lets the first one through
        for error in errors:
            assert isinstance(error, HTTPRequestError)
            assert isinstance(error, RuntimeError)
            assert str(error) == "api: the client was closed while this call was going on"
            assert error.client == "api"
            assert error.request.url.path == path
            assert error.may_have_run
            assert not error.transient


async def test_closing_ends_a_stream_with_our_error(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream):
        client = AsyncHTTPClient(upstream.url())

        async def read() -> None:
            async with client.stream("GET", "/drip") as response:
                async for _ in response.aiter_bytes():
                    pass

        reading = asyncio.ensure_future(read())
        await asyncio.sleep(0.1)
        await client.aclose()
        with pytest.raises(HTTPRequestError):
            await reading


async def test_closing_ends_a_token_fetch(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream):
        client = AsyncHTTPClient(
            upstream.url(), auth=OAuth2ClientCredentials(upstream.url("/oauth/token?mode=hang"), "id", "secret")
        )
        call = asyncio.ensure_future(client.get("/ok"))
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(HTTPClientError) as caught:
            await call
        assert isinstance(caught.value, HTTPRequestError | AuthenticationError)


async def test_a_call_may_close_its_own_client(upstream: HostileUpstream) -> None:
    class Closing(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            await client.aclose()
            return response

    async with nothing_left(upstream), asyncio.timeout(5):
        client = AsyncHTTPClient(upstream.url(), middlewares=[Closing()])
        with pytest.raises(RuntimeError, match="closed"):
            await client.get("/ok")


async def test_closing_is_carried_to_its_end_when_it_is_cancelled(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream):
        client = AsyncHTTPClient(upstream.url())
        await client.get("/ok")
        closing = asyncio.ensure_future(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert client.is_closed


async def test_shielded_work_is_done_however_often_it_is_cancelled() -> None:
    steps = []

    async def work() -> None:
        for step in range(5):
            await asyncio.sleep(0)
            steps.append(step)

    task = asyncio.ensure_future(shielded(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == [0, 1, 2, 3, 4]


async def test_shielded_work_tells_its_error() -> None:
    async def work() -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        await shielded(work())


async def test_an_error_while_closing_is_raised_and_the_client_is_closed() -> None:
    class Broken(httpx.MockTransport):
        async def aclose(self) -> None:
            raise OSError("cannot be closed")

    client = AsyncHTTPClient(transport=Broken(lambda request: httpx.Response(200)))
    with pytest.raises(OSError, match="cannot be closed"):
        await client.aclose()
    assert client.is_closed


# -- what is left


async def test_nothing_is_left_of_a_client_that_was_used(upstream: HostileUpstream) -> None:
    async with nothing_left(upstream):
        async with AsyncHTTPClient(upstream.url()) as client:
            await asyncio.gather(*(client.get("/ok") for _ in range(30)))
            async with client.stream("GET", "/large?bytes=1000000") as response:
                async for _ in response.aiter_bytes():
                    break
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client, response
            gc.collect()
        assert [warning for warning in caught if issubclass(warning.category, ResourceWarning)] == []


def test_an_interpreter_ends_in_silence_after_a_client(upstream: HostileUpstream) -> None:
    program = f"""
import asyncio
from fastapi_http_client import AsyncHTTPClient

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # which a busy machine would be told of
    async with AsyncHTTPClient({upstream.url()!r}) as client:
        async with client.stream("GET", "/large?bytes=1000000") as response:
            async for _ in response.aiter_bytes():
                break
        print((await client.get("/ok")).status_code)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("200\n", "")


@pytest.mark.parametrize("kept_in", ["main", "module"])
def test_an_interpreter_ends_after_a_stream_that_was_never_closed(upstream: HostileUpstream, kept_in: str) -> None:
    """All that is said of it are warnings, whoever finds out first: us, or asyncio."""
    program = f"""
import asyncio
from fastapi_http_client import AsyncHTTPClient

async def main():
    client = AsyncHTTPClient({upstream.url()!r})
    {"global response" if kept_in == "module" else ""}
    response = await client.send(client.build_request("GET", "/large?bytes=1000000"), stream=True)
    print(response.status_code)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "200\n")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "ResourceWarning" in done.stderr


async def test_work_that_a_client_began_ends_with_it() -> None:
    lifecycle = Lifecycle("api")

    async def work() -> None:
        await asyncio.sleep(60)

    task = lifecycle.spawn(work())
    await asyncio.sleep(0)
    assert lifecycle.close() == [task]
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_endless_upload_ends_with_the_client(upstream: HostileUpstream) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.001)

    async with nothing_left(upstream):
        client = AsyncHTTPClient(upstream.url())
        call = asyncio.ensure_future(client.post("/sink", content=endless()))
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(HTTPRequestError):
            await call


@pytest.mark.parametrize("replace", [False, True])
async def test_a_drain_waits_for_a_stream_that_a_middleware_has_wrapped(replace: bool) -> None:
    class Wrapping(Middleware):
        async def process_response(self, response: HTTPResponse, request: HTTPRequest) -> HTTPResponse:
            if replace:
                return httpx.Response(200, stream=Stream(b"of", b"mine"))  # type: ignore[return-value]
            response.stream = Wrapped(response.stream)
            return response

    class Wrapped(httpx.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._stream:
                yield part

        async def aclose(self) -> None:
            await self._stream.aclose()

    client = client_of(Script(httpx.Response(200, stream=Stream(b"a", b"b"))), options={"middlewares": [Wrapping()]})
    async with client.stream("GET", "/") as response:
        assert client.lifecycle.in_flight == 1
        draining = asyncio.create_task(client.drain(5))
        await asyncio.sleep(0.01)
        assert not draining.done()
        assert await response.aread() in (b"ab", b"ofmine")
        await asyncio.wait_for(draining, 1)
    assert client.lifecycle.in_flight == 0


async def test_a_second_close_waits_for_the_first() -> None:
    closed = []

    class Slow(httpx.MockTransport):
        async def aclose(self) -> None:
            await asyncio.sleep(0.01)
            closed.append(1)

    client = AsyncHTTPClient("http://api.test", transport=Slow(lambda request: httpx.Response(200)))
    first = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    await client.aclose()
    assert closed == [1]
    await first
    await client.aclose()
    assert closed == [1]
