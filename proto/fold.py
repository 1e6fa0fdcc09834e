"""fold: reduces the entries of a turn's log to a Turn. Pure: times come from the entries.

The gateway folds to answer with a whole turn, a generator to take a turn over, persistence to write a row. Folding a
prefix and then the rest gives the same Turn as folding all entries.
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from tailrace.proto import events, odd_json
from tailrace.proto.answer_length import AnswerLength
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX
from tailrace.proto.entries import (
    Attempt,
    Block,
    End,
    Event,
    Failure,
    Mode,
    Outcome,
    Prefix,
    Progress,
    Request,
    StoredEntry,
)
from tailrace.proto.pricing import Bill, price_calls
from tailrace.proto.server_tools import is_call
from tailrace.proto.usage import CallUsage, Usage, estimate_usage, utf8_bytes
from tailrace.proto.usage_meter import UsageMeter

# A tool's input is nested in five levels of the next turn's request: entry, messages, message, content, block (R7).
INPUT_LEVELS_MAX = LEVELS_MAX - 5
NO_TIME = timedelta()
# The stop reasons of an answer that was cut, perhaps within its last block.
CUT = ("max_tokens", "max_cost", "budget", "model_context_window_exceeded")
# The field of a tool call whose input was cut. Anthropic's `input_json_delta` has the text in a field of this name.
PARTIAL = "partial_json"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a turn, as far as its log was read."""

    chain: Chain = START
    tail: int = 0
    """The sequence of the last entry, valid or not: reading continues after it. An append's fence is `chain.last`."""
    skipped: int = 0
    """How many entries are not valid: 0 unless NATS has stored a fork."""
    request: Request | None = None
    asked_at: datetime | None = None
    first_token_at: datetime | None = None
    """When the first delta of the answer was stored. A restart does not change it."""
    ended_at: datetime | None = None
    last_entry_at: datetime | None = None
    """When the last valid entry was stored, by the server's clock."""
    worked: timedelta = NO_TIME
    """The sum over all attempts of the time between an attempt's first and last entry, by the server's clock."""
    backend: str = ""
    mode: Mode = "fresh"
    attempt_traceparent: str | None = None
    """The span of the last attempt, if it was traced."""
    fruitless: int = 0
    """How many of the last attempts in a row stored nothing new. Handed-over attempts do not count."""
    furthest: int = 0
    """The length of the longest answer so far, as AnswerLength counts it. Restarted answers count, too."""
    discarded_calls: int = 0
    """How many calls at the start of `calls_before` wrote answers that were restarted, not the current one."""
    message: events.MessageHead | None = None
    """The head of the message whose start readers have received; None before its start, and after a restart."""
    blocks: tuple[Block, ...] = ()
    stop: events.StopReason = events.StopReason()
    pauses: tuple[int, ...] = ()
    """For each pause of the current answer that a generator continues: the number of blocks before it (R117)."""
    prefixes: list[Prefix] = []
    """The prompts of the calls that wrote the current answer."""
    causes: tuple[str, ...] = ()
    """The `cause` of each attempt that has one, without pauses."""
    envelope: dict[str, Any] = {}
    """Further fields of the message: see tailrace.proto.events.envelope."""
    misfit: str | None = None
    """Why an earlier, complete answer was rejected: how it does not fit its schema. None if none was rejected."""
    rejected: str = ""
    """The text of the rejected answer, or the arguments of the tool call that it consists of."""
    calls_before: tuple[CallUsage, ...] = ()
    """The usage of each earlier call."""
    usage_call: CallUsage = CallUsage()
    """The usage of the current call, as far as the model has reported it."""
    unreported_bytes: int = 0
    """The bytes of text that the current call has produced and that the model's usage does not include yet."""
    was_estimated: bool = False
    """Whether an earlier call broke off before the model had reported its output."""
    progress: Progress | None = None
    """The progress of a batch; None for other turns."""
    end: End | None = None

    @property
    def attempt(self) -> int:
        """The number of the attempt that owns the turn; 0 before the first."""
        return self.chain.attempt

    @property
    def worked_s(self) -> float:
        """Seconds between the entries since the first attempt, without the time before each further `attempt`."""
        return self.worked.total_seconds()

    @property
    def text(self) -> str:
        """The joined text of the text blocks since the last restart."""
        return "".join(block.text for block in self.blocks if block.type == "text")

    @property
    def calls(self) -> tuple[CallUsage, ...]:
        """The usage of each call. Output that the model has not reported is estimated (PROTOCOL R23)."""
        return (*self.calls_before, estimate_usage(self.usage_call, self.unreported_bytes))

    @property
    def bill(self) -> Bill:
        """The billed tokens of all calls, and what they cost, by model (PROTOCOL R23)."""
        return price_calls(self.request.model if self.request is not None else "", self.calls)

    @property
    def usage(self) -> Usage:
        """The billed tokens of all calls."""
        return Usage(*self.bill.total.counts)

    @property
    def generated_tokens(self) -> int:
        """The output tokens of all calls that wrote the current answer. Calls before a restart do not count."""
        return sum(call.output_tokens for call in self.calls[self.discarded_calls :])

    @property
    def is_usage_estimated(self) -> bool:
        """Whether `usage` contains output that the model has not reported (PROTOCOL R23)."""
        return self.was_estimated or self.unreported_bytes > 0

    @property
    def is_paused(self) -> bool:
        """Whether the answer ends with a pause of the model, and no block has come since then."""
        return bool(self.pauses) and self.pauses[-1] == len(self.blocks)

    @property
    def outcome(self) -> Outcome | Literal["running"]:
        """How the turn ended, or `running`."""
        return "running" if self.end is None else self.end.outcome

    @property
    def error(self) -> Failure | None:
        """Why the turn failed; None if it did not fail, or runs."""
        return self.end.error if self.end is not None else None


EMPTY_TURN = Turn()


def fold(entries: Iterable[StoredEntry], turn: Turn = EMPTY_TURN) -> Turn:
    """Folds `entries`, in the order of the log, onto `turn`. Invalid entries are only counted (PROTOCOL R11)."""
    folding = Folding(turn)
    for stored in entries:
        folding.add(stored)
    return folding.build()


def fold_first_and_end(first: Sequence[StoredEntry], end: StoredEntry) -> Turn | None:
    """Returns the fold of an ended turn as far as a record needs it. `first`: its request, and its first events.

    None if all entries must be folded. The caller has checked that all entries of the turn are valid (PROTOCOL R110).
    Of the fields about attempts and calls, which a record does not need, most are not set.
    """
    entry = end.entry
    if not isinstance(entry, End) or entry.blocks is None:
        return None
    turn = fold(first[:1])
    events_of = ((one.at, events.decode(one.entry.event)) for one in first if isinstance(one.entry, Event))
    first_token_at = next((at for at, event in events_of if isinstance(event, events.BlockDelta)), None)
    if turn.request is None or turn.request.batch or first_token_at is None:
        return None
    if any(one.seq > end.seq for one in first):
        # A POST with the same Idempotency-Key has stored the turn again during its deletion: these are of the new run.
        return None
    return msgspec.structs.replace(
        turn,
        chain=msgspec.structs.replace(
            turn.chain, last=end.seq, attempt=entry.attempt, is_ended=True, length=entry.length
        ),
        tail=end.seq,
        first_token_at=first_token_at,
        blocks=entry.blocks,
        prefixes=entry.prefixes,
        end=entry,
        ended_at=end.at,
        last_entry_at=end.at,
    )


def text_proof(text: str) -> tuple[int, str]:
    """Returns the text's number of code points, and the SHA-256 of its UTF-8 in hex, as an `end` holds them (R24)."""
    # A model's JSON escapes can hold a lone surrogate, which has no UTF-8.
    return len(text), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def contents(blocks: Sequence[Block], stop_reason: str | None) -> list[dict[str, Any]]:
    """Returns the blocks of an answer as clients receive them: `content`, with a mark at a tool call that was cut.

    The mark is `partial_json`, the text of the input so far; `input` is then empty.
    """
    found = [content(block) for block in blocks]
    for index, block in enumerate(blocks):
        is_end_cut = stop_reason in CUT and index == len(blocks) - 1
        if events.is_tool_use(block.type) and _is_input_cut(block, is_end_cut=is_end_cut):
            found[index][PARTIAL] = block.text
    return found


def without_mark(block: dict[str, Any]) -> dict[str, Any]:
    """Returns a block of `contents` without its mark, which Anthropic's API does not know."""
    return {name: value for name, value in block.items() if name != PARTIAL} if PARTIAL in block else block


def content(block: Block) -> dict[str, Any]:
    """Returns the block as Anthropic's API returns it in an answer that is not streamed."""
    start = block.start | (block.fields or {})
    match block.type:
        case "text":
            return start | {"text": block.text} | _citations(block)
        case "thinking":
            return start | {"thinking": block.text, "signature": block.signature}
        case kind if events.is_tool_use(kind):
            return start | {"input": _input(block)}
        case _:
            return start


def _citations(block: Block) -> dict[str, Any]:
    if not block.citations:
        return {}
    begun = block.start.get("citations")
    return {"citations": [*(begun if isinstance(begun, list) else ()), *block.citations]}


def _input(block: Block) -> object:
    # A tool without arguments streams no input; an input that was cut off is incomplete JSON. Deltas carry the input as
    # text, so its depth has not been checked before.
    if not block.text:
        return block.start.get("input", {})
    try:
        return decode_input(block.text)
    except DECODE_ERRORS:
        return {}


def _is_input_cut(block: Block, *, is_end_cut: bool) -> bool:
    """Returns whether the model has not completed the input. A tool without arguments streams no input, either."""
    if not block.text:
        return not block.start.get("input") and (is_end_cut or not block.is_closed)
    return not is_complete_input(block.text)


def decode_input(text: str) -> dict[str, Any]:
    """Returns a tool's input: an object, as the API demands it in the next turn's request, or its wrapper (R125).

    Raises one of DECODE_ERRORS, also for an input that is nested too deeply.
    """
    return odd_json.decode_object(text, INPUT_LEVELS_MAX)


def is_complete_input(text: str) -> bool:
    """Returns whether `text` is a whole input of a tool, a JSON object."""
    try:
        odd_json.decode_object(text, sys.getrecursionlimit())
    except DECODE_ERRORS:
        return False
    return True


class _OpenBlock:
    """A block being folded. Its pieces are joined once, at the end, so that a fold takes linear time."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.pieces = [block.text]
        self.signature = block.signature
        self.fields = block.fields
        self.citations = list(block.citations)
        self.is_closed = block.is_closed

    def build(self) -> Block:
        return Block(
            self.block.type,
            self.block.start,
            "".join(self.pieces),
            self.signature,
            tuple(self.citations),
            self.is_closed,
            self.fields,
        )


class Folding:
    """A fold in progress: entries are added one by one. `fold` adds several."""

    def __init__(self, turn: Turn) -> None:
        self.before = turn
        self.chain = turn.chain
        self.tail = turn.tail
        self.skipped = turn.skipped
        self.changes: dict[str, Any] = {}
        self.blocks = [_OpenBlock(block) for block in turn.blocks]
        self.meter = UsageMeter(turn.calls_before, turn.usage_call, turn.unreported_bytes)
        self.envelope = turn.envelope
        self.pauses = turn.pauses
        self.prefixes = turn.prefixes
        self.causes = turn.causes
        self.fruitless = turn.fruitless
        self.furthest = turn.furthest
        # The length of the current answer.
        self.length = AnswerLength()
        for index, block in enumerate(turn.blocks):
            self.length.start(index, block.start)
            self.length.add_text(index, block.text)
            if block.is_closed:
                self.length.close(index, block, self.find_call)
        self.discarded_calls = turn.discarded_calls
        self.first_token_at = turn.first_token_at
        self.last_entry_at = turn.last_entry_at
        self.worked = turn.worked

    def add(self, stored: StoredEntry, event: events.Event | events.UnknownEvent | None = None) -> None:
        """Adds an entry. `event` is the decoded event of an Event entry, if the caller has it."""
        self.tail = max(self.tail, stored.seq)
        chain = link(self.chain, stored.seq, stored.entry)
        if chain is None:
            self.skipped += 1
            return
        self.chain = chain
        if chain.attempt and self.last_entry_at is not None and type(stored.entry) is not Attempt:
            self.worked += max(stored.at - self.last_entry_at, NO_TIME)
        self.last_entry_at = stored.at
        match stored.entry:
            case Event(event=raw, is_hidden=is_hidden, left_out=left_out, prefix=prefix):
                event = event or events.decode(raw)
                if prefix is not None:
                    self.prefixes = [*self.prefixes, prefix]
                self.meter.unreported_bytes += left_out
                match event:
                    case events.BlockDelta():
                        self.first_token_at = self.first_token_at or stored.at
                    case events.MessageStart(message):
                        if not is_hidden:
                            self.changes["message"] = message
                        self.merge_envelope(events.envelope(raw))
                    case events.MessageDelta(stop):
                        self.merge_envelope(events.envelope(raw))
                        if stop.stop_reason is not None:
                            self.add_stop(stop, is_hidden=is_hidden)
                self.add_event(event)
                if self.length.total > self.furthest:
                    self.furthest, self.fruitless = self.length.total, 0
                elif is_hidden and raw == events.HANDOVER:
                    self.fruitless = max(self.fruitless - 1, 0)
            case Request() as request:
                self.changes |= {"request": request, "asked_at": stored.at}
            case Attempt(backend=backend, mode=mode, misfit=misfit) as attempt:
                self.fruitless += 1
                if attempt.cause is not None and attempt.cause != events.PAUSE:
                    self.causes = (*self.causes, attempt.cause)
                self.changes |= {"backend": backend, "mode": mode, "attempt_traceparent": attempt.traceparent}
                if misfit is not None:
                    self.changes |= {"misfit": misfit, "rejected": self.text() or self.text("tool_use")}
                    # The corrected answer is another one, and may be shorter.
                    self.furthest = 0
                self.meter.close_call()
                if mode != "continue":
                    self.blocks.clear()
                    self.length = AnswerLength()
                    self.discarded_calls = len(self.meter.ended)
                    self.envelope = {}
                    self.pauses, self.prefixes = (), []
                    self.changes |= {"message": None, "stop": events.StopReason()}
            case Progress() as progress:
                self.changes["progress"] = progress
                self.fruitless = 0
            case End() as end:
                self.changes |= {"end": end, "ended_at": stored.at}
            case _:
                pass

    def add_event(self, event: events.Event | events.UnknownEvent) -> None:
        """Applies an event to the blocks and the usage. Ignores deltas of a wrong type."""
        match event:
            # Most events.
            case events.BlockDelta(index, delta) if 0 <= index < len(self.blocks):
                one = self.blocks[index]
                if not events.fits_block(type(delta), one.block.type):
                    return
                match delta:
                    case events.TextDelta(piece) | events.ThinkingDelta(piece) | events.InputJsonDelta(piece):
                        one.pieces.append(piece)
                        self.length.add_text(index, piece)
                        # As `meter.add` would count it.
                        self.meter.unreported_bytes += len(piece) if piece.isascii() else utf8_bytes(piece)
                    case events.SignatureDelta(signature):
                        # Each delta has the whole signature, which replaces the earlier one, as in the SDK's
                        # accumulators.
                        one.signature = signature
                    case events.CitationsDelta(citation):
                        one.citations.append(citation)
            case events.MessageStart():
                self.meter.add(event)
            case events.BlockStart(_, block):
                text, signature = events.opening_text(block)
                self.blocks.append(_OpenBlock(Block(str(block.get("type", "")), block, text, signature)))
                self.length.start(len(self.blocks) - 1, block)
                self.length.add_text(len(self.blocks) - 1, text)
                self.meter.add(event)
            case events.OtherDelta(index, fields) if 0 <= index < len(self.blocks):
                one = self.blocks[index]
                one.fields = events.merge_fields(one.block.start if one.fields is None else one.fields, fields)
            case events.BlockStop(index) if 0 <= index < len(self.blocks):
                if not self.blocks[index].is_closed:
                    self.blocks[index].is_closed = True
                    self.length.close(index, self.blocks[index].build(), self.find_call)
            case events.MessageDelta():
                self.meter.add(event)
            case _:
                pass

    def add_stop(self, stop: events.StopReason, *, is_hidden: bool) -> None:
        """Applies a stop reason. A hidden stop reason belongs to a pause that a generator continues (PROTOCOL R117)."""
        if not is_hidden:
            self.changes["stop"] = stop
        elif stop.stop_reason == events.PAUSE:
            self.pauses = (*self.pauses, len(self.blocks))

    def merge_envelope(self, more: dict[str, Any]) -> None:
        """Merges `more` into the envelope: later fields, also those of `usage` and `message`, replace earlier ones."""
        inner = {name: self.envelope.get(name, {}) | more.get(name, {}) for name in ("message", "usage")}
        self.envelope = self.envelope | more | {name: fields for name, fields in inner.items() if fields}

    def text(self, block_type: str = "text") -> str:
        """Returns the joined text of all blocks of one type."""
        return "".join(piece for open_ in self.blocks if open_.block.type == block_type for piece in open_.pieces)

    def find_call(self, name: str) -> Block | None:
        """Returns the last call of a server tool with the id `name`; None if the answer has none."""
        calls = (one for one in reversed(self.blocks) if is_call(one.block.start) and one.block.start.get("id") == name)
        call = next(calls, None)
        return None if call is None else call.build()

    def build(self) -> Turn:
        """Returns the turn after all entries that were added."""
        return msgspec.structs.replace(
            self.before,
            chain=self.chain,
            tail=self.tail,
            skipped=self.skipped,
            blocks=tuple(block.build() for block in self.blocks),
            calls_before=tuple(self.meter.ended),
            usage_call=self.meter.reported,
            unreported_bytes=self.meter.unreported_bytes,
            was_estimated=self.before.was_estimated or self.meter.has_estimated,
            envelope=self.envelope,
            pauses=self.pauses,
            prefixes=self.prefixes,
            causes=self.causes,
            fruitless=self.fruitless,
            furthest=self.furthest,
            discarded_calls=self.discarded_calls,
            first_token_at=self.first_token_at,
            last_entry_at=self.last_entry_at,
            worked=self.worked,
            **self.changes,
        )
