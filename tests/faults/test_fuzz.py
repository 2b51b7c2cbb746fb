"""Mutated responses: whatever comes, only errors of ours come out, and what is read of a response never raises others.

`FUZZ_RESPONSES` sets how many are tried, and `FUZZ_FIRST` the first seed: a failure names the seed of its response.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import traceback

import pytest

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import HTTPClientError
from fastapi_http_client.models import HTTPResponse
from tests.faults import nothing_left
from tests.hostile.generated import fuzzed_response
from tests.hostile.upstream import HostileUpstream

COUNT = int(os.environ.get("FUZZ_RESPONSES", "3000"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
WORKERS = 16


def examine(response: HTTPResponse) -> None:
    """Touch everything that is made of what the upstream sent."""
    assert isinstance(response.text, str)
    for read in (response.json, lambda: response.json_data, lambda: response.parse(dict)):
        with contextlib.suppress(ValueError):
            read()
    _ = (repr(response), response.encoding, response.charset_encoding, response.links, list(response.cookies.jar))
    _ = (response.reason_phrase, response.http_version, response.next_request, response.history, response.elapsed)
    try:
        response.raise_for_status()
    except HTTPClientError as error:
        examine_error(error)


def examine_error(error: HTTPClientError) -> None:
    text = str(error)
    assert text
    assert text.isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == text


async def meet(client: AsyncHTTPClient, url: str, *, streamed: bool) -> None:
    try:
        if streamed:
            async with client.stream("GET", url) as response:
                async for _ in response.aiter_lines():
                    pass
        else:
            examine(await client.get(url))
    except HTTPClientError as error:
        examine_error(error)


@pytest.mark.timeout(0)
async def test_no_response_makes_a_foreign_error_escape(upstream: HostileUpstream, engine: str) -> None:
    config = ClientConfig(
        timeout=5.0, retry_attempts=1, follow_redirects=True, persist_cookies=True, max_response_bytes=1024 * 1024
    )
    count = COUNT if engine == "auto" else COUNT // 5  # the parser is ours over one engine only
    seeds = iter(range(FIRST, FIRST + count))
    escaped: dict[int, str] = {}
    async with nothing_left(upstream), AsyncHTTPClient(upstream.url(), config=config) as client:

        async def work() -> None:
            for seed in seeds:
                try:
                    await meet(client, f"/fuzz?seed={seed}", streamed=seed % 3 == 0)
                except Exception:
                    escaped[seed] = traceback.format_exc()

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        assert not escaped, "\n".join(
            f"seed {seed}: {fuzzed_response(str(seed))!r}\n{escaped[seed]}" for seed in escaped
        )
        assert (await client.get("/ok")).status_code == 200


async def test_every_misuse_of_json_is_a_value_error(upstream: HostileUpstream) -> None:
    async with AsyncHTTPClient(upstream.url()) as client:
        for name in ("invalid", "empty", "html", "bigint", "deep", "deep-object", "latin1", "trailing", "lines"):
            response = await client.get(f"/json/{name}")
            with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
                _ = response.json_data
            assert isinstance(response.text, str)


@pytest.mark.parametrize(
    "charset", ["no-such", "nul", "idna", "rot13", "zlib"], ids=lambda charset: f"charset-{charset}"
)
async def test_a_text_can_be_read_whatever_its_charset_is_said_to_be(upstream: HostileUpstream, charset: str) -> None:
    name = "bad" if charset == "no-such" else charset
    # The upstream closes each connection after its answer, which the next request may meet: it is tried again.
    async with AsyncHTTPClient(upstream.url(), config=ClientConfig(retry_backoff_factor=0.001)) as client:
        try:
            response = await client.get(f"/bad-head/charset-{name}")
        except HTTPClientError:
            return  # refused as a whole, as an illegal byte in a header is
        assert isinstance(response.text, str)
        async with client.stream("GET", f"/bad-head/charset-{name}") as streamed:
            assert isinstance("".join([text async for text in streamed.aiter_text()]), str)
