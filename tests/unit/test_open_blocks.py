"""Blocks that are open at the same time, and blocks that are whole at their start: each client gets the same answer."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import msgspec
import pytest
from anthropic.lib.streaming._beta_messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.history_client import close_record
from tailrace.proto import events
from tailrace.proto.entries import Outcome
from tailrace.proto.records import record_from_fold
from tests.harness.displayed_text import SAYS
from tests.harness.readers import render_frames
from tests.harness.sse_parser import parse
from tests.harness.strategies import CITATIONS, INPUTS, TEXTS
from tests.harness.turn_builder import KEY, Handwritten, answer_block, attempted_turn, block_events, opening_events

Data = dict[str, Any]


@st.composite
def blocks(draw: st.DrawFn, index: int) -> list[events.Event]:
    """The events of a block that comes in deltas, or is whole at its start."""
    kind = draw(st.sampled_from(["text", "begun text", "thinking", "tool_use", "whole", "newer"]))
    if kind == "whole":
        return block_events(index, draw(st.sampled_from(whole_starts(index))))
    pieces: st.SearchStrategy[Sequence[str]] = st.lists(TEXTS, max_size=3)
    citations = draw(st.lists(st.sampled_from(CITATIONS), max_size=2))
    return answer_block(index, kind, *draw(INPUTS if kind == "tool_use" else pieces), citations=citations)


def whole_starts(index: int) -> list[Data]:
    return [
        {"type": "text", "text": f"whole {index}", "citations": CITATIONS[:1]},
        {"type": "thinking", "thinking": f"hm {index}", "signature": "c2ln"},
        {"type": "tool_use", "id": f"toolu_{index}", "name": "look", "input": {"q": index}},
        {"type": "server_tool_use", "id": f"srvtoolu_{index}", "name": "web_search", "input": {"query": "x"}},
        {"type": "compaction", "content": "so far", "encrypted_content": "c2VjcmV0"},
    ]


ANSWERS = st.integers(1, 4).flatmap(lambda count: st.tuples(*(blocks(index) for index in range(count))))


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[events.Event], list[events.Event]]:
    """An answer, and the same answer with its blocks open at the same time. They begin in the order of their index."""
    answer = draw(ANSWERS)
    waiting = [list(block) for block in answer]
    mixed: list[events.Event] = []
    while any(waiting):
        begun = [block for index, block in enumerate(waiting) if block and len(block) < len(answer[index])]
        unbegun = [block for index, block in enumerate(waiting) if block and len(block) == len(answer[index])]
        mixed.append(draw(st.sampled_from([*begun, *unbegun[:1]])).pop(0))
    return [event for block in answer for event in block], mixed


def log_of(answer: Sequence[events.Event], outcome: Outcome = "completed", stop: str = "end_turn") -> Handwritten:
    log = attempted_turn(opening_events()[0], *answer)
    if outcome == "completed":
        log.store_events(events.MessageDelta(events.StopReason(stop), events.UsageSoFar(output_tokens=3)))
    log.end(outcome)
    return log


def live(log: Handwritten, dialect: str) -> bytes:
    return b"".join(frame.sent for frame in render_frames(KEY, log.stored, dialect))


def archived(log: Handwritten, dialect: str) -> bytes:
    return DIALECTS[dialect].render_record(close_record(record_from_fold(KEY, log.turn)), 0).data


def data(sent: bytes) -> list[Data]:
    return [json.loads(event.data) for event in parse(sent) if event.data.startswith("{")]


def value(text: str) -> object:
    """An input as a value: a client parses it."""
    try:
        return json.loads(text or "{}")
    except json.JSONDecodeError:
        return text


def tailrace_message(sent: bytes) -> object:
    """Text and thinking by block, as the clients of Tailrace add them up."""
    found: dict[tuple[str, int], str] = {}
    others: list[Data] = []
    for event in data(sent):
        at = event.get("index", 0)
        match event:
            case {"type": "delta" | "thinking" as kind, "text": text}:
                found[kind, at] = found.get((kind, at), "") + text
            case {"type": "tool_use", "id": call, "name": name}:
                found[f"{call} {name}", at] = ""
            case {"type": "tool_use", "partial_json": piece}:
                name = next((name for name, index in found if index == at and " " in name), "")
                if name:
                    found[name, at] += piece
            case {"type": "citation" | "block"}:
                others.append(event)
    inputs = {at: value(text) if " " in at[0] else text for at, text in found.items() if text or " " in at[0]}
    return sorted(inputs.items(), key=str), sorted(others, key=str)


def sdk_message(sent: bytes) -> object:
    """The message that Anthropic's SDK accumulates."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    headers = httpx2.Headers({"x": "y"})
    for event in data(sent):
        if event["type"] == "message_start":
            event["message"] |= {"content": []}
        if event["type"] not in ("message_stop", "ping", "error"):
            given: Any = event
            snapshot = accumulate_event(
                event=given, current_snapshot=snapshot, json_bufs=buffers, request_headers=headers
            )
    if snapshot is None:
        return None
    content: list[Data] = snapshot.model_dump(warnings=False)["content"]
    # A thinking block without text has no delta, and text without citations none or an empty list.
    return [{name: value for name, value in block.items() if value not in ("", [], None)} for block in content]


def chat_message(sent: bytes) -> object:
    message: Data = {"content": "", "reasoning_content": "", "calls": {}, "annotations": []}
    for chunk in data(sent):
        for choice in chunk.get("choices", []):
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name) or ""
            for call in delta.get("tool_calls", []):
                known = message["calls"].setdefault(call["index"], {"arguments": ""})
                known["id"] = call.get("id", known.get("id"))
                known["arguments"] += call["function"].get("arguments", "")
            message["annotations"] += delta.get("annotations", [])
    message["calls"] = {at: {**call, "arguments": value(call["arguments"])} for at, call in message["calls"].items()}
    return message


def response(sent: bytes) -> object:
    """The last response. Its items are those that their own events have built."""
    items: dict[int, Data] = {}
    for event in data(sent):
        match event:
            case {"type": "response.output_item.added", "output_index": at, "item": item}:
                assert at == len(items), "output indices are in the order in which the items are added"
                items[at] = {"id": item["id"], "deltas": ""}
            case {"output_index": at, "delta": str(delta)}:
                items[at]["deltas"] += delta
            case {"type": "response.output_item.done", "output_index": at, "item": item}:
                assert items[at].pop("id") == item["id"]
                text = items[at].pop("deltas")
                items[at] = item
                texts = [part["text"] for part in [*item.get("content", []), *item.get("summary", [])]]
                assert text == "".join([*texts, item.get("arguments", "")])
    output: list[Data] = data(sent)[-1]["response"]["output"]
    assert output == [items[at] for at in range(len(items))]
    return [{**item, "arguments": value(item.get("arguments", ""))} for item in output]


def ui_message(sent: bytes) -> object:
    """The parts of the message, by the ids of their chunks, as `useChat` builds them."""
    parts: dict[str, Data] = {}
    for chunk in data(sent):
        match chunk:
            case {"type": "text-start" | "reasoning-start" | "tool-input-start"}:
                parts[chunk.get("id") or chunk["toolCallId"]] = {"kind": chunk["type"], "text": ""}
            case {"type": "text-delta" | "reasoning-delta", "id": name, "delta": delta}:
                parts[name]["text"] += delta
            case {"type": "tool-input-available" | "tool-input-error", "toolCallId": name}:
                parts[name]["input"] = chunk["input"]
            case {"type": "reasoning-end", "id": name}:
                parts[name]["metadata"] = chunk.get("providerMetadata")
            case {"type": "source-url" | "source-document", "sourceId": name}:
                parts[name] = {name: value for name, value in chunk.items() if name != "sourceId"}
    return sorted(parts.items())


def agent_messages(sent: bytes) -> object:
    """The messages that HttpAgent builds, and the events for what they cannot have."""
    messages: dict[str, Data] = {}
    calls: dict[str, Data] = {}
    others: list[Data] = []
    open_messages: set[str] = set()
    for event in data(sent):
        match event:
            case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": name, "role": role}:
                assert name not in messages
                messages[name] = {"role": role, "content": "", "calls": []}
                open_messages.add(name)
            case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": name, "delta": delta}:
                assert name in open_messages
                assert delta
                messages[name]["content"] += delta
            case {"type": "TEXT_MESSAGE_END" | "REASONING_MESSAGE_END", "messageId": name}:
                open_messages.remove(name)
            case {"type": "REASONING_ENCRYPTED_VALUE", "entityId": name, "encryptedValue": secret}:
                messages[name]["secret"] = secret
            case {"type": "TOOL_CALL_START", "toolCallId": call, "toolCallName": tool, "parentMessageId": name}:
                owner = messages.setdefault(name, {"role": "assistant", "calls": []})
                calls[call] = {"id": call, "tool": tool, "arguments": ""}
                owner["calls"].append(calls[call])
            case {"type": "TOOL_CALL_ARGS", "toolCallId": call, "delta": delta}:
                calls[call]["arguments"] += delta
            case {"type": "TOOL_CALL_RESULT", "messageId": name, "toolCallId": call, "content": content}:
                messages[name] = {"role": "tool", "call": call, "content": content}
            case {"type": "CUSTOM", "name": "tailrace.block" | "tailrace.citation"}:
                others.append(event)
    assert not open_messages
    for call in calls.values():
        call["arguments"] = value(call["arguments"])
    return [*messages.items()], sorted(others, key=str)


MESSAGES: dict[str, Callable[[bytes], object]] = SAYS | {
    "tailrace": tailrace_message,
    "anthropic": sdk_message,
    "openai-chat": chat_message,
    "openai-chat-usage": chat_message,
    "openai-responses": response,
    "ui": ui_message,
    "ag-ui": agent_messages,
    "ag-ui-1": agent_messages,
}


@pytest.mark.rule("S5")
@given(interleavings(), st.sampled_from(["end_turn", "max_tokens"]))
def test_blocks_that_are_open_at_the_same_time_are_the_same_message(
    both: tuple[list[events.Event], list[events.Event]], stop: str
) -> None:
    """Clients of every dialect build the same message, live and from the database."""
    one, other = (log_of(answer, stop=stop) for answer in both)
    assert one.turn.blocks == other.turn.blocks
    for name, build in MESSAGES.items():
        expected = build(live(one, name))
        assert build(live(other, name)) == expected, name
        assert build(archived(other, name)) == expected, f"{name} from the database"


@pytest.mark.rule("S5")
@settings(max_examples=200)
@given(interleavings(), st.sampled_from(["cancelled", "failed"]), st.data())
def test_the_text_of_a_broken_answer_has_the_order_of_its_blocks(
    both: tuple[list[events.Event], list[events.Event]], outcome: Outcome, data: st.DataObject
) -> None:
    """Text that waited for an earlier block is shown at the end at the latest."""
    _, mixed = both
    log = log_of(mixed[: data.draw(st.integers(0, len(mixed) - 1), label="events before the end")], outcome)
    for name in {*SAYS} - {"tailrace", "anthropic", "openai-responses", "ui"}:
        assert SAYS[name](live(log, name)) == log.turn.text, name


def test_arguments_of_calls_that_are_open_at_the_same_time_go_to_their_calls() -> None:
    """The input of a public bug report: the first call had `{}` before its arguments."""
    calls = [answer_block(index, "tool_use", '{"a"', f":{index}}}") for index in (0, 1)]
    mixed = [event for both in zip(*calls, strict=True) for event in both]
    log = log_of(mixed, stop="tool_use")
    chat = chat_message(live(log, "openai-chat"))
    assert isinstance(chat, dict)
    assert [call["arguments"] for call in chat["calls"].values()] == [{"a": 0}, {"a": 1}]


@pytest.mark.parametrize("start", whole_starts(0), ids=lambda start: start["type"])
def test_a_block_that_is_whole_at_its_start_is_shown(start: Data) -> None:
    """Its content is in every dialect that has a place for it, live and from the database."""
    log = log_of(block_events(0, start))
    agents = {"ag-ui", "ag-ui-1"}
    shown_in = {
        "text": {*MESSAGES},
        "thinking": {"tailrace", "anthropic", "openai-chat", "openai-chat-usage", "openai-responses", "ui", *agents},
        "tool_use": {"tailrace", "anthropic", "openai-chat", "openai-chat-usage", "openai-responses", "ui", *agents},
        "server_tool_use": {"tailrace", "anthropic", "ui", *agents},
        "compaction": {"tailrace", "anthropic", *agents},
    }[start["type"]]
    sign = {
        "text": "whole 0",
        "thinking": "hm 0",
        "tool_use": "look",
        "server_tool_use": "web_search",
        "compaction": "so far",
    }[start["type"]]
    for name in shown_in:
        for sent in (live(log, name), archived(log, name)):
            assert sign.encode() in sent, name


def test_an_unknown_delta_is_passed_on() -> None:
    """The dialect `tailrace` has the model's own bytes."""
    log = attempted_turn(opening_events()[0], events.BlockStart(0, {"type": "newer"}))
    for fields in (
        {"type": "content_block_delta", "index": 0, "delta": {"type": "song_delta", "note": "c\n"}},
        {"type": "message_sung", "song": 1},
    ):
        raw = msgspec.Raw(json.dumps(fields, indent=1).encode())
        entry = msgspec.structs.replace(log.stored[-1].entry, prev=log.chain.last, event=raw)
        log.store(entry)
    assert data(live(log, "tailrace"))[-2:] == [
        {"type": "block", "index": 0, "delta": {"type": "song_delta", "note": "c\n"}},
        {"type": "event", "event": {"type": "message_sung", "song": 1}},
    ]
