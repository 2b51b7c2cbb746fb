"""The errors of this package: one tree, every error of it also an httpx error where httpx has a counterpart.

    HTTPClientError
    ├── HTTPRequestError          no usable response                 also httpx.TransportError
    │   └── HTTPTimeoutError      a limit in time was reached        also httpx.TimeoutException
    ├── HTTPResponseError         4xx/5xx from raise_for_status()    also httpx.HTTPStatusError
    │   └── RateLimitError        429, theirs or ours
    ├── RetryExhaustedError       every allowed attempt failed       also httpx.HTTPError
    ├── CircuitBreakerOpenError   refused: the circuit is open       also httpx.HTTPError
    ├── AuthenticationError       a token could not be fetched       also httpx.HTTPError
    └── ConfigurationError        a bad variable or argument         also ValueError

Where httpx or the network raised an error of a narrower class, ours is one of that class too: `except
httpx.ConnectError` and `except httpx.ReadTimeout` find it, also when it ended the last attempt of several.

`asyncio.CancelledError` is never wrapped. No message, repr or pickle of these errors holds a credential.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast

import httpx

from fastapi_http_client.redaction import redact_request

TimeoutPhase = Literal["connect", "read", "write", "pool", "attempt", "total"]


class Attempt(NamedTuple):
    """One entry of the ledger: what one attempt of a call came to.

    `status` is the response's status code, or None when there was none and `error` says why. `elapsed` is how
    long the attempt took and `delay` how long we then waited before the next one, both in seconds.
    """

    number: int
    status: int | None
    error: Exception | None
    elapsed: float
    delay: float = 0.0


class HTTPClientError(Exception):
    """The base of all errors of this package.

    `request` is the request as the caller made it, with sensitive headers masked, or None; `attempts` is the ledger of
    the call so far; `client` is the name of the client, or None. A pickled error keeps its message and facts, but
    neither request nor response.
    """

    def __init__(
        self,
        message: str = "",
        *,
        request: httpx.Request | None = None,
        attempts: Sequence[Attempt] = (),
        client: str | None = None,
    ) -> None:
        Exception.__init__(self, message)
        self.message = message
        self._request = None if request is None else redact_request(request)
        self.attempts: tuple[Attempt, ...] = tuple(attempts)
        self.client = client

    @property
    def request(self) -> Any:  # httpx.Request | None; httpx's own errors say it is never None
        return self._request

    @request.setter
    def request(self, request: httpx.Request | None) -> None:
        self._request = None if request is None else redact_request(request)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {**self.__dict__, "_request": None, "attempts": _plain(self.attempts)}
        for name in ("response", "last_response", "last_error"):
            if name in state:
                state[name] = None
        state.pop("__notes__", None)
        cls = type(self)
        return _rebuild, (cls.__bases__ if "_is_combined" in cls.__dict__ else (cls,), str(self), state)


E = TypeVar("E", bound=HTTPClientError)


def of_call(
    error: E,
    *,
    message: str | None = None,
    request: httpx.Request | None = None,
    client: str | None = None,
    attempts: Sequence[Attempt] = (),
) -> E:
    """An error that was raised where nothing is known of the call, with what is known of it here."""
    if message is not None:
        error.message = message
        error.args = (message,)
    error.request = request
    error.client = client
    error.attempts = tuple(attempts)
    return error


def _plain(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """The ledger without live exceptions, which hold requests, tracebacks and often the error that holds the ledger."""
    return tuple(a if a.error is None else a._replace(error=HTTPClientError(str(a.error))) for a in attempts)


def _rebuild(classes: tuple[type[HTTPClientError], ...], message: str, state: dict[str, Any]) -> HTTPClientError:
    cls: type[HTTPClientError] = classes[0] if len(classes) == 1 else _combined(classes)
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


def also(cls: type[E], cause: type[Any]) -> type[E]:
    """A class of the same name that is also, of httpx's classes, the one that the cause has."""
    for kind in cause.__mro__:
        if kind.__module__ == "httpx":
            is_wanted = issubclass(kind, httpx.RequestError | httpx.StreamError) and not issubclass(cls, kind)
            return cast("type[E]", _combined((cls, kind))) if is_wanted else cls
    return cls


@functools.cache
def _combined(classes: tuple[Any, ...]) -> Any:
    names = {name: getattr(classes[0], name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(classes[0].__name__, classes, {**names, "_is_combined": True})


class HTTPRequestError(HTTPClientError, httpx.TransportError):
    """There is no usable response; `__cause__` is the error underneath.

    `may_have_run` says whether the upstream can have seen the request: False only when it surely has not. `transient`
    says whether the same request may fare better later; a bad address or header never does.
    """

    _what = ""  # the message without the call that it is of
    _is_ours = False
    """Whether it was not the upstream that failed: the caller's body, a hook, the line for a connection."""

    def __init__(self, message: str = "", *, may_have_run: bool = True, transient: bool = True, **facts: Any) -> None:
        HTTPClientError.__init__(self, message, **facts)
        self.may_have_run = may_have_run
        self.transient = transient


class HTTPTimeoutError(HTTPRequestError, httpx.TimeoutException):
    """A limit in time was reached. `phase` says which: httpx's own four, one attempt's, or the whole call's."""

    def __init__(self, message: str = "", *, phase: TimeoutPhase = "attempt", **facts: Any) -> None:
        HTTPRequestError.__init__(self, message, **facts)
        self.phase: TimeoutPhase = phase


class HTTPResponseError(HTTPClientError, httpx.HTTPStatusError):
    """A response with a 4xx or 5xx status, raised by `raise_for_status()`."""

    def __init__(
        self, message: str = "", *, status_code: int, response: httpx.Response | None = None, **facts: Any
    ) -> None:
        HTTPClientError.__init__(self, message, **facts)
        self.status_code = status_code
        self.response = response  # type: ignore[assignment]  # httpx has no error without a response; our limiter does


class RateLimitError(HTTPResponseError):
    """429 from the upstream, or refused by our own limiter (then `response` is None).

    `retry_after` is in seconds, or None when nobody said.
    """

    def __init__(
        self, message: str = "", *, retry_after: float | None = None, status_code: int = 429, **facts: Any
    ) -> None:
        HTTPResponseError.__init__(self, message, status_code=status_code, **facts)
        self.retry_after = retry_after


class RetryExhaustedError(HTTPClientError, httpx.HTTPError):
    """Every allowed attempt failed. The last one's response or error is attached, and the error is its `__cause__`."""

    def __init__(
        self,
        message: str = "",
        *,
        last_response: httpx.Response | None = None,
        last_error: Exception | None = None,
        **facts: Any,
    ) -> None:
        HTTPClientError.__init__(self, message, **facts)
        self.last_response = last_response
        self.last_error = last_error

    @staticmethod
    def from_last(
        message: str,
        *,
        last_response: httpx.Response | None,
        last_error: Exception | None,
        retry_after: float | None,
        **facts: Any,
    ) -> RetryExhaustedError:
        """The error of the kind that the last cause asks for: also a RateLimitError, or what httpx would raise."""
        if last_response is not None and last_response.status_code == 429:
            limited: Any = _combined((RetryExhaustedError, RateLimitError))(
                message, last_response=last_response, last_error=last_error, **facts
            )
            limited.status_code, limited.response, limited.retry_after = 429, last_response, retry_after
            return cast("RetryExhaustedError", limited)
        kind = also(RetryExhaustedError, type(last_error))
        return kind(message, last_response=last_response, last_error=last_error, **facts)


class CircuitBreakerOpenError(HTTPClientError, httpx.HTTPError):
    """The circuit is open: nothing was sent. `recovery_timeout` is the time in seconds until the next probe."""

    def __init__(self, message: str = "", *, recovery_timeout: float = 0.0, **facts: Any) -> None:
        HTTPClientError.__init__(self, message, **facts)
        self.recovery_timeout = recovery_timeout


class AuthenticationError(HTTPClientError, httpx.HTTPError):
    """There is no credential: a token could not be fetched, at first or after the one before it was refused (401)."""


class Problem(NamedTuple):
    """One thing wrong with a configuration: the argument's path (`auth.token`) and what is wrong, never a value."""

    argument: str
    message: str

    def __str__(self) -> str:
        return f"{self.argument}: {self.message}" if self.argument else self.message


class ConfigurationError(HTTPClientError, ValueError):
    """A bad variable or argument, named in the message. `problems` lists every one that was found."""

    def __init__(self, message: str = "", *, problems: Sequence[Problem] = (), **facts: Any) -> None:
        HTTPClientError.__init__(self, message, **facts)
        self.problems = tuple(problems)
