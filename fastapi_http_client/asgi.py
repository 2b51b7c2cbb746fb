"""An address that is in use: what is here lives in `edge.asgi`."""

from fastapi_http_client.edge.asgi import RequestContextMiddleware, cancel_on_disconnect

__all__ = ["RequestContextMiddleware", "cancel_on_disconnect"]
