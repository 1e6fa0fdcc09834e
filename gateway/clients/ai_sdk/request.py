"""What AI SDK's transports POST, and the question that it becomes. Pure.

| part of a message | to the model |
|---|---|
| `text` | text |
| `file` | a picture, a PDF, a text; by `data:` or `https:` |
| `reasoning` | a thought, if it has the model's signature: the API takes no other |
| `tool-*`, `dynamic-tool` with a result | a call and its result |
| `tool-*`, `dynamic-tool` without | left out: the API takes no call without a result |
| tools of the model's side, `source-*` | left out: the session has them |
| `data-*`, `step-start`, `custom` and others | left out: they say nothing to a model |
"""

import re
from typing import Any, Literal

import msgspec

from tailrace.gateway.clients.ai_sdk.file import block_of
from tailrace.gateway.clients.ai_sdk.stream import MESSAGE
from tailrace.gateway.clients.ai_sdk.tool_result import told
from tailrace.gateway.turns.request_body import NewTurn, OnBusy
from tailrace.proto.depth import is_deeper
from tailrace.proto.entries import Message, OnInterrupt
from tailrace.proto.errors import Refused
from tailrace.proto.fold import INPUT_LEVELS_MAX

DENIED = "the user has not allowed this call"
# What is no plain name is not repeated to the client: a header is no place for it.
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NAMES_MAX = 20

Block = dict[str, Any]


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of a UI message: as much of each kind as is told to the model."""

    type: str
    text: str = ""
    media_type: str = ""
    url: str = ""
    filename: str | None = None
    provider_metadata: dict[str, dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str = ""
    state: str = ""
    input: Any = None
    output: Any = None
    error_text: str = ""
    provider_executed: bool | None = None


class UIMessage(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    parts: list[Part]
    id: str = ""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /api/chat`: what `useChat` sends, and what an app may add to it by `body`.

    `trigger` and `messageId` say nothing that `messages` do not.
    """

    messages: list[UIMessage]
    id: str | None = None
    trigger: Literal["submit-message", "regenerate-message"] | None = None
    message_id: str | None = msgspec.field(default=None, name="messageId")
    session_id: str | None = None
    project_id: str | None = None
    model: str | None = None
    system: str | list[Block] | None = None
    max_tokens: int | None = None
    tools: list[Block] | None = None
    options: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    on_interrupt: OnInterrupt = "continue"
    on_disconnect: str = "continue"
    on_busy: OnBusy = "interrupt"
    """`useChat` lets nobody ask while an answer runs, so who asks has stopped it, and that told nobody."""
    max_cost: float | None = None


def ask_of(chat: ChatRequest) -> NewTurn:
    """The question; raises Refused."""
    if chat.id is not None and chat.session_id not in (None, chat.id):
        raise Refused("request_invalid", "`id` and `session_id` name two conversations: send one of them")
    session = chat.id if chat.id is not None else chat.session_id
    metadata = dict(chat.metadata or {})
    if chat.messages and chat.messages[-1].role == "assistant":
        # Its tools have answered: the client adds what comes to this message.
        metadata[MESSAGE] = chat.messages[-1].id
    return NewTurn(
        messages=[message for number, one in enumerate(chat.messages) for message in messages(one, number)],
        model=chat.model,
        system=chat.system,
        max_tokens=chat.max_tokens,
        tools=chat.tools,
        options=chat.options,
        session=session,
        create_session=session is not None,
        full_history=session is not None,
        project=chat.project_id,
        metadata=metadata or None,
        on_interrupt=chat.on_interrupt,
        on_disconnect=chat.on_disconnect,
        on_busy=chat.on_busy,
        max_cost=chat.max_cost,
    )


def unknown(raw: bytes) -> list[str]:
    """The fields of such a body that mean nothing here: an app may send its own."""
    known = {field.encode_name for field in msgspec.structs.fields(ChatRequest)}
    names = (name for name in msgspec.json.decode(raw, type=dict[str, msgspec.Raw]) if name not in known)
    return [name for name in names if NAME.fullmatch(name)][:NAMES_MAX]


def messages(message: UIMessage, number: int) -> list[Message]:
    """What a UI message is to the model; an assistant's is as many as its tools have made of it. Raises Refused."""
    match message.role:
        case "assistant":
            return _assistant(message.parts)
        case "user":
            blocks = [block for part in message.parts for block in _said(part, number)]
            return [Message("user", _plain(blocks))]
        case "system":
            return [Message("system", "\n\n".join(part.text for part in message.parts if part.type == "text"))]


def _assistant(parts: list[Part]) -> list[Message]:
    """A result follows its call in a message of the user's, and what the model said then begins another."""
    found: list[Message] = []
    blocks: list[Block] = []
    results: list[Block] = []
    for part in [*parts, Part(type="step-start")]:
        call = _call(part)
        if call is not None:
            blocks.append(call[0])
            results.append(call[1])
            continue
        if results:
            found += [Message("assistant", blocks), Message("user", results)]
            blocks, results = [], []
        blocks += _thought(part)
    return [*found, Message("assistant", _plain(blocks))] if blocks else found


def _said(part: Part, number: int) -> list[Block]:
    match part.type:
        case "text":
            return [{"type": "text", "text": part.text}] if part.text.strip() else []
        case "file":
            return [block_of(part.media_type, part.url, part.filename, f"messages[{number}]")]
        case _:
            return []


def _thought(part: Part) -> list[Block]:
    match part.type, (part.provider_metadata or {}).get("anthropic", {}):
        case "text", _:
            return _said(part, 0)
        case "reasoning", {"signature": str(signature)}:
            return [{"type": "thinking", "thinking": part.text, "signature": signature}]
        case "reasoning", {"redactedData": str(hidden)}:
            return [{"type": "redacted_thinking", "data": hidden}]
        case _:
            return []


def _call(part: Part) -> tuple[Block, Block] | None:
    """A call of the client's own tools and its result; None for what is neither. Raises Refused."""
    name = part.tool_name if part.type == "dynamic-tool" else part.type.removeprefix("tool-")
    if not (name and part.tool_call_id) or name == part.type or part.provider_executed:
        return None
    call = {"type": "tool_use", "id": part.tool_call_id, "name": name, "input": part.input or {}}
    result = {"type": "tool_result", "tool_use_id": part.tool_call_id}
    match part.state:
        case "output-available":
            if is_deeper(part.output, INPUT_LEVELS_MAX):
                raise Refused(
                    "request_invalid", f"what `{name}` has brought is nested more than {INPUT_LEVELS_MAX} levels deep"
                )
            return call, {**result, "content": told(part.output)}
        case "output-error":
            return call, {**result, "content": part.error_text, "is_error": True}
        case "output-denied":
            return call, {**result, "content": DENIED, "is_error": True}
        case _:
            return None


def _plain(blocks: list[Block]) -> str | list[Block]:
    """As the log has a text alone."""
    match blocks:
        case [{"type": "text", "text": str(text)}]:
            return text
        case _:
            return blocks
