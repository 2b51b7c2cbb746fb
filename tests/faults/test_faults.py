"""Every named fault: the call is back in time, with an answer or an error of ours, and the client works on."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from itertools import product

import pytest

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import HTTPClientError, HTTPRequestError
from fastapi_http_client.models import HTTPResponse
from tests.faults import NOISE, Fault, named_faults, nothing_left
from tests.hostile.upstream import HostileUpstream

TIMEOUT = 0.2
TOTAL = 0.4
LIMIT = 1024 * 1024
STRIKING_LATER = ("/trap", "/respond-then-reset", "/idle-close", "/desync?wait", "/bad-head", "/chunked-bad", "/early")
"""Faults that the next call on the same connection may meet."""
UPLOAD = bytes(3 * 1024 * 1024)


def a_client(*, retries: bool, **fields: object) -> AsyncHTTPClient:
    return AsyncHTTPClient(
        config=ClientConfig(
            timeout=TIMEOUT,
            total_timeout=TOTAL,
            retry_attempts=3 if retries else 1,
            retry_backoff_factor=0.01,
            max_response_bytes=LIMIT,
            verify_ssl=False,
            max_connections=2,
            **fields,  # type: ignore[arg-type]
        )
    )


async def meet(fault: Fault, upstream: HostileUpstream, method: str, *, retries: bool, streamed: bool) -> None:
    async with a_client(retries=retries, follow_redirects=True) as client:
        content = UPLOAD if fault.upload else b"{}"
        started = time.monotonic()
        try:
            if streamed:
                async with client.stream(method, fault.url(upstream), content=content) as response:
                    body = b"".join([chunk async for chunk in response.aiter_bytes()])
            else:
                response = await client.request(method, fault.url(upstream), content=content)
                body = response.content
        except HTTPClientError as error:
            assert str(error)
        else:
            assert isinstance(response, HTTPResponse)
            assert len(body) <= LIMIT
        assert time.monotonic() - started < TOTAL + 0.1 + NOISE
        if fault.path.startswith(STRIKING_LATER):
            for _ in range(2):
                with contextlib.suppress(HTTPRequestError):
                    await client.get(upstream.url("/ok"))
        after = await client.get(upstream.url(f"/echo/after?{method}"), total_timeout=5)
        assert after.json_data["target"] == f"/echo/after?{method}"


@pytest.mark.parametrize("fault", [*named_faults()], ids=str)
async def test_a_call_that_meets_a_fault_ends_in_time_and_leaves_nothing(
    upstream: HostileUpstream, fault: Fault
) -> None:
    async with nothing_left(upstream):
        await asyncio.gather(
            *(
                meet(fault, upstream, method, retries=retries, streamed=streamed)
                for method, retries, streamed in product(("GET", "POST"), (True, False), (True, False))
            )
        )
