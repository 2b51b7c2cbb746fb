"""Fixtures and settings that every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tests.engines import ENGINES, use_engine
from tests.hostile.certs import make_certs
from tests.hostile.upstream import HostileUpstream, running

# The same examples in every run, and no limit of time to fail on a busy machine.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="module")
def _hostile_upstream() -> Iterator[HostileUpstream]:
    with running() as server:
        yield server


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine of every client in the test that says nothing else: the test runs once over each.

    It comes with `upstream`. A test that opens its sockets otherwise asks for it with `usefixtures("engine")`.
    """
    engine: str = request.param
    use_engine(engine, monkeypatch)
    return engine


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of certificates, and of the authority that has signed them (`tests/hostile/certs.py`)."""
    return make_certs(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def upstream(_hostile_upstream: HostileUpstream, engine: str) -> Iterator[HostileUpstream]:
    """A hostile upstream (`tests/hostile/upstream.py`) that has seen nothing yet, for clients over both engines."""
    _hostile_upstream.forget()
    yield _hostile_upstream
    _hostile_upstream.drop_connections()
