"""Messages requests: types, and the checks of Anthropic's API."""

import itertools
import re
from typing import Any, Literal

import msgspec

from tailrace.deploy.simulated_claude.model import BY_NAME, Model
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.proto.decoding import DECODE_ERRORS

LONG_CHARS = 1_000_000
Role = Literal["user", "assistant", "system"]
SAMPLING = ("temperature", "top_p", "top_k")
FORCING = ("any", "tool")
# The beginnings of the types of tools that the API executes.
EXECUTED = ("web_search_", "web_fetch_", "code_execution_", "mcp_toolset")
THOUGHTS = ("thinking", "redacted_thinking")
SERVER_CALLS = ("server_tool_use", "mcp_tool_use")
INVALID = "invalid_request_error"
OLD_VERSION = "2023-06-01"
# `BetaBase64ImageSourceParam` and `BetaBase64PDFSourceParam` of the SDK.
MEDIA_TYPES = {"image": ("image/jpeg", "image/png", "image/gif", "image/webp"), "document": ("application/pdf",)}
# anomalyco/opencode#1279 and tingly-dev/tingly-box#1401 quote the messages with these patterns.
CALL_ID = re.compile(r"[a-zA-Z0-9_-]+")
SERVER_CALL_ID = re.compile(r"srvtoolu_[a-zA-Z0-9_]+")
DIRECTIVE_ONLY = "the directive-only form (content: [] with output_config) is accepted at any position"
OPEN_OBJECT = "For 'object' type, 'additionalProperties' must be explicitly set to false"


class Source(msgspec.Struct, frozen=True):
    """The source of a picture or document; `data` is the base64 of an inline source."""

    type: str = ""
    media_type: str = ""
    data: str = ""


class CacheControl(msgspec.Struct, frozen=True, tag_field="type", tag="ephemeral"):
    """A mark up to which the prompt is cached."""

    ttl: Literal["5m", "1h"] = "5m"


class Caller(msgspec.Struct, frozen=True):
    """The caller of a tool: the model, or the code of a call with the id `tool_id`."""

    type: str
    tool_id: str = ""


class Block(msgspec.Struct, frozen=True):
    """A content block; only text, inline data and tool calls are used."""

    type: str
    text: str = ""
    source: Source | str | None = None
    id: str = ""
    """The id of a tool call."""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw()
    tool_use_id: str = ""
    """The id of the call whose result this is."""
    caller: Caller | None = None
    signature: str | None = None
    """The signature of a block of thinking."""
    citations: Any = None
    cache_control: CacheControl | None = None
    content: Any = None
    """The content of a tool's result."""
    is_error: bool | None = None

    @property
    def is_server_call(self) -> bool:
        """Whether the API itself executes this call."""
        return self.type in SERVER_CALLS


class Format(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema"):
    """Requests JSON that fits `schema`."""

    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, frozen=True):
    """`output_config` of a request; other fields in it are ignored."""

    format: Format | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`tool_choice` of a request: `auto`, `any`, `tool` with a name, or `none`."""

    type: str
    name: str = ""
    disable_parallel_tool_use: bool = False


class Tool(msgspec.Struct, frozen=True):
    """A tool. Tools of the API itself have no schema."""

    name: str = ""
    input_schema: dict[str, Any] = {}
    cache_control: CacheControl | None = None
    type: str = ""


class Thinking(msgspec.Struct, frozen=True):
    """`thinking` of a request: its kind, such as `adaptive`. Empty if the request has none."""

    type: str = ""


class Message(msgspec.Struct, frozen=True):
    """A message of a conversation."""

    role: Role
    content: str | list[Block] = []
    """Only a system message, which sets the effort for example, may have none."""
    output_config: Any = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(block.text for block in self.content if block.type == "text")

    @property
    def blocks(self) -> list[Block]:
        return [Block("text", self.content)] if isinstance(self.content, str) else self.content

    @property
    def begins_with_thinking(self) -> bool:
        return not isinstance(self.content, str) and self.content[:1] != [] and self.content[0].type in THOUGHTS

    @property
    def files(self) -> list[str]:
        blocks = [] if isinstance(self.content, str) else self.content
        return [block.source.data for block in blocks if isinstance(block.source, Source)]

    @property
    def has_tool_result(self) -> bool:
        return not isinstance(self.content, str) and any(b.type == "tool_result" for b in self.content)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a Messages request. Fields that the simulated Claude does not use are ignored."""

    messages: list[Message]
    model: str = ""
    max_tokens: int = 0  # not required by count_tokens
    stream: bool = False
    system: str | list[Block] = ""
    metadata: dict[str, Any] | None = None
    stop_sequences: list[str] = []
    context_management: Any = None
    container: str | dict[str, Any] | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: Format | None = None  # the beta's name of `output_config.format`
    tools: list[Tool] = []
    tool_choice: ToolChoice = ToolChoice("auto")
    thinking: Thinking = Thinking()
    temperature: Any = msgspec.UNSET
    top_p: Any = msgspec.UNSET
    top_k: Any = msgspec.UNSET

    @property
    def system_text(self) -> str:
        return self.system if isinstance(self.system, str) else " ".join(b.text for b in self.system)

    @property
    def answer_format(self) -> Format | None:
        return self.output_config.format or self.output_format

    @property
    def container_id(self) -> str | None:
        return self.container if isinstance(self.container, str) else (self.container or {}).get("id")

    @property
    def forced_tools(self) -> list[Tool]:
        """The client's tools of which the answer must call one. The line `server=` has the calls of the API's own."""
        if self.tool_choice.type not in FORCING:
            return []
        named = [tool for tool in self.tools if self.tool_choice.name in ("", tool.name)]
        return [tool for tool in named if not tool.type.startswith(EXECUTED)]

    @property
    def input_tokens(self) -> int:
        """The number of words, as an estimate."""
        return count_words(self.system_text) + sum(count_words(message.text) for message in self.messages)


def count_words(text: str) -> int:
    """Returns the number of words; of a very long text, the number of spaces, which takes a tenth of the time."""
    return len(text.split()) if len(text) < LONG_CHARS else text.count(" ")


def decode(body: bytes, version: str = OLD_VERSION) -> Request:
    """Parses and checks a request of a version of the API. Raises Refusal.

    The caller checks max_tokens, which count_tokens does not need.
    """
    try:
        request = msgspec.json.decode(body, type=Request)
    except DECODE_ERRORS as error:
        raise Refusal(INVALID, str(error)) from error
    refuse_messages(request.messages)
    refuse_system_messages(request.messages)
    refuse_blocks(request.messages)
    refuse_last_thinking(request.messages)
    refuse_version(request, version)
    refuse_tool_messages(request.messages)
    refuse_server_calls(request.messages)
    if request.answer_format is not None:
        refuse_schema(request.answer_format.schema)
    refuse_model(request, find_model(request.model))
    return request


def find_model(name: str) -> Model:
    """Returns the model with this id or alias. Raises Refusal."""
    if name not in BY_NAME:
        raise Refusal("not_found_error", f"model: {name}")
    return BY_NAME[name]


def require_max_tokens(request: Request) -> None:
    """Raises Refusal if `max_tokens` is missing or below 1."""
    if request.max_tokens <= 0:
        raise Refusal(INVALID, "max_tokens: must be greater than or equal to 1")


def refuse_messages(messages: list[Message]) -> None:
    """Raises Refusal for messages that Anthropic's API refuses: none, a wrong first role, or empty content."""
    if not messages:
        raise Refusal(INVALID, "messages: at least one message is required")
    if messages[0].role == "system" and messages[0].content:
        # LeenHawk/gproxy#209 quotes the message.
        raise Refusal(
            INVALID, f"messages.0: use the top-level 'system' parameter for the initial system prompt; {DIRECTIVE_ONLY}"
        )
    if messages[0].role != "user":
        raise Refusal(INVALID, "messages: first message must use the `user` role")
    for number, message in enumerate(messages):
        is_last_assistant = number == len(messages) - 1 and message.role == "assistant"
        if not message.content and not is_last_assistant and message.role != "system":
            raise Refusal(INVALID, f"messages.{number}: all messages must have non-empty content")
        if isinstance(message.content, list) and any(b.type == "text" and not b.text for b in message.content):
            raise Refusal(INVALID, f"messages.{number}: text content blocks must be non-empty")


def refuse_system_messages(messages: list[Message]) -> None:
    """Raises Refusal for a system message with content that stands in a wrong place.

    Anthropic's page "Mid-conversation system messages", "Limitations"; anthropics/claude-code#73821 and
    diillson/chatcli#1523 quote the second message, which two system messages in a row get, too. A message that only
    sets the effort may stand anywhere, so also between such a message and its neighbours.
    """
    placed = [(number, one) for number, one in enumerate(messages) if one.role != "system" or one.content]
    for at, (number, message) in enumerate(placed):
        if message.role != "system":
            continue
        before = placed[at - 1][1]
        follows_result = before.role == "assistant" and before.blocks[-1:] != [] and is_server_result(before.blocks[-1])
        if before.role != "user" and not follows_result:
            raise Refusal(
                INVALID,
                f"messages.{number}: role 'system' must follow a 'user' message or an 'assistant' message ending in a "
                f"server tool result; {DIRECTIVE_ONLY}",
            )
        if at + 1 < len(placed) and placed[at + 1][1].role != "assistant":
            raise Refusal(
                INVALID,
                f"messages.{number}: role 'system' must precede an 'assistant' message or end the array; "
                f"{DIRECTIVE_ONLY}",
            )


def is_server_result(block: Block) -> bool:
    return bool(block.tool_use_id) and block.type != "tool_result"


def refuse_last_thinking(messages: list[Message]) -> None:
    """Raises Refusal for an answer that ends with thinking.

    NousResearch/hermes-agent#13010 and tailcallhq/forgecode#3073 quote the message. router-for-me/CLIProxyAPI#5321 has
    seen it only for the last message; here, no answer may end so.
    """
    for number, message in enumerate(messages):
        is_whole = number + 1 == len(messages) or messages[number + 1].role != "assistant"
        if message.role == "assistant" and is_whole and message.blocks[-1:] and message.blocks[-1].type in THOUGHTS:
            raise Refusal(INVALID, f"messages.{number}: The final block in an assistant message cannot be `thinking`.")


def refuse_blocks(messages: list[Message]) -> None:
    """Raises Refusal for a block that no message may have, and for a second call with the id of another call."""
    ids: set[str] = set()
    for number, message in enumerate(messages):
        for index, block in enumerate(message.blocks):
            where = f"messages.{number}.content.{index}"
            if (wrong := find_wrong_value(block)) is not None:
                raise Refusal(INVALID, f"{where}.{block.type}.{wrong}")
            if block.type == "text" and block.text.isspace():
                # anthropics/claude-code#23440 quotes the message.
                raise Refusal(INVALID, "messages: text content blocks must contain non-whitespace text")
            if block.type == "image" and message.role == "assistant":
                # SEMOSS/Semoss#2323 quotes the message. Whether a document is refused, too, is not written.
                raise Refusal(INVALID, f"{where}: 'image' blocks are not permitted within assistant turns")
            refuse_result(where, block)
            if block.type == "tool_use" and block.id in ids:
                # anthropics/claude-code#20901 quotes the message.
                raise Refusal(INVALID, f"{where}: `tool_use` ids must be unique")
            ids |= {block.id} if block.id else set()


def refuse_result(where: str, block: Block) -> None:
    """Raises Refusal for a file of a wrong type, and for a failed tool without a reason or with anything but texts.

    jlevy/markform#153, vellum-ai/vellum-assistant#18387 and caozhiyuan/copilot-api#196 quote the messages.
    """
    if block.type != "tool_result":
        return
    parts = block.content if isinstance(block.content, list) else []
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    for number, part in enumerate(parts):
        match part:
            case {"type": "image" | "document" as kind, "source": {"type": "base64", "media_type": str(media)}}:
                if (wrong := find_wrong_media(kind, media)) is not None:
                    raise Refusal(INVALID, f"{where}.tool_result.content.{number}.{kind}.{wrong}")
    if block.is_error and not block.content:
        raise Refusal(INVALID, f"{where}.tool_result: content cannot be empty if `is_error` is true")
    if block.is_error and any(kind != "text" for kind in kinds):
        raise Refusal(INVALID, f"{where}.tool_result: all content must be type `text` if `is_error` is true")


def find_wrong_value(block: Block) -> str | None:
    """Returns which field of a block has a value that the API refuses, and why; None if it accepts the block."""
    pattern = SERVER_CALL_ID if block.type == "server_tool_use" else CALL_ID
    for name, value in (("id", block.id), ("tool_use_id", block.tool_use_id)):
        if value and not (pattern if name == "id" else CALL_ID).fullmatch(value):
            return f"{name}: String should match pattern '^{pattern.pattern}$'"
    if block.type == "thinking" and not block.signature:
        # `BetaThinkingBlockParam` of the SDK: the signature is required.
        return "signature: Field required"
    source = block.source if isinstance(block.source, Source) else Source()
    return find_wrong_media(block.type, source.media_type) if source.type == "base64" else None


def find_wrong_media(kind: str, media: str) -> str | None:
    """Returns why the API refuses a file of this type in a block of this kind; None if it accepts it."""
    allowed = MEDIA_TYPES.get(kind, ())
    if not allowed or media in allowed:
        return None
    *others, last = map(repr, allowed)
    listed = f"{', '.join(others)} or {last}" if others else last
    return f"source.base64.media_type: Input should be {listed}"


def refuse_version(request: Request, version: str) -> None:
    """Raises Refusal for fields that the version 2026-10-21 of the API has removed.

    According to Anthropic's page "Migrate to API version 2026-10-21", these are sampling parameters (even with their
    default value), documents in messages of the assistant, and citations of a text in messages of the user.
    """
    if version <= OLD_VERSION:
        return
    for name in SAMPLING:
        if getattr(request, name) is not msgspec.UNSET:
            raise Refusal(INVALID, f"{name}: Extra inputs are not permitted")
    for number, message in enumerate(request.messages):
        for index, block in enumerate(message.blocks):
            if message.role == "assistant" and block.type == "document":
                raise Refusal(INVALID, f"messages.{number}.content.{index}: document blocks are not permitted here")
            if message.role == "user" and block.type == "text" and block.citations:
                raise Refusal(INVALID, f"messages.{number}.content.{index}.text.citations: not permitted here")


def refuse_tool_messages(messages: list[Message]) -> None:
    """Raises Refusal for a tool call without exactly one result directly after it, and for a result without its call.

    Consecutive messages of one role count as one, as in Anthropic's API.
    """
    for number, message in enumerate(messages):
        for index, block in enumerate(message.blocks):
            if block.type == "tool_use" and (wrong := find_wrong_field(block)) is not None:
                raise Refusal(INVALID, f"messages.{number}.content.{index}.tool_use.{wrong}")
    calls: list[str] = []
    number = 0
    for role, of_role in itertools.groupby(messages, lambda message: message.role):
        joined = list(of_role)
        blocks = [block for one in joined for block in one.blocks]
        if role == "assistant":
            calls = [block.id for block in blocks if block.type == "tool_use"]
        else:
            refuse_results(number, calls, blocks)
            calls = []
        number += len(joined)


def find_wrong_field(call: Block) -> str | None:
    """Returns which field of a tool call the API refuses, and why; None if it accepts the call."""
    if not call.id or not call.name:
        return f"{'name' if call.id else 'id'}: Field required"
    return None if bytes(call.input).lstrip().startswith(b"{") else "input: Input should be a valid dictionary"


def refuse_results(number: int, calls: list[str], blocks: list[Block]) -> None:
    """Raises Refusal unless `blocks`, from message `number` on, begin with one result for each of `calls`."""
    first = [block.tool_use_id for block in itertools.takewhile(lambda block: block.type == "tool_result", blocks)]
    if missing := [call for call in calls if call not in first]:
        raise Refusal(
            INVALID,
            f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
            "message.",
        )
    results = [block.tool_use_id for block in blocks if block.type == "tool_result"]
    for result in results:
        if result not in calls:
            raise Refusal(
                INVALID,
                f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {result}. Each "
                "`tool_result` block must have a corresponding `tool_use` block in the previous message.",
            )
        if results.count(result) > 1:
            raise Refusal(
                INVALID,
                f"messages.{number}: each tool_use must have a single result. Found multiple `tool_result` blocks with "
                f"id: {result}",
            )


def refuse_server_calls(messages: list[Message]) -> None:
    """Raises Refusal for a call of a server tool without its result, and for a result without its call before it.

    A call may stand without its result in a last message of the assistant (docs, "Server tools", `pause_turn`). The
    result may be in a later answer: that of code that has called a tool of the client (docs, "Programmatic tool
    calling"), and that of a call beside one of the client's tools, which the API runs when it has the client's results
    and nothing else (docs, "Server tools"; anthropic-sdk-typescript#1090: what follows the results ends the answer).

    anthropic-sdk-python#1339 and anthropics/claude-code#64383 quote the messages.
    """
    calls: set[str] = set()
    for place, message in enumerate(messages):
        for index, block in enumerate(message.blocks):
            calls |= {block.id} if block.is_server_call else set()
            if is_server_result(block) and block.tool_use_id not in calls:
                kind = "mcp_tool_use" if block.type == "mcp_tool_result" else "server_tool_use"
                raise Refusal(
                    INVALID,
                    f"messages.{place}.content.{index}: unexpected `tool_use_id` found in `{block.type}` blocks: "
                    f"{block.tool_use_id}. Each `{block.type}` block must have a corresponding `{kind}` block before "
                    "it.",
                )
    number = 0
    pending: dict[str, Block] = {}
    for role, of_role in itertools.groupby(messages, lambda message: message.role):
        joined = list(of_role)
        blocks = [block for message in joined for block in message.blocks]
        if role == "assistant":
            pending |= {block.id: block for block in blocks if block.is_server_call}
            for block in blocks:
                pending.pop(block.tool_use_id, None)
            waits = any(block.type == "tool_use" for block in blocks)
            is_over = not waits and number + len(joined) < len(messages)
        else:
            # Whether a system message behind the results ends the answer, too, is not written.
            is_over = role == "user" and any(block.type != "tool_result" for block in blocks)
        if is_over and pending:
            lost = next(iter(pending.values()))
            raise Refusal(
                INVALID,
                f"messages.{number - 1 if role != 'assistant' else number + len(joined) - 1}: `{lost.name}` tool use "
                f"with id `{lost.id}` was found without a corresponding `{lost.name}_tool_result` block",
            )
        number += len(joined)


def refuse_schema(schema: Any) -> None:
    """Raises Refusal if an object of the schema, at any level, allows additional properties."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            raise Refusal(INVALID, f"output_config.format.schema: {OPEN_OBJECT}")
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            refuse_schema(inner)


def refuse_model(request: Request, model: Model) -> None:
    """Raises Refusal for system messages, sampling, forced tools, prefill, or thinking after it that a model lacks."""
    if not model.takes_system_messages and any(one.role == "system" and one.content for one in request.messages):
        # anthropics/claude-code#61242 quotes the message. What such a model says to one without content is not known.
        raise Refusal(INVALID, "role 'system' is not supported on this model")
    for name in SAMPLING:
        if getattr(request, name) is not msgspec.UNSET and not model.takes_sampling:
            raise Refusal(INVALID, f"{name}: sampling parameters are not supported by this model")
    if request.tool_choice.type in FORCING and not model.takes_forced_tools:
        raise Refusal(INVALID, f"tool_choice: {request.tool_choice.type!r} is not supported by this model")
    if request.tool_choice.type in FORCING and request.thinking.type == "enabled":
        raise Refusal(INVALID, "Thinking may not be enabled when tool_choice forces tool use.")
    last = request.messages[-1]
    if last.role != "assistant" or ends_with_pause(request.messages):
        return
    if not model.is_prefillable:
        raise Refusal(
            INVALID,
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        )
    if request.thinking.type == "enabled" and not last.begins_with_thinking:
        raise Refusal(
            INVALID,
            "messages: When `thinking` is enabled, a final `assistant` message must start with a thinking block.",
        )
    if last.text != last.text.rstrip():
        raise Refusal(INVALID, "messages: final assistant content cannot end with trailing whitespace")


def ends_with_pause(messages: list[Message]) -> bool:
    """Returns whether the last messages are a paused answer of the assistant, which goes on when it is sent back.

    Such an answer has a call of a server tool without its result, or ends with a compaction (docs, "Compaction").
    """
    last = itertools.takewhile(lambda message: message.role == "assistant", reversed(messages))
    blocks = [block for message in last for block in message.blocks]
    results = {block.tool_use_id for block in blocks}
    if messages[-1].blocks[-1:] and messages[-1].blocks[-1].type == "compaction":
        return True
    return any(block.is_server_call and block.id not in results for block in blocks)
