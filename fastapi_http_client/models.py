"""Requests and responses: httpx's own classes, and what this package adds to a response."""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast, overload

import httpx
from httpx._decoders import ByteChunker
from pydantic import TypeAdapter

from fastapi_http_client.call import Call
from fastapi_http_client.clock import SYSTEM_CLOCK
from fastapi_http_client.decoding import decoded
from fastapi_http_client.errors import Attempt, HTTPRequestError, HTTPResponseError, RateLimitError
from fastapi_http_client.policies.retry import parse_retry_after
from fastapi_http_client.redaction import printable, redact_url

HTTPRequest = httpx.Request

T = TypeVar("T")


class HTTPResponse(httpx.Response):
    """An `httpx.Response` that knows how it came about and raises this package's errors."""

    # Set on every response that a client returns; the class attributes are for responses built by hand.
    _attempts: tuple[Attempt, ...] = ()
    _only_attempt_took: float | None = None
    _client_name: str | None = None
    _received_at: float | None = None
    _max_bytes: int | None = None
    _verdict: httpx.HTTPStatusError | None = None
    """What an event hook raised for the status: for the caller, unless the attempt is repeated."""

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The ledger of the call: one entry for each attempt, this response's own last."""
        if not self._attempts and self._only_attempt_took is not None:
            self._attempts = (Attempt(1, self.status_code, None, self._only_attempt_took),)
        return self._attempts

    @attempts.setter
    def attempts(self, attempts: tuple[Attempt, ...]) -> None:
        self._attempts = attempts

    def only_attempt_took(self, seconds: float) -> None:
        """There was one attempt, and it was good: the ledger is made of this when somebody asks for it."""
        self._only_attempt_took = seconds

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        """The decoded body in chunks.

        Raises `HTTPRequestError` when it cannot be decoded or is longer than the client's `max_response_bytes`.
        """
        if hasattr(self, "_content"):
            async for chunk in super().aiter_bytes(chunk_size):
                yield chunk
            return
        chunker = ByteChunker(chunk_size)
        try:
            async for piece in decoded(self.aiter_raw(), self.headers.get("content-encoding", ""), self._max_bytes):
                for chunk in chunker.decode(piece):
                    yield chunk
        except httpx.DecodingError as error:
            raise await self._unusable(str(error)) from error
        for chunk in chunker.flush():
            yield chunk

    async def aread(self) -> bytes:
        """The whole decoded body; `HTTPRequestError` when it is longer than the client's `max_response_bytes`."""
        content = await super().aread()
        if self._max_bytes is not None and len(content) > self._max_bytes:  # a mock's body was never iterated over
            raise await self._unusable(f"the response is larger than max_response_bytes ({self._max_bytes})")
        return content

    async def _unusable(self, why: str) -> HTTPRequestError:
        await self.aclose()
        return HTTPRequestError(
            f"{self._described()}: {why}", request=self._request, client=self._client_name, transient=False
        )

    @property
    def charset_encoding(self) -> str | None:
        """The charset that the upstream names, if text can be read by it; httpx takes any codec, and fails."""
        name = super().charset_encoding
        if name is None or not _is_charset(name):
            return None
        marks = _MARKS.get(codecs.lookup(name).name)
        if marks is not None and not self.__dict__.get("_content", b"").startswith(marks):
            return f"{name}-le"  # without a mark at the beginning Python's own would fail; browsers take this one
        return name

    def json(self, **kwargs: Any) -> Any:
        """The body parsed as JSON, anew each time; the arguments are those of `json.loads`.

        Raises `json.JSONDecodeError` or `UnicodeDecodeError` (both `ValueError`) when the body is no JSON.
        """
        try:
            body = self.content
            if not kwargs and body[:1] in (b"{", b"[") and body[1:2] != b"\0":
                return json.loads(body.decode("utf-8", "surrogatepass"))  # what `json` would find out at length
            return super().json(**kwargs)
        except RecursionError:
            raise json.JSONDecodeError("nested too deeply", "", 0) from None

    @property
    def json_data(self) -> Any:
        """The body parsed as JSON: parsed once, and the same object on every access. Raises what `json()` raises."""
        if "_json_data" not in self.__dict__:
            self._json_data = self.json()
        return self._json_data

    @overload
    def parse(self, type_: type[T]) -> T: ...
    @overload
    def parse(self, type_: Any) -> Any: ...  # `int | None`, which no type checker takes for a `type`

    def parse(self, type_: Any) -> Any:
        """The JSON body validated as `type_`: a pydantic model, a dataclass, `list[int]` …

        Raises `pydantic.ValidationError`.
        """
        try:
            adapter: TypeAdapter[Any] = _adapter(type_)  # most types are hashable
        except TypeError:
            adapter = TypeAdapter(type_)
        encoding = json.detect_encoding(self.content)
        if encoding == "utf-8":
            return adapter.validate_json(self.content)
        return adapter.validate_json(self.content.decode(encoding, "replace"))

    def raise_for_status(self) -> HTTPResponse:
        """Return the response when its status is below 400.

        Raises `RateLimitError` for a 429 and `HTTPResponseError` for every other 4xx and 5xx. Unlike httpx, a redirect
        that was not followed is no error.
        """
        if self.status_code < 400:
            return self
        facts: dict[str, Any] = {
            "response": self,
            "request": self._request,
            "attempts": self.attempts,
            "client": self._client_name,
        }
        message = f"{self._described()}: {self.status_code} {printable(self.reason_phrase, 100)}"
        if self.status_code == 429:
            raise RateLimitError(message, retry_after=retry_after(self), **facts)
        raise HTTPResponseError(message, status_code=self.status_code, **facts)

    def _described(self) -> str:
        who = [self._client_name] if self._client_name else []
        request = self._request
        if request is not None:
            secret = Call.of(request).secret_params if Call.is_on(request) else ()
            what = f"{request.method} {redact_url(request.url, secret)}"
            if self.attempts:
                spent = sum(attempt.elapsed + attempt.delay for attempt in self.attempts)
                what += f", attempt {len(self.attempts)}, after {spent:.2f} s"
            who.append(what)
        return ": ".join(who) or "response"


_MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
_NO_CHARSETS = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"})


@functools.lru_cache(maxsize=256)
def _is_charset(name: str) -> bool:
    """Whether Python has a codec of this name that makes text of bytes, as `zlib` and `rot13` do not."""
    try:
        codec = codecs.lookup(name)
        return codec.name.replace("-", "_") not in _NO_CHARSETS and isinstance(codecs.decode(b"", name), str)
    except Exception:  # also errors of the import system, for names that are no names
        return False


@functools.lru_cache(maxsize=256)
def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


@functools.cache
def _response_class(cls: type[httpx.Response]) -> type[HTTPResponse]:
    return cast("type[HTTPResponse]", type("HTTPResponse", (HTTPResponse, cls), {}))


def as_http_response(response: httpx.Response) -> HTTPResponse:
    """The same object as an `HTTPResponse`.

    A transport answers with an `httpx.Response` that already holds a stream, or a body, and private state such as its
    decoder: changing its class keeps all of it, where a copy would have to know every private attribute.
    """
    if not isinstance(response, HTTPResponse):
        cls = type(response)
        response.__class__ = HTTPResponse if cls is httpx.Response else _response_class(cls)  # type: ignore[arg-type]
    return cast("HTTPResponse", response)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the response's `Retry-After` asks for, or None. A date counts from the response's own receipt."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    received_at = getattr(response, "_received_at", None)
    return parse_retry_after(value, SYSTEM_CLOCK.wall() if received_at is None else received_at)


class _Copy(httpx.Request):
    """A request whose repr holds no credential: it stands in every traceback that shows local variables."""

    def __repr__(self) -> str:
        secret = Call.of(self).secret_params if Call.is_on(self) else ()
        return f"<Request({self.method!r}, {redact_url(self.url, secret)!r})>"


def copy_request(request: httpx.Request) -> httpx.Request:
    """A request with the same body, and headers and extensions of its own."""
    return _Copy(
        request.method,
        request.url,
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )
