"""One event of a model's answer: decoded once, together with the bytes that are stored."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from tailrace.generators.backends.api_errors import ErrorEvent, error_from_reason
from tailrace.proto import events, odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Prefix
from tailrace.proto.errors import BackendError


class ModelEvent(msgspec.Struct, frozen=True):
    """An event and its JSON. `UnknownEvent` stands for types that this version does not know."""

    event: events.Event | events.UnknownEvent
    raw: msgspec.Raw
    kind: str = ""
    """The event's `type`; read for events that come from a backend."""
    is_hidden: bool = False
    """Not shown to readers: only reports usage, like a continuation's `message_start`."""
    index: int = -1
    """The block that an unknown event or delta names."""
    left_out: int = 0
    """The bytes of text that the call sent before this event and that are not stored (PROTOCOL R70)."""
    original: str = ""
    """The event as the model sent it, if msgspec refuses it and `raw` is a regular form of it (PROTOCOL R125)."""
    prefix: Prefix | None = None
    """The prompt of the call that this event begins (PROTOCOL R140)."""


Sink = Callable[[ModelEvent], None]
"""Takes the events of a call. May raise CloseCall."""
Wait = Callable[[], Awaitable[None]]
Put = Callable[[ModelEvent], Wait | None]
"""Takes the next event of an answer. If it returns a wait, reading goes on after the wait. Both may raise CloseCall."""


class CloseCall(Exception):
    """Raised by a sink to close the model call. Not an error of the turn."""


class _AnyEvent(msgspec.Struct, frozen=True):
    """The fields are Any: in an event of an unknown type, fields of these names may have other values."""

    type: str
    index: Any = -1


_decode_type = msgspec.json.Decoder(_AnyEvent).decode
_decode_error = msgspec.json.Decoder(ErrorEvent).decode
KINDS: dict[type, str] = {
    events.MessageStart: "message_start",
    events.BlockStart: "content_block_start",
    events.BlockDelta: "content_block_delta",
    events.BlockStop: "content_block_stop",
    events.MessageDelta: "message_delta",
}
KNOWN_KINDS = frozenset(KINDS.values())


def read_event(data: bytes, *, is_regular: bool = False) -> ModelEvent | None:
    """Decodes one event as a backend received it; None for a ping. The table is in PROTOCOL R6.

    `is_regular`: `data` comes from odd_json.make_regular, which made the wrappers in it. Raises BackendError for an
    `error` event, and `backend_unreadable` for an event of a known type that cannot be decoded, for anything but a JSON
    object with a `type`, and for bytes that are not UTF-8.
    """
    try:
        if not data.isascii():
            data.decode()
        event = events.decode_strictly(data)
        # Of a delta, only the text is read.
        if type(event) is not events.BlockDelta and not is_regular:
            require_regular(data, event)
    except DECODE_ERRORS:
        return _read_other(data, is_regular=is_regular)
    return ModelEvent(event, msgspec.Raw(data), KINDS[type(event)])


def require_regular(data: bytes, event: events.Event | None = None) -> None:
    """Raises one of DECODE_ERRORS for an event with fields, even undeclared ones, that a reader could not decode.

    Raises one also for an event with the key of wrappers. `event` is the decoded event; None: its type is unknown.
    """
    value: object = None
    match event:
        case events.BlockStart(_, block):
            value = block
        case events.MessageStart() | events.MessageDelta() | None:
            value = msgspec.json.decode(data)
        case _:
            # Deltas: only their texts are read.
            return
    if odd_json.is_odd(data, value):
        raise ValueError(f"the key {odd_json.KEY} is reserved")


def _read_other(data: bytes, *, is_regular: bool) -> ModelEvent | None:
    """Like `read_event`, for an event of another type than the known ones, and for odd JSON."""
    try:
        data.decode()
        typed = _decode_type(data)
        if typed.type == "ping":
            return None
        if typed.type == "error":
            raise error_from_reason(_decode_error(data).error)
        if not is_regular:
            require_regular(data)
    except DECODE_ERRORS as error:
        if is_regular:
            raise unreadable() from error
        return _read_odd(data, error)
    event = events.decode(data)
    # A delta of a newer type is folded by a general rule.
    if typed.type in KNOWN_KINDS and not isinstance(event, events.OtherDelta):
        raise BackendError("backend_unreadable", f"the model sent a {typed.type} that cannot be read")
    index = typed.index if type(typed.index) is int else -1
    return ModelEvent(event, msgspec.Raw(data), typed.type, index=index)


def _read_odd(data: bytes, error: Exception) -> ModelEvent | None:
    """Like `read_event`, for JSON that msgspec refuses. Raises BackendError if it is not valid, either."""
    regular = odd_json.make_regular(data)
    if regular is None:
        raise unreadable() from error
    event = read_event(regular, is_regular=True)
    return event and msgspec.structs.replace(event, original=data.decode())


def unreadable() -> BackendError:
    """Returns the error for an event that cannot be decoded."""
    return BackendError("backend_unreadable", "the model sent an event that cannot be read")


def events_lost(what: str) -> BackendError:
    """Returns the error for an answer of which this process has lost events: a fault of Tailrace, not of the model."""
    return BackendError("events_lost", f"a generator has lost a part of the answer: events {what}")


def stop_message(stop_reason: str, stop_sequence: str | None = None) -> ModelEvent:
    """Returns a `message_delta` that completes a message. The event reports no usage, so that usage is estimated
    (R23)."""
    stop = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
    raw = msgspec.Raw(msgspec.json.encode({"type": "message_delta", "delta": stop, "usage": {}}))
    return ModelEvent(events.decode(raw), raw, "message_delta")


def report_left_out(text_bytes: int) -> ModelEvent:
    """Returns a hidden `message_delta` that reports `text_bytes` of text that are not stored (PROTOCOL R70)."""
    raw = msgspec.Raw(b'{"type":"message_delta","delta":{},"usage":{}}')
    return ModelEvent(events.decode(raw), raw, "message_delta", is_hidden=True, left_out=text_bytes)


def wait_event(obstacle: str) -> ModelEvent:
    """Returns the hidden event of a turn that waits because it cannot connect to a model (PROTOCOL R135)."""
    return ModelEvent(events.UnknownEvent(), events.encode_wait(obstacle), is_hidden=True)


def move(event: ModelEvent, index: int) -> ModelEvent:
    """Returns an event or delta of an unknown type, moved to the block `index`. Its other fields are unchanged."""
    if index == event.index:
        return event
    fields = msgspec.json.decode(event.raw, type=dict[str, msgspec.Raw]) | {"index": msgspec.Raw(b"%d" % index)}
    raw = msgspec.Raw(msgspec.json.encode(fields))
    return msgspec.structs.replace(event, event=events.decode(raw), raw=raw, index=index, original="")


async def put_each(put: Put, answer: AsyncGenerator[ModelEvent, None]) -> None:
    """Passes the events of `answer` to `put`, and closes `answer`."""
    async with aclosing(answer):
        async for event in answer:
            if (wait := put(event)) is not None:
                await wait()


async def await_each(*waits: Wait | None) -> None:
    """Waits until all of `waits` are over, one after the other. Raises what they raise."""
    for wait in filter(None, waits):
        await wait()


def from_event(event: events.Event) -> ModelEvent:
    """Returns the ModelEvent of an event that this process made."""
    return ModelEvent(event, events.encode(event), KINDS[type(event)])
