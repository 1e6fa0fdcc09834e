"""Clients that post, cancel and look up a turn, each until a gateway has answered."""

from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import Request
from tailrace.proto.errors import FenceLost, LogFull, LogUnavailable, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, TurnKey
from tailrace.proto.ownership import ScopedKey
from tests.schedules.process import Process
from tests.schedules.reader import Reader
from tests.schedules.server import SimulatedLog, SimulatedServer

ACCEPT_TIMEOUT_S = 5.0
RETRY_S_MAX = 1.0


class Poster:
    """A client that posts with an Idempotency-Key, again until the gateway says that the turn is in the log.

    Another gateway's client may do the same at the same time: the claim has given both the same turn.
    """

    def __init__(self, server: SimulatedServer, key: TurnKey, name: str, request: Request) -> None:
        self.process = Process(server.world, name)
        self.acknowledged: list[tuple[str, Chain]] = []
        self._log = SimulatedLog(server, self.process)
        self._key = key
        self._request = request

    def post_after(self, wait_s: float) -> None:
        self.process.start(self._post(wait_s))

    async def _post(self, wait_s: float) -> None:
        world = self.process.world
        while True:
            await world.wait(wait_s)
            try:
                chain = await self._log.append(self._key, START, self._request, timeout_s=ACCEPT_TIMEOUT_S)
            except FenceLost:
                # The other gateway's request is stored, under the same claim: it is the same turn.
                return
            except (LogFull, LogUnavailable):
                wait_s = RETRY_S_MAX * world.chance()
            else:
                self.acknowledged.append((self.process.name, chain))
                return


class Canceller:
    """A client that cancels the turn, until a response says that the turn has ended."""

    def __init__(self, server: SimulatedServer, key: TurnKey, name: str) -> None:
        self.process = Process(server.world, name)
        self._log = SimulatedLog(server, self.process)
        self._key = key

    def cancel_after(self, wait_s: float) -> None:
        self.process.start(self._cancel(wait_s))

    async def _cancel(self, wait_s: float) -> None:
        world = self.process.world
        while True:
            await world.wait(wait_s)
            try:
                await cancel(self._log, ScopedKey.whole(self._key), "request")
            except (LogFull, LogUnavailable, TurnUnknown):
                wait_s = RETRY_S_MAX * world.chance()
            else:
                return


class TurnPoller:
    """A client that reads the stream, and gets the turn besides."""

    def __init__(self, server: SimulatedServer, key: TurnKey, name: str, reader: Reader) -> None:
        self.process = Process(server.world, name)
        self.shrunk: list[str] = []
        """One line for each answer with less than the client had seen before."""
        self._log = SimulatedLog(server, self.process)
        self._server = server
        self._key = key
        self._reader = reader
        self._seen = BEFORE_FIRST

    def poll(self) -> None:
        if not self.process.is_busy:
            self._server.happened.append("poll")
            self.process.start(self._poll())

    async def _poll(self) -> None:
        seen = max([self._seen, *(stored.seq for stored in self._reader.received)])
        try:
            last = (await self._log.read_turn(ScopedKey.whole(self._key))).chain.last
        except LogUnavailable:
            return
        except TurnUnknown:
            last = BEFORE_FIRST
        if last < seen:
            self.shrunk.append(f"{self.process.name} had seen {seen}, and then {last}")
        self._seen = max(seen, last)
