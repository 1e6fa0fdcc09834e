"""Asks another generator to make a call beside one that is late. Nothing is stored, and who has the turn the log says.

Two steps, so that nobody is asked by itself, and only one other takes it: all that have room offer themselves, and the
first that is heard is given the turn.
"""

from typing import Protocol

import msgspec
import structlog
from nats.aio.msg import Msg

from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant, TurnId, is_token, new_id
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# Whoever has room says so at once; that nobody does is only known by waiting.
OFFER_TIMEOUT_S = 1.0
TAKE_TIMEOUT_S = 2.0
TAKEN = b"taken"


class Hedge(msgspec.Struct, frozen=True):
    """A turn of which no token has come."""

    tenant: Tenant
    turn: TurnId
    late: Seq
    """The entry of the attempt that waits."""
    lease: str
    """Where the turn's delivery is renewed and acknowledged: both hold it until one has lost."""

    @property
    def key(self) -> TurnKey:
        return TurnKey(self.tenant, self.turn)


class HedgeRunner(Protocol):
    """Who makes such calls."""

    def has_room(self) -> bool: ...

    def take(self, hedge: Hedge) -> bool:
        """Begins; False when there is no room any more, or the turn is here already."""
        ...


class HedgeRpc:
    """Asks and offers over core NATS, as one process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._place = new_id()

    async def request(self, hedge: Hedge) -> bool:
        """Whether another process has taken it. An answer that is lost is a no, and the log knows better."""
        try:
            offer = await self._connection.request(
                subjects.HEDGE_OFFERS, self._place.encode(), timeout_s=OFFER_TIMEOUT_S
            )
            place = offer.data.decode(errors="replace")
            if not is_token(place):
                return False
            taken = await self._connection.request(
                subjects.hedge(place), msgspec.json.encode(hedge), timeout_s=TAKE_TIMEOUT_S
            )
        except LogUnavailable:
            return False
        return taken.data == TAKEN

    async def serve(self, taker: HedgeRunner) -> None:
        """Has `taker` offered to the others from now on."""

        async def asked(message: Msg) -> None:
            if message.data != self._place.encode() and taker.has_room():
                await message.respond(self._place.encode())

        async def given(message: Msg) -> None:
            try:
                hedge = msgspec.json.decode(message.data, type=Hedge)
            except DECODE_ERRORS:
                logger.warning("a hedge that cannot be read")
                return
            await message.respond(TAKEN if taker.take(hedge) else b"")

        await self._connection.subscribe(subjects.hedge(self._place), given)
        await self._connection.subscribe(subjects.HEDGE_OFFERS, asked)
