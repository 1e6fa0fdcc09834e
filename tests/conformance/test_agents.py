"""Each case reaches a client of AG-UI in a legal order, and as the same messages: live, from the database, after a
kill at each event, and after a cut at each event."""

import json
from typing import Any

import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.history_client import close_record
from tailrace.proto.entries import StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.records import record_from_fold
from tests.conformance.case import Case, read_cases
from tests.conformance.played import Play
from tests.conformance.rule_ways import apply_event
from tests.harness.sse_parser import parse
from tests.schedules.schedule import KEY

Json = dict[str, Any]
NAMES = [name for name, case in read_cases().items() if not case.repeat]
PARTS = ("TEXT_MESSAGE", "REASONING", "REASONING_MESSAGE", "TOOL_CALL")
LAST = ("RUN_FINISHED", "RUN_ERROR")


def play(case: Case, **given: tuple[int, ...]) -> Play:
    played = Play(case, **given)
    played.run()
    return played


def streamed(entries: list[StoredEntry], name: str) -> bytes:
    state, found = DIALECTS[name].start(KEY), b""
    for stored in entries:
        frame, state = DIALECTS[name].render(state, stored)
        found += frame.data
    return found


def archived(entries: list[StoredEntry], name: str) -> bytes:
    return DIALECTS[name].render_record(close_record(record_from_fold(KEY, fold(entries))), 0).data


def events_of(stream: bytes) -> list[Json]:
    return [json.loads(event.data) for event in parse(stream)]


def require_order(events: list[Json]) -> None:
    """Fails where HttpAgent does: the rules of `verifyEvents` of @ag-ui/client."""
    is_open: dict[str, set[str]] = {part: set() for part in PARTS}
    assert events[0]["type"] == "RUN_STARTED"
    assert [event["type"] in LAST for event in events] == [False] * (len(events) - 1) + [True]
    for event in events:
        part, _, what = event["type"].rpartition("_")
        name = str(event.get("toolCallId", event.get("messageId")))
        if part in PARTS and what == "START":
            assert name not in is_open[part], event
            is_open[part].add(name)
        elif part in PARTS and what in ("CONTENT", "ARGS"):
            assert name in is_open[part], event
            assert event["delta"], event
        elif part in PARTS and what == "END":
            is_open[part].remove(name)
    assert not any(is_open.values()), is_open


def messages_of(events: list[Json]) -> list[Json]:
    messages: list[Json] = []
    for event in events:
        apply_event(messages, event)
    return messages


def shown(messages: list[Json]) -> Json:
    """Returns what a user sees of the messages, without ids: texts, thoughts, and calls of the client's tools.

    A generator that is killed between a call of the API's own tool and its result makes the call again.
    """
    texts = "".join(one.get("content") or "" for one in messages if one["role"] == "assistant")
    thoughts = "".join(one["content"] for one in messages if one["role"] == "reasoning")
    calls = [call for one in messages for call in one.get("toolCalls", [])]
    calls = [call["function"] for call in calls if not call["id"].startswith(("srvtoolu_", "mcptoolu_"))]
    return {"text": texts, "thoughts": thoughts, "calls": calls}


@pytest.mark.parametrize("dialect", ["ag-ui", "ag-ui-1"])
@pytest.mark.parametrize("name", NAMES)
def test_a_client_has_the_same_messages_live_and_from_the_database(name: str, dialect: str) -> None:
    entries = play(read_cases()[name]).stored
    live, past = events_of(streamed(entries, dialect)), events_of(archived(entries, dialect))
    for events in (live, past):
        require_order(events)
    assert messages_of(live) == messages_of(past)
    assert live[-1] == past[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_generator_leaves_the_messages_as_they_are(name: str) -> None:
    """A restart drops what came before it."""
    whole = play(read_cases()[name])
    wanted = shown(messages_of(events_of(streamed(whole.stored, "ag-ui-1"))))
    for kill in range(2, len(whole.stored)):
        events = events_of(streamed(play(read_cases()[name], kills=(kill,)).stored, "ag-ui-1"))
        require_order(events)
        found = messages_of(events)
        asked = [one for one in found if one["role"] == "user"]
        assert shown(found) == wanted, f"killed with append {kill}"
        assert len(asked) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_after_each_event_has_the_rest(name: str) -> None:
    """Each event of a stream has an id, which no other one has."""
    stream = streamed(play(read_cases()[name]).stored, "ag-ui-1")
    ids = [line for line in stream.splitlines() if line.startswith(b"id: ")]
    assert len(set(ids)) == len(ids) == len(events_of(stream))
