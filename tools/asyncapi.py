"""The streams as an AsyncAPI 3.0 document: each dialect with what it says of one turn, and the log's own subjects.

Source: AsyncAPI Specification 3.0.0. The messages are those that the dialects render, so they are as the code has them;
`make schema` writes it to docs/asyncapi.json. No route serves it.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tailrace.gateway.clients.registry import DIALECTS, Dialect
from tailrace.proto import entries, events
from tailrace.proto.chain import START, link
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, End, Entry, Event, Message, Mode, Progress, Request, Stored
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import CallUsage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = TurnKey(Tenant("local"), TurnId("01a1f7c0-0000-7000-8000-000000000001"))
MODEL = "claude-sonnet-5-5"
REF = "#/components/schemas/{name}"
BY_KIND = {"request": Request, "attempt": Attempt, "event": Event, "progress": Progress, "end": End}
# Enough to see what changes from one to the next.
EXAMPLES_MAX = 3
ABOUT = (
    "What a reader of a turn receives, in each dialect, as server-sent events or bare text; and the log that it comes "
    "from. proto/PROTOCOL.md has the rules, gateway/openapi/openapi.json the routes."
)

Json = dict[str, Any]


def document(version: str) -> Json:
    """The document; the same for the same code."""
    _, schemas = msgspec.json.schema_components(tuple(BY_KIND.values()), ref_template=REF)
    channels = {name: _channel(dialect) for name, dialect in DIALECTS.items()} | {"log": _log()}
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
            }
            for name in channels
        },
        "components": {"schemas": schemas},
    }


def _channel(dialect: Dialect) -> Json:
    """One dialect; its messages are what it makes of the example."""
    messages: dict[str, Json] = {}
    for name, payload in said(dialect):
        kind = "object" if isinstance(payload, dict) else "string"
        message = messages.setdefault(
            name, {"contentType": dialect.media_type, "payload": {"type": kind}, "examples": []}
        )
        if len(message["examples"]) < EXAMPLES_MAX:
            message["examples"].append({"payload": payload})
    return {
        "address": f"/v1/turns/{{turn}}/events?dialect={dialect.name}",
        "parameters": {"turn": {"description": "The turn's id."}},
        "servers": [{"$ref": "#/servers/gateway"}],
        "messages": messages,
    }


def _log() -> Json:
    return {
        "address": "turns.{tenant}.{turn}.{kind}",
        "description": "The entries of a turn, in the stream TURNS; republished on live.{tenant}.{turn}.{kind}.",
        "parameters": {
            "tenant": {"description": "Whose turn it is."},
            "turn": {"description": "The turn's id."},
            "kind": {"enum": list(BY_KIND)},
        },
        "servers": [{"$ref": "#/servers/nats"}],
        "messages": {
            kind: {"contentType": "application/json", "payload": {"$ref": REF.format(name=shape.__name__)}}
            for kind, shape in BY_KIND.items()
        },
    }


def said(dialect: Dialect) -> Iterator[tuple[str, Any]]:
    """What `dialect` says of the example, event by event: its name, and its JSON or text."""
    state = dialect.start(KEY)
    for stored in example():
        frame, state = dialect.render(state, stored)
        if dialect.media_type != "text/event-stream":
            yield from [("text", frame.data.decode())] if frame.data else []
            continue
        for event in frame.data.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in event.splitlines())
            if "data" in fields:
                yield _named(fields)


def _named(fields: dict[str, str]) -> tuple[str, Any]:
    try:
        payload = json.loads(fields["data"])
    except json.JSONDecodeError:
        return fields["data"].strip("[]").lower(), fields["data"]
    return str(fields.get("event") or payload.get("type") or payload.get("object") or next(iter(payload))), payload


def example() -> list[Stored]:
    """A turn that is begun, begun anew, thinks, says something and calls a tool."""
    log: list[Stored] = []
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
            events.BlockStop(1),
            events.BlockStart(2, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}),
            events.BlockDelta(2, events.InputJsonDelta('{"at":"sky"}')),
            events.BlockStop(2),
            events.MessageDelta(events.StopReason("tool_use"), events.UsageSoFar(output_tokens=20)),
        ],
    )
    _append(log, build_end(fold(log), "completed", None))
    return log


def _text(index: int, text: str) -> events.Event:
    return events.BlockDelta(index, events.TextDelta(text))


def _attempt(log: list[Stored], mode: Mode, told: list[events.Event]) -> None:
    chain = fold(log).chain
    taken = Attempt(prev=chain.last, attempt=chain.attempt + 1, generator="generator-1", backend="claude", mode=mode)
    _append(log, taken)
    head = events.MessageStart(
        events.MessageHead("msg_1", MODEL, CallUsage(input_tokens=10, cache_read_input_tokens=2000))
    )
    for one in (head, *told):
        chain = fold(log).chain
        _append(log, entries.Event(prev=chain.last, attempt=chain.attempt, event=events.encode(one)))


def _append(log: list[Stored], entry: Entry) -> None:
    seq = Seq(len(log) + 1)
    assert link(fold(log).chain if log else START, seq, entry)  # noqa: S101  # an example that is no log shows nothing
    log.append(Stored(seq, NOON + timedelta(seconds=seq), entry))
