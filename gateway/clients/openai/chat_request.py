"""The body of `POST /v1/chat/completions`, and the question that it becomes. Pure: it asks nobody.

OpenAI's API reference, "Create chat completion", and the fields that OpenAI-compatible servers of Claude add. A field
that neither has is refused by name, as OpenAI does it.
"""

from typing import Annotated, Any

import msgspec

from tailrace.gateway.clients.openai import common
from tailrace.gateway.clients.openai.chat_messages import AssistantMessage, ChatMessage, conversation_of, system_of
from tailrace.gateway.clients.openai.chat_parameters import FOREIGN
from tailrace.gateway.clients.openai.common import Choice, Effort
from tailrace.gateway.clients.openai.unsupported import Asked, ignored
from tailrace.gateway.turns.request_body import NewTurn, OnBusy
from tailrace.proto.entries import OnInterrupt
from tailrace.proto.errors import Refused
from tailrace.proto.models import Model

Options = dict[str, Any]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: Function
    cache_control: dict[str, Any] | None = None


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: Named


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class PlainText(_Format, frozen=True, tag="text"):
    pass


class AnyJson(_Format, frozen=True, tag="json_object"):
    pass


class JsonSchema(_Format, frozen=True, tag="json_schema"):
    json_schema: Schema


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Null is nothing, as OpenAI has it. The last of the fields are those of `chat_parameters.FOREIGN`."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: PlainText | AnyJson | JsonSchema | None = None
    reasoning_effort: Effort | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    thinking: Options | None = None
    session_id: str | None = None
    project_id: str | None = None
    on_busy: OnBusy = "reject"
    max_cost: float | None = None
    on_interrupt: OnInterrupt = "continue"
    on_disconnect: str = "continue"

    n: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    logit_bias: Any = None
    modalities: Any = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    moderation: Any = None
    service_tier: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    seed: Any = None
    verbosity: Any = None
    prediction: Any = None
    store: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


def asked(chat: ChatRequest, model: Model) -> Asked:
    """What `chat` asks of `model`; raises Refused, with the name of what cannot be asked."""
    sampling, unsampled = common.sampling(chat.temperature, chat.top_p, model)
    ask = NewTurn(
        messages=conversation_of(chat.messages),
        # Who tells an answer tells the conversation; who tells none tells what is new in it.
        full_history=any(isinstance(message, AssistantMessage) for message in chat.messages),
        system=system_of(chat.messages),
        model=model.id,
        max_tokens=_either(chat.max_completion_tokens, chat.max_tokens),
        tools=[_tool(tool) for tool in chat.tools] if chat.tools else None,
        options=sampling | _options(chat, model) or None,
        session=chat.session_id,
        create_session=chat.session_id is not None,
        project=chat.project_id,
        metadata=chat.metadata,
        on_busy=chat.on_busy,
        max_cost=chat.max_cost,
        on_interrupt=chat.on_interrupt,
        on_disconnect=chat.on_disconnect,
    )
    return Asked(ask, [*ignored(chat, FOREIGN), *unsampled])


def _either(new: int | None, old: int | None) -> int | None:
    if new is not None and old is not None and new != old:
        raise Refused("request_invalid", "`max_tokens` and `max_completion_tokens` differ: send the second alone")
    return old if new is None else new


def _tool(tool: Tool) -> Options:
    function = tool.function
    further = {} if tool.cache_control is None else {"cache_control": tool.cache_control}
    return common.tool(function.name, function.description, function.parameters, strict=function.strict, **further)


def _options(chat: ChatRequest, model: Model) -> Options:
    """The further fields of Anthropic's Messages API that say the same."""
    effort = common.effort(chat.reasoning_effort, model, "reasoning_effort")
    user = chat.safety_identifier or chat.user
    given = {
        "stop_sequences": [chat.stop] if isinstance(chat.stop, str) else chat.stop,
        "tool_choice": _choice(chat, model),
        "output_config": ({"effort": effort} if effort else {}) | _format(chat),
        "thinking": chat.thinking or common.thinking(chat.reasoning_effort, model, "reasoning_effort"),
        "metadata": {"user_id": user} if user else None,
    }
    return {name: value for name, value in given.items() if value}


def _choice(chat: ChatRequest, model: Model) -> Options | None:
    if not chat.tools:
        return None
    named = chat.tool_choice.function.name if isinstance(chat.tool_choice, NamedTool) else None
    wanted = None if isinstance(chat.tool_choice, NamedTool) else chat.tool_choice
    return common.tool_choice(wanted, named, model, parallel=chat.parallel_tool_calls)


def _format(chat: ChatRequest) -> Options:
    match chat.response_format:
        case AnyJson():
            raise Refused(
                "request_invalid",
                "`response_format`: Claude gives JSON of a schema, not any JSON: send `json_schema`",
            )
        case JsonSchema(json_schema=Schema(schema=schema)):
            return {"format": {"type": "json_schema", "schema": schema}}
        case _:
            return {}
