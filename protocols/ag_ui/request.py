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

The rules of the model's API are in protocols/common/history_items.py.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from tailrace.gateway.turns.idempotency_key import IDEMPOTENCY_KEY
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, OnBusy
from tailrace.proto.conversation import simplify
from tailrace.proto.errors import Refused
from tailrace.protocols.ag_ui.blocks import CUT, NO_RESULT
from tailrace.protocols.ag_ui.messages import text_of
from tailrace.protocols.ag_ui.stream import ALL_TOOLS, APPROVE, RUN
from tailrace.protocols.common.file_block import build_file, refused_part, uploaded_file
from tailrace.protocols.common.history_items import (
    Item,
    build_call,
    build_messages,
    build_text,
    build_thinking,
    each_answer_once,
)
from tailrace.protocols.common.media_types import PDF
from tailrace.protocols.common.tool_definition import SERVER_CALLS, build_result, denial, tool_definition
from tailrace.protocols.common.turn_settings import TurnSettings, settings_of
from tailrace.protocols.common.unsupported import plain_names

Block = dict[str, Any]

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
    system, messages = build_messages(_items(run.messages), is_page=True)
    system += build_text(props.system or "")
    options = dict(props.options or {})
    if props.thinking is not None:
        options["thinking"] = props.thinking
    approved = [ALL_TOOLS] if props.approve is True else props.approve or []
    metadata = {**(props.metadata or {}), RUN: run.run_id}
    if approved:
        metadata[APPROVE] = " ".join(approved)
    return NewTurn(
        messages=messages,
        model=props.model or model,
        system=simplify(system) or None,
        max_tokens=props.max_tokens,
        tools=[*map(_tool, run.tools), *(props.tools or [])] or None,
        options=options or None,
        session=run.thread_id,
        create_session=True,
        full_history=True,
        **settings_of(props),
        metadata=metadata,
    )


def context_text(run: RunAgentInput) -> str:
    """Returns the text of a run's context; an empty one without a context, or while a server tool's call is open.

    The API executes such a call when the request ends with the results of the client's tools.
    """
    if run.messages and run.messages[-1].role == "tool":
        answered = {one.tool_call_id for one in run.messages if one.content not in (CUT, NO_RESULT)}
        answer = next((one.tool_calls or [] for one in reversed(run.messages) if one.role == "assistant"), [])
        if any(call.id.startswith(SERVER_CALLS) and call.id not in answered for call in answer):
            return ""
    facts = [f"{one.description}:\n{one.value}" if one.description else one.value for one in run.context if one.value]
    return "\n\n".join(["Context of this message:", *facts]) if facts else ""


def with_context(messages: list[MessageParam], text: str) -> list[MessageParam]:
    """Returns the messages with the context behind the newest question, or behind the newest results of tools.

    The model sees it until the next message of the user. It stays in place then: newer models check that nothing before
    their thinking has changed (PROTOCOL R132). Before the question, this question would be the next message.
    """
    return [*messages, MessageParam("system", text, clear_at="next_user_message")] if text else messages


def _items(messages: Iterable[AgentMessage], first: int = 0) -> Iterator[Item]:
    """Yields the items of messages, the first of which has the number `first`."""
    for number, one in each_answer_once(messages, first):
        match one.role:
            case "user":
                yield Item("user", _parts(one.content, number), number)
            case "system" | "developer":
                yield Item("system", build_text(text_of(one.content)), number)
            case "reasoning":
                yield Item("assistant", build_thinking(text_of(one.content), one.encrypted_value or ""), number)
            case "assistant":
                calls = [build_call(c.id, c.function.name, c.function.arguments) for c in one.tool_calls or ()]
                yield Item("assistant", [*build_text(text_of(one.content)), *calls], number)
            case "tool" if one.content not in (CUT, NO_RESULT):
                yield Item("result", [_tool_result(one, number)], number)


def _tool_result(message: AgentMessage, number: int) -> Block:
    if message.error is not None:
        return build_result(message.tool_call_id, message.error or text_of(message.content), is_error=True)
    is_text = isinstance(message.content, str | None)
    return build_result(message.tool_call_id, message.content or "" if is_text else _parts(message.content, number))


def _parts(content: object, number: int) -> list[Block]:
    """Returns the blocks of the content of a message. Raises Refused."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": "" if content is None else content}]
    return [block for part in parts for block in _blocks(part, number)]


def _blocks(part: object, number: int) -> list[Block]:
    match part:
        case {"type": "text", "text": str(text)}:
            return build_text(text)
        case {"type": "image" | "document" as kind, "source": {"type": "file", "value": str(file)}}:
            return [uploaded_file(kind, file)]
        case {"type": "image" | "document" as kind, "source": {"type": "data" | "url", "value": str(url), **more}}:
            # The type of an image at an address is not sent to the model.
            return build_file(str(more.get("mimeType") or ("image/*" if kind == "image" else PDF)), url)
        # The part of clients before 1.0.
        case {"type": "binary", "mimeType": str(media), **more}:
            return build_file(media, str(more.get("data") or more.get("url") or ""))
        case {"type": str(kind)} if kind != "text":
            return [refused_part(f"has a part of the type {kind[:40]!r}: Claude does not take it", kind)]
        case _:
            why = f"`messages[{number}].content` must be a string or a list of parts with a `type`"
            raise Refused("request_invalid", why)


def _tool(tool: AgentTool) -> Block:
    parameters = tool.parameters if isinstance(tool.parameters, dict) else None
    return tool_definition(tool.name, tool.description or None, parameters, strict=None)


def decisions_of(run: RunAgentInput) -> dict[str, Block]:
    """Returns the decision about each call that waits, in the form of `POST /v1/sessions/{session}/calls/{call}`.

    The decisions are in `resume`, and in the results of tools behind the last answer. Raises Refused.
    """
    behind = max((at + 1 for at, one in enumerate(run.messages) if one.role != "tool"), default=0)
    _, messages = build_messages(_items(run.messages[behind:], behind))
    found = {
        block["tool_use_id"]: {"result": block["content"], "is_error": "is_error" in block}
        for message in messages
        for block in message.content
        if isinstance(block, dict) and not block["tool_use_id"].startswith(SERVER_CALLS)
    }
    return found | {entry.interrupt_id: _decision(entry) for entry in run.resume or ()}


def has_question(run: RunAgentInput) -> bool:
    """Returns whether a message of the user follows the last answer.

    HttpAgent sends no run without the decisions about its interrupts: a question that was asked meanwhile comes with
    them.
    """
    roles = [one.role for one in run.messages if one.role in ("assistant", "user")]
    return "assistant" in roles and roles[-1] == "user"


def with_results(run: RunAgentInput) -> RunAgentInput:
    """Returns the run with its decisions as the first results behind the last answer, which count. Raises Refused."""
    behind = max((at + 1 for at, one in enumerate(run.messages) if one.role == "assistant"), default=0)
    decided = [_result_message(entry.interrupt_id, _decision(entry)) for entry in run.resume or ()]
    return replace(run, messages=[*run.messages[:behind], *decided, *run.messages[behind:]])


def _result_message(call: str, decision: Block) -> AgentMessage:
    if "result" in decision:
        return AgentMessage("tool", tool_call_id=call, content=decision["result"])
    return AgentMessage("tool", tool_call_id=call, error=denial(decision.get("reason")))


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
