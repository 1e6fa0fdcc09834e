"""Encoding of a batch's inputs, one request per line, and the turn keys of its child turns. Pure.

The gateway stores each request resolved and validated; a generator only appends it. A child turn's id is derived from
the batch's id and the input's number, so a generator that takes over a batch submits no input twice (PROTOCOL R63).
"""

from collections.abc import Iterable

import msgspec

from tailrace.proto.entries import Request
from tailrace.proto.ids import TurnKey, child_id

CUSTOM_ID = "custom_id"
"""The metadata key that holds the client's `custom_id` of a request."""


class _Head(msgspec.Struct):
    """The user of a request."""

    user: str | None = None


_request = msgspec.json.Decoder(Request)
_head = msgspec.json.Decoder(_Head)
_encode = msgspec.json.Encoder().encode_lines


def encode_inputs(requests: Iterable[Request]) -> bytes:
    """Returns the requests as JSON lines, which `split_inputs` takes apart."""
    return _encode(list(requests))


def split_inputs(inputs: bytes) -> list[bytes]:
    """Splits at line breaks, because encoded JSON contains none. Returns the lines.

    The first `count` lines are one encoded request each; the refused lines of a BatchSource follow.
    """
    return inputs.rstrip(b"\n").split(b"\n")


def child_key(batch: TurnKey, index: int) -> TurnKey:
    """Returns the turn of the input with the number `index`, from 0 on."""
    return TurnKey(batch.tenant, child_id(batch.turn, index))


def decode_input(line: bytes) -> Request:
    """Returns the request in a line of the inputs. Raises msgspec.DecodeError."""
    return _request.decode(line)


def child_request(batch: TurnKey, line: bytes) -> Request:
    """Returns the request in `line` as it is appended, below its batch: deleting the batch deletes its turns."""
    return msgspec.structs.replace(decode_input(line), parent=batch.turn)


def custom_id(request: Request) -> str:
    """Returns the client's name of the input; '' if it gave none."""
    return (request.metadata or {}).get(CUSTOM_ID, "")


def user_of(line: bytes) -> str | None:
    """Returns the user of the request in `line`, without decoding the rest of it."""
    return _head.decode(line).user
