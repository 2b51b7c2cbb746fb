"""How often a request takes effect: the server's ledger is the judge."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import ClientConfig
from fastapi_http_client.errors import HTTPClientError, HTTPRequestError, RetryExhaustedError
from tests.faults import Fault, named_faults
from tests.hostile.upstream import HostileUpstream

ENDINGS = ("reset", "close", "hang", "500", "503", "garbage", "truncate", "reset-mid-body", "drip", "slow")
"""How an operation ends that has, or has not, been done."""


def a_client(upstream: HostileUpstream, **fields: Any) -> AsyncHTTPClient:
    fields = {"timeout": 0.15, "retry_backoff_factor": 0.001, **fields}
    return AsyncHTTPClient(upstream.url(), config=ClientConfig(**fields))


def ledger(upstream: HostileUpstream) -> dict[str, Any]:
    found: dict[str, Any] = upstream.stats()["ledgers"]["k"]
    return found


# -- what may have run


@pytest.mark.parametrize("commit", ["before", "after"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_without_a_key_nothing_takes_effect_twice(
    upstream: HostileUpstream, method: str, ending: str, commit: str
) -> None:
    async with a_client(upstream) as client:
        with contextlib.suppress(HTTPClientError):
            await client.request(method, f"/effect/k?then={ending}&commit={commit}&fail=9", json={})
    assert ledger(upstream)["attempts"] == 1
    assert ledger(upstream)["effects"] <= 1


@pytest.mark.parametrize("commit", ["before", "after"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_with_a_key_everything_takes_effect_exactly_once(
    upstream: HostileUpstream, ending: str, commit: str
) -> None:
    async with a_client(upstream, idempotency_keys=True) as client:
        response = await client.post(f"/effect/k?then={ending}&commit={commit}&fail=2", json={})
    assert response.status_code == 200
    assert ledger(upstream)["attempts"] == 3
    assert ledger(upstream)["effects"] == 1
    assert len(ledger(upstream)["by_idempotency_key"]) == 1


async def test_each_call_has_a_key_of_its_own(upstream: HostileUpstream) -> None:
    async with a_client(upstream, idempotency_keys=True) as client:
        for _ in range(3):
            await client.post("/effect/k?fail=0", json={})
    assert ledger(upstream)["effects"] == 3


async def test_the_callers_own_key_is_used(upstream: HostileUpstream) -> None:
    for fields in ({}, {"idempotency_keys": True}):
        upstream.forget()
        async with a_client(upstream, **fields) as client:
            await client.post("/effect/k?fail=1", json={}, headers={"Idempotency-Key": "mine"})
        assert ledger(upstream)["by_idempotency_key"] == {"mine": 2}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_an_idempotent_method_is_repeated(upstream: HostileUpstream, method: str) -> None:
    async with a_client(upstream) as client:
        assert (await client.request(method, "/effect/k?fail=1")).status_code == 200
    assert ledger(upstream)["attempts"] == 2


async def test_a_post_is_repeated_when_that_is_allowed(upstream: HostileUpstream) -> None:
    async with a_client(upstream, retry_non_idempotent=True) as client:
        assert (await client.post("/effect/k?fail=1")).status_code == 200
    assert ledger(upstream)["effects"] == 2


REFUSED = ("/status/429", "/retry-after/")
"""Answers by which the upstream says that it has done nothing."""


@pytest.mark.parametrize("fault", [fault for fault in named_faults() if not fault.path.startswith(REFUSED)], ids=str)
async def test_over_all_faults_a_post_without_a_key_arrives_once(upstream: HostileUpstream, fault: Fault) -> None:
    config = ClientConfig(timeout=0.1, total_timeout=0.3, retry_backoff_factor=0.001, verify_ssl=False)
    async with AsyncHTTPClient(config=config) as client:
        with contextlib.suppress(HTTPClientError):
            await client.post(fault.url(upstream), content=b"{}", headers={"X-Hostile-Key": "call"})
    assert upstream.key("call")["count"] <= 1


# -- the keep-alive race


@pytest.mark.parametrize("mode", ["close", "reset", "hang", "garbage", "stale"])
async def test_a_post_that_meets_a_dying_connection_is_not_sent_again(upstream: HostileUpstream, mode: str) -> None:
    async with a_client(upstream) as client:
        await client.get(f"/trap?mode={mode}")
        try:
            response = await client.post("/count/p")
            assert response.status_code == 408
        except HTTPRequestError as error:
            assert error.may_have_run  # noqa: PT017
    assert upstream.key("p")["count"] == 1


@pytest.mark.parametrize("mode", ["close", "reset", "hang", "garbage"])
async def test_what_may_be_repeated_survives_a_dying_connection(upstream: HostileUpstream, mode: str) -> None:
    async with a_client(upstream) as client:
        await client.get(f"/trap?mode={mode}")
        assert (await client.get("/count/g")).json_data["count"] == 2
        await client.get(f"/trap?mode={mode}")
        response = await client.post("/count/p", headers={"Idempotency-Key": "k"})
        assert response.json_data["count"] == 2


# -- bodies that exist once


@pytest.mark.parametrize("mode", ["status", "reset", "close", "hang", "garbage", "truncate"])
async def test_a_generator_is_sent_once_and_the_outcome_is_its_own(upstream: HostileUpstream, mode: str) -> None:
    pulled = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal pulled
        pulled += 1
        yield b"once"

    async with a_client(upstream, retry_non_idempotent=True) as client:
        try:
            response = await client.put(f"/flaky?fail=1&mode={mode}&key=k", content=body())
            assert response.status_code == 503
            assert mode == "status"
        except HTTPRequestError as error:
            assert not isinstance(error, RetryExhaustedError)  # noqa: PT017
    assert upstream.key("k")["count"] == 1
    assert pulled == 1


async def test_a_file_is_sent_whole_on_every_attempt(upstream: HostileUpstream) -> None:
    async with a_client(upstream) as client:
        await client.put("/flaky?fail=2&key=k", files={"f": ("name", io.BytesIO(b"contents of the file"))})
    requests = upstream.requests_seen()
    assert len(requests) == 3
    assert len({request["body_sha256"] for request in requests}) == 1
    assert "contents of the file" in requests[0]["body_preview"]


# -- amplification


async def test_the_budget_bounds_what_an_outage_costs(upstream: HostileUpstream) -> None:
    async with a_client(upstream, retry_attempts=5, retry_budget=10, timeout=5.0) as client:
        for _ in range(20):
            await asyncio.gather(
                *(client.get("/outage/k?down=60&mode=reset") for _ in range(10)), return_exceptions=True
            )
    assert 200 <= upstream.key("k")["count"] <= 210


async def test_successes_earn_the_budget_back(upstream: HostileUpstream) -> None:
    async with a_client(upstream, retry_attempts=2, retry_budget=1, timeout=5.0) as client:
        assert (await client.get("/sequence/a?steps=503,200")).status_code == 200
        assert (await client.get("/sequence/b?steps=503,200")).status_code == 503
        for _ in range(10):
            await client.get("/ok")
        assert (await client.get("/sequence/c?steps=503,200")).status_code == 200
