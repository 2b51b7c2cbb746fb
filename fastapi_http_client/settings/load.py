"""The environment as `{name: ClientConfig}`, with the source of every value. The only module that reads settings.

A variable is `<PREFIX><NAME>__<OPTION>`, and each value is taken from the first place that has it:

    environment > .env files > secrets files > code > the DEFAULT section (of the same places) > built-in

Problems are collected, not raised, so that a start can report all of them at once; each names its variable, file or
argument, and none shows a value.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi_http_client.config import AUTH_TYPES, UNKNOWN_OPTION, ClientConfig
from fastapi_http_client.errors import ConfigurationError, Problem
from fastapi_http_client.settings.sections import (
    ENVIRONMENT,
    SECRETS,
    Section,
    Setting,
    Source,
    leaves,
    merge,
    values_of,
)
from fastapi_http_client.settings.variables import (
    AUTH_FIELDS,
    DEFAULT,
    FIELDS_OF_AUTH,
    OPTIONS,
    SEPARATOR,
    STORE,
    STORE_KEY,
    STORE_PREFIX,
    STORE_PROCESSES,
    closest,
    is_client_name,
    json_object,
    meant_instead_of_client,
    meant_instead_of_option,
    near_miss,
    normalise,
    perhaps_meant,
    variable,
)
from fastapi_http_client.transport import missing_extras

logger = logging.getLogger("fastapi_http_client.settings")

FilePath = str | os.PathLike[str]
EnvFiles = FilePath | Sequence[FilePath] | None


# -- reading the places ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """The variables of one place, as they are written there; None for one that was not opened."""

    name: str
    variables: Mapping[str, str | None]


# pydantic-settings is imported where it is used, at the start of an app, so that importing this package stays quick.
# Its sources want a settings class; the bare one declares nothing, and we take their plain variables.


def _read_environment() -> _Layer:
    from pydantic_settings import BaseSettings, EnvSettingsSource

    return _Layer(ENVIRONMENT, EnvSettingsSource(BaseSettings, case_sensitive=True).env_vars)


def _read_env_file(file: FilePath) -> _Layer:
    """Raises `OSError` or `UnicodeError`; a file that does not exist is an empty one."""
    if Path(file).expanduser().is_dir():
        raise IsADirectoryError
    from pydantic_settings import BaseSettings, DotEnvSettingsSource

    source = DotEnvSettingsSource(BaseSettings, env_file=Path(file), env_file_encoding="utf-8", case_sensitive=True)
    return _Layer(os.fspath(file), {name: text or "" for name, text in source.env_vars.items()})


def _read_secrets(directory: FilePath, prefix: str, problems: list[Problem]) -> _Layer:
    """One variable a file, without the white space around it. Raises `OSError`.

    Only our own files are opened: such a directory also holds the key stores and certificates of others, which
    pydantic-settings' own source reads and decodes, all of them.
    """
    secrets: dict[str, str | None] = {}
    for file in sorted(Path(directory).expanduser().iterdir()):
        try:
            if file.is_file():
                secrets[file.name] = file.read_text("utf-8").strip() if _is_ours(file.name, prefix) else None
        except (OSError, UnicodeError) as error:
            problems.append(Problem(f"{file.name} ({SECRETS})", f"cannot be read ({type(error).__name__})"))
    return _Layer(SECRETS, secrets)


def _read_all(env_file: EnvFiles, secrets_dir: FilePath | None, prefix: str, problems: list[Problem]) -> list[_Layer]:
    """The places outside the code, the weakest first; of several .env files the last is the strongest."""

    layers = []
    if secrets_dir is not None:
        try:
            layers.append(_read_secrets(secrets_dir, prefix, problems))
        except OSError as error:
            what = f"{os.fspath(secrets_dir)} is no directory that can be read ({type(error).__name__})"
            problems.append(Problem("secrets_dir", what))
    for file in [env_file] if isinstance(env_file, str | os.PathLike) else env_file or ():
        try:
            layers.append(_read_env_file(file))
        except (OSError, UnicodeError) as error:
            problems.append(Problem("env_file", f"{os.fspath(file)} cannot be read ({type(error).__name__})"))
    layers.append(_read_environment())
    return layers


_STORE_VARIABLES = {normalise(name): name for name in (STORE, STORE_KEY, STORE_PREFIX, STORE_PROCESSES)}


def _is_ours(name: str, prefix: str) -> bool:
    return normalise(name).startswith(normalise(prefix)) or _is_store(name)


def _is_store(name: str) -> bool:
    return normalise(name) in _STORE_VARIABLES


# -- one layer as sections ---------------------------------------------------------------------------------------


class _Reader:
    """Turns the variables of one layer into a section for each client."""

    def __init__(self, layer: _Layer, prefix: str, problems: list[Problem]) -> None:
        self._layer = layer
        self._prefix = prefix
        self._problems = problems
        self._values: dict[tuple[str, ...], tuple[str, str]] = {}

    def sections(self) -> dict[str, Section]:
        start = normalise(self._prefix)
        for name, text in self._layer.variables.items():
            normal = normalise(name)
            if text == "" or _is_store(name):
                continue
            if normal.startswith(start):
                self._add(tuple(normal[len(start) :].split(SEPARATOR)), name, text or "")
            elif meant := near_miss(self._prefix, name, text or ""):
                self._report(name, f"is not read; did you mean {meant}?")
        sections: dict[str, Section] = {}
        for depth in (1, 2, 3):  # a whole client, then its options, then the fields of its auth: the closest wins
            level: dict[str, Section] = {}
            for path, (name, text) in self._values.items():
                section = self._section(path, name, text) if min(len(path), 3) == depth else None
                if section is not None:
                    level[path[0]] = merge(level.get(path[0], {}), section)
            for client, section in level.items():
                sections[client] = merge(sections.get(client, {}), section)
        return sections

    def _add(self, path: tuple[str, ...], name: str, text: str) -> None:
        """Names that differ in case or dashes only are one option, which has one value."""
        other, other_text = self._values.setdefault(path, (name, text))
        if other_text != text:
            self._report(name, f"is the same option as {other} and has another value")

    def _section(self, path: tuple[str, ...], name: str, text: str) -> Section | None:
        """What one variable says about its client: nothing when it is wrong, None when it does not even name one."""
        client, *option = path
        if not is_client_name(client):
            self._report(name, f"names no client; a variable is {self._prefix}<NAME>__<OPTION>")
            return None
        match option:
            case []:
                return self._client(client, name, text)
            case ["headers", _]:
                whole = variable(self._prefix, client, "headers")
                return self._report(name, f'unknown option; headers are one JSON object, {whole}={{"X-Name": "value"}}')
            case ["auth" | "headers" as section] if text != "null":
                return self._json_section(section, name, text)
            case ["auth", field]:
                return {"auth": {field: self._setting(text, name)}}
            case [single] if single in OPTIONS:
                return {single: self._setting(text, name)}
            case _:
                meant = meant_instead_of_option(self._prefix, client, option)
                return self._report(name, _unknown_option(meant))

    def _client(self, client: str, name: str, text: str) -> Section | None:
        """A whole client as one JSON object."""
        values = json_object(text)
        meant = meant_instead_of_client(self._prefix, client)
        if values is None or (meant and not all(normalise(key) in OPTIONS for key in values)):
            hint = (
                f"did you mean {meant}?" if meant else f"single options are {variable(self._prefix, client)}__<OPTION>"
            )
            self._report(name, f"is not a JSON object with the options of a client; {hint}")
            return None if meant else {}
        section: Section = {}
        for key, value in values.items():
            option = normalise(key)
            if option not in OPTIONS:
                self._report(name, _unknown_option(closest(option, OPTIONS)), key)
            elif option in ("auth", "headers") and value is not None:
                if isinstance(value, dict):
                    section[option] = self._fields(option, value, name, f"{key}.")
                else:
                    self._report(name, "is not a JSON object", key)
            else:
                section[option] = Setting(value, self._source(name, key))
        return section

    def _json_section(self, section: str, name: str, text: str) -> Section:
        values = json_object(text)
        if values is None:
            return self._report(name, "is not a JSON object")
        return {section: self._fields(section, values, name)}

    def _fields(self, section: str, values: Mapping[str, Any], name: str, path: str = "") -> Section:
        normal = normalise if section == "auth" else str
        return {normal(key): Setting(value, self._source(name, f"{path}{key}")) for key, value in values.items()}

    def _setting(self, text: str, name: str) -> Setting:
        return Setting(None if text == "null" else text, self._source(name))

    def _source(self, name: str, key: str = "") -> Source:
        return Source(self._layer.name, name, key)

    def _report(self, name: str, message: str, key: str = "") -> Section:
        self._problems.append(Problem(self._source(name, key).argument, message))
        return {}


def _types_with(field: str) -> str:
    return " or ".join(kind for kind, fields in FIELDS_OF_AUTH.items() if field in fields)


def _unknown_option(meant: str | None) -> str:
    return f"{UNKNOWN_OPTION}, did you mean {meant}?" if meant else UNKNOWN_OPTION


# -- all places together -----------------------------------------------------------------------------------------


_SWITCHES = {"enable_rate_limiting": "rate_limit_", "enable_circuit_breaker": "circuit_breaker_"}
"""The options that switch something on, and how those begin that say more about it."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """One client as it is to be built."""

    config: ClientConfig
    auth: Any
    """The auth object that code gave, when no stronger place said something about `auth`."""
    sources: Mapping[str, Source]
    """By path (`timeout`, `auth.token`, `headers.Accept`); what is not there is built in."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was found."""

    prefix: str
    clients: Mapping[str, ClientSettings]
    """Those without a problem."""
    names: frozenset[str]
    """The names of all."""
    store: str | None
    problems: tuple[Problem, ...]
    store_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The other variables of the store, by name."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Variables that look like ours and are not, with those that may have been meant."""

    def located(self, name: str, problem: Problem) -> Problem:
        """A problem of a client's configuration, named by the variable, file or code that it comes from."""
        return located(problem, name, self.prefix, self.clients[name].sources)

    def warn(self) -> None:
        """Log what is allowed and ought to be seen."""
        for name, meant in self.ignored.items():
            logger.warning("%s is set and not read; was %s meant?", name, meant)
        for name, client in self.clients.items():
            if not client.config.verify_ssl:
                source = client.sources["verify_ssl"]
                logger.warning("client %s: TLS certificates are not verified (%s)", name, source)
        for source, switch in self._without_effect().items():
            logger.warning("%s has no effect: %s is not set", source, switch)

    def _without_effect(self) -> dict[Source, str]:
        """Where options of a feature are set that no client has switched on or, knowingly, off; and its switch."""
        idle: dict[Source, str] = {}
        used: set[Source] = set()
        for client in self.clients.values():
            for switch, options in _SWITCHES.items():
                set_here = [source for path, source in client.sources.items() if path.startswith(options)]
                if switch in client.sources:
                    used.update(set_here)
                else:
                    idle.update(dict.fromkeys(set_here, switch))
        return {source: switch for source, switch in idle.items() if source not in used}

    def missing(self, name: str) -> str:
        """What to say about a client that nobody configured."""
        guess = closest(name, self.names)
        question = f", did you mean {guess}? Or set" if guess else ": set"
        known = ", ".join(sorted(self.names)) or "none"
        return (
            f"no client {name} is configured{question} {variable(self.prefix, name, 'base_url')} "
            f"(configured are: {known})"
        )


def load_settings(
    code: Mapping[str, Section], *, prefix: str, env_file: EnvFiles = None, secrets_dir: FilePath | None = None
) -> Settings:
    """Read every place now and merge it over what the code says. What is wrong is in `problems` and not raised."""
    problems: list[Problem] = []
    outside: dict[str, Section] = {}
    store: dict[str, str] = {}
    layers = _read_all(env_file, secrets_dir, prefix, problems)
    for layer in layers:
        for name, section in _Reader(layer, prefix, problems).sections().items():
            outside[name] = merge(outside.get(name, {}), section)
        store |= {
            _STORE_VARIABLES[normalise(name)]: text
            for name, text in layer.variables.items()
            if text and _is_store(name)
        }
    default = outside.pop(DEFAULT, {})
    problems.extend(_problems_of_default(default, prefix))
    clients: dict[str, ClientSettings] = {}
    names = frozenset({*code, *outside})
    for name in sorted(names):
        section = merge(merge(default, code.get(name, {})), outside.get(name, {}))
        sources = {path: setting.source for path, setting in leaves(section)}
        try:
            clients[name] = _client_settings(section, sources)
        except ConfigurationError as error:
            problems.extend(located(problem, name, prefix, sources) for problem in error.problems)
    ignored = {
        name: meant
        for layer in layers
        for name in layer.variables
        if not _is_ours(name, prefix) and (meant := perhaps_meant(prefix, name, names)) is not None
    }
    return Settings(prefix, clients, names, store.pop(STORE, None), tuple(dict.fromkeys(problems)), store, ignored)


def _client_settings(section: Section, sources: Mapping[str, Source]) -> ClientSettings:
    values = values_of(section)
    # Configured auth is a section, and null takes it away; what is neither is an object that code gave.
    auth = None if isinstance(section.get("auth"), dict) else values.pop("auth", None)
    if "headers" in values:
        values["headers"] = _without_null(values["headers"])
    problems = list(_unusable_files(values))
    problems.extend(_unknown_auth_fields(values.get("auth")))
    try:
        config = ClientConfig(**values)
    except ConfigurationError as error:
        problems.extend(error.problems)
        problems.extend(_contradictions_besides(error.problems, values))
        raise ConfigurationError(problems=problems) from None
    problems.extend(missing_extras(config))
    if problems:
        raise ConfigurationError(problems=problems)
    return ClientSettings(config, auth, sources)


def _unknown_auth_fields(auth: Any) -> Iterator[Problem]:
    """Without a type that is known, pydantic does not look at the rest."""
    if isinstance(auth, dict) and auth.get("type") not in AUTH_TYPES:
        for name in auth:
            if name not in AUTH_FIELDS:
                yield Problem(f"auth.{name}", UNKNOWN_OPTION)


def _contradictions_besides(problems: Iterable[Problem], values: Mapping[str, Any]) -> Iterator[Problem]:
    """What contradicts itself beside the values that are wrong already, which keep pydantic from looking."""
    wrong = {problem.argument.partition(".")[0] for problem in problems}
    if wrong <= {""}:
        return
    try:
        ClientConfig(**{option: value for option, value in values.items() if option not in wrong})
    except ConfigurationError as error:
        yield from (problem for problem in error.problems if not problem.argument)


def _without_null(headers: Any) -> Any:
    """`null` takes away a header that a weaker place set, or all of them."""
    if isinstance(headers, dict):
        return {name: value for name, value in headers.items() if value is not None}
    return {} if headers is None else headers


def _unusable_files(values: Mapping[str, Any]) -> Iterator[Problem]:
    for option in ("ca_file", "client_cert", "client_key"):
        path = values.get(option)
        if not isinstance(path, str):
            continue
        if "-----BEGIN" in path:
            yield Problem(option, "must be the path of a file, and is its content")
        elif not os.path.isfile(path):
            yield Problem(option, "there is no such file")
        elif not os.access(path, os.R_OK):
            yield Problem(option, "the file cannot be read")


def _problems_of_default(section: Section, prefix: str) -> Iterator[Problem]:
    """What is wrong with the values of the DEFAULT section, used or not. It need not be complete in itself."""
    auth = section.get("auth")
    if isinstance(auth, dict) and "type" not in auth:
        section = {option: item for option, item in section.items() if option != "auth"}
    sources = {path: setting.source for path, setting in leaves(section)}
    try:
        _client_settings(section, sources)
    except ConfigurationError as error:
        for problem in error.problems:
            if _source_of(problem.argument, sources) is not None:
                yield located(problem, DEFAULT, prefix, sources)


# -- from an argument to its variable ----------------------------------------------------------------------------


def located(problem: Problem, client: str, prefix: str, sources: Mapping[str, Source]) -> Problem:
    """A problem of a client's configuration, with the variable (file, code) in the place of the argument."""
    path, message = problem.argument, problem.message
    source = _source_of(path, sources)
    if path and path.partition(".")[0] not in OPTIONS:
        return Problem(f'clients["{client}"].{path}', message)
    if source is None and path:  # nobody gave it
        option = ("auth", "type") if path == "auth" else path.split(".")
        return Problem(variable(prefix, client, *option), message)
    if source is None:  # the message names the options, which contradict each other, say
        words = [option for word in re.findall(r"\w+", message) for option in (word, f"auth.{word}")]
        given = {option: sources[option] for option in words if option in sources}
        shared = [option for option, where in given.items() if _is_of_default(where, prefix)]
        if 0 < len(shared) < len(given):
            own = ", ".join(variable(prefix, client, *option.split(".")) for option in shared)
            message = f"{message}; for this client alone, set {own}"
        places = dict.fromkeys(where.argument for where in given.values())
        return Problem(", ".join(places) or variable(prefix, client), message)
    if message == UNKNOWN_OPTION:
        field = path.removeprefix("auth.")
        if field in AUTH_FIELDS:
            return Problem(source.argument, f"is no option of this type of auth; {_types_with(field)} has it")
        guess = closest(field, AUTH_FIELDS)
        if guess and SEPARATOR in source.name and not source.key:
            guess = f"{source.name.rpartition(SEPARATOR)[0]}{SEPARATOR}{guess.upper()}"
        message = _unknown_option(guess)
    return Problem(source.argument, message)


def _is_of_default(source: Source, prefix: str) -> bool:
    default = normalise(f"{prefix}{DEFAULT}")
    return normalise(source.name) == default or normalise(source.name).startswith(default + SEPARATOR)


def _source_of(path: str, sources: Mapping[str, Source]) -> Source | None:
    """That of the value itself, or of the whole that it is an item of (`retry_statuses.2`)."""
    if path == "auth":
        path = "auth.type"
    while path not in sources and "." in path:
        path = path.rpartition(".")[0]
    return sources.get(path)
