"""Each case reaches a reader as the same message after the generator was killed, and the reader cut, at each event."""

import pytest

from tailrace.proto.entries import Attempt, StoredEntry
from tailrace.protocols.anthropic.stream import ANTHROPIC
from tests.conformance.case import Case, read_cases
from tests.conformance.differences import after_kill, as_json, comparable
from tests.conformance.played import Play
from tests.conformance.sdk import accumulate
from tests.schedules.schedule import KEY

# Entries of more than 1 MB are blobs, which the simulator has no store for; other cases have each of their types.
NAMES = [name for name, case in read_cases().items() if not case.repeat]
READABLE = [name for name in NAMES if read_cases()[name].message is not None]


def render(entries: list[StoredEntry]) -> bytes:
    """Returns the stream that a client has read which has followed every break: the events after the last one."""
    state, found = ANTHROPIC.start(KEY), b""
    for stored in entries:
        frame, state = ANTHROPIC.render(state, stored)
        found = b"" if frame.is_break else found + frame.data
    return found


def play(case: Case, **given: tuple[int, ...]) -> Play:
    played = Play(case, **given)
    played.run()
    return played


@pytest.mark.parametrize("name", READABLE)
def test_a_reader_that_is_cut_at_each_event_has_the_message_of_the_sdk(name: str) -> None:
    case = read_cases()[name]
    entries = len(play(case).stored)
    for cut in range(1, entries):
        played = play(case, cuts=(cut,))
        assert comparable(accumulate(render(played.received))) == comparable(case.accumulated), f"after {cut} entries"


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_that_is_killed_at_each_event_completes_the_message(name: str) -> None:
    case = read_cases()[name]
    whole = play(case)
    wanted = after_kill(whole.content)
    if not case.raw:
        assert wanted == after_kill(as_json(case.whole).get("content", []))
    for kill in range(2, len(whole.stored)):
        played = play(case, kills=(kill,))
        turn = played.turn
        assert (turn.outcome, turn.stop) == ("completed", whole.turn.stop), f"killed with append {kill}"
        assert after_kill(played.content) == wanted, f"killed with append {kill}: {modes(played)}"
        if case.message is not None:
            # A reader has the same live.
            live = accumulate(render(played.received))
            assert after_kill(live["content"]) == after_kill(case.accumulated["content"]), f"live, killed with {kill}"


def modes(played: Play) -> list[str]:
    return [one.entry.mode for one in played.stored if isinstance(one.entry, Attempt)]
