"""The body of `POST /v1/chat/completions`, and the turn that it becomes.

The fields are those of OpenAI's API reference, "Create chat completion", and those that OpenAI-compatible servers of
Claude add. An unknown field is refused by name, as OpenAI does, unless it is in FOREIGN, or its value is empty.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from tailrace.gateway.http import read_body
from tailrace.gateway.turns.request_body import AppendedTurn, NewTurn
from tailrace.proto.conversation import simplify
from tailrace.proto.errors import Refused
from tailrace.proto.models import Model
from tailrace.protocols.common.built_turn import BuiltTurn
from tailrace.protocols.common.tool_definition import tool_definition
from tailrace.protocols.common.turn_settings import settings_of
from tailrace.protocols.common.unsupported import ignored, ignored_parameters, plain_names, refused
from tailrace.protocols.openai import common
from tailrace.protocols.openai.builtin_tools import UserLocation, refuse_without, web_search
from tailrace.protocols.openai.chat_messages import (
    AssistantMessage,
    ChatMessage,
    conversation_of,
    unknown_fields,
)
from tailrace.protocols.openai.common import Choice, Effort, RequestBody

Options = dict[str, Any]
OnlyEffort = Annotated[Any, ignored("send `effort`")]
NoPenalty = Annotated[Any, ignored("Claude has no penalties", 0)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    """Whether the stream's last chunk has the usage."""
    include_obfuscation: bool | None = None
    """It has no effect: deltas are not padded."""


class UsageOptions(msgspec.Struct, frozen=True):
    include: bool | None = None
    """Whether the stream's last chunk has the usage."""


class ReasoningOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    """The same as `reasoning_effort`."""
    enabled: OnlyEffort = None
    exclude: OnlyEffort = None
    max_tokens: OnlyEffort = None


class ChatFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """The name of the function."""
    description: str | None = None
    """The description of the function, which the model receives."""
    parameters: dict[str, Any] | None = None
    """The JSON Schema of the function's arguments."""
    strict: bool | None = None
    """Whether the arguments always fit the schema."""


class ChatTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: ChatFunction
    """The function that the model may call."""
    cache_control: dict[str, Any] | None = None
    """Anthropic's field: caches the prompt up to this tool."""


class FunctionName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    """The name of the function."""


class NamedChatTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: FunctionName
    """The function that the model must call."""


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: dict[str, Any]
    """The JSON Schema of the answer."""
    name: str | None = None
    """The name of the schema. It is ignored."""
    description: str | None = None
    """The purpose of the answer. It is ignored."""
    strict: bool | None = None
    """Whether the answer must fit the schema. It is always checked."""


class SearchLocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    approximate: UserLocation
    """The place that results are for."""
    type: Literal["approximate"] = "approximate"
    """`approximate`."""


class WebSearchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_location: SearchLocation | None = None
    """The place that results are for."""
    search_context_size: Annotated[str | None, ignored("Claude decides how much it reads", "medium")] = None


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class PlainText(_Format, frozen=True, tag="text"):
    pass


class AnyJson(_Format, frozen=True, tag="json_object"):
    schema: dict[str, Any] | None = None
    """The JSON Schema of the answer, which other OpenAI-compatible servers accept here."""


class JsonSchema(_Format, frozen=True, tag="json_schema"):
    json_schema: Schema
    """The schema of the answer."""


class ChatCompletionRequest(RequestBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/chat/completions`. The last group of fields is not supported."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    """The conversation, oldest message first."""
    stream_options: StreamOptions | None = None
    """`include_usage`: one more chunk has the usage. Chunks are never padded."""
    max_tokens: int | None = None
    """The older name of `max_completion_tokens`; if both are sent, they must be equal."""
    max_completion_tokens: int | None = None
    """The most output tokens that the answer may have, thinking included.

    By default `TAILRACE_MAX_TOKENS`; OpenAI's default is the model's maximum.
    """
    stop: str | list[str] | None = None
    """Texts at which the answer ends. One of whitespace only is ignored, because Claude refuses it."""
    tools: list[ChatTool] | None = None
    """The functions that the model may call. `strict` and Anthropic's `cache_control` are passed on."""
    tool_choice: Choice | NamedChatTool | None = None
    """`auto`, `none`, `required`, or the function that the model must call. `allowed_tools` is refused."""
    response_format: PlainText | AnyJson | JsonSchema | None = None
    """`text`, `json_object`, or `json_schema` with the schema that the answer must fit."""
    reasoning_effort: Effort | None = None
    """An effort level of the model, with thinking; `none` where thinking can be turned off."""
    reasoning: ReasoningOptions | None = None
    """OpenRouter's `effort`. `reasoning_effort` takes precedence."""
    usage: UsageOptions | None = None
    """OpenRouter's name of `stream_options`: `include`."""

    web_search_options: WebSearchOptions | None = None
    """Lets the model search the web: `user_location`; `search_context_size` is ignored."""

    n: Annotated[Any, refused("a request has one answer; send several requests", 1)] = None
    logprobs: Annotated[Any, refused(common.NO_PROBABILITIES, False)] = None
    logit_bias: Annotated[Any, refused("Claude's tokens cannot be weighted", {})] = None
    modalities: Annotated[Any, refused("Claude answers in text; the only value is `text`", ["text"])] = None
    audio: Annotated[Any, refused("Claude answers in text")] = None
    functions: Annotated[Any, refused("it is deprecated; send `tools`", [])] = None
    function_call: Annotated[Any, refused("it is deprecated; send `tool_choice`")] = None
    presence_penalty: NoPenalty = None
    frequency_penalty: NoPenalty = None
    seed: Annotated[Any, ignored("Claude has no seed, and OpenAI's guarantees nothing")] = None
    verbosity: Annotated[Any, ignored("ask for it in the prompt", "medium")] = None
    prediction: Annotated[Any, ignored("it changes only the speed")] = None


# Fields of other servers of this protocol that change the meaning of the answer as little as a seed.
SAMPLERS = {"min_p", "top_a", "repetition_penalty", "include_reasoning", "enable_thinking", "chat_template_kwargs"}
FOREIGN = SAMPLERS | {"debug", "models", "provider", "route", "transforms"}
KNOWN = {field.encode_name for field in msgspec.structs.fields(ChatCompletionRequest)}
EMPTY: tuple[object, ...] = (None, False, "", [], {})


def convert(fields: dict[str, Any]) -> ChatCompletionRequest:
    """Returns a body. Raises Refused for an unknown field, unless it is ignored."""
    foreign = foreign_fields(fields)
    known = {name: value for name, value in fields.items() if name not in foreign}
    return read_body.convert(known, ChatCompletionRequest)


def foreign_fields(fields: dict[str, Any]) -> list[str]:
    """Returns the names of unknown fields that are ignored."""
    return [name for name, value in fields.items() if name in FOREIGN or (name not in KNOWN and value in EMPTY)]


def build_turn(
    chat: ChatCompletionRequest, model: Model, fields: dict[str, Any], offered: Iterable[Model] = ()
) -> BuiltTurn:
    """Returns the turn for `model`, and the ignored parameters of the whole body, `fields`.

    `offered`: the models that the client can choose. Raises Refused with the name of a wrong field.
    """
    search = chat.web_search_options
    tools = [_tool(tool) for tool in chat.tools or ()]
    if search is not None:
        refuse_without("web_search", model, offered, "web_search_options")
        tools.append(web_search(search.user_location.approximate if search.user_location is not None else None))
    sampling, ignored_sampling = common.sampling(chat, model)
    # A body with an answer in it is the whole conversation; one without an answer adds to the session.
    is_whole = any(isinstance(message, AssistantMessage) for message in chat.messages)
    system, messages = conversation_of(chat.messages)
    turn = (NewTurn if is_whole else AppendedTurn)(
        messages=messages,
        full_history=is_whole,
        system=simplify(system) or None,
        model=model.id,
        max_tokens=_max_tokens(chat.max_completion_tokens, chat.max_tokens),
        tools=tools or None,
        options=sampling | _options(chat, model) or None,
        session=chat.session_id,
        create_session=chat.session_id is not None,
        **settings_of(chat),
        metadata=chat.metadata,
        user=chat.safety_identifier or chat.user or None,
    )
    ignored = [
        *ignored_sampling,
        *ignored_parameters(chat),
        *plain_names(foreign_fields(fields)),
        *(["stop"] if len(_stop_sequences(chat)) < len(_stops(chat)) else []),
        *unknown_fields(chat.messages, fields["messages"]),
    ]
    return BuiltTurn(turn, ignored, _client_names(chat))


def _client_names(chat: ChatCompletionRequest) -> dict[str, str]:
    """Returns the `names` of a BuiltTurn."""
    return {
        **common.client_names(chat),
        "max_tokens": "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens",
    }


def _max_tokens(new: int | None, old: int | None) -> int | None:
    if new is not None and old is not None and new != old:
        raise Refused("request_invalid", "`max_tokens` and `max_completion_tokens` differ: send only the second")
    return old if new is None else new


def _tool(tool: ChatTool) -> Options:
    function = tool.function
    return tool_definition(
        function.name,
        function.description,
        function.parameters,
        strict=function.strict,
        cache_control=tool.cache_control,
    )


def _options(chat: ChatCompletionRequest, model: Model) -> Options:
    """Returns the equivalent fields of Anthropic's Messages API that a turn has no field for."""
    asked, where = chat.reasoning_effort, "reasoning_effort"
    if asked is None and chat.reasoning is not None:
        asked, where = chat.reasoning.effort, "reasoning.effort"
    effort = common.effort(asked, model, where)
    given = {
        "stop_sequences": _stop_sequences(chat),
        "tool_choice": _tool_choice(chat),
        "output_config": ({"effort": effort} if effort else {}) | _format(chat),
        "thinking": chat.thinking or common.thinking(asked, model, where),
    }
    return common.options(chat, given)


def _stop_sequences(chat: ChatCompletionRequest) -> list[str]:
    """Returns the `stop` texts without those of whitespace only, which Claude refuses."""
    return [text for text in _stops(chat) if text.strip()]


def _stops(chat: ChatCompletionRequest) -> list[str]:
    return [chat.stop] if isinstance(chat.stop, str) else chat.stop or []


def _tool_choice(chat: ChatCompletionRequest) -> Options | None:
    if not chat.tools and chat.web_search_options is None and chat.tool_choice in (None, "auto", "none"):
        return None
    if isinstance(chat.tool_choice, NamedChatTool):
        return common.tool_choice(None, chat.tool_choice.function.name, parallel=chat.parallel_tool_calls)
    return common.tool_choice(chat.tool_choice, None, parallel=chat.parallel_tool_calls)


def _format(chat: ChatCompletionRequest) -> Options:
    match chat.response_format:
        case AnyJson(schema=None):
            return {"format": common.ANY_OBJECT}
        case AnyJson(schema=schema) | JsonSchema(json_schema=Schema(schema=schema)):
            return {"format": {"type": "json_schema", "schema": schema}}
        case _:
            return {}
