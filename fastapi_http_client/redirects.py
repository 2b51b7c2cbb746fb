"""Following redirects: where to, as what, and what must not go along (RFC 9110, section 15.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

import httpx

from fastapi_http_client.call import TEMPLATE, Call, Handler, origin
from fastapi_http_client.config import is_port
from fastapi_http_client.errors import HTTPRequestError, also
from fastapi_http_client.failures import described
from fastapi_http_client.models import HTTPResponse
from fastapi_http_client.retry import is_replayable

if TYPE_CHECKING:
    from fastapi_http_client.client import AsyncHTTPClient

# What a hop to a foreign origin still carries. All else may be a credential, or tell a stranger whom we know.
CROSS_ORIGIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "accept-language", "cache-control", "connection", "user-agent"}
)
_OF_THE_BODY = ("content-length", "content-type", "content-encoding", "content-language", "transfer-encoding")


class Redirects:
    """The step that follows `Location`, so that every hop is retried, limited, counted and stripped like a call."""

    name = "redirects"

    def __init__(self, client: AsyncHTTPClient) -> None:
        self._client = client

    async def __call__(self, request: httpx.Request, call_next: Handler) -> HTTPResponse:
        client, call = self._client, Call.of(request)
        history: list[httpx.Response] = []
        while True:
            call.is_last_hop = call.follow_redirects and len(history) >= client.max_redirects
            response = await call_next(request)
            response.history = [*history, *response.history]  # of this hop, the challenges that its auth has answered
            if not response.has_redirect_location:
                return response
            if not call.follow_redirects:
                response.next_request = _next_request_or_none(request, response)
                return response
            try:
                following = next_request(request, response)
            except HTTPRequestError:
                await response.aclose()
                raise
            if following is None:
                return response
            await response.aclose()
            if call.is_last_hop:
                what = f"more than {client.max_redirects} redirects, the last one from here"
                raise also(HTTPRequestError, httpx.TooManyRedirects)(
                    described(request, what, attempt=False),
                    request=request,
                    transient=False,
                    attempts=call.attempts,
                    client=call.client_name,
                ) from httpx.TooManyRedirects("Exceeded maximum allowed redirects.")
            if client.keeps_cookies and origin(following.url) in {origin(request.url), *call.origins}:
                following.headers.pop("cookie", None)
                client.cookies.set_cookie_header(following)
            history.append(response)
            request = call.attach(following)


def _next_request_or_none(request: httpx.Request, response: HTTPResponse) -> httpx.Request | None:
    try:
        following = next_request(request, response)
    except HTTPRequestError:
        return None
    if following is not None:
        following.extensions = {"timeout": request.extensions.get("timeout", {})}
    return following


def next_request(request: httpx.Request, response: HTTPResponse) -> httpx.Request | None:
    """The request that follows a redirect, or None when it is not to be followed.

    A redirect that would carry a body to another origin is not followed: the body was meant for the first one. Nor is
    one that would send an iterator again. One from https to http, or to an address that is none, raises
    `HTTPRequestError`.
    """
    url = _without(_target(request, response), Call.of(request).secret_params)
    same_origin = origin(url) == origin(request.url)
    method = _method(request.method, response.status_code)
    if method == request.method:
        if not is_replayable(request) or not (same_origin or _is_empty(request)):
            return None
        headers = httpx.Headers(request.headers)
        stream = request.stream
    else:
        headers = httpx.Headers([(k, v) for k, v in request.headers.multi_items() if k not in _OF_THE_BODY])
        stream = httpx.ByteStream(b"")
    if not same_origin and origin(url) not in Call.of(request).origins:
        headers = httpx.Headers([(k, v) for k, v in headers.multi_items() if k in CROSS_ORIGIN_HEADERS])
        if method in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
    if not same_origin or "host" not in headers:
        headers["Host"] = url.netloc.decode("ascii")
    extensions = {key: value for key, value in request.extensions.items() if key != TEMPLATE}  # it has another path
    following = httpx.Request(method, url, headers=headers, stream=stream, extensions=extensions)
    if isinstance(stream, httpx.ByteStream):
        following.read()
    return following


def _without(url: httpx.URL, keys: frozenset[str]) -> httpx.URL:
    """The target without the client's key in its query, should the upstream repeat it: the auth adds it anew."""
    if not keys or not url.query:
        return url
    pairs = url.query.decode("ascii").split("&")
    kept = [pair for pair in pairs if unquote_plus(pair.partition("=")[0]) not in keys]
    return url if len(kept) == len(pairs) else url.copy_with(query="&".join(kept).encode("ascii") or None)


def _is_empty(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream) and not b"".join(request.stream)


def _method(method: str, status: int) -> str:
    if status in (302, 303) and method != "HEAD":
        return "GET"
    return "GET" if status == 301 and method == "POST" else method


def _target(request: httpx.Request, response: HTTPResponse) -> httpx.URL:
    try:
        url = request.url.join(httpx.URL(response.headers["location"])).copy_with(username=None, password=None)
        if url.fragment == "" and request.url.fragment:
            url = url.copy_with(fragment=request.url.fragment)
        is_possible = bool(url.host) and is_port(url.port)
    except Exception as error:  # httpx lets several kinds through: InvalidURL, IDNAError, UnicodeError, TypeError …
        raise _refused(request, "its Location is no valid address", httpx.RemoteProtocolError) from error
    if url.scheme not in ("http", "https") or not is_possible:
        raise _refused(request, "its Location is no http address", httpx.UnsupportedProtocol)
    if request.url.scheme == "https" and url.scheme == "http":
        raise _refused(request, "it leads from https to http")
    return url


def _refused(
    request: httpx.Request, why: str, as_httpx: type[httpx.RequestError] = httpx.RequestError
) -> HTTPRequestError:
    call = Call.of(request)
    return also(HTTPRequestError, as_httpx)(
        described(request, f"redirect refused: {why}", attempt=False),
        request=request,
        transient=False,
        attempts=call.attempts,
        client=call.client_name,
    )
