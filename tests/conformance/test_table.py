"""What docs/CLAUDE_API.md says about blocks and stop reasons is what the code does with the cases."""

import json
import re
from collections.abc import Iterator

import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.proto import events
from tailrace.proto.entries import Attempt, End, Event, StoredEntry
from tests.conformance.case import read_cases
from tests.conformance.played import Play
from tests.schedules.schedule import KEY
from tools.api_surface import read_table

FORMATS = {"tailrace": "tailrace", "chat": "openai-chat", "responses": "openai-responses", "ui": "ui"}
BLOCKS = read_table()["answer_blocks"].rows
STOPS = read_table()["stop_reasons"].rows
SMALL = {name: case for name, case in read_cases().items() if not case.repeat}
# By what becomes of an answer that breaks off within the block, and after it.
KILLED = {
    "continued in the middle of a word": ({"continue"}, {"continue"}),
    "kept if complete; half of it restarts the answer": ({"restart"}, {"continue"}),
    "kept": ({"continue"}, {"continue"}),
    "a complete pair is kept; half a pair gets an error result": ({"continue"}, {"continue"}),
    "the answer restarts": ({"restart"}, {"restart"}),
}


def play(name: str, *kills: int) -> Play:
    played = Play(SMALL[name], kills=kills)
    played.run()
    return played


def case_with(block: str) -> str:
    """Returns the smallest case with a block of this type, and without calls of the client's tools if possible."""
    found = [name for name, case in SMALL.items() if f"'type': '{block}'" in str(case.events)]
    is_mixed = {name: block != "tool_use" and "'type': 'tool_use'" in str(SMALL[name].events) for name in found}
    return min(found, key=lambda name: (is_mixed[name], len(SMALL[name].events)))


def chunks(dialect: str, entries: list[StoredEntry]) -> Iterator[tuple[StoredEntry, dict[str, object]]]:
    """Yields each chunk of a stream, with its entry."""
    state = DIALECTS[dialect].start(KEY)
    for stored in entries:
        frame, state = DIALECTS[dialect].render(state, stored)
        for data in re.findall(r"data: (\{.*)", frame.data.decode()):
            yield stored, json.loads(data)


def event_of(stored: StoredEntry) -> events.Event | events.UnknownEvent | None:
    return events.decode(stored.entry.event) if isinstance(stored.entry, Event) else None


def names_of(chunk: dict[str, object]) -> set[str]:
    """Returns what a chunk is called: its type, its item's type, or the fields of its delta."""
    match chunk:
        case {"choices": [{"delta": dict(delta)}, *_]}:
            return set(delta)
        case {"item": {"type": str(kind)}}:
            return {kind}
        case {"type": "tool-output-error"}:
            return {"tool-output-available"}
        case {"type": str(kind)} if not kind.startswith("response."):
            return {kind}
    return set()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_format_shows_a_block_as_the_table_says(block: str) -> None:
    """A column that is empty: the format leaves the block out."""
    entries = play(case_with(block)).stored
    starts = [one for one in map(event_of, entries) if isinstance(one, events.BlockStart)]
    own = {start.index for start in starts if start.content_block["type"] == block}
    for column, dialect in FORMATS.items():
        found = [chunk for stored, chunk in chunks(dialect, entries) if getattr(event_of(stored), "index", -1) in own]
        shown = set[str]().union(*map(names_of, found))
        wanted = set(filter(None, getattr(BLOCKS[block], column).split(", ")))
        # The start of another block may end a message of text.
        before = {"message"} if column == "responses" else set()
        assert wanted <= shown | {"citation"}, (column, shown)
        assert wanted or not shown - before, (column, shown)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_killed_generator_does_with_a_block_what_the_table_says(block: str) -> None:
    name = case_with(block)
    within, after = set[str](), set[str]()
    for kill in range(3, len(play(name).stored)):
        stored = play(name, kill).stored
        open_blocks: dict[int, str] = {}
        last = ""
        for one in stored[:kill]:
            match event_of(one):
                case events.BlockStart(index, start):
                    last = open_blocks[index] = str(start["type"])
                case events.BlockStop(index):
                    open_blocks.pop(index)
        modes = {one.entry.mode for one in stored if isinstance(one.entry, Attempt) and one.entry.attempt > 1}
        within |= modes if block in open_blocks.values() else set()
        after |= modes if not open_blocks and last == block else set()
    expected_within, expected_after = KILLED[BLOCKS[block].killed]
    assert within <= expected_within
    assert after <= expected_after


@pytest.mark.parametrize("stop_reason", STOPS)
def test_a_format_shows_a_stop_reason_as_the_table_says(stop_reason: str) -> None:
    messages = {name: case.message for name, case in SMALL.items() if case.message is not None}
    name = next(name for name, message in messages.items() if message["stop_reason"] == stop_reason)
    entries = play(name).stored
    shown: dict[str, set[str]] = {}
    for column, dialect in FORMATS.items():
        for stored, chunk in chunks(dialect, entries):
            if not isinstance(stored.entry, End):
                continue
            match chunk:
                case {"choices": [{"finish_reason": str(reason)}, *_]} | {"finishReason": str(reason)}:
                    shown.setdefault(column, set()).add(reason)
                case {"type": "done", "stop_reason": str(reason)}:
                    shown.setdefault(column, set()).add(reason)
                case {"response": {"status": str(status), "incomplete_details": None}}:
                    shown.setdefault(column, set()).add(status)
                case {"response": {"status": str(status), "incomplete_details": {"reason": str(reason)}}}:
                    shown.setdefault(column, set()).add(f"{status}: {reason}")
    assert shown == {column: {getattr(STOPS[stop_reason], column)} for column in FORMATS}
