"""What the model says in a schedule, and what it has to add up to. A function of the question and of what was said."""

from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from tailrace.proto import events
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.usage import CallUsage
from tests.handwritten import MODEL, request

FORMAT = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "array"}}}}
MISFIT = "it is no array"


class Said(NamedTuple):
    """One block of an answer, in the pieces that the model says it in."""

    type: str
    pieces: tuple[str, ...]

    @property
    def whole(self) -> str:
        return "".join(self.pieces)


class Script(NamedTuple):
    """A question's right answer; `wrong` is what the model says first where an answer has to fit a schema."""

    blocks: tuple[Said, ...]
    wrong: tuple[Said, ...] = ()

    def answer(self, *, is_corrected: bool) -> tuple[Said, ...]:
        return self.wrong if self.wrong and not is_corrected else self.blocks

    @property
    def text(self) -> str:
        return text_of(self.blocks)


def text_of(blocks: tuple[Said, ...]) -> str:
    return "".join(block.whole for block in blocks if block.type == "text")


WORDS = ("w0", " w1", " w2", " w3")
SCRIPTS = (
    Script((Said("text", WORDS),)),
    Script((Said("thinking", ("Hm", "m")), Said("text", WORDS[:3]))),
    Script((Said("text", WORDS[:2]), Said("tool_use", ('{"a"', ":1}")))),
    Script((Said("text", ("[0", ",1", "]")),), wrong=(Said("text", ("Here", " it is")),)),
)
DELTAS: dict[str, Any] = {
    "text": events.TextDelta,
    "thinking": events.ThinkingDelta,
    "tool_use": events.InputJsonDelta,
}


@lru_cache
def question(script: Script, on_interrupt: str) -> Request:
    return request(on_interrupt=on_interrupt, options=FORMAT if script.wrong else None)


def misfit(script: Script, turn: Turn) -> str | None:
    return None if turn.text == script.text else MISFIT


def call(script: Script, turn: Turn, mode: str) -> tuple[bytes, ...]:
    """The events of the call that an attempt in `mode` makes, whose fold is `turn`."""
    answer = script.answer(is_corrected=turn.misfit is not None)
    if mode != "continue":
        return _events(answer)
    left, told = list[Said](), turn.text
    tools = sum(block.type == "tool_use" for block in turn.blocks)
    for block in answer:
        if block.type == "text":
            rest = block.whole[len(told) :]
            told = told[len(block.whole) :]
            if rest:
                # Cut in other places than the first time.
                left.append(Said("text", (rest[:1], rest[1:]) if len(rest) > 1 else (rest,)))
        elif block.type == "thinking":
            left.append(block)
        elif tools:
            tools -= 1
        else:
            left.append(block)
    return _events(tuple(left))


@lru_cache
def _events(blocks: tuple[Said, ...]) -> tuple[bytes, ...]:
    head = events.MessageHead("msg_1", MODEL, CallUsage(input_tokens=10))
    said: list[events.Event] = [events.MessageStart(head)]
    for index, block in enumerate(blocks):
        said.append(events.BlockStart(index, {"type": block.type}))
        said += [events.BlockDelta(index, DELTAS[block.type](piece)) for piece in block.pieces]
        said.append(events.BlockStop(index))
    why = "tool_use" if blocks and blocks[-1].type == "tool_use" else "end_turn"
    said.append(events.MessageDelta(events.StopReason(why), events.UsageSoFar(output_tokens=len(said))))
    return tuple(msgspec.json.encode(one) for one in said)
