"""What must never be shown, and how to show the rest.

Used by every log line, error message, span and `explain()`; nothing else in the package formats a URL or a header
for a human.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from urllib.parse import unquote_plus

import httpx

MASK = "[redacted]"

# Patterns are texts here: compiled when one is needed for the first time, and not by every import of the package.
_SECRET_NAME = (
    r"passw|passphrase|secret|credential|cookie|authorization|signature|api_?key|access_?key|session_?id|jwt"
    r"|token(?!s|ize|_type|_url|_count)"
    r"|(?:^|_)(?:auth|pwd|pass|pin|otp|sid|sig|session)$|(?:^|(?<!idempotency)(?<!socket)_)key$"
)
_CAMEL = r"(?<=[a-z0-9])(?=[A-Z])|[-. +:\[\]]"

_CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_MAX_TEXT = 500


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Text from outside, made safe for one line of log: control characters escaped, length bounded."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return text if text.isprintable() else re.sub(_CONTROL, lambda match: f"\\x{ord(match.group()):02x}", text)


def is_secret(name: str) -> bool:
    """Whether the value of a header, a query key or a field of that name is to be masked, whoever chose the name.

    `accessToken`, `X-Vault-Token` and `DD-API-KEY` are; in doubt a harmless value is masked too. An `Idempotency-Key`
    is shown: it is what one looks for in a log.
    """
    return re.search(_SECRET_NAME, re.sub(_CAMEL, "_", name).lower().rstrip("_")) is not None


def redact_url(url: httpx.URL | str, extra_keys: Iterable[str] = (), mask: str = MASK) -> str:
    """The URL with its user info and the values of secret query keys masked."""
    if not isinstance(url, httpx.URL):
        url = httpx.URL(url)
    scheme, host, path = url.scheme, url.netloc.decode("ascii"), url.raw_path.decode("ascii")
    if path == "/" and not str(url):
        return ""  # whose path httpx gives as "/"
    if "?" in path:
        keys = {key.lower() for key in extra_keys}
        path = f"{path.partition('?')[0]}{'?' if url.query else ''}{_redact_query(url, keys, mask)}"
    userinfo = f"{mask}@" if url.userinfo else ""
    return printable(f"{scheme}://{userinfo}{host}{path}" if scheme else f"{userinfo}{host}{path}", 2000)


def _redact_query(url: httpx.URL, keys: Iterable[str], mask: str = MASK) -> str:
    return (
        "&".join(_redact_pair(pair, keys, mask) for pair in url.query.decode("ascii").split("&")) if url.query else ""
    )


def _redact_pair(pair: str, keys: Iterable[str], mask: str = MASK) -> str:
    key, equals, _ = pair.partition("=")
    name = unquote_plus(key)
    return f"{key}={mask}" if equals and (is_secret(name) or name.lower() in keys) else pair


def redact_headers(
    headers: Mapping[str, str], extra: Iterable[str] = (), extra_keys: Iterable[str] = ()
) -> dict[str, str]:
    """The headers with the values of secret ones masked, and those of secret query keys in the ones that hold a URL."""
    hidden = {name.lower() for name in extra}
    keys = {key.lower() for key in extra_keys}
    shown = {}
    for name, value in headers.items():
        if is_secret(name) or name.lower() in hidden:
            shown[name] = MASK
        else:
            shown[name] = printable(_redact_links(value, keys) if name.lower() in _WITH_URLS else value)
    return shown


_WITH_URLS = frozenset({"location", "content-location", "referer", "link", "refresh"})


def _redact_links(text: str, keys: Iterable[str]) -> str:
    """Text that may hold URLs, whether they are valid or not."""
    text = re.sub(r"(?<=//)[^/?#@\s]*+@", f"{MASK}@", text)
    return re.sub(r"(?<=[?&;])[^&;#\s<>]++", lambda pair: _redact_pair(pair[0], keys), text)


# The patterns are possessive (`*+`): a body is anybody's, and must not take longer the odder it is.
_STRING = r'"(?:[^"\\]|\\.)*+"?'
_JSON_NAME = rf'(?s:"((?:[^"\\]|\\.)*+)"\s*+:\s*+|{_STRING})'  # or a value, so that no name is seen within one
_JSON_PART = rf'(?s:{_STRING}|[^"\[\]{{}},]++|.)'
_XML_NAME = r"<([\w:.-]++)(?:[^<>/]|/(?!>))*+>"  # of an element that is not empty
_TEXT_NAME = r"(?<![\w-])([\w-]++)[\"']?+\s*+[:=]\s*+"
_TEXT_VALUE = rf"(?s:{_STRING})|[^&\r\n,;}}<]*+"


def redact_text(text: str, content_type: str) -> str:
    """A body's text with the values of secret fields masked: of JSON, of a form, of XML, or of lines like `name: x`.

    The text may be cut off anywhere.
    """
    if "json" in content_type:
        return _redact_values(text, _JSON_NAME, _end_of_json, f'"{MASK}"')
    if "x-www-form-urlencoded" in content_type:
        return "&".join(_redact_pair(pair, ()) for pair in text.split("&"))
    if "xml" in content_type or "html" in content_type:
        text = _redact_values(text, _XML_NAME, _end_of_element, MASK)
    return _redact_values(text, _TEXT_NAME, _end_of_text, MASK)


def _redact_values(text: str, names: str, end_of: Callable[[str, int, str], int], mask: str) -> str:
    """Mask what follows each secret name: `names` finds them, `end_of` says how far it goes."""
    pattern = re.compile(names)
    parts, at = [], 0
    while found := pattern.search(text, at):
        parts.append(text[at : found.end()])
        at = found.end()
        name: str | None = found[1]
        if name is not None and is_secret(name) and at < len(text):
            parts.append(mask)
            at = end_of(text, at, name)
    return "".join([*parts, text[at:]])


def _end_of_json(text: str, at: int, _: str) -> int:
    """Where the JSON value ends that begins there."""
    part, depth = re.compile(_JSON_PART), 0
    while at < len(text):
        first = text[at]
        if depth == 0 and first in ",]}":
            break
        depth += (first in "[{") - (first in "]}")
        found = part.match(text, at)
        assert found is not None
        at = found.end()
        if depth == 0 and first in '"]}':
            break
    return at


def _end_of_element(text: str, at: int, name: str) -> int:
    found = text.find(f"</{name}", at)
    return len(text) if found < 0 else found


def _end_of_text(text: str, at: int, name: str) -> int:
    if text[at] in "[{":
        return _end_of_json(text, at, name)
    found = re.compile(_TEXT_VALUE).match(text, at)
    assert found is not None
    return found.end()


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
    secret = [name for name in request.headers if is_secret(name)]
    query = _redact_query(request.url, ())
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
