"""The repetition filter: repeated text is left out if it is certain, and all other text is kept."""

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backends.model_event import from_event
from tailrace.generators.continuation_filters import REPEATED_MIN, RepetitionFilter, find_tail
from tailrace.generators.repeated_answer import RepeatedAnswer
from tailrace.proto import events

STORED = "The sky is blue because short waves are scattered more than long on"
VERSE = "Never let anybody tell you that the sea is calm today."


def filter_text(stored: str, *pieces: str) -> tuple[str, int]:
    """Returns the filtered text, and the number of characters that were left out."""
    repetition, text, left_out = RepetitionFilter(stored), "", 0
    for piece in pieces:
        more, repeated = repetition.filter(piece)
        text, left_out = text + more, left_out + len(repeated)
    return text + repetition.flush(), left_out


def cut(text: str, size: int) -> Sequence[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.rule("R70")
@pytest.mark.parametrize("size", [1, 2, 7, 30, 1000])
@pytest.mark.parametrize("words", [6, 7, 13])
def test_the_repeated_end_is_left_out(words: int, size: int) -> None:
    """For any length of the repetition and any pieces; half a word is continued in the middle."""
    again = " ".join(STORED.split()[-words:])
    assert filter_text(STORED, *cut(again + "es, and so we see it.", size)) == ("es, and so we see it.", len(again))


def test_a_call_that_only_repeats_adds_nothing() -> None:
    """The answer was complete but for its stop: the model repeats its last sentence and stops."""
    assert filter_text(STORED, "waves are scattered more ", "than long on") == ("", 34 + 3)


@pytest.mark.rule("R70")
@pytest.mark.parametrize(
    ("stored", "text"),
    [
        pytest.param(STORED, "es, and so we see it.", id="it goes on"),
        pytest.param(STORED, "more than long ones", id="too short to be sure"),
        pytest.param(STORED, "attered more than long on", id="it begins within a word"),
        pytest.param(STORED, "waves are scattered more than long waves", id="it says something else"),
        pytest.param(STORED, "waves are scattered more than ", id="it stops before the end"),
        pytest.param(STORED, "The waves are scattered more than long ones", id="it does not begin with it"),
        pytest.param(STORED, "Waves are scattered more than long ones", id="in other letters"),
        pytest.param(f"{VERSE}\n", f"{VERSE}\nNever.", id="a line that occurs twice"),
        pytest.param(f"{VERSE} {VERSE} {VERSE}", f"{VERSE} {VERSE}", id="a refrain"),
        pytest.param("la " * 40, "la " * 40, id="what repeats itself anyhow"),
        pytest.param("| 0 | 0 | 0 |\n| 0 | 0 | 0 |\n| 0 |", "| 0 | 0 |\n", id="a row of a table"),
        pytest.param("    }\n" * 9 + "    ", "    }\n" * 9, id="closing braces"),
        pytest.param("", "The sky", id="nothing is stored"),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_uncertain_repetitions_are_kept(stored: str, text: str, size: int) -> None:
    """Nothing is left out by guess."""
    assert filter_text(stored, *cut(text, size)) == (text, 0)


def test_text_is_held_only_while_it_may_be_a_repetition() -> None:
    repetition = RepetitionFilter(STORED)
    assert repetition.filter("Waves") == ("Waves", "")
    assert repetition.filter(" are") == (" are", "")
    held = RepetitionFilter(STORED)
    assert held.filter("waves are") == ("", "")
    assert held.filter(" small") == ("waves are small", "")
    assert held.filter(" short waves") == (" short waves", "")


TEXTS = st.text(alphabet="ab \n", max_size=80) | st.text(alphabet="abcdefghij ", min_size=20, max_size=80)


@pytest.mark.rule("R70")
@given(TEXTS, TEXTS, st.integers(0, 80), st.integers(1, 9))
def test_only_the_stored_end_is_left_out(stored: str, new: str, again: int, size: int) -> None:
    """For any two texts in any pieces, at least REPEATED_MIN characters."""
    text = stored[len(stored) - min(again, len(stored)) :] + new
    rest, left_out = filter_text(stored, *cut(text, size))
    assert text[left_out:] == rest
    assert (rest, left_out) == filter_text(stored, text)
    assert stored.endswith(text[:left_out])
    if left_out:
        assert len("".join(text[:left_out].split())) >= REPEATED_MIN
        assert stored.count(find_tail(stored)) == 1


@pytest.mark.rule("R70")
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("stored", "call", "passed", "left_out"),
    [
        ("abc", "abc", "abc", ""),
        ("abc", "abcd", "abcd", ""),
        ("abc", "abx", "abx", ""),
        ("abc", " def", " def", ""),
        ("", "abc", "abc", ""),
        (STORED, STORED + "es.", "es.", STORED),
        (STORED, STORED, "", STORED),
        (STORED, STORED[:40] + ", I think", STORED[:40] + ", I think", ""),
        (VERSE + "\n", VERSE + "\nAgain.", VERSE + "\nAgain.", ""),
    ],
)
def test_an_answer_that_begins_anew_is_left_out_once_it_is_certain(
    stored: str, call: str, passed: str, left_out: str, size: int
) -> None:
    """A short text, or one that ends a line, may follow itself."""
    assert begin_anew([stored], [call], size) == ([passed] if passed else [], left_out)


A, B, C = "The sky is blue, says one page [1].", " Short waves are scattered, says another [2].", " So it is"


@pytest.mark.rule("R70")
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("stored", "call", "passed", "left_out"),
    [
        pytest.param([A, B, C], [A, B, C + " blue."], [" blue."], A + B + C, id="all blocks, and more text"),
        pytest.param([A, B, C], [A, B, C, " Blue."], [" Blue."], A + B + C, id="all blocks, and one more"),
        pytest.param([A, B, C], [B, C + " blue."], [" blue."], B + C, id="the last two blocks"),
        pytest.param([A, B, C], [A, B], [A, B], "", id="not all of them"),
        pytest.param([A, B, C], [A, C], [A, C], "", id="in another order"),
        pytest.param([A, B, C], [A + B + C], [A + B + C], "", id="the same text in one block"),
        pytest.param(["abc", "def"], ["abc", "defg"], ["abc", "defg"], "", id="too short to be sure"),
        pytest.param(["Rivers. " * 9], ["Rivers. " * 9], ["Rivers. " * 9], "", id="what repeats itself anyhow"),
        pytest.param([A, A], [A, A], [A, A], "", id="a refrain"),
        pytest.param([A, B + "\n"], [A, B + "\nAgain"], [A, B + "\nAgain"], "", id="the end of a line"),
    ],
)
def test_blocks_that_begin_anew_are_left_out_once_it_is_certain(
    stored: list[str], call: list[str], passed: list[str], left_out: str, size: int
) -> None:
    """An answer with citations has a text block for each cited sentence."""
    assert begin_anew(stored, call, size) == (passed, left_out)


@pytest.mark.rule("R70")
@pytest.mark.parametrize("stored", [["abc"], ["abc", "def"], [A, B, C]])
def test_of_a_call_that_breaks_off_where_the_stored_text_does_nothing_is_passed_on(stored: list[str]) -> None:
    """A model that breaks at one place each time adds nothing: the attempt does not count as progress."""
    answer = RepeatedAnswer(stored, is_open=True)
    sent = list(chain.from_iterable(text_events(number, text, 2) for number, text in enumerate(stored)))
    assert [answer.filter(from_event(event)) for event in sent] == [([], "")] * len(sent)


def text_events(index: int, text: str, size: int) -> list[events.Event]:
    """Returns the events of a text block, with deltas of `size` characters. It has a citation before its stop."""
    deltas = [events.BlockDelta(index, events.TextDelta(piece)) for piece in cut(text, size)]
    citation = events.BlockDelta(index, events.CitationsDelta({"type": "page_location"}))
    return [events.BlockStart(index, {"type": "text", "text": ""}), *deltas, citation, events.BlockStop(index)]


def begin_anew(stored: list[str], call: list[str], size: int, *, is_open: bool = False) -> tuple[list[str], str]:
    """Returns the texts of the blocks that are passed on of a complete call, and the text that is left out."""
    answer, left_out, texts = RepeatedAnswer(stored, is_open=is_open), "", dict[int, str]()
    sent = chain.from_iterable(text_events(number, text, size) for number, text in enumerate(call))
    for event in [*sent, events.MessageDelta(events.StopReason("end_turn"))]:
        passed, repeated = answer.filter(from_event(event))
        left_out += repeated
        for one in passed:
            match one.event:
                case events.BlockStart(index):
                    texts[index] = ""
                case events.BlockDelta(index, events.TextDelta(piece)):
                    texts[index] += piece
                case _:
                    pass
    return list(texts.values()), left_out


BLOCK_TEXTS = st.lists(st.sampled_from(["a", "ab", A, B, C, A + "x", B + "\n", " "]), max_size=4)


@pytest.mark.rule("R70")
@given(stored=BLOCK_TEXTS, call=BLOCK_TEXTS, size=st.integers(1, 40), is_open=st.booleans())
def test_no_text_of_a_call_is_lost_or_changed(stored: list[str], call: list[str], size: int, is_open: bool) -> None:
    """Left out is only what the stored blocks end with, block by block, and in pieces of any size the same."""
    passed, left_out = begin_anew(stored, call, size, is_open=is_open)
    assert left_out + "".join(passed) == "".join(call)
    assert (passed, left_out) == begin_anew(stored, call, 1000, is_open=is_open)
    if left_out:
        assert any(left_out == "".join(stored[start:]) for start in range(len(stored)))
        assert len("".join(left_out.split())) >= REPEATED_MIN
    elif not is_open:
        assert passed == call
