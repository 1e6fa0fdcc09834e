"""DamagedTurns: has generators end the turns of which the log has lost entries, unless the database has their end."""

import asyncio

import msgspec
import structlog

from tailrace.persistence import metrics
from tailrace.persistence.run_every import run_every
from tailrace.persistence.store import Store
from tailrace.proto.ids import TurnKey
from tailrace.proto.model_records import END_DAMAGED_TURN, DamagedTurnEnded, EndDamagedTurn
from tailrace.proto.nats import Rpc, TurnLog
from tailrace.proto.subjects import GENERATORS

logger = structlog.get_logger()

INTERVAL_S = 10.0
TIMEOUT_S = 5.0


class DamagedTurns:
    """The turns that any process has noted as damaged (PROTOCOL R144)."""

    def __init__(self, log: TurnLog, store: Store, rpc: Rpc) -> None:
        self._log = log
        self._store = store
        self._rpc = rpc
        self._waiting = set[TurnKey]()
        """Turns without an end at the last check: the recorder may have been about to write it."""
        self._settled = set[TurnKey]()
        """Turns that have an end in the database, or that a generator has ended."""
        self.number = 0
        """How many turns are noted. The notes live as long as the log keeps turns."""

    async def run(self, stop: asyncio.Event) -> None:
        """Checks the noted turns until `stop` is set."""
        await run_every(INTERVAL_S, self.check, "ending damaged turns", stop)

    async def check(self) -> None:
        """Has a generator end each noted turn that had no end at the last check either.

        Raises LogUnavailable, StoreError, and Refused if no generator answers.
        """
        noted = set(await self._log.damaged_turns())
        self.number = len(noted)
        metrics.DAMAGED.set(self.number)
        self._settled &= noted
        for key in sorted(noted - self._settled):
            turn = await self._store.turn(key)
            if turn is not None and turn.outcome != "running":
                self._settled.add(key)
            elif key in self._waiting:
                await self._end(key)
                self._settled.add(key)
            else:
                self._waiting.add(key)
        self._waiting &= noted

    async def _end(self, key: TurnKey) -> None:
        body = msgspec.json.encode(EndDamagedTurn(key.turn))
        reply = await self._rpc.request(key.tenant, END_DAMAGED_TURN, body, timeout_s=TIMEOUT_S, role=GENERATORS)
        if msgspec.json.decode(reply, type=DamagedTurnEnded).was_running:
            logger.warning("a generator has ended a damaged turn", turn=key.turn)
