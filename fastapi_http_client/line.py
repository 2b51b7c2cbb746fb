"""A line of waiting calls: first come, first served, and whoever gives up leaves no gap."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Line:
    """The waiters of one event loop in order; the first one has the turn. All operations are O(1)."""

    __slots__ = ("loop", "tokens", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tokens = 0  # wanted by all waiters together
        self.waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    def join(self, tokens: int) -> asyncio.Future[None]:
        """Queues up. The future returned is done when it is the caller's turn."""
        turn = self.loop.create_future()
        if not self.waiters:
            turn.set_result(None)
        self.waiters[turn] = tokens
        self.tokens += tokens
        return turn

    def leave(self, turn: asyncio.Future[None]) -> None:
        """Leaves the line, from whatever place, and hands on the turn."""
        self.tokens -= self.waiters.pop(turn)
        if not self.waiters or self.loop.is_closed():
            return
        # The first in line may have its turn already, or be cancelled and about to leave: then there is nothing to do.
        first = next(iter(self.waiters))
        if not first.done():
            first.set_result(None)


def line_of_this_loop(line: Line | None) -> Line:
    """The line to wait in. Waiters that another loop left behind may never run again: nobody queues behind them."""
    loop = asyncio.get_running_loop()
    return line if line is not None and line.loop is loop else Line(loop)
