"""The body of `POST /api/chat`, which AI SDK's transports send, and the turn that it becomes.

| part of a UI message | what the model gets |
|---|---|
| `text` | text |
| `file` | an image, a PDF or a text, from a `data:` or `https:` URL; for another file in an older message, its name |
| `reasoning` | thinking, if it has the model's signature: the API refuses it otherwise |
| `tool-*`, `dynamic-tool` with a result, or denied | a tool call and its result |
| `tool-*`, `dynamic-tool` without a result | nothing: the API refuses a call without a result |
| provider-executed tools, `source-*` | nothing: the session has them |
| `data-*`, `step-start`, `custom` and others | nothing: they are for the page |

Messages with the role `system` at the beginning become the system prompt. Messages with a list as `content`, which
assistant-ui's `useDataStreamRuntime` sends, are read like UI messages; `tool` messages have the results of their calls.
The rules of the model's API are in protocols/common/history_items.py.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tailrace.gateway.turns.idempotency_key import IDEMPOTENCY_KEY
from tailrace.gateway.turns.request_body import NewTurn, OnBusy, refuse_fields
from tailrace.proto.conversation import simplify
from tailrace.proto.errors import Refused
from tailrace.protocols.ai_sdk.stream import MESSAGE
from tailrace.protocols.ai_sdk.tool_result import encode_output
from tailrace.protocols.common.file_block import build_file
from tailrace.protocols.common.history_items import (
    REDACTED,
    SIGNED,
    Item,
    build_call,
    build_messages,
    build_text,
    build_thinking,
    each_answer_once,
)
from tailrace.protocols.common.tool_definition import build_result, denial, tool_definition
from tailrace.protocols.common.turn_settings import TurnSettings, settings_of
from tailrace.protocols.common.unsupported import plain_names

UNRUN = "`{name}` is approved, but has no output: Tailrace runs no tools. Run it, and send its output (`addToolOutput`)"
TOO_OLD = (
    "`messages` have a `content`, as AI SDK 3 and 4 send it: this route is for AI SDK 5 or newer. "
    "Update `ai` and `@ai-sdk/react`, whose messages have `parts`"
)
# Signatures and encrypted thinking of Claude are messages of Protocol Buffers that begin with field 2, in base64.
# `@ai-sdk/anthropic` puts those of other vendors with Anthropic's API, such as digests, in the same place.
LIKE_CLAUDE = "E"

Block = dict[str, Any]


class UIApproval(msgspec.Struct, frozen=True):
    """The decision of AI SDK's own tool approvals."""

    approved: bool | None = None
    """Whether the call is approved; null: it is not decided."""
    reason: str | None = None
    """Why it was decided so."""


class UIPart(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of a UI message, with the fields of every type that the model gets."""

    type: str
    """The type of the part, as AI SDK names it: `text`, `file`, `reasoning`, `tool-NAME`, …"""
    text: str = ""
    """The text of a part of type `text` or `reasoning`."""
    media_type: str = ""
    """The media type of a file."""
    url: str = ""
    """The address of a file, or its content as a `data:` URL."""
    data: Any = None
    """In a `content`: the content of a file in base64, or its URL."""
    filename: str | None = None
    """The name of a file."""
    provider_metadata: dict[str, dict[str, Any]] | None = None
    """Fields that the provider has added to the part, by the provider's name."""
    tool_name: str | None = None
    """The name of a tool that is not part of `type`."""
    tool_call_id: str = ""
    """The id of the tool call."""
    state: str = ""
    """The state of the tool call: `input-available`, `output-available`, `output-error`, …"""
    input: Any = None
    """The input of the tool call."""
    output: Any = None
    """The result of the tool call."""
    error_text: str = ""
    """Why the tool call failed."""
    approval: UIApproval | None = None
    """The decision about the tool call."""
    provider_executed: bool | None = None
    """Whether the provider ran the tool."""


class UIMessageParam(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system", "data", "tool"]
    """The author of the message; `tool`: the results of calls, in `content`."""
    parts: list[UIPart] = []
    """The parts of the message, in order."""
    id: str = ""
    """The id of the message in the page."""
    content: str | list[UIPart] | None = None
    """The parts, as assistant-ui's `useDataStreamRuntime` sends them; AI SDK 3 and 4 sent a text, which is refused."""


class UITool(msgspec.Struct, frozen=True):
    """A tool as assistant-ui's `AssistantChatTransport` describes it. Its unknown fields are ignored."""

    parameters: Block
    """The JSON Schema of the tool's input."""
    description: str | None = None
    """The description of the tool, which the model receives."""


class UIChatRequest(TurnSettings, frozen=True, kw_only=True):
    """The body of `POST /api/chat`: the fields of `useChat`, and those that an app may add with its option `body`.

    `trigger` and `messageId` are not used: `messages` contain what they say.
    """

    messages: list[UIMessageParam]
    """The messages of the chat, oldest first. The last one is answered."""
    id: str | None = None
    """The id of the chat, which becomes the session."""
    trigger: Literal["submit-message", "regenerate-message"] | None = None
    """Whether the newest message is new, or its answer is requested once more."""
    message_id: str | None = msgspec.field(default=None, name="messageId")
    """The message whose answer is requested once more."""
    session_id: str | None = None
    """The session of the chat, if it is not `id`."""
    thread_id: str | None = msgspec.field(default=None, name="threadId")
    """The same as `id`, as assistant-ui's `useDataStreamRuntime` sends it."""
    system: str | list[Block] | None = None
    """The system prompt."""
    max_tokens: int | None = None
    """The most tokens that the answer may have."""
    tools: list[Block] | dict[str, UITool] | None = None
    """The tools that the model may call, in Anthropic's format, or assistant-ui's tools by their names."""
    options: dict[str, Any] | None = None
    """Further fields of Anthropic's Messages API."""
    on_busy: OnBusy = "interrupt"
    """`useChat` sends a question only when no answer runs. If one runs here, the user has stopped it in the page, and
    `stop()` sends no request."""
    store: bool = True
    """Whether the turn is kept. False: it belongs to no chat, and is erased some minutes after its end."""
    idempotency_key: Annotated[str, Meta(pattern=IDEMPOTENCY_KEY.pattern)] | None = None
    """Like the header `Idempotency-Key`, for apps whose server forwards only the body."""


def build_turn(chat: UIChatRequest) -> NewTurn:
    """Returns the turn for `chat`. Raises Refused."""
    # AI SDK 5 and newer send `trigger`, and may send messages that an app has stored with an older version.
    if chat.trigger is None and any(_is_old(one) for one in chat.messages):
        raise Refused("request_invalid", TOO_OLD)
    names = {one for one in (chat.id, chat.session_id, chat.thread_id) if one is not None}
    if len(names) > 1:
        raise Refused("request_invalid", "`id`, `session_id` and `threadId` differ: send one of them")
    session = names.pop() if names else None
    if not chat.store:
        refuse_fields(chat, "session_id", "project_id")
        # `useChat` always sends `id`, and the whole conversation.
        session = None
    metadata = dict(chat.metadata or {})
    if chat.messages and chat.messages[-1].role == "assistant":
        _refuse_approved(chat.messages[-1])
        # The message has tool results: the client appends the answer to it.
        metadata[MESSAGE] = chat.messages[-1].id
    system, messages = build_messages(_items(chat.messages), "messages[{}].parts", is_page=True)
    system += build_text(chat.system) if isinstance(chat.system, str) else chat.system or []
    return NewTurn(
        messages=messages,
        model=chat.model,
        system=simplify(system) or None,
        max_tokens=chat.max_tokens,
        tools=tools_of(chat.tools),
        options=chat.options,
        session=session,
        create_session=session is not None,
        full_history=session is not None,
        **settings_of(chat),
        metadata=metadata or None,
        store=chat.store,
    )


def _is_old(message: UIMessageParam) -> bool:
    return message.role == "data" or (message.role != "system" and isinstance(message.content, str))


def _refuse_approved(message: UIMessageParam) -> None:
    """Raises Refused for a call that was approved, and has not run. Without it, the model would not get the call."""
    for part in message.parts:
        if part.state == "approval-responded" and part.approval is not None and part.approval.approved:
            name = part.tool_name or part.type.removeprefix("tool-")
            raise Refused("request_invalid", UNRUN.format(name=name))


def client_names(chat: UIChatRequest) -> dict[str, str]:
    """Returns the name in `chat` of each field of the turn that `chat` names differently."""
    named = "id" if chat.id is not None else "threadId" if chat.thread_id is not None else "session_id"
    return {"session": named, "project": "project_id"}


def unknown_fields(fields: Iterable[str]) -> list[str]:
    """Returns the names of unknown fields, which are ignored: an app may send its own."""
    known = {field.encode_name for field in msgspec.structs.fields(UIChatRequest)}
    return plain_names(name for name in fields if name not in known)


def tools_of(tools: list[Block] | dict[str, UITool] | None) -> list[Block] | None:
    """Returns the tools in Anthropic's format."""
    if not isinstance(tools, dict):
        return tools
    named = tools.items()
    return [tool_definition(name, one.description, one.parameters, strict=None) for name, one in named] or None


def _items(messages: Iterable[UIMessageParam]) -> Iterator[Item]:
    for number, one in each_answer_once(messages):
        parts = one.parts or one.content or []
        if isinstance(parts, str):
            parts = [UIPart(type="text", text=parts)]
        match one.role:
            case "assistant":
                yield from _answer(parts, number)
            case "tool":
                yield Item("result", [block for part in parts for block in _result(part)], number)
            case "user":
                yield Item("user", [block for part in parts for block in _question(part)], number)
            case "system":
                yield Item("system", [block for part in parts for block in build_text(part.text)], number)


def _answer(parts: Iterable[UIPart], number: int) -> Iterator[Item]:
    """Yields each step of an answer, and then the results of its calls. Raises Refused."""
    blocks: list[Block] = []
    results: list[Block] = []
    for part in parts:
        kind = part.type
        if kind == "text":
            blocks += build_text(part.text)
        elif kind == "file":
            blocks += _question(part)
        elif kind == "reasoning":
            blocks += _thinking(part)
        elif kind == "step-start" and results:
            yield Item("assistant", blocks, number)
            yield Item("result", results, number)
            blocks, results = [], []
        elif part.tool_call_id and not part.provider_executed:
            name = part.tool_name if kind in ("dynamic-tool", "tool-call") else kind.removeprefix("tool-")
            if name and name != kind:
                blocks.append(build_call(part.tool_call_id, name, part.input))
                results += _results(part)
    yield Item("assistant", blocks, number)
    yield Item("result", results, number)


def _question(part: UIPart) -> list[Block]:
    if part.type == "text":
        return build_text(part.text)
    url = part.url if part.data is None else str(part.data)
    return build_file(part.media_type, url, part.filename) if part.type == "file" else []


def _thinking(part: UIPart) -> list[Block]:
    match (part.provider_metadata or {}).get("anthropic"):
        case {"signature": str(signature)} if signature.startswith(LIKE_CLAUDE):
            return build_thinking(part.text, SIGNED + signature)
        case {"redactedData": str(hidden)} if hidden.startswith(LIKE_CLAUDE):
            return build_thinking("", REDACTED + hidden)
        case _:
            return []


def _results(part: UIPart) -> list[Block]:
    """Returns the result of a call of a client's tool; none for a call that is not finished."""
    call, output, approval = part.tool_call_id, part.output, part.approval or UIApproval()
    if part.state == "output-available":
        return [build_result(call, encode_output(output))]
    if part.state == "output-error":
        reason = part.error_text or ("" if output is None else encode_output(output))
        return [build_result(call, reason, is_error=True)]
    if part.state == "output-denied" or (part.state == "approval-responded" and approval.approved is False):
        return [build_result(call, denial(approval.reason), is_error=True)]
    return []


def _result(part: UIPart) -> list[Block]:
    """Returns the result in a message of the role `tool`."""
    match part.output:
        case {"type": str(kind), **output}:
            state = "output-error" if kind.startswith("error") else "output-available"
            return _results(replace(part, state=state, output=output.get("value")))
        case _:
            return []
