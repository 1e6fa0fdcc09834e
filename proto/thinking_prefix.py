"""The prefix of each thinking block in a conversation, and which thinking a request may send back. Pure.

Newer models check each `thinking` and `redacted_thinking` block that comes back: its prefix must be what it was when
the model wrote the block. The prefix is `system`, `tools`, and what stands before the block in `messages`. The rules
are those of Anthropic's page "Preserved thinking" (platform.claude.com/docs/en/build-with-claude/preserved-thinking),
section "What counts as an edit". Each row of its table, which compares two consecutive requests, and how the digests
follow it:

| change between the requests | later thinking | here |
|---|---|---|
| messages are appended | valid | a digest covers only what stands before the block |
| a tool with `defer_loading: true` is added that nothing has referenced yet | valid | `_Tools` leaves it out |
| thinking is removed from the start of the history | valid | digests do not cover thinking; see `choose_kept` |
| a parameter outside `system`, `tools`, `messages` | valid | is no argument |
| `cache_control` is added, moved or removed | valid | `_bare` leaves it out |
| a signed URL changes, and returns the same bytes | valid | counts as a change: the bytes are not known here |
| compaction or context editing by the server | valid | digests cover what is sent; see below for compaction |
| a cleared turn-scoped system message stays in place | valid | digests cover it, whether it is cleared or not |
| an earlier message is edited, moved or deleted | invalid | `messages` differs |
| a text block is added to an earlier message, or removed | invalid | `messages` differs |
| the top-level `system` | invalid | `system` differs |
| a tool is added, removed, renamed or edited | invalid | `tools` differs |
| thinking is removed from the middle, and later thinking kept | invalid | `Prefix.thinking`; see `choose_kept` |
| a URL returns other bytes | invalid | not seen: the bytes are not known here |
| a turn-scoped message is deleted or reworded | invalid | `messages` differs |

From the same page: "Earlier thinking blocks aren't in the prefix, but each thinking block records which thinking block
came before it, across turns." After server-side compaction, the prefix of `messages` starts at the newest compaction
block before the thinking. A changed signature is no matter of the prefix.

From the API reference ("Create a Message"): a string is short for one text block, and consecutive messages of one role
are combined. Where no source says that two values are equal, they differ here: the order of tools (the page speaks of
a set), and the order of names in a tool's input. Leaving thinking out is always allowed, so a false difference costs
thinking, and never a refusal.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from tailrace.proto.entries import Message
from tailrace.proto.models import find_model

Block = dict[str, Any]
Part = Literal["system", "tools", "messages"]
PARTS: tuple[Part, ...] = ("system", "tools", "messages")
THINKING = ("thinking", "redacted_thinking")
# Enough that no two prefixes of one conversation get the same digest.
DIGEST_CHARS = 32
# Fields that may hold blocks, in which `cache_control` does not count either. A tool's `input` is the model's value.
HOLD_BLOCKS = ("content", "source")


class Prefix(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands before a place in a prompt, as a digest of each part."""

    system: str
    tools: str
    messages: str
    thinking: str = ""
    """The id of the last thinking before the place (`thinking_id`); empty if there is none. No part of the prefix."""


class Thinking(NamedTuple):
    """A thinking block of a conversation."""

    message: int
    """The number of its message, from 0."""
    block: int
    """The number of the block in its message, from 0."""
    id: str
    prefix: Prefix


class Prefixes(NamedTuple):
    """The prefixes in a prompt."""

    thinking: list[Thinking]
    """All thinking blocks, oldest first."""
    messages: list[Prefix]
    """The prefix that ends with each message. The last one is what the answer has before it."""


def find_prefixes(system: str | list[Block] | None, tools: list[Block] | None, messages: Sequence[Message]) -> Prefixes:
    """Returns the prefixes in a prompt, in one pass.

    The arguments are those of a model call. They must have the same form each time, such as files as references or as
    base64.
    """
    of_tools = _Tools(tools or [])
    of_system = _digest(map(_encode, _as_blocks(system or [])))
    thinking: list[Thinking] = []
    ends: list[Prefix] = []
    digest = hashlib.sha256()
    last = ""

    def prefix() -> Prefix:
        return Prefix(of_system, of_tools.digest(), digest.hexdigest()[:DIGEST_CHARS], last)

    for number, message in enumerate(messages):
        more = _more_fields(message)
        if more or message.role == "system":
            # Only messages of the user and of the assistant are combined. Other fields belong to one message.
            digest.update(b"\n%b" % more)
        for index, block in enumerate(_as_blocks(message.content)):
            kind = block.get("type")
            if kind in THINKING:
                name = thinking_id(block)
                thinking.append(Thinking(number, index, name, prefix()))
                last = name
                continue
            if kind == "compaction" and block.get("content"):
                digest = hashlib.sha256()
            digest.update(b"\n%b%b" % (message.role.encode(), _encode(block)))
            of_tools.reference(block)
        ends.append(prefix())
    return Prefixes(thinking, ends)


def thinking_id(block: Mapping[str, Any]) -> str:
    """Returns the id of a thinking block, a digest of what the API checks: the signature, or the encrypted data."""
    return hashlib.sha256(str(block.get("signature") or block.get("data")).encode()).hexdigest()[:DIGEST_CHARS]


def choose_kept(
    messages: Sequence[Message], thinking: Sequence[Thinking], recorded: Mapping[str, Prefix | None]
) -> set[tuple[int, int]]:
    """Returns the thinking that a request with `messages` may send: the numbers of its messages and blocks.

    `thinking` is that of `find_prefixes` for this request. `recorded` has, by the id of a thinking block, the prefix
    that it had when the model wrote it; without one, the block counts as changed.

    Walks back from the newest block with an unchanged prefix, each time to the block that came before it when the model
    wrote it, as far as these blocks are unchanged, too. So no block is missing between two others that the model wrote
    one after the other, and no block comes back between two others that the model wrote without it. A tool loop (or a
    pause) that the request continues is one answer: if a block of it cannot be sent, none is, also of earlier answers.
    """
    kept: set[tuple[int, int]] = set()
    wanted: str | None = None
    for one in reversed(thinking):
        was = recorded.get(one.id)
        if was is not None and wanted in (None, one.id) and not find_changes(was, one.prefix):
            kept.add((one.message, one.block))
            wanted = was.thinking
    start = find_open_answer(messages)
    is_whole = all((one.message, one.block) in kept for one in thinking if one.message >= start)
    return kept if is_whole else set()


def find_changes(recorded: Prefix | None, now: Prefix) -> tuple[Part, ...]:
    """Returns the parts of a prefix that have changed; all parts if it is not recorded."""
    return tuple(part for part in PARTS if recorded is None or getattr(recorded, part) != getattr(now, part))


def find_open_answer(messages: Sequence[Message]) -> int:
    """Returns the number of the first message of the answer that a request continues; without one, of its end.

    The answer is continued if the request ends with a message of the assistant (a pause), or with results of its calls.
    """
    start = len(messages)
    for number in reversed(range(len(messages))):
        message = messages[number]
        if message.role == "assistant":
            start = number
        elif message.role == "user" and not any(b.get("type") == "tool_result" for b in _as_blocks(message.content)):
            break
    return start


def without_thinking(messages: Sequence[Message], kept: set[tuple[int, int]]) -> list[Message]:
    """Returns `messages` without thinking blocks other than `kept`. A message that has nothing else is left out."""
    found = []
    for number, message in enumerate(messages):
        blocks = message.content if isinstance(message.content, list) else []
        left = [
            block for index, block in enumerate(blocks) if block.get("type") not in THINKING or (number, index) in kept
        ]
        if len(left) == len(blocks):
            found.append(message)
        elif left:
            found.append(msgspec.structs.replace(message, content=left))
    return found


def count_unchanged(before: Prefix, now: Prefixes) -> int:
    """Returns how many messages of a prompt an earlier prompt, whose answer has the prefix `before`, also had.

    0 if another part has changed, or a message of the earlier prompt.
    """
    return next((n for n, end in enumerate(now.messages, 1) if not find_changes(before, end)), 0)


def find_changes_since(before: Prefix, now: Prefixes) -> tuple[Part, ...]:
    """Returns the parts of an earlier prompt that have changed, other than by messages that were appended.

    `before` is the prefix of the earlier prompt's answer.
    """
    if not now.messages:
        return ()
    changed = find_changes(before, now.messages[-1])
    is_appended = any(end.messages == before.messages for end in now.messages)
    return tuple(part for part in changed if part != "messages" or not is_appended)


def checks_thinking(model: str) -> bool:
    """Returns whether the API checks the prefix of thinking that is sent to this model; True for an unknown model.

    Anthropic's page "Preserved thinking": later models will check it for every account.
    """
    found = find_model(model)
    return found is None or found.checks_thinking


class _Tools:
    """The tools of a prompt: those that are loaded from the start, and deferred ones that a block has referenced."""

    def __init__(self, tools: list[Block]) -> None:
        self._encoded = [(_deferred_name(tool), _encode(tool)) for tool in tools]
        self._deferred = {name for name, _ in self._encoded if name is not None}
        self._digest = ""

    def reference(self, block: Block) -> None:
        """Notes the deferred tools that a block names: a call, a result of a tool search, a `tool_addition`."""
        if self._deferred and (named := self._deferred.intersection(_names(block))):
            self._deferred -= named
            self._digest = ""

    def digest(self) -> str:
        if not self._digest:
            self._digest = _digest(encoded for name, encoded in self._encoded if name not in self._deferred)
        return self._digest


def _deferred_name(tool: Block) -> str | None:
    """Returns the name of a tool that is loaded later; None for another tool."""
    return str(tool.get("name")) if tool.get("defer_loading") is True else None


def _names(value: Any) -> Iterator[str]:
    """Yields what may be the name of a tool, at any level."""
    match value:
        case dict():
            yield from (one for name in ("name", "tool_name") if isinstance(one := value.get(name), str))
            for inner in value.values():
                yield from _names(inner)
        case list():
            for inner in value:
                yield from _names(inner)


def _as_blocks(content: str | list[Block]) -> list[Block]:
    return [{"type": "text", "text": content}] if isinstance(content, str) and content else content or []


def _more_fields(message: Message) -> bytes:
    """Returns the fields of a message other than its role and content, as JSON; nothing if it has none."""
    more = {
        name: value
        for name, value in (("output_config", message.output_config), ("clear_at", message.clear_at))
        if value is not msgspec.UNSET and value is not None
    }
    return msgspec.json.encode(more) if more else b""


def _encode(block: Block) -> bytes:
    return msgspec.json.encode(_bare(block))


def _bare(block: Block) -> Block:
    """Returns a block in one form: its fields in the order of their names, without nulls and marks of the cache."""
    return {
        name: _bare_inside(block[name]) if name in HOLD_BLOCKS else block[name]
        for name in sorted(block)
        if name != "cache_control" and block[name] is not None
    }


def _bare_inside(value: Any) -> Any:
    match value:
        case dict():
            return _bare(value)
        case list():
            return [_bare(one) if isinstance(one, dict) else one for one in value]
        case _:
            return value


def _digest(encoded: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(encoded)).hexdigest()[:DIGEST_CHARS]
