"""What arguments of a constructor or a function must be like, and the error that says which is not."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable
from typing import TypeVar

from fastapi_http_client.errors import ConfigurationError, Problem

T = TypeVar("T")


def refusal(owner: str, *problems: Problem) -> ConfigurationError:
    """The error that lists the problems; `owner` is whose arguments they are, or empty."""
    message = "; ".join(f"{owner}: {problem}" if owner else str(problem) for problem in problems)
    return ConfigurationError(message, problems=problems)


def bad_argument(owner: str, argument: str, what: str) -> ConfigurationError:
    """The error for a single argument: `what` says what it must be, and never holds a secret."""
    return refusal(owner, Problem(argument, what))


def check(owner: str, *problems: Problem | None) -> None:
    """Raise `ConfigurationError` when any of the checks below has found a problem."""
    found = [problem for problem in problems if problem is not None]
    if found:
        raise refusal(owner, *found)


def count(argument: str, value: object) -> Problem | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return Problem(argument, f"must be a whole number of at least 1, not {value!r}")
    return None


def seconds(argument: str, value: object) -> Problem | None:
    if not _is_above_0(value):
        return Problem(argument, f"must be a number of seconds above 0, not {value!r}")
    return None


def rate(argument: str, value: object) -> Problem | None:
    if not _is_above_0(value):
        return Problem(argument, f"must be a number of tokens a second above 0, not {value!r}")
    return None


def share(argument: str, value: object) -> Problem | None:
    if value is not None and not (_is_above_0(value) and value <= 1):  # type: ignore[operator]  # a number, then
        return Problem(argument, f"must be a share above 0 and at most 1, not {value!r}")
    return None


def awaitable(returned: Awaitable[T], what: str) -> Awaitable[T]:
    """What a hook of the user has returned. Raises `TypeError`, which names it, for one that is not async."""
    if not inspect.isawaitable(returned):
        raise TypeError(f"{what}: must be an async function; it returned {type(returned).__name__}")
    return returned


def _is_above_0(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
