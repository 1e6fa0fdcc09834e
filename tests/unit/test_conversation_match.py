"""Matching of a full history with its session: the turn is added after the last common turn."""

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


def build_position(parent: str | None, before: list[Message], new: list[Message]) -> Position:
    return Position(
        session=SESSION,
        parent=TurnId(parent) if parent else None,
        before=before,
        new=new,
        system="Be brief.",
        model="claude-haiku-5-5",
    )


EDITED, OTHER, SHORTENED = Message("user", "another"), Message("user", "other"), Message("assistant", "a")
# The history that a client sends, the turn that the new turn follows, and how many of its messages the session has.
HISTORIES: dict[str, tuple[list[Message], str | None, int]] = {
    "full": ([*HELD, NEW], "t2", 4),
    "regenerated answer": (HELD[:3], "t1", 2),
    "edited question": ([*HELD[:2], EDITED], "t1", 2),
    "answer that the client has changed": ([*HELD[:3], SHORTENED, NEW], "t1", 2),
    "another conversation": ([OTHER, HELD[1], NEW], None, 0),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_a_history_follows_the_last_common_turn(case: str) -> None:
    """Messages that the session holds are not stored again. The first one that differs begins a branch."""
    messages, parent, count = HISTORIES[case]
    assert match_history(CONTEXT, messages) == build_position(parent, messages[:count], messages[count:])


def test_a_new_message_follows_the_branch() -> None:
    assert position_after(CONTEXT, [NEW]) == build_position("t2", HELD, [NEW])


def test_a_long_text_is_the_same_whether_it_was_lifted_or_not() -> None:
    """The session holds a reference where the client tells all of it, alone or in a block; a changed one is another."""
    long, other = "x" * 70_000, "y" * 70_000
    held, _ = lift(request(messages=[Message("user", long), *HELD[1:]]))
    context = msgspec.structs.replace(CONTEXT, messages=held.messages)
    for content in (long, [{"type": "text", "text": long}]):
        assert match_history(context, [Message("user", content), *HELD[1:], NEW]) == build_position(
            "t2", held.messages, [NEW]
        )
    changed = [Message("user", other), *HELD[1:], NEW]
    assert match_history(context, changed) == build_position(None, [], changed)


@pytest.mark.parametrize("size", [10, 70_000], ids=["in the entry", "lifted"])
def test_another_image_with_the_same_text_is_another_question(size: int) -> None:
    """Otherwise the model would get the image that the client has replaced."""

    def picture_message(data: str) -> list[Message]:
        block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        return [Message("user", [block, {"type": "text", "text": "what is this?"}]), *HELD[1:]]

    held, _ = lift(request(messages=picture_message("x" * size)))
    context = msgspec.structs.replace(CONTEXT, messages=held.messages)
    messages = [*picture_message("x" * size), NEW]
    assert match_history(context, messages) == build_position("t2", held.messages, [NEW])
    changed = [*picture_message("y" * size), NEW]
    assert match_history(context, changed) == build_position(None, [], changed)


def test_the_sessions_messages_replace_the_clients() -> None:
    """Clients leave out signatures and citations, which the API requires."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    held = [HELD[0], Message("assistant", [thought, {"type": "text", "text": "a1"}])]
    context = Context(SESSION, TurnId("t1"), held, turns=TURNS[:1])
    assert match_history(context, [*HELD[:2], NEW]).before == held


def test_a_verbatim_history_is_sent_to_the_model_unchanged() -> None:
    """Its cache_control marks move with each turn, and the session's system prompt is not added."""
    marked = {"type": "text", "text": "q1", "cache_control": {"type": "ephemeral"}}
    context = Context(SESSION, TurnId("t1"), [Message("user", [marked]), HELD[1]], system="Be brief.", turns=TURNS[:1])
    messages = [*HELD[:2], NEW]
    assert verbatim_position(match_history(context, messages), messages) == Position(
        session=SESSION, parent=TurnId("t1"), before=HELD[:2], new=[NEW]
    )


def test_messages_are_compared_by_their_content() -> None:
    """Text as a string equals text in a block; tool calls and images count."""
    text = {"type": "text", "text": "q1"}
    call = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    assert identify(Message("user", [text])) == identify(Message("user", " q1\n"))
    assert identify(Message("assistant", [text, call])) != identify(Message("assistant", "q1"))
    assert identify(Message("user", [text, {"type": "image", "source": {}}])) != identify(Message("user", "q1"))
    assert identify(Message("user", "q1")) != identify(Message("assistant", "q1"))


MESSAGES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.sampled_from(["a", "b", ""])))


@given(MESSAGES, MESSAGES)
def test_the_common_prefix_is_the_longest(held: list[Message], messages: list[Message]) -> None:
    """The first messages after it differ, if both have one."""
    count = common_prefix(held, messages)
    assert held[:count] == messages[:count]
    assert min(len(held), len(messages)) == count or held[count] != messages[count]


@given(MESSAGES, MESSAGES, st.data())
def test_the_position_of_a_turn_does_not_change_its_conversation(
    held: list[Message], messages: list[Message], data: st.DataObject
) -> None:
    """The model gets the client's messages, wherever the turn is added."""
    ends = sorted(data.draw(st.sets(st.integers(1, len(held)))) if held else [])
    context = Context(SESSION, None, held, turns=[(TurnId(f"t{end}"), end) for end in ends])
    place = match_history(context, messages)
    assert [*place.before, *place.new] == messages
    assert place.new or not messages
    word_for_word = verbatim_position(place, messages)
    assert [*word_for_word.before, *word_for_word.new] == messages
    assert len(word_for_word.new) == len(place.new)
