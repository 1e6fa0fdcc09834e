"""Every view of a stored turn accepts any JSON that a client has put into its blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto.entries import Block, Message
from tailrace.proto.fold import content
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.ai_sdk import message
from tailrace.protocols.openai.responses_input import items_of
from tailrace.protocols.openai.responses_stream import response_of
from tests.harness.strategies import JSON, TEXTS
from tests.harness.turn_builder import KEY, completed_turn

RECORD = record_from_fold(KEY, completed_turn("hi").turn)
TYPES = [
    *("text", "image", "document", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "tool_result"),
    *("web_search_tool_result", "newer"),
]
FIELDS = [
    *("text", "thinking", "signature", "data", "source", "title", "citations", "media_type", "url"),
    *("id", "name", "input", "tool_use_id", "content", "is_error"),
]


def blocks(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Of Anthropic's types, with Anthropic's fields; what is in those is another matter."""
    kinds = st.fixed_dictionaries({"type": st.sampled_from([*TYPES, "base64", "url"]) | JSON})
    fields = st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    return st.tuples(kinds, fields).map(lambda both: both[0] | both[1])


def render_archived(dialect: Dialect, record: TurnRecord) -> str:
    return dialect.render_record(record, 0).data.decode()


BLOCKS = blocks(JSON | blocks(JSON) | st.lists(JSON | blocks(JSON), max_size=2))
CONTENTS = TEXTS | st.lists(BLOCKS, max_size=4)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant", "system"]), CONTENTS), max_size=4)
# What the model has said is a fold's; its calls have names, or what another writer took for such.
NAMED = st.sampled_from([{}, {"id": "c1"}, {"name": "n"}, {"id": "c1", "name": "n"}])
ANSWERS = st.builds(lambda block, named: content(Block(str(block["type"]), named | block, "a")), BLOCKS, NAMED)
RECORDS = st.builds(
    lambda messages, answer, outcome: msgspec.structs.replace(RECORD, input=messages, content=answer, outcome=outcome),
    MESSAGES,
    st.lists(ANSWERS, max_size=4),
    st.sampled_from(["completed", "failed", "running"]),
)
WHOLE = {name: dialect.render_json for name, dialect in DIALECTS.items() if dialect.render_json is not None}
VIEWS: dict[str, Callable[[TurnRecord], object]] = {
    "input_items": lambda record: items_of(record.turn, record.input),
    "response": response_of,
    "ui messages": lambda record: message.build_messages([record, record]),
    **{name: partial(render_archived, dialect) for name, dialect in DIALECTS.items()},
    **{f"{name}, whole": whole for name, whole in WHOLE.items()},
}


def answering_record(*blocks: dict[str, Any]) -> TurnRecord:
    return msgspec.structs.replace(RECORD, content=[content(Block(block["type"], block)) for block in blocks])


def record_with(*blocks: dict[str, Any]) -> TurnRecord:
    messages = [Message("user", [*blocks]), Message("assistant", [*blocks])]
    return msgspec.structs.replace(RECORD, input=messages)


@given(record=RECORDS)
@example(record=record_with({"type": "image", "source": "x"}))
@example(
    record=record_with({"type": "document", "source": {"type": "base64", "media_type": 5, "data": []}, "title": 5})
)
@example(record=record_with({"type": "tool_result", "tool_use_id": "c1", "content": 5}))
@example(record=record_with({"type": "tool_result", "tool_use_id": {}, "content": ["x", 5]}))
@example(record=record_with({"type": "text", "text": None}))
@example(record=record_with({"type": "text", "text": "a", "citations": 5}))
@example(record=record_with({"type": "text", "text": "a", "citations": ["x", {}]}))
@example(record=record_with({"type": "tool_use", "id": [], "name": 5, "input": {}}))
@example(record=answering_record({"type": "tool_use"}))
@example(record=answering_record({"type": "tool_use", "id": "c1"}, {"type": "tool_use", "name": "n"}))
@example(record=answering_record({"type": "tool_use", "id": [], "name": 5}))
def test_every_renderer_accepts_any_stored_content(record: TurnRecord) -> None:
    """Stored content never changes, so an exception would make the turn unreadable forever."""
    for name, view in VIEWS.items():
        assert msgspec.json.encode(view(record)), name
