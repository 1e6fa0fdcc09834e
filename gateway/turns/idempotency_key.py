"""Idempotency keys of requests: the header of a client, and the keys that the gateway derives."""

import re

from starlette.requests import Request

from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId

IDEMPOTENCY_KEY = re.compile(r"^[\x21-\x7e]{1,200}$")
AUTO = "auto"
"""A client sends this to get a key that is derived from its request."""


def idempotency_key_of(request: Request) -> str | None:
    """Returns the value of the Idempotency-Key header, or None. Raises Refused if it is malformed or repeated."""
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or not all(map(IDEMPOTENCY_KEY.fullmatch, keys)):
        raise Refused("idempotency_key_invalid", "send one Idempotency-Key header of 1 to 200 visible ASCII characters")
    return keys[0] if keys else None


def is_chosen(key: str | None) -> bool:
    """Returns whether a client has chosen the key. Such a key names its turn even after the turn has failed.

    A derived key, which contains a space, then names a new turn.
    """
    return key is not None and key != AUTO and " " not in key


STOPPED = ("turn_cancelled", "turn_deleted")
"""The codes with which a repeated request is refused after its turn was stopped."""


def turn_cancelled(turn: TurnId) -> Refused:
    """Returns the error for a request whose turn was cancelled before it had a whole answer."""
    return Refused(
        "turn_cancelled",
        f"turn {turn} was cancelled: GET /v1/turns/{turn} has the answer so far; "
        "for a new answer, change the request or send a new Idempotency-Key",
    )


def turn_deleted(turn: TurnId) -> Refused:
    """Returns the error for a repeated request whose turn was deleted."""
    return Refused(
        "turn_deleted",
        f"turn {turn} of this request was deleted: for a new answer, change the request or send a new Idempotency-Key",
    )


def is_reusable(turn: TurnId, found: Turn) -> bool:
    """Returns whether a repeated request without a key of the client gets this turn; False: it gets a new turn.

    Raises Refused if the turn was stopped.
    """
    if found.end is None or found.outcome == "completed":
        return True
    if found.end.is_stopped:
        raise turn_deleted(turn) if found.end.cause == "deletion" else turn_cancelled(turn)
    # The answer of a steered turn goes on in its successor.
    return found.end.cause == "steer"
