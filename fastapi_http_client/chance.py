"""The one place that chance comes from. Everything else is given a `Chance`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

from fastapi_http_client.errors import ConfigurationError, Problem

Chance = Callable[[], float]
"""Gives a float in [0, 1)."""


def chance_from(source: Any) -> Chance:
    """The source that a caller gave: an object with `random()`, a callable, or None for the interpreter's own."""
    if source is None:
        return random.random
    chance = getattr(source, "random", source)
    if not callable(chance):
        problem = Problem("random", "must have a method random(), or be callable")
        raise ConfigurationError(f"AsyncHTTPClient: {problem}", problems=(problem,))
    return cast("Chance", chance)
