"""A second service of our own: the shop calls it, and it calls the catalog."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI, Request

from fastapi_http_client import AsyncHTTPClient, HTTPClients, get_request_id, http_client

clients = HTTPClients()
app = FastAPI(title="Warehouse", lifespan=clients.lifespan)
clients.install(app, trust_deadline_header=True)  # only our own services can reach it

Catalog = Annotated[AsyncHTTPClient, Depends(http_client("catalog"))]


@app.get("/stock/{sku}")
async def stock(sku: str, request: Request, catalog: Catalog) -> Any:
    """The stock of a product, after a call that is retried once, and what came with the shop's request."""
    response = await catalog.get("/unreliable/{run}", path_params={"run": uuid4().hex}, params={"failures": 1})
    response.raise_for_status()
    return {
        "sku": sku,
        "in_stock": 7,
        "request_id": get_request_id(),
        "has_deadline": "X-Request-Timeout-Ms" in request.headers,
        "has_trace": "traceparent" in request.headers,
    }
