"""A batch's inputs as they are stored, a request a line, and the turns that they become. Pure.

The gateway writes each request as it will be asked, resolved and checked; a generator has only to append it. A turn's
id is made of the batch's and its number, so whoever takes a batch over asks nothing twice (PROTOCOL R63).
"""

from collections.abc import Iterable

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Request
from tailrace.proto.ids import child_id
from tailrace.proto.subjects import TurnKey

CUSTOM_ID = "custom_id"
"""Where a request's metadata has the name that the client gave it."""


class _Head(msgspec.Struct):
    """As much of a request as says whether it is a batch's."""

    batch: msgspec.Raw = msgspec.Raw()


_request = msgspec.json.Decoder(Request)
_head = msgspec.json.Decoder(_Head)
_encode = msgspec.json.Encoder().encode_lines


def encode_inputs(requests: Iterable[Request]) -> bytes:
    return _encode(list(requests))


def split_inputs(inputs: bytes) -> list[bytes]:
    """JSON has no line break of its own, so each line is one request."""
    return inputs.rstrip(b"\n").split(b"\n")


def child_key(batch: TurnKey, index: int) -> TurnKey:
    return TurnKey(batch.tenant, child_id(batch.turn, index))


def decode_input(line: bytes) -> Request:
    return _request.decode(line)


def child_request(batch: TurnKey, line: bytes) -> Request:
    """The request of that line as it is appended. The batch is its parent: who deletes it deletes its turns."""
    return msgspec.structs.replace(decode_input(line), parent=batch.turn)


def custom_id(request: Request) -> str:
    return (request.metadata or {}).get(CUSTOM_ID, "")


def is_batch(payload: bytes) -> bool:
    """Whether the bytes of a request are a batch's."""
    try:
        return bytes(_head.decode(payload).batch) not in (b"", b"null")
    except DECODE_ERRORS:
        return False
