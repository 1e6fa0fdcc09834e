"""Each case reaches a client of OpenAI's Responses API as the same items: live, from the database, as JSON, after a cut
and after a kill at each event."""

import json
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.history_client import close_record
from tailrace.proto.entries import StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.records import record_from_fold
from tailrace.protocols.openai.responses_stream import response_of
from tests.conformance.case import Case, read_cases
from tests.conformance.played import Play
from tests.harness.sse_parser import parse
from tests.schedules.schedule import KEY

Json = dict[str, Any]
DIALECT = DIALECTS["openai-responses"]
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
NAMES = [name for name, case in read_cases().items() if not case.repeat and not case.raw]
WITH_CALLS = [name for name in NAMES if any("_tool_result" in str(event) for event in read_cases()[name].events)]


def play(case: Case, **given: tuple[int, ...]) -> Play:
    played = Play(case, **given)
    played.run()
    return played


def live(entries: list[StoredEntry]) -> list[Json]:
    """The events of a client that has followed every restart."""
    state, data = DIALECT.start(KEY), b""
    for stored in entries:
        frame, state = DIALECT.render(state, stored)
        data = b"" if frame.is_break else data + frame.data
    return events_of(data)


def events_of(data: bytes) -> list[Json]:
    found = [json.loads(event.data) for event in parse(data)]
    for event in found:
        # Anthropic's field, whose values are not those that OpenAI's types have since 3.57.
        event.get("response", {}).pop("input_transformations", None)
        EVENTS.validate_python(event)
    return found


def items_of(events: list[Json]) -> list[Json]:
    """The items of the last event, which are those that were sent one by one."""
    output: list[Json] = events[-1]["response"]["output"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in sorted(done, key=lambda event: int(event["output_index"]))] == output
    texts: dict[int, str] = {}
    for event in events:
        if event["type"] == "response.output_text.delta":
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
    shown = {index: item["content"][0]["text"] for index, item in enumerate(output) if item["type"] == "message"}
    assert {index: text for index, text in shown.items() if text} == texts
    return output


def readable(items: list[Json]) -> list[Any]:
    """The items without ids, and without what a continuation may change: reasoning, white space of arguments, and calls
    whose result was lost, which may divide a text.
    """
    found: list[Any] = []
    for item in items:
        if item["type"] == "reasoning" or item.get("status") == "failed":
            continue
        if item["type"] != "message":
            is_whole = "arguments" in item and item["status"] == "completed"
            given = {"arguments": json.loads(item["arguments"])} if is_whole else {}
            found.append({**item, "id": "", "call_id": "", **given})
        elif found and isinstance(found[-1], str):
            found[-1] += item["content"][0]["text"]
        else:
            found.append(item["content"][0]["text"])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_items_are_the_same_live_and_from_the_database(name: str) -> None:
    stored = play(read_cases()[name]).stored
    record = record_from_fold(KEY, fold(stored))
    items = items_of(live(stored))
    archived = items_of(events_of(DIALECT.render_record(close_record(record), 0).data))
    assert [{**item, "arguments": ""} for item in archived] == [{**item, "arguments": ""} for item in items]
    assert response_of(record)["output"] == archived
    assert readable(archived) == readable(items)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_that_is_cut_at_each_event_has_the_same_items(name: str) -> None:
    case = read_cases()[name]
    whole = play(case)
    for cut in range(1, len(whole.stored)):
        assert live(play(case, cuts=(cut,)).received) == live(whole.stored), f"after {cut} entries"


@pytest.mark.rule("R119")
@pytest.mark.parametrize("name", WITH_CALLS)
def test_a_generator_that_is_killed_at_each_event_has_the_same_items(name: str) -> None:
    """No search with a stored result is made again: it would be one more item."""
    case = read_cases()[name]
    whole = play(case)
    wanted = readable(items_of(live(whole.stored)))
    for kill in range(2, len(whole.stored)):
        played = play(case, kills=(kill,))
        assert readable(items_of(live(played.received))) == wanted, f"killed with append {kill}"
