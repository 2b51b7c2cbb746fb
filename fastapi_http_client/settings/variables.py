"""The names of clients, options and variables: their normal form, and what was probably meant by a wrong one.

A variable is `<PREFIX><NAME>__<OPTION>`. Names are compared in lower case with `-` as `_`. Nothing here reads anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi_http_client.config import APIKeyConfig, BasicConfig, BearerConfig, ClientConfig, OAuth2Config
from fastapi_http_client.errors import ConfigurationError

DEFAULT = "default"
"""The section that lies under every client; no client can have this name."""
STORE = "HTTP_CLIENTS_STORE"
"""The variable with the address of the store that a fleet's processes share, whatever the prefix is."""
STORE_KEY = f"{STORE}_KEY"
STORE_PREFIX = f"{STORE}_PREFIX"
STORE_PROCESSES = f"{STORE}_PROCESSES"
SEPARATOR = "__"

OPTIONS = tuple(ClientConfig.model_fields)
FIELDS_OF_AUTH = {
    model.model_fields["type"].default: tuple(model.model_fields)
    for model in (BearerConfig, APIKeyConfig, BasicConfig, OAuth2Config)
}
AUTH_FIELDS = tuple(dict.fromkeys(field for fields in FIELDS_OF_AUTH.values() for field in fields))
OTHER_WORDS = {
    **dict.fromkeys(("retries", "max_retries", "retry_count", "max_attempts", "attempts"), "retry_attempts"),
    **dict.fromkeys(("url", "host", "endpoint"), "base_url"),
    **dict.fromkeys(("verify", "ssl_verify", "tls_verify"), "verify_ssl"),
}
"""What options are called elsewhere."""
_NAME = re.compile(r"[^\W_]+(_[^\W_]+)*")


def normalise(name: str) -> str:
    """The one form in which names are compared."""
    return name.lower().replace("-", "_")


def is_client_name(normal: str) -> bool:
    return _NAME.fullmatch(normal) is not None


def client_name(name: object) -> str:
    """The normal form of a client's name. Raises `ConfigurationError` for a name that no client can have."""
    if not isinstance(name, str):
        raise ConfigurationError(f"the name of a client must be a text, not {type(name).__name__}")
    normal = normalise(name)
    if normal == DEFAULT:
        raise ConfigurationError(f'"{name}" cannot be the name of a client: DEFAULT is what lies under every client')
    if not is_client_name(normal):
        raise ConfigurationError(
            f'"{name}" cannot be the name of a client: it must be letters and digits, joined by single "_" or "-"'
        )
    return normal


def checked_prefix(prefix: str) -> str:
    """The prefix itself. Raises `ConfigurationError` for one under which variables could not be told apart."""
    if not isinstance(prefix, str):
        raise ConfigurationError(f"env_prefix: must be a text, not {type(prefix).__name__}")
    if not prefix.strip("_-") or not prefix.endswith("_"):
        raise ConfigurationError(f'env_prefix: "{prefix}" does not end with an underscore, as "HTTP_CLIENT__" does')
    return prefix


def variable(prefix: str, client: str, *path: str) -> str:
    """The variable of a client (as JSON), or of one of its options: `auth`, `token`."""
    return prefix + SEPARATOR.join((client, *path)).upper()


def json_object(text: str) -> dict[str, Any] | None:
    """The text as a JSON object, or None when it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# -- what was meant ----------------------------------------------------------------------------------------------


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of the known words that was probably meant."""
    import difflib  # only here: most words are right

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def meant_instead_of_option(prefix: str, client: str, path: Sequence[str]) -> str | None:
    """For a variable whose option does not exist."""
    if right := _as_option(path[1:]):  # HTTP_CLIENT__MY__API__TIMEOUT
        return variable(prefix, f"{client}_{path[0]}", *right)
    if client.endswith("_auth") and path[0] in AUTH_FIELDS:  # HTTP_CLIENT__GITHUB_AUTH__TOKEN
        return variable(prefix, client.removesuffix("_auth"), "auth", path[0])
    if len(path) == 1 and path[0] in OTHER_WORDS:
        return variable(prefix, client, OTHER_WORDS[path[0]])
    known: dict[str, tuple[str, ...]] = {option: (option,) for option in OPTIONS}
    known |= {f"auth{SEPARATOR}{field}": ("auth", field) for field in AUTH_FIELDS}
    guess = closest(SEPARATOR.join(path), known, cutoff=0.5)
    return variable(prefix, client, *known[guess]) if guess else None


def meant_instead_of_client(prefix: str, client: str) -> str | None:
    """For a variable that ends after one underscore: `HTTP_CLIENT__GITHUB_BASE_URL`."""
    option = max((option for option in OPTIONS if client.endswith(f"_{option}")), key=len, default=None)
    return variable(prefix, client.removesuffix(f"_{option}"), option) if option else None


def near_miss(prefix: str, name: str, text: str) -> str | None:
    """The variable that was probably meant by one without our prefix, or None when it is somebody else's.

    Only what cannot well be a coincidence counts. The name must begin with the prefix's words, perhaps run together or
    in the plural, hold a double underscore after them, and end as ours do: in `<name>__<option>`, or after the double
    underscore in `<name>_<option>`, or in `<name>` with a JSON object of our options as the value. So
    `HTTP_CLIENTS__X__TIMEOUT`, `HTTP_CLIENT_X__TIMEOUT` and `HTTPCLIENT__X__TIMEOUT` are near misses;
    `HTTP_CLIENT_TIMEOUT`, `HTTP_CLIENTS_STORE`, `HTTP_CLIENT_X__COLOUR` and `ACME_HTTP_CLIENT__X__TIMEOUT` are not.
    """
    words = [re.escape(word) for word in normalise(prefix).split("_") if word]
    match = re.fullmatch(f"{'_*'.join(words).removesuffix('s')}s?(_+)(.+)", normalise(name))
    if match is None:
        return None
    client, *path = match[2].split(SEPARATOR)
    if not is_client_name(client):
        return None
    if path:
        right = _as_option(path)
        return variable(prefix, client, *right) if right else None
    if match[1] != SEPARATOR:
        return None
    if any(normalise(key) in OPTIONS for key in json_object(text) or ()):
        return variable(prefix, client)
    return meant_instead_of_client(prefix, client)


def perhaps_meant(prefix: str, name: str, clients: Iterable[str]) -> str | None:
    """The variable of one of these clients that another one may have been meant for. It may be somebody else's too."""
    if near_miss(prefix, name, "") is not None:  # an error already
        return None
    store = closest(name.upper(), [STORE, STORE_KEY, STORE_PREFIX, STORE_PROCESSES], cutoff=0.85)
    if store is not None and SEPARATOR not in name:
        return store
    return _with_single_underscores(prefix, name, clients) or _with_misspelled_prefix(prefix, name)


def _with_misspelled_prefix(prefix: str, name: str) -> str | None:
    """For `HTTP_CLENT__GITHUB__TIMEOUT`."""
    start, *path = normalise(name).split(SEPARATOR)
    if len(path) < 2 or not is_client_name(path[0]):
        return None
    right = _as_option(path[1:])
    ours = normalise(prefix).strip("_")
    return variable(prefix, path[0], *right) if right and closest(start, [ours], cutoff=0.9) else None


def _with_single_underscores(prefix: str, name: str, clients: Iterable[str]) -> str | None:
    """For `HTTP_CLIENT_GITHUB_TIMEOUT`, when there is a client github."""
    start = "_".join(word for word in normalise(prefix).split("_") if word)
    normal = normalise(name)
    for client in clients:
        if SEPARATOR not in normal and normal.startswith(f"{start}_{client}_"):
            rest = normal.removeprefix(f"{start}_{client}_")
            if rest in OPTIONS:
                return variable(prefix, client, rest)
            if rest.startswith("auth_") and rest.removeprefix("auth_") in AUTH_FIELDS:
                return variable(prefix, client, "auth", rest.removeprefix("auth_"))
    return None


def _as_option(path: Sequence[str]) -> tuple[str, ...] | None:
    """The path of the option that this is, or is a letter away from."""
    match path:
        case [option]:
            right = closest(option, OPTIONS, cutoff=0.85)
            return (right,) if right else None
        case ["auth", field] if field in AUTH_FIELDS:
            return ("auth", field)
        case _:
            return None
