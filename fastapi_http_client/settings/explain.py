"""The effective settings as text: each value with its source, secrets masked, and how long a call can take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from fastapi_http_client.config import ClientConfig
from fastapi_http_client.policies.retry import RetryPolicy
from fastapi_http_client.redaction import printable, redact_url
from fastapi_http_client.settings.load import ClientSettings, Settings


def explain(
    settings: Settings, *, given: Mapping[str, Mapping[str, str]], pipelines: Mapping[str, Sequence[str]] | None
) -> str:
    """All clients, and the problems that there are.

    `given` is what code gave to each client beside its configuration, by argument and fit to be shown; `pipelines` are
    the steps of the running clients, or None when they are not running.
    """
    lines = [f"HTTP clients, {'not running' if pipelines is None else 'running'} ({settings.prefix}<NAME>__<OPTION>)"]
    for name, client in settings.clients.items():
        lines += ["", f"client {name}"]
        lines += [f"  {line}" for line in _client_lines(client)]
        objects = given.get(name, {})
        lines += [f"  {argument} = {kind}  (code)" for argument, kind in objects.items()]
        if pipelines is not None:
            lines.append(f"  pipeline: {' > '.join(pipelines[name])}")
        config = client.config
        if "rate_limiter" in objects:  # one that is given is used whatever the configuration says
            config = config.model_copy(update={"enable_rate_limiting": True})
        lines += [f"  {line}" for line in _duration_lines(config)]
    if settings.problems:
        lines += ["", "problems", *(f"  {problem}" for problem in settings.problems)]
    return "\n".join(lines)


def _client_lines(client: ClientSettings) -> Iterator[str]:
    config = client.config
    for option, field in ClientConfig.model_fields.items():
        value = getattr(config, option)
        built_in = "built-in"
        if option not in config.model_fields_set and field.default_factory is None and value != field.default:
            built_in = f"built-in {field.default}, adapted to what was set"
        for path, part in _parts(option, value):
            yield f"{path} = {_shown(path, part)}  ({client.sources.get(path, built_in)})"


def _parts(option: str, value: Any) -> list[tuple[str, Any]]:
    """A section field by field, everything else as it is."""
    if option == "auth" and value is not None:
        return [(f"auth.{field}", getattr(value, field)) for field in type(value).model_fields]
    if option == "headers" and value:
        return [(f"headers.{name}", text) for name, text in value.items()]
    return [(option, value)]


def _shown(path: str, value: Any) -> str:
    section, _, name = path.partition(".")
    if section == "headers" and name:
        value = ClientConfig.shown("headers", {name: value})[name]
    elif path == "auth.token_url":
        value = redact_url(value)
    else:
        value = ClientConfig.shown(path, value)
    if isinstance(value, Set):
        value = ", ".join(str(item) for item in sorted(value))
    elif isinstance(value, tuple):
        value = ", ".join(value)
    return printable(str(value)) or '""'


# -- how long a call can take ------------------------------------------------------------------------------------


def longest_call(config: ClientConfig, *, asked: bool) -> float:
    """The worst case of one call in seconds, `inf` when nothing bounds it. A streamed body comes on top.

    `hops · (attempts · (limiter wait + timeout) + waits between attempts)`, or `total_timeout` when that is less. A
    wait is `factor · 2ⁿ` and all its jitter, at most `retry_max_delay`. `asked` adds what an upstream may ask for: each
    wait is `retry_max_delay`, and each attempt begins with a pause as long, which it asked all calls of the client for.
    Fetching a token, and repeating after a 401, are not counted.
    """
    policy = RetryPolicy.of(config)
    waits = [policy.max_delay if asked else policy.delay(n, 1.0) for n in range(policy.attempts - 1)]
    limiter = 0.0
    if config.enable_rate_limiting:
        limiter = float("inf") if config.rate_limit_max_wait is None else config.rate_limit_max_wait
    pause = _longest_pause(config) if asked else 0.0
    hops = 1 + config.max_redirects if config.follow_redirects else 1
    bound = hops * (policy.attempts * (pause + limiter + config.timeout) + sum(waits))
    return bound if config.total_timeout is None else min(bound, config.total_timeout)


def _longest_pause(config: ClientConfig) -> float:
    """What one attempt can wait for a pause that the upstream asks for: with jitter, and once more behind a limiter."""
    pause = config.retry_max_delay + min(config.retry_max_delay * config.retry_jitter, 1.0)
    if config.rate_limit_max_wait is not None:
        pause = min(pause, config.rate_limit_max_wait)
    return 2 * pause if config.enable_rate_limiting else pause


def _duration_lines(config: ClientConfig) -> Iterator[str]:
    unlimited = config.model_copy(update={"total_timeout": None})
    plain, asked = (_seconds(longest_call(unlimited, asked=asked)) for asked in (False, True))
    attempts = f"{config.retry_attempts} attempt{'s' if config.retry_attempts > 1 else ''} of {config.timeout:g} s"
    terms = [attempts]
    if config.retry_attempts > 1:
        terms.append("the delays between them with all their jitter")
    if config.enable_rate_limiting:
        most = config.rate_limit_max_wait
        terms.append("waits for the rate limiter without limit" if most is None else f"{most:g} s of limiter each")
    if config.follow_redirects:
        terms.append(f"all that on each of {1 + config.max_redirects} hops")
    pauses = ""
    if config.retry_max_delay > 0:
        pauses = (
            f"{asked} with all pauses that the upstream may ask for (retry_max_delay, {config.retry_max_delay:g} s)"
        )
    if config.total_timeout is None:
        yield f"longest call: {plain} ({', '.join(terms)}); total_timeout is not set"
        if pauses:
            yield f"  {pauses}"
    else:
        longest = longest_call(config, asked=True)
        yield f"longest call: {_seconds(longest)} (total_timeout {config.total_timeout:g} s)"
        yield f"  without it: {plain} ({', '.join(terms)}){f', {pauses}' if pauses else ''}"


def _seconds(value: float) -> str:
    return "unlimited" if value == float("inf") else f"{value:.1f} s"
