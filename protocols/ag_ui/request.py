"""The body of `POST /api/agui`, AG-UI's `RunAgentInput`, and the turn that it becomes.

| part of the input | what the model gets |
|---|---|
| `system`, `developer` messages | the system prompt, at the beginning; later ones at their place |
| `user` messages | texts, images and documents |
| `reasoning` messages | thinking, if they have the model's signature: the API refuses it otherwise |
| `assistant` messages | text, and the tool calls that have results |
| `tool` messages | results of the client's tools; the session has those of the model's API |
| `activity` messages | nothing: they are for the page |
| `tools` | tools, which the client runs |
| `context` | a system message behind the newest question, until the next one |
| `forwardedProps` | the fields of `ForwardedProps` |
"""

from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tailrace.gateway.turns.idempotency_key import IDEMPOTENCY_KEY
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, OnBusy
from tailrace.proto.conversation import simplify, without_trailing_thinking
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused
from tailrace.proto.fold import decode_input
from tailrace.protocols.ag_ui.blocks import CUT, NO_RESULT, REDACTED
from tailrace.protocols.ag_ui.messages import text_of
from tailrace.protocols.ag_ui.stream import ALL_TOOLS, APPROVE, RUN
from tailrace.protocols.common.file_block import build_file_block
from tailrace.protocols.common.media_types import PDF
from tailrace.protocols.common.tool_definition import DENIED, SERVER_CALLS, tool_definition
from tailrace.protocols.common.turn_settings import TurnSettings, settings_of
from tailrace.protocols.common.unsupported import plain_names

Block = dict[str, Any]

# The API refuses a failed call without a reason.
FAILED = "the tool failed"
NO_CALL = "`messages[{number}]` has the result of {call!r}, and no message before it has this call: send the call, too"
UNDECIDED = (
    "`resume`: the payload of {call!r} has no result: Tailrace runs no tools. Run it, and send "
    '{{"result": "…"}}; or deny it with {{"approved": false, "reason": "…"}}'
)
# Fields without an effect that stock clients send with values that say nothing.
EMPTY: tuple[object, ...] = (None, {}, [], "")


class AgentFunction(msgspec.Struct, frozen=True):
    """The function of a tool call."""

    name: str
    """The name of the tool."""
    arguments: str = ""
    """The input of the tool, as JSON text."""


class AgentCall(msgspec.Struct, frozen=True):
    """A call of a tool in a message of the assistant."""

    id: str
    """The id of the call."""
    function: AgentFunction
    """The tool and its input."""


class AgentMessage(msgspec.Struct, frozen=True, rename="camel"):
    """A message of AG-UI, with the fields of every role that the model gets."""

    role: Literal["user", "assistant", "tool", "system", "developer", "reasoning", "activity"]
    """The author of the message."""
    id: str = ""
    """The id of the message in the client."""
    content: Any = None
    """The text of the message, or a list of parts."""
    tool_calls: list[AgentCall] | None = None
    """The calls of the assistant."""
    tool_call_id: str = ""
    """The call whose result a `tool` message has."""
    error: str | None = None
    """Why the tool failed."""
    encrypted_value: str | None = None
    """The signature of a `reasoning` message, as it was sent."""


class AgentTool(msgspec.Struct, frozen=True):
    """A tool that the client runs."""

    name: str
    """The name of the tool."""
    description: str | None = None
    """The description of the tool, which the model receives."""
    parameters: Any = None
    """The JSON Schema of the tool's input."""


class AgentContext(msgspec.Struct, frozen=True):
    """A fact about the page."""

    value: str
    """The fact."""
    description: str = ""
    """The subject of the fact."""


class ResumeEntry(msgspec.Struct, frozen=True, rename="camel"):
    """The decision about an interrupt."""

    interrupt_id: str
    """The id of the interrupt, which is that of the call."""
    status: Literal["resolved", "cancelled"]
    """`cancelled`: the tool is not run."""
    payload: Any = None
    """The result of the tool, or an object with `result`, `approved`, `reason`."""


class ForwardedProps(TurnSettings, frozen=True, kw_only=True):
    """The fields of a turn that AG-UI has no field for. Unknown ones are ignored."""

    system: str | None = None
    """The system prompt, after the system messages at the beginning."""
    max_tokens: int | None = None
    """The most tokens that the answer may have."""
    thinking: dict[str, Any] | None = None
    """The same as `options.thinking`."""
    tools: list[Block] | None = None
    """Further tools, in Anthropic's format: those that the model's API runs."""
    options: dict[str, Any] | None = None
    """Further fields of Anthropic's Messages API."""
    on_busy: OnBusy = "interrupt"
    """Clients send a question only when no answer runs for them. If one runs here, the user has stopped it in the page,
    and `abortRun()` of HttpAgent sends no request."""
    approve: bool | list[str] = False
    """The tools whose calls are interrupts, which `resume` decides; true: all."""


class RunAgentInput(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of a run."""

    thread_id: str
    """The id of the thread, which becomes the session."""
    run_id: Annotated[str, Meta(pattern=IDEMPOTENCY_KEY.pattern)]
    """The id of the run. A repeated request with the same body gets the same run."""
    messages: list[AgentMessage] = []
    """The messages of the thread, oldest first. The last one is answered."""
    protocol_version: str | None = None
    """The version of AG-UI that the client speaks. Clients before 1.0 send none."""
    parent_run_id: str | None = None
    """Ignored: the messages say what the run continues."""
    state: Any = None
    """Ignored: the model's API has no state."""
    tools: list[AgentTool] = []
    """The tools that the model may call, and the client runs."""
    context: list[AgentContext] = []
    """Facts about the page, which the model sees until the next question."""
    forwarded_props: ForwardedProps | None = None
    """The fields of a turn that AG-UI has no field for."""
    data: Any = None
    """The same as `forwardedProps`, as TanStack AI repeats it."""
    resume: list[ResumeEntry] | None = None
    """The decisions about the interrupts of the run before."""

    @property
    def is_1(self) -> bool:
        """Whether the client declares AG-UI 1.0."""
        return self.protocol_version is not None


CLIENT_NAMES = {"session": "threadId", "project": "forwardedProps.project_id", "metadata": "forwardedProps.metadata"}


def ignored_fields(fields: Mapping[str, Any]) -> list[str]:
    """Returns the names of the fields of a body that have no effect here."""
    known = {field.encode_name for field in msgspec.structs.fields(RunAgentInput)}
    ignored = [name for name in fields if name not in known]
    ignored += [name for name in ("state", "parentRunId") if fields.get(name) not in EMPTY]
    props = {field.encode_name for field in msgspec.structs.fields(ForwardedProps)}
    ignored += [f"forwardedProps.{name}" for name in fields.get("forwardedProps") or {} if name not in props]
    return plain_names(ignored)


def build_turn(run: RunAgentInput, model: str | None) -> NewTurn:
    """Returns the turn for `run`, without its context. `model` answers if the run names none. Raises Refused."""
    props = run.forwarded_props or ForwardedProps()
    system = [text for one in _leading(run.messages) if (text := text_of(one.content).strip())]
    if props.system:
        system.append(props.system)
    options = dict(props.options or {})
    if props.thinking is not None:
        options["thinking"] = props.thinking
    approved = [ALL_TOOLS] if props.approve is True else props.approve or []
    metadata = {**(props.metadata or {}), RUN: run.run_id}
    if approved:
        metadata[APPROVE] = " ".join(approved)
    return NewTurn(
        messages=convert_messages(run.messages),
        model=props.model or model,
        system="\n\n".join(system) or None,
        max_tokens=props.max_tokens,
        tools=[*map(_tool, run.tools), *(props.tools or [])] or None,
        options=options or None,
        session=run.thread_id,
        create_session=True,
        full_history=True,
        **settings_of(props),
        metadata=metadata,
    )


def context_text(context: Iterable[AgentContext]) -> str:
    """Returns the text of a run's context; an empty one without a context."""
    facts = [f"{one.description}:\n{one.value}" if one.description else one.value for one in context if one.value]
    return "\n\n".join(["Context of this message:", *facts]) if facts else ""


def with_context(messages: list[MessageParam], text: str) -> list[MessageParam]:
    """Returns the messages with the context behind the newest question, or behind the newest results of tools.

    The model sees it until the next message of the user. It stays in place then: newer models check that nothing before
    their thinking has changed (PROTOCOL R132). Before the question, this question would be the next message.
    """
    return [*messages, MessageParam("system", text, clear_at="next_user_message")] if text else messages


def convert_messages(messages: list[AgentMessage]) -> list[MessageParam]:
    """Returns the messages for the model, without the system messages at the beginning. Raises Refused.

    An answer of the model is one message, also if AG-UI has several messages for it. The results of its calls follow it
    in the order of the calls, wherever they stand in `messages`: the API takes them nowhere else, and the session has
    them in this order. The first result of a call counts.
    """
    found: list[MessageParam] = []
    blocks: list[Block] = []
    calls: set[str] = set()
    results = {
        one.tool_call_id: (one, number)
        for number, one in reversed([*enumerate(messages)])
        if one.role == "tool" and one.content not in (CUT, NO_RESULT)
    }

    def own_calls() -> list[str]:
        return [block["id"] for block in blocks if block["type"] == "tool_use"]

    has_result = False

    def end_answer() -> None:
        nonlocal blocks, has_result
        own = [_tool_result(*results[call]) for call in own_calls()]
        if not own:
            blocks = without_trailing_thinking(blocks)
        if blocks:
            found.append(MessageParam("assistant", simplify(blocks)))
        if own:
            found.append(MessageParam("user", own))
        blocks, has_result = [], False

    first = len(_leading(messages))
    for number, message in enumerate(messages[first:], first):
        match message.role:
            case "assistant" | "reasoning":
                if has_result:
                    end_answer()
                blocks += _answer_blocks(message, results.keys(), calls)
            case "tool":
                if message.tool_call_id not in calls:
                    raise Refused("request_invalid", NO_CALL.format(number=number, call=message.tool_call_id[:100]))
                has_result = has_result or message.tool_call_id in own_calls()
            case "user":
                end_answer()
                found.append(MessageParam("user", simplify(_content_blocks(message, number))))
            case "system" | "developer":
                end_answer()
                found.append(MessageParam("system", text_of(message.content).strip()))
            case _:
                pass
    end_answer()
    if found and not found[-1].content:
        raise Refused("request_invalid", "the last message has no text and no file")
    # An empty message was refused, and the client repeats it with the next one.
    return [message for message in found if message.content]


def _leading(messages: list[AgentMessage]) -> list[AgentMessage]:
    """Returns the system messages at the beginning."""
    count = next((at for at, one in enumerate(messages) if one.role not in ("system", "developer")), len(messages))
    return messages[:count]


def _answer_blocks(message: AgentMessage, answered: Container[str], calls: set[str]) -> list[Block]:
    """Returns the blocks of a message of the assistant. Adds its calls to `calls`."""
    if message.role == "reasoning":
        secret, text = message.encrypted_value, text_of(message.content)
        if not secret:
            return []
        if secret.startswith(REDACTED):
            return [{"type": "redacted_thinking", "data": secret.removeprefix(REDACTED)}]
        return [{"type": "thinking", "thinking": text, "signature": secret}]
    text = text_of(message.content)
    blocks: list[Block] = [{"type": "text", "text": text}] if text.strip() else []
    for call in message.tool_calls or []:
        given = None if call.id.startswith(SERVER_CALLS) or call.id not in answered else _input(call.function.arguments)
        calls.add(call.id)
        if given is not None:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.function.name, "input": given})
    return blocks


def _input(arguments: str) -> Block | None:
    """Returns the input of a call; None for one that was cut or is not an object, which the API refuses."""
    try:
        return decode_input(arguments or "{}")
    except DECODE_ERRORS:
        return None


def _tool_result(message: AgentMessage, number: int) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if message.error is not None:
        return {**block, "content": message.error or text_of(message.content) or FAILED, "is_error": True}
    if isinstance(message.content, str | None):
        return {**block, "content": message.content or ""}
    return {**block, "content": _content_blocks(message, number)}


def _content_blocks(message: AgentMessage, number: int) -> list[Block]:
    """Returns the blocks of the content of a message. Raises Refused."""
    parts = message.content if isinstance(message.content, list) else [_text_part(message.content)]
    return [block for part in parts for block in _user_blocks(part, number)]


def _user_blocks(part: object, number: int) -> list[Block]:
    """Returns the block of a part, none for an empty text. Raises Refused for a part that Claude does not take."""
    where = f"messages[{number}]"
    match part:
        case {"type": "text", "text": str(text)}:
            return [{"type": "text", "text": text}] if text.strip() else []
        case {"type": "image" | "document" as kind, "source": {"type": "file", "value": str(file)}}:
            return [{"type": kind, "source": {"type": "file", "file_id": file}}]
        case {"type": "image" | "document", "source": {"type": "data", "value": str(data), "mimeType": str(media)}}:
            return [build_file_block(media, f"data:{media};base64,{data}", None, where)]
        case {"type": "image" | "document" as kind, "source": {"type": "url", "value": str(url), **rest}}:
            return [build_file_block(_media_type(kind, rest.get("mimeType")), url, None, where)]
        # The part of clients before 1.0.
        case {"type": "binary", "mimeType": str(media), "data": str(data)}:
            return [build_file_block(media, f"data:{media};base64,{data}", None, where)]
        case {"type": "binary", "mimeType": str(media), "url": str(url)}:
            return [build_file_block(media, url, None, where)]
        case {"type": str(kind)} if kind != "text":
            raise Refused("request_invalid", f"`{where}` has a part of the type {kind[:40]!r}: Claude does not take it")
        case _:
            raise Refused("request_invalid", f"`{where}.content` must be a string or a list of parts with a `type`")


def _media_type(kind: str, media: object) -> str:
    if isinstance(media, str) and media:
        return media
    # The type of an image at an address is not sent to the model.
    return "image/*" if kind == "image" else PDF


def _text_part(content: object) -> object:
    return {"type": "text", "text": "" if content is None else content}


def _tool(tool: AgentTool) -> Block:
    parameters = tool.parameters if isinstance(tool.parameters, dict) else None
    return tool_definition(tool.name, tool.description or None, parameters, strict=None)


def decisions_of(run: RunAgentInput) -> dict[str, Block]:
    """Returns the decision about each call that waits, in the form of `POST /v1/sessions/{session}/calls/{call}`.

    The decisions are in `resume`, and in the results of tools behind the last answer. Raises Refused.
    """
    found: dict[str, Block] = {}
    for number, message in reversed([*enumerate(run.messages)]):
        if message.role != "tool":
            break
        if not message.tool_call_id.startswith(SERVER_CALLS):
            result = _tool_result(message, number)
            found[message.tool_call_id] = {"result": result["content"], "is_error": "is_error" in result}
    return found | {entry.interrupt_id: _decision(entry) for entry in run.resume or ()}


def has_question(run: RunAgentInput) -> bool:
    """Returns whether a message of the user follows the last answer.

    HttpAgent sends no run without the decisions about its interrupts: a question that was asked meanwhile comes with
    them.
    """
    roles = [one.role for one in run.messages if one.role in ("assistant", "user")]
    return "assistant" in roles and roles[-1] == "user"


def with_results(run: RunAgentInput) -> RunAgentInput:
    """Returns the run with its decisions as results of tools. Raises Refused."""
    decided = {entry.interrupt_id: _decision(entry) for entry in run.resume or ()}
    others = [one for one in run.messages if one.role != "tool" or one.tool_call_id not in decided]
    return replace(run, messages=[*others, *(_result_message(call, one) for call, one in decided.items())])


def _result_message(call: str, decision: Block) -> AgentMessage:
    if "result" in decision:
        return AgentMessage("tool", tool_call_id=call, content=decision["result"])
    reason = f": {decision['reason']}" if "reason" in decision else ""
    return AgentMessage("tool", tool_call_id=call, error=f"{DENIED}{reason}")


def _decision(entry: ResumeEntry) -> Block:
    denied: Block = {"decision": "denied"}
    match entry:
        case ResumeEntry(status="cancelled"):
            return denied
        case ResumeEntry(payload={"approved": False, **rest}):
            reason = rest.get("reason")
            return denied | ({"reason": reason} if isinstance(reason, str) and reason else {})
        case ResumeEntry(payload={"result": result}) | ResumeEntry(payload=str(result)):
            text = result if isinstance(result, str) else msgspec.json.encode(result).decode()
            return {"result": text}
        case _:
            raise Refused("request_invalid", UNDECIDED.format(call=entry.interrupt_id[:100]), param="resume")
