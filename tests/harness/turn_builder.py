"""Builders of entries, and a turn's log in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tailrace.proto import entries, events
from tailrace.proto.chain import START, Chain, link
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Entry, Failure, Message, Mode, Outcome, Request, StoredEntry
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.usage import CallUsage

MODEL = "claude-sonnet-5-5"
KEY = TurnKey(Tenant("alice"), TurnId("turn-1"))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def request(**given: Any) -> Request:
    fields: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 1000,
        "messages": [Message("user", "Why is the sky blue?")],
        "session": SessionId("session-1"),
    }
    return Request(**fields | given)


def attempt(chain: Chain, mode: Mode = "fresh") -> Attempt:
    return Attempt(prev=chain.last, attempt=chain.attempt + 1, generator="generator-1", backend="claude", mode=mode)


def event(chain: Chain, what: events.Event, *, is_hidden: bool = False) -> entries.Event:
    return entries.Event(prev=chain.last, attempt=chain.attempt, event=events.encode(what), is_hidden=is_hidden)


def text_delta(chain: Chain, text: str, index: int = 0) -> entries.Event:
    return event(chain, events.BlockDelta(index, events.TextDelta(text)))


def opening_events(input_tokens: int = 10, model: str = MODEL) -> list[events.Event]:
    head = events.MessageHead("msg_1", model, CallUsage(input_tokens=input_tokens))
    return [events.MessageStart(head), events.BlockStart(0, {"type": "text", "text": ""})]


def closing_events(output_tokens: int) -> list[events.Event]:
    usage = events.UsageSoFar(output_tokens=output_tokens)
    return [events.BlockStop(0), events.MessageDelta(events.StopReason("end_turn"), usage)]


def block_events(index: int, start: dict[str, Any], *deltas: events.Delta) -> list[events.Event]:
    """Returns the events of a whole block."""
    content = (events.BlockDelta(index, delta) for delta in deltas)
    return [events.BlockStart(index, start), *content, events.BlockStop(index)]


def answer_block(index: int, kind: str, *texts: str, citations: Sequence[dict[str, Any]] = ()) -> list[events.Event]:
    """Returns the events of a block of Claude's answer. A tool call begins with an empty piece, as the API sends it."""
    start: dict[str, Any] = {"type": kind, "data": "c2VjcmV0"}
    deltas: list[events.Delta] = []
    match kind:
        case "text" | "begun text":
            start = {"type": "text", "text": "So" if kind == "begun text" else ""}
            deltas = [*map(events.TextDelta, texts), *map(events.CitationsDelta, citations)]
        case "thinking":
            start = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [*map(events.ThinkingDelta, texts), events.SignatureDelta("c2ln")]
        case "tool_use" | "nameless":
            name = {"id": f"toolu_{index}", "name": "look"} if kind == "tool_use" else {}
            start = {"type": "tool_use", **name, "input": {}}
            deltas = [*map(events.InputJsonDelta, ("", *texts))]
    return block_events(index, start, *deltas)


class Handwritten:
    """A turn's log in memory. Sequences grow by `step`, as they do between the entries of other turns."""

    def __init__(self, step: int = 1) -> None:
        self.stored: list[StoredEntry] = []
        self.chain = START
        self.step = step

    @property
    def turn(self) -> Turn:
        return fold(self.stored)

    def store(self, entry: Entry) -> StoredEntry:
        """Stores `entry`, valid or not."""
        seq = Seq(self.stored[-1].seq + self.step if self.stored else self.step)
        self.stored.append(StoredEntry(seq, NOON + timedelta(seconds=seq), entry))
        self.chain = link(self.chain, seq, entry) or self.chain
        return self.stored[-1]

    def store_request(self, **given: Any) -> StoredEntry:
        return self.store(request(**given))

    def store_attempt(self, mode: Mode = "fresh") -> StoredEntry:
        return self.store(attempt(self.chain, mode))

    def store_events(self, *what: events.Event, is_hidden: bool = False) -> None:
        for one in what:
            self.store(event(self.chain, one, is_hidden=is_hidden))

    def store_texts(self, *texts: str, index: int = 0) -> None:
        for text in texts:
            self.store(text_delta(self.chain, text, index))

    def close_block(self, *texts: str) -> None:
        """Closes the block that is open, if one is; a text block after more text."""
        blocks = self.turn.blocks
        if blocks and not blocks[-1].is_closed:
            self.store_texts(*(texts if blocks[-1].type == "text" else ()), index=len(blocks) - 1)
            self.store_events(events.BlockStop(len(blocks) - 1))

    def end(self, outcome: Outcome = "completed", error: Failure | None = None) -> StoredEntry:
        return self.store(build_end(self.turn, outcome, error))


def attempted_turn(*what: events.Event, step: int = 1, **given: Any) -> Handwritten:
    """Returns a turn whose first attempt has stored these events. `given` are fields of its request."""
    log = Handwritten(step)
    log.store_request(**given)
    log.store_attempt()
    log.store_events(*what)
    return log


def started_turn(*texts: str, step: int = 1, **given: Any) -> Handwritten:
    """Returns a turn whose first attempt has stored `texts` in an open block. `given` are fields of its request."""
    log = attempted_turn(*opening_events(), step=step, **given)
    log.store_texts(*texts)
    return log


def completed_turn(*texts: str, step: int = 1) -> Handwritten:
    """Returns a completed turn that wrote `texts` in one attempt."""
    log = started_turn(*texts, step=step)
    log.store_events(*closing_events(len(texts)))
    log.end()
    return log


def junk() -> entries.Unreadable:
    return entries.Unreadable()


def raw(what: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(what))
