"""How full the log is. New turns are refused before it is full, so that running ones can always store their end."""

import asyncio

import structlog

from tailrace.gateway import metrics
from tailrace.proto import nats
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection

logger = structlog.get_logger()

LOOK_EVERY_S = 1.0


class LogFullness:
    """The ratio at the last check. One check a second is enough: a tenth of the log is kept in reserve."""

    def __init__(self, connection: Connection, full_at: float) -> None:
        self._connection = connection
        self._full_at = full_at
        self._ratio = 0.0

    @property
    def is_full(self) -> bool:
        return self._ratio >= self._full_at

    @property
    def detail(self) -> str:
        return f"{self._ratio:.0%} of the log's bytes are used" if self.is_full else ""

    async def watch(self) -> None:
        while True:
            try:
                self._ratio = await nats.fullness(self._connection)
                metrics.FULLNESS.set(self._ratio)
            except LogUnavailable as error:
                logger.debug("fullness unknown", error=str(error))
            await asyncio.sleep(LOOK_EVERY_S)
