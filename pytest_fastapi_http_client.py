"""The pytest plugin: the fixture `mock_httpx`.

Every pytest run of every project that has the package installed imports this module. It stands beside the package
because importing anything from inside would import all of it, FastAPI and httpx too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastapi_http_client.testing import MockNetwork


@pytest.fixture
def mock_httpx(monkeypatch: pytest.MonkeyPatch) -> MockNetwork:
    """A fake network for every `AsyncHTTPClient` made in this test; see `fastapi_http_client.testing.MockNetwork`."""
    from fastapi_http_client.testing import MockNetwork

    network = MockNetwork()
    network.install(monkeypatch)
    return network
