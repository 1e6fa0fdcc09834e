"""A model's events in JSON that msgspec refuses, from the backend to every reader (PROTOCOL R125)."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.half_pairs import HalfPairs
from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.generators.continuation import build_call
from tailrace.proto import conversation, entries, events, odd_json
from tailrace.proto.entries import Event, Message
from tailrace.proto.errors import BackendError
from tailrace.proto.records import record_from_fold
from tests.harness.readers import render_frames
from tests.harness.turn_builder import KEY, Handwritten, request

pytestmark = pytest.mark.rule("R125")

HALF_INPUT = '{"path":"a\\ud83d.txt","n":1e400}'
CALL = {"type": "tool_use", "id": "toolu_1", "name": "write", "input": {}}
HEAD = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
STREAM = [
    b'{"type":"message_start","message":%b,"usage":{"input_tokens":3,"output_tokens":1,"odd":1e999}}}'
    % json.dumps(HEAD).encode().removesuffix(b"}"),
    b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"cut \\ud83d here"}}',
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" and whole \\ud83d"}}',
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\ude00"}}',
    b'{"type":"content_block_stop","index":0}',
    b'{"type":"content_block_start","index":1,"content_block":%b}' % json.dumps(CALL).encode(),
    b'{"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":%b}}'
    % json.dumps(HALF_INPUT).encode(),
    b'{"type":"content_block_stop","index":1}',
    b'{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_2","name":"write",'
    b'"input":%b}}' % HALF_INPUT.encode(),
    b'{"type":"content_block_stop","index":2}',
    b'{"type":"newer","title":"\\udc00","n":[-1e400]}',
    b'{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":15,"more":1e400}}',
]
TEXT = "cut \ufffd here and whole \U0001f600"


def read_all(stream: Sequence[bytes]) -> list[ModelEvent]:
    """Returns the events of a stream as a backend yields them."""
    order, halves, found = EventOrder(), HalfPairs(), list[ModelEvent]()
    for data in stream:
        read = read_event(data)
        assert read is not None
        for event in halves.add(read):
            found += order.accept(event)
    return found


@pytest.fixture
def log() -> Handwritten:
    """The entries of a turn with STREAM, as they are after they were stored and read."""
    log = Handwritten()
    log.store_request()
    log.store_attempt()
    for event in read_all(STREAM):
        stored = Event(prev=log.chain.last, attempt=1, event=event.raw, original=event.original or None)
        entry = entries.decode("event", entries.encode(stored))
        assert isinstance(entry, Event)
        log.store(entry)
    log.end()
    return log


def tolerant(text: str | bytes) -> Any:
    """Returns the value of a JSON text as a client in Python reads it."""
    return json.loads(text, parse_float=str)


INPUT = tolerant(HALF_INPUT)


def test_no_input_becomes_empty(log: Handwritten) -> None:
    """Neither that of a fold, nor that of the record in the database."""
    record = record_from_fold(KEY, log.turn)
    read = msgspec.json.decode(msgspec.json.encode(record), type=type(record))
    answer = tolerant(odd_json.encode(read))
    assert answer["text"] == TEXT
    assert [block["input"] for block in answer["content"] if block["type"] == "tool_use"] == [INPUT, INPUT]
    assert answer["envelope"]["usage"]["more"] == "1e400"


def test_the_anthropic_dialect_passes_the_models_own_bytes_on(log: Handwritten) -> None:
    """Also what no UTF-8 can hold. Two halves of a pair in two deltas are one character."""
    sent = b"".join(frame.sent for frame in render_frames(KEY, log.stored, "anthropic"))
    for data in (STREAM[2], STREAM[7], STREAM[9], STREAM[11]):
        assert data in sent
    assert b"whole \\ud83d\\ude00" in sent


@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_shows_the_text_and_the_inputs(log: Handwritten, name: str) -> None:
    """Live and from the database, and no wrapper."""
    record = record_from_fold(KEY, log.turn)
    live = b"".join(frame.sent for frame in render_frames(KEY, log.stored, name))
    past = DIALECTS[name].render_record(record, 0).data
    for sent in (live, past):
        assert odd_json.KEY.encode() not in sent, sent.decode()
        sent.decode()
    if (render_json := DIALECTS[name].render_json) is not None:
        body = render_json(record)
        assert odd_json.KEY.encode() not in body
        tolerant(body)


@pytest.mark.parametrize("is_large", [False, True])
async def test_the_next_request_has_what_the_api_accepts(log: Handwritten, *, is_large: bool) -> None:
    """Numbers as the model wrote them. The API refuses half of a pair ("no low surrogate in string")."""
    history = conversation.messages([record_from_fold(KEY, log.turn)])
    stored = entries.decode("request", entries.encode(request(messages=[*history, Message("user", "x" * 70_000)])))
    assert isinstance(stored, entries.Request)
    call = msgspec.structs.replace(build_call(stored, []), is_large=is_large)
    body = b"".join(await encode_body(call, model="claude-x"))
    assert odd_json.KEY.encode() not in body
    blocks = tolerant(body)["messages"][1]["content"]
    assert blocks[0] == {"type": "text", "text": TEXT}
    accepted = {"path": "a\ufffd.txt", "n": "1e400"}
    assert [block["input"] for block in blocks[1:]] == [accepted, accepted]
    body.decode()
    json.dumps(tolerant(body), ensure_ascii=False).encode()


def test_halves_that_do_not_belong_together_are_not_joined() -> None:
    """Another block, another type, the end of the block, or a second first half."""

    def delta(index: int, kind: str, text: str) -> bytes:
        name = {"text_delta": "text", "thinking_delta": "thinking"}[kind]
        event = {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: text}}
        return json.dumps(event).encode()

    first, second = delta(0, "text_delta", "a\ud83d"), delta(0, "text_delta", "\ude00b")
    cases = [
        [first, delta(1, "text_delta", "\ude00b")],
        [first, delta(0, "thinking_delta", "\ude00b")],
        [first, b'{"type":"content_block_stop","index":0}', second],
    ]
    for case in cases:
        halves, found = HalfPairs(), list[ModelEvent]()
        for data in case:
            read = read_event(data)
            assert read is not None
            found += halves.add(read)
        assert [event.original or bytes(event.raw).decode() for event in found] == [data.decode() for data in case]
    halves = HalfPairs()
    events_ = [read_event(data) for data in (first, first, second)]
    found = [one for event in events_ if event is not None for one in halves.add(event)]
    assert [one.event for one in found] == [events.BlockDelta(0, events.TextDelta("a\ufffda\U0001f600b"))]


@pytest.mark.rule("R6")
@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":1e400}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":NaN}}',
        b'{"type":"content_block_delta","index":1e400,"delta":{"type":"text_delta","text":"a"}}',
        b'{"type":"newer","n":Infinity}',
        b'{"type":"newer","n":"\xff"}',
    ],
)
def test_what_is_not_json_or_cannot_be_counted_is_unreadable(data: bytes) -> None:
    with pytest.raises(BackendError) as refused:
        read_event(data)
    assert refused.value.code == "backend_unreadable"
