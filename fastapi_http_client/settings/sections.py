"""Values with their sources: the options of a client as sections, and how one place goes over another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from fastapi_http_client.config import given_fields

ENVIRONMENT = "environment"
SECRETS = "secrets file"
CODE = "code"


class Source(NamedTuple):
    """Where a value comes from: the layer (`environment`, the path of a .env file …), and its name there."""

    layer: str
    name: str
    key: str = ""
    """The key inside a variable that holds JSON."""

    def __str__(self) -> str:
        return f"{self.layer} {self._place}"

    @property
    def argument(self) -> str:
        """How a problem names it."""
        return self._place if self.layer in (ENVIRONMENT, CODE) else f"{self._place} ({self.layer})"

    @property
    def _place(self) -> str:
        return f"{self.name}, key {self.key}" if self.key else self.name


class Setting:
    """One value as it was given. It may be a secret, which the repr does not show."""

    __slots__ = ("source", "value")

    def __init__(self, value: Any, source: Source) -> None:
        self.value = value
        self.source = source

    def __repr__(self) -> str:
        return f"Setting({self.source})"


Section = dict[str, "Setting | Section"]
"""Options by name; `auth` and `headers` are sections of their own."""


def merge(under: Section, over: Section) -> Section:
    """`over` field by field on top of `under`; an `auth` with a type replaces one that has a type too.

    An `auth` without a type is a part of one (a token in a secrets file, say) and is filled in. Keys differ in case
    only where they are names of headers.
    """
    merged = dict(under)
    for key, item in over.items():
        twin = next((other for other in merged if other.lower() == key.lower()), key)
        below = merged.pop(twin, None)
        if isinstance(item, dict) and isinstance(below, dict):
            replaced = key == "auth" and "type" in item and "type" in below
            merged[key] = item if replaced else merge(below, item)
        else:
            merged[key] = item
    return merged


def code_section(client: str, options: Mapping[str, Any]) -> Section:
    """The options that code gives to a client: fields of `ClientConfig`, or an auth object as `auth`."""

    def item(value: Any, path: str) -> Setting | Section:
        if isinstance(value, BaseModel):  # a section that was validated before
            value = {"type": getattr(value, "type", None), **given_fields(value)}
        if isinstance(value, Mapping):
            return {key: item(inner, f"{path}.{key}") for key, inner in value.items()}
        return Setting(value, Source(CODE, path))

    return {option: item(value, f'clients["{client}"].{option}') for option, value in options.items()}


def leaves(section: Section, path: str = "") -> Iterator[tuple[str, Setting]]:
    for key, item in section.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{path}{key}.")
        else:
            yield f"{path}{key}", item


def values_of(section: Section) -> dict[str, Any]:
    return {key: values_of(item) if isinstance(item, dict) else item.value for key, item in section.items()}
