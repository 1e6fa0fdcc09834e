"""Events between the model and the log. Deltas of one block join while they wait, so the log is never behind.

Bounded by the answer itself: what waits is a handful of blocks, whatever the number of deltas.
"""

import asyncio
from collections import deque
from typing import NamedTuple

import msgspec

from tailrace.proto import events

# Joined deltas beyond this become a further entry: an entry must fit a message, and a slow reader its buffer.
JOINED_BYTES_MAX = 16_384
OPENING = (events.MessageStart, events.BlockStart)


class Outgoing(NamedTuple):
    """An event for the log."""

    event: msgspec.Raw
    is_hidden: bool = False
    """From readers."""
    left_out: int = 0
    """Characters that the call has said before it and that nobody is told (PROTOCOL R70)."""


class _Waiting:
    """An event that waits; `raw` is None once others were joined to it."""

    def __init__(self, raw: msgspec.Raw, size: int, *, is_hidden: bool, left_out: int) -> None:
        self.event = events.decode(raw)
        self.raw: msgspec.Raw | None = raw
        self.size = size
        self.is_hidden = is_hidden
        self.left_out = left_out

    def join(self, other: "_Waiting") -> bool:
        both = events.join_deltas(self.event, other.event)
        if both is None or self.size + other.size > JOINED_BYTES_MAX:
            return False
        self.event, self.raw, self.size = both, None, self.size + other.size
        self.left_out += other.left_out
        return True

    def encoded(self) -> msgspec.Raw:
        if self.raw is not None:
            return self.raw
        assert not isinstance(self.event, events.UnknownEvent)  # noqa: S101  # what was joined is a delta
        return events.encode(self.event)


class DeltaBuffer:
    """One producer, one consumer; both in one loop.

    With `is_held` the opening of a message and of its first block waits for the first token: what an API says before it
    is no answer yet.
    """

    def __init__(self, *, is_held: bool = False) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._is_held = is_held
        self._is_closed = False
        self.begun = asyncio.Event()
        """A token was put."""

    def put(self, raw: msgspec.Raw, *, is_hidden: bool = False, left_out: int = 0) -> None:
        new = _Waiting(raw, len(bytes(raw)), is_hidden=is_hidden, left_out=left_out)
        if not isinstance(new.event, OPENING):
            self.begun.set()
        if not (self._waiting and self._waiting[-1].join(new)):
            self._waiting.append(new)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will be put."""
        self._is_closed = True
        self._changed.set()

    async def take(self) -> Outgoing | None:
        """The next event; None after the last."""
        while not self._waiting or (self._is_held and not self.begun.is_set()):
            if self._is_closed:
                break
            self._changed.clear()
            await self._changed.wait()
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        return Outgoing(first.encoded(), first.is_hidden, first.left_out)
