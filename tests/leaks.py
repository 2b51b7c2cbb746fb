"""Everything of an error that a log, an error tracker or a curious caller gets to see, as one text to search."""

from __future__ import annotations

import base64
import contextlib
import pickle
import traceback
from collections.abc import Iterator

import httpx


def seen_in(error: BaseException, *, variables: bool = True) -> str:
    """Text, repr, pickle and traceback (with local variables), of the error and of all that hangs on it."""
    return "\n".join(_texts(error, set(), variables))


def holds(text: str, secret: str) -> bool:
    """Whether the text holds the secret, also within the base64 of HTTP Basic."""
    needle = base64.b64encode(secret.encode()).decode().rstrip("=")
    return (
        secret in text
        or any(base64.b64encode(b"\0" * shift + secret.encode()).decode()[4:-4] in text for shift in range(3))
        or needle in text
    )


def _texts(error: BaseException, seen: set[int], variables: bool) -> Iterator[str]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield f"{error} {error!r} {error.args}"
    trace = traceback.TracebackException.from_exception(error, capture_locals=variables)
    yield "".join(f"{frame.line} {frame.locals}" for frame in trace.stack if "/tests/" not in frame.filename)
    try:
        yield pickle.dumps(error, 0).decode("latin-1")
    except Exception as unpicklable:
        yield repr(unpicklable)
    for name in ("request", "response", "last_response"):
        with contextlib.suppress(RuntimeError):  # httpx's own errors without a request
            yield from _of_message(getattr(error, name, None))
    linked = [error.__cause__, error.__context__, getattr(error, "last_error", None)]
    linked += [attempt.error for attempt in getattr(error, "attempts", ())]
    for other in linked:
        if other is not None:
            yield from _texts(other, seen, variables)


def _of_message(message: httpx.Request | httpx.Response | None) -> Iterator[str]:
    if message is None:
        return
    yield f"{message!r} {message.url} {message.headers!r} {message.headers.raw} {message.__dict__.get('_content')!r}"
    if isinstance(message, httpx.Response):
        yield from _of_message(message.request)
        for past in message.history:
            yield from _of_message(past)
