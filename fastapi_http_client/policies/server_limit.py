"""What an upstream says about its own limits: how long it wants to be left alone.

Read from `Retry-After` (RFC 9110, section 10.2.3) of a 429 or 503, from `RateLimit` (IETF httpapi draft 10), and from
the older triples `RateLimit-*` and `X-RateLimit-*`, whose reset is seconds or, with GitHub and others, a Unix time.
What is malformed says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi_http_client.policies.retry import parse_retry_after

_BUSY = frozenset({429, 503})
_COUNT = r"[0-9]{1,12}"
_DECIMAL = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
_ITEM = r'\s*(?:"[^"]*"|[A-Za-z*][\w*.\-]*)((?:\s*;\s*[a-z*][a-z0-9_\-*.]*=[^;,]+)+)\s*'
_UNIX_TIME = 1_000_000_000  # no reset is 30 years away: from here on it is a date


def asked_pause(status: int, headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds that the upstream asks all of us to wait before the next request, or None when it does not ask.

    `wall` is the time of day (Unix epoch) at which the response was received.
    """
    if status in _BUSY and "retry-after" in headers:
        # Where both are given, Retry-After wins.
        return parse_retry_after(headers["retry-after"], now=wall)
    if "ratelimit" in headers:
        return _structured(headers["ratelimit"])
    for prefix in ("ratelimit-", "x-ratelimit-"):
        if headers.get(f"{prefix}remaining", "").strip() == "0":
            return _reset(headers.get(f"{prefix}reset", "").strip(), wall)
    return None


def _reset(value: str, wall: float) -> float | None:
    if not re.fullmatch(_DECIMAL, value):
        return None
    seconds = float(value)
    return max(0.0, seconds - wall) if seconds >= _UNIX_TIME else seconds


def _structured(value: str) -> float | None:
    """The longest wait of the policies that have nothing left: `"burst";r=0;t=30, "daily";r=900;t=3600`."""
    longest: float | None = None
    for item in value.split(","):
        match = re.fullmatch(_ITEM, item)
        if match is None:
            return None
        pairs = (parameter.split("=", 1) for parameter in match.group(1).split(";") if parameter.strip())
        parameters = {name.strip(): text.strip() for name, text in pairs}
        remaining, reset = parameters.get("r", ""), parameters.get("t", "")
        if not re.fullmatch(_COUNT, remaining):
            return None
        if int(remaining) == 0 and re.fullmatch(_COUNT, reset):
            longest = max(longest or 0.0, float(reset))
    return longest
