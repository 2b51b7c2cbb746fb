"""What one call carries through the pipeline, beside the request itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import httpx

from fastapi_http_client.clock import SYSTEM_CLOCK, Clock
from fastapi_http_client.context import current_context
from fastapi_http_client.errors import Attempt, HTTPClientError

if TYPE_CHECKING:
    from fastapi_http_client.models import HTTPResponse

Handler = Callable[[httpx.Request], Awaitable["HTTPResponse"]]
"""What a step wraps and what it returns: the rest of the pipeline."""

KEY = "fastapi_http_client"  # the extension of a request that holds its call
OPTIONS = "fastapi_http_client.options"  # the one by which a verb passes its own options to send()
TEMPLATE = "fastapi_http_client.url_template"  # the one that holds the path with its {fields}, which telemetry shows


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port; the port is None when it is the scheme's own."""
    return url.scheme, url.raw_host.decode("ascii"), url.port


class Call:
    """The state of one call: one object for all its attempts and redirects, made by `client.send()`.

    It travels in `request.extensions`, which httpx hands through untouched, so that it follows the request through
    middlewares and tasks.
    """

    # What most calls begin and end with, so that only what differs is set.
    deadline: float | None = None  # on the call's clock; None: no limit for the whole call
    ends_with_request = False  # whether the deadline is that of the inbound request
    resends = 0  # requests already sent for this call: retries, redirects and 401 replays
    idempotency_key: str | None = None
    at_home = False  # whether its address is surely at home: a path below the client's base URL
    hung = False  # whether the upstream had used up the whole limit of the attempt that was cut off
    waits_for_body = False  # for the next part of a body that the caller produces
    head: tuple[int, str] | None = None  # status and HTTP version of the response under way, for telemetry
    is_last_hop = False  # whether a redirect from here would be one too many
    outcome: HTTPResponse | HTTPClientError | None = None  # of an attempt that the pipeline did not make itself
    attempt_began: float | None = None  # when the one under way did, if one is
    resends_before = 0  # requests sent for this call before that attempt

    def __init__(
        self,
        *,
        clock: Clock,
        client_name: str | None,
        stream: bool,
        retry: bool,
        follow_redirects: bool,
        auth: httpx.Auth | None,
        origins: frozenset[tuple[str, str, int | None]],
        total_timeout: float | None = None,
        max_bytes: int | None = None,
        secret_params: frozenset[str] = frozenset(),
    ) -> None:
        self.clock = clock
        self.client_name = client_name
        self.stream = stream
        self.retry = retry
        self.follow_redirects = follow_redirects
        self.auth = auth
        self.origins = origins  # where the client's credentials may go
        self.total_timeout = total_timeout  # the call's own, before the inbound deadline is looked at
        self.max_bytes = max_bytes  # of a decoded body
        self.secret_params = secret_params  # query keys to mask, beside the well-known ones
        self.started = clock.monotonic()
        self.attempts: list[Attempt] = []

    def start_deadline(self) -> float | None:
        """Set the deadline, and say how many seconds the whole call may take; None: as long as it likes."""
        deadline = None if self.total_timeout is None else self.started + self.total_timeout
        now = self.clock.monotonic()
        context = current_context()
        if context is not None and context.deadline is not None:
            # On the system's clock, which in a test need not be the call's.
            of_request = now + context.deadline - SYSTEM_CLOCK.monotonic()
            if deadline is None or of_request < deadline:
                deadline, self.ends_with_request = of_request, True
        self.deadline = deadline
        return None if deadline is None else deadline - now

    def remaining(self) -> float | None:
        """Seconds left of the whole call (0.0 when it is over), or None when it has no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - self.clock.monotonic())

    def fits(self, wait: float) -> bool:
        """Whether a wait of so many seconds ends before the call's limit."""
        return self.deadline is None or self.clock.monotonic() + wait < self.deadline

    @property
    def attempts_begun(self) -> int:
        """How many there are, with the one under way, which is not in the ledger yet."""
        return len(self.attempts) + (self.attempt_began is not None)

    def is_home(self, request: httpx.Request) -> bool:
        """Whether a request of the call goes to one of the client's own origins. Several may be under way at once."""
        return origin(request.url) in self.origins

    def attach(self, request: httpx.Request) -> httpx.Request:
        request.extensions[KEY] = self
        return request

    @staticmethod
    def is_on(request: httpx.Request) -> bool:
        return KEY in request.extensions

    @staticmethod
    def of(request: httpx.Request) -> Call:
        call: Call = request.extensions[KEY]
        return call
