"""fold(entries) -> Turn: what a turn's log adds up to. The same function everywhere; no clock, no randomness, no I/O.

The gateway folds for a reader who wants the whole answer, a generator to take over from a dead one, persistence to
write the row. Time comes in with the entries. Folding a prefix and then the rest is folding the whole.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from tailrace.proto import events
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.entries import Attempt, End, Event, Failure, Mode, Outcome, Progress, Request, Stored
from tailrace.proto.usage import CallUsage, Usage, estimate_usage

# The request of the session's next turn puts five around it: entry, messages, message, content, block (PROTOCOL R7).
INPUT_LEVELS_MAX = LEVELS_MAX - 5
NO_TIME = timedelta()


class Block(msgspec.Struct, frozen=True):
    """One content block of the answer. `text` is what its deltas add up to: text, thinking, or a tool's input."""

    type: str
    start: dict[str, Any]
    """The `content_block` as it was opened."""
    text: str = ""
    signature: str = ""
    citations: tuple[dict[str, Any], ...] = ()
    is_closed: bool = False


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as far as its log goes."""

    chain: Chain = START
    tail: int = 0
    """The last stored sequence, valid or not: what a fence has to name."""
    skipped: int = 0
    """Entries that are stored and not valid: 0 unless the broker stored a fork."""
    request: Request | None = None
    asked_at: datetime | None = None
    ended_at: datetime | None = None
    reached_at: datetime | None = None
    """When the last valid entry was stored."""
    worked: timedelta = NO_TIME
    """From each attempt to the last entry of it, by the server's clock: not the time in which nobody had the turn."""
    generator: str = ""
    backend: str = ""
    mode: Mode = "fresh"
    hedges: int = 0
    """Attempts that took the turn from one that was late: they are not counted as tries."""
    message: events.MessageHead | None = None
    """The message that readers were shown the opening of; None until then, and after a restart."""
    blocks: tuple[Block, ...] = ()
    stop: events.StopReason = events.StopReason()
    envelope: dict[str, Any] = {}
    """What the message says of itself besides: see tailrace.proto.events.envelope."""
    misfit: str | None = None
    """Why a whole answer did not fit its schema; None: it was not asked for again."""
    rejected: str = ""
    """The text of that answer."""
    calls_before: tuple[CallUsage, ...] = ()
    """The usage of each call before the current one."""
    usage_call: CallUsage = CallUsage()
    """Of the current call, as far as the model has counted."""
    said_chars: int = 0
    """What the current call has said since then."""
    was_estimated: bool = False
    """Whether a call before the current one broke off uncounted."""
    progress: Progress | None = None
    """How far a batch has come; None for any other turn."""
    end: End | None = None

    @property
    def attempt(self) -> int:
        return self.chain.attempt

    @property
    def worked_s(self) -> float:
        return self.worked.total_seconds()

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks if block.type == "text")

    @property
    def calls(self) -> tuple[CallUsage, ...]:
        """The usage of each call. The output of one that broke off, or is not done, is estimated (PROTOCOL R23)."""
        return (*self.calls_before, estimate_usage(self.usage_call, self.said_chars))

    @property
    def usage(self) -> Usage:
        """Of all calls."""
        return sum(self.calls, start=Usage())

    @property
    def is_usage_estimated(self) -> bool:
        return self.was_estimated or self.said_chars > 0

    @property
    def outcome(self) -> Outcome | Literal["running"]:
        return "running" if self.end is None else self.end.outcome

    @property
    def error(self) -> Failure | None:
        return self.end.error if self.end is not None else None


EMPTY_TURN = Turn()


def fold(entries: Iterable[Stored], turn: Turn = EMPTY_TURN) -> Turn:
    """`turn` and then `entries`, in the order of the log. What is not valid is skipped and counted (PROTOCOL R11)."""
    folding = _Folding(turn)
    for stored in entries:
        folding.add(stored)
    return folding.turn()


def text_proof(text: str) -> tuple[int, str]:
    """The count and hash of a text that its `end` carries: code points, SHA-256 of the UTF-8 in hex."""
    # A lone surrogate can come out of a model's JSON escape; it has no UTF-8, and the proof must not fail over it.
    return len(text), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def content(block: Block) -> dict[str, Any]:
    """The block as Anthropic's API would have given it, had it not been streamed."""
    match block.type:
        case "text":
            cited = {"citations": list(block.citations)} if block.citations else {}
            return {"type": "text", "text": block.text, **cited}
        case "thinking":
            return {"type": "thinking", "thinking": block.text, "signature": block.signature}
        case "tool_use" | "server_tool_use":
            return {**block.start, "input": _input(block)}
        case _:
            return block.start


def _input(block: Block) -> object:
    # A tool without arguments streams no input at all; one that was cut off streams half of it. Deltas carry the input
    # as text, so that no writer has seen how deep it nests.
    if not block.text:
        return block.start.get("input", {})
    try:
        told = msgspec.json.decode(block.text)
    except DECODE_ERRORS:
        return {}
    return {} if is_deeper(told, INPUT_LEVELS_MAX) else told


class _Open:
    """A block that is being folded: its pieces are joined once, at the end, so that a fold is linear."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.pieces = [block.text]
        self.signature = [block.signature]
        self.citations = list(block.citations)
        self.is_closed = block.is_closed

    def closed(self) -> Block:
        return Block(
            self.block.type,
            self.block.start,
            "".join(self.pieces),
            "".join(self.signature),
            tuple(self.citations),
            self.is_closed,
        )


class _Folding:
    """The fold under way. It never leaves this file: what comes out is a Turn."""

    def __init__(self, turn: Turn) -> None:
        self.was = turn
        self.chain = turn.chain
        self.tail = turn.tail
        self.skipped = turn.skipped
        self.changes: dict[str, Any] = {}
        self.blocks = [_Open(block) for block in turn.blocks]
        self.calls_before = turn.calls_before
        self.usage_call = turn.usage_call
        self.said_chars = turn.said_chars
        self.envelope = turn.envelope
        self.was_estimated = turn.was_estimated
        self.hedges = turn.hedges
        self.reached_at = turn.reached_at
        self.worked = turn.worked

    def add(self, stored: Stored) -> None:
        self.tail = max(self.tail, stored.seq)
        chain = link(self.chain, stored.seq, stored.entry)
        if chain is None:
            self.skipped += 1
            return
        self.chain = chain
        if chain.attempt and self.reached_at is not None and not isinstance(stored.entry, Attempt):
            self.worked += max(stored.at - self.reached_at, NO_TIME)
        self.reached_at = stored.at
        match stored.entry:
            case Event(event=raw, is_hidden=is_hidden, left_out=left_out):
                event = events.decode(raw)
                self.said_chars += left_out
                if isinstance(event, events.MessageStart) and not is_hidden:
                    self.changes["message"] = event.message
                if isinstance(event, events.MessageStart | events.MessageDelta):
                    self.say(events.envelope(raw))
                self.event(event)
            case Request() as request:
                self.changes |= {"request": request, "asked_at": stored.at}
            case Attempt(generator=generator, backend=backend, mode=mode, misfit=misfit, is_hedge=is_hedge):
                self.hedges += is_hedge
                self.changes |= {"generator": generator, "backend": backend, "mode": mode}
                if misfit is not None:
                    self.changes |= {"misfit": misfit, "rejected": self.text()}
                self.count_call()
                if mode != "continue":
                    self.blocks.clear()
                    self.envelope = {}
                    self.changes |= {"message": None, "stop": events.StopReason()}
            case Progress() as progress:
                self.changes["progress"] = progress
            case End() as end:
                self.changes |= {"end": end, "ended_at": stored.at}
            case _:
                pass

    def event(self, event: events.Event | events.UnknownEvent) -> None:
        match event:
            case events.MessageStart(message):
                self.usage_call, self.said_chars = message.usage, 0
            case events.BlockStart(_, block):
                text = str(block.get("text", ""))
                self.blocks.append(_Open(Block(str(block.get("type", "")), block, text)))
                self.said_chars += len(text)
            case events.BlockDelta(index, delta) if 0 <= index < len(self.blocks):
                if events.fits_block(delta, self.blocks[index].block.type):
                    self.delta(self.blocks[index], delta)
            case events.BlockStop(index) if 0 <= index < len(self.blocks):
                self.blocks[index].is_closed = True
            case events.MessageDelta(stop, usage):
                self.changes["stop"] = stop
                self.usage_call = usage.merge_into(self.usage_call)
                if usage.output_tokens is not None:
                    self.said_chars = 0
            case _:
                pass

    def say(self, more: dict[str, Any]) -> None:
        """Later words stand for earlier ones, count by count."""
        usage = self.envelope.get("usage", {}) | more.get("usage", {})
        self.envelope = self.envelope | more | ({"usage": usage} if usage else {})

    def text(self) -> str:
        return "".join(piece for open_ in self.blocks if open_.block.type == "text" for piece in open_.pieces)

    def count_call(self) -> None:
        """The current call is over, whole or not."""
        self.calls_before += (estimate_usage(self.usage_call, self.said_chars),)
        self.was_estimated |= self.said_chars > 0
        self.usage_call, self.said_chars = CallUsage(), 0

    def delta(self, block: _Open, delta: events.Delta) -> None:
        match delta:
            case events.TextDelta(piece) | events.ThinkingDelta(piece) | events.InputJsonDelta(piece):
                block.pieces.append(piece)
                self.said_chars += len(piece)
            case events.SignatureDelta(signature):
                block.signature.append(signature)
            case events.CitationsDelta(citation):
                block.citations.append(citation)

    def turn(self) -> Turn:
        return msgspec.structs.replace(
            self.was,
            chain=self.chain,
            tail=self.tail,
            skipped=self.skipped,
            blocks=tuple(block.closed() for block in self.blocks),
            calls_before=self.calls_before,
            usage_call=self.usage_call,
            said_chars=self.said_chars,
            envelope=self.envelope,
            was_estimated=self.was_estimated,
            hedges=self.hedges,
            reached_at=self.reached_at,
            worked=self.worked,
            **self.changes,
        )
