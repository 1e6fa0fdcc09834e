"""Matching of a full history with its session: the turn is added after the last common turn."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.turns.conversation_match import (
    Position,
    append_to_history,
    identify,
    match_history,
    position_after,
    verbatim_position,
)
from tailrace.proto.blobs import lift
from tailrace.proto.entries import Message, StoredThinking
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Context
from tailrace.proto.thinking_prefix import thinking_id
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


def test_the_history_is_prepared_once_for_the_whole_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each turn that matches, a session of 2,000 turns would stop all streams for ten seconds."""
    prepared = []

    def prepare(_: list[Message], history: list[Message]) -> list[Message]:
        prepared.append(len(history))
        return history

    monkeypatch.setattr("tailrace.gateway.turns.conversation_match.accepted_before", prepare)
    assert match_history(CONTEXT, [*HELD, NEW]).parent == "t2"
    assert prepared == [4]


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


def test_a_client_may_keep_only_the_calls_of_an_answer() -> None:
    """The session's answer has the thinking, without which the API may refuse the result."""
    text, call = {"type": "text", "text": "a1"}, {"type": "tool_use", "id": "call", "name": "look", "input": {}}
    held = [HELD[0], Message("assistant", [text, call])]
    context = Context(SESSION, TurnId("t1"), held, turns=TURNS[:1])
    result = Message("user", [{"type": "tool_result", "tool_use_id": "call", "content": "1"}])
    sent = [HELD[0], Message("assistant", [call]), result]
    position = match_history(context, sent)
    assert (position.parent, position.before, position.new) == ("t1", held, [result])
    other = Message("assistant", [call | {"id": "other"}])
    assert match_history(context, [HELD[0], other, result]).parent is None


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


@pytest.mark.rule("R140")
def test_a_verbatim_history_lacks_only_thinking_that_no_prompt_of_the_client_has() -> None:
    """Thinking that follows an addition of a generator. All other thinking is sent as the client has it."""
    own, extended, unsent = (StoredThinking(thinking_id(thought(name)), prefix) for name, prefix in THOUGHTS)
    context = msgspec.structs.replace(CONTEXT, thinking=[own, extended, unsent])
    answers = [Message("assistant", [thought(name), {"type": "text", "text": text}]) for name, text in TOLD]
    messages = [HELD[0], answers[0], HELD[2], answers[1], NEW]
    position = verbatim_position(match_history(context, messages), messages)
    assert (position.before, position.new, position.thinking) == (messages[:4], [NEW], [extended])


THOUGHTS = [("own", "a"), ("extended", ""), ("unsent", "")]
TOLD = [("own", "a1"), ("extended", "a2")]


def thought(name: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": "", "signature": name}


@pytest.mark.parametrize(("new", "container"), [(NEW, None), ("result", "container_2")])
def test_a_result_is_sent_with_the_container_of_the_turn_before_it(new: Message | str, container: str | None) -> None:
    """Not with that of a later turn, if it begins a branch."""
    containers = {TurnId("t1"): "container_1", TurnId("t2"): "container_2"}
    context = msgspec.structs.replace(CONTEXT, containers=containers)
    message = RESULT if isinstance(new, str) else new
    assert position_after(context, [message]).container == container
    earlier = msgspec.structs.replace(context, parent=TurnId("t1"), messages=HELD[:2])
    assert position_after(earlier, [message]).container == (container and "container_1")
    assert position_after(msgspec.structs.replace(context, parent=None), [message]).container is None


def test_messages_are_compared_by_their_content() -> None:
    """Text as a string equals text in a block; tool calls and images count."""
    text = {"type": "text", "text": "q1"}
    call = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
    assert identify(Message("user", [text])) == identify(Message("user", " q1\n"))
    assert identify(Message("assistant", [text, call])) != identify(Message("assistant", "q1"))
    assert identify(Message("user", [text, {"type": "image", "source": {}}])) != identify(Message("user", "q1"))
    assert identify(Message("user", "q1")) != identify(Message("assistant", "q1"))


def test_a_question_beside_results_is_the_same_as_both_messages() -> None:
    """Anthropic's protocol has a question beside the results of tools; others have it as a message of its own."""
    calls = [CALL, {**CALL, "id": "c2"}]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "1"} for call in calls]
    question = {"type": "text", "text": "And now?"}
    held = [HELD[0], Message("assistant", calls), Message("user", [*results[::-1], question]), HELD[3]]
    context = msgspec.structs.replace(CONTEXT, messages=held)
    both = [Message("user", results), Message("user", "And now?\n")]
    for sent in (both, [Message("user", [*results, question])]):
        conversation = [*held[:2], *sent, HELD[3], NEW]
        assert match_history(context, conversation) == build_position("t2", held, [NEW])
    for other in ([both[0], OTHER], both[:1], both[1:], [both[0], Message("assistant", "And now?")]):
        assert match_history(context, [*held[:2], *other, HELD[3], NEW]).parent == "t1"


CALL: dict[str, Any] = {"type": "tool_use", "id": "c1", "name": "look", "input": {}}
RESULT = Message("user", [{"type": "tool_result", "tool_use_id": "c1", "content": "blue"}])
CALLED: list[dict[str, Any]] = [{"type": "text", "text": "a1"}, CALL]
Q1, Q2, A1 = HELD[0], HELD[2], HELD[1]
SILENT = Message("assistant", [{"type": "text", "text": ""}])
LOW = Message("system", [], {"effort": "low"})
# The messages of each stored turn, the conversation that the client sends, the number of the turn that the new one
# follows, and what the model gets before the new messages.
TURNS_WITHOUT_TEXT: dict[str, tuple[list[list[Message]], list[Message], int, list[Message]]] = {
    "no answer": ([[Q1]], [Q1, NEW], 1, [Q1]),
    "no answer, and its question again": ([[Q1, A1], [Q2]], [Q1, A1, Q2], 1, [Q1, A1]),
    "no answer, sent as an empty message": ([[Q1]], [Q1, SILENT, NEW], 1, [Q1]),
    "no answer twice": ([[Q1], [Q2]], [Q1, SILENT, Q2, NEW], 2, [Q1, Q2]),
    "no answer, then one": ([[Q1], [Q2, A1]], [Q1, Q2, A1, NEW], 2, [Q1, Q2, A1]),
    "no answer, and its question is left out": ([[Q1, A1], [Q2]], [Q1, A1, NEW], 1, [Q1, A1]),
    "a call that the client leaves out": ([[Q1, Message("assistant", CALLED)]], [Q1, A1, NEW], 1, [Q1, A1]),
    "only a call": ([[Q1, Message("assistant", [CALL])]], [Q1, NEW], 1, [Q1]),
    "a call and its result": (
        [[Q1, Message("assistant", CALLED)]],
        [Q1, Message("assistant", CALLED), RESULT],
        1,
        [Q1, Message("assistant", CALLED)],
    ),
    "an effort that the client leaves out": ([[Q1, LOW, A1]], [Q1, A1, NEW], 1, [Q1, LOW, A1]),
    "an effort that the client sends": ([[Q1, LOW, A1]], [Q1, LOW, A1, NEW], 1, [Q1, LOW, A1]),
    "instructions that the client leaves out": ([[Q1, Message("system", "b"), A1]], [Q1, A1, NEW], 0, []),
    "a call that the session has not": ([[Q1, A1]], [Q1, Message("assistant", CALLED), RESULT], 0, []),
}


@pytest.mark.parametrize("case", TURNS_WITHOUT_TEXT)
def test_a_history_follows_a_turn_without_text(case: str) -> None:
    """Otherwise the session would have its question twice."""
    stored, sent, follows, before = TURNS_WITHOUT_TEXT[case]
    ends = [(TurnId(f"t{number}"), sum(map(len, stored[:number]))) for number in range(1, len(stored) + 1)]
    context = Context(SESSION, ends[-1][0], [message for turn in stored for message in turn], turns=ends)
    position = match_history(context, sent)
    assert (position.parent, position.before) == (f"t{follows}" if follows else None, before)
    assert position.new == (sent[-1:] if follows else sent)


Q4 = Message("user", "q4")
# The messages that are added to a session, and the number of those that the session has.
ADDED: dict[str, tuple[list[Message], int]] = {
    "the question without an answer": ([NEW, Q4], 1),
    "both questions without an answer": ([Q2, NEW, Q4], 2),
    "only the question again": ([NEW], 0),
    "another message": ([Q4, NEW], 0),
    "an answered question": ([Q1, Q4], 0),
}


@pytest.mark.parametrize("case", ADDED)
def test_a_question_without_an_answer_is_added_once(case: str) -> None:
    """A client of OpenAI's protocols keeps it, and sends it again before the next message."""
    added, count = ADDED[case]
    turns = [(TurnId("t1"), 2), (TurnId("t2"), 3), (TurnId("t3"), 4)]
    context = Context(SESSION, TurnId("t3"), [Q1, A1, Q2, NEW], turns=turns)
    assert append_to_history(context, added) == position_after(context, added[count:])


def test_a_question_whose_answer_is_only_a_call_is_added_once() -> None:
    """Clients leave out a call that gets no result."""
    call = Message("assistant", [{"type": "tool_use", "id": "call", "name": "look", "input": {}}])
    context = Context(SESSION, TurnId("t2"), [Q1, A1, Q2, call], turns=[(TurnId("t1"), 2), (TurnId("t2"), 4)])
    assert append_to_history(context, [Q2, Q4]) == position_after(context, [Q4])


@pytest.mark.rule("R112")
def test_a_history_follows_a_refused_turn_without_its_question() -> None:
    """The client sends the question again each time, and the model would refuse it each time."""
    context = Context(SESSION, TurnId("t2"), HELD[:2], turns=[TURNS[0], (TurnId("t2"), 2)])
    context = msgspec.structs.replace(context, left_out={TurnId("t2"): [Q2]})
    position = match_history(context, [*HELD[:3], NEW])
    assert (position.parent, position.before, position.new) == ("t2", HELD[:2], [NEW])


MESSAGES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), st.sampled_from(["a", "b", ""])))


def without_empty_answers(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message != Message("assistant", "")]


@given(MESSAGES, MESSAGES, st.data())
def test_the_position_of_a_turn_does_not_change_its_conversation(
    held: list[Message], messages: list[Message], data: st.DataObject
) -> None:
    """The model gets the client's messages, wherever the turn is added, without empty answers."""
    held = without_empty_answers(held)
    ends = sorted(data.draw(st.sets(st.integers(1, len(held)))) if held else [])
    context = Context(SESSION, None, held, turns=[(TurnId(f"t{end}"), end) for end in ends])
    place = match_history(context, messages)
    assert without_empty_answers([*place.before, *place.new]) == without_empty_answers(messages)
    assert place.new or not messages
    word_for_word = verbatim_position(place, messages)
    assert [*word_for_word.before, *word_for_word.new] == messages
    assert len(word_for_word.new) == len(place.new)
