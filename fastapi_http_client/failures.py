"""What an exchange that failed is called: this package's errors, made of what a transport, a limit or a body came to.

And what the circuit is told of it, for that is the same question: whose doing it was.

Each says the same: client, request, attempt, time spent, what happened, whether the upstream can have seen the request,
and whether it was the upstream that failed.
"""

from __future__ import annotations

import asyncio
from types import NoneType
from typing import Any

import httpx

from fastapi_http_client.call import Call
from fastapi_http_client.engine.errors import ExchangeFacts, ResponseTooLargeError, exchange_facts
from fastapi_http_client.errors import Attempt, HTTPClientError, HTTPRequestError, HTTPTimeoutError, TimeoutPhase, also
from fastapi_http_client.policies.circuit_breaker import Outcome
from fastapi_http_client.redaction import printable, redact_url, without_frames

_PHASES: dict[type[httpx.TimeoutException], TimeoutPhase] = {
    httpx.ConnectTimeout: "connect",
    httpx.ReadTimeout: "read",
    httpx.WriteTimeout: "write",
    httpx.PoolTimeout: "pool",
}
_WHAT = {
    "connect": "could not connect",
    "read": "received nothing",
    "write": "could not send",
    "pool": "got no connection from the pool",
}
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_NEVER_SENT_AND_FINAL = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL)
_FINAL = (httpx.DecodingError, httpx.StreamError, ResponseTooLargeError)


class CallersBodyError(httpx.TransportError):
    """What a transport sees when the caller's body has failed, which may be with the error of somebody else's call."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error  # httpcore2 would take a cause away


def without_secrets(error: Exception) -> BaseException:
    """A network's error without its frames. Any other keeps them: it comes from a bug, or from a test's mock."""
    return without_frames(error) if isinstance(error, httpx.RequestError) else error


def failure(error: Exception, request: httpx.Request, max_bytes: int | None) -> HTTPRequestError:
    """The error of ours for what the exchange of a whole response came to."""
    too_large = f"the response is larger than max_response_bytes ({max_bytes})"
    return request_error(error, request, too_large if isinstance(error, ResponseTooLargeError) else None)


def is_of_a_call(error: Exception) -> bool:
    """Whether an error in the caller's body is that of a call: another one's, which would be taken for this one's."""
    return isinstance(error, httpx.HTTPError | httpx.StreamError | HTTPClientError)


def body_error(error: CallersBodyError, request: httpx.Request) -> HTTPRequestError:
    """The error of ours for a body that could not be produced because another call has failed."""
    call = Call.of(request)
    progress = exchange_facts(error)
    kind, text = type(error.error).__name__, printable(str(error), 300)
    # Of a body that was read before, httpx's own class. No other: that of another client's call would mislead.
    cls = also(HTTPRequestError, type(error.error)) if isinstance(error.error, httpx.StreamError) else HTTPRequestError
    failed = cls(
        described(request, f"the request's body failed: {kind}{f': {text}' if text else ''}"),
        request=request,
        client=call.client_name,
        attempts=call.attempts,
        may_have_run=progress is None or progress.request_sent,
        transient=False,
    )
    failed._is_ours = True
    return failed


def request_error(error: Exception, request: httpx.Request, what: str | None = None) -> HTTPRequestError:
    """The error of ours for what a transport raised; `what` says it better than the error itself."""
    if isinstance(error, HTTPRequestError):
        return error
    call = Call.of(request)
    progress = exchange_facts(error)  # what the transport knows, which is more than the class can tell
    facts: dict[str, Any] = {
        "request": request,
        "client": call.client_name,
        "attempts": call.attempts,
        "may_have_run": not isinstance(error, (*_NEVER_SENT, *_NEVER_SENT_AND_FINAL, TypeError))
        if progress is None
        else progress.request_sent,
        "transient": isinstance(error, httpx.TransportError | OSError | asyncio.IncompleteReadError)
        and not isinstance(error, (*_NEVER_SENT_AND_FINAL, *_FINAL)),
    }
    kind = type(error).__name__
    text = printable(str(error), 300)
    if isinstance(error, httpx.TimeoutException):
        phase = _phase(error)
        limit = (request.extensions.get("timeout") or {}).get(phase)
        within = "" if limit is None else f" within {limit:g} s"
        what = f"{_WHAT[phase]}{within}"
        late = also(HTTPTimeoutError, type(error))(described(request, f"{what} ({kind})"), phase=phase, **facts)
        late._what = what
        return late
    failed = also(HTTPRequestError, type(error))(
        described(request, what or (f"{kind}: {text}" if text else kind)), **facts
    )
    failed._what = what or text or kind
    return failed


def _phase(error: httpx.TimeoutException) -> TimeoutPhase:
    for cls, phase in _PHASES.items():
        if isinstance(error, cls):
            return phase
    return "read"


def facts_of_cut_off(cut_off: BaseException) -> ExchangeFacts | None:
    """What the transport has noted of an exchange that a limit of ours has cut off, if it is one that does."""
    for error in (cut_off, cut_off.__cause__ or cut_off.__context__):  # Python 3.11.2 gives a timeout no cause
        facts = None if error is None else exchange_facts(error)
        if facts is not None:
            return facts
    return None


def was_never_sent(cut_off: Exception) -> bool:
    """Whether a limit of ours struck while a connection was still being opened."""
    facts = facts_of_cut_off(cut_off)
    return facts is not None and not facts.request_sent


TIMER_MARGIN = 0.03  # seconds: more than the engine needs to notice that a limit has passed


def has_hung(took: float, limit: float | None, call: Call, cut_off: BaseException) -> bool:
    """Whether the upstream has had the whole time of an attempt that was cut off after so many seconds.

    Not when a part of it went by while the attempt waited for the caller's body, for a hook or for a connection.
    """
    if limit is None or call.waits_for_body or call.resends == call.resends_before:
        return False
    facts = facts_of_cut_off(cut_off)
    if facts is not None and facts.request_sent:
        took = min(took, facts.lasted)
    return took >= limit - TIMER_MARGIN


def attempt_timeout(request: httpx.Request, limit: float, cut_off: Exception) -> HTTPTimeoutError:
    """The error for an attempt that took longer than `limit` seconds; `cut_off` says what it was doing then."""
    call = Call.of(request)
    connecting = was_never_sent(cut_off)  # after a wait for the pool, say
    unsent = connecting or call.resends == call.resends_before
    what = "could not connect" if connecting else "not sent" if unsent else "no complete response"
    if call.waits_for_body:
        what = "its own body was not complete"
    what = f"{what} within {limit:g} s"
    late = HTTPTimeoutError(
        described(request, what),
        phase="connect" if connecting else "attempt",
        request=request,
        client=call.client_name,
        attempts=call.attempts,
        may_have_run=not unsent,
    )
    late._what = what
    late._is_ours = not has_hung(limit, limit, call, cut_off)
    return late


def total_timeout(request: httpx.Request, cut_off: Exception | None = None) -> HTTPTimeoutError:
    """The error for a call that has used up the time it was given; `cut_off` says what it was doing then."""
    call = Call.of(request)
    unsent = cut_off is not None and was_never_sent(cut_off)
    now = call.clock.monotonic()
    spent = now - call.started
    whose = "the time of the request that it serves" if call.ends_with_request else "the call's time (total_timeout)"
    attempts = call.attempts
    if call.attempt_began is not None and call.resends > call.resends_before:
        cut = TimeoutError("cut off by the limit of the whole call")
        attempts = [*attempts, Attempt(len(attempts) + 1, None, cut, now - call.attempt_began)]
    return HTTPTimeoutError(
        described(
            request,
            f"{whose} is over after {spent:.2f} s and {len(call.attempts)} finished attempts",
            attempt=False,
        ),
        phase="total",
        request=request,
        client=call.client_name,
        attempts=attempts,
        may_have_run=call.resends > unsent,
        transient=False,
    )


def described(request: httpx.Request, what: str, *, attempt: bool = True) -> str:
    """A message that says which client, which request and what; with `attempt`, in which attempt and how late."""
    call = Call.of(request)
    who = f"{call.client_name}: " if call.client_name else ""
    line = f"{who}{request.method} {redact_url(request.url, call.secret_params)}"
    if attempt:
        line += f", attempt {max(call.attempts_begun, 1)}, after {call.clock.monotonic() - call.started:.2f} s"
    return f"{line}: {what}"


# -- what the circuit is told


def outcome_of(status: int) -> Outcome:
    """An answer below 500 proves life; a 429 proves neither health nor sickness."""
    if status >= 500:
        return Outcome.FAILURE
    return Outcome.IGNORED if status == 429 else Outcome.SUCCESS


def outcome_of_error(error: HTTPRequestError) -> Outcome:
    """No response is a failure, unless it was our doing: a bad request, a full pool, a call that ran out of time."""
    if error._is_ours or (isinstance(error, HTTPTimeoutError) and error.phase in ("pool", "total")):
        return Outcome.IGNORED
    if error.transient:
        return Outcome.FAILURE
    unusable = isinstance(error.__cause__, NoneType | httpx.DecodingError | ResponseTooLargeError)
    return Outcome.SUCCESS if error.may_have_run and unusable else Outcome.IGNORED  # an answer, only none to be used


def outcome_of_body(error: Exception | None) -> Outcome:
    if error is None:
        return Outcome.SUCCESS
    return outcome_of_error(error) if isinstance(error, HTTPRequestError) else Outcome.IGNORED
