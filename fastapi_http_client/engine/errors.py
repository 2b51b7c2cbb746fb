"""What an error of the engine, and of `httpcore/`, tells beyond its class and message."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import httpx

E = TypeVar("E", bound=BaseException)


class ExchangeFacts(NamedTuple):
    """How far the exchange had come when it failed.

    A failure on a reused connection before any byte of a response is most likely the keep-alive race: the server
    closed the idle connection while the request was on its way. RFC 9110 section 9.2.2 lets a client repeat an
    idempotent request then; any other may have been processed.
    """

    request_sent: bool
    """Whether any byte of the request may have reached the server. When false, every request may be repeated."""
    response_started: bool
    """Whether any byte of a response was received."""
    connection_reused: bool
    """Whether the connection had carried another request before."""
    lasted: float = math.inf
    """Seconds that the exchange took, from when it was given its connection; infinite when nobody has measured."""
    head: tuple[int, str] | None = None
    """Status and HTTP version of the response, if its head was received."""


NOTHING_SENT = ExchangeFacts(request_sent=False, response_started=False, connection_reused=False)


class ResponseTooLargeError(httpx.ReadError):
    """The body is larger than the `max_bytes` of the call, on the wire or decoded."""


class DeadlineExceededError(httpx.ReadTimeout):
    """The exchange was not complete by the `end_by` of the call."""


def with_facts(error: E, facts: ExchangeFacts) -> E:
    """The same error, carrying the facts for `exchange_facts`."""
    error.__dict__["exchange_facts"] = facts
    return error


def exchange_facts(error: BaseException) -> ExchangeFacts | None:
    """What a transport of ours knows about the exchange that failed with this error; None when it knows nothing."""
    facts = error.__dict__.get("exchange_facts")
    return facts if isinstance(facts, ExchangeFacts) else None


CONNECT_FAILURES = (OSError, ValueError, OverflowError)
"""What connecting fails with: also `ssl.SSLError`, `UnicodeError`, and what an impossible port leads to."""


def why_not_connected(step: str, error: Exception, seconds: float | None) -> str:
    """Why a step of connecting, which had so many seconds, has failed."""
    if not isinstance(error, TimeoutError):
        return f"{step} failed: {describe(error)}"
    # With a number it is the operating system's own limit, which can be shorter.
    late = f" within {seconds:g} s" if seconds is not None and error.errno is None else f": {describe(error)}"
    return f"{step} did not succeed{late}"


def describe(error: BaseException) -> str:
    """A text for an error that may have none: `str()` of many an `OSError` is empty."""
    return str(error) or type(error).__name__
