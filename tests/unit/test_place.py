"""Where a conversation that a client tells from its beginning goes on in the session: at its last turn in common."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.turns.conversation_match import (
    Position,
    common_prefix,
    identify,
    match_history,
    position_after,
    verbatim_position,
)
from tailrace.proto.blobs import lift
from tailrace.proto.entries import Message
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Context
from tests.harness.turn_builder import request

SESSION = SessionId("session-1")
HELD = [Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "a2")]
TURNS = [(TurnId("t1"), 2), (TurnId("t2"), 4)]
CONTEXT = Context(SESSION, TurnId("t2"), HELD, system="Be brief.", model="claude-haiku-5-5", turns=TURNS)
NEW = Message("user", "q3")


def at(parent: str | None, before: list[Message], new: list[Message]) -> Position:
    return Position(
        session=SESSION,
        parent=TurnId(parent) if parent else None,
        before=before,
        new=new,
        system="Be brief.",
        model="claude-haiku-5-5",
    )


def test_what_is_said_next_follows_the_branch() -> None:
    """Only what is new was told: all that the session holds is before it."""
    assert position_after(CONTEXT, [NEW]) == at("t2", HELD, [NEW])


def test_a_conversation_told_whole_follows_its_last_turn() -> None:
    """What the session holds is not stored a second time."""
    assert match_history(CONTEXT, [*HELD, NEW]) == at("t2", HELD, [NEW])


def test_a_long_text_is_the_same_whether_it_was_lifted_or_not() -> None:
    """The session holds a reference where the client tells all of it, alone or in a block; a changed one is another."""
    long, other = "x" * 70_000, "y" * 70_000
    held, _ = lift(request(messages=[Message("user", long), *HELD[1:]]))
    context = msgspec.structs.replace(CONTEXT, messages=held.messages)
    for content in (long, [{"type": "text", "text": long}]):
        assert match_history(context, [Message("user", content), *HELD[1:], NEW]) == at("t2", held.messages, [NEW])
    changed = [Message("user", other), *HELD[1:], NEW]
    assert match_history(context, changed) == at(None, [], changed)


@pytest.mark.parametrize("size", [10, 70_000], ids=["in the entry", "lifted"])
def test_another_picture_under_the_same_text_is_another_question(size: int) -> None:
    """Or the model would be shown the one that the client has taken back."""

    def showing(data: str) -> list[Message]:
        block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        return [Message("user", [block, {"type": "text", "text": "what is this?"}]), *HELD[1:]]

    held, _ = lift(request(messages=showing("x" * size)))
    context = msgspec.structs.replace(CONTEXT, messages=held.messages)
    told = [*showing("x" * size), NEW]
    assert match_history(context, told) == at("t2", held.messages, [NEW])
    changed = [*showing("y" * size), NEW]
    assert match_history(context, changed) == at(None, [], changed)


def test_an_answer_asked_for_anew_is_a_branch_of_the_turn_before() -> None:
    """`useChat` sends all but the answer that it wants again."""
    assert match_history(CONTEXT, HELD[:3]) == at("t1", HELD[:2], HELD[2:3])


def test_an_edited_question_is_a_branch_of_the_turn_before() -> None:
    edited = Message("user", "another")
    assert match_history(CONTEXT, [*HELD[:2], edited]) == at("t1", HELD[:2], [edited])


def test_another_conversation_begins_a_branch_of_its_own() -> None:
    """Nothing in common: nothing is put before what the client says."""
    told = [Message("user", "other"), Message("assistant", "a1"), NEW]
    assert match_history(CONTEXT, told) == at(None, [], told)


def test_an_answer_that_the_client_has_changed_is_its_own() -> None:
    """It may have cut an answer short; the model is then told what the client tells."""
    told = [*HELD[:3], Message("assistant", "a"), NEW]
    assert match_history(CONTEXT, told) == at("t1", HELD[:2], told[2:])


def test_the_sessions_messages_stand_for_what_is_told() -> None:
    """A client leaves out signatures and citations; the API wants them back."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    held = [HELD[0], Message("assistant", [thought, {"type": "text", "text": "a1"}])]
    context = Context(SESSION, TurnId("t1"), held, turns=TURNS[:1])
    assert match_history(context, [*HELD[:2], NEW]).before == held


def test_a_conversation_told_word_for_word_is_told_so_to_the_model() -> None:
    """Its marks for the prompt cache move on, and a session's system prompt is none that the client has sent."""
    marked = {"type": "text", "text": "q1", "cache_control": {"type": "ephemeral"}}
    context = Context(SESSION, TurnId("t1"), [Message("user", [marked]), HELD[1]], system="Be brief.", turns=TURNS[:1])
    told = [*HELD[:2], NEW]
    assert verbatim_position(match_history(context, told), told) == Position(
        session=SESSION, parent=TurnId("t1"), before=HELD[:2], new=[NEW]
    )


def test_what_a_message_says_is_compared_whatever_its_form() -> None:
    """Text as a string or in blocks, with the calls that it makes or answers; a picture is not a text."""
    text = {"type": "text", "text": "q1"}
    call = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    assert identify(Message("user", [text])) == identify(Message("user", " q1\n"))
    assert identify(Message("assistant", [text, call])) != identify(Message("assistant", "q1"))
    assert identify(Message("user", [text, {"type": "image", "source": {}}])) != identify(Message("user", "q1"))
    assert identify(Message("user", "q1")) != identify(Message("assistant", "q1"))


MESSAGES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.sampled_from(["a", "b", ""])))


@given(MESSAGES, MESSAGES)
def test_what_is_in_common_is_a_beginning_of_both(held: list[Message], told: list[Message]) -> None:
    """And the first message after it, if both have one, is not the same."""
    count = common_prefix(held, told)
    assert held[:count] == told[:count]
    assert min(len(held), len(told)) == count or held[count] != told[count]


@given(MESSAGES, MESSAGES, st.data())
def test_a_conversation_is_never_changed_by_its_place(
    held: list[Message], told: list[Message], data: st.DataObject
) -> None:
    """What the model is told is what the client told, wherever the turn is put."""
    ends = sorted(data.draw(st.sets(st.integers(1, len(held)))) if held else [])
    context = Context(SESSION, None, held, turns=[(TurnId(f"t{end}"), end) for end in ends])
    place = match_history(context, told)
    assert [*place.before, *place.new] == told
    assert place.new or not told
    word_for_word = verbatim_position(place, told)
    assert [*word_for_word.before, *word_for_word.new] == told
    assert len(word_for_word.new) == len(place.new)
