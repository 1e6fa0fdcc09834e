"""Clients who ask, who cancel, and who look, each until a gateway has answered them."""

from tailrace.gateway.turns.cancel import cancelled
from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import Request
from tailrace.proto.errors import FenceLost, LogError, LogUnavailable, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.nats.append import append
from tailrace.proto.nats.replay import folded_now
from tailrace.proto.nats.step import Steps
from tailrace.proto.subjects import TurnKey
from tests.schedules.process import Process
from tests.schedules.reader import Reading
from tests.schedules.stream import Stream

ACCEPT_TIMEOUT_S = 5.0
COMES_BACK_S = 1.0


class Asking(Process):
    """A client that posts under an Idempotency-Key, and posts again until the gateway says that the turn is in the log.

    Another gateway's client may do the same at the same time: the claim has given both one turn.
    """

    def __init__(self, stream: Stream, key: TurnKey, name: str, request: Request) -> None:
        super().__init__(stream, name)
        self.key = key
        self.request = request
        self.acknowledged: list[Chain] = []

    def post(self) -> None:
        asked = append(self.key, START, self.request, now=self.world.now, timeout_s=ACCEPT_TIMEOUT_S)
        self.start(asked, self._answered)

    def _answered(self, how: object) -> None:
        match how:
            case Chain():
                self.acknowledged.append(how)
            case FenceLost():
                # Another's request stands, under the same claim: the same turn.
                pass
            case LogError():
                self.world.after(COMES_BACK_S * self.world.chance(), self.post)
            case BaseException():
                raise how


class Cancelling(Process):
    """A client that wants the turn ended, and asks again until it is told that it has."""

    def __init__(self, stream: Stream, key: TurnKey, name: str) -> None:
        super().__init__(stream, name)
        self.key = key

    def cancel(self) -> None:
        self.start(self._cancel(), self._answered)

    def _cancel(self) -> Steps[str]:
        turn, _ = yield from cancelled(self.key, self.world.now)
        return turn.outcome

    def _answered(self, how: object) -> None:
        if isinstance(how, LogError):
            self.world.after(COMES_BACK_S * self.world.chance(), self.cancel)
        elif isinstance(how, BaseException):
            raise how


class Looking(Process):
    """A client that reads, and asks besides how far the turn is."""

    def __init__(self, stream: Stream, key: TurnKey, name: str, reader: Reading) -> None:
        super().__init__(stream, name)
        self.key = key
        self.reader = reader
        self.less: list[str] = []
        """When he was told less than he had been before."""
        self._had = BEFORE_FIRST

    def look(self) -> None:
        if not self.is_busy:
            self._had = max([self._had, *(stored.seq for stored in self.reader.told)])
            self.stream.done.append("look")
            self.start(folded_now(self.key, now=self.world.now), self._looked)

    def _looked(self, how: object) -> None:
        match how:
            case Turn():
                if how.chain.last < self._had:
                    self.less.append(f"{self.name} had seen {self._had}, and then {how.chain.last}")
                self._had = max(self._had, how.chain.last)
            case TurnUnknown():
                if self._had:
                    self.less.append(f"{self.name} had seen {self._had}, and then nothing")
            case LogUnavailable():
                pass
            case BaseException():
                raise how
