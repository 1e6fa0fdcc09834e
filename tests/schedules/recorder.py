"""Persistence in a schedule: each end that it is told of is folded from the log, at least up to there, and written."""

from tailrace.proto.entries import Stored
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tailrace.proto.nats.replay import folded_upto
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.schedules.process import Process
from tests.schedules.stream import Stream

AGAIN_S = 1.0


class Recording(Process):
    """`row` is what the database has of the turn. One that has ended is never overwritten by its beginning."""

    def __init__(self, stream: Stream, key: TurnKey) -> None:
        super().__init__(stream, "recorder")
        self.key = key
        self.row: TurnRecord | None = None
        self._told: list[Seq] = []

    @property
    def is_done(self) -> bool:
        return not self._told

    def told(self, end: Stored) -> None:
        self._told.append(end.seq)
        self.world.after(0.001, self._record)

    def _record(self) -> None:
        if self._told and not self.is_busy:
            self.start(folded_upto(self.key, self._told[0], now=self.world.now), self._recorded)

    def _recorded(self, how: object) -> None:
        match how:
            case Turn():
                self._told.pop(0)
                if how.end is not None or self.row is None:
                    self.row = record_from_fold(self.key, how)
                self.world.tell(self.name, f"writes {how.outcome}")
                self._record()
            case LogUnavailable():
                self.world.after(AGAIN_S, self._record)
            case TurnUnknown():
                # It leaves the turn out, for ever.
                self._told.pop(0)
                self._record()
            case BaseException():
                raise how
