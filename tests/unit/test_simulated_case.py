"""Cases of the simulated Claude: events byte for byte, and the rest of them after a partial answer."""

from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude import event
from tailrace.deploy.simulated_claude.case import Lines, parse_case
from tailrace.deploy.simulated_claude.conversation import INTERRUPTED
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.reply import Reply, parse_message, reply
from tailrace.deploy.simulated_claude.request import decode

START = {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": {}}}
STOP = {"type": "message_stop"}
THINKING = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]
CALL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
RESULT = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
UPLOAD = {"type": "container_upload", "file_id": "file_1"}


def block(index: int, start: dict[str, Any], *texts: str) -> list[dict[str, Any]]:
    deltas = [
        {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": t}} for t in texts
    ]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *deltas,
        {"type": "content_block_stop", "index": index},
    ]


TEXT = {"type": "text", "text": ""}
CASE = [
    *(START, *block(0, THINKING[0]), *block(1, TEXT, "One ", "two"), *block(2, CALL), *block(3, RESULT)),
    *(*block(4, UPLOAD), *block(5, TEXT, " three"), STOP),
]


def lines_of(events: list[dict[str, Any]]) -> Lines:
    return parse_case(b"\n".join(msgspec.json.encode(one) for one in events))


def play(lines: Lines, *tail: dict[str, Any], stream: bool = True) -> Reply:
    messages = [{"role": "user", "content": "#sim case=x"}, *tail]
    body = {"model": "claude-sonnet-5-5", "max_tokens": 100, "stream": stream, "messages": messages}
    return reply(parse_message(decode(msgspec.json.encode(body))), 1, cases={"x": lines})


def continued(*blocks: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"role": "assistant", "content": list(blocks)}, {"role": "user", "content": INTERRUPTED}


def test_a_case_is_sent_byte_for_byte() -> None:
    """Also lines that are not JSON, and JSON that no library writes."""
    body = b'{"type": "odd", "n": 1e400, "s": "\\ud83d"}\n\nnot JSON\n'
    frames = list(event.frames(play(parse_case(body))))
    assert frames[0].data == b'event: odd\ndata: {"type": "odd", "n": 1e400, "s": "\\ud83d"}\n\n'
    assert [frame.data for frame in frames[1:]] == [b"event: \ndata: not JSON\n\n"]


@pytest.mark.parametrize(
    ("partial", "rest"),
    [
        ([{**TEXT, "text": "On"}], [*block(0, TEXT, "e ", "two"), *block(1, CALL), *block(2, RESULT)]),
        ([{**TEXT, "text": "One two"}], [*block(0, CALL), *block(1, RESULT)]),
        ([*THINKING, {**TEXT, "text": "One two"}, CALL, RESULT], []),
    ],
)
def test_a_continuation_gets_the_rest(partial: list[dict[str, Any]], rest: list[dict[str, Any]]) -> None:
    number = sum(one["type"] == "content_block_stop" for one in rest)
    tail = [*block(number, UPLOAD), *block(number + 1, TEXT, " three"), STOP]
    played = play(lines_of(CASE), *continued(*partial))
    assert [msgspec.json.decode(line) for line in played.lines or ()] == [START, *rest, *tail]
    assert not played.is_mismatched


def test_blocks_of_other_types_come_once() -> None:
    played = play(lines_of(CASE), *continued({**TEXT, "text": "One two"}, CALL, RESULT, UPLOAD))
    assert [msgspec.json.decode(line) for line in played.lines or ()] == [START, *block(0, TEXT, " three"), STOP]


def test_another_text_gets_the_whole_case() -> None:
    played = play(lines_of(CASE), *continued({**TEXT, "text": "Two"}))
    assert (played.lines, played.is_mismatched) == (lines_of(CASE), True)


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(Refusal, match="case=x"):
        play((), stream=False)
