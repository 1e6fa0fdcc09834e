"""Converts a complete message into the events that a stream of it would have. Deterministic and pure.

So an answer without a stream gets an ordinary log. A generator that takes over makes the same bytes and finds the
stored entries (PROTOCOL R13).
"""

from typing import Any

import msgspec

from tailrace.generators.backends.block_events import block_events
from tailrace.proto.errors import BackendError

# The fields of `message_start`; all other fields come with `message_delta`.
HEAD = frozenset({"id", "type", "role", "model", "content", "usage", "stop_reason", "stop_sequence"})

Message = dict[str, Any]


def to_events(message: Message) -> list[msgspec.Raw]:
    """Returns the events of `message`. Raises BackendError if it is not complete."""
    match message:
        case {"content": list(blocks), "usage": dict(usage), "stop_reason": str()}:
            events = [{"type": "message_start", "message": head(message)}]
            for index, block in enumerate(blocks):
                events += [change | {"index": index} for change in block_events(block)]
            events.append(stop_event(message, usage))
            return [msgspec.Raw(msgspec.json.encode(event)) for event in events]
        case _:
            raise BackendError("backend_broken", "the model's answer is not a complete message")


def head(message: Message) -> Message:
    """Returns the message without its content."""
    given = {name: value for name, value in message.items() if name in HEAD}
    return given | {"content": [], "stop_reason": None, "stop_sequence": None}


def stop_event(message: Message, usage: dict[str, Any]) -> dict[str, Any]:
    """Returns the event with the stop reason and the usage."""
    besides = {name: value for name, value in message.items() if name not in HEAD}
    managed = {name: besides.pop(name) for name in ("context_management",) if name in besides}
    stop = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    return {"type": "message_delta", "delta": stop | besides, "usage": usage, **managed}
