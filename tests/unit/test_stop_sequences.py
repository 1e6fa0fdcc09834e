"""Stop sequences across the seam between a stored answer and the call that continues it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends.model_event import CloseCall, ModelEvent, from_event
from tailrace.generators.continuation import prepare_call
from tailrace.generators.continuation_filters import StopSequenceFilter
from tailrace.generators.plan import Complete, plan
from tailrace.proto import events
from tests.harness.turn_builder import Handwritten, opening_events

ALPHABET = st.text("abX", max_size=8)


@pytest.mark.rule("R75")
@given(
    stored=ALPHABET, pieces=st.lists(ALPHABET, max_size=4), sequences=st.lists(st.text("abX", min_size=1, max_size=4))
)
def test_a_sequence_is_found_exactly_if_it_lies_across_the_seam(
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
        assert passed == ""
    else:
        assert not across
        assert passed + filters.flush() == text


@pytest.mark.rule("R75")
def test_a_stop_sequence_across_a_takeover_ends_the_answer() -> None:
    """The first generator stored "EN"; the text of the second begins with "D"."""
    log = Handwritten()
    log.store_request(options={"stop_sequences": ["END"]})
    log.store_attempt()
    log.store_events(*opening_events())
    log.store_texts("The EN")
    log.store_attempt("continue")
    _, continuation = prepare_call(log.turn, "continue")
    assert continuation is not None
    passed: list[ModelEvent] = []
    sink = continuation.wrap(passed.append)
    for event in opening_events():
        sink(from_event(event))
    with pytest.raises(CloseCall):
        sink(from_event(events.BlockDelta(0, events.TextDelta("D of it"))))
    for one in passed:
        assert not isinstance(one.event, events.UnknownEvent)
        log.store_events(one.event, is_hidden=one.is_hidden)
    assert log.turn.text == "The EN"
    assert (log.turn.stop.stop_reason, log.turn.stop.stop_sequence) == ("stop_sequence", "END")
    assert plan(log.turn, 5) == Complete()
