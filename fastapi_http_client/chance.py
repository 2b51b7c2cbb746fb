"""The one place that chance comes from. Everything else is given a `Chance`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

from fastapi_http_client.arguments import bad_argument

Chance = Callable[[], float]
"""Gives a float in [0, 1)."""


def chance_from(source: Any) -> Chance:
    """The source that a caller gave: an object with `random()`, a callable, or None for the interpreter's own."""
    if source is None:
        return random.random
    chance = getattr(source, "random", source)
    if not callable(chance):
        raise bad_argument("AsyncHTTPClient", "random", "must have a method random(), or be callable")
    return cast("Chance", chance)
