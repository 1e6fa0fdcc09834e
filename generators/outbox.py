"""Events between the model and the log. Deltas of one block join while they wait, so the log is never behind.

Bounded by the answer itself: what waits is a handful of blocks, whatever the number of deltas.
"""

import asyncio
from collections import deque

import msgspec

from proto import events

# Joined deltas beyond this become a further entry: an entry must fit a message, and a slow reader its buffer.
JOINED_BYTES_MAX = 16_384


class _Waiting:
    """An event that waits; `raw` is None once others were joined to it."""

    def __init__(self, raw: msgspec.Raw, size: int, *, is_hidden: bool) -> None:
        self.event = events.decode(raw)
        self.raw: msgspec.Raw | None = raw
        self.size = size
        self.is_hidden = is_hidden

    def join(self, other: "_Waiting") -> bool:
        both = events.joined(self.event, other.event)
        if both is None or self.size + other.size > JOINED_BYTES_MAX:
            return False
        self.event, self.raw, self.size = both, None, self.size + other.size
        return True

    def encoded(self) -> msgspec.Raw:
        if self.raw is not None:
            return self.raw
        assert not isinstance(self.event, events.Other)  # noqa: S101  # what was joined is a delta
        return events.encode(self.event)


class Outbox:
    """One producer, one consumer; both in one loop."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    def put(self, raw: msgspec.Raw, *, is_hidden: bool = False) -> None:
        new = _Waiting(raw, len(bytes(raw)), is_hidden=is_hidden)
        if not (self._waiting and self._waiting[-1].join(new)):
            self._waiting.append(new)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will be put."""
        self._is_closed = True
        self._changed.set()

    async def take(self) -> tuple[msgspec.Raw, bool] | None:
        """The next event, and whether it is hidden; None after the last."""
        while not self._waiting:
            if self._is_closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        first = self._waiting.popleft()
        return first.encoded(), first.is_hidden
