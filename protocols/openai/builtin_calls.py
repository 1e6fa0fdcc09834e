"""Calls of Claude's server tools and MCP servers as output items of OpenAI's built-in tools. Pure.

Claude sends a call and its result as two blocks; the item has both. Sources: the types of OpenAI's Python SDK 3.57
(`ResponseFunctionWebSearch`, `ResponseCodeInterpreterToolCall`, `McpCall`, `McpListTools` and their events), and those
of anthropic 2.14.0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.fold import decode_input
from tailrace.proto.server_tools import is_executed_tool, is_result

Item = dict[str, Any]
Block = Mapping[str, Any]

# The container of a response is named after it: Claude's own name comes at the end of the answer.
CONTAINER_PREFIX = "cntr_"
LISTING = "mcp_tool_listing"


class Call(NamedTuple):
    """A call in the answer of `turn`. `text` is the JSON of its input, as far as it has arrived."""

    turn: str
    start: Block
    text: str = ""
    result: Block | None = None

    @property
    def input(self) -> dict[str, Any]:
        try:
            return decode_input(self.text or "{}")
        except DECODE_ERRORS:
            return {}


class CallKind(NamedTuple):
    """How calls of some of Claude's tools are shown."""

    item: str
    """The type of the item, and of its events."""
    prefix: str
    """The beginning of the item's id."""
    fields: Callable[[Call], Item]
    """Returns the fields of the item, besides its id, type and status."""
    input: str = ""
    """The field of the item that has events of its own."""
    has_deltas: bool = False
    """Whether the deltas of Claude's input are those of the field `input`."""
    running: str = ""
    """The event after the whole input, if there is one."""
    failed: str = ""
    """The event of a call that has failed, if there is one."""


def kind_of(block: Block) -> CallKind | None:
    """Returns how the block, a call, is shown; None for another block, and for a tool that OpenAI does not have."""
    match block:
        case {"type": "server_tool_use", "id": str(), "name": str(name)} if not is_executed_tool(block):
            return SERVER_TOOLS.get(name)
        case {"type": "mcp_tool_use", "id": str()}:
            return MCP
        case {"type": "mcp_tool_listing"}:
            return LIST
        case _:
            return None


def call_before(result: Block) -> dict[str, Any] | None:
    """Returns a call for a result whose call is in an earlier answer, which has its input; None without an item."""
    name = str(result.get("type")).removesuffix("_tool_result")
    tool = {"type": "mcp_tool_use", "name": ""} if name == "mcp" else {"type": "server_tool_use", "name": name}
    call: dict[str, Any] = {**tool, "id": result.get("tool_use_id"), "input": {}}
    return call if is_result(result) and kind_of(call) is not None else None


def is_shown(block: Block) -> bool:
    """Returns whether items show all that a block has: a call, or a result of a call."""
    if kind_of(block) is not None:
        return True
    match block:
        case {"type": "web_search_tool_result", "content": list()} | {"type": "mcp_tool_result"}:
            return is_result(block)
        case {"type": "code_execution_tool_result" | "bash_code_execution_tool_result", "content": dict(ran)}:
            return is_result(block) and not _has_failed(block) and not list(_files(ran))
        case _:
            return False


def call_item(kind: CallKind, item_id: str, call: Call, status: str) -> Item:
    """Returns the item of a call. `status` is its status without a result."""
    if call.result is not None:
        status = "failed" if _has_failed(call.result) else "completed"
    shown = {} if kind is LIST else {"status": status}
    return {"id": item_id, "type": kind.item, **shown, **kind.fields(call)}


def ending_event(kind: CallKind, item: Item) -> str:
    """Returns the event of a call that has ended; empty if there is none."""
    status = item.get("status", "completed")
    return kind.failed if status == "failed" else status if status == "completed" else ""


def pair_results(blocks: Iterable[Block]) -> dict[int, Block]:
    """Returns the result of each call, by the number of the call's block: the first one after the newest such call."""
    open_calls: dict[str, int] = {}
    found: dict[int, Block] = {}
    for index, block in enumerate(blocks):
        if kind_of(block) is not None and isinstance(call := block.get("id"), str):
            open_calls[call] = index
        elif is_result(block) and block["tool_use_id"] in open_calls:
            found[open_calls.pop(block["tool_use_id"])] = block
    return found


def _has_failed(result: Block) -> bool:
    match result:
        case {"is_error": True} | {"content": {"error_code": _}}:
            return True
        case _:
            return False


def _search(call: Call) -> Item:
    action: Item = {"type": "search", "query": query if isinstance(query := call.input.get("query"), str) else ""}
    action["queries"] = [action["query"]] if action["query"] else []
    match call.result:
        case {"content": list(pages)}:
            urls = [page["url"] for page in pages if isinstance(page, dict) and isinstance(page.get("url"), str)]
            action["sources"] = [{"type": "url", "url": url} for url in urls]
    return {"action": action}


def _open_page(call: Call) -> Item:
    url = call.input.get("url")
    return {"action": {"type": "open_page", "url": url if isinstance(url, str) else None}}


def _code(call: Call) -> Item:
    match call.input:
        case {"code": str(code)} | {"command": str(code)} if "path" not in call.input:
            pass
        case given:
            # A command of the text editor: it has several fields.
            code = call.text if given else ""
    container = f"{CONTAINER_PREFIX}{call.turn.partition('_')[0]}"
    return {"code": code, "container_id": container, "outputs": None if call.result is None else _outputs(call.result)}


def _outputs(result: Block) -> list[Item]:
    """Returns what code has written. A file is named: OpenAI's type has only logs, and pictures with an address."""
    match result.get("content"):
        case {"error_code": code}:
            texts = [f"error: {code}"]
        case dict(ran):
            texts = [text for name in ("stdout", "stderr") if isinstance(text := ran.get(name), str) and text]
            texts += [f"file: {file}" for file in _files(ran)]
        case _:
            texts = []
    return [{"type": "logs", "logs": text} for text in texts]


def _files(ran: Block) -> Iterator[str]:
    """Yields the ids of the files that code has made, which are at Anthropic."""
    content = ran.get("content")
    for one in content if isinstance(content, list) else ():
        match one:
            case {"file_id": str(file)}:
                yield file


def _mcp(call: Call) -> Item:
    server, name = call.start.get("server_name"), call.start.get("name")
    text = None if call.result is None else _text(call.result.get("content"))
    has_failed = call.result is not None and _has_failed(call.result)
    error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]} if has_failed else None
    return {
        "server_label": server if isinstance(server, str) else "",
        "name": name if isinstance(name, str) else "",
        "arguments": call.text,
        "output": None if has_failed else text,
        "error": error,
    }


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "".join(one["text"] for one in blocks if isinstance(one, dict) and isinstance(one.get("text"), str))


def _list(call: Call) -> Item:
    server, tools = call.start.get("mcp_server_name"), call.start.get("tools")
    listed = [
        {"name": one["name"], "description": one.get("description"), "input_schema": one.get("input_schema", {})}
        for one in (tools if isinstance(tools, list) else [])
        if isinstance(one, dict) and isinstance(one.get("name"), str)
    ]
    return {"server_label": server if isinstance(server, str) else "", "tools": listed}


SEARCH = CallKind("web_search_call", "ws", _search, running="searching")
CODE = CallKind("code_interpreter_call", "ci", _code, input="code", running="interpreting")
MCP = CallKind("mcp_call", "mcp", _mcp, input="arguments", has_deltas=True, failed="failed")
LIST = CallKind("mcp_list_tools", "mcpl", _list)
SERVER_TOOLS = {
    "web_search": SEARCH,
    "web_fetch": SEARCH._replace(fields=_open_page),
    "code_execution": CODE,
    "bash_code_execution": CODE,
    "text_editor_code_execution": CODE,
}
KINDS = (*SERVER_TOOLS.values(), MCP, LIST)
ITEM_TYPES = frozenset(kind.item for kind in KINDS)
ITEM_PREFIXES = frozenset(kind.prefix for kind in KINDS)
