"""Builds the AsyncAPI 3.0 document: the events of each dialect, and the entries of the log.

Source: AsyncAPI Specification 3.0.0. The examples are rendered by the dialects from one turn. `make docs` writes the
document to docs/asyncapi.json of the site.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tailrace.features.gateway import DIALECTS
from tailrace.features.responses_socket import messages as socket_messages
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto import entries, events
from tailrace.proto.chain import START, link
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, End, Entry, Event, Failure, Message, Mode, Progress, Request, StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.usage import CallUsage
from tools.openapi.descriptions import add_meanings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = TurnKey(Tenant("local"), TurnId("01a1f7c0-0000-7000-8000-000000000001"))
NEXT = TurnId("01a1f7c0-0000-7000-8000-000000000002")
MODEL = "claude-sonnet-5-5"
SOCKET = "responses-socket"
REF = "#/components/schemas/{name}"
BY_KIND = {"request": Request, "attempt": Attempt, "event": Event, "progress": Progress, "end": End}
# Enough examples to show which fields change.
EXAMPLES_MAX = 3
ABOUT = (
    "The events that a reader of a turn receives in each dialect, as server-sent events or plain text, and the entries "
    "of the log. The rules are in proto/PROTOCOL.md, the routes in features/api_reference/openapi.json."
)

Json = dict[str, Any]


def build_document(version: str) -> Json:
    """Returns the document."""
    kinds = tuple(BY_KIND.values())
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REF)
    add_meanings(schemas, kinds)
    channels = {name: _channel(dialect) for name, dialect in DIALECTS.items()} | {"log": _log()}
    channels[SOCKET] = _socket()
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Tailrace's streams", "version": version, "description": ABOUT},
        "servers": {
            "gateway": {"host": "127.0.0.1:8000", "protocol": "http"},
            "nats": {"host": "127.0.0.1:4222", "protocol": "nats"},
        },
        "channels": channels,
        "operations": {
            f"read_{name}".replace("-", "_"): {
                "action": "receive" if name == "log" else "send",
                "channel": {"$ref": f"#/channels/{name}"},
                **({} if name == "log" else {"bindings": {"http": _request(name)}}),
            }
            for name in channels
            if name != SOCKET
        }
        | {
            "write_responses_socket": {"action": "receive", "channel": {"$ref": f"#/channels/{SOCKET}"}},
        },
        "components": {"schemas": schemas},
    }


def _socket() -> Json:
    """Returns the channel of the WebSocket's client. Its events are those of the dialect `openai-responses`."""
    return {
        "address": "/v1/responses",
        "description": (
            "The messages of a WebSocket's client: docs/OPENAI.md. The gateway sends the events of openai-responses, "
            "with `response_id` and `stream_id`."
        ),
        "servers": [{"$ref": "#/servers/gateway"}],
        "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        "messages": {
            name: {"contentType": "application/json", "payload": {"type": "object"}} for name in socket_messages.TYPES
        },
    }


def _channel(dialect: Dialect) -> Json:
    """Returns the channel of a dialect; its messages are rendered from the example turn."""
    messages: dict[str, Json] = {}
    for name, payload in render_example(dialect):
        kind = "object" if isinstance(payload, dict) else "string"
        message = messages.setdefault(
            name, {"contentType": dialect.media_type, "payload": {"type": kind}, "examples": []}
        )
        if len(message["examples"]) < EXAMPLES_MAX:
            message["examples"].append({"payload": payload})
    return {
        "address": "/v1/turns/{turn}/events",
        "parameters": {"turn": {"description": "The turn's id."}},
        "servers": [{"$ref": "#/servers/gateway"}],
        "messages": messages,
    }


def _request(dialect: str) -> Json:
    """Returns the binding of the request: an address has no query (AsyncAPI 3.0, Channel Object)."""
    query = {"type": "object", "properties": {"dialect": {"const": dialect}}, "required": ["dialect"]}
    return {"method": "GET", "query": query, "bindingVersion": "0.3.0"}


def _log() -> Json:
    return {
        "address": "turns.{tenant}.{turn}.{kind}",
        "description": (
            "The entries of a turn in the stream TURNS, republished as live.{tenant}.{turn}.{kind}. If the request has "
            "an `encryption_key`, the other entries are binary (R113)."
        ),
        "parameters": {
            "tenant": {"description": "The tenant of the turn."},
            "turn": {"description": "The turn's id."},
            "kind": {"enum": list(BY_KIND)},
        },
        "servers": [{"$ref": "#/servers/nats"}],
        "messages": {
            kind: {"contentType": "application/json", "payload": {"$ref": REF.format(name=shape.__name__)}}
            for kind, shape in BY_KIND.items()
        },
    }


def render_example(dialect: Dialect) -> Iterator[tuple[str, Any]]:
    """Yields the name and the JSON value or text of each event that the example turn has in `dialect`.

    Then the kinds of events that only a steered turn has, or one that failed.
    """
    whole = list(_render(dialect, example_turn()))
    names = dict(whole)
    yield from whole
    for log in (steered_turn(), failed_turn()):
        others = [(name, payload) for name, payload in _render(dialect, log) if name not in names]
        names |= dict(others)
        yield from others


def _render(dialect: Dialect, log: list[StoredEntry]) -> Iterator[tuple[str, Any]]:
    for text in render_stream(dialect, log):
        if dialect.media_type != "text/event-stream":
            yield from [("text", text)] if text else []
            continue
        for event in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in event.splitlines())
            if "data" in fields:
                yield _parse_event(fields)


def render_stream(dialect: Dialect, log: list[StoredEntry]) -> Iterator[str]:
    """Yields the text of each entry's frame."""
    state = dialect.start(KEY)
    for stored in log:
        frame, state = dialect.render(state, stored)
        yield frame.data.decode()


def _parse_event(fields: dict[str, str]) -> tuple[str, Any]:
    try:
        payload = json.loads(fields["data"])
    except json.JSONDecodeError:
        return fields.get("event") or fields["data"].strip("[]").lower(), fields["data"]
    return str(fields.get("event") or payload.get("type") or payload.get("object") or next(iter(payload))), payload


def example_turn() -> list[StoredEntry]:
    """Returns a turn with a restart, thinking, text and a tool call."""
    log: list[StoredEntry] = []
    _append(log, Request(model=MODEL, max_tokens=1000, messages=[Message("user", "Hi")], session=SessionId(KEY.turn)))
    _attempt(log, "fresh", [events.BlockStart(0, {"type": "text", "text": ""}), _text(0, "Hel")])
    _attempt(
        log,
        "restart",
        [
            events.BlockStart(0, {"type": "thinking", "thinking": "", "signature": ""}),
            events.BlockDelta(0, events.ThinkingDelta("A greeting.")),
            events.BlockDelta(0, events.SignatureDelta("c2ln")),
            events.BlockStop(0),
            events.BlockStart(1, {"type": "text", "text": ""}),
            _text(1, "Hello"),
            _text(1, ", world."),
            events.BlockDelta(
                1, events.CitationsDelta({"type": "web_search_result_location", "url": "https://a.example"})
            ),
            events.BlockStop(1),
            events.BlockStart(2, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}),
            events.BlockDelta(2, events.InputJsonDelta('{"at":"sky"}')),
            events.BlockStop(2),
            events.BlockStart(3, {"type": "container_upload", "file_id": "file_1"}),
            events.BlockStop(3),
            events.MessageDelta(events.StopReason("tool_use"), events.UsageSoFar(output_tokens=20)),
        ],
    )
    _append(log, build_end(fold(log), "completed", None))
    return log


def steered_turn() -> list[StoredEntry]:
    """Returns the example turn with the end that it has when a message steers it."""
    log = example_turn()[:-1]
    _append(log, build_end(fold(log), "cancelled", None, cause="steer", successor=NEXT))
    return log


def failed_turn() -> list[StoredEntry]:
    """Returns the example turn with the end of a turn that failed."""
    log = example_turn()[:-1]
    _append(log, build_end(fold(log), "failed", Failure("backend_broken", "the model's stream broke off")))
    return log


def short_turn() -> list[StoredEntry]:
    """Returns a turn of one delta."""
    log: list[StoredEntry] = []
    _append(log, Request(model=MODEL, max_tokens=1000, messages=[Message("user", "Hi")], session=SessionId(KEY.turn)))
    _attempt(
        log,
        "fresh",
        [
            events.BlockStart(0, {"type": "text", "text": ""}),
            _text(0, "Hello."),
            events.BlockStop(0),
            events.MessageDelta(events.StopReason("end_turn"), events.UsageSoFar(output_tokens=2)),
        ],
    )
    _append(log, build_end(fold(log), "completed", None))
    return log


def _text(index: int, text: str) -> events.Event:
    return events.BlockDelta(index, events.TextDelta(text))


def _attempt(log: list[StoredEntry], mode: Mode, generated: list[events.Event]) -> None:
    chain = fold(log).chain
    attempt = Attempt(prev=chain.last, attempt=chain.attempt + 1, generator="generator-1", backend="claude", mode=mode)
    _append(log, attempt)
    head = events.MessageStart(
        events.MessageHead("msg_1", MODEL, CallUsage(input_tokens=10, cache_read_input_tokens=2000))
    )
    for event in (head, *generated):
        chain = fold(log).chain
        _append(log, entries.Event(prev=chain.last, attempt=chain.attempt, event=events.encode(event)))


def _append(log: list[StoredEntry], entry: Entry) -> None:
    seq = Seq(len(log) + 1)
    assert link(fold(log).chain if log else START, seq, entry)  # noqa: S101  # the example must be a valid log
    log.append(StoredEntry(seq, NOON + timedelta(seconds=seq), entry))
