"""The cells of the kill matrix: kinds of answers, the names of their entries, the expected result. Pure functions."""

from collections.abc import Iterator, Sequence
from typing import get_args

import msgspec

from tailrace.proto import entries, events
from tailrace.proto.entries import Event, OnInterrupt, StoredEntry

POLICIES: tuple[OnInterrupt, ...] = get_args(OnInterrupt)
TOOL = 'tool=look json={"at":"river"}'
TOGETHER = "thinking, text and tool use"
# Its deltas are large events for a paused process, in quick succession. An answer of `max_tokens` tokens has less text
# than two deltas of large_events.LARGE_BYTES.
LARGE, LARGE_BYTES, MAX_TOKENS = "large text", 200_000, 128_000
# Each block has two words.
KINDS = {
    "text": "words=2",
    "thinking": "words=0 thinking=2",
    "tool use": f"words=0 {TOOL}",
    LARGE: "words=2 chars=220000",
    TOGETHER: f"words=2 thinking=2 {TOOL}",
}
ALONE = [kind for kind in KINDS if kind != TOGETHER]
OPENING, CLOSING = ("request", "attempt", "message_start"), ("message_delta", "end")
BLOCK = ("block start", "delta 1", "delta 2", "block stop")
SIGNED = ("block start", "delta 1", "delta 2", "signature", "block stop")
# The first delta of a tool use is empty.
CALL = ("block start", "delta 1", "delta 2", "delta 3", "block stop")
OF_BLOCK = ("block start", "delta 1", "delta 2", "delta 3", "signature", "block stop")
UNACKNOWLEDGED = "end, not acknowledged"
BLOCKS: dict[str, tuple[str, ...]] = {
    "text": BLOCK,
    "thinking": SIGNED,
    "tool use": CALL,
    LARGE: BLOCK,
    TOGETHER: (
        *(f"thinking: {name}" for name in SIGNED),
        *(f"text: {name}" for name in BLOCK),
        *(f"tool use: {name}" for name in CALL),
    ),
}


class Cell(msgspec.Struct, frozen=True):
    """A turn of this kind and `on_interrupt`, whose last entry is `entry` at the time of the kill."""

    kind: str
    policy: OnInterrupt
    entry: str

    @property
    def number(self) -> int:
        """The number of the entry in its turn, from 1."""
        return (
            entries_of(self.kind).index(self.entry) + 1 if self.entry != UNACKNOWLEDGED else len(entries_of(self.kind))
        )

    def question(self, name: str) -> str:
        """Returns a question that no other turn has: the model counts its calls by question."""
        end = "e" if self.entry == UNACKNOWLEDGED else ""
        return f"#sim rate=0 tag=h{self.number}{end}-{name}- {KINDS[self.kind]}"

    @property
    def has_begun(self) -> bool:
        """Whether the answer has begun and is incomplete, so that `on_interrupt` applies."""
        return self.entry in BLOCKS[self.kind]

    def outcome(self, process: str) -> str:
        """Returns the expected outcome: only a turn with `fail` fails, if its answer was interrupted."""
        return "failed" if process == "generator" and self.has_begun and self.policy == "fail" else "completed"

    def attempts(self, process: str) -> int:
        """Returns the expected number of attempts. A generator that only has to write the end makes none."""
        is_called_again = self.entry in ("attempt", "message_start") or (self.has_begun and self.policy != "fail")
        return 2 if process == "generator" and is_called_again else 1


def entries_of(kind: str) -> tuple[str, ...]:
    return (*OPENING, *BLOCKS[kind], *CLOSING)


def policies_of(kind: str) -> Sequence[OnInterrupt]:
    """Returns the policies of a kind. What a policy does with large texts does not depend on their size."""
    return POLICIES[:1] if kind == LARGE else POLICIES


def cells(kind: str) -> Iterator[Cell]:
    for policy in policies_of(kind):
        for entry in (*entries_of(kind), UNACKNOWLEDGED):
            yield Cell(kind, policy, entry)


def entry_names(stored: Sequence[StoredEntry], kind: str) -> list[str]:
    """Returns the names of the entries of a turn of this kind."""
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


def _name(stored: StoredEntry) -> str:
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
            return entries.KINDS[type(entry)]
