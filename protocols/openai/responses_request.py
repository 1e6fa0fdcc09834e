"""The body of `POST /v1/responses`, and the turn that it becomes.

The fields are those of OpenAI's API reference, "Create a model response", and those that Tailrace adds to every
protocol. An unknown field is refused by name, as OpenAI does.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec

from tailrace.gateway.turns.request_body import AppendedTurn, NewTurn, refuse_fields
from tailrace.proto.conversation import simplify
from tailrace.proto.errors import Refused
from tailrace.proto.ids import is_token
from tailrace.proto.models import Model
from tailrace.protocols.common.built_turn import BuiltTurn
from tailrace.protocols.common.turn_settings import settings_of
from tailrace.protocols.common.unsupported import ignored, ignored_parameters, refused
from tailrace.protocols.openai import common
from tailrace.protocols.openai.builtin_tools import MCP_BETA, TOOLS, BuiltTools, build_tools, turn_of_container
from tailrace.protocols.openai.common import Choice, Effort, Fields, RequestBody
from tailrace.protocols.openai.responses_input import InputItem, conversation_of, lost_calls
from tailrace.protocols.openai.responses_object import PREFIX

NO_COMPACTION = "conversations are not compacted; send what the model needs"
NO_TRUNCATION = "nothing is cut; a conversation that is too long is refused"
AT_ONCE = "a response with `background` is generated at once"


class NamedResponseTool(msgspec.Struct, frozen=True):
    type: str
    """`function`."""
    name: str | None = None
    """The name of the function that the model must call."""


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: Effort | None = None
    """How much the model thinks before it answers."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Whether the response has a summary of the reasoning."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The older name of `summary`."""
    context: Annotated[Any, ignored("Claude's API decides which earlier reasoning the model gets", "auto")] = None
    mode: Annotated[str | None, refused("send `reasoning.effort`", "standard")] = None


class Format(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    """Whether the answer is text, JSON, or JSON that fits `schema`."""
    schema: Fields | None = None
    """The JSON Schema of the answer."""


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Format | None = None
    """The format of the answer."""
    verbosity: Annotated[str | None, ignored("ask for the length in the prompt", "medium")] = None


class Conversation(msgspec.Struct, frozen=True):
    id: str
    """The session that the response continues."""


class ResponseRequest(RequestBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/responses`. The last group of fields is not supported."""

    input: str | list[InputItem]
    """The new user message, or a list of messages and results of functions."""
    instructions: str | None = None
    """The system prompt of this response only; an empty one is none."""
    background: bool | None = None
    """Whether the request returns at once, while the response is generated.

    With `stream`, the response does not wait for the first event.
    """
    previous_response_id: str | None = None
    """The response to continue, also with a `session_id`: `input` has only the items after that response.

    404 if it does not exist, 409 while it runs.
    """
    conversation: str | Conversation | None = None
    """The conversation to continue or create, a name of yours. Not with `previous_response_id`."""
    max_output_tokens: int | None = None
    """The most output tokens that the answer may have, thinking included.

    By default `TAILRACE_MAX_TOKENS`; OpenAI's default is the model's maximum.
    """
    tools: list[Fields] | None = None
    """The functions and built-in tools that the model may call.

    `type` is `function`, with `name`, `description`, `parameters` and `strict`; or `web_search`, `code_interpreter` or
    `mcp`, which Anthropic executes (docs/OPENAI.md, "Built-in tools").
    """
    max_tool_calls: int | None = None
    """The most calls of built-in tools. It has an effect if web search is the only one, and is ignored otherwise."""
    include: list[str] | None = None
    """Further parts of the response. It always has encrypted reasoning, the sources of searches and the output of code,
    and nothing else.
    """
    tool_choice: Choice | NamedResponseTool | None = None
    """`auto`, `none`, `required`, or the function that the model must call. `allowed_tools` is refused."""
    reasoning: Reasoning | None = None
    """`effort`, with thinking; `summary`: visible thinking. `context` is ignored, `mode` must be `standard`."""
    text: Text | None = None
    """`format`: `text`, `json_schema` or `json_object`. `verbosity` is ignored."""
    store: bool | None = None
    """Whether the response is kept. False: the response continues nothing, cannot be continued, and is erased some
    minutes after its end. Not with `background` without `stream`, nor in a batch.
    """

    prompt: Annotated[Any, refused("there are no stored prompts; send `instructions` and `input`")] = None
    context_management: Annotated[Any, refused(NO_COMPACTION, [])] = None
    access_programs: Annotated[Any, refused("there are no access programs", {})] = None
    background_options: Annotated[Any, ignored(AT_ONCE, {}, {"completion_window": "soonest"})] = None
    truncation: Annotated[Any, ignored(NO_TRUNCATION, "disabled")] = None
    stream_options: Annotated[Any, ignored("deltas are not padded", {}, {"include_obfuscation": False})] = None
    client_metadata: Annotated[Any, ignored("it is Codex's, for OpenAI's statistics of its sessions", {})] = None
    image: Annotated[Any, ignored("images are passed on unchanged")] = None


# The parts that a response always has.
INCLUDED = frozenset({"reasoning.encrypted_content", "web_search_call.action.sources", "code_interpreter_call.outputs"})


def build_turn(
    body: ResponseRequest, model: Model, offered: Iterable[Model] = (), container: str | None = None
) -> BuiltTurn:
    """Returns the turn for `model`, and the ignored parameters. Raises Refused with the name of a wrong field.

    `offered`: the models that the client can choose. `container`: that of the code before, in Claude's API.
    """
    sampling, ignored_sampling = common.sampling(body, model)
    names = [*ignored_sampling, *ignored_parameters(body)]
    tools = build_tools(body.tools or (), model, offered, body.max_tool_calls)
    if container is None and (named := tools.container) is not None:
        if turn_of_container(named) is not None:
            raise Refused("request_invalid", "`container` cannot be continued in a batch: send `auto`")
        container = named
    names += tools.ignored
    names += ["include"] if set(body.include or ()) - INCLUDED else []
    names += [f"input.{kind}" for kind in lost_calls(body.input)]
    session, parent = session_of(body), parent_of(body)
    system, messages = conversation_of(body.input, body.instructions)
    if body.store is False:
        refuse_fields(body, "previous_response_id", "conversation", "session_id", "project_id")
        if not body.stream:
            # An answer that is not stored can only be read from its stream.
            refuse_fields(body, "background")
    # In a named session, as for chat completions: a body with an answer in it is the whole conversation, unless it also
    # names the response that it continues.
    is_named = body.session_id is not None
    is_whole = is_named and parent is None and any(message.role == "assistant" for message in messages)
    turn = (AppendedTurn if is_named and not is_whole else NewTurn)(
        messages=messages,
        system=simplify(system) or None,
        model=model.id,
        max_tokens=body.max_output_tokens,
        tools=tools.tools or None,
        options=_options(body, model, tools, container) | sampling or None,
        betas=[MCP_BETA] if tools.servers else None,
        session=session,
        create_session=session is not None,
        full_history=is_whole,
        parent=msgspec.UNSET if parent is None else parent,
        **settings_of(body),
        metadata=body.metadata,
        user=body.safety_identifier or body.user or None,
        store=body.store is not False,
    )
    return BuiltTurn(turn, names, _client_names(body))


def _client_names(body: ResponseRequest) -> dict[str, str]:
    """Returns the `names` of a BuiltTurn."""
    return {
        **common.client_names(body),
        **({} if body.conversation is None else {"session": "conversation"}),
        "messages": "input",
        "parent": "previous_response_id",
        "max_tokens": "max_output_tokens",
    }


def session_of(body: ResponseRequest) -> str | None:
    """Returns the session to continue or create. Raises Refused if the fields that name it contradict each other."""
    conversation = body.conversation.id if isinstance(body.conversation, Conversation) else body.conversation
    if conversation is not None and body.session_id not in (None, conversation):
        raise Refused("request_invalid", "`conversation` and `session_id` differ: send one of them")
    if conversation is not None and body.previous_response_id is not None:
        raise Refused(
            "request_invalid",
            "send either `conversation` or `previous_response_id`: each names what to continue",
            param="conversation",
        )
    return conversation if conversation is not None else body.session_id


def parent_of(body: ResponseRequest) -> str | None:
    """Returns the turn of `previous_response_id`. Raises Refused if it is not the id of a response."""
    if body.previous_response_id is None:
        return None
    turn = body.previous_response_id.removeprefix(PREFIX)
    if not is_token(turn):
        raise Refused(
            "parent_not_found", "`previous_response_id` is not the id of a response: send an id that a response had"
        )
    return turn


def _options(body: ResponseRequest, model: Model, tools: BuiltTools, container: str | None) -> Fields:
    """Returns the equivalent fields of Anthropic's Messages API that a turn has no field for."""
    reasoning = body.reasoning or Reasoning()
    config = {"effort": common.effort(reasoning.effort, model, "reasoning.effort"), "format": _format(body)}
    given = {
        "tool_choice": _tool_choice(body),
        "output_config": {name: value for name, value in config.items() if value is not None},
        "thinking": body.thinking or _thinking(reasoning, model),
        "mcp_servers": tools.servers or None,
        "container": container,
    }
    return common.options(body, given)


def _tool_choice(body: ResponseRequest) -> Fields | None:
    if not body.tools and body.tool_choice in (None, "auto", "none"):
        return None
    match body.tool_choice:
        case NamedResponseTool(type="function", name=str(name)):
            return common.tool_choice(None, name, parallel=body.parallel_tool_calls)
        case NamedResponseTool(type=kind):
            why = "ask for it in the prompt" if kind in TOOLS else "name a function"
            raise Refused("request_invalid", f"`tool_choice`: `{kind[:64]}` is not supported: {why}")
        case choice:
            return common.tool_choice(choice, None, parallel=body.parallel_tool_calls)


def _format(body: ResponseRequest) -> Fields | None:
    match body.text and body.text.format:
        case Format(type="json_schema" | "json_object", schema=dict(schema)):
            return {"type": "json_schema", "schema": schema}
        case Format(type="json_object"):
            return common.ANY_OBJECT
        case Format(type="json_schema"):
            raise Refused("request_invalid", "`text.format` needs a schema: send `json_schema` with its `schema`")
        case _:
            return None


def _thinking(reasoning: Reasoning, model: Model) -> Fields | None:
    """Returns the `thinking` field. A request for a summary turns visible thinking on, where the model needs that."""
    thinking = common.thinking(reasoning.effort, model, "reasoning.effort")
    has_summary = (reasoning.summary or reasoning.generate_summary) is not None
    if has_summary and thinking is None and reasoning.effort is None and "adaptive" in (model.supports.thinking or ()):
        thinking = {"type": "adaptive"}
    if has_summary and thinking == {"type": "adaptive"}:
        return thinking | {"display": "summarized"}
    return thinking
