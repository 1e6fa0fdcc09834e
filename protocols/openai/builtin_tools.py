"""OpenAI's built-in tools in a request, and the server tools and MCP servers of Claude's API that they become.

Sources: the types of OpenAI's Python SDK 3.57 (`ToolParam`) and of anthropic 2.14.0; Anthropic's pages "Web search
tool", "Code execution tool" and "MCP connector".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from tailrace.proto.errors import Refused
from tailrace.proto.models import Model
from tailrace.protocols.common.tool_definition import tool_definition
from tailrace.protocols.common.unsupported import ignored, ignored_parameters, refused
from tailrace.protocols.openai.builtin_calls import CONTAINER_PREFIX

Fields = dict[str, Any]
DirectCalls = Annotated[Any, ignored("the model calls the tool directly", ["direct"])]
AlwaysLoaded = Annotated[Any, ignored("the model always sees the tool", False)]

# OpenAI's limit. Anthropic's page has none.
DOMAINS_MAX = 100
# Searches without code that filters their results: that code would be calls of `code_execution`, which the client has
# not asked for. Every model has this version.
SEARCH_VERSION = "web_search_20250305"
# The oldest version that all current models have: calls of Python and Bash, and no calls of other tools by code.
CODE_VERSION = "code_execution_20250825"
MCP_BETA = "mcp-client-2025-11-20"
BEARER = "bearer "
ONLY_LIVE = 'Claude has no search without access to the web; send `true` (Codex: `web_search = "live"`)'


class UserLocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    city: str | None = None
    """The city."""
    country: str | None = None
    """The country, two letters."""
    region: str | None = None
    """The region."""
    timezone: str | None = None
    """The IANA name of the time zone."""
    type: Literal["approximate"] = "approximate"
    """`approximate`."""


class SearchFilters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allowed_domains: list[str] | None = None
    """The domains to search, at most 100, without `https://`."""
    blocked_domains: list[str] | None = None
    """Domains that are not searched. Not with `allowed_domains`."""


class FunctionTool(msgspec.Struct, frozen=True):
    """A function. Unknown fields are ignored."""

    name: str = ""
    """The name of the function."""
    description: str | None = None
    """The description of the function, which the model receives."""
    parameters: Fields | None = None
    """The JSON Schema of the function's arguments."""
    strict: bool | None = None
    """Whether the arguments always fit the schema."""

    allowed_callers: DirectCalls = None
    cache_control: Annotated[Any, ignored("this protocol cannot control Claude's prompt cache")] = None
    defer_loading: AlwaysLoaded = None
    output_schema: Annotated[Any, ignored("describe the output in `description`")] = None


class WebSearchTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str = ""
    filters: SearchFilters | None = None
    """The domains that are searched."""
    user_location: UserLocation | None = None
    """The place that results are for."""
    max_uses: int | None = None
    """Tailrace's own: the most searches of the response. `max_tool_calls` has the same effect."""

    search_context_size: Annotated[Any, ignored("Claude decides how much it reads", "medium")] = None
    search_content_types: Annotated[Any, ignored("Claude searches texts only", ["text"])] = None
    external_web_access: Annotated[Any, refused(ONLY_LIVE, True)] = None


class Container(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["auto"]
    """`auto`: the container of the response that this one continues, or a new one."""

    file_ids: Annotated[Any, refused("code cannot read uploaded files; send them as `input_file`", [])] = None
    memory_limit: Annotated[Any, ignored("Claude's containers have one size")] = None
    network_policy: Annotated[Any, refused("Claude's containers have no network", {"type": "disabled"})] = None


class CodeInterpreterTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    container: str | Container
    """The `container_id` of an earlier call, or `{"type": "auto"}`."""
    type: str = ""

    allowed_callers: DirectCalls = None


class ToolNames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tool_names: list[str] | None = None
    """The names of the tools; without them, all tools."""

    read_only: Annotated[Any, refused("send the names of the tools, `tool_names`")] = None


class McpTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server_label: str
    """The name of the server in calls. Each server has one tool in `tools`."""
    type: str = ""
    server_url: str | None = None
    """The address of the server, which Anthropic can reach: `https://…`."""
    allowed_tools: list[str] | ToolNames | None = None
    """The tools that the model may call: their names, or an object with `tool_names`."""
    authorization: str | None = None
    """The access token that the server receives."""
    headers: dict[str, str] | None = None
    """Only `Authorization: Bearer TOKEN`, in place of `authorization`."""

    require_approval: Any = None
    """Only `never`: a call cannot wait for an approval. Without it, OpenAI's default is `always`, which is refused."""
    connector_id: Annotated[Any, refused("OpenAI's connectors do not exist here; send `server_url`")] = None
    tunnel_id: Annotated[Any, refused("OpenAI's tunnels do not exist here; send `server_url`")] = None
    server_description: Annotated[Any, ignored("describe the server in the prompt")] = None
    allowed_callers: DirectCalls = None
    defer_loading: AlwaysLoaded = None


class Built(NamedTuple):
    """What a tool becomes in a request of Claude's API."""

    tool: Fields
    name: str
    """The name that no other tool has."""
    server: Fields | None = None
    container: str | None = None
    """The `container_id` that the client has named."""


class ToolRow(NamedTuple):
    """How tools of some types are converted."""

    struct: type[Any]
    build: Callable[[Any, str], Built]
    capability: str = ""
    """The name in `Supports.server_tools`, if not each model has the tool."""


class BuiltTools(NamedTuple):
    """The tools of a request."""

    tools: list[Fields]
    servers: list[Fields]
    ignored: list[str]
    container: str | None = None
    """The container that the client has named."""


def build_tools(
    given: Sequence[Fields], model: Model, offered: Iterable[Model], max_calls: int | None = None
) -> BuiltTools:
    """Returns the tools of `POST /v1/responses`. Raises Refused with the name of a wrong field.

    `offered`: the models to name if `model` has not got a tool. `max_calls`: the most calls of built-in tools.
    """
    built: list[Built] = []
    hosted: list[tuple[ToolRow, Built]] = []
    names: list[str] = []
    for index, fields in enumerate(given):
        where, kind = f"tools[{index}]", fields.get("type")
        row = TOOLS.get(kind) if isinstance(kind, str) else None
        if row is None:
            named = f"`{kind[:64]}`" if isinstance(kind, str) else "a tool without a `type`"
            raise Refused("request_invalid", f"`{where}`: {named} is not supported: send {', '.join(TOOLS)}")
        tool = _convert(fields, row.struct, where)
        names += [f"tools.{name}" for name in ignored_parameters(tool, f"{where}.")]
        refuse_without(row.capability, model, offered, where)
        one = row.build(tool, where)
        if any(row is other and one.name == before.name for other, before in hosted):
            raise Refused("request_invalid", f"`{where}`: `{one.name}` is there twice: send one")
        hosted += [] if row is FUNCTION else [(row, one)]
        built.append(one)
    if max_calls is not None and hosted:
        if max_calls < 1:
            raise Refused("request_invalid", "`max_tool_calls` must be at least 1: for none, leave out built-in tools")
        if [row for row, _ in hosted] == [SEARCH]:
            search = hosted[0][1].tool
            search["max_uses"] = min(max_calls, search.get("max_uses", max_calls))
        else:
            names.append("max_tool_calls")
    containers = [one.container for one in built if one.container is not None]
    return BuiltTools(
        [one.tool for one in built],
        [one.server for one in built if one.server is not None],
        list(dict.fromkeys(names)),
        containers[0] if containers else None,
    )


def refuse_without(capability: str, model: Model, offered: Iterable[Model], where: str) -> None:
    """Raises Refused with the models that have a server tool if `model` has not got it."""
    if not capability or model.supports.server_tools is None or capability in model.supports.server_tools:
        return
    having = [one.id for one in offered if capability in (one.supports.server_tools or ())]
    advice = f"choose one of {', '.join(having)}" if having else "no model here has it"
    raise Refused("request_invalid", f"`{where}`: {model.id} has no tool `{capability}`: {advice}", param="model")


def web_search(location: UserLocation | None) -> Fields:
    """Returns Claude's tool for web search."""
    place = {} if location is None else msgspec.to_builtins(location) | {"type": location.type}
    return {"type": SEARCH_VERSION, "name": "web_search"} | ({"user_location": place} if len(place) > 1 else {})


def _convert(fields: Fields, struct: type[Any], where: str) -> Any:
    try:
        return msgspec.convert(fields, struct)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise Refused("request_invalid", f"`{where}{path.rstrip('`')}`: {problem}") from error


def _function(tool: FunctionTool, where: str) -> Built:
    if not tool.name:
        raise Refused("request_invalid", f"`{where}` needs a `name`, beside its `type` and not in a field `function`")
    return Built(tool_definition(tool.name, tool.description, tool.parameters, strict=tool.strict), tool.name)


def _web_search(tool: WebSearchTool, where: str) -> Built:
    built, filters = web_search(tool.user_location), tool.filters or SearchFilters()
    for name in ("allowed_domains", "blocked_domains"):
        domains = getattr(filters, name)
        if len(domains or ()) > DOMAINS_MAX:
            raise Refused("request_invalid", f"`{where}.filters.{name}` has more than {DOMAINS_MAX} domains")
        if domains and any("://" in domain or not domain.strip() for domain in domains):
            raise Refused(
                "request_invalid", f"`{where}.filters.{name}`: send domains such as `example.com`, without `https://`"
            )
        if domains:
            built[name] = domains
    if filters.allowed_domains and filters.blocked_domains:
        raise Refused("request_invalid", f"`{where}.filters`: send `allowed_domains` or `blocked_domains`, not both")
    if tool.max_uses is not None:
        if tool.max_uses < 1:
            raise Refused("request_invalid", f"`{where}.max_uses` must be at least 1")
        built["max_uses"] = tool.max_uses
    return Built(built, "web_search")


def _code(tool: CodeInterpreterTool, _: str) -> Built:
    named = tool.container if isinstance(tool.container, str) else None
    return Built({"type": CODE_VERSION, "name": "code_execution"}, "code_execution", container=named)


def _mcp(tool: McpTool, where: str) -> Built:
    if tool.require_approval != "never":
        raise Refused(
            "request_invalid",
            f"`{where}.require_approval`: calls of an MCP server cannot wait for an approval: send `never`",
        )
    if not (tool.server_url or "").startswith("https://"):
        raise Refused("request_invalid", f"`{where}.server_url` must be an https URL")
    names = tool.allowed_tools.tool_names if isinstance(tool.allowed_tools, ToolNames) else tool.allowed_tools
    toolset: Fields = {"type": "mcp_toolset", "mcp_server_name": tool.server_label}
    if names is not None:
        toolset["default_config"] = {"enabled": False}
        toolset["configs"] = {name: {"enabled": True} for name in names}
    server = {"type": "url", "name": tool.server_label, "url": tool.server_url}
    token = _token(tool, where)
    return Built(toolset, tool.server_label, server | ({"authorization_token": token} if token else {}))


def _token(tool: McpTool, where: str) -> str | None:
    """Returns the access token. No message contains it, or another header's value."""
    given = {name.lower(): value for name, value in (tool.headers or {}).items()}
    header = given.pop("authorization", None)
    if given:
        raise Refused(
            "request_invalid", f"`{where}.headers`: `{min(given)[:64]}` is not supported: only Authorization is"
        )
    # The name of the scheme has no case (RFC 9110, 11.1).
    if header is not None and not header.lower().startswith(BEARER):
        raise Refused("request_invalid", f"`{where}.headers`: `Authorization` must be `Bearer TOKEN`")
    if header is not None and tool.authorization is not None:
        raise Refused("request_invalid", f"`{where}`: send `authorization` or the header, not both")
    return tool.authorization if header is None else header[len(BEARER) :]


FUNCTION = ToolRow(FunctionTool, _function)
SEARCH = ToolRow(WebSearchTool, _web_search, "web_search")
CODE = ToolRow(CodeInterpreterTool, _code, "code_execution")
MCP = ToolRow(McpTool, _mcp)
TOOLS = {
    "function": FUNCTION,
    "web_search": SEARCH,
    "web_search_2025_08_26": SEARCH,
    "web_search_preview": SEARCH,
    "web_search_preview_2025_03_11": SEARCH,
    "code_interpreter": CODE,
    "mcp": MCP,
}


def turn_of_container(container: str) -> str | None:
    """Returns the turn in a `container_id` of Tailrace's; None for another name."""
    return container.removeprefix(CONTAINER_PREFIX) if container.startswith(CONTAINER_PREFIX) else None
