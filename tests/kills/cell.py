"""What is killed where: the questions, the entries of their turns by name, and what has to come of them. Pure."""

from collections.abc import Iterator, Sequence
from typing import get_args

import msgspec

from tailrace.proto import events
from tailrace.proto.entries import Event, OnInterrupt, Stored, kind_of

POLICIES: tuple[OnInterrupt, ...] = get_args(OnInterrupt)
TOOL = 'tool=look json={"at":"river"}'
TOGETHER = "thinking, text and tool use"
# Each block says two words.
KINDS = {
    "text": "words=2",
    "thinking": "words=0 thinking=2",
    "tool use": f"words=0 {TOOL}",
    TOGETHER: f"words=2 thinking=2 {TOOL}",
}
ALONE = [kind for kind in KINDS if kind != TOGETHER]
OPENING, CLOSING = ("request", "attempt", "message_start"), ("message_delta", "end")
BLOCK = ("block start", "delta 1", "delta 2", "block stop")
SIGNED = ("block start", "delta 1", "delta 2", "signature", "block stop")
# A call's first delta is empty.
CALL = ("block start", "delta 1", "delta 2", "delta 3", "block stop")
OF_BLOCK = ("block start", "delta 1", "delta 2", "delta 3", "signature", "block stop")
UNACKNOWLEDGED = "end, not acknowledged"
BLOCKS: dict[str, tuple[str, ...]] = {
    "text": BLOCK,
    "thinking": SIGNED,
    "tool use": CALL,
    TOGETHER: (
        *(f"thinking: {name}" for name in SIGNED),
        *(f"text: {name}" for name in BLOCK),
        *(f"tool use: {name}" for name in CALL),
    ),
}


class Cell(msgspec.Struct, frozen=True):
    """A turn of that kind and policy, whose last entry is `entry` when something is killed."""

    kind: str
    policy: OnInterrupt
    entry: str

    @property
    def place(self) -> int:
        """The number of that entry in its turn, from 1."""
        return (
            entries_of(self.kind).index(self.entry) + 1 if self.entry != UNACKNOWLEDGED else len(entries_of(self.kind))
        )

    def question(self, name: str) -> str:
        """It is nobody else's question: the model counts its calls by it."""
        end = "e" if self.entry == UNACKNOWLEDGED else ""
        return f"#sim rate=0 tag=h{self.place}{end}-{name}- {KINDS[self.kind]}"

    @property
    def has_begun(self) -> bool:
        """Whether a block is there and the answer is not whole: then another generator goes on as the turn wants it."""
        return self.entry in BLOCKS[self.kind]

    def outcome(self, process: str) -> str:
        """What the turn has to come to: the only one that fails is one that asked for it, and was interrupted."""
        return "failed" if process == "generator" and self.has_begun and self.policy == "fail" else "completed"

    def attempts(self, process: str) -> int:
        """How many there have to be: who has only to end an answer makes none."""
        is_called_again = self.entry in ("attempt", "message_start") or (self.has_begun and self.policy != "fail")
        return 2 if process == "generator" and is_called_again else 1


def entries_of(kind: str) -> tuple[str, ...]:
    return (*OPENING, *BLOCKS[kind], *CLOSING)


def cells(kind: str) -> Iterator[Cell]:
    for policy in POLICIES:
        for entry in (*entries_of(kind), UNACKNOWLEDGED):
            yield Cell(kind, policy, entry)


def named(stored: Sequence[Stored], kind: str) -> list[str]:
    """What the entries of a turn of that kind are called."""
    names, block, deltas = list[str](), "", 0
    for one in stored:
        name = _name(one)
        if name == "block start":
            assert isinstance(one.entry, Event)
            event = events.decode(one.entry.event)
            assert isinstance(event, events.BlockStart)
            block, deltas = str(event.content_block["type"]).replace("_", " "), 0
        if name == "delta":
            deltas += 1
            name = f"delta {deltas}"
        is_of_block = name in OF_BLOCK
        names.append(f"{block}: {name}" if is_of_block and kind == TOGETHER else name)
    return names


def _name(stored: Stored) -> str:
    match stored.entry:
        case Event(event=raw):
            match events.decode(raw):
                case events.BlockStart():
                    return "block start"
                case events.BlockDelta(delta=events.SignatureDelta()):
                    return "signature"
                case events.BlockDelta():
                    return "delta"
                case events.BlockStop():
                    return "block stop"
            return str(msgspec.json.decode(raw)["type"])
        case entry:
            return kind_of(entry)
