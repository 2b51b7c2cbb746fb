"""The pytest plugin that runs httpx's tests with our client, and counts what came of each."""

from __future__ import annotations

import functools
import inspect
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clients
import httpcore2
import httpx
import pytest
import uvicorn.config
from differences import DIFFERENCES, INAPPLICABLE, LEFT_OUT, Difference

from fastapi_http_client import HTTPResponse
from fastapi_http_client.httpcore import transport as httpcore_transport

ENGINES = ("auto", "httpcore")
ABOUT_RESPONSES = ("models/test_responses.py", "test_decoders.py")
NEEDS = {"network": "the test needs more than this machine"}

outcomes: Counter[str] = Counter()
reasons: Counter[str] = Counter()
"""Why tests do not apply."""
unfounded: list[str] = []
"""Names in a table that no failing test has."""
shown: dict[str, bool] = {name: False for table in (DIFFERENCES, INAPPLICABLE) for d in table for name in d.tests}
"""The tests that are named in a table, and whether one of their cases has failed."""


def pytest_configure(config: pytest.Config) -> None:
    httpx.AsyncClient = clients.AsyncClient  # type: ignore[misc]
    httpx.Client = httpx._api.Client = clients.Client  # type: ignore[attr-defined, misc]
    # httpx's tests look for a proxy in the transport's pool.
    httpcore_transport._Pool._proxy_url = property(lambda pool: pool._pool._proxy.url)  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    uvicorn.config.Config = functools.partial(uvicorn.config.Config, port=port)  # httpx's server is always at 8000


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if collection_path.name in LEFT_OUT else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, why in NEEDS.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    if hasattr(pyfuncitem.module, "httpcore"):
        pyfuncitem.module.httpcore = httpcore2  # which is under our client
    name = f"{pyfuncitem.path.relative_to(Path('tests').resolve())}::{pyfuncitem.name}"
    if name not in shown:
        name = name.partition("[")[0]
    inapplicable = _named(name, INAPPLICABLE)
    difference = inapplicable or _named(name, DIFFERENCES)
    failed, is_about_us = False, False
    for engine in ENGINES if "server" in pyfuncitem.fixturenames else ENGINES[:1]:
        try:
            if difference is None or difference.engine not in (None, engine):
                is_about_us = _run(pyfuncitem, {"engine": engine})
            elif difference.options:
                failed = _fails(pyfuncitem, engine, difference) or failed
                _run(pyfuncitem, {"engine": engine, **difference.options})
            elif _fails(pyfuncitem, engine, difference):
                failed = True
            else:
                pytest.fail(f"it passes, so it does not belong in differences.py: {difference.reason}")
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"engine={engine!r}")
            raise
    if failed:
        shown[name] = True
    if not failed:
        outcomes["pass" if is_about_us or difference else "are about neither clients nor responses"] += 1
    elif difference.options:
        outcomes["pass with an option that docs/httpx.md names"] += 1
    else:
        outcomes["do not apply" if inapplicable else "differ on purpose"] += 1
        if inapplicable:
            reasons[difference.reason] += 1
        pytest.xfail(difference.reason)
    return True


def _named(name: str, table: tuple[Difference, ...]) -> Difference | None:
    return next((difference for difference in table if name in difference.tests), None)


def _fails(item: pytest.Function, engine: str, difference: Difference) -> bool:
    try:
        _run(item, {"engine": engine})
    except difference.raises:
        return True
    return False


def _run(item: pytest.Function, options: Mapping[str, Any]) -> bool:
    """Run the test; whether it is about our client or our response."""
    arguments = {name: item.funcargs[name] for name in item._fixtureinfo.argnames}
    is_about_responses = str(item.path).endswith(ABOUT_RESPONSES)
    with clients.running(options) as run, pytest.MonkeyPatch.context() as patch:
        if is_about_responses:
            patch.setattr(httpx, "Response", HTTPResponse)
        result = item.obj(**arguments)
        if inspect.iscoroutine(result):
            run.wait_for(result)
        return bool(run.clients) or is_about_responses


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        assert isinstance(report.longrepr, tuple)
        outcomes["do not apply"] += 1
        reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
    elif report.failed:
        outcomes["FAIL"] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.args == ["tests"]:
        unfounded.extend(name for name, failed in shown.items() if not failed)
    if unfounded:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section(
        f"httpx {httpx.__version__}'s own tests, with our client and response in the place of httpx's"
    )
    for outcome, count in sorted(outcomes.items(), key=lambda one: -one[1]):
        terminalreporter.line(f"{count:5} {outcome}")
    for reason, count in reasons.items():
        terminalreporter.line(f"{count:8} of those that do not apply: {reason}")
    for file, reason in LEFT_OUT.items():
        terminalreporter.line(f"{file:>18} is left out: {reason}")
    for name in unfounded:
        terminalreporter.line(f"FAIL: in differences.py, but no case of it fails: {name}")
