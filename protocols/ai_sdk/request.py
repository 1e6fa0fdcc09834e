"""The body of `POST /api/chat`, which AI SDK's transports send, and the turn that it becomes.

| part of a UI message | what the model gets |
|---|---|
| `text` | text |
| `file` | an image, a PDF or a text, from a `data:` or `https:` URL |
| `reasoning` | thinking, if it has the model's signature: the API refuses it otherwise |
| `tool-*`, `dynamic-tool` with a result, or denied | a tool call and its result |
| `tool-*`, `dynamic-tool` without a result | nothing: the API refuses a call without a result |
| provider-executed tools, `source-*` | nothing: the session has them |
| `data-*`, `step-start`, `custom` and others | nothing: they are for the page |

Messages with the role `system` at the beginning become the system prompt. Messages with a list as `content`, which
assistant-ui's `useDataStreamRuntime` sends, are read as UI messages (`with_parts`).
"""

import itertools
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tailrace.gateway.turns.idempotency_key import IDEMPOTENCY_KEY
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, OnBusy, refuse_fields
from tailrace.proto.conversation import simplify, without_trailing_thinking
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import Refused
from tailrace.proto.fold import INPUT_LEVELS_MAX
from tailrace.protocols.ai_sdk.stream import MESSAGE
from tailrace.protocols.ai_sdk.tool_result import encode_output
from tailrace.protocols.common.file_block import build_file_block
from tailrace.protocols.common.tool_definition import DENIED, SERVER_CALLS, tool_definition
from tailrace.protocols.common.turn_settings import TurnSettings, settings_of
from tailrace.protocols.common.unsupported import plain_names

# The API refuses a failed call without a reason.
FAILED = "the tool failed"
UNRUN = "`{name}` is approved, but has no output: Tailrace runs no tools. Run it, and send its output (`addToolOutput`)"
TOO_OLD = (
    "`messages` have a `content`, as AI SDK 3 and 4 send it: this route is for AI SDK 5 or newer. "
    "Update `ai` and `@ai-sdk/react`, whose messages have `parts`"
)
NO_CALL = "`messages` have the result of {call!r}, and no message has this call: send the call, too"

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
    chat = replace(chat, messages=with_parts(chat.messages))
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
    return NewTurn(
        messages=messages_of(chat),
        model=chat.model,
        system=system_of(chat),
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


def with_parts(messages: list[UIMessageParam]) -> list[UIMessageParam]:
    """Returns the messages with `parts` in place of their `content`. Raises Refused for a result without its call."""
    results = {part.tool_call_id: part for one in messages if one.role == "tool" for part in _content(one)}
    found = [
        one
        if one.parts or one.role == "tool"
        else replace(one, parts=[_with_result(part, results) for part in _content(one)])
        for one in messages
    ]
    for call in results.keys() - {part.tool_call_id for one in found for part in one.parts}:
        raise Refused("request_invalid", NO_CALL.format(call=call[:100]))
    return found


def _content(message: UIMessageParam) -> list[UIPart]:
    if isinstance(message.content, str):
        return [UIPart(type="text", text=message.content)] if message.role == "system" else []
    return message.content or []


def _with_result(part: UIPart, results: dict[str, UIPart]) -> UIPart:
    """Returns a part of a `content` as a part of a UI message: a file with a URL, a call with its result."""
    match part.type, part.data, results.get(part.tool_call_id):
        case "file", str(data), _:
            return replace(part, url=data if ":" in data else f"data:{part.media_type};base64,{data}")
        case "tool-call", _, UIPart(output={"type": str(kind), **output}):
            state = "output-error" if kind.startswith("error") else "output-available"
            is_server = part.tool_call_id.startswith(SERVER_CALLS)
            call = replace(part, type="dynamic-tool", state=state, output=output.get("value"))
            return replace(call, provider_executed=is_server)
        case _:
            return part


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


def system_of(chat: UIChatRequest) -> str | list[Block] | None:
    """Returns the texts of the system messages before the first other message, and then `chat.system`."""
    leading = itertools.takewhile(_is_system, chat.messages)
    texts = [text for one in leading if (text := _text(one).strip())]
    if not texts:
        return chat.system
    if isinstance(chat.system, list):
        return [*({"type": "text", "text": text} for text in texts), *chat.system]
    return "\n\n".join([*texts, *([chat.system] if chat.system else [])])


def messages_of(chat: UIChatRequest) -> list[MessageParam]:
    """Returns the messages for the model, except the messages that `system_of` returns. Raises Refused.

    Leaves out an empty message before the last message: it was refused, and the page repeats it with the next message.
    """
    numbered = itertools.dropwhile(lambda pair: _is_system(pair[1]), enumerate(chat.messages))
    found = [(number, message) for number, one in numbered for message in convert_message(one, number)]
    if found and not found[-1][1].content:
        raise Refused("request_invalid", f"`messages[{found[-1][0]}].parts` has no text and no file")
    return [message for _, message in found if message.content]


def _is_system(message: UIMessageParam) -> bool:
    return message.role == "system"


def _text(message: UIMessageParam) -> str:
    return "\n\n".join(part.text for part in message.parts if part.type == "text")


def convert_message(message: UIMessageParam, number: int) -> list[MessageParam]:
    """Returns a UI message as messages for the model, several if it has tool results. Raises Refused."""
    match message.role:
        case "assistant":
            return _assistant_messages(message.parts)
        case "user":
            blocks = [block for part in message.parts for block in _user_blocks(part, number)]
            return [MessageParam("user", simplify(blocks))]
        case "tool":
            return []
        case _:
            return [MessageParam("system", _text(message).strip())]


def _assistant_messages(parts: list[UIPart]) -> list[MessageParam]:
    """Returns the assistant's messages with the tool results between them, as user messages."""
    found: list[MessageParam] = []
    blocks: list[Block] = []
    results: list[Block] = []
    for part in [*parts, UIPart(type="step-start")]:
        call = _tool_call(part)
        if call is not None:
            blocks.append(call[0])
            results.append(call[1])
            continue
        if results:
            found += [MessageParam("assistant", blocks), MessageParam("user", results)]
            blocks, results = [], []
        blocks += _assistant_blocks(part)
    blocks = without_trailing_thinking(blocks)
    return [*found, MessageParam("assistant", simplify(blocks))] if blocks else found


def _user_blocks(part: UIPart, number: int) -> list[Block]:
    match part.type:
        case "text":
            return [{"type": "text", "text": part.text}] if part.text.strip() else []
        case "file":
            block = build_file_block(part.media_type, part.url, part.filename, f"messages[{number}]")
            # The history leaves an empty file out, too: the messages of a page that sends it again are the same.
            return [block] if block["source"].get("data") != "" else []
        case _:
            return []


def _assistant_blocks(part: UIPart) -> list[Block]:
    match part.type, (part.provider_metadata or {}).get("anthropic", {}):
        case "text", _:
            return _user_blocks(part, 0)
        case "reasoning", {"signature": str(signature)}:
            return [{"type": "thinking", "thinking": part.text, "signature": signature}]
        case "reasoning", {"redactedData": str(hidden)}:
            return [{"type": "redacted_thinking", "data": hidden}]
        case _:
            return []


def _tool_call(part: UIPart) -> tuple[Block, Block] | None:
    """Returns a call of a client's tool and its result; None for other parts and unfinished calls. Raises Refused."""
    name = part.tool_name if part.type == "dynamic-tool" else part.type.removeprefix("tool-")
    if not (name and part.tool_call_id) or name == part.type or part.provider_executed:
        return None
    call = {"type": "tool_use", "id": part.tool_call_id, "name": name, "input": part.input or {}}
    result = {"type": "tool_result", "tool_use_id": part.tool_call_id}
    if is_deeper(part.output, INPUT_LEVELS_MAX):
        raise Refused("request_invalid", f"the output of `{name}` is nested more than {INPUT_LEVELS_MAX} levels deep")
    match part.state:
        case "output-available":
            return call, {**result, "content": encode_output(part.output)}
        case "output-error":
            reason = part.error_text or (FAILED if part.output is None else encode_output(part.output))
            return call, {**result, "content": reason, "is_error": True}
        case "output-denied" | "approval-responded" if part.state == "output-denied" or _is_denied(part.approval):
            reason = f": {part.approval.reason}" if part.approval is not None and part.approval.reason else ""
            return call, {**result, "content": f"{DENIED}{reason}", "is_error": True}
        case _:
            return None


def _is_denied(approval: UIApproval | None) -> bool:
    return approval is not None and approval.approved is False
