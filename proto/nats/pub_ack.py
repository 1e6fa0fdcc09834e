"""The headers of a publish, JetStream's answer to it, and the error codes of nats-server that matter here."""

import msgspec

from tailrace.proto.ids import BEFORE_FIRST, Seq

# The header with the sequence that the last message of the subject must have; 0: the subject has no message.
FENCE = "Nats-Expected-Last-Subject-Sequence"
# The header with the time after which the server deletes the message, such as `1s`.
LIFE = "Nats-TTL"
# 10077: the stream's limit is reached; 10023 and 10047: the store's.
FULL_CODES = (10077, 10023, 10047)
# 10071: the fence did not match; 10164: an earlier write is not settled yet.
FENCE_CODES = (10071, 10164)
# The stream does not allow the header LIFE.
NO_TTL = 10166
# The stream's leader has no such message.
NOT_FOUND = 10037


class Ack(msgspec.Struct):
    """The sequence of the stored message, or an error. Answers that hold only an error have the same shape."""

    class Error(msgspec.Struct):
        err_code: int = 0
        description: str = ""

    seq: Seq = BEFORE_FIRST
    error: Error | None = None

    @property
    def is_full(self) -> bool:
        """Whether the server refused the message because the stream, or its store, is full."""
        return self.error is not None and self.error.err_code in FULL_CODES

    @property
    def is_fence_lost(self) -> bool:
        """Whether the server refused the message because of its fence; an earlier publish may have stored it."""
        return self.error is not None and self.error.err_code in FENCE_CODES


decode = msgspec.json.Decoder(Ack).decode
