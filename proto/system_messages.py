"""System messages in the middle of a conversation: what a later turn sends of them, and the betas that they need. Pure.

Anthropic's pages "Mid-conversation system messages" and "Per-message effort": once sent, such a message stays in place
in later requests, also one that is cleared or that only changes the effort. Without its beta, the API refuses it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import msgspec

from tailrace.proto.entries import Message
from tailrace.proto.models import find_model
from tailrace.proto.server_tools import is_result
from tailrace.proto.thinking_prefix import checks_thinking

CLEAR_AT = "mid-conversation-system-clear-at-2026-08-21"
OUTPUT_CONFIG = "mid-conversation-output-config-2026-07-01"
TOOL_CHANGES = "mid-conversation-tool-changes-2026-07-01"
INLINE_TOOLS = "inline-tools-2026-09-15"
INLINE_MCP = "mcp-client-2026-09-15"
# The release of the first model that takes system messages: Claude Opus 4.8 (page "Mid-conversation system messages").
FIRST = date(2026, 5, 28)
Prompt = str | list[dict[str, Any]] | None


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


def place_system_messages(messages: Iterable[Message]) -> list[Message]:
    """Returns `messages` with each system message where the API takes it: directly before an answer, or at the end.

    The log has it elsewhere, for example behind a question that has got no answer. There, one that is cleared by the
    next message of the user is left out. Source: Anthropic's page "Mid-conversation system messages", "Limitations";
    one without content may stand anywhere.
    """
    found: list[Message] = []
    held: list[Message] = []
    for message in messages:
        if message.role == "system" and message.content:
            held.append(message)
            continue
        if message.role == "assistant":
            _insert(found, held)
            held = []
        elif message.role == "user":
            held = [one for one in held if one.clear_at != "next_user_message"]
        found.append(message)
    _insert(found, held)
    return found


def _insert(messages: list[Message], held: Sequence[Message]) -> None:
    """Adds system messages as one, behind the newest message of the user or result of a server tool."""
    at = len(messages)
    while held and at:
        before = messages[at - 1]
        if before.role == "system" and before.content:
            held = [messages.pop(at - 1), *held]
        elif before.role == "user" or (before.role == "assistant" and any(map(is_result, _blocks(before)[-1:]))):
            break
        at -= 1
    if held:
        blocks = [block for one in held for block in _blocks(one)]
        messages.insert(at, held[0] if len(held) == 1 else msgspec.structs.replace(held[-1], content=blocks))


def _blocks(message: Message) -> list[dict[str, Any]]:
    return [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content


def fold_into_prompt(messages: list[Message], system: Prompt, model: str) -> tuple[list[Message], Prompt]:
    """Returns messages and system prompt for `model`. Those before Claude Opus 4.8 get the texts with the prompt."""
    known = find_model(model)
    added = [block for one in messages if one.role == "system" for block in _blocks(one)]
    if not added or known is None or known.released is None or known.released >= FIRST:
        return messages, system
    begun = [{"type": "text", "text": system}] if isinstance(system, str) else system or []
    return [one for one in messages if one.role != "system"], [*begun, *added]


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
