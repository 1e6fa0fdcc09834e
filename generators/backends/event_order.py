"""Which event may follow which in one call's answer (Anthropic's docs, "Streaming Messages"). It changes none.

A dialect tells each event as it comes; the fold knows the block that it belongs to. What does not fit the answer so far
they would tell differently, so it must not be stored: the answer is broken.
"""

import msgspec

from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.errors import BackendError

KNOWN = frozenset({"message_start", "content_block_start", "content_block_stop", "message_delta"})


class EventOrder:
    """One call's answer so far, as far as it decides what may come next."""

    def __init__(self) -> None:
        self._has_begun = False
        self._next = 0
        self._open: dict[int, str] = {}

    def require(self, kind: str, event: bytes) -> None:
        """Raises BackendError when `event`, whose type is `kind`, cannot come next."""
        is_beginning = kind == "message_start"
        if is_beginning == self._has_begun or not self._takes(kind, event):
            raise BackendError("backend_broken", f"the model sent a {kind[:40]} that does not fit its answer so far")
        self._has_begun = True

    def _takes(self, kind: str, raw: bytes) -> bool:
        match events.decode(raw):
            case events.BlockStart(index, block):
                is_next = index == self._next
                self._open[index] = str(block.get("type"))
                self._next += 1
                return is_next
            case events.BlockDelta(index, delta):
                return events.fits_block(delta, self._open.get(index, ""))
            case events.BlockStop(index):
                return self._open.pop(index, None) is not None
            case events.MessageDelta(delta):
                # What has a reason to have stopped is whole, and half a block is not.
                return delta.stop_reason is None or not self._open
            case events.UnknownEvent():
                # What is newer than this version passes. What it should know, and cannot read, does not.
                return kind not in KNOWN and not is_too_deep(raw)
            case _:
                return True


def is_too_deep(raw: bytes) -> bool:
    try:
        # Its entry is one more level around it (PROTOCOL R7).
        return is_deeper(msgspec.json.decode(raw), LEVELS_MAX - 1)
    except RecursionError:
        return True
    except DECODE_ERRORS:
        # Text that is no UTF-8, or half a surrogate pair: everybody passes that event over alike.
        return False
