"""The dialects of AG-UI: what no golden file shows."""

import json
from typing import Any

from tailrace.features.gateway import DIALECTS
from tailrace.proto import events
from tailrace.protocols.ag_ui.events import EVENT_BYTES_MAX, PIECE_CHARS
from tests.harness.sse_parser import parse
from tests.harness.turn_builder import KEY, Handwritten, attempted_turn, block_events, opening_events

Json = dict[str, Any]
CALL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_fetch", "input": {}}


def stream_of(log: Handwritten) -> bytes:
    state, found = DIALECTS["ag-ui-1"].start(KEY), b""
    for stored in log.stored:
        frame, state = DIALECTS["ag-ui-1"].render(state, stored)
        found += frame.data
    return found


def shown(data: bytes, kind: str) -> list[Json]:
    return [event for event in (json.loads(one.data) for one in parse(data)) if event["type"] == kind]


def test_a_long_text_comes_in_pieces() -> None:
    """HttpAgent fails at an event of more than 10 MiB."""
    text = "ab" * PIECE_CHARS
    log = attempted_turn(*opening_events(), events.BlockDelta(0, events.TextDelta(text + "c")), events.BlockStop(0))
    log.end()
    data = stream_of(log)
    deltas = [event["delta"] for event in shown(data, "TEXT_MESSAGE_CONTENT")]
    assert ("".join(deltas), len(deltas)) == (text + "c", 3)
    assert max(map(len, data.split(b"\n\n"))) < EVENT_BYTES_MAX


def test_a_result_that_is_too_large_is_a_note() -> None:
    """It cannot be sent in pieces. The rest of the stream is as it was."""
    result = {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_1", "content": "x" * (EVENT_BYTES_MAX + 1)}
    log = attempted_turn(opening_events()[0], *block_events(0, CALL), *block_events(1, result))
    log.end()
    (sent,) = shown(stream_of(log), "TOOL_CALL_RESULT")
    assert sent["content"] == f"too large for an event of AG-UI: GET /v1/turns/{KEY.turn} has it"
    assert len(shown(stream_of(log), "RUN_FINISHED")) == 1
