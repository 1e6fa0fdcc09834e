"""System messages in `messages`: those that are cleared later, and those without content."""

from typing import Any

import msgspec
import pytest

from tailrace.gateway.turns.request_body import NewTurn, check_turn, new_messages
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.proto.conversation import accepted_before
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused

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


@pytest.mark.rule("R132")
def test_a_later_turn_has_no_system_message_that_is_cleared() -> None:
    """The API leaves it out of the prompt after the next message of the user, and needs the beta to accept it."""
    assert accepted_before([USER], [USER, CLEARED, ANSWER]) == [USER, ANSWER]
    assert accepted_before([], [USER, CLEARED, ANSWER, USER]) == [USER, ANSWER, USER]
    assert accepted_before([Message("system", "b")], [USER, CLEARED, ANSWER]) == [USER, CLEARED, ANSWER]
    kept = Message("system", "be brief", clear_at="never")
    assert accepted_before([USER], [USER, kept, ANSWER]) == [USER, Message("system", "be brief"), ANSWER]


@pytest.mark.rule("R132")
def test_a_later_turn_has_no_system_message_without_content() -> None:
    """Its `output_config` was for its own turn."""
    assert accepted_before([USER], [USER, Message("system", []), ANSWER]) == [USER, ANSWER]
