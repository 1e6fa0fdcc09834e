"""Server tools: the calls that the API itself executes, their results, and their rendering as content blocks. Pure.

The blocks are those of the `anthropic` SDK's types, such as `BetaWebSearchToolResultBlock`.
"""

import hashlib
import re
from typing import Any, Literal, get_args

import msgspec

Kind = Literal["web_search", "web_fetch", "code_execution", "bash_code_execution", "mcp"]
KINDS: tuple[str, ...] = get_args(Kind)
LISTED = re.compile(r"([a-z_]+)(?:\*(\d{1,3}))?")
CALLS_MAX = 100
# Kinds that run in a container; the answer reports its id.
IN_CONTAINER = ("code_execution", "bash_code_execution")
EXPIRES_AT = "2030-01-01T00:00:00Z"
SERVER_NAME, MCP_TOOL = "simulated", "look_up"


class ServerCall(msgspec.Struct, frozen=True):
    """One call of a server tool. `number` counts the calls of the whole answer from 1."""

    number: int
    kind: Kind

    @property
    def input_json(self) -> str:
        """The input, which contains the call's number."""
        match self.kind:
            case "web_search":
                return f'{{"query":"tailrace {self.number}"}}'
            case "web_fetch":
                return f'{{"url":"https://page.example/{self.number}"}}'
            case "code_execution":
                return f'{{"code":"print({self.number})"}}'
            case "bash_code_execution":
                return f'{{"command":"echo {self.number}"}}'
            case "mcp":
                return f'{{"number":{self.number}}}'

    def id(self, message_id: str) -> str:
        """Returns the id of the call in the message with this id."""
        prefix = "mcptoolu_sim" if self.kind == "mcp" else "srvtoolu_sim"
        return prefix + hashlib.sha256(f"{message_id}{self.number}".encode()).hexdigest()[:20]

    def use_block(self, id_: str, input_: Any) -> dict[str, Any]:
        """Returns the block of the call."""
        if self.kind == "mcp":
            named = {"type": "mcp_tool_use", "name": MCP_TOOL, "server_name": SERVER_NAME}
        else:
            named = {"type": "server_tool_use", "name": self.kind}
        return {**named, "id": id_, "input": input_}

    def result_block(self, id_: str) -> dict[str, Any]:
        """Returns the block of the result of the call with this id."""
        result = {"type": f"{self.kind}_tool_result", "tool_use_id": id_}
        match self.kind:
            case "web_search":
                page = {"title": f"Page {self.number}", "url": f"https://page.example/{self.number}", "page_age": None}
                found = {"type": "web_search_result", **page, "encrypted_content": f"c2lt{self.number:04d}"}
                return {**result, "content": [found]}
            case "web_fetch":
                source = {"type": "text", "media_type": "text/plain", "data": f"The text of page {self.number}."}
                fetched = {"type": "document", "source": source, "title": f"Page {self.number}"}
                url = f"https://page.example/{self.number}"
                return {**result, "content": {"type": "web_fetch_result", "url": url, "content": fetched}}
            case "mcp":
                text = {"type": "text", "text": f"The answer of call {self.number}."}
                return {**result, "is_error": False, "content": [text]}
            case _:
                done = {"stdout": f"{self.number}\n", "stderr": "", "return_code": 0, "content": []}
                return {**result, "content": {"type": f"{self.kind}_result", **done}}


def parse_calls(listed: str) -> tuple[ServerCall, ...] | None:
    """Returns the calls of `web_search,mcp*3`: one or more of each kind, in order. None if `listed` is not valid."""
    kinds: list[Any] = []
    for one in listed.split(","):
        found = LISTED.fullmatch(one)
        if found is None or found[1] not in KINDS:
            return None
        kinds += [found[1]] * int(found[2] or 1)
    calls = tuple(ServerCall(number, kind) for number, kind in enumerate(kinds, 1))
    return calls if 0 < len(calls) <= CALLS_MAX else None


def usage(calls: list[ServerCall]) -> dict[str, Any]:
    """Returns the `server_tool_use` of an answer's usage; nothing without a search or a fetch."""
    counts = {f"{kind}_requests": sum(call.kind == kind for call in calls) for kind in ("web_search", "web_fetch")}
    return {"server_tool_use": counts} if any(counts.values()) else {}
