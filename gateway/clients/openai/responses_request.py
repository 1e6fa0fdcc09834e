"""The body of `POST /v1/responses`, and the question that it becomes. Pure: it asks nobody.

OpenAI's API reference, "Create a model response", and the fields that all of our protocols add. A field that neither
has is refused by name, as OpenAI does it.
"""

from typing import Any, Literal

import msgspec

from tailrace.gateway.clients.openai import common
from tailrace.gateway.clients.openai.common import Choice, Effort, Fields
from tailrace.gateway.clients.openai.responses_input import InputItem, messages_of, system_of
from tailrace.gateway.clients.openai.responses_object import PREFIX
from tailrace.gateway.clients.openai.responses_parameters import FOREIGN
from tailrace.gateway.clients.openai.unsupported import Asked, ignored
from tailrace.gateway.turns.request_body import NewTurn, OnBusy
from tailrace.proto.entries import OnInterrupt
from tailrace.proto.errors import Refused
from tailrace.proto.ids import is_token
from tailrace.proto.models import Model


class Tool(msgspec.Struct, frozen=True):
    """A function; OpenAI's own tools have other types, and are refused."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: Fields | None = None
    strict: bool | None = None


class NamedTool(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Any = None
    mode: str | None = None


class Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    schema: Fields | None = None


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Format | None = None
    verbosity: str | None = None


class Conversation(msgspec.Struct, frozen=True):
    id: str


class ResponseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Null is nothing, as OpenAI has it. The last of the fields are those of `response_parameters.FOREIGN`."""

    input: str | list[InputItem]
    model: str
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | Conversation | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    safety_identifier: str | None = None

    thinking: Fields | None = None
    session_id: str | None = None
    project_id: str | None = None
    on_busy: OnBusy = "reject"
    max_cost: float | None = None
    on_interrupt: OnInterrupt = "continue"
    on_disconnect: str = "continue"

    prompt: Any = None
    moderation: Any = None
    context_management: Any = None
    top_logprobs: Any = None
    service_tier: Any = None
    access_programs: Any = None
    truncation: Any = None
    include: Any = None
    store: Any = None
    max_tool_calls: Any = None
    stream_options: Any = None
    image: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


def asked(told: ResponseRequest, model: Model) -> Asked:
    """What `told` asks of `model`; raises Refused, with the name of what cannot be asked."""
    reasoning, text = told.reasoning or Reasoning(), told.text or Text()
    sampling, unsampled = common.sampling(told.temperature, told.top_p, model)
    in_vain = [*ignored(told, FOREIGN), *unsampled]
    if reasoning.mode not in (None, "standard"):
        raise Refused("request_invalid", "`reasoning.mode` is not supported: choose an `effort`")
    if reasoning.context not in (None, "auto"):
        in_vain.append("reasoning.context")
    if text.verbosity not in (None, "medium"):
        in_vain.append("text.verbosity")
    session, messages = _session(told), messages_of(told.input)
    ask = NewTurn(
        messages=messages,
        system=system_of(told.input, told.instructions),
        model=model.id,
        max_tokens=told.max_output_tokens,
        tools=[_tool(tool, index) for index, tool in enumerate(told.tools)] if told.tools else None,
        options=_options(told, model) | sampling or None,
        session=session,
        create_session=session is not None,
        # In a session of our own, as in chat completions: who tells an answer tells the conversation.
        full_history=told.session_id is not None and any(message.role == "assistant" for message in messages),
        parent=msgspec.UNSET if told.previous_response_id is None else _turn(told.previous_response_id),
        project=told.project_id,
        metadata=told.metadata,
        on_busy=told.on_busy,
        max_cost=told.max_cost,
        on_interrupt=told.on_interrupt,
        on_disconnect=told.on_disconnect,
    )
    return Asked(ask, in_vain)


def _session(told: ResponseRequest) -> str | None:
    conversation = told.conversation.id if isinstance(told.conversation, Conversation) else told.conversation
    if conversation is not None and told.session_id not in (None, conversation):
        raise Refused("request_invalid", "`conversation` and `session_id` differ: send one of them")
    if conversation is not None and told.previous_response_id is not None:
        raise Refused(
            "request_invalid", "send either `conversation` or `previous_response_id`: each says where to go on"
        )
    return conversation if conversation is not None else told.session_id


def _turn(response: str) -> str:
    turn = response.removeprefix(PREFIX)
    if not is_token(turn):
        raise Refused(
            "parent_not_found", "there is no such response: `previous_response_id` is one that you were given"
        )
    return turn


def _tool(tool: Tool, index: int) -> Fields:
    if tool.type != "function" or not tool.name:
        raise Refused(
            "request_invalid",
            f"`tools[{index}]`: `{tool.type[:64]}` is none of Claude's: send functions, `type` and `name`",
        )
    return common.tool(tool.name, tool.description, tool.parameters, strict=tool.strict)


def _options(told: ResponseRequest, model: Model) -> Fields:
    """The further fields of Anthropic's Messages API that say the same."""
    reasoning = told.reasoning or Reasoning()
    user = told.safety_identifier or told.user
    config = {"effort": common.effort(reasoning.effort, model, "reasoning.effort"), "format": _format(told)}
    given = {
        "tool_choice": _choice(told, model),
        "output_config": {name: value for name, value in config.items() if value is not None},
        "thinking": told.thinking or _thinking(reasoning, model),
        "metadata": {"user_id": user} if user else None,
    }
    return {name: value for name, value in given.items() if value not in (None, {})}


def _choice(told: ResponseRequest, model: Model) -> Fields | None:
    if not told.tools:
        return None
    match told.tool_choice:
        case NamedTool(type="function", name=str(name)):
            return common.tool_choice(None, name, model, parallel=told.parallel_tool_calls)
        case NamedTool(type=kind):
            raise Refused("request_invalid", f"`tool_choice`: `{kind[:64]}` is not supported: name a function")
        case wanted:
            return common.tool_choice(wanted, None, model, parallel=told.parallel_tool_calls)


def _format(told: ResponseRequest) -> Fields | None:
    match told.text and told.text.format:
        case Format(type="json_schema", schema=dict(schema)):
            return {"type": "json_schema", "schema": schema}
        case Format(type="json_schema" | "json_object"):
            why = "Claude gives JSON of a schema, not any JSON: send `json_schema`, with its `schema`"
            raise Refused("request_invalid", f"`text.format`: {why}")
        case _:
            return None


def _thinking(reasoning: Reasoning, model: Model) -> Fields | None:
    """Who asks for a summary asks for thoughts that can be read; not every model shows them by itself."""
    thinking = common.thinking(reasoning.effort, model, "reasoning.effort")
    is_shown = (reasoning.summary or reasoning.generate_summary) is not None
    if is_shown and thinking is None and reasoning.effort is None and "adaptive" in (model.supports.thinking or ()):
        thinking = {"type": "adaptive"}
    if is_shown and thinking == {"type": "adaptive"}:
        return thinking | {"display": "summarized"}
    return thinking
