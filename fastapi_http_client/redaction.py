"""What must never be shown, and how to show the rest.

Used by every log line, error message, span and `explain()`; nothing else in the package formats a URL or a header
for a human.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import FrameType
from urllib.parse import unquote_plus

import httpx

MASK = "[redacted]"

SENSITIVE_HEADERS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "x-auth-token",
        "x-amz-security-token",
        "x-csrf-token",
    }
)
SENSITIVE_QUERY_KEYS = frozenset(
    {
        "api_key",
        "apikey",
        "api-key",
        "access_token",
        "refresh_token",
        "id_token",
        "token",
        "auth",
        "password",
        "passwd",
        "secret",
        "client_secret",
        "sig",
        "signature",
        "key",
        "awsaccesskeyid",
        "x-amz-signature",
        "x-amz-credential",
        "x-amz-security-token",
        "x-goog-signature",
        "x-goog-credential",
    }
)

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_MAX_TEXT = 500


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Text from outside, made safe for one line of log: control characters escaped, length bounded."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return text if text.isprintable() else re.sub(_CONTROL, lambda match: f"\\x{ord(match.group()):02x}", text)


def redact_url(url: httpx.URL | str, extra_keys: Iterable[str] = ()) -> str:
    """The URL with its user info and the values of secret query keys masked."""
    if not isinstance(url, httpx.URL):
        url = httpx.URL(url)
    scheme, host, path = url.scheme, url.netloc.decode("ascii"), url.raw_path.decode("ascii")
    if path == "/" and not str(url):
        return ""  # whose path httpx gives as "/"
    if "?" in path:
        keys = SENSITIVE_QUERY_KEYS | {key.lower() for key in extra_keys}
        path = f"{path.partition('?')[0]}{'?' if url.query else ''}{_redact_query(url, keys)}"
    userinfo = f"{MASK}@" if url.userinfo else ""
    return printable(f"{scheme}://{userinfo}{host}{path}" if scheme else f"{userinfo}{host}{path}", 2000)


def _redact_query(url: httpx.URL, keys: Iterable[str]) -> str:
    return "&".join(_redact_pair(pair, keys) for pair in url.query.decode("ascii").split("&")) if url.query else ""


def _redact_pair(pair: str, keys: Iterable[str]) -> str:
    key, equals, _ = pair.partition("=")
    return f"{key}={MASK}" if equals and unquote_plus(key).lower() in keys else pair


def redact_headers(headers: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """The headers with the values of secret ones masked."""
    hidden = SENSITIVE_HEADERS | {name.lower() for name in extra}
    return {name: MASK if name.lower() in hidden else printable(value) for name, value in headers.items()}


def without_frames(error: BaseException) -> BaseException:
    """The same error without tracebacks, its causes' neither.

    In the frames of a transport lies the head of the request, credentials included, and error trackers show variables.
    The chain may end in an error that somebody outside is dealing with while the call is made: that one stays whole.
    """
    outer = _frames_around(error)
    error.__traceback__ = None
    link = error.__cause__ or error.__context__
    while link is not None and (link.__traceback__ is None or link.__traceback__.tb_frame not in outer):
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _frames_around(error: BaseException) -> set[FrameType]:
    """The frames that wait for the one in which the error was caught."""
    frames = set()
    frame = None if error.__traceback__ is None else error.__traceback__.tb_frame.f_back
    while frame is not None:
        frames.add(frame)
        frame = frame.f_back
    return frames


def redact_request(request: httpx.Request) -> httpx.Request:
    """The request itself when it holds no secret in a header or in its query, else a copy without their values."""
    secret = [name for name in request.headers if name in SENSITIVE_HEADERS]
    query = _redact_query(request.url, SENSITIVE_QUERY_KEYS)
    if not secret and query == request.url.query.decode("ascii"):
        return request
    headers = request.headers.copy()
    for name in secret:
        headers[name] = MASK
    url = request.url.copy_with(query=query.encode("ascii")) if query else request.url
    copy = httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)
    if isinstance(request.stream, httpx.ByteStream):
        copy.read()
    return copy
