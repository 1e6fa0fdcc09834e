"""One event of a model's answer: decoded once, together with the bytes that are stored."""

from collections.abc import Callable

import msgspec

from tailrace.generators.backends.api_errors import ErrorEvent, error_from_reason
from tailrace.proto import events
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import BackendError


class ModelEvent(msgspec.Struct, frozen=True):
    """An event and its JSON. `UnknownEvent` stands for types that this version does not know."""

    event: events.Event | events.UnknownEvent
    raw: msgspec.Raw
    kind: str = ""
    """The event's `type`; read for events that come from a backend."""
    is_hidden: bool = False
    """Not shown to readers: a continuation's `message_start`."""
    left_out: int = 0
    """Characters that the call sent before this event and that are not stored (PROTOCOL R70)."""


Sink = Callable[[ModelEvent], None]
"""Takes the events of a call. May raise CloseCall."""


class CloseCall(Exception):
    """Raised by a sink to close the model call. Not an error of the turn."""


class _Typed(msgspec.Struct, frozen=True):
    type: str


_decode_type = msgspec.json.Decoder(_Typed).decode
_decode_error = msgspec.json.Decoder(ErrorEvent).decode
KINDS: dict[type, str] = {
    events.MessageStart: "message_start",
    events.BlockStart: "content_block_start",
    events.BlockDelta: "content_block_delta",
    events.BlockStop: "content_block_stop",
    events.MessageDelta: "message_delta",
}


def read_event(data: bytes) -> ModelEvent | None:
    """Decodes one event as a backend received it; None for a ping.

    Raises BackendError for an `error` event and for what is not a JSON object with a `type`.
    """
    event = events.decode(data)
    kind = KINDS.get(type(event))
    if kind is None:
        try:
            kind = _decode_type(data).type
            if kind == "ping":
                return None
            if kind == "error":
                raise error_from_reason(_decode_error(data).error)
        except DECODE_ERRORS as error:
            raise BackendError("backend_broken", "the model sent an event that cannot be read") from error
    return ModelEvent(event, msgspec.Raw(data), kind)


def stop_message(stop_reason: str, stop_sequence: str | None = None) -> ModelEvent:
    """Returns a `message_delta` that completes a message. It reports no usage, so that it is estimated (R23)."""
    stop = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
    raw = msgspec.Raw(msgspec.json.encode({"type": "message_delta", "delta": stop, "usage": {}}))
    return ModelEvent(events.decode(raw), raw, "message_delta")


def from_event(event: events.Event) -> ModelEvent:
    """Returns the ModelEvent of an event that this process made."""
    return ModelEvent(event, events.encode(event), KINDS[type(event)])
