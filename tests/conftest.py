"""Fixtures and settings that every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tests.hostile.upstream import HostileUpstream, running

# The same examples in every run, and no limit of time to fail on a busy machine.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="module")
def _hostile_upstream() -> Iterator[HostileUpstream]:
    with running() as server:
        yield server


@pytest.fixture
def upstream(_hostile_upstream: HostileUpstream) -> Iterator[HostileUpstream]:
    """A hostile upstream (`tests/hostile/upstream.py`) that has seen nothing yet."""
    _hostile_upstream.forget()
    yield _hostile_upstream
    _hostile_upstream.drop_connections()
