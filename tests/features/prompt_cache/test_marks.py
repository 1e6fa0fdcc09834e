"""Cache marks: where they are set, and when none are set."""

from typing import Any

import msgspec
import pytest

from tailrace.features.prompt_cache.generator import add_cache_marks, cache_prompt, count_marks, limit_cache_marks
from tailrace.generators.backends import Call
from tailrace.generators.continuation import build_call, prepare_call
from tailrace.proto.entries import CacheFor, Message, Mode
from tests.harness.turn_builder import request, started_turn

FIVE: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
HOUR: dict[str, Any] = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
LONG = "word " * 2000
TURNS = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
TOOLS = [{"name": "first"}, {"name": "last"}]


def call(**given: Any) -> Call:
    return Call(model="m", max_tokens=1, **{"messages": TURNS} | given)


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


@pytest.mark.rule("R61")
@pytest.mark.parametrize(("cache", "mark"), [("5m", FIVE), ("1h", HOUR)])
def test_marks_are_set_after_the_stable_parts(cache: CacheFor, mark: dict[str, Any]) -> None:
    """The last tool, the system prompt, the history and the last message: four, the most allowed."""
    made = add_cache_marks(call(system="S", tools=TOOLS), cache, history=2)
    assert made.tools == [{"name": "first"}, {"name": "last", **mark}]
    assert made.system == [text("S", **mark)]
    assert made.messages == [
        Message("user", "a"),
        Message("assistant", [text("b", **mark)]),
        Message("user", [text("c", **mark)]),
    ]


@pytest.mark.rule("R61")
def test_a_system_message_at_the_end_has_no_mark() -> None:
    """The API refuses a mark on one that is cleared later, and does not read an entry with a mark on any."""
    context = Message("system", "d", clear_at="next_user_message")
    made = add_cache_marks(call(messages=[*TURNS, context]), "5m", history=2)
    assert made.messages == [
        Message("user", "a"),
        Message("assistant", [text("b", **FIVE)]),
        Message("user", [text("c", **FIVE)]),
        context,
    ]


def test_a_marked_message_keeps_its_other_field() -> None:
    effort = {"effort": "low"}
    made = add_cache_marks(call(messages=[Message("user", "a", effort)]), "5m", history=0)
    assert made.messages == [Message("user", [text("a", **FIVE)], effort)]


def test_absent_parts_get_no_mark() -> None:
    """A first message without a system prompt has one mark."""
    made = add_cache_marks(call(messages=TURNS[:1], system="", tools=[]), "5m", history=0)
    assert (made.system, made.tools) == ("", [])
    assert made.messages == [Message("user", [text("a", **FIVE)])]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([text("a"), text("b")], [text("a"), text("b", **FIVE)]),
        (
            [text("a"), {"type": "thinking", "thinking": "t"}],
            [text("a", **FIVE), {"type": "thinking", "thinking": "t"}],
        ),
        ([{"type": "image"}, text("")], [{"type": "image", **FIVE}, text("")]),
        ([{"type": "redacted_thinking"}], [{"type": "redacted_thinking"}]),
        ([], []),
        ([{"type": "tool_result", "content": [1]}], [{"type": "tool_result", "content": [1], **FIVE}]),
    ],
)
def test_a_mark_is_set_on_a_block_that_can_have_one(content: list[Any], expected: list[Any]) -> None:
    """The API refuses marks on thinking and on empty text."""
    made = add_cache_marks(call(messages=[Message("user", content)]), "5m", history=0)
    assert made.messages[0].content == expected


@pytest.mark.rule("R61")
@pytest.mark.parametrize(
    "given",
    [
        {"system": [text("S", **HOUR)]},
        {"tools": [{"name": "t", **FIVE}]},
        {"messages": [Message("user", [text("a", **FIVE)])]},
        {"messages": [Message("user", [{"type": "tool_result", "content": [text("a", **FIVE)]}])]},
        {"options": FIVE},
    ],
)
def test_marks_of_the_client_are_kept(given: dict[str, Any]) -> None:
    """None are added: the API refuses more than four."""
    made = call(**given)
    assert add_cache_marks(made, "1h", history=0) is made


def test_without_cache_no_mark_is_set() -> None:
    """Writing the cache costs extra."""
    assert build_call(request(system=LONG), [cache_prompt]) == build_call(request(system=LONG, cache=None))
    assert "cache_control" not in msgspec.json.encode(build_call(request(system=LONG), [cache_prompt])).decode()


def test_auto_marks_only_long_prompts() -> None:
    """Models do not cache short prompts."""
    assert add_cache_marks(call(), "auto", history=2) == call()
    assert add_cache_marks(call(system=LONG), "auto", history=2) == add_cache_marks(call(system=LONG), "5m", history=2)
    lifted = {"tailrace:blob": "0" * 64, "bytes": 70_000}
    long = call(messages=[Message("user", [text("") | {"text": lifted}])])
    assert add_cache_marks(long, "auto", history=0) != long


@pytest.mark.rule("R61")
@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "claude-sonnet-4-5"])
@pytest.mark.parametrize("mode", ["continue", "restart", "fresh"])
def test_a_continuation_has_the_marks_of_the_first_call(model: str, mode: Mode) -> None:
    """Otherwise the second call would write the cache again."""
    log = started_turn("half", model=model, messages=TURNS, history=2, system="S", cache="5m")
    assert log.turn.request is not None
    first = build_call(log.turn.request, [cache_prompt])
    second, _ = prepare_call(log.turn, mode, [cache_prompt])
    assert second.messages[: len(TURNS)] == first.messages
    assert (second.system, second.tools) == (first.system, first.tools)
    assert msgspec.json.encode(second.messages).count(b"cache_control") == 2


def marked(name: str) -> Message:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("r", **FIVE)]}
    return Message("user", [text(name, **FIVE)] if name != "r" else [result])


ANSWER = Message("assistant", [{"type": "tool_use", "id": "t", "name": "n", "input": FIVE}])


@pytest.mark.parametrize(
    ("history", "new", "more", "kept"),
    [
        ("abcd", "", {}, "abcd"),
        ("abcdef", "g", {}, "defg"),
        ("arcdef", "", {}, "cdef"),
        ("rbcd", "e", {}, "bcde"),
        ("abcd", "e", {"system": [text("S", **FIVE)]}, "cde"),
        ("abcd", "e", {"tools": [TOOLS[0] | FIVE], "options": FIVE}, "de"),
        # The client can remove them itself: the API refuses five.
        ("ab", "cdefg", {}, "cdefg"),
    ],
)
def test_a_history_gives_up_its_oldest_marks(history: str, new: str, more: dict[str, Any], kept: str) -> None:
    messages = [one for name in history for one in (marked(name), ANSWER)]
    asked = request(messages=[*messages, *map(marked, new)], history=len(messages), **more)
    made = build_call(asked, [limit_cache_marks])
    users = [one for one in made.messages if one.role == "user"]
    found = "".join(name for name, one in zip(history + new, users, strict=True) if count_marks(one.content))
    assert found == kept
    assert (made.system, made.tools, made.options) == (asked.system, asked.tools, asked.options)
    assert [one for one in made.messages if one.role == "assistant"] == [ANSWER] * len(history)
