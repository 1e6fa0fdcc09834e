"""System messages in `messages`: those that are cleared later, and those without content."""

from typing import Any

import msgspec
import pytest

from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import NewTurn, build_entry, check_turn, new_messages
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.generators.continuation import build_call
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId
from tailrace.proto.system_messages import (
    CLEAR_AT,
    INLINE_MCP,
    INLINE_TOOLS,
    OUTPUT_CONFIG,
    TOOL_CHANGES,
    fit_system_messages,
    place_system_messages,
)
from tests.harness.turn_builder import request

USER, ANSWER = Message("user", "hi"), Message("assistant", "hello")
CLEARED = Message("system", "be brief", clear_at="next_user_message")
EFFORT: dict[str, Any] = {"effort": "low"}


def parse(*messages: dict[str, Any]) -> list[Message]:
    """Returns the messages of a request body, as the entry has them. Raises Refused."""
    turn = msgspec.convert({"messages": messages}, NewTurn)
    check_turn(turn)
    return new_messages(turn)


async def sent(messages: list[Message]) -> Any:
    pieces = await encode_body(Call(model="m", max_tokens=1, messages=messages))
    return msgspec.json.decode(b"".join(pieces))["messages"]


@pytest.mark.rule("R132")
@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "a", "clear_at": "next_user_message"},
        {"role": "system", "content": "a", "clear_at": "never"},
        {"role": "system", "content": "a", "clear_at": None},
        {"role": "system", "output_config": EFFORT},
        {"role": "system", "content": [{"type": "tool_removal", "tool_name": "f"}], "output_config": EFFORT},
    ],
)
async def test_the_model_gets_a_system_message_as_the_client_sent_it(message: dict[str, Any]) -> None:
    """Also after the entry was stored and read."""
    stored = msgspec.json.decode(
        msgspec.json.encode(parse({"role": "user", "content": "hi"}, message)), type=list[Message]
    )
    assert await sent(stored) == [{"role": "user", "content": "hi"}, message]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "assistant", "output_config": EFFORT},
        {"role": "system"},
        {"role": "system", "output_config": {}},
        {"role": "system", "content": "", "output_config": EFFORT},
    ],
)
def test_another_message_without_content_is_refused(message: dict[str, Any]) -> None:
    """The error names it."""
    with pytest.raises(Refused, match=r"messages\[1\]\.content"):
        parse({"role": "user", "content": "hi"}, message)


CHECKED, OLDER = "claude-opus-5-5", "claude-opus-5"
NEVER = Message("system", "be brief", clear_at="never")
LOW = Message("system", [], EFFORT)
TOLD_LOW = Message("system", "be brief", EFFORT)


@pytest.mark.rule("R132")
def test_a_later_turn_sends_system_messages_as_they_were_sent() -> None:
    """Anthropic's API counts them to the prefix of later thinking. An unknown model counts as a newer one."""
    history = [USER, CLEARED, ANSWER, LOW, USER, NEVER, TOLD_LOW, ANSWER]
    assert fit_system_messages([USER], history, CHECKED, None) == history
    assert fit_system_messages([USER], history, "claude-next", {"thinking": {"type": "adaptive"}}) == history


@pytest.mark.rule("R132")
@pytest.mark.parametrize(
    ("model", "options"), [(OLDER, None), (CHECKED, {"thinking": {"type": "disabled"}})], ids=["older", "no thinking"]
)
def test_a_later_turn_leaves_out_fields_that_the_api_may_refuse(model: str, options: dict[str, Any] | None) -> None:
    """And the messages that the model would not see any more."""

    def fitted(new: list[Message], *history: Message) -> list[Message]:
        return fit_system_messages(new, history, model, options)

    assert fitted([USER], USER, CLEARED, ANSWER) == [USER, ANSWER]
    assert fitted([], USER, CLEARED, ANSWER, USER) == [USER, ANSWER, USER]
    assert fitted([Message("system", "b")], USER, CLEARED, ANSWER) == [USER, CLEARED, ANSWER]
    assert fitted([USER], USER, NEVER, ANSWER) == [USER, Message("system", "be brief"), ANSWER]
    assert fitted([USER], Message("user", "hi", EFFORT), ANSWER) == [USER, ANSWER]
    assert fitted([USER], USER, LOW, ANSWER, TOLD_LOW) == [USER, ANSWER, Message("system", "be brief")]


def changed(kind: str, tool: dict[str, Any]) -> Message:
    return Message("system", [{"type": kind, "tool": tool}])


DEFINED = {"type": "tool_definition", "definition": {"name": "look", "input_schema": {}}}


@pytest.mark.rule("R132")
@pytest.mark.parametrize(
    ("message", "betas"),
    [
        (CLEARED, [CLEAR_AT]),
        (NEVER, [CLEAR_AT]),
        (Message("system", "b", clear_at=None), []),
        (LOW, [OUTPUT_CONFIG]),
        (changed("tool_removal", {"type": "tool_reference", "name": "look"}), [TOOL_CHANGES]),
        (changed("tool_addition", {"type": "tool_reference", "name": "look"}), [TOOL_CHANGES]),
        (changed("tool_addition", DEFINED), [TOOL_CHANGES, INLINE_TOOLS]),
        (
            changed("tool_addition", {"type": "tool_definition", "definition": {"type": "mcp_toolset"}}),
            [TOOL_CHANGES, INLINE_TOOLS, INLINE_MCP],
        ),
        (Message("assistant", [{"type": "tool_addition"}]), []),
        (USER, []),
    ],
)
def test_a_call_has_the_betas_that_its_messages_need(message: Message, betas: list[str]) -> None:
    """Also if only an earlier turn was sent with them. Each is sent once."""
    call = build_call(request(messages=[USER, message, ANSWER, message, USER], betas=["a", CLEAR_AT]))
    assert call.betas == ["a", CLEAR_AT, *(beta for beta in betas if beta != CLEAR_AT)]
    assert build_call(request(messages=[USER, message])).betas == (betas or None)


KIND = Message("system", "be kind")
FOUND = Message("assistant", [{"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}])
BOTH = Message("system", [{"type": "text", "text": "be kind"}, {"type": "text", "text": "be kind"}])
SETS_EFFORT = Message("system", [], output_config=EFFORT)
RESULT = Message("user", [{"type": "tool_result", "tool_use_id": "c1", "content": "1"}])


@pytest.mark.rule("R132")
@pytest.mark.parametrize(
    ("messages", "placed"),
    [
        ([USER, KIND, ANSWER, USER, KIND], [USER, KIND, ANSWER, USER, KIND]),
        ([USER, KIND, USER], [USER, USER, KIND]),
        ([USER, CLEARED, USER], [USER, USER]),
        ([USER, CLEARED, ANSWER, USER], [USER, CLEARED, ANSWER, USER]),
        ([USER, KIND, USER, KIND, ANSWER, USER], [USER, USER, BOTH, ANSWER, USER]),
        ([USER, ANSWER, KIND, USER], [USER, ANSWER, USER, KIND]),
        ([USER, ANSWER, KIND, RESULT], [USER, ANSWER, RESULT, KIND]),
        ([USER, ANSWER, KIND, ANSWER, USER], [USER, KIND, ANSWER, ANSWER, USER]),
        ([USER, KIND, ANSWER, KIND, ANSWER, USER], [USER, BOTH, ANSWER, ANSWER, USER]),
        ([USER, FOUND, KIND, ANSWER, USER], [USER, FOUND, KIND, ANSWER, USER]),
        ([USER, ANSWER, SETS_EFFORT, USER], [USER, ANSWER, SETS_EFFORT, USER]),
        ([KIND, USER, ANSWER, USER], [USER, KIND, ANSWER, USER]),
    ],
)
def test_a_call_has_a_system_message_where_the_api_takes_it(messages: list[Message], placed: list[Message]) -> None:
    """Directly before an answer or at the end, behind the user's message or the result of a server tool."""
    assert build_call(request(messages=messages)).messages == placed


@pytest.mark.rule("R132")
@pytest.mark.parametrize(
    ("system", "prompt"),
    [
        (None, ["be kind"]),
        ("be brief", ["be brief", "be kind"]),
        ([{"type": "text", "text": "be brief"}], ["be brief", "be kind"]),
    ],
)
def test_a_model_that_takes_no_system_messages_gets_them_with_the_prompt(system: Any, prompt: list[str]) -> None:
    asked = request(model="claude-haiku-4-5", messages=[USER, KIND, ANSWER, USER], system=system)
    call = build_call(asked)
    assert call.messages == [USER, ANSWER, USER]
    assert isinstance(call.system, list)
    assert [block["text"] for block in call.system] == prompt


@pytest.mark.rule("R132")
@pytest.mark.parametrize(("before", "new"), [([], [USER, ANSWER, KIND]), ([USER, ANSWER], [KIND])])
def test_a_system_message_behind_an_answer_asks_nothing(before: list[Message], new: list[Message]) -> None:
    """The model would have to continue the answer, and current models cannot."""
    position = Position(session=SessionId("s"), before=before, new=new)
    with pytest.raises(Refused, match="must not end with a message of the assistant"):
        build_entry(NewTurn(message="", model="claude-sonnet-5-5"), position, 100, Offer(), pseudonym=str)


@pytest.mark.rule("R132")
def test_a_message_that_only_sets_the_effort_stays_behind_one_with_a_text() -> None:
    """It may stand anywhere."""
    assert place_system_messages([USER, CLEARED, LOW]) == [USER, CLEARED, LOW]
    assert place_system_messages([USER, LOW, NEVER, ANSWER]) == [USER, NEVER, LOW, ANSWER]
