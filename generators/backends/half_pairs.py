"""HalfPairs: joins a character that the model's server has cut into the halves of a surrogate pair, one in each delta.

A server that cuts texts at UTF-16 code units, as JavaScript does, cuts emojis so. Clients in JavaScript see the whole
character again when they join the deltas. Stored texts are UTF-8, which has no form of either half.
"""

import json
from typing import Any

from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.proto import events, odd_json

# The field of each type of delta that has a text.
TEXTS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
FIRST_HALF = ("\ud800", "\udbff")


class HalfPairs:
    """The state of one stream: holds a delta that ends with the first half of a pair until the next event has come."""

    def __init__(self) -> None:
        self.held: ModelEvent | None = None

    def add(self, event: ModelEvent) -> list[ModelEvent]:
        """Returns the complete events: `event`, after the held event or joined with it, or nothing yet.

        If no event is held, returns `event` itself unless it has an `original`.
        """
        ready: list[ModelEvent] = []
        if self.held is not None:
            joined = _join(self.held, event)
            if joined is None:
                ready.append(self.held)
            else:
                event = joined
            self.held = None
        if event.original and _ends_with_half(event):
            self.held = event
        else:
            ready.append(event)
        return ready


def _join(first: ModelEvent, second: ModelEvent) -> ModelEvent | None:
    """Returns one delta equal to both; None unless they are deltas of one type and block, without further fields."""
    before, after = _text_of(first), _text_of(second)
    if before is None or after is None:
        return None
    fields, name, text = before
    if (fields["index"], name) != (after[0]["index"], after[1]):
        return None
    fields["delta"][name] = odd_json.join_halves(text + after[2])
    return read_event(json.dumps(fields).encode())


def _ends_with_half(event: ModelEvent) -> bool:
    found = _text_of(event)
    return found is not None and FIRST_HALF[0] <= found[2][-1:] <= FIRST_HALF[1]


def _text_of(event: ModelEvent) -> tuple[dict[str, Any], str, str] | None:
    """Returns the fields of a delta, the name of its text field, and the text; None for any other event."""
    if not isinstance(event.event, events.BlockDelta):
        return None
    fields: dict[str, Any] = json.loads(event.original or bytes(event.raw))
    match fields:
        case {"delta": {"type": str(kind), **rest}} if len(rest) == 1 and kind in TEXTS:
            text = rest.get(TEXTS[kind])
            return (fields, TEXTS[kind], text) if isinstance(text, str) else None
    return None
