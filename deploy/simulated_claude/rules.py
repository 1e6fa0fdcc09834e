"""Rules of requests that a client meets only in longer conversations or with values of its users. Pure.

Each check says where the rule is written, or which public report quotes the message.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.settings import Settings
from tailrace.deploy.simulated_claude.thinking import (
    INVALID,
    Json,
    Place,
    Transformation,
    check_thinking,
    find_open,
    parse,
    read_places,
)

MARKS_MAX = 4
MCP_BETA = "mcp-client-"
REFUSED_TOKEN = "refused"  # noqa: S105 - not a secret
USER_ID_CHARS_MAX = 256
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
# The betas with which a message may have a field. Claude Code sends the first one of `output_config`.
BETAS_OF_FIELDS = {
    "clear_at": ("mid-conversation-system-clear-at-2026-08-21",),
    "output_config": ("per-turn-control-2026-07-01", "mid-conversation-output-config-2026-07-01"),
}
# Blocks that change the tools. The second beta also allows the definition of a tool.
TOOL_CHANGES = ("tool_addition", "tool_removal")
TOOL_BETAS = ("mid-conversation-tool-changes-2026-07-01", "inline-tools-2026-09-15")
# The first bytes of each type of image.
MAGIC = {
    "image/png": rb"\x89PNG",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8",
    "image/webp": rb"RIFF....WEBP",
}
HEAD_BYTES = 12
CONTAINER = re.compile(r"container_sim(\d{1,9})x[0-9a-f]{20}")
# Fields of tests' cases that a client sends back, and that this program has not made.
SENT_BACK = re.compile(rb'"(?:signature|data|id)"\s*:\s*"([^"\\]*)"')


def refuse_request(
    body: bytes, settings: Settings, betas: str = "", *, is_in_batch: bool = False
) -> list[Transformation] | None:
    """Returns the thinking that is dropped from a request (None: not reported). Raises Refusal as Anthropic's API does.

    `body` has the types of a Messages request.
    """
    request: Json = parse(body)
    places = read_places(request)
    refuse_user(request)
    refuse_stop_sequences(request)
    refuse_marks(request)
    refuse_unknown_fields(request, places, betas)
    refuse_servers(request, betas)
    for place in places:
        refuse_images(place.path, place.block)
    refuse_container(request, places, settings)
    # Page "Preserved thinking": in a batch, thinking is dropped unless the request says `error`.
    behavior = "drop" if is_in_batch and settings.thinking == "error" else settings.thinking
    return check_thinking(request, behavior, betas, frozenset(settings.known))


def refuse_user(request: Json) -> None:
    """Raises Refusal for an id of the user that is too long (SDK: `MetadataParam`) or an email address.

    BerriAI/litellm#10106 quotes the message.
    """
    user = (request.get("metadata") or {}).get("user_id")
    if not isinstance(user, str):
        return
    if len(user) > USER_ID_CHARS_MAX:
        raise Refusal(INVALID, f"metadata.user_id: String should have at most {USER_ID_CHARS_MAX} characters")
    if EMAIL.fullmatch(user.strip()):
        raise Refusal(
            INVALID,
            "metadata.user_id: user_id appears to contain an email address. Please send a uuid or hash value instead.",
        )


def refuse_stop_sequences(request: Json) -> None:
    """Raises Refusal for a blank stop sequence; BerriAI/litellm#3286 quotes the message."""
    if not all(one.strip() for one in request.get("stop_sequences") or []):
        raise Refusal(INVALID, "stop_sequences: each stop sequence must contain non-whitespace")


def refuse_marks(request: Json) -> None:
    """Raises Refusal for more than four marks of the cache. BlockRunAI/Franklin#73 quotes the message."""
    marked = [*find_marked([request.get(name) or [] for name in ("tools", "system", "messages")])]
    count = len(marked) + (request.get("cache_control") is not None)
    if count > MARKS_MAX:
        raise Refusal(INVALID, f"A maximum of {MARKS_MAX} blocks with cache_control may be provided. Found {count}.")


def refuse_servers(request: Json, betas: str) -> None:
    """Raises Refusal for a wrong MCP server, and for the access token `refused`: no server is called.

    Anthropic's page "MCP connector"; anthropics/anthropic-sdk-python#1029 quotes the message for a token. The other
    wordings are not known.
    """
    servers = request.get("mcp_servers") or []
    if servers and MCP_BETA not in betas:
        raise Refusal(INVALID, "mcp_servers: Extra inputs are not permitted")
    names = [server.get("name") for server in servers]
    for number, tool in enumerate(request.get("tools") or []):
        if tool.get("type") == "mcp_toolset" and tool.get("mcp_server_name") not in names:
            raise Refusal(INVALID, f"tools.{number}: MCP server '{tool.get('mcp_server_name')}' is not in mcp_servers")
    for number, server in enumerate(servers):
        if not str(server.get("url")).startswith("https://"):
            raise Refusal(INVALID, f"mcp_servers.{number}.url: must start with https://")
        if server.get("authorization_token") == REFUSED_TOKEN:
            raise Refusal(
                INVALID,
                f"Invalid authorization token for MCP server '{server.get('name')}'. Please check your token and try "
                "again.",
            )


def refuse_unknown_fields(request: Json, places: list[Place], betas: str) -> None:
    """Raises Refusal for what a system message has only with a beta.

    Anthropic's pages "Mid-conversation system messages" and "Per-message effort"; router-for-me/CLIProxyAPI#5738 quotes
    the message for a field. The wording for a block and for a request without thinking is not known.
    """
    for number, message in enumerate(request["messages"]):
        if message.get("clear_at") == "next_user_message" and any(find_marked(message.get("content"))):
            # diillson/chatcli#1524 says so; the wording is not known.
            raise Refusal(INVALID, f"messages.{number}: `cache_control` is not permitted with `clear_at`")
        for field, names in BETAS_OF_FIELDS.items():
            if message.get(field) is not None and not any(name in betas for name in names):
                raise Refusal(INVALID, f"messages.{number}.{field}: Extra inputs are not permitted")
        if message.get("output_config") and (request.get("thinking") or {}).get("type") == "disabled":
            raise Refusal(INVALID, f"messages.{number}.output_config: `effort` requires thinking")
    for place in places:
        is_inline = (place.block.get("tool") or {}).get("type") == "tool_definition"
        names = TOOL_BETAS[is_inline:]
        if place.block.get("type") in TOOL_CHANGES and not any(name in betas for name in names):
            raise Refusal(INVALID, f"{place.path}: Input tag '{place.block['type']}' is not one of the expected tags")


def find_marked(value: Any) -> Iterator[Json]:
    """Yields the objects with a mark of the cache, but none in the input of a call or in a schema."""
    if isinstance(value, list):
        for one in value:
            yield from find_marked(one)
    elif isinstance(value, dict):
        if value.get("cache_control") is not None:
            yield value
        yield from find_marked([inner for name, inner in value.items() if name not in ("input", "input_schema")])


def refuse_images(path: str, block: Json) -> None:
    """Raises Refusal for an image whose bytes are of another type than it says; BerriAI/litellm#24900 quotes it."""
    if block.get("type") == "tool_result":
        for index, inner in enumerate(block["content"] if isinstance(block.get("content"), list) else []):
            where = f"{path}.tool_result.content.{index}"
            if not isinstance(inner, dict):
                raise Refusal(INVALID, f"{where}: Input should be an object")
            refuse_images(where, inner)
    source = block.get("source") if block.get("type") == "image" else None
    if not isinstance(source, dict) or source.get("type") != "base64":
        return
    real, named = type_of_image(str(source.get("data"))), source.get("media_type")
    if real and real != named:
        raise Refusal(
            INVALID,
            f"{path}.image.source.base64: The image was specified using the {named} media type, but the image appears "
            f"to be a {real} image",
        )


def type_of_image(data: str) -> str | None:
    """Returns the type that the bytes of an image in base64 have; None if it is not known."""
    try:
        head = base64.b64decode(data[: HEAD_BYTES * 4 // 3])[:HEAD_BYTES]
    except (binascii.Error, ValueError):
        return None
    return next((kind for kind, magic in MAGIC.items() if re.match(magic, head, re.DOTALL)), None)


def refuse_container(request: Json, places: list[Place], settings: Settings) -> None:
    """Raises Refusal for a container that has expired or that is not known, and for a call by code without one.

    anthropics/anthropic-sdk-typescript#1114 quotes the message for a call. Anthropic's page "Code execution tool" says
    that an expired container cannot be used again; the wording of the two others is not known.
    """
    given = request.get("container")
    name = given.get("id") if isinstance(given, dict) else given
    if name is not None and name not in settings.known:
        found = CONTAINER.fullmatch(name)
        if found is None:
            raise Refusal(INVALID, f"container: Container {name} was not found")
        if int(found[1]) < settings.containers_from:
            raise Refusal(INVALID, f"container: Container {name} has expired")
    if name is None and any(is_call_by_code(place.block) for place in find_open(places)):
        raise Refusal(
            INVALID,
            "container_id is required when there are pending tool uses generated by code execution with tools.",
        )


def is_call_by_code(block: Json) -> bool:
    caller = block.get("caller") or {}
    return block.get("type") == "tool_use" and str(caller.get("type")).startswith("code_execution")


def find_known(body: bytes) -> set[str]:
    """Returns the signatures, encrypted thoughts and ids in the events of a case."""
    return {found.decode(errors="replace") for found in SENT_BACK.findall(body)}
