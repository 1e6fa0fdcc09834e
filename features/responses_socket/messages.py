"""The messages of a WebSocket's client, and the `error` events that answer them. Pure.

The types of messages are those of OpenAI's Python SDK 3.57 (`types/responses/responses_client_event.py`), Tailrace's
own `response.cancel` and `response.resume`, and `response.processed`, which Codex sends. `idempotency_key` is
Tailrace's own.
"""

import re
from typing import Any, NamedTuple, TypeVar

import msgspec

from tailrace.gateway.http.duplicate_keys import require_unique_keys
from tailrace.gateway.http.error_responses import Problem
from tailrace.gateway.http.json_mistake import not_json
from tailrace.gateway.turns.idempotency_key import IDEMPOTENCY_KEY
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import CODES, Refused
from tailrace.proto.ids import is_token
from tailrace.protocols.openai.responses_input import InputItem, conversation_of
from tailrace.protocols.openai.responses_object import PREFIX

T = TypeVar("T")

Fields = dict[str, msgspec.Raw]
"""The fields of a message, each as its JSON."""

# The SDK's form of the name of a lane.
STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
TYPES = ("response.create", "response.steer", "response.cancel", "response.resume", "response.processed")


# OpenAI's codes: after the first, clients send the whole input again.
OPENAI_CODES = {"parent_not_found": "previous_response_not_found"}
LANES_REACHED = "websocket_stream_limit_reached"
STEER_CODES = {
    "turn_not_found": "response_not_found",
    "request_invalid": "invalid_input",
    "session_busy": "too_many_pending_steers",
}
AGE_REACHED = "websocket_connection_limit_reached"


class LanesReached(Refused):
    """A connection has as many lanes as it may have."""

    def __init__(self, most: int) -> None:
        super().__init__(
            "too_many_streams", f"this connection has {most} lanes: use one of them, or another connection"
        )


class Create(NamedTuple):
    """`response.create`. `body`: the fields of `POST /v1/responses`."""

    body: Fields
    size: int
    """Bytes of the message."""
    generate: bool
    """False for a warm-up: the model is not called, and the next response continues the input."""
    idempotency_key: str | None


class Resume(NamedTuple):
    """`response.resume`: the events of a response after the number `starting_after`, or all of them."""

    response_id: str
    starting_after: int | None
    size: int = 0
    """Bytes of the message: too few to be counted."""


class Cancel(NamedTuple):
    """`response.cancel`. `response_id`: None for the response that runs on the lane."""

    response_id: str | None


class Steer(NamedTuple):
    """`response.steer`: a message of the user for a response that runs, or has ended."""

    response_id: str
    given: msgspec.Raw
    """`input`, which `response.steer.failed` returns."""
    idempotency_key: str | None


class Processed(NamedTuple):
    """`response.processed`. It has no effect."""


Message = Create | Resume | Cancel | Steer | Processed


def parse_fields(text: bytes) -> Fields:
    """Returns the fields of a message. Raises Refused if it is no JSON object, or has a key twice."""
    try:
        fields = msgspec.json.decode(text, type=Fields)
    except DECODE_ERRORS as error:
        if isinstance(error, msgspec.ValidationError):
            raise Refused("request_invalid", "a message is a JSON object with a `type`") from error
        raise not_json(error, None) from error
    require_unique_keys(text)
    return fields


def take_stream_id(fields: Fields) -> str | None:
    """Removes the name of the lane from `fields` and returns it. Raises Refused if it is not a name."""
    name: str | None = _take(fields, "stream_id", str | None, None)
    if name is not None and STREAM_ID.fullmatch(name) is None:
        raise Refused("request_invalid", "`stream_id` is 1 to 256 of A-Z a-z 0-9 _ . -")
    return name


def parse_message(fields: Fields, size: int) -> Message:
    """Returns the message with `fields`, from which the lane was taken. Raises Refused."""
    match _take(fields, "type", str, ""):
        case "response.create":
            generate = _take(fields, "generate", bool | None, None) is not False
            key = _take_key(fields)
            for name in ("stream", "background"):
                # Events are always streamed, and a response goes on without its reader.
                fields.pop(name, None)
            return Create(fields, size, generate, key)
        case "response.resume":
            after = _take(fields, "starting_after", int | None, None)
            return Resume(_response_id(_take(fields, "response_id", str, "")), after)
        case "response.cancel":
            response_id = _take(fields, "response_id", str | None, None)
            return Cancel(None if response_id is None else _response_id(response_id))
        case "response.steer":
            response_id = _response_id(_take(fields, "previous_response_id", str, ""))
            given = fields.pop("input", msgspec.Raw(b"null"))
            return Steer(response_id, given, _take_key(fields))
        case "response.processed":
            return Processed()
        case kind:
            raise Refused("request_invalid", f"`type`: {kind[:64]!r} is unknown; there are {', '.join(TYPES)}")


def text_field(fields: Fields, name: str) -> str | None:
    """Returns the value of a field that is a text or null; None without it. Raises Refused for another value."""
    value: str | None = _decode(name, fields[name], str | None) if name in fields else None
    return value


def error_event(problem: Problem, status: int, retry_after: str | None = None, **more: Any) -> bytes:
    """Returns the event `error` as OpenAI's socket sends it, with the further fields that are not None."""
    code = OPENAI_CODES.get(problem.code, problem.code)
    error: dict[str, Any] = {"type": problem.type, "code": code, "message": problem.message, "param": problem.param}
    if retry_after is not None:
        error["headers"] = {"retry-after": retry_after}
    event = {"type": "error", "status": status, "error": error}
    return msgspec.json.encode(event | {name: value for name, value in more.items() if value is not None})


def refusal_event(refused: Refused, **more: Any) -> bytes:
    """Returns the event `error` for `refused`, with further fields."""
    row = CODES[refused.code]
    code = LANES_REACHED if isinstance(refused, LanesReached) else refused.code
    return error_event(Problem(refused.message, row.type, code, refused.param), row.status, **more)


def steered_message(steer: Steer) -> bytes:
    """Returns the body of `POST /v1/turns/{turn}/steer` for `input`. Raises Refused."""
    given = _decode("input", steer.given, str | list[InputItem])
    system, messages = conversation_of(given)
    if system or not messages or any(message.role != "user" for message in messages):
        raise Refused("request_invalid", "`input` is a text, or messages of the role `user`")
    contents = [message.content for message in messages]
    if len(contents) > 1:
        blocks = [[{"type": "text", "text": one}] if isinstance(one, str) else one for one in contents]
        contents = [[block for one in blocks for block in one]]
    # OpenAI's: at a safe boundary of the output.
    return msgspec.json.encode({"message": contents[0], "at": "boundary"})


def steer_accepted_event(steer: Steer, turn: str, number: int, **more: Any) -> bytes:
    """Returns the event for a message that is stored. `turn`: the turn that answers it."""
    accepted = {"id": f"steer_{turn}", "previous_response_id": f"{PREFIX}{steer.response_id}"}
    return _event("response.steer.accepted", number, steer=accepted, **more)


def steer_failed_event(steer: Steer, problem: Problem, number: int, **more: Any) -> bytes:
    """Returns the event for a message that is not stored. OpenAI returns the input with it."""
    code = STEER_CODES.get(problem.code, problem.code)
    error = {"type": "invalid_request_error", "code": code, "message": problem.message}
    failed = {"input": steer.given, "previous_response_id": f"{PREFIX}{steer.response_id}"}
    return _event("response.steer.failed", number, error=error, steer=failed, **more)


def _event(kind: str, number: int, **more: Any) -> bytes:
    event = {"type": kind, "sequence_number": number} | more
    return msgspec.json.encode({name: value for name, value in event.items() if value is not None})


def _take_key(fields: Fields) -> str | None:
    key: str | None = _take(fields, "idempotency_key", str | None, None)
    if key is not None and IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise Refused("idempotency_key_invalid", "`idempotency_key` is 1 to 200 visible ASCII characters")
    return key


def _take(fields: Fields, name: str, kind: Any, default: Any) -> Any:
    return _decode(name, fields.pop(name), kind) if name in fields else default


def _decode(name: str, value: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(value, type=kind)
    except DECODE_ERRORS as error:
        raise Refused("request_invalid", f"`{name}` has a value of a wrong type") from error


def _response_id(name: str) -> str:
    """Returns the id of a response without its prefix. Raises Refused if no response can have this id."""
    turn = name.removeprefix(PREFIX)
    if not is_token(turn):
        raise Refused("turn_not_found", f"{name[:80]!r} is not the id of a response")
    return turn
