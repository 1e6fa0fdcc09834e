"""The turn that AG-UI's input becomes."""

from typing import Any

import msgspec
import pytest

from tailrace.gateway.turns.request_body import MessageParam
from tailrace.proto.errors import Refused
from tailrace.protocols.ag_ui.blocks import CUT as NOT_RUN
from tailrace.protocols.ag_ui.blocks import NO_RESULT
from tailrace.protocols.ag_ui.request import (
    RunAgentInput,
    build_turn,
    context_text,
    decisions_of,
    ignored_fields,
    with_context,
    with_results,
)

Json = dict[str, Any]
CALL = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"q": 1}'}}
SERVER = {"id": "srvtoolu_1", "type": "function", "function": {"name": "web_search", "arguments": "{}"}}
CONTEXT = [{"description": "page", "value": "cart"}, {"value": ""}]
CUT = {"id": "toolu_2", "type": "function", "function": {"name": "look", "arguments": '{"q'}}


def run(*messages: Json, **given: Any) -> RunAgentInput:
    body = {"threadId": "t", "runId": "r", "messages": [{"id": str(at), **one} for at, one in enumerate(messages)]}
    return msgspec.convert({**body, **given}, RunAgentInput)


def user(content: Any = "Why?") -> Json:
    return {"role": "user", "content": content}


def sent(*messages: Json) -> list[tuple[str, Any]]:
    return [(one.role, one.content) for one in build_turn(run(*messages), None).messages or []]


def test_an_answer_of_several_messages_is_one_message_for_the_model() -> None:
    """Thinking, text, calls, and results of server tools, which the session has."""
    answer: list[Json] = [
        {"role": "reasoning", "content": "hm", "encryptedValue": "thinking:sig"},
        {"role": "reasoning", "content": "", "encryptedValue": "redacted_thinking:data"},
        {"role": "assistant", "content": "So.", "toolCalls": [SERVER]},
        {"role": "tool", "toolCallId": "srvtoolu_1", "content": "found"},
        {"role": "assistant", "content": "It is.", "toolCalls": [CALL]},
        {"role": "tool", "toolCallId": "toolu_1", "content": "blue"},
    ]
    assert sent(user(), *answer) == [
        ("user", "Why?"),
        (
            "assistant",
            [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "data"},
                {"type": "text", "text": "So."},
                {"type": "text", "text": "It is."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"q": 1}},
            ],
        ),
        ("user", [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "blue"}]),
    ]


def test_a_call_that_was_cut_or_has_no_result_is_left_out() -> None:
    """The API refuses both. The result of a cut call says that it did not run."""
    empty = {"id": "toolu_3", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calls = {"role": "assistant", "content": "So.", "toolCalls": [CALL, CUT, empty]}
    results = [{"role": "tool", "toolCallId": call, "content": NOT_RUN} for call in ("toolu_2", "toolu_3")]
    assert sent(user(), calls, *results, user("And?")) == [
        ("user", "Why?"),
        ("assistant", "So."),
        ("user", "And?"),
    ]


def test_results_follow_their_answer_in_the_order_of_its_calls() -> None:
    """A question may come before a result, a result twice. The API refuses both, in this request and in all later ones.

    The session has the results of decided calls in this order: in another one, they would start a branch.
    """
    other = {**CALL, "id": "toolu_3"}
    calls = {"role": "assistant", "content": "So.", "toolCalls": [CALL, other]}
    given = [
        {"role": "tool", "toolCallId": call, "content": text} for call, text in (("toolu_3", "b"), ("toolu_1", "a"))
    ]
    again = {**given[1], "content": "later"}
    inputs = [{"type": "tool_use", "id": one["id"], "name": "look", "input": {"q": 1}} for one in (CALL, other)]
    results = [
        {"type": "tool_result", "tool_use_id": call, "content": text}
        for call, text in (("toolu_1", "a"), ("toolu_3", "b"))
    ]
    whole = [("user", "Why?"), ("assistant", [{"type": "text", "text": "So."}, *inputs]), ("user", results)]
    assert sent(user(), calls, *given, again) == whole
    assert sent(user(), calls, *given, user("And?")) == [*whole, ("user", "And?")]
    assert sent(user(), calls, given[0], user("And?"), given[1]) == [*whole, ("user", "And?")]
    assert sent(user(), calls, *given, {"role": "assistant", "content": "It is."}, again, user("And?")) == [
        *whole,
        ("assistant", "It is."),
        ("user", "And?"),
    ]


def test_a_failed_tool_has_its_error_as_the_result() -> None:
    """The API refuses a failed call without a reason."""
    results = [
        {"role": "tool", "toolCallId": "toolu_1", "content": "", "error": error} for error in ("no such city", "")
    ]
    for result, text in zip(results, ("no such city", "the tool failed"), strict=True):
        (_, _, (_, content)) = sent(user(), {"role": "assistant", "toolCalls": [CALL]}, result)
        assert content == [{"type": "tool_result", "tool_use_id": "toolu_1", "content": text, "is_error": True}]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            {"type": "image", "source": {"type": "url", "value": "https://a.example/b"}},
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b"}},
        ),
        (
            {"type": "document", "source": {"type": "url", "value": "https://a.example/b"}},
            {"type": "document", "source": {"type": "url", "url": "https://a.example/b"}},
        ),
        (
            {"type": "document", "source": {"type": "data", "value": "SGk=", "mimeType": "text/plain"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}},
        ),
        (
            {"type": "binary", "mimeType": "text/plain", "data": "SGk="},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}},
        ),
        (
            {"type": "image", "source": {"type": "file", "value": "file_1", "provider": "anthropic"}},
            {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        ),
    ],
)
def test_a_part_of_a_question_is_a_block(part: Json, block: Json) -> None:
    """Images and documents, as bytes, addresses or uploaded files."""
    assert sent(user([{"type": "text", "text": "What is this?"}, part])) == [
        ("user", [{"type": "text", "text": "What is this?"}, block])
    ]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user([{"type": "video", "source": {"type": "url", "value": "https://a"}}])], "'video'"),
        ([user({"text": "Why?"})], "must be a string or a list"),
        (
            [
                user(),
                {"role": "assistant", "toolCalls": [CALL]},
                {"role": "tool", "toolCallId": "toolu_1", "content": {}},
            ],
            "must be a string or a list",
        ),
        ([user(), {"role": "tool", "toolCallId": "toolu_9", "content": "blue"}], "no message before it has this call"),
        ([user("")], "has no text"),
    ],
)
def test_bad_messages_are_refused(messages: list[Json], said: str) -> None:
    """The error names the message."""
    with pytest.raises(Refused, match=said) as error:
        build_turn(run(*messages), None)
    assert error.value.code == "request_invalid"


def test_fields_of_a_turn_come_from_forwarded_props() -> None:
    """Unknown ones are named, like other fields without an effect."""
    props = {"model": "claude-haiku-5-5", "thinking": {"type": "adaptive"}, "approve": ["look"], "colour": 1}
    turn = build_turn(run({"role": "system", "content": "Be short."}, user(), forwardedProps=props), "claude-opus-5-5")
    assert (turn.model, turn.system, turn.options) == (
        "claude-haiku-5-5",
        "Be short.",
        {"thinking": {"type": "adaptive"}},
    )
    assert turn.metadata == {"agui_run": "r", "agui_approve": "look"}
    assert (turn.session, turn.create_session, turn.full_history, turn.on_busy) == ("t", True, True, "interrupt")
    fields = {"threadId": "t", "runId": "r", "state": {"a": 1}, "context": [], "forwardedProps": props, "odd": 1}
    assert ignored_fields(fields) == ["odd", "state", "forwardedProps.colour"]


def test_empty_fields_of_stock_clients_are_not_named() -> None:
    """HttpAgent and TanStack AI always send them."""
    fields = {"threadId": "t", "state": {}, "tools": [], "context": [], "forwardedProps": {}, "data": {}}
    assert ignored_fields(fields) == []


def test_the_context_is_a_reminder_behind_the_question() -> None:
    """Before the question, this question would be the next message, and the model would not see it."""
    text = context_text(run(context=CONTEXT))
    question = MessageParam("user", "Why?")
    assert with_context([question], text) == [
        question,
        MessageParam("system", "Context of this message:\n\npage:\ncart", clear_at="next_user_message"),
    ]
    assert context_text(run()) == ""


def test_no_context_follows_results_while_the_call_of_a_server_tool_is_open() -> None:
    """The API executes it only in a request that ends with results; a text there would end the answer."""
    answer: list[Json] = [
        {"role": "assistant", "content": "So.", "toolCalls": [SERVER, CALL]},
        {"role": "tool", "toolCallId": "toolu_1", "content": "blue"},
    ]
    found = {"role": "tool", "toolCallId": "srvtoolu_1", "content": "found"}
    assert context_text(run(user(), *answer, context=CONTEXT)) == ""
    assert context_text(run(user(), *answer, {**found, "content": NO_RESULT}, context=CONTEXT)) == ""
    assert context_text(run(user(), *answer, found, context=CONTEXT)).endswith("cart")
    assert context_text(run(user(), *answer, user("Why?"), context=CONTEXT)).endswith("cart")


def test_decisions_are_those_of_resume_and_of_the_newest_results() -> None:
    """A front end answers the calls of its own tools with messages, and interrupts with `resume`."""
    resume = [
        {"interruptId": "a", "status": "resolved", "payload": {"result": {"ok": True}}},
        {"interruptId": "b", "status": "resolved", "payload": {"approved": False, "reason": "too expensive"}},
        {"interruptId": "c", "status": "cancelled"},
        {"interruptId": "d", "status": "resolved", "payload": "blue"},
    ]
    results = [{"role": "tool", "toolCallId": call, "content": "x"} for call in ("a", "e", "srvtoolu_1")]
    assert decisions_of(run(user(), *results, resume=resume)) == {
        "a": {"result": '{"ok":true}'},
        "b": {"decision": "denied", "reason": "too expensive"},
        "c": {"decision": "denied"},
        "d": {"result": "blue"},
        "e": {"result": "x", "is_error": False},
    }
    with pytest.raises(Refused, match="Tailrace runs no tools"):
        decisions_of(run(resume=[{"interruptId": "a", "status": "resolved", "payload": {"approved": True}}]))


def test_a_decision_counts_for_the_newest_call_with_its_id() -> None:
    """An earlier answer may have had the id, and another tab may have sent its own result."""
    calls = {"role": "assistant", "toolCalls": [CALL]}
    results = [{"role": "tool", "toolCallId": "toolu_1", "content": text} for text in ("first", "of this tab")]
    resume = [{"interruptId": "toolu_1", "status": "resolved", "payload": "decided"}]
    decided = with_results(run(user(), calls, results[0], user(), calls, results[1], user("So?"), resume=resume))
    messages = build_turn(decided, None).messages or []
    blocks = [block for one in messages if isinstance(one.content, list) for block in one.content]
    assert [block["content"] for block in blocks if block["type"] == "tool_result"] == ["first", "decided"]
    assert messages[-1].content == "So?"
