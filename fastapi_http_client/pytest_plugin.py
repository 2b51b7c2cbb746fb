"""An address for `pytest -p`: what is here lives in `pytest_fastapi_http_client`, which is quicker to import."""

from pytest_fastapi_http_client import mock_httpx

__all__ = ["mock_httpx"]
