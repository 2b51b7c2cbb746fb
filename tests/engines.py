"""The two engines that can be under a client. The fixture `engine`, and so `upstream`, runs a test over both."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fastapi_http_client import transport
from fastapi_http_client.config import ClientConfig

ENGINES = ("auto", "httpcore")


def use_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every client that says nothing else this engine."""
    create = transport.create_transport

    def create_transport(config: ClientConfig, **options: Any) -> httpx.AsyncBaseTransport:
        return create(config.model_copy(update={"engine": engine}) if config.engine == "auto" else config, **options)

    monkeypatch.setattr(transport, "create_transport", create_transport)
