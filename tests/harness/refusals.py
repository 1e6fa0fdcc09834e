"""The error of a refusal, which is in the JSON envelope, or in an event where a client reads a stream."""

from typing import Literal

import msgspec

from tailrace.gateway.http.error_responses import Envelope, Problem
from tailrace.proto.entries import Failure
from tailrace.proto.errors import CODES
from tailrace.protocols.tutorials.delta_stream import Word, word_of
from tests.harness.sse_parser import parse


class ErrorEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["error"]
    error: Word
    code: str
    message: str
    retry_after: int | None = None


def problem_of(body: bytes) -> Problem:
    """Returns the error in `body`. Fails if it has neither form, or if the event's word is not that of its code."""
    if body.startswith(b"{"):
        return msgspec.json.decode(body, type=Envelope).error
    [sent] = parse(body)
    event = msgspec.json.decode(sent.data, type=ErrorEvent)
    assert event.error == word_of(Failure(event.code, event.message)), event
    return Problem(event.message, CODES[event.code].type, event.code)
