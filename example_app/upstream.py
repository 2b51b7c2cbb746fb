"""The world outside: a catalog that wants an API key, and a payment provider that wants an OAuth2 token.

Nothing here uses the package. It misbehaves where the shop has something to show.
"""

import asyncio
import base64
import secrets
import time
from collections import Counter
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response

API_KEY = "demo-key"
CLIENT_ID, CLIENT_SECRET = "demo-shop", "demo-secret"

app = FastAPI(title="Upstream", telemetry={"tracing": False})
tokens: set[str] = set()
calls: Counter[str] = Counter()


# -- the catalog


def check_key(x_api_key: Annotated[str, Header()]) -> None:
    if not secrets.compare_digest(x_api_key, API_KEY):
        raise HTTPException(403, "wrong API key")


catalog = APIRouter(prefix="/catalog", dependencies=[Depends(check_key)])


@catalog.get("/products/{sku}")
async def product(sku: str) -> Any:
    return {"sku": sku, "name": sku.title(), "price": 12.5}


@catalog.get("/unreliable/{run}")
async def unreliable(run: str, failures: int, response: Response) -> Any:
    """Fails so many times, then answers."""
    calls[run] += 1
    if calls[run] <= failures:
        response.status_code = 503
        return {"error": "try again"}
    del calls[run]
    return "third time lucky" if failures == 2 else "here you are"


class Bucket:
    """The catalog allows bursts of 8 and 20 calls a second."""

    def __init__(self) -> None:
        self.tokens, self.at = 8.0, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens, self.at = min(8.0, self.tokens + (now - self.at) * 20), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


bucket = Bucket()


@catalog.get("/limited")
async def limited(response: Response) -> Any:
    if not bucket.take():
        response.status_code = 429
        response.headers["Retry-After"] = "1"
    return {}


@catalog.get("/broken")
async def broken(response: Response) -> Any:
    response.status_code = 500
    return {"error": "cannot reach db-7.internal as root"}


class LastSlowCall:
    fate = "none yet"


@catalog.get("/slow")
async def slow(request: Request) -> Any:
    """Works for 30 seconds, or until the caller has gone."""
    LastSlowCall.fate = "running"
    for _ in range(3000):
        await asyncio.sleep(0.01)
        if await request.is_disconnected():
            LastSlowCall.fate = "the caller hung up"
            return None
    LastSlowCall.fate = "finished"
    return {"done": True}


@catalog.get("/slow/last")
async def slow_last() -> Any:
    for _ in range(200):
        if LastSlowCall.fate != "running":
            break
        await asyncio.sleep(0.01)
    return {"last_slow_call": LastSlowCall.fate}


# -- the payment provider


@app.post("/oauth/token")
async def token(request: Request) -> Any:
    """RFC 6749, section 4.4: client credentials in the Authorization header."""
    form = parse_qs((await request.body()).decode())
    expected = "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    if form.get("grant_type") != ["client_credentials"] or request.headers.get("authorization") != expected:
        raise HTTPException(401, "invalid_client")
    token = secrets.token_urlsafe(16)
    tokens.add(token)
    return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}


def check_token(authorization: Annotated[str, Header()] = "") -> None:
    if authorization.removeprefix("Bearer ") not in tokens:
        raise HTTPException(401, "invalid token", {"WWW-Authenticate": "Bearer"})


payments = APIRouter(prefix="/payments", dependencies=[Depends(check_token)])


@payments.get("/payments/{number}")
async def payment(number: int) -> Any:
    return {"payment": number, "status": "settled"}


@payments.get("/outage/{run}")
async def outage(run: str, response: Response) -> Any:
    """Down for three calls, then up."""
    calls[run] += 1
    if calls[run] <= 3:
        response.status_code = 503
    return {}


app.include_router(catalog)
app.include_router(payments)
