"""What JetStream answers to a publish. What follows from it is for those who published to say."""

import msgspec

from tailrace.proto.ids import BEFORE_FIRST, Seq

# Codes of nats-server. 10077: the stream's limit; 10023, 10047: the store's.
FULL_CODES = (10077, 10023, 10047)
# Somebody was first, or an earlier write is not settled yet.
FENCE_CODES = (10071, 10164)
# No such message, as a stream's leader says it.
NOT_FOUND = 10037


class Ack(msgspec.Struct):
    """Stored under `seq`, or not, with a reason. Also the shape of an answer that is nothing but an error."""

    class Error(msgspec.Struct):
        err_code: int = 0
        description: str = ""

    seq: Seq = BEFORE_FIRST
    error: Error | None = None


decode = msgspec.json.Decoder(Ack).decode
