"""A reader of a turn: the product's follower over a feed that misses, repeats and reorders; cut off, it comes back."""

from collections import deque
from collections.abc import Callable
from typing import Any

from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.follower import Follower
from tailrace.proto.nats.step import Hear, Steps
from tailrace.proto.subjects import TurnKey
from tests.promises import Connected, Frame
from tests.schedules.process import Process
from tests.schedules.stream import Stream, shown

COMES_BACK_S = 0.5


class Reading(Process):
    """`connections` and `told` are of the present story; one that a fork broke off is over, and kept in `broken`."""

    def __init__(self, stream: Stream, key: TurnKey, name: str, cuts: list[int]) -> None:
        super().__init__(stream, name)
        self.key = key
        self.connections: list[Connected] = []
        self.told: list[Stored] = []
        self.broken: list[list[Stored]] = []
        self.is_over = False
        self.refused: list[str] = []
        """When he was told that a turn is unknown whose request had been acknowledged."""
        self.is_known: Callable[[], bool] = lambda: False
        self._cuts = cuts
        self._cursor: Seq = BEFORE_FIRST
        self._frames: list[Frame] = []
        self._follower: Follower | None = None
        self._heard: deque[Stored] = deque()
        self._is_hearing = False
        self._is_connected = False
        self._was_known = False
        self._waits = 0
        stream.feeds.append(self.hear)

    def connect(self) -> None:
        self.world.tell(self.name, f"reads after {self._cursor}")
        self._heard.clear()
        self._is_hearing, self._is_connected = False, True
        self._frames = []
        self._was_known = self.is_known()
        self.start(self._read(), self._read_up)

    def hear(self, stored: Stored) -> None:
        if self._is_connected:
            self._heard.append(stored)
            self._wake()

    def doubt(self) -> None:
        """The connection was cut and is there again: something may have been missed."""
        if self._is_connected:
            self.world.tell(self.name, "doubts what he has heard")
            self._heard.clear()
            if self._is_hearing:
                self._is_hearing = False
                self.resume_after(0, [])

    def serve(self, step: Any) -> None:
        if not isinstance(step, Hear):
            super().serve(step)
            return
        self._is_hearing = True
        if self._heard:
            self.world.after(0, self._wake)
        else:
            self._tire(step.timeout_s)

    def _tire(self, timeout_s: float) -> None:
        walk = self._walk

        def tire() -> None:
            if walk == self._walk and self._is_hearing and self._waits == waits:
                self._is_hearing = False
                self.resume_after(0, [])

        self._waits = waits = self._waits + 1
        self.world.after(timeout_s, tire)

    def _wake(self) -> None:
        if not self._is_hearing or not self._heard:
            return
        self._is_hearing = False
        heard = list(self._heard)
        self._heard.clear()
        self._go(heard)

    def _read(self) -> Steps[str]:
        follower = Follower(self.key, self._cursor, self.world.now)
        told = yield from follower.first()
        if self._tell(told):
            return "cut"
        while not follower.is_ended:
            told = yield from follower.more()
            if self._tell(told):
                return "cut"
        return "ended"

    def _tell(self, told: list[Stored]) -> bool:
        """Sends what he was told; whether he is cut off in the middle of it."""
        if told and self.world.trace is not None:
            self.world.tell(self.name, f"is told {shown(told)}")
        for stored in told:
            self._frames.append(Frame(stored.seq, b""))
            self.told.append(stored)
            if self._cuts and len(self.told) >= self._cuts[0]:
                self._cuts.pop(0)
                return True
        return False

    def _read_up(self, how: object) -> None:
        self._is_connected = False
        match how:
            case "ended":
                # Whoever was cut off after the very end comes back, and is told that there is nothing more.
                self._leave("ended")
                self.is_over = True
            case "cut":
                self._leave("cut")
            case CursorUnknown():
                # What he was told last was a fork's. His story is void, and he begins anew.
                self._leave("cut")
                self.broken.append(self.told)
                self.told, self.connections, self._cursor = [], [], BEFORE_FIRST
            case TurnUnknown() | LogUnavailable():
                self._leave("cut")
                if isinstance(how, TurnUnknown) and self._was_known:
                    self.refused.append(str(how))
            case BaseException():
                raise how
        if not self.is_over:
            self.world.after(COMES_BACK_S * self.world.chance(), self.connect)

    def _leave(self, over: Any) -> None:
        self.world.tell(self.name, f"{over} after {self._frames[-1].seq if self._frames else self._cursor}")
        self.connections.append(Connected(self._cursor, tuple(self._frames), over))
        if self._frames:
            self._cursor = self._frames[-1].seq
