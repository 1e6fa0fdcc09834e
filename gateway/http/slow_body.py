"""The minimum rate at which a request body must arrive.

Independently of the body's size and of `body_timeout_s`: each `rate_min * WINDOW_S` bytes must arrive within WINDOW_S
seconds. A client that stops or drips would otherwise hold the memory that is reserved for its body. Only the time that
is spent waiting for the client counts, not the time that the body waits for memory.
"""

import asyncio
from collections.abc import AsyncIterator

from tailrace.proto.errors import Refused

# A phone that moves between two cells is silent for some seconds.
WINDOW_S = 15.0


class MinimumRate:
    """The clock of one body."""

    def __init__(self, rate_min: int) -> None:
        """`rate_min`: bytes a second."""
        self._rate_min = rate_min
        self._left_s = WINDOW_S
        self._missing = WINDOW_S * rate_min

    async def next(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        """Returns the next of `pieces`; None after the last. Raises Refused when the body arrives too slowly."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(self._left_s):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            message = f"the body arrives too slowly: send {self._rate_min} bytes a second, without a pause"
            raise Refused("body_timeout", message) from error
        self._left_s -= loop.time() - began_s
        self._missing -= len(piece or b"")
        if self._missing <= 0:
            self._left_s, self._missing = WINDOW_S, WINDOW_S * self._rate_min
        return piece
