"""Kept for the applications that import from here; the code is in `edge.asgi`."""

from fastapi_http_client.edge.asgi import RequestContextMiddleware, cancel_on_disconnect

__all__ = ["RequestContextMiddleware", "cancel_on_disconnect"]
