"""What our caller is told when an upstream fails."""

from __future__ import annotations

import logging
import re

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fastapi_http_client.context import request_context
from fastapi_http_client.edge.problems import MEDIA_TYPE, ProblemResponses, http_client_responses
from fastapi_http_client.errors import (
    AuthenticationError,
    CircuitBreakerOpenError,
    ConfigurationError,
    HTTPClientError,
    HTTPRequestError,
    HTTPResponseError,
    HTTPTimeoutError,
    RateLimitError,
    RetryExhaustedError,
)

URN = "urn:fastapi-http-client:problem:"
CANARY = "S3CR3T-upstream.internal"

REQUEST = httpx.Request("GET", f"http://{CANARY}/path")
FACTS = {"request": REQUEST, "client": "billing"}


def response(status, **headers):
    return httpx.Response(status, headers={"X-Upstream": CANARY, **headers}, text=CANARY, request=REQUEST)


def exhausted(last_response=None, last_error=None, retry_after=None):
    return RetryExhaustedError.from_last(
        CANARY, last_response=last_response, last_error=last_error, retry_after=retry_after, **FACTS
    )


TABLE = [
    ("open circuit", CircuitBreakerOpenError(CANARY, recovery_timeout=12.3, **FACTS), 503, "circuit-open", "13"),
    ("circuit about to be probed", CircuitBreakerOpenError(recovery_timeout=0.0), 503, "circuit-open", "1"),
    ("their rate limit", RateLimitError(CANARY, retry_after=7.0, response=response(429)), 503, "rate-limited", "7"),
    ("our rate limit", RateLimitError(CANARY, retry_after=0.2, **FACTS), 503, "rate-limited", "1"),
    ("rate limit, nobody said how long", RateLimitError(CANARY, **FACTS), 503, "rate-limited", None),
    ("rate limit for years", RateLimitError(CANARY, retry_after=1e15), 503, "rate-limited", "3600"),
    ("rate limit for ever", RateLimitError(CANARY, retry_after=float("inf")), 503, "rate-limited", None),
    ("exhausted on 429", exhausted(response(429), retry_after=5.0), 503, "rate-limited", "5"),
    ("attempt timeout", HTTPTimeoutError(CANARY, phase="attempt", **FACTS), 504, "upstream-timeout", None),
    ("total timeout", HTTPTimeoutError(CANARY, phase="total", **FACTS), 504, "upstream-timeout", None),
    (
        "exhausted on a timeout",
        exhausted(last_error=HTTPTimeoutError(phase="read")),
        504,
        "upstream-timeout",
        None,
    ),
    ("connection refused", HTTPRequestError(CANARY, **FACTS), 502, "upstream-unreachable", None),
    ("exhausted on it", exhausted(last_error=HTTPRequestError(CANARY)), 502, "upstream-unreachable", None),
    ("no token", AuthenticationError(CANARY, **FACTS), 502, "upstream-authentication", None),
    ("their 401", HTTPResponseError(CANARY, status_code=401, response=response(401)), 502, "upstream-error", None),
    ("their 404", HTTPResponseError(CANARY, status_code=404, response=response(404)), 502, "upstream-error", None),
    ("their 503", HTTPResponseError(CANARY, status_code=503, response=response(503)), 502, "upstream-error", None),
    ("exhausted on 503", exhausted(response(503)), 502, "upstream-error", None),
    (
        "exhausted on 503, with the error",
        exhausted(response(503), HTTPResponseError(CANARY, status_code=503)),
        502,
        "upstream-error",
        None,
    ),
    ("any other", HTTPClientError(CANARY, **FACTS), 502, "upstream-error", None),
]


def make_app(error, **options):
    app = FastAPI()
    for cls in (HTTPClientError, ExceptionGroup):
        app.add_exception_handler(cls, ProblemResponses(**options))

    @app.get("/")
    async def route():
        with request_context(request_id="order-42"):
            raise error

    @app.websocket("/ws")
    async def websocket(websocket: WebSocket, accept: bool = True):
        if accept:
            await websocket.accept()
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "name", "retry_after"), [pytest.param(*row[1:], id=row[0]) for row in TABLE]
)
def test_each_error_has_its_problem(error, status, name, retry_after):
    answer = TestClient(make_app(error)).get("/")
    assert answer.status_code == status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers.get("retry-after") == retry_after
    problem = answer.json()
    assert problem["type"] == URN + name
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert CANARY not in str(answer.headers) + answer.text
    assert "billing" not in answer.text


def test_a_group_of_failed_calls_is_answered_as_its_first():
    late = HTTPTimeoutError(CANARY, phase="total", **FACTS)
    group = ExceptionGroup("", [ExceptionGroup("", [late]), HTTPRequestError(CANARY, **FACTS)])
    answer = TestClient(make_app(group)).get("/")
    assert (answer.status_code, answer.json()["type"]) == (504, f"{URN}upstream-timeout")


def test_a_group_with_anything_else_in_it_is_an_error_like_any_other():
    group = ExceptionGroup("", [HTTPRequestError(CANARY, **FACTS), LookupError("a bug")])
    with pytest.raises(ExceptionGroup) as caught:
        TestClient(make_app(group)).get("/")
    assert caught.value is group


@pytest.mark.parametrize("cls", [HTTPClientError, httpx.TimeoutException])
def test_a_handler_of_the_user_gets_the_call_of_a_group(cls):
    app = make_app(ExceptionGroup("", [HTTPTimeoutError("x", phase="read")]))
    app.add_exception_handler(cls, lambda request, exc: JSONResponse({"handled": type(exc).__name__}, 418))
    assert TestClient(app).get("/").json() == {"handled": "HTTPTimeoutError"}


def test_the_problem_has_the_request_id():
    with request_context(request_id="order-42"):
        problem = TestClient(make_app(HTTPRequestError("x"))).get("/").json()
    assert problem["request_id"] == "order-42"


def test_outside_of_the_middleware_there_is_no_request_id():
    assert "request_id" not in TestClient(make_app(HTTPRequestError("x"))).get("/").json()


def test_the_client_is_named_only_when_that_is_allowed():
    app = make_app(HTTPRequestError("x", client="billing"), expose_client_names=True)
    assert TestClient(app).get("/").json()["client"] == "billing"
    app = make_app(HTTPRequestError("x"), expose_client_names=True)
    assert "client" not in TestClient(app).get("/").json()


def test_the_log_says_what_the_caller_is_not_told(caplog):
    TestClient(make_app(HTTPRequestError("billing: GET /x\n\x1b[2J failed", client="billing"))).get("/")
    (record,) = [record for record in caplog.records if record.name == "fastapi_http_client.problems"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        r"answering 502 (upstream-unreachable): HTTPRequestError: billing: GET /x\x0a\x1b[2J failed"
    )


def test_a_request_that_was_refused_before_it_was_sent_is_logged_with_its_traceback(caplog):
    refused = HTTPRequestError("path_params has no 'id'", may_have_run=False, transient=False)
    assert TestClient(make_app(refused)).get("/").status_code == 502
    (record,) = [record for record in caplog.records if record.name == "fastapi_http_client.problems"]
    assert record.levelno == logging.ERROR
    assert record.exc_info


def test_a_mistake_of_ours_is_an_error_like_any_other():
    app = make_app(ConfigurationError("the clients have not been started"))
    with pytest.raises(ConfigurationError, match="have not been started"):
        TestClient(app).get("/")
    assert TestClient(app, raise_server_exceptions=False).get("/").status_code == 500


# -- the user's own handlers -------------------------------------------------------------------------------------

CLASSES = [
    (HTTPTimeoutError("x", phase="read"), httpx.TimeoutException),
    (HTTPTimeoutError("x", phase="read"), httpx.HTTPError),
    (HTTPResponseError("x", status_code=404), httpx.HTTPStatusError),
    (HTTPResponseError("x", status_code=404), HTTPResponseError),
    (CircuitBreakerOpenError(recovery_timeout=1), httpx.HTTPError),
    (RateLimitError("x"), HTTPResponseError),
    (HTTPRequestError("x"), HTTPClientError),
]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(("error", "cls"), CLASSES)
def test_a_handler_of_the_user_wins(error, cls, is_async):
    """Also one for an httpx class, which is further from the error than ours is."""
    app = make_app(error)

    async def handle(request: Request, exc: Exception):
        return JSONResponse({"handled": type(exc).__name__}, 418)

    def handle_in_a_thread(request: Request, exc: Exception):
        return JSONResponse({"handled": type(exc).__name__}, 418)

    app.add_exception_handler(cls, handle if is_async else handle_in_a_thread)
    answer = TestClient(app).get("/")
    assert answer.status_code == 418
    assert answer.json() == {"handled": type(error).__name__}


def test_a_handler_for_everything_does_not_take_what_is_ours():
    app = make_app(HTTPRequestError("x"))

    @app.exception_handler(ValueError)
    @app.exception_handler(Exception)
    async def handle(request, exc):
        return JSONResponse({}, 418)

    assert TestClient(app, raise_server_exceptions=False).get("/").status_code == 502
    app = make_app(ConfigurationError("x"))
    app.add_exception_handler(ValueError, handle)
    assert TestClient(app, raise_server_exceptions=False).get("/").status_code == 500


# -- WebSockets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CircuitBreakerOpenError(recovery_timeout=1), 1013),
        (HTTPRequestError(CANARY), 1014),
    ],
)
def test_an_accepted_websocket_is_closed_with_a_code(error, code):
    with TestClient(make_app(error)).websocket_connect("/ws") as websocket, pytest.raises(WebSocketDisconnect) as info:
        websocket.receive_text()
    assert info.value.code == code
    assert CANARY not in info.value.reason


def test_a_websocket_that_is_not_accepted_yet_is_denied_with_the_problem():
    client = TestClient(make_app(HTTPTimeoutError(CANARY, phase="total")))
    with pytest.raises(WebSocketDisconnect) as info, client.websocket_connect("/ws?accept=false"):
        pass
    denial = info.value
    assert denial.status_code == 504
    assert denial.json()["type"] == URN + "upstream-timeout"


# -- OpenAPI -----------------------------------------------------------------------------------------------------


def test_the_problems_can_be_put_into_the_openapi_of_a_route():
    app = FastAPI()

    @app.get("/", responses=http_client_responses())
    async def route(): ...

    responses = app.openapi()["paths"]["/"]["get"]["responses"]
    assert {"502", "503", "504"} <= set(responses)
    for status in (502, 503, 504):
        described = responses[str(status)]
        assert list(described["content"]) == [MEDIA_TYPE]
        properties = described["content"][MEDIA_TYPE]["schema"]["properties"]
        assert properties["status"]["const"] == status
    assert "Retry-After" in responses["503"]["headers"]


def test_every_documented_type_is_one_that_is_answered_with():
    documented = {
        name
        for described in http_client_responses().values()
        for name in described["content"][MEDIA_TYPE]["schema"]["properties"]["type"]["enum"]
    }
    answered = {URN + row[3] for row in TABLE if row[2] != 500}
    assert documented == answered
    assert all(re.fullmatch(r"urn:fastapi-http-client:problem:[a-z-]+", name) for name in documented)
