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
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from tailrace.proto.entries import Message, Prefix, PromptPart, StoredThinking
from tailrace.proto.models import find_model
from tailrace.proto.usage import Usage

Block = dict[str, Any]
PARTS: tuple[PromptPart, ...] = ("system", "tools", "messages")
THINKING = ("thinking", "redacted_thinking")
# Enough that no two prefixes of one conversation get the same digest.
DIGEST_CHARS = 16
# Fields that may hold blocks, in which `cache_control` does not count either. A tool's `input` is the model's value.
HOLD_BLOCKS = ("content", "source")


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
    """The prefix that ends with each message, with its length in `bytes`. The last one is that of the answer."""
    tools_bytes: int
    """The length of the tools."""
    head_bytes: int
    """The length of the tools and of the system prompt."""


class BoundPrompt(NamedTuple):
    """The messages of a call as its model accepts them."""

    messages: list[Message]
    prefix: Prefix
    left_out: int
    """The number of thinking blocks that were left out."""


def bind(
    system: str | list[Block] | None,
    tools: list[Block] | None,
    messages: list[Message],
    stored: Sequence[StoredThinking],
    previous: Prefix | None,
    *,
    is_checked: bool,
) -> BoundPrompt:
    """Returns the messages without `stored` thinking that the API would refuse, and the prefix of their answer.

    `previous` is the prompt of the turn before. With `is_checked` False, the model runs no check.
    """
    found = find_prefixes(system, tools, messages)
    kept = {(one.message, one.block) for one in found.thinking}
    known = {one.id: one for one in stored}
    if is_checked and stored:
        kept = choose_kept(messages, found.thinking, known)
    last = found.messages[-1]
    is_whole = len(kept) == len(found.thinking)
    if not is_whole:
        names = [one.id for one in found.thinking if (one.message, one.block) in kept]
        last = msgspec.structs.replace(last, thinking=names[-1] if names else "")
        messages = without_thinking(messages, kept)
    if previous is not None:
        changed = find_changes_since(previous, found)
        is_cut = bool(previous.thinking) and previous.thinking not in {
            one.id for one in found.thinking if (one.message, one.block) in kept
        }
        last = msgspec.structs.replace(
            last,
            changed=(*changed, "thinking") if is_cut else changed,
            unchanged=_unchanged_bytes(previous, found, changed, known, is_cut=is_cut),
        )
    return BoundPrompt(messages, last, len(found.thinking) - len(kept))


def _unchanged_bytes(
    previous: Prefix,
    now: Prefixes,
    changed: tuple[PromptPart, ...],
    stored: Mapping[str, StoredThinking],
    *,
    is_cut: bool,
) -> int:
    """Returns how many bytes of a prompt come before the first difference that is known.

    If messages have changed, the newest thinking in `stored` whose prefix has not shows up to where they are the same.
    """
    if "tools" in changed:
        return 0
    if "system" in changed:
        return now.tools_bytes
    if is_cut:
        return now.head_bytes
    if "messages" in changed:
        same = (one.prefix.bytes for one in now.thinking if _is_unchanged(one, stored.get(one.id)))
        return max(same, default=now.head_bytes)
    return now.messages[count_unchanged(previous, now) - 1].bytes


def find_prefixes(system: str | list[Block] | None, tools: list[Block] | None, messages: Sequence[Message]) -> Prefixes:
    """Returns the prefixes in a prompt, in one pass.

    The arguments are those of a model call. They must have the same form each time, such as files as references or as
    base64.
    """
    of_tools = _Tools(tools or [])
    blocks = [_encode(block) for block in _as_blocks(system or [])]
    of_system = _digest(blocks)
    size = head = of_tools.bytes + sum(map(len, blocks))
    thinking: list[Thinking] = []
    ends: list[Prefix] = []
    digest = last = ""

    def prefix() -> Prefix:
        return Prefix(system=of_system, tools=of_tools.digest(), messages=digest, thinking=last, bytes=size)

    for number, message in enumerate(messages):
        more = _more_fields(message)
        if more or message.role == "system":
            # Only messages of the user and of the assistant are combined. Other fields belong to one message.
            digest = _digest([digest.encode(), more])
        for index, block in enumerate(_as_blocks(message.content)):
            if block.get("type") in THINKING:
                name = thinking_id(block)
                thinking.append(Thinking(number, index, name, prefix()))
                last = name
            else:
                encoded = _encode(block)
                digest, size = _extend(digest, message.role, block, encoded), size + len(encoded)
                of_tools.reference(block)
        ends.append(prefix())
    return Prefixes(thinking, ends, of_tools.bytes, head)


def _extend(digest: str, role: str, block: Block, encoded: bytes) -> str:
    """Returns the digest of the messages up to `block`, from that of the messages before it.

    A compaction block is a summary of all before it.
    """
    before = "" if block.get("type") == "compaction" and block.get("content") else digest
    return _digest([before.encode(), role.encode(), encoded])


def find_stored_thinking(prefixes: Sequence[Prefix], content: Iterable[Block]) -> list[StoredThinking]:
    """Returns the thinking of an answer with its prefixes. `prefixes` are the prompts of the calls that wrote it.

    The blocks of a call follow its prompt. Thinking before the first prompt has an unknown prefix.
    """
    found: list[StoredThinking] = []
    calls = list(prefixes)
    call: Prefix | None = None
    digest = last = ""
    for index, block in enumerate(content):
        while calls and calls[0].block <= index:
            call = calls.pop(0)
            digest, last = call.messages, call.thinking
        if block.get("type") in THINKING:
            name = thinking_id(block)
            prefix = None if call is None else "" if call.is_extended else _join(call.system, call.tools, digest)
            found.append(StoredThinking(name, prefix, last))
            last = name
        else:
            digest = _extend(digest, "assistant", block, _encode(block))
    return found


def thinking_ids(messages: Iterable[Message]) -> Iterator[str]:
    """Yields the id of each thinking block."""
    for message in messages:
        for block in message.content if isinstance(message.content, list) else ():
            if block.get("type") in THINKING:
                yield thinking_id(block)


def as_stored(one: Thinking) -> StoredThinking:
    """Returns a thinking block of a prompt as an entry stores it."""
    return StoredThinking(one.id, _join(one.prefix.system, one.prefix.tools, one.prefix.messages), one.prefix.thinking)


def _is_unchanged(one: Thinking, was: StoredThinking | None) -> bool:
    """Returns whether a thinking block has the prefix that it had when the model wrote it."""
    return was is not None and was.prefix == as_stored(one).prefix


def _join(system: str, tools: str, messages: str) -> str:
    return _digest([system.encode(), tools.encode(), messages.encode()])


def thinking_id(block: Mapping[str, Any]) -> str:
    """Returns the id of a thinking block, a digest of what the API checks: the signature, or the encrypted data."""
    return hashlib.sha256(str(block.get("signature") or block.get("data")).encode()).hexdigest()[:DIGEST_CHARS]


def choose_kept(
    messages: Sequence[Message], thinking: Sequence[Thinking], stored: Mapping[str, StoredThinking]
) -> set[tuple[int, int]]:
    """Returns the thinking that a request with `messages` may send: the numbers of its messages and blocks.

    `thinking` is that of `find_prefixes` for this request. `stored` has, by its id, the thinking of stored answers. Of
    other thinking, which the client has sent, nothing is known: all of it is kept.

    Walks back from the newest block with an unchanged prefix, each time to the block that came before it when the model
    wrote it, as far as these blocks are unchanged, too. So no block is missing between two others that the model wrote
    one after the other, and no block comes back between two others that the model wrote without it. A tool loop (or a
    pause) that the request continues is one answer: if a block of it cannot be sent, no block of it is. The thinking
    before that answer stays if its own prefix is unchanged. The page allows it: a block is bound to the blocks before
    it, so thinking may be missing after it. So a prompt that was extended for a forced call costs no earlier thinking.
    """
    # The answer had to be continued without its thinking: what the client sends of it does not come back later, either.
    every, answers = thinking, _number_answers(messages)
    extended = {answers[one.message] for one in thinking if one.id in stored and stored[one.id].prefix == ""}
    thinking = [one for one in thinking if one.id in stored or answers[one.message] not in extended]
    kept = _walk_back(thinking, stored)
    start = find_open_answer(messages)
    if any((one.message, one.block) not in kept for one in every if one.message >= start):
        kept = _walk_back([one for one in thinking if one.message < start], stored)
    return kept


def _number_answers(messages: Sequence[Message]) -> list[int]:
    """Returns for each message the number of its answer: a question begins another answer, a result does not."""
    numbers: list[int] = []
    number = 0
    for role, run in groupby(messages, key=lambda message: message.role):
        of_role = list(run)
        blocks = [block for message in of_role for block in _as_blocks(message.content)]
        number += role == "user" and all(block.get("type") != "tool_result" for block in blocks)
        numbers += [number] * len(of_role)
    return numbers


def _walk_back(thinking: Sequence[Thinking], stored: Mapping[str, StoredThinking]) -> set[tuple[int, int]]:
    """Returns the blocks of `thinking` that `choose_kept` keeps, whether they are of one answer or not."""
    kept: set[tuple[int, int]] = set()
    wanted: str | None = None
    for one in reversed(thinking):
        was = stored.get(one.id)
        if was is None:
            # Which block it follows is unknown, too.
            wanted = None
            kept.add((one.message, one.block))
        elif wanted in (None, one.id) and _is_unchanged(one, was):
            kept.add((one.message, one.block))
            wanted = was.after
    return kept


def is_extended(asked: Sequence[Message], sent: Sequence[Message]) -> bool:
    """Returns whether the messages of a call have more than those of its request, other than a part of the answer."""
    if len(sent) < len(asked) or any(message.role != "assistant" for message in sent[len(asked) :]):
        return True
    # The answer may continue a last message of the assistant.
    pairs = zip(asked, sent, strict=False)
    return any(one is not other and one.role != "assistant" and _bytes(one) != _bytes(other) for one, other in pairs)


def _bytes(message: Message) -> list[bytes]:
    return [message.role.encode(), _more_fields(message), *map(_encode, _as_blocks(message.content))]


def find_changes(recorded: Prefix | None, now: Prefix) -> tuple[PromptPart, ...]:
    """Returns the parts of a prefix that have changed; all parts if it is not recorded."""
    return tuple(part for part in PARTS if recorded is None or getattr(recorded, part) != getattr(now, part))


def find_open_answer(messages: Sequence[Message]) -> int:
    """Returns the number of the first message of the answer that a request continues; without one, of its end.

    The answer is continued if the request ends with a message of the assistant (a pause), or if the messages of the
    user after it have results of its calls. A text beside the results does not end the answer.
    """
    start = len(messages)
    is_asked = has_results = False
    for number in reversed(range(len(messages))):
        message = messages[number]
        if message.role == "user":
            is_asked = True
            has_results = has_results or any(b.get("type") == "tool_result" for b in _as_blocks(message.content))
        elif message.role == "assistant":
            if is_asked and not has_results:
                break
            start, is_asked, has_results = number, False, False
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


def find_changes_since(before: Prefix, now: Prefixes) -> tuple[PromptPart, ...]:
    """Returns the parts of an earlier prompt that have changed, other than by messages that were appended.

    `before` is the prefix of the earlier prompt's answer.
    """
    if not now.messages:
        return ()
    changed = find_changes(before, now.messages[-1])
    is_appended = any(end.messages == before.messages for end in now.messages)
    return tuple(part for part in changed if part != "messages" or not is_appended)


def count_unchanged_tokens(prompts: Sequence[Prefix], usage: Usage) -> int | None:
    """Returns about how many tokens of a turn's prompts stood in the prompt of the turn before, by their bytes.

    None if there is no turn before, or if nothing is known of it.
    """
    known = [(one.unchanged, one.bytes) for one in prompts if one.unchanged is not None and one.bytes]
    if not known:
        return None
    tokens = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    return tokens * sum(unchanged for unchanged, _ in known) // sum(length for _, length in known)


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
        self.bytes = sum(len(encoded) for _, encoded in self._encoded)
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
