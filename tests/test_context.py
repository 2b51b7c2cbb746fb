"""The request context by itself: ids, deadlines, binding, and what the log sees."""

from __future__ import annotations

import asyncio
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.context import (
    RequestContext,
    RequestIdFilter,
    bind,
    current_context,
    get_request_id,
    is_valid_request_id,
    new_request_id,
    request_context,
    unbind,
)
from fastapi_http_client.errors import ConfigurationError

asgi_correlation_id = pytest.importorskip("asgi_correlation_id")


@pytest.fixture
def correlation_id():
    """asgi-correlation-id's variable, as its middleware sets it."""
    tokens = []
    yield lambda value: tokens.append(asgi_correlation_id.correlation_id.set(value))
    for token in reversed(tokens):
        asgi_correlation_id.correlation_id.reset(token)


@given(st.text(max_size=140))
def test_a_valid_id_is_one_that_is_safe_in_logs_and_headers(text):
    safe = 0 < len(text) <= 128 and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    assert is_valid_request_id(text) == safe


@pytest.mark.parametrize("text", ["a\n", "a\r\nX: y", "", "é", "a b", "x" * 129, "\x1b[2J", "٣"])
def test_hostile_ids_are_invalid(text):
    assert not is_valid_request_id(text)


def test_new_ids_are_valid_and_differ():
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", text) for text in ids)


def test_there_is_no_id_outside_of_any_request():
    assert get_request_id() is None
    assert current_context() is None


def test_a_context_is_bound_and_given_back():
    with request_context(request_id="job-1", timeout=5) as context:
        assert get_request_id() == "job-1"
        assert current_context() is context
        assert 4.9 < context.remaining() <= 5.0
    assert get_request_id() is None


async def test_a_context_is_bound_with_async_with_as_well():
    async with request_context(request_id="job-2") as context:
        assert get_request_id() == "job-2"
        assert context.remaining() is None
    assert get_request_id() is None


def test_the_context_is_given_back_after_an_error():
    with pytest.raises(RuntimeError), request_context():
        raise RuntimeError
    assert current_context() is None


def test_one_binding_may_be_entered_more_than_once():
    binding = request_context(request_id="again")
    with binding, binding:
        assert get_request_id() == "again"
    assert get_request_id() is None


def test_an_id_is_made_when_none_is_given():
    with request_context():
        first = get_request_id()
    with request_context():
        second = get_request_id()
    assert first
    assert is_valid_request_id(first)
    assert first != second


def test_a_context_within_a_context_keeps_what_it_is_not_told():
    headers = [(b"traceparent", b"x")]
    token = bind(RequestContext("outer", headers=headers, deadline=SYSTEM_CLOCK.monotonic() + 10))
    try:
        with request_context(timeout=1) as inner:
            assert get_request_id() == "outer"
            assert inner.headers is headers
            assert inner.remaining() <= 1
        with request_context(request_id="inner", timeout=60) as inner:
            assert get_request_id() == "inner"
            assert inner.remaining() <= 10, "a deadline only moves forward"
        assert get_request_id() == "outer"
    finally:
        unbind(token)


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "evil\r\nX-Admin: 1", 5])
def test_a_bad_id_is_refused_without_being_shown(request_id):
    with pytest.raises(ConfigurationError, match=r"^request_context: request_id: ") as info:
        request_context(request_id=request_id)
    assert "evil" not in str(info.value)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_bad_timeout_is_refused(timeout):
    with pytest.raises(ConfigurationError, match=r"^request_context: timeout: must be a number of seconds above 0"):
        request_context(timeout=timeout)


async def test_tasks_and_threads_inherit_the_context_and_do_not_leak_it():
    async def serve(name):
        with request_context(request_id=name):
            await asyncio.sleep(0)
            task = asyncio.create_task(asyncio.to_thread(get_request_id))
            await asyncio.sleep(0)
            return await task, get_request_id()

    assert await asyncio.gather(serve("a"), serve("b")) == [("a", "a"), ("b", "b")]
    assert get_request_id() is None


def test_the_remaining_time_is_never_negative():
    assert RequestContext("x", deadline=SYSTEM_CLOCK.monotonic() - 1).remaining() == 0.0


# -- asgi-correlation-id -----------------------------------------------------------------------------------------


def test_the_id_of_asgi_correlation_id_counts_when_it_is_in_use(correlation_id):
    correlation_id("from-correlation-id")
    assert get_request_id() == "from-correlation-id"
    token = bind(RequestContext("ours"))
    assert get_request_id() == "from-correlation-id"
    unbind(token)


def test_an_id_chosen_by_hand_is_stronger_than_asgi_correlation_id(correlation_id):
    correlation_id("from-correlation-id")
    with request_context(request_id="by-hand"), request_context(timeout=1):
        assert get_request_id() == "by-hand"
    with request_context(timeout=1):
        assert get_request_id() == "from-correlation-id"


@pytest.mark.parametrize("value", ["evil\r\nX: y", "é", "", None])
def test_an_unsafe_id_of_asgi_correlation_id_does_not_count(correlation_id, value):
    correlation_id(value)
    assert get_request_id() is None
    token = bind(RequestContext("ours"))
    assert get_request_id() == "ours"
    unbind(token)


def test_asgi_correlation_id_is_not_imported_for_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "asgi_correlation_id.context")
    assert get_request_id() is None
    assert "asgi_correlation_id.context" not in sys.modules


# -- logging -----------------------------------------------------------------------------------------------------


def _record(**extra):
    return logging.makeLogRecord({"msg": "hello", **extra})


def test_the_filter_gives_each_record_the_id():
    record = _record()
    with request_context(request_id="job-1"):
        assert RequestIdFilter().filter(record)
    assert record.request_id == "job-1"


def test_outside_of_a_request_the_id_is_a_dash():
    record = _record()
    RequestIdFilter().filter(record)
    assert record.request_id == "-"


def test_a_record_keeps_the_id_that_it_has():
    """A queue handler's record is filtered again in another thread, which knows no request."""
    record = _record(request_id="job-1")
    RequestIdFilter().filter(record)
    assert record.request_id == "job-1"
