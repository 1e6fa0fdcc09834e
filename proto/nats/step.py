"""What a writer or a reader of a turn asks of the log, step by step, as data. It says what is asked, and never asks.

Who decides is a generator that yields steps and is sent their answers: an append, a replay, a follower. Whoever takes
the steps does the I/O: the turn log with a server, the simulator of schedules with a model of one (tests/schedules).
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import msgspec

from tailrace.proto.entries import Entry, Stored
from tailrace.proto.ids import BEFORE_FIRST, Seq

T = TypeVar("T")

# As many entries as one read gives, at most.
BATCH = 512

Now = Callable[[], float]
"""A monotonic clock, in seconds."""


class Unclear(Exception):
    """The answer to a Publish that says neither yes nor no: the append may or may not stand.

    `is_answered`: somebody who leads the stream has said so; else nobody has said anything, and nobody may lead it.
    """

    def __init__(self, message: str = "", *, is_answered: bool = True) -> None:
        super().__init__(message)
        self.is_answered = is_answered


class Publish(msgspec.Struct, frozen=True):
    """Store `entry` if `fence` is the turn's last sequence: a Seq; raises Unclear, LogFull."""

    entry: Entry
    fence: Seq


class Read(msgspec.Struct, frozen=True):
    """What is stored after `after`, at most `limit`: a Page; raises LogUnavailable."""

    after: Seq
    limit: int = BATCH


class Confirm(msgspec.Struct, frozen=True):
    """Whether the stream's leader has the turn's request, or its entry at `seq`: a bool; raises LogUnavailable."""

    seq: Seq = BEFORE_FIRST


class Reached(msgspec.Struct, frozen=True):
    """The turn's last entry, by the stream's leader: a Seq, BEFORE_FIRST when it has none; raises LogUnavailable."""


class Pause(msgspec.Struct, frozen=True):
    """Wait `wait_s` seconds."""

    wait_s: float


class Hear(msgspec.Struct, frozen=True):
    """What the live feed has told meanwhile: a list of Stored.

    Empty after `timeout_s` seconds of silence, and when what was heard is in doubt.
    """

    timeout_s: float


Step = Publish | Read | Confirm | Reached | Pause | Hear
Steps = Generator[Step, Any, T]
"""Steps that come to a T."""


class Page(NamedTuple):
    """Entries as one read gave them, oldest first, valid or not; `is_last`: none followed when it was read."""

    entries: list[Stored]
    is_last: bool
