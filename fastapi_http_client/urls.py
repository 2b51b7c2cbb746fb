"""From what a caller writes to the URL that is asked for, without a way out of the client's base URL."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, unquote

import httpx

from fastapi_http_client.config import is_host, is_port
from fastapi_http_client.errors import HTTPRequestError, also
from fastapi_http_client.fast import below
from fastapi_http_client.redaction import printable, redact_url

_FIELD = re.compile(r"\{([^{}]*)\}")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class InvalidURLError(HTTPRequestError, ValueError):
    """The address or one of its parts cannot be used; nothing was sent. Also a `ValueError`."""

    def __init__(self, message: str, **facts: Any) -> None:
        HTTPRequestError.__init__(self, message, may_have_run=False, transient=False, **facts)


def expand(template: str, params: Mapping[str, Any]) -> str:
    """The path with each `{name}` replaced by its value, percent-quoted whole, so that a value is always one segment.

    Raises `InvalidURLError` for a name without value, a value without name, and for the values that a server would not
    take for a segment: `.`, `..` and nothing at all.
    """
    if not isinstance(params, Mapping):
        raise InvalidURLError(f"path_params must be a mapping, not {type(params).__name__}")
    used = set()

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if not name.isidentifier() and name not in params:
            what = f"{template!r} holds {match.group()!r}, which is no name in braces (there are no converters)"
            raise InvalidURLError(what)
        if name not in params:
            raise InvalidURLError(f"path_params has no {name!r}, which {template!r} needs")
        used.add(name)
        value = params[name]
        if isinstance(value, Collection) and not isinstance(value, str):  # bytes too: b'x' is no segment
            raise InvalidURLError(f"path_params[{name!r}] must be a text or a number, not {type(value).__name__}")
        text = "" if value is None else str(value)
        if text in ("", ".", ".."):
            raise InvalidURLError(f"path_params[{name!r}] must not be None, empty, '.' or '..'")
        try:
            return quote(text, safe="")
        except UnicodeEncodeError:
            raise InvalidURLError(f"path_params[{name!r}] holds a character that has no encoding") from None

    path = _FIELD.sub(value_of, template)
    unknown = params.keys() - used
    if unknown:
        raise InvalidURLError(f"path_params has {sorted(unknown)}, which {template!r} does not need")
    if any(unquote(segment) in (".", "..") for segment in path.partition("?")[0].split("/")):
        raise InvalidURLError(f"path_params make a '.' or '..' of a part of {template!r}")
    return path


def path_template(template: str, base: httpx.URL) -> str:
    """What telemetry calls a template that `expand()` has taken: an absolute path, without host, query and secrets."""
    path = re.split(r"[?#]", template, maxsplit=1)[0]
    address = _ADDRESS.match(path)
    if address:
        return path[address.end() :] or "/"
    return base.raw_path.decode("ascii").partition("?")[0] + path.lstrip("/")


def join(base: httpx.URL, path: httpx.URL | str, template: str | None = None) -> httpx.URL:
    """The path below the base URL; an absolute URL as it is.

    Raises `InvalidURLError` for a path that leaves the base, plainly or in percent-quotes, and for one that is none. Of
    a path that `expand()` made, only the `template` can leave it: the values are quoted whole.
    """
    text = str(path)
    if _CONTROL.search(text):
        raise InvalidURLError("the path holds a control character")
    try:
        url = httpx.URL(path)
        _ = url.host  # checked by httpx only when it is asked for
    except TypeError:
        raise InvalidURLError(f"the path must be a text or an httpx.URL, not {type(path).__name__}") from None
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidURLError(f"the path is no valid URL: {type(error).__name__}") from error
    if not url.is_relative_url:
        return url
    if text.startswith("//") or "\\" in text:
        raise InvalidURLError("the path must not begin with '//' and must not hold a backslash")
    if url.scheme in ("http", "https"):
        raise InvalidURLError("the URL has no host")
    if url.scheme:
        what = "what stands before the ':' is taken for a scheme; begin a path with '/', a URL with http:// or https://"
        raise InvalidURLError(what)
    joined = base.copy_with(raw_path=base.raw_path + url.raw_path.lstrip(b"/"))
    if b"." in url.raw_path or b"%2" in url.raw_path:
        _check_below(base, joined, text if template is None else _FIELD.sub("x", template))
    return joined


def check_address(url: httpx.URL, *, any_scheme: bool) -> None:
    """Raise `InvalidURLError`, also of the class that httpx's own error has, for an address that no server can have.

    `any_scheme` is for what a mounted transport carries.
    """
    what: str | None = None
    kind: type[httpx.RequestError] = httpx.UnsupportedProtocol
    if not url.scheme:
        what = f"{redact_url(url)!r} is only a path, and the client has no base_url"
    elif not url.raw_host:
        what = "the URL has no host"
    elif url.raw_scheme not in (b"http", b"https") and not any_scheme:
        what = f"the URL's scheme must be http or https, not {printable(url.scheme, 50)!r}"
    elif not is_host(url.raw_host):
        what = "the URL's host holds a character that no name has"
    elif not is_port(url.port):
        what, kind = "the URL's port is not between 1 and 65535", httpx.ConnectError
    if what is not None:
        raise also(InvalidURLError, kind)(what)


class Joiner:
    """`join()` for one base URL. It remembers what the last thousand paths came to: parsing is a fifth of a call.

    Paths with a query are not kept: there are too many of them, and they may hold secrets. Nor are values with
    something quoted: they are not looked at as closely as the same path is when it is written out.
    """

    __slots__ = ("_below", "_known", "base")
    MOST = 1024

    def __init__(self, base: httpx.URL) -> None:
        self.base = base
        self._known: dict[str, httpx.URL] = {}
        self._below: dict[int, httpx.URL] = {}  # those of them below the base, by their identity

    def __call__(self, path: httpx.URL | str, template: str | None = None) -> httpx.URL:
        if not isinstance(path, str) or "?" in path or (template is not None and "%" in path):
            return join(self.base, path, template)
        url = self._known.get(path)
        if url is None:
            url = below(self.base, path) or join(self.base, path)
            if len(self._known) >= self.MOST:
                oldest = self._known.pop(next(iter(self._known)))
                self._below.pop(id(oldest), None)
            self._known[path] = url
            if path.startswith("/") and self.base.host:
                self._below[id(url)] = url
        return url

    def is_below(self, url: httpx.URL) -> bool:
        """Whether this very object is surely at home, without looking at it: a path that was joined here."""
        return self._below.get(id(url)) is url


def _check_below(base: httpx.URL, joined: httpx.URL, text: str) -> None:
    """Whether the joined path still lies below the base when a server resolves it, once or twice unquoted."""
    prefix = base.raw_path.split(b"?", 1)[0]
    written = joined.raw_path.split(b"?", 1)[0]
    depth = 0
    relative = text.split("?", 1)[0].split("#", 1)[0]
    for segment in re.split(r"[/\\]", unquote(unquote(relative))):
        if segment == "..":
            depth -= 1
        elif segment not in ("", "."):
            depth += 1
        if depth < 0:
            raise InvalidURLError("the path leaves the client's base URL")
    if not written.startswith(prefix):
        raise InvalidURLError("the path leaves the client's base URL")


def with_params(url: httpx.URL, params: httpx.QueryParams) -> httpx.URL:
    """The URL with more query parameters: its own stay as they are, and before the new ones."""
    if not params:
        return url
    added = str(params).encode("ascii")
    return url.copy_with(query=url.query + b"&" + added if url.query else added)
