"""Checks the order of the events in one answer (Anthropic's docs, "Streaming Messages"). Pure; changes no event.

Client protocols render each event as it comes, while the fold looks up the event's block. An event that does not fit
the answer so far would make the two differ, so the answer counts as broken and the event is not stored.
"""

import msgspec

from tailrace.generators.backends.model_event import KINDS, ModelEvent
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.errors import BackendError

# Of these types, an event that decodes as `UnknownEvent` is malformed. (A newer delta of content_block_delta is not.)
STRICT_KINDS = frozenset(KINDS.values()) - {"content_block_delta"}


class EventOrder:
    """The state of one answer that decides which event may come next: begun or not, and the open blocks."""

    def __init__(self) -> None:
        self._has_begun = False
        self._next = 0
        self._open: dict[int, str] = {}

    def check(self, event: ModelEvent) -> None:
        """Raises BackendError if `event` cannot come next."""
        is_start = event.kind == "message_start"
        if is_start == self._has_begun or not self._accepts(event):
            raise BackendError(
                "backend_broken", f"the model sent a {event.kind[:40]} that does not fit its answer so far"
            )
        self._has_begun = True

    def _accepts(self, model_event: ModelEvent) -> bool:
        match model_event.event:
            case events.BlockDelta(index, delta):
                return events.fits_block(delta, self._open.get(index, ""))
            case events.BlockStart(index, block):
                is_next = index == self._next
                self._open[index] = str(block.get("type"))
                self._next += 1
                return is_next
            case events.BlockStop(index):
                return self._open.pop(index, None) is not None
            case events.MessageDelta(delta):
                # A message with a stop reason is complete, so it has no open block.
                return delta.stop_reason is None or not self._open
            case events.UnknownEvent():
                return model_event.kind not in STRICT_KINDS and not is_too_deep(model_event.raw)
            case _:
                return True


def is_too_deep(raw: msgspec.Raw) -> bool:
    """Whether an event nests so deep that no reader could decode its entry, which is one level more (PROTOCOL R7)."""
    try:
        return is_deeper(msgspec.json.decode(raw), LEVELS_MAX - 1)
    except RecursionError:
        return True
    except DECODE_ERRORS:
        # Invalid UTF-8 or half a surrogate pair: the fold and all client protocols skip such an event alike.
        return False
