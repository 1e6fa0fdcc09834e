"""The whole answer to a question, or the rest of it after a partial one; pure, so it is never another."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from tailrace.deploy.simulated_claude import directive, prose
from tailrace.deploy.simulated_claude.conversation import Conversation
from tailrace.deploy.simulated_claude.directive import Directive

JSON_PIECE = re.compile(r".{1,8}", re.DOTALL)


class Block(msgspec.Struct, frozen=True):
    """A content block as it streams: one string a delta."""

    kind: Literal["thinking", "text", "tool_use"]
    deltas: tuple[str, ...]
    tool: str = ""
    cites: int = 0  # citations, behind its last delta

    @property
    def content(self) -> str:
        return "".join(self.deltas)


class Part(msgspec.Struct, frozen=True):
    """What one call has to send: blocks, and the place in the whole answer (in deltas) where they start."""

    blocks: tuple[Block, ...]
    start: int = 0
    is_cut_short: bool = False  # max_tokens came first
    stop_sequence: str | None = None  # the one that came first

    @property
    def deltas(self) -> int:
        return sum(len(block.deltas) for block in self.blocks)


def whole(conversation: Conversation, directed: Directive, *, is_json: bool = False) -> Part:
    """All of it; `is_json`, as `json=` has it. A tool whose result is in the conversation is not asked for again."""
    text = (
        prose.deltas(prose.markdown(directive.without(conversation.question)))
        if directed.words is None
        else words(directed.tag, directed.words)
    )
    if is_json:
        is_wrong = directed.wrong_json and not conversation.is_corrected
        text = JSON_PIECE.findall(directed.wrong_json if is_wrong else directed.input_json)
    if directed.files:
        text = [conversation.files_sha256, *([" "] if text else []), *text]
    blocks = [Block("thinking", tuple(words("t", directed.thinking))), Block("text", tuple(text), cites=directed.cites)]
    if directed.tool and not conversation.has_tool_result:
        blocks.append(Block("tool_use", tuple(JSON_PIECE.findall(directed.input_json)), directed.tool))
    return Part(tuple(block for block in blocks if block.deltas))


def words(tag: str, count: int) -> list[str]:
    """`w000000`, ` w000001`, …: joined, `count` words with one space between them."""
    return [f"{' ' if number else ''}{tag}{number:06d}" for number in range(count)]


def rest(answer: Part, partial: str) -> Part | None:
    """What follows `partial`, without the thinking; None when the answer does not start with it."""
    thinking = sum(len(block.deltas) for block in answer.blocks if block.kind == "thinking")
    text = next((block for block in answer.blocks if block.kind == "text"), Block("text", ()))
    if not text.content.startswith(partial):
        return None
    done, left = after(text.deltas, len(partial))
    tools = (block for block in answer.blocks if block.kind == "tool_use")
    blocks = (*([msgspec.structs.replace(text, deltas=left)] if left else []), *tools)
    return Part(blocks, thinking + done, stop_sequence=answer.stop_sequence)


def with_repeated(part: Part, partial: str, words: int) -> Part:
    """`part`, whose first text begins with the last `words` of `partial`, as real models are known to."""
    again = "".join(re.findall(r"\s*\S+\s*", partial)[-words:]).lstrip()
    if not words or not again:
        return part
    text = next((block for block in part.blocks if block.kind == "text"), Block("text", ()))
    others = tuple(block for block in part.blocks if block.kind != "text")
    deltas = (*re.findall(r"\S+\s*", again), *text.deltas)
    return msgspec.structs.replace(part, blocks=(msgspec.structs.replace(text, deltas=deltas), *others))


def stopped(part: Part, sequences: Sequence[str]) -> Part:
    """`part` up to the first of `sequences` in its text, which is not said."""
    for number, block in enumerate(part.blocks):
        found = [(at, one) for one in sequences if (at := block.content.find(one)) >= 0]
        if block.kind == "text" and found:
            at, sequence = min(found)
            done, _ = after(block.deltas, at)
            said = (*block.deltas[:done], block.deltas[done][: at - length(block, done)])
            blocks = (*part.blocks[:number], *([Block("text", tuple(filter(None, said)))] if at else []))
            return Part(blocks, part.start, stop_sequence=sequence)
    return part


def length(block: Block, deltas: int) -> int:
    """Of so many deltas, in characters."""
    return sum(len(delta) for delta in block.deltas[:deltas])


def after(deltas: tuple[str, ...], length: int) -> tuple[int, tuple[str, ...]]:
    """How many deltas the first `length` characters fill, and the rest; one that was broken gives its remainder."""
    for number, delta in enumerate(deltas):
        if length < len(delta):
            return number, (delta[length:], *deltas[number + 1 :])
        length -= len(delta)
    return len(deltas), ()


def at_most(part: Part, max_tokens: int) -> Part:
    """`part`, cut short at `max_tokens` deltas: a word is a token here."""
    if part.deltas <= max_tokens:
        return part
    return Part(tuple(first_deltas(part.blocks, max_tokens)), part.start, is_cut_short=True)


def first_deltas(blocks: tuple[Block, ...], count: int) -> Iterator[Block]:
    for block in blocks:
        if count > 0:
            yield msgspec.structs.replace(block, deltas=block.deltas[:count])
        count -= len(block.deltas)
