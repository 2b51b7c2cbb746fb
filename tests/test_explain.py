from __future__ import annotations

import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from fastapi_http_client.client import AsyncHTTPClient
from fastapi_http_client.config import APIKeyConfig, BasicConfig, BearerConfig, ClientConfig, OAuth2Config
from fastapi_http_client.edge.registry import HTTPClients
from fastapi_http_client.fake_clock import FakeClock
from fastapi_http_client.middleware import LoggingMiddleware
from fastapi_http_client.policies.retry import RetryPolicy
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter
from fastapi_http_client.settings.explain import longest_call


@pytest.fixture(autouse=True)
def _only_these_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("HTTP_CLIENT")]:
        monkeypatch.delenv(name)


def lines(clients: HTTPClients) -> list[str]:
    return [line.strip() for line in clients.explain().splitlines()]


def test_each_value_has_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__GITHUB__TIMEOUT", "5")
    monkeypatch.setenv("HTTP_CLIENT__DEFAULT__MAX_REDIRECTS", "3")
    monkeypatch.setenv("HTTP_CLIENT__GITHUB__AUTH", '{"type": "bearer", "token": "t"}')
    shown = lines(HTTPClients({"github": ClientConfig(retry_attempts=2, headers={"Accept": "text/plain"})}))
    assert shown[0] == "HTTP clients, not running (HTTP_CLIENT__<NAME>__<OPTION>)"
    assert "client github" in shown
    for line in (
        "timeout = 5.0  (environment HTTP_CLIENT__GITHUB__TIMEOUT)",
        "max_redirects = 3  (environment HTTP_CLIENT__DEFAULT__MAX_REDIRECTS)",
        'retry_attempts = 2  (code clients["github"].retry_attempts)',
        'headers.Accept = text/plain  (code clients["github"].headers.Accept)',
        "auth.type = bearer  (environment HTTP_CLIENT__GITHUB__AUTH, key type)",
        "auth.token = **********  (environment HTTP_CLIENT__GITHUB__AUTH, key token)",
        "retry_statuses = 429, 500, 502, 503, 504  (built-in)",
        'base_url = ""  (built-in)',
        "total_timeout = None  (built-in)",
    ):
        assert line in shown


def test_every_option_is_shown() -> None:
    shown = HTTPClients({"a": ClientConfig()}).explain()
    for option in ClientConfig.model_fields:
        assert f"\n  {option} = " in shown


def test_a_default_that_gave_way_says_so() -> None:
    shown = lines(HTTPClients({"a": ClientConfig(total_timeout=10)}))
    assert "timeout = 10.0  (built-in 30.0, adapted to what was set)" in shown


async def test_running_clients_show_their_pipeline_and_what_they_were_started_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "5")
    async with HTTPClients() as clients:
        monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "6")
        shown = lines(clients)
        assert shown[0].startswith("HTTP clients, running")
        assert "timeout = 5.0  (environment HTTP_CLIENT__A__TIMEOUT)" in shown
        assert f"pipeline: {' > '.join(clients['a'].pipeline)}" in shown
    assert "timeout = 6.0  (environment HTTP_CLIENT__A__TIMEOUT)" in lines(clients)


def test_objects_given_in_code_are_shown_by_their_kind() -> None:
    clients = HTTPClients()
    clients.add(
        "a",
        auth=httpx.BasicAuth("u", "sesame"),
        middlewares=[LoggingMiddleware(), LoggingMiddleware()],
        transport=httpx.MockTransport(lambda request: httpx.Response(200)),
        params={"key": "sesame"},
    )
    shown = lines(clients)
    assert "auth = BasicAuth  (code)" in shown
    assert "middlewares = LoggingMiddleware, LoggingMiddleware  (code)" in shown
    assert "transport = MockTransport  (code)" in shown
    assert "params = dict  (code)" in shown
    assert "sesame" not in "\n".join(shown)


def test_a_limiter_given_in_code_counts_for_the_longest_call() -> None:
    clients = HTTPClients()
    clients.add("a", rate_limiter=TokenBucketRateLimiter(1), config=ClientConfig(retry_attempts=1))
    assert "longest call: unlimited (1 attempt of 30 s, waits for the rate limiter without limit)" in clients.explain()


def test_problems_are_shown_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_CLIENT__A__TIMEOUT", "sesame")
    monkeypatch.setenv("HTTP_CLIENT__B__TIMEOUT", "5")
    shown = lines(HTTPClients())
    assert "client b" in shown
    assert "client a" not in shown
    assert shown[-2:] == [
        "problems",
        "HTTP_CLIENT__A__TIMEOUT: Input should be a valid number, unable to parse string as a number",
    ]


# -- secrets -----------------------------------------------------------------------------------------------------

CANARY = "s3same-0pen"
SECRET = SecretStr(CANARY)


@pytest.mark.parametrize(
    "fields",
    [
        {"base_url": f"https://user:{CANARY}@host/path"},
        {"proxy": f"http://user:{CANARY}@proxy:3128"},
        {"auth": BearerConfig(token=SECRET)},
        {"auth": APIKeyConfig(api_key=SECRET)},
        {"auth": BasicConfig(username="u", password=SECRET)},
        {"auth": OAuth2Config(token_url="https://id/t", client_id="i", client_secret=SECRET)},
        {
            "auth": OAuth2Config(
                token_url=f"https://u:{CANARY}@id/t?secret={CANARY}", client_id="i", client_secret=SECRET
            )
        },
        *(
            {"headers": {name: CANARY}}
            for name in (
                "Authorization",
                "proxy-authorization",
                "Cookie",
                "X-API-Key",
                "X-Acme-Token",
                "Private-Key",
                "X-Client-Secret",
                "X-Password",
                "X-Session",
                "X-Signature",
                "Ocp-Apim-Subscription-Key",
            )
        ),
    ],
)
async def test_no_secret_is_shown(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clients = HTTPClients({"a": ClientConfig(**fields)})
    assert CANARY not in clients.explain()
    async with clients:
        assert CANARY not in clients.explain()
        assert CANARY not in repr(clients)
    plain = {
        name: value
        if not hasattr(value, "model_fields_set")
        else {
            field: part.get_secret_value() if isinstance(part, SecretStr) else part
            for field, part in ((field, getattr(value, field)) for field in {"type", *value.model_fields_set})
        }
        for name, value in fields.items()
    }
    monkeypatch.setenv("HTTP_CLIENT__B", json.dumps(plain))
    shown = HTTPClients().explain()
    assert "client b" in shown
    assert CANARY not in shown


def test_a_value_cannot_forge_a_line() -> None:
    clients = HTTPClients({"a": ClientConfig(auth=BasicConfig(username="u\ntimeout = 1", password=SECRET))})
    assert "auth.username = u\\x0atimeout = 1  (" in clients.explain()


# -- the longest call --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"retry_attempts": 1}, 30.0),
        ({}, 3 * 30 + 1.1 + 2.2),
        ({"timeout": 2, "retry_backoff_factor": 10, "retry_max_delay": 15}, 3 * 2 + 11 + 15),
        ({"timeout": 2, "retry_jitter": 0}, 3 * 2 + 1 + 2),
        ({"total_timeout": 7}, 7.0),
        ({"timeout": 1, "total_timeout": 600}, 3 * 1 + 3.3),
        ({"timeout": 1, "retry_attempts": 1, "follow_redirects": True, "max_redirects": 4}, 5.0),
        ({"timeout": 1, "retry_attempts": 2, "enable_rate_limiting": True, "rate_limit_max_wait": 9}, 2 * 10 + 1.1),
        ({"enable_rate_limiting": True}, float("inf")),
        ({"enable_rate_limiting": True, "total_timeout": 60}, 60.0),
    ],
)
def test_the_longest_call(fields: dict[str, Any], seconds: float) -> None:
    assert longest_call(ClientConfig(**fields), asked=False) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, 3 * (61 + 30) + 2 * 60),
        ({"retry_attempts": 1}, 61 + 30),
        ({"retry_attempts": 1, "retry_jitter": 0, "retry_max_delay": 5}, 5 + 30),
        ({"retry_attempts": 1, "rate_limit_max_wait": 7}, 7 + 30),
        ({"retry_attempts": 1, "enable_rate_limiting": True, "rate_limit_max_wait": 7}, 7 + 7 + 7 + 30),
        ({"total_timeout": 40}, 40),
    ],
)
def test_an_upstream_may_ask_for_longer_delays_and_for_pauses(fields: dict[str, Any], seconds: float) -> None:
    assert longest_call(ClientConfig(**fields), asked=True) == pytest.approx(seconds)


async def test_a_call_that_pauses_for_the_others_and_for_itself_is_no_longer() -> None:
    clock = FakeClock()
    config = ClientConfig(retry_attempts=2)
    answers = iter([429, 503, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(answers), headers={"Retry-After": "60"})

    transport = httpx.MockTransport(answer)
    async with AsyncHTTPClient("https://a.test", config=config, transport=transport, clock=clock) as client:
        await client.get("/", retry=False)
        started = clock.monotonic()
        assert (await client.get("/")).status_code == 200
        taken = clock.monotonic() - started
    assert longest_call(config, asked=False) < taken <= longest_call(config, asked=True)


@given(
    st.integers(1, 100),
    st.floats(0, 1e3),
    st.floats(0, 1e3),
    st.floats(0, 1),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=99),
)
def test_no_call_is_longer(attempts: int, factor: float, cap: float, jitter: float, chances: list[float]) -> None:
    config = ClientConfig(
        timeout=1, retry_attempts=attempts, retry_backoff_factor=factor, retry_max_delay=cap, retry_jitter=jitter
    )
    policy = RetryPolicy.of(config)
    taken = attempts + sum(
        policy.delay(number, chance) for number, chance in zip(range(attempts - 1), chances, strict=False)
    )
    plain = longest_call(config, asked=False)
    assert taken <= plain * (1 + 1e-9)
    assert plain <= longest_call(config, asked=True) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {},
            "longest call: 93.3 s (3 attempts of 30 s, the delays between them with all their jitter); "
            "total_timeout is not set\n"
            "    393.0 s with all pauses that the upstream may ask for (retry_max_delay, 60 s)",
        ),
        (
            {"retry_attempts": 1, "retry_max_delay": 0},
            "longest call: 30.0 s (1 attempt of 30 s); total_timeout is not set",
        ),
        (
            {"timeout": 5, "total_timeout": 20},
            "longest call: 20.0 s (total_timeout 20 s)\n    without it: 18.3 s (3 attempts of 5 s, the delays "
            "between them with all their jitter), 318.0 s with all pauses that the upstream may ask for "
            "(retry_max_delay, 60 s)",
        ),
        (
            {"retry_attempts": 1, "enable_rate_limiting": True},
            "longest call: unlimited (1 attempt of 30 s, waits for the rate limiter without limit); "
            "total_timeout is not set\n"
            "    unlimited with all pauses that the upstream may ask for (retry_max_delay, 60 s)",
        ),
        (
            {"retry_attempts": 1, "enable_rate_limiting": True, "rate_limit_max_wait": 2, "follow_redirects": True},
            "longest call: 672.0 s (1 attempt of 30 s, 2 s of limiter each, all that on each of 21 hops); "
            "total_timeout is not set\n"
            "    756.0 s with all pauses that the upstream may ask for (retry_max_delay, 60 s)",
        ),
    ],
)
def test_the_longest_call_is_explained(fields: dict[str, Any], expected: str) -> None:
    assert HTTPClients({"a": ClientConfig(**fields)}).explain().endswith(expected)
