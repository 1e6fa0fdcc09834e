"""Reader: a client that follows the turn with TurnLog.follow_into, and resumes after its connection was cut."""

import asyncio
from collections.abc import Callable
from typing import Literal

from tailrace.proto.entries import End, StoredEntry
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnDamaged, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tests.promises import Frame, ReaderConnection
from tests.schedules.process import Process
from tests.schedules.server import SimulatedLog, SimulatedServer, describe

RETRY_S_MAX = 0.5


class Reader:
    """`connections` and `received` are of the present story. Stories that a fork has broken off are in `broken`."""

    def __init__(
        self, server: SimulatedServer, key: TurnKey, name: str, cuts: list[int], is_acknowledged: Callable[[], bool]
    ) -> None:
        self.name = name
        self.process = Process(server.world, name)
        self.connections: list[ReaderConnection] = []
        self.received: list[StoredEntry] = []
        self.broken: list[list[StoredEntry]] = []
        self.refused: list[str] = []
        """Errors "unknown" for a turn whose request was acknowledged before."""
        self.is_over = False
        self.is_recorded = False
        """Whether it was sent to the database: the log has lost entries."""
        self._server = server
        self.log = SimulatedLog(server, self.process)
        self._key = key
        self._cuts = cuts
        self._is_acknowledged = is_acknowledged
        self._cursor: Seq = BEFORE_FIRST
        self._frames: list[Frame] = []

    def read_after(self, wait_s: float) -> None:
        self.process.start(self._read(wait_s))

    def reset_feed(self) -> None:
        """Has the gateway's connection to NATS reconnect: entries of the live feed may be missing."""
        self.process.world.record(self.name, "has its live feed reset")
        for feed in self._server.feeds:
            if feed.owner is self.process:
                feed.feed.reset()

    async def _read(self, wait_s: float) -> None:
        world = self.process.world
        while not self.is_over:
            await world.wait(wait_s)
            was_acknowledged = self._is_acknowledged()
            try:
                is_ended = await self._connect()
            except CursorUnknown:
                # What was received last was a fork's. This story is void, and the client reads from the beginning.
                self._close("cut")
                self.broken.append(self.received)
                self.received, self.connections, self._cursor = [], [], BEFORE_FIRST
            except TurnDamaged:
                self._close("cut")
                self.is_over = self.is_recorded = True
            except TurnUnknown as error:
                self._close("cut")
                if was_acknowledged:
                    self.refused.append(str(error))
            except LogUnavailable:
                self._close("cut")
            else:
                self.is_over = is_ended
                self._close("ended" if is_ended else "cut")
            wait_s = RETRY_S_MAX * world.chance()

    async def _connect(self) -> bool:
        """Receives entries after the cursor; False when the connection was cut before the end. Leaves at an end."""
        self.process.world.record(self.name, f"reads after {self._cursor}")
        is_over: bool | None = None

        def receive(entries: list[StoredEntry]) -> None:
            nonlocal is_over
            if is_over is not None:
                return
            if entries and self.process.world.trace is not None:
                self.process.world.record(self.name, f"receives {' '.join(describe(one.seq) for one in entries)}")
            for stored in entries:
                self._frames.append(Frame(stored.seq, b""))
                self.received.append(stored)
                if isinstance(stored.entry, End):
                    is_over = True
                elif self._cuts and len(self.received) >= self._cuts[0]:
                    is_over = False
                    self._cuts.pop(0)
                if is_over is not None:
                    following.cancel()
                    return

        following = asyncio.ensure_future(self.log.follow_into(self._key, self._cursor, receive))
        try:
            await following
        except asyncio.CancelledError:
            if is_over is None:
                raise
        return is_over is not False

    def _close(self, over: Literal["ended", "cut"]) -> None:
        self.process.world.record(self.name, f"{over} after {self._frames[-1].seq if self._frames else self._cursor}")
        self.connections.append(ReaderConnection(self._cursor, tuple(self._frames), over))
        if self._frames:
            self._cursor = self._frames[-1].seq
        self._frames = []
