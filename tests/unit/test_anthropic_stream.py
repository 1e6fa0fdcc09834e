"""The dialect anthropic: the message that the vendor's SDK accumulates is the same directly and through Tailrace."""

import json
from typing import Any

import httpx2
import msgspec
import pytest
from anthropic.lib.streaming._beta_messages import accumulate_event

from tailrace.gateway.history_client import close_record
from tailrace.proto import entries
from tailrace.proto.fold import fold
from tailrace.proto.records import record_from_fold
from tailrace.protocols.anthropic.stream import ANTHROPIC, render_message
from tests.harness.readers import render_frames
from tests.harness.sse_parser import parse
from tests.harness.turn_builder import KEY, MODEL, Handwritten, attempted_turn

Data = dict[str, Any]
USAGE = {"input_tokens": 10, "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
# Of BetaMessage in anthropic 2.14.0, and one that no version has.
HEAD = {
    "container": {"id": "container_1", "expires_at": "soon"},
    "context_management": {"applied_edits": []},
    "diagnostics": {"cache_miss_reason": {"type": "model_changed", "cache_missed_input_tokens": 5}},
    "input_transformations": [
        {"type": "thinking_dropped", "message_index": 0, "content_index": 1, "reason": "model_binding_mismatch"}
    ],
    "of_a_newer_version": {"x": [1, None]},
}


def start(block: Data, *deltas: Data) -> list[Data]:
    """The events of one block, without its index."""
    content = [{"type": "content_block_delta", "delta": delta} for delta in deltas]
    return [{"type": "content_block_start", "content_block": block}, *content, {"type": "content_block_stop"}]


def answer(*blocks: list[Data], head: Data | None = None, ending: Data | None = None) -> list[Data]:
    """The events of an answer as the API sends them."""
    message: Data = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": USAGE, **(head or {})}
    content = [{**event, "index": index} for index, events in enumerate(blocks) for event in events]
    delta = {"stop_reason": "end_turn", "stop_sequence": None, **(ending or {})}
    return [
        {"type": "message_start", "message": message},
        *content,
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}},
    ]


TEXT = start({"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"})
PAGE = {"type": "page_location", "cited_text": "c", "document_index": 0, "document_title": None, "start_page_number": 1}
ANSWERS: dict[str, list[Data]] = {
    "fields of message_start": answer(TEXT, head=HEAD),
    "fields of message_delta": answer(
        TEXT, ending={"container": HEAD["container"], "stop_details": {"type": "refusal"}}
    ),
    "fields of both": answer(TEXT, head=HEAD, ending={"container": {"id": "container_2", "expires_at": "x"}}),
    "compaction": answer(
        start(
            {"type": "compaction", "content": None},
            {"type": "compaction_delta", "content": "so far", "encrypted_content": "c2VjcmV0"},
        ),
        TEXT,
    ),
    "compaction without encrypted content": answer(
        start({"type": "compaction", "content": None}, {"type": "compaction_delta", "content": "so far"}), TEXT
    ),
    "compaction that failed": answer(start({"type": "compaction", "content": None}), TEXT),
    "compaction, whole at its start": answer(
        start({"type": "compaction", "content": "so far", "encrypted_content": None, "signature": "s"}), TEXT
    ),
    "text with citations": answer(
        start(
            {"type": "text", "text": "", "citations": []},
            {"type": "citations_delta", "citation": PAGE},
            {"type": "text_delta", "text": "cited"},
        )
    ),
    "text that is whole at its start": answer(
        start({"type": "text", "text": "whole", "citations": [PAGE]}),
        start({"type": "text", "text": "", "citations": None}),
    ),
    "thinking": answer(
        start(
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "", "estimated_tokens": 50},
            {"type": "thinking_delta", "thinking": "hm", "estimated_tokens": None},
            {"type": "signature_delta", "signature": "s1"},
        ),
        start({"type": "thinking", "thinking": "whole", "signature": "s2"}),
        start({"type": "redacted_thinking", "data": "d"}),
        TEXT,
    ),
    "tools": answer(
        start(
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}, "caller": {"type": "direct"}},
            {"type": "input_json_delta", "partial_json": '{"query":'},
            {"type": "input_json_delta", "partial_json": '"x"}'},
        ),
        start({"type": "web_search_tool_result", "tool_use_id": "s1", "content": [], "caller": {"type": "direct"}}),
        start({"type": "mcp_tool_use", "id": "m1", "name": "look", "server_name": "s", "input": {"at": 1}}),
        start({"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": True, "content": "no"}),
        start({"type": "tool_use", "id": "t1", "name": "look", "input": {}}),
    ),
    "other blocks": answer(
        start({"type": "container_upload", "file_id": "f"}),
        start({"type": "mcp_tool_listing", "mcp_server_name": "s", "tools": []}),
        start({"type": "of_a_newer_version", "x": {"y": 1}}),
        TEXT,
    ),
}


def log_of(sent: list[Data]) -> Handwritten:
    log = attempted_turn()
    for event in sent:
        raw = msgspec.Raw(msgspec.json.encode(event))
        log.store(entries.Event(prev=log.chain.last, attempt=log.chain.attempt, event=raw))
    log.end()
    return log


def accumulate(sent: list[Data]) -> Data:
    """The message that the SDK accumulates, without its id."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in sent:
        if event["type"] != "message_stop":
            given: Any = event
            snapshot = accumulate_event(
                event=given, current_snapshot=snapshot, json_bufs=buffers, request_headers=httpx2.Headers({"x": "y"})
            )
    return normalize(snapshot.model_dump(warnings=False, by_alias=True))


def normalize(message: Data) -> Data:
    """Leaves out the id and what the SDK's types add: fields that are null, and empty citations."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: clean(one) for name, one in value.items() if one is not None and (name, one) != ("citations", [])
            }
        return [clean(one) for one in value] if isinstance(value, list) else value

    cleaned: Data = clean({name: value for name, value in message.items() if name != "id"})
    return cleaned


def data(sent: bytes) -> list[Data]:
    return [json.loads(event.data) for event in parse(sent)]


# The SDK decodes a time that is no time as it is.
@pytest.mark.filterwarnings("ignore::UserWarning:pydantic")
@pytest.mark.parametrize("name", ANSWERS)
def test_the_sdk_accumulates_the_same_message_however_it_was_read(name: str) -> None:
    """Directly, live, from the database, and as JSON without a stream."""
    sent = ANSWERS[name]
    direct, log = accumulate(sent), log_of(sent)
    live = b"".join(frame.sent for frame in render_frames(KEY, log.stored, "anthropic"))
    record = close_record(record_from_fold(KEY, fold(log.stored)))
    assert accumulate(data(live)) == direct
    assert accumulate(data(ANTHROPIC.render_record(record, 0).data)) == direct
    assert normalize(json.loads(render_message(record))) == direct


def test_a_compaction_from_the_database_has_its_delta() -> None:
    """The SDKs give the event `compaction` for the delta only."""
    record = record_from_fold(KEY, fold(log_of(ANSWERS["compaction"]).stored))
    _, begun, delta, _, *_ = data(ANTHROPIC.render_record(record, 0).data)
    assert begun["content_block"] == {"type": "compaction", "content": None, "encrypted_content": None}
    assert delta["delta"] == {"type": "compaction_delta", "content": "so far", "encrypted_content": "c2VjcmV0"}


def test_a_message_delta_has_no_fields_of_the_message_start() -> None:
    """They are in the `message_start` that the client has received."""
    live = b"".join(
        frame.sent for frame in render_frames(KEY, log_of(ANSWERS["fields of message_start"]).stored, "anthropic")
    )
    found = data(live)
    assert found[0]["message"] == ANSWERS["fields of message_start"][0]["message"] | {"id": f"msg_{KEY.turn}"}
    assert set(found[-2]) == {"type", "delta", "usage"}
