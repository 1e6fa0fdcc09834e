"""Stop sequences that begin in a stored answer and end in the call that continues it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends.model_event import CloseCall, ModelEvent, from_event
from tailrace.generators.continuation import prepare_call
from tailrace.generators.continuation_filters import StopSequenceFilter
from tailrace.generators.plan import Complete, plan
from tailrace.proto import events
from tests.harness.turn_builder import opening_events, started_turn

ALPHABET = st.text("abX", max_size=8)


@pytest.mark.rule("R75")
@given(
    stored=ALPHABET, pieces=st.lists(ALPHABET, max_size=4), sequences=st.lists(st.text("abX", min_size=1, max_size=4))
)
def test_a_sequence_is_found_exactly_if_it_begins_in_the_stored_text(
    stored: str, pieces: list[str], sequences: list[str]
) -> None:
    """All other text is passed on, in order, and nothing is passed on twice."""
    filters = StopSequenceFilter(stored, sequences)
    passed = ""
    for piece in pieces:
        passed += filters.filter(piece)
        if filters.found is not None:
            break
    text = "".join(pieces)
    across = {
        sequence
        for sequence in sequences
        for start in range(len(stored))
        if (stored[start:] + text).startswith(sequence) and len(sequence) > len(stored) - start
    }
    if filters.found is not None:
        assert filters.found in across
        assert passed == filters.flush() == ""
    else:
        assert not across
        assert passed + filters.flush() == text


def text_delta(text: str) -> events.BlockDelta:
    return events.BlockDelta(0, events.TextDelta(text))


END = events.MessageDelta(events.StopReason("end_turn"))
CITATION = events.BlockDelta(0, events.CitationsDelta({"type": "char_location"}))
# Text that the filter of repetitions holds back: it also occurs before the end of the stored text.
HEADINGS = "Title\n## One\nSome text that is longer than what is compared.\n#"


@pytest.mark.rule("R75")
@pytest.mark.parametrize(
    ("sequence", "stored", "answer"),
    [
        # The first generator stored "EN"; the text of the second begins with "D".
        ("END", "The EN", [text_delta("D of it")]),
        # The text that completes the sequence is held back until the next event.
        ("###", HEADINGS, [text_delta("##"), events.BlockStop(0)]),
        ("###", HEADINGS, [text_delta("##"), CITATION]),
        # It is also the beginning of the block: the call may begin the block anew.
        ("###", HEADINGS[6:], [text_delta("##"), CITATION, events.BlockStop(0), END]),
    ],
)
def test_a_stop_sequence_across_a_takeover_ends_the_answer(
    sequence: str, stored: str, answer: list[events.Event]
) -> None:
    """Nothing is stored after the end of the message."""
    log = started_turn(stored, options={"stop_sequences": [sequence]})
    log.store_attempt("continue")
    _, continuation = prepare_call(log.turn, "continue")
    assert continuation is not None
    passed: list[ModelEvent] = []
    sink = continuation.wrap(passed.append)
    *before, last = [*opening_events(), *answer]
    for event in before:
        sink(from_event(event))
    with pytest.raises(CloseCall):
        sink(from_event(last))
    for one in passed:
        assert not isinstance(one.event, events.UnknownEvent)
        log.store_events(one.event, is_hidden=one.is_hidden)
    assert [one.kind for one in passed] == ["message_start", "content_block_stop", "message_delta"]
    assert log.turn.text == stored
    assert (log.turn.stop.stop_reason, log.turn.stop.stop_sequence) == ("stop_sequence", sequence)
    assert plan(log.turn, 5) == Complete()
