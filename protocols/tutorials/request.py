"""The bodies that tutorials' pages POST, and the turns that they become."""

from typing import Literal

import msgspec

from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto.errors import Refused


class ChatStreamRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /chat/stream`."""

    message: str
    """The prompt."""
    max_tokens: int | None = None
    """The most tokens that the answer may have."""
    system: str | None = None
    """The system prompt."""


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /chat`."""

    message: str
    """The prompt."""


class AIChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    """Who wrote the message."""
    content: str
    """The text of the message."""


class AIChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /ai/chat`: the whole conversation in OpenAI's format."""

    messages: list[AIChatMessage]
    """The conversation, oldest message first."""
    model: str | None = None
    """The model that answers; the operator's default if it is left out."""


class StartJobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/start-job` and `POST /api/process`: either `prompt` or `message`, which mean the same."""

    prompt: str | None = None
    """The prompt."""
    message: str | None = None
    """The prompt, under another name."""
    model: str | None = None
    """The model that answers; the operator's default if it is left out."""
    system: str | None = None
    """The system prompt."""
    max_tokens: int | None = None
    """The most tokens that the answer may have."""


def chat_stream_turn(body: ChatStreamRequest) -> NewTurn:
    return NewTurn(message=body.message, max_tokens=body.max_tokens, system=body.system)


def chat_turn(body: ChatRequest, session: str) -> NewTurn:
    # Two browser tabs share the cookie, so a question in one must not interrupt an answer in the other.
    return NewTurn(message=body.message, session=session, create_session=True, on_busy="branch")


def ai_chat_turn(body: AIChatRequest) -> NewTurn:
    """Joins the system messages, which Anthropic takes as one field, and keeps the order of the others.

    Raises Refused for an empty message.
    """
    for index, message in enumerate(body.messages):
        # With the index in the client's list, from which the system messages are removed below.
        if message.role != "system" and (not message.content or message.content.isspace()):
            raise Refused("request_invalid", f"`messages[{index}].content` is empty")
    system = "\n\n".join(message.content for message in body.messages if message.role == "system")
    messages = [MessageParam(message.role, message.content) for message in body.messages if message.role != "system"]
    return NewTurn(messages=messages, system=system or None, model=body.model)


def job_turn(body: StartJobRequest) -> NewTurn:
    """Raises Refused unless exactly one of `prompt` and `message` is set."""
    if (body.prompt is None) == (body.message is None):
        raise Refused("request_invalid", "either `prompt` or `message`, a string, is required: send one of them")
    message = body.prompt or body.message or ""
    return NewTurn(message=message, model=body.model, system=body.system, max_tokens=body.max_tokens)
