"""Answers of the simulated Claude, and their continuations."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.deploy.simulated_claude.answer import (
    Block,
    Part,
    build_answer,
    cut_at_stop_sequence,
    find_remainder,
    limit_tokens,
)
from tailrace.deploy.simulated_claude.conversation import INTERRUPTED, Conversation, read
from tailrace.deploy.simulated_claude.directive import Directive
from tailrace.deploy.simulated_claude.directive import read as read_directive
from tailrace.deploy.simulated_claude.request import Message

QUESTION = "How do I keep a *log* that survives its broker?"


def conversation(*messages: tuple[str, Any]) -> Conversation:
    body = msgspec.json.encode([{"role": role, "content": content} for role, content in messages])
    return read(msgspec.json.decode(body, type=list[Message]))


def text(question: str) -> str:
    part = build_answer(conversation(("user", question)), read_directive(question))
    return next(block.content for block in part.blocks if block.kind == "text")


def test_a_count_has_each_number_once() -> None:
    assert text("Count to twelve.") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"


@pytest.mark.parametrize(
    ("sequences", "expected", "sequence"),
    [
        (["w000002"], "w000000 w000001 ", "w000002"),
        (["0002", " w000001"], "w000000", " w000001"),
        (["w0"], "", "w0"),
        (["nowhere"], "w000000 w000001 w000002", None),
        ([], "w000000 w000001 w000002", None),
    ],
)
def test_an_answer_ends_before_a_stop_sequence(sequences: list[str], expected: str, sequence: str | None) -> None:
    """At any position in a delta; nothing is sent after it, not even a tool call."""
    directed = read_directive("#sim words=3 tool=look")
    part = cut_at_stop_sequence(build_answer(conversation(("user", "x")), directed), sequences)
    text = "".join(block.content for block in part.blocks if block.kind == "text")
    assert (text, part.stop_sequence) == (expected, sequence)
    assert any(block.kind == "tool_use" for block in part.blocks) == (sequence is None)


def test_a_continuation_ends_at_the_same_stop_sequence() -> None:
    part = cut_at_stop_sequence(
        build_answer(conversation(("user", "x")), read_directive("#sim words=3 thinking=2")), ["w000002"]
    )
    assert find_remainder(part, Conversation((), "w000000")) == Part(
        (Block("text", (" w000001", " ")),), 2 + 1, stop_sequence="w000002"
    )


@given(st.text())
def test_prose_is_markdown_about_any_question(question: str) -> None:
    """A heading, a list and code; the same question gives the same text."""
    answer = text(question)
    assert answer == text(question)
    assert answer.startswith("## ")
    assert "\n- **" in answer
    assert answer.count("```") == 2
    assert 80 <= len(answer.split()) <= 150


def test_prose_has_the_topic_in_its_heading() -> None:
    assert text(f"{QUESTION}\n#sim rate=0").startswith("## How do I keep a log that survives its broker?\n")


def test_a_partial_answer_that_is_no_prefix_has_no_rest() -> None:
    everything = build_answer(conversation(("user", "x")), Directive(words=3))
    assert find_remainder(everything, Conversation((), "w000001")) is None


def test_max_tokens_cuts_the_answer_short() -> None:
    """A word is a token: three words are three tokens, and three tokens are enough for them."""
    everything = build_answer(conversation(("user", "x")), Directive(words=3, thinking=2, tool="look"))
    short = limit_tokens(everything, 4)
    assert ([b.content for b in short.blocks], short.is_cut_short) == (["t000000 t000001", "w000000 w000001"], True)
    assert limit_tokens(everything, everything.deltas) == everything


REMINDER = {"type": "text", "text": "<system-reminder>\nToday is Friday.\n</system-reminder>\n"}


@pytest.mark.parametrize(
    "messages",
    [
        [("user", [REMINDER, {"type": "text", "text": QUESTION}])],
        [("user", [{"type": "text", "text": QUESTION}, REMINDER])],
        [("user", QUESTION), ("user", [REMINDER])],
        [
            ("user", QUESTION),
            ("assistant", [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]),
            ("user", [{"type": "tool_result", "tool_use_id": "t", "content": "42"}, REMINDER]),
        ],
    ],
)
def test_a_reminder_of_claude_code_is_not_the_question(messages: list[tuple[str, Any]]) -> None:
    assert conversation(*messages).question == QUESTION


def test_a_question_about_reminders_is_a_question() -> None:
    """Only blocks that are nothing but a reminder are left out."""
    question = f"What is a {REMINDER['text']}?"
    assert conversation(("user", [{"type": "text", "text": question}])).question == question


def test_a_line_ends_with_its_text_block() -> None:
    """A `#sim` line ends with it: pydantic-ai and Google's ADK send more text in a block of its own."""
    blocks = [{"type": "text", "text": "#sim words=3"}, {"type": "text", "text": "rate=x"}]
    assert read_directive(conversation(("user", blocks)).question).words == 3


PARTIAL = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "w0000"}]


@pytest.mark.parametrize(
    "tail",
    [
        [("assistant", "w0000")],
        [("assistant", PARTIAL)],
        [("assistant", PARTIAL), ("user", f"{INTERRUPTED} “w0000”. Continue.")],
        [("assistant", "w0000"), ("user", [{"type": "text", "text": f"{INTERRUPTED} “w0000”. Go on."}])],
    ],
)
def test_a_continuation_has_the_key_of_its_turn_and_a_partial_answer(tail: list[tuple[str, Any]]) -> None:
    fresh = conversation(("user", "one"), ("assistant", "two"), ("user", "three"))
    going_on = conversation(("user", "one"), ("assistant", "two"), ("user", "three"), *tail)
    assert (going_on.partial, going_on.key, going_on.question) == ("w0000", fresh.key, "three")


def test_a_question_after_an_answer_is_not_a_continuation() -> None:
    """Only the words of the continuation message make one."""
    talk = conversation(("user", "one"), ("assistant", "two"), ("user", "Why?"))
    assert (talk.partial, talk.question) == ("", "Why?")
