"""Answers of the assistant as the last message: which are sent back after a pause, and who continues them."""

from typing import Any

import msgspec
import pytest
from starlette.datastructures import Headers

from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, build_entry, new_messages
from tailrace.proto.entries import OnPause
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId
from tailrace.protocols.ai_sdk.request import UIChatRequest
from tailrace.protocols.ai_sdk.request import build_turn as build_page_turn
from tailrace.protocols.anthropic.request import MessagesRequest, build_turn
from tailrace.protocols.common.session_headers import apply_session_headers
from tailrace.protocols.openai import chat_request, responses_request
from tailrace.protocols.openai.chat_request import ChatCompletionRequest
from tailrace.protocols.openai.responses_request import ResponseRequest
from tailrace.protocols.tutorials.request import ChatStreamRequest, StartJobRequest, chat_stream_turn, job_turn

QUESTION = MessageParam("user", "hi")
PAGE_QUESTION = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
CALL: dict[str, Any] = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
TEXT: dict[str, Any] = {"type": "text", "text": "I look it up."}


@pytest.mark.rule("R117")
@pytest.mark.parametrize(
    ("content", "options", "is_accepted"),
    [
        ([TEXT, CALL], None, True),
        ([TEXT, {**CALL, "type": "mcp_tool_use", "server_name": "s"}], None, True),
        ([CALL, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}], None, True),
        ([{"type": "compaction", "content": "The user maps rivers."}], None, True),
        ("I", {"fallback_credit_token": "t"}, True),
        ("I", None, False),
        ([TEXT], None, False),
        ([{"type": ["text"]}], None, False),
        ([TEXT, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}], None, False),
    ],
)
def test_an_answer_that_the_api_has_paused_is_no_prefill(
    content: str | list[dict[str, Any]], options: dict[str, Any] | None, *, is_accepted: bool
) -> None:
    """On every model. The API decides whether it continues such an answer."""
    turn = NewTurn(messages=[QUESTION, MessageParam("assistant", content)], options=options)
    position = Position(session=SessionId("s"), new=new_messages(turn))
    if is_accepted:
        assert build_entry(turn, position, 10, Offer(), pseudonym=str).messages[-1].role == "assistant"
    else:
        with pytest.raises(Refused, match="prefill"):
            build_entry(turn, position, 10, Offer(), pseudonym=str)


@pytest.mark.rule("R117")
@pytest.mark.parametrize(
    ("field", "header", "on_pause"),
    [
        (None, None, "return"),
        ("continue", None, "continue"),
        (None, "continue", "continue"),
        ("return", None, "return"),
    ],
)
def test_an_anthropic_client_continues_pauses_unless_it_says_otherwise(
    field: OnPause | None, header: str | None, on_pause: OnPause
) -> None:
    """Its SDK does so in `tool_runner`."""
    body = MessagesRequest(max_tokens=1, messages=[QUESTION], on_pause=field)
    headers = Headers({"tailrace-on-pause": header} if header else {})
    assert build_turn(body, {}, headers).on_pause == on_pause


@pytest.mark.rule("R117")
@pytest.mark.parametrize("on_pause", [None, "return"])
def test_other_clients_get_one_answer_unless_they_say_otherwise(on_pause: OnPause | None) -> None:
    given: dict[str, Any] = {} if on_pause is None else {"on_pause": on_pause}
    fields = {"messages": [{"role": "user", "content": "hi"}], **given}
    chat = msgspec.convert(fields, ChatCompletionRequest)
    response = msgspec.convert({"input": "hi", **given}, ResponseRequest)
    page = msgspec.convert({"id": "c", "messages": [PAGE_QUESTION], **given}, UIChatRequest)
    model = Offer().model(None)
    turns = [chat_request.build_turn(chat, model, fields).turn, responses_request.build_turn(response, model).turn]
    turns += [build_page_turn(page), msgspec.convert({"message": "hi"} | given, NewTurn)]
    assert [turn.on_pause for turn in turns] == [on_pause or "continue"] * 4
    # The pages of tutorials have no such field.
    assert chat_stream_turn(ChatStreamRequest(message="hi")).on_pause == "continue"
    assert job_turn(StartJobRequest(prompt="hi")).on_pause == "continue"


def test_the_header_applies_to_openai_and_another_value_is_refused() -> None:
    chat = ChatCompletionRequest(messages=[])
    assert chat.on_pause == "continue"
    assert apply_session_headers(chat, {"tailrace-on-pause": "return"}).on_pause == "return"
    with pytest.raises(Refused, match="Tailrace-On-Pause"):
        apply_session_headers(chat, {"tailrace-on-pause": "later"})


@pytest.mark.rule("R119")
def test_half_a_thought_that_a_client_sends_back_is_left_out() -> None:
    """The API would refuse it, in each further request of the conversation."""
    half: dict[str, Any] = {"type": "thinking", "thinking": "Hm", "signature": ""}
    whole = {**half, "signature": "sig"}
    answers = [[half, TEXT], [whole, half, CALL], [half], [whole, TEXT], "text"]
    messages = [MessageParam("assistant", content) for content in answers]  # type: ignore[arg-type]
    sent = build_turn(MessagesRequest(max_tokens=1, messages=[QUESTION, *messages]), {}, Headers()).messages
    assert sent is not None
    assert [one.content for one in sent[1:]] == [[TEXT], [whole, CALL], [half], [whole, TEXT], "text"]
