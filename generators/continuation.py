"""Going on from a partial answer: what to ask the model, and where its new events belong in the old message. Pure.

A reader is not to notice: the new call's opening is hidden, its text goes into the block that was open, and its further
blocks are numbered on from there.
"""

from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.generators.delta_buffer import Outgoing
from tailrace.generators.prompt_cache import marked
from tailrace.generators.repetition import RepetitionFilter
from tailrace.generators.structured_output import shaped
from tailrace.proto import events
from tailrace.proto.entries import Message, Request
from tailrace.proto.fold import Block, Turn, content
from tailrace.proto.models import find_model

# Models after 4.5 refuse a prefilled answer; Anthropic's migration guide asks for a user message like this instead.
GO_ON = (
    "Your previous response was interrupted and ended with: {tail}\n"
    "Continue it from exactly that point, in the middle of a word if need be. "
    "Write only what comes after it: no repetition, no introduction."
)
TAIL_CHARS = 200


def build_call(request: Request) -> Call:
    """The call that answers `request` from the beginning."""
    call = Call(
        model=request.model,
        max_tokens=request.max_tokens,
        messages=list(request.messages),
        system=request.system,
        tools=request.tools,
        options=request.options,
        betas=request.betas,
        api_version=request.api_version,
        project=request.project,
    )
    return marked(shaped(call), request.cache, request.history)


def build_continuation_call(request: Request, turn: Turn) -> Call:
    """The call that goes on with the answer that `turn` holds a part of."""
    call = build_call(request)
    if not turn.text.strip():
        return call
    if takes_prefill(request.model):
        return msgspec.structs.replace(call, messages=[*call.messages, Message("assistant", prefill(turn.text))])
    said = [content(block) for block in turn.blocks if block.text.strip()]
    go_on = GO_ON.format(tail=msgspec.json.encode(turn.text[-TAIL_CHARS:]).decode())
    return msgspec.structs.replace(call, messages=[*call.messages, Message("assistant", said), Message("user", go_on)])


def takes_prefill(name: str) -> bool:
    model = find_model(name)
    return model is not None and model.supports.prefill is True


def prefill(text: str) -> str:
    """The part of `text` that a prefill may hold: the API refuses one that ends in white space."""
    return text.rstrip()


class Continuation:
    """Maps the events of a continuing call onto the message that readers have already seen the beginning of."""

    def __init__(self, blocks: tuple[Block, ...], seam: RepetitionFilter, owed: str) -> None:
        """`blocks` are those stored. `owed` is white space that is stored, but was not told to the model."""
        self.repeated = 0
        """Characters of what is stored that the model said again, and that were left out."""
        self._open = len(blocks) - 1 if blocks and not blocks[-1].is_closed else None
        self._next = len(blocks)
        self._has_before = bool(blocks)
        self._seam = seam
        self._sewn: int | None = None
        self._owed = owed
        self._left_out = 0
        self._places: dict[int, int | None] = {}

    def place(self, raw: bytes) -> list[Outgoing]:
        """What `raw`, an event of the new call, becomes in the log: mostly one event, sometimes none or two."""
        placed = self._placed(raw)
        if placed and self._left_out:
            placed[0] = placed[0]._replace(left_out=self._left_out)
            self._left_out = 0
        return placed

    def _placed(self, raw: bytes) -> list[Outgoing]:
        event = events.decode(raw)
        match event:
            case events.MessageStart():
                return [Outgoing(msgspec.Raw(raw), is_hidden=True)]
            case events.BlockStart(index, block):
                return self._start(index, block)
            case events.BlockDelta(index, delta):
                return self._delta(index, delta)
            case events.BlockStop(index):
                place = self._places.get(index)
                return [] if place is None else [*self._unheld(index), shown(events.BlockStop(place))]
            case events.MessageDelta():
                # Only the stop of a block may have been lost: then the model has no text to add to it.
                return [*self._closing(), Outgoing(msgspec.Raw(raw))]
            case _:
                return [Outgoing(msgspec.Raw(raw))]

    def _start(self, index: int, block: dict[str, Any]) -> list[Outgoing]:
        kind = block.get("type")
        if kind == "text" and self._open is not None:
            self._places[index], self._open, self._sewn = self._open, None, index
            return []
        if kind in ("thinking", "redacted_thinking") and self._has_before:
            # The model thinks anew before it goes on. The reader has seen the thoughts that led here.
            self._places[index] = None
            return []
        # It goes on with something other than text: what was open is finished.
        closing = self._closing()
        self._places[index] = self._next
        self._next += 1
        start = events.BlockStart(self._next - 1, block)
        return [*closing, shown(start)]

    def _closing(self) -> list[Outgoing]:
        """The stop of the block that was open, if it still is."""
        if self._open is None:
            return []
        stop, self._open = events.BlockStop(self._open), None
        return [shown(stop)]

    def _delta(self, index: int, delta: events.Delta) -> list[Outgoing]:
        place = self._places.get(index)
        if place is None:
            self._left_out += len(delta.thinking) if isinstance(delta, events.ThinkingDelta) else 0
            return []
        if not isinstance(delta, events.TextDelta):
            return [*self._unheld(index), shown(events.BlockDelta(place, delta))]
        if index != self._sewn:
            return self._text(place, delta.text)
        text, repeated = self._seam.take(delta.text)
        self.repeated += repeated
        self._left_out += repeated
        return self._text(place, text)

    def _unheld(self, index: int) -> list[Outgoing]:
        """What was held of the block `index`, which goes on with something else."""
        place = self._places.get(index)
        return [] if index != self._sewn or place is None else self._text(place, self._seam.rest())

    def _text(self, place: int, text: str) -> list[Outgoing]:
        text = self._paid(text)
        return [shown(events.BlockDelta(place, events.TextDelta(text)))] if text else []

    def _paid(self, text: str) -> str:
        """`text` without the white space at its beginning that is stored already."""
        while self._owed and text and text[0] == self._owed[0]:
            text, self._owed = text[1:], self._owed[1:]
        if text:
            # The model went on with something else: what is owed now would be a guess.
            self._owed = ""
        return text


def shown(event: events.Event) -> Outgoing:
    return Outgoing(events.encode(event))


def map_continuation(request: Request, turn: Turn) -> Continuation:
    """The mapping that belongs to `build_continuation_call(request, turn)`."""
    # Of white space alone no model is told: that call begins anew, and what it begins with is stored.
    is_told_whole = bool(turn.text.strip()) and not takes_prefill(request.model)
    told = turn.text if is_told_whole else prefill(turn.text)
    return Continuation(turn.blocks, RepetitionFilter(told), turn.text[len(told) :])
