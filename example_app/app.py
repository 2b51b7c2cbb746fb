"""The shop. Its clients are configured by the environment only: see `demo_environment()` in `__main__.py`."""

import asyncio
import contextlib
import time
from collections import Counter
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI, Response, WebSocket, WebSocketDisconnect

from example_app.tracing import spans
from fastapi_http_client import AsyncHTTPClient, CircuitBreakerOpenError, HTTPClients, http_client

clients = HTTPClients()
app = FastAPI(title="Shop", lifespan=clients.lifespan)
clients.install(app, request_timeout=10.0)

Catalog = Annotated[AsyncHTTPClient, Depends(http_client("catalog"))]  # an API key, a rate limit
Payments = Annotated[AsyncHTTPClient, Depends(http_client("payments"))]  # OAuth2, a circuit breaker
Warehouse = Annotated[AsyncHTTPClient, Depends(http_client("warehouse"))]  # a service of our own


@app.get("/products/{sku}")
async def product(sku: str, catalog: Catalog) -> Any:
    """A call. The key is added on the way out; a 404 of the upstream would be a 502 of ours."""
    response = await catalog.get("/products/{sku}", path_params={"sku": sku})
    return response.raise_for_status().json_data


@app.get("/payments/{number}")
async def payment(number: int, payments: Payments) -> Any:
    """A call with a token, which was fetched once and is shared by all requests until it ends."""
    response = await payments.get("/payments/{number}", path_params={"number": number})
    return response.raise_for_status().json_data


@app.get("/retry")
async def retry(catalog: Catalog) -> Any:
    """The upstream fails twice; the third attempt succeeds, and the response tells the story."""
    response = await catalog.get("/unreliable/{run}", path_params={"run": uuid4().hex}, params={"failures": 2})
    return {"attempts": [attempt.status for attempt in response.attempts], "answer": response.json_data}


@app.get("/burst")
async def burst(catalog: Catalog) -> Any:
    """Twelve calls at once to an API that allows 20 a second: five go out, the others take their turn."""
    started = time.monotonic()
    responses = await asyncio.gather(*(catalog.get("/limited", retry=False) for _ in range(12)))
    took = time.monotonic() - started
    return {"statuses": Counter(response.status_code for response in responses), "paced": took >= 7 / 20}


@app.get("/circuit")
async def circuit(payments: Payments) -> Any:
    """Three failures open the circuit, a fourth call is refused at once, and after a pause a good probe closes it."""
    breaker, run, story, pause = payments.circuit_breaker, uuid4().hex, [], 0.0
    assert breaker is not None  # HTTP_CLIENT__PAYMENTS__ENABLE_CIRCUIT_BREAKER
    breaker.reset()
    for _ in range(5):
        await asyncio.sleep(pause)
        try:
            response = await payments.get("/outage/{run}", path_params={"run": run}, retry=False)
            outcome, pause = str(response.status_code), 0.0
        except CircuitBreakerOpenError as error:
            outcome, pause = "refused", error.recovery_timeout + 0.01  # a timer may be a little early
        story.append(f"{outcome}, {breaker.state.value}")
    return story


@app.websocket("/ws")
async def prices(websocket: WebSocket, catalog: Catalog) -> None:
    """The same dependency in a WebSocket: a SKU comes in, its product goes out."""
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        async for sku in websocket.iter_text():
            response = await catalog.get("/products/{sku}", path_params={"sku": sku})
            await websocket.send_text(response.text)


@app.get("/orders/{sku}")
async def order(sku: str, warehouse: Warehouse) -> Any:
    """One trace, one request id and one deadline, from here through the warehouse to the catalog."""
    response = await warehouse.get("/stock/{sku}", path_params={"sku": sku})
    return response.raise_for_status().json_data


@app.get("/traces/{request_id}")
async def trace(request_id: str) -> Response:
    """The spans of a request as a tree, from the services' own memory."""
    return Response(await spans.tree(request_id), media_type="text/plain")


@app.get("/broken")
async def broken(catalog: Catalog) -> Any:
    """The upstream answers 500 with its secrets in the body; our caller gets problem+json without them."""
    response = await catalog.get("/broken", retry=False)
    return response.raise_for_status().json_data


@app.get("/slow")
async def slow(catalog: Catalog) -> Any:
    """The upstream takes long. When our caller hangs up, this call is cancelled and the upstream hangs up too."""
    response = await catalog.get("/slow")
    return response.json_data


@app.get("/slow/last")
async def slow_last(catalog: Catalog) -> Any:
    """What the upstream saw of the last `/slow`."""
    response = await catalog.get("/slow/last")
    return response.json_data
