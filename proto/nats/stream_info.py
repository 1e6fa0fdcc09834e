"""The configuration and state of a stream, as nats-server answers `$JS.API.STREAM.INFO` (docs.nats.io)."""

from datetime import datetime

import msgspec

from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import pub_ack


class StreamState(msgspec.Struct, frozen=True):
    """The content of a stream."""

    messages: int = 0
    bytes: int = 0
    first_seq: Seq = BEFORE_FIRST
    """The first sequence, or the next one if the stream is empty."""
    last_seq: Seq = BEFORE_FIRST
    subjects: dict[str, int] = {}
    """The number of messages by subject, if the request has `subjects_filter`. Counted after the rest of the state."""


class StreamConfig(msgspec.Struct, frozen=True):
    """The limits of a stream. A limit of 0 or less does not exist."""

    max_bytes: int = -1
    max_age: int = 0
    """In nanoseconds."""


class StreamInfo(msgspec.Struct, frozen=True):
    """The answer of the stream's leader."""

    config: StreamConfig
    state: StreamState
    created: datetime
    ts: datetime
    """The time of the server's clock, which also dates the messages."""
    total: int = 0
    """The number of subjects, of which `state` may have a page."""


class _Reply(msgspec.Struct, frozen=True):
    """A reply without an answer has an error."""

    error: pub_ack.Ack.Error | None = None


decode = msgspec.json.Decoder(StreamInfo).decode
decode_error = msgspec.json.Decoder(_Reply).decode
