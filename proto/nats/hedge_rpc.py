"""RPC between generators: asks another generator to run a hedge, a second call beside a slow one (PROTOCOL R51).

Two steps, so that exactly one other generator runs it: all generators with a free slot offer themselves, and the first
offer gets the turn. Nothing is stored; the log decides which call wins.
"""

from collections.abc import Callable

import msgspec
import structlog
from nats.aio.msg import Msg

from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, is_token, new_id
from tailrace.proto.nats.connection import Connection

logger = structlog.get_logger()

# Generators with a free slot answer at once. If there is none, this time passes.
OFFER_TIMEOUT_S = 1.0
TAKE_TIMEOUT_S = 2.0
TAKEN = b"taken"


class Hedge(msgspec.Struct, frozen=True):
    """A turn whose first token is late."""

    tenant: Tenant
    turn: TurnId
    late: Seq
    """The sequence of the waiting attempt's entry."""
    lease: str
    """The reply subject of the turn's delivery. Both generators renew it until one has lost."""

    @property
    def key(self) -> TurnKey:
        return TurnKey(self.tenant, self.turn)


class HedgeRpc:
    """Requests and serves hedges over core NATS, for one process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._generator = new_id()

    async def request(self, hedge: Hedge) -> bool:
        """Returns whether another generator runs the hedge. A lost reply counts as no; the log decides in any case."""
        try:
            offer = await self._connection.request(
                subjects.HEDGE_OFFERS, self._generator.encode(), timeout_s=OFFER_TIMEOUT_S
            )
            generator = offer.data.decode(errors="replace")
            if not is_token(generator):
                return False
            taken = await self._connection.request(
                subjects.hedge(generator), msgspec.json.encode(hedge), timeout_s=TAKE_TIMEOUT_S
            )
        except LogUnavailable:
            return False
        return taken.data == TAKEN

    async def serve(self, has_free_slot: Callable[[], bool], start_hedge: Callable[[Hedge], bool]) -> None:
        """Serves requests of other generators.

        `start_hedge` returns False if no slot is free any more or the turn already runs here. It raises LogUnavailable
        if the hedge's lease is not a lease of the queue.
        """

        async def on_request(message: Msg) -> None:
            if message.data != self._generator.encode() and has_free_slot():
                await message.respond(self._generator.encode())

        async def on_hedge(message: Msg) -> None:
            try:
                is_taken = start_hedge(msgspec.json.decode(message.data, type=Hedge))
            except (*DECODE_ERRORS, LogUnavailable) as error:
                logger.warning("received an invalid hedge", error=str(error))
                is_taken = False
            # Always: without a response the other generator waits for TAKE_TIMEOUT_S.
            await message.respond(TAKEN if is_taken else b"")

        await self._connection.subscribe(subjects.hedge(self._generator), on_hedge)
        await self._connection.subscribe(subjects.HEDGE_OFFERS, on_request)
