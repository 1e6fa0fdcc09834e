"""The streams of the SDKs' protocols: which requests get one, and the cursor and the kind of each event."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import msgspec

Kind = Literal["begin", "whole", "failed"] | None
"""`begin`: the answer begins, or begins again. `whole` and `failed`: the last event of an answer."""


class Meaning(NamedTuple):
    """The cursor and the kind of an event. A reader that was cut resumes after an event with a cursor."""

    cursor: str | None = None
    kind: Kind = None


class Dialect(NamedTuple):
    """A format of streams."""

    path: str
    """The path at which a turn is read again. The cursor is added to its end."""
    meaning: Callable[[dict[bytes, bytes]], Meaning]
    """Returns what an event means. Its argument has the fields of the event."""
    after: str = "&after="
    rest: bytes = b""
    """The bytes after the last cursor of a whole answer."""

    def path_after(self, turn: str, cursor: str | None) -> str:
        """Returns the path and query of the events after the cursor."""
        return self.path.format(turn=quote(turn, safe="")) + ("" if cursor is None else self.after + cursor)


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    stream: bool | None = None
    stream_options: _Options | None = None


class _Delta(msgspec.Struct):
    role: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    cursor: int | None = None
    error: Any = None


class _ResponseEvent(msgspec.Struct):
    type: str = ""
    sequence_number: int | None = None


_body = msgspec.json.Decoder(_Body)
_chunk = msgspec.json.Decoder(_Chunk)
_response_event = msgspec.json.Decoder(_ResponseEvent)

DONE = b"[DONE]"
ANTHROPIC_KINDS: dict[bytes, Kind] = {b"message_start": "begin", b"message_stop": "whole", b"error": "failed"}
RESPONSES_KINDS: dict[str, Kind] = {
    "response.created": "begin",
    "response.completed": "whole",
    "response.incomplete": "whole",
    "response.failed": "whole",
    "error": "failed",
}


def _of_anthropic(fields: dict[bytes, bytes]) -> Meaning:
    cursor = fields.get(b"id")
    return Meaning(None if cursor is None else cursor.decode(), ANTHROPIC_KINDS.get(fields.get(b"event", b"")))


def _of_chat(fields: dict[bytes, bytes]) -> Meaning:
    data = fields.get(b"data", b"")
    if data == DONE:
        return Meaning(kind="whole")
    chunk = _chunk.decode(data)
    if chunk.error is not None:
        return Meaning(kind="failed")
    begins = bool(chunk.choices) and chunk.choices[0].delta.role is not None
    return Meaning(None if chunk.cursor is None else str(chunk.cursor), "begin" if begins else None)


def _of_responses(fields: dict[bytes, bytes]) -> Meaning:
    event = _response_event.decode(fields.get(b"data", b""))
    number = event.sequence_number
    return Meaning(None if number is None else str(number), RESPONSES_KINDS.get(event.type))


ANTHROPIC = Dialect("/v1/turns/{turn}/events?dialect=anthropic", _of_anthropic)
CHAT = Dialect("/v1/turns/{turn}/events?dialect=openai-chat", _of_chat, rest=b"data: [DONE]\n\n")
CHAT_USAGE = CHAT._replace(path=f"{CHAT.path}-usage")
RESPONSES = Dialect("/v1/responses/resp_{turn}?stream=true", _of_responses, "&starting_after=")
PATHS = {"/v1/messages": ANTHROPIC, "/v1/chat/completions": CHAT, "/v1/responses": RESPONSES}
# Comments, and events that hold the connection open.
HEARTBEATS = (b":", b"event: ping\n", b"retry:")


def find_dialect(method: str, target: str, content: bytes) -> tuple[str, Dialect] | None:
    """Returns the path before `/v1` and the dialect of a request for a stream; None for any other request."""
    path, _, query = target.partition("?")
    prefix, version, rest = path.rpartition("/v1/")
    if method == "GET" and rest.startswith("responses/") and "/" not in rest.removeprefix("responses/"):
        return (prefix, RESPONSES) if "stream=true" in query.lower().split("&") else None
    dialect = PATHS.get(f"{version}{rest}") if method == "POST" else None
    if dialect is None:
        return None
    try:
        body = _body.decode(content)
    except (msgspec.MsgspecError, ValueError):
        return None
    if not body.stream:
        return None
    is_with_usage = dialect is CHAT and body.stream_options is not None and body.stream_options.include_usage
    return prefix, CHAT_USAGE if is_with_usage else dialect


def read_fields(frame: bytes) -> dict[bytes, bytes]:
    """Returns the fields of an event, each of which a gateway writes in one line."""
    fields = (line.partition(b": ") for line in frame.split(b"\n"))
    return {name: value for name, _, value in fields if name}
