"""Clients who ask and who cancel, each until a gateway has answered them."""

from gateway.cancel import cancelled
from proto.append import append
from proto.chain import START, Chain
from proto.entries import Request
from proto.errors import FenceLost, LogError
from proto.step import Steps
from proto.subjects import TurnKey
from tests.schedules.process import Process
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
