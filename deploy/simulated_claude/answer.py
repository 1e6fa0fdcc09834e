"""The complete answer to a question, and the rest of it after a partial answer. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from tailrace.deploy.simulated_claude import directive, prose
from tailrace.deploy.simulated_claude.conversation import Conversation
from tailrace.deploy.simulated_claude.directive import Directive
from tailrace.deploy.simulated_claude.sample import INPUT
from tailrace.deploy.simulated_claude.server_tool import ServerCall

# A result is whole in its content_block_start, which counts as one delta.
RESULT = ("",)
NO_INPUTS: Mapping[str, str] = {}
JSON_PIECE = re.compile(r".{1,8}", re.DOTALL)


class Block(msgspec.Struct, frozen=True):
    """A content block as a list of deltas."""

    kind: Literal["thinking", "text", "tool_use", "server_call", "server_result"]
    deltas: tuple[str, ...]
    tool: str = ""
    cites: int = 0  # citations after its last delta
    server: ServerCall | None = None  # for a call of a server tool, and for its result
    before: int = 0  # calls of server tools before a block of thinking
    equal: int = 0  # equal calls of a tool before this call

    @property
    def content(self) -> str:
        return "".join(self.deltas)


class Part(msgspec.Struct, frozen=True):
    """The response of one call: its blocks, and the number of the answer's deltas before them (`start`)."""

    blocks: tuple[Block, ...]
    start: int = 0
    is_cut_short: bool = False  # by max_tokens
    is_last_open: bool = False  # max_tokens has cut the last block, and not only the answer
    stop_sequence: str | None = None  # the first one in the text
    is_paused: bool = False  # the part ends with a call of a server tool without a result
    is_refused: bool = False  # the model refuses to go on
    pending: str = ""  # the id of a call in the request whose result comes first in this part

    @property
    def deltas(self) -> int:
        return sum(len(block.deltas) for block in self.blocks)


def build_answer(
    conversation: Conversation,
    directed: Directive,
    *,
    json_sample: str = "",
    forced: str = "",
    calls_max: int | None = None,
    inputs: Mapping[str, str] = NO_INPUTS,
) -> Part:
    """Returns the complete answer. A tool of `tool=` is not called again after its result.

    `json_sample`: the text is the JSON of `json=`, or else this sample. `forced`: the answer is a call of the tool with
    this name. `calls_max`: the most calls of `tool=`. The input of a call is that of `json=`, or else the one of its
    tool in `inputs`.
    """
    if directed.words is not None:
        text = words(directed.tag, directed.words, directed.chars)
    elif directed.count is not None:
        text = numbers(directed.count)
    else:
        text = prose.deltas(prose.markdown(directive.remove_directives(conversation.question)))
    if json_sample:
        is_wrong = directed.wrong_json and not conversation.is_corrected
        text = JSON_PIECE.findall(directed.wrong_json if is_wrong else directed.json_of(0) or json_sample)
    if directed.files:
        text = [conversation.files_sha256, *([" "] if text else []), *text]
    blocks = [Block("thinking", tuple(words("t", directed.thinking))), Block("text", tuple(text), cites=directed.cites)]
    if directed.server:
        blocks = server_blocks(blocks[0], blocks[1], directed.server)
    names = [] if conversation.has_tool_result else directed.tools[:calls_max]
    if forced:
        names, blocks = [forced], blocks[:1]
    blocks += tool_calls([(name, directed.json_of(n) or inputs.get(name, INPUT)) for n, name in enumerate(names)])
    return Part(tuple(block for block in blocks if block.deltas))


def server_blocks(thinking: Block, text: Block, calls: tuple[ServerCall, ...]) -> list[Block]:
    """Returns `text` in equal parts, with `thinking` before each part, and a call with its result between two parts.

    If the deltas cannot be divided equally, the first parts are one delta longer.
    """
    blocks: list[Block] = []
    done = 0
    for number in range(len(calls) + 1):
        if number:
            call = calls[number - 1]
            blocks.append(Block("server_call", tuple(JSON_PIECE.findall(call.input_json)), server=call))
            blocks.append(Block("server_result", RESULT, server=call))
        end = done + -(-(len(text.deltas) - done) // (len(calls) + 1 - number))
        blocks.append(replace(thinking, before=number))
        blocks.append(Block("text", text.deltas[done:end], cites=text.cites if number == len(calls) else 0))
        done = end
    return blocks


def tool_calls(calls: Sequence[tuple[str, str]]) -> list[Block]:
    """Returns a block for each call: the name of its tool, and its input as JSON."""
    return [
        Block("tool_use", tuple(JSON_PIECE.findall(call[1])), call[0], equal=calls[:number].count(call))
        for number, call in enumerate(calls)
    ]


def words(tag: str, count: int, chars: int = 0) -> list[str]:
    """Returns `w000000`, ` w000001`, …: `count` words, each but the first with a space before it.

    A word of less than `chars` characters is filled up with `x`.
    """
    return [f"{' ' if number else ''}{f'{tag}{number:06d}':x<{chars}}" for number in range(count)]


def numbers(last: int) -> list[str]:
    """Returns the deltas `1`, `, 2`, `, 3`, … up to `last`."""
    return [f"{', ' if number > 1 else ''}{number}" for number in range(1, last + 1)]


def find_remainder(answer: Part, conversation: Conversation) -> Part | None:
    """Returns the rest of the answer after the partial answer of `conversation`; None if the partial text is no prefix
    of the answer's.

    Leaves out thinking before the partial answer's end, its calls of server tools, and their results.
    """
    left = len(conversation.partial)
    if not "".join(block.content for block in answer.blocks if block.kind == "text").startswith(conversation.partial):
        return None
    called = conversation.pairs + bool(conversation.pending)
    blocks: list[Block] = []
    for block in answer.blocks:
        number = block.server.number if block.server else 0
        match block.kind:
            case "text":
                done, deltas = split_after(block.deltas, left)
                left = max(0, left - len(block.content))
                if deltas:
                    blocks.append(block if not done and deltas == block.deltas else replace(block, deltas=deltas))
            case "thinking" if left or not 0 < block.before >= called:
                pass
            case "server_call" if number <= called:
                pass
            case "server_result" if number <= conversation.pairs:
                pass
            case _:
                blocks.append(block)
    rest = Part(tuple(blocks), stop_sequence=answer.stop_sequence, pending=conversation.pending)
    return replace(rest, start=answer.deltas - rest.deltas)


def pause(part: Part, pauses: int) -> Part:
    """Returns `part` up to and including its first paused call of a server tool; the whole `part` if it has none.

    The first `pauses` calls of the answer are paused.
    """
    for number, block in enumerate(part.blocks):
        if block.kind == "server_call" and block.server is not None and block.server.number <= pauses:
            return replace(part, blocks=part.blocks[: number + 1], stop_sequence=None, is_paused=True)
    return part


def with_repeated(part: Part, partial: str, words: int) -> Part:
    """Returns `part` with the last `words` of `partial` repeated at its beginning, as real models sometimes do."""
    again = "".join(re.findall(r"\s*\S+\s*", partial)[-words:]).lstrip()
    if not words or not again:
        return part
    first, *others = part.blocks if part.blocks and part.blocks[0].kind == "text" else (Block("text", ()), *part.blocks)
    deltas = (*re.findall(r"\S+\s*", again), *first.deltas)
    return replace(part, blocks=(replace(first, deltas=deltas), *others))


def cut_at_stop_sequence(part: Part, sequences: Sequence[str]) -> Part:
    """Returns `part` up to the first of the stop `sequences` in its text, without the sequence."""
    for number, block in enumerate(part.blocks):
        found = [(at, one) for one in sequences if (at := block.content.find(one)) >= 0]
        if block.kind == "text" and found:
            at, sequence = min(found)
            done, _ = split_after(block.deltas, at)
            deltas = (*block.deltas[:done], block.deltas[done][: at - length(block, done)])
            blocks = (*part.blocks[:number], *([Block("text", tuple(filter(None, deltas)))] if at else []))
            return replace(part, blocks=blocks, stop_sequence=sequence)
    return part


def length(block: Block, deltas: int) -> int:
    """Returns the characters in the first `deltas` deltas."""
    return sum(len(delta) for delta in block.deltas[:deltas])


def split_after(deltas: tuple[str, ...], length: int) -> tuple[int, tuple[str, ...]]:
    """Returns how many deltas the first `length` characters fill, and the rest; a split delta leaves its remainder."""
    for number, delta in enumerate(deltas):
        if length < len(delta):
            return number, (delta[length:], *deltas[number + 1 :])
        length -= len(delta)
    return len(deltas), ()


def limit_tokens(part: Part, max_tokens: int) -> Part:
    """Returns `part` with at most `max_tokens` deltas: a word counts as a token."""
    if part.deltas <= max_tokens:
        return part
    blocks = tuple(first_deltas(part.blocks, max_tokens))
    is_open = blocks[-1:] != part.blocks[len(blocks) - 1 : len(blocks)]
    return replace(part, blocks=blocks, is_cut_short=True, is_last_open=is_open, is_paused=False)


def refuse(part: Part, deltas: int) -> Part:
    """Returns the first `deltas` deltas of `part`, after which the model refuses to go on."""
    blocks = tuple(first_deltas(part.blocks, deltas))
    return replace(
        part,
        blocks=blocks,
        is_refused=True,
        is_cut_short=False,
        is_last_open=False,
        is_paused=False,
        stop_sequence=None,
    )


def first_deltas(blocks: tuple[Block, ...], count: int) -> Iterator[Block]:
    for block in blocks:
        if count > 0:
            yield replace(block, deltas=block.deltas[:count])
        count -= len(block.deltas)
