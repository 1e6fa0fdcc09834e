"""System messages in the middle of a conversation: what a later turn sends of them, and the betas that they need. Pure.

Anthropic's pages "Mid-conversation system messages" and "Per-message effort": once sent, such a message stays in place
in later requests, also one that is cleared or that only changes the effort. Without its beta, the API refuses it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tailrace.proto.entries import Message
from tailrace.proto.thinking_prefix import checks_thinking

CLEAR_AT = "mid-conversation-system-clear-at-2026-08-21"
OUTPUT_CONFIG = "mid-conversation-output-config-2026-07-01"
TOOL_CHANGES = "mid-conversation-tool-changes-2026-07-01"
INLINE_TOOLS = "inline-tools-2026-09-15"
INLINE_MCP = "mcp-client-2026-09-15"


def fit_system_messages(
    new: Iterable[Message], history: Sequence[Message], model: str, options: Mapping[str, Any] | None
) -> list[Message]:
    """Returns `history`, which `new` follows, with the system messages that a call of `model` sends (PROTOCOL R132).

    A model that checks what stood before its thinking gets each message as it was sent. Older models may refuse a
    message's `clear_at` or `output_config`, and so do all models an `output_config` in a request without thinking.
    """
    match options:
        case {"thinking": {"type": "disabled"}}:
            is_kept = False
        case _:
            is_kept = checks_thinking(model)
    return list(history) if is_kept else without_cleared(new, history)


def without_cleared(new: Iterable[Message], history: Sequence[Message]) -> list[Message]:
    """Returns `history` without system messages that a model does not see any more, and without their fields."""
    found: list[Message] = []
    is_before_user = any(message.role == "user" for message in new)
    for message in reversed(history):
        is_before_user = is_before_user or message.role == "user"
        match message:
            case Message(role="system", content="" | []):
                pass
            case Message(role="system", clear_at="next_user_message") if is_before_user:
                pass
            case Message(role="system", content=content, clear_at="never" | None):
                found.append(Message("system", content))
            case _:
                found.append(msgspec.structs.replace(message, output_config=msgspec.UNSET))
    return found[::-1]


def with_betas(betas: list[str] | None, messages: Iterable[Message]) -> list[str] | None:
    """Returns `betas` with those that `messages` need."""
    needed: list[str] = []
    for message in messages:
        if isinstance(message.clear_at, str):
            needed.append(CLEAR_AT)
        if message.output_config is not msgspec.UNSET:
            needed.append(OUTPUT_CONFIG)
        for block in message.content if message.role == "system" and isinstance(message.content, list) else ():
            if block.get("type") in ("tool_addition", "tool_removal"):
                needed.append(TOOL_CHANGES)
            match block:
                case {"tool": {"type": "tool_definition", "definition": {"type": "mcp_toolset"}}}:
                    needed += [INLINE_TOOLS, INLINE_MCP]
                case {"tool": {"type": "tool_definition"}}:
                    needed.append(INLINE_TOOLS)
    return list(dict.fromkeys([*(betas or ()), *needed])) or None
