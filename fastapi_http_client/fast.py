"""Shortcuts past httpx's general code, for cases in which the result is the same.

Every function names the case that it is for and is compared with httpx's own result by a test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from fastapi_http_client.models import copy_request

NO_BODY = httpx.ByteStream(b"")
_NEEDS_NO_PARSING = re.compile(r"/(?:[A-Za-z0-9_~-][A-Za-z0-9_~/-]{0,1000})?")
"""Paths of letters, digits and marks that no URL quotes: no dots, no `//` at the beginning, and not too long."""
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


def is_plain(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a request has no body and no cookies of its own, so that only its headers are to be merged."""
    return method in _WITHOUT_BODY and options.keys() <= {"headers", "timeout"}


def entries(headers: httpx.Headers) -> list[Any]:
    """What the headers are made of, to be compared and not to be changed: `headers.raw` makes new pairs each time.

    A private attribute of httpx (as of 0.28); without it, the public way does.
    """
    found: list[Any] | None = getattr(headers, "_list", None)
    return headers.raw if found is None else found


def below(base: httpx.URL, path: str) -> httpx.URL | None:
    """`base.copy_with(raw_path=base.raw_path + path[1:])` for a path that is the same whether it is parsed or not.

    None for any other path, for a base with more than an origin and a path, and when httpx keeps a URL's parts
    elsewhere: a private attribute (as of 0.28). Parsing anew takes 20 µs, for a path that may never come again.
    """
    parts = getattr(base, "_uri_reference", None)
    if parts is None or not parts.host or parts.query is not None or parts.fragment is not None:
        return None
    root = parts.path or "/"
    if not root.endswith("/") or not _NEEDS_NO_PARSING.fullmatch(path):
        return None
    url = httpx.URL.__new__(type(base))
    url._uri_reference = parts._replace(path=root + path[1:])
    return url


class PlainRequest(httpx.Request):
    """A request without a body, made of parts that need no looking at."""

    def __init__(self, method: str, url: httpx.URL, headers: httpx.Headers, extensions: dict[str, Any]) -> None:
        self.method = method
        self.url = url
        self.headers = httpx.Headers(headers)
        self.extensions = extensions
        self.stream = NO_BODY
        self._content = b""


class PlainRequests:
    """Builds plain requests: httpx would copy the headers four times, and encode a body of nothing.

    The client's default headers, with the `Host` of the last request before them, are kept from call to call for as
    long as they stay the same: `entries` are those of the last request that had none of its own.
    """

    __slots__ = ("_defaults", "_merged", "_netloc", "_url", "entries")

    def __init__(self) -> None:
        self._defaults: list[Any] | None = None
        self._url: httpx.URL | None = None
        self._netloc = b""
        self._merged = httpx.Headers()
        self.entries: list[Any] = []

    def request(
        self, method: str, url: httpx.URL, defaults: httpx.Headers, own: Any, extensions: dict[str, Any]
    ) -> httpx.Request:
        if own:
            headers = httpx.Headers(defaults)
            headers.update(own)
            return PlainRequest(method, url, _with_host(headers, url), extensions)
        if url is not self._url or entries(defaults) != self._defaults:
            self._renew(defaults, url)
        return PlainRequest(method, url, self._merged, extensions)

    def _renew(self, defaults: httpx.Headers, url: httpx.URL) -> None:
        now, netloc = entries(defaults), url.netloc
        self._url = url
        if now == self._defaults and netloc == self._netloc:
            return
        self._merged = _with_host(defaults, url)
        self._defaults, self._netloc = list(now), netloc
        self.entries = list(entries(self._merged))


def _with_host(headers: httpx.Headers, url: httpx.URL) -> httpx.Headers:
    return headers if "host" in headers else httpx.Headers([(b"Host", url.netloc), *headers.raw])


def wire_copy(request: httpx.Request) -> httpx.Request:
    """A copy of the request for one attempt, which does not find out the encoding of its headers all over again."""
    copy = copy_request(request)
    copy.headers.encoding = request.headers.encoding
    return copy


def header_names(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The names in lower case: to look several up in them costs less than to ask httpx's headers twice."""
    return {name.lower() for name, _ in headers}
