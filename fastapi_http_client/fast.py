"""What is done here is what httpx does, by a shorter way, where its general way can have no other effect.

Every function names the case that it is for and is compared with httpx's own result by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

_NO_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_EMPTY = httpx.ByteStream(b"")


def is_plain(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a request has no body and no cookies of its own, so that only its headers are to be merged."""
    return method in _NO_BODY and options.keys() <= {"headers", "timeout"}


def plain_request(
    method: str, url: httpx.URL, defaults: httpx.Headers, own: Any, extensions: Mapping[str, Any]
) -> httpx.Request:
    """`build_request()` for a plain request: httpx would copy the headers four times and encode a body of nothing."""
    headers = httpx.Headers(defaults)
    if own:
        headers.update(own)
    if "host" not in headers:
        headers = httpx.Headers([(b"Host", url.netloc), *headers.raw])
    request = httpx.Request(method, url, headers=headers, stream=_EMPTY, extensions=extensions)
    request.read()
    return request
