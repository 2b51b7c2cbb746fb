"""The rate limiter of a fleet: one bucket in the store, one line in each process."""

from __future__ import annotations

import asyncio
import math

from fastapi_http_client.arguments import bad_argument
from fastapi_http_client.fleet.link import Link, StoreUnavailableError
from fastapi_http_client.line import Line, line_of_this_loop
from fastapi_http_client.policies.rate_limit import TokenBucket
from fastapi_http_client.policies.shared_bucket import Grant, Limit
from fastapi_http_client.rate_limiter import TokenBucketRateLimiter

AHEAD = 5_000  # µs before its time that a token may be asked for: what a round trip and a timer take
LEASE = 0.02  # seconds; the longest that a permit may lie in a process
LEASED_FROM = 200.0  # tokens a second; below this a lease saves next to nothing
MOST_QUESTIONS = 2000.0  # a second, of all processes that wait for one limit, as far as the burst makes up for it
LONGEST_SLEEP = 1.0  # seconds until the head of the line asks again, in case tokens came back


class FleetRateLimiter(TokenBucketRateLimiter):
    """Lets through at most `burst + rate * w` tokens in any window of `w` seconds, over all processes together.

    Within a process calls go in the order in which they came. Only the first in line asks the store, for all behind it
    too, so one command at a time is under way. What a cancelled call leaves behind goes to the next in line, and back
    to the store when there is none.

    From 200 tokens a second on, a process that uses many takes some more than it needs now, good for at most 20 ms;
    the bucket in the store is smaller by what all processes together can hold back so, so the limit stays exact.

    What the store takes to answer counts as waiting; `try_acquire()` never asks it. While it is away the process has
    its fair share: `rate` and `burst` divided by the number of processes.
    """

    __slots__ = (
        "_ask_at",
        "_held",
        "_life",
        "_limit",
        "_link",
        "_local_burst",
        "_most_extra",
        "_name",
        "_owed",
        "_pace",
        "_processes",
        "_ready_at",
        "_retry_in",
        "_slack",
        "_stock",
        "_stock_from",
        "_stock_until",
        "_taking",
        "_took_at",
        "_used",
    )

    def __init__(self, rate: float, burst: int = 1, *, name: str, link: Link) -> None:
        super().__init__(rate, burst)
        life = min(LEASE, burst / (4 * rate))
        held = int(rate * life) if rate >= LEASED_FROM else 0
        try:
            self._limit = Limit.of(rate, burst - held)
        except ValueError as error:
            raise bad_argument("", "rate_limit_rate", f"with rate_limit_burst, in a store: {error}") from None
        self._most_extra = held
        self._life = life if held else math.inf  # without a lease they are for those in line, and for nobody else
        self._pace = self._life / 2 if held else 0.0
        self._slack = (burst - 1) / (2 * rate)
        self._ask_at = float("-inf")
        self._name = name
        self._link = link
        self._owed = 0  # permits to give back
        self._stock = 0  # permits in hand, good from …
        self._stock_from = 0.0
        self._stock_until = 0.0
        self._taking: asyncio.Task[None] | None = None
        self._retry_in = 0.0
        self._ready_at = 0.0
        self._used = 0  # since the last take
        self._took_at = float("-inf")
        self._held: asyncio.TimerHandle | None = None
        self._processes = 0
        self._share()

    @property
    def available(self) -> float:
        """What can be taken without asking: the permits in hand, or without the store this process's own tokens."""
        return float(self._stock) if self._link.is_up else super().available

    def _take_at_once(self, tokens: int) -> bool:
        now = self._clock.monotonic()
        if not self._link.is_up:
            return not self._take_own(tokens, now)
        if self._stock < tokens or not self._stock_from <= now < self._stock_until:
            return False
        self._use(tokens, now)
        return True

    async def _wait_in_line(self, tokens: int, max_wait: float | None) -> float:
        line = self._line = line_of_this_loop(self._line)
        arrived = self._clock.monotonic()
        self._refuse_long_wait(self._predicted(line, tokens, arrived), max_wait)
        turn = line.join(tokens)
        try:
            await self._turn(turn, max_wait)
            while missing := await self._take(tokens, line):
                left = None if max_wait is None else max_wait - (self._clock.monotonic() - arrived)
                self._refuse_long_wait(missing, left)
                await self._clock.sleep(min(missing, LONGEST_SLEEP))
        finally:
            line.leave(turn)
            if self._stock and not self._most_extra and not line.waiters:
                self._return_stock()
        return self._clock.monotonic() - arrived

    async def _turn(self, turn: asyncio.Future[None], max_wait: float | None) -> None:
        if turn.done() or max_wait is None:
            await turn
            return
        try:
            async with asyncio.timeout(max_wait):
                await turn
        except TimeoutError:
            self._refuse_long_wait(max_wait + 1 / self._rate, max_wait)

    def _predicted(self, line: Line, tokens: int, now: float) -> float:
        """The shortest wait that is possible. Behind others that is known, at the head only the store knows."""
        if not line.waiters:
            return 0.0
        if not self._link.is_up:
            return self._bucket.wait_for(line.tokens + tokens, now)
        first = next(iter(line.waiters.values()))
        return max(self._ready_at - now, 0.0) + max(line.tokens - first + tokens - self._burst, 0) / self._rate

    # -- permits from the store ----------------------------------------------------------------------------------

    async def _take(self, tokens: int, line: Line) -> float:
        """Takes the tokens and returns 0.0, or returns the seconds after which to try again."""
        while self._link.is_up:
            now = self._clock.monotonic()
            if self._stock and now >= self._stock_until:
                self._owed += self._stock
                self._stock = 0
            if self._stock >= tokens:
                if now < self._stock_from:
                    return self._stock_from - now
                self._use(tokens, now)
                return 0.0
            if now < self._ask_at:
                return self._ask_at - now
            taking = self._taking
            if taking is None:
                taking = self._taking = self._link.start(self._refill(tokens - self._stock, line))
            await asyncio.wait({taking})
            if self._retry_in and self._stock < tokens and self._link.is_up:
                return self._retry_in
        return self._take_own(tokens, self._clock.monotonic())

    def _use(self, tokens: int, now: float) -> None:
        self._stock -= tokens
        self._used += tokens
        self._bucket.take(tokens, now)  # our own share, should the store go away

    async def _refill(self, least: int, line: Line) -> None:
        """Ask the store: for those in line, and for a few more when the last ones were used up quickly."""
        now = self._clock.monotonic()
        most = max(line.tokens - self._stock, least)
        extra = min(self._most_extra, self._used) if now - self._took_at < self._life else 0
        self._used, self._took_at = 0, now
        grant = await self._command(least, most + extra)
        if grant is None:
            return
        now = self._clock.monotonic()
        wait = grant.wait / 1e6
        pace = max(self._pace, min(self._slack, self._link.processes / MOST_QUESTIONS))
        if grant.tokens:
            self._stock += grant.tokens
            self._stock_from = now + wait
            self._stock_until = self._stock_from + self._life
            self._retry_in = 0.0
            self._ready_at = now
            if grant.tokens < most:  # the bucket is empty by now
                self._ask_at = now + pace
            if self._most_extra:
                self._return_later()
            elif not line.waiters:
                self._return_stock()
        else:
            self._ready_at = now + wait
            self._retry_in = max(wait - AHEAD / 2e6, pace, 0.0005)
        self._share()

    async def _command(self, least: int, most: int) -> Grant | None:
        """One command, with what is owed; None when the store is away."""
        returned, self._owed = self._owed, 0
        store, name, limit = self._link.store, self._name, self._limit
        ahead = AHEAD if least else 0
        try:
            return await self._link.ask(store.take(name, limit, least=least, most=most, ahead=ahead, returned=returned))
        except StoreUnavailableError:
            return None
        finally:
            self._taking = None

    def _return_later(self) -> None:
        if self._held is None:
            delay = max(self._stock_until - self._clock.monotonic(), 0.001)
            self._held = asyncio.get_running_loop().call_later(delay, self._look_at_stock)

    def _look_at_stock(self) -> None:
        self._held = None
        if not self._stock:
            return
        if self._clock.monotonic() < self._stock_until:
            self._return_later()
        else:
            self._return_stock()

    def _return_stock(self) -> None:
        """Give back what is in hand: now, or with the command that follows the one under way."""
        self._owed += self._stock
        self._stock = self._used = 0
        if self._taking is None and self._link.is_up:
            self._taking = self._link.start(self._give_back())

    async def _give_back(self) -> None:
        while self._owed and self._link.is_up:
            await self._command(0, 0)

    # -- our own share -------------------------------------------------------------------------------------------

    def _share(self) -> None:
        """A bucket of our own for when the store is away, as full as it was when there were more or fewer of us."""
        if self._processes != self._link.processes:
            self._processes = self._link.processes
            self._local_burst = max(self._burst // self._processes, 1)
            self._bucket = self._bucket.resized(
                self._rate / self._processes, self._local_burst, self._clock.monotonic()
            )

    def _take_own(self, tokens: int, now: float) -> float:
        if tokens > self._local_burst:  # it would never hold so many: a larger one, no fuller than it is
            larger = TokenBucket(self._rate / self._processes, tokens)
            larger.take(tokens - int(self._bucket.available(now)), now)
            self._bucket, self._local_burst = larger, tokens
        return self._bucket.take(tokens, now)
