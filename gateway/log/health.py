"""The health of the log: a periodic write probe, whose last result health checks read without waiting."""

import asyncio
import time

import structlog

from tailrace.gateway import metrics
from tailrace.gateway.log.write_probe import WriteProbe
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection

logger = structlog.get_logger()

TRY_EVERY_S = 2.0
# A change of leader takes half a second and is not reported.
SILENT_S_MAX = 5.0


class LogHealth:
    """The result of the last probe; healthy at the start."""

    def __init__(self, connection: Connection) -> None:
        self._probe = WriteProbe(connection)
        self._stored_at = time.monotonic()
        self._failure = ""
        metrics.WRITABLE.set(1)

    @property
    def detail(self) -> str:
        """The reason for which new turns cannot be stored; empty if they can."""
        silent_s = time.monotonic() - self._stored_at
        if silent_s < SILENT_S_MAX:
            return ""
        why = f": {self._failure}" if self._failure else ""
        return f"nothing has been stored for {silent_s:.0f} s{why}"

    async def watch(self) -> None:
        """Stores probes in NATS and waits `TRY_EVERY_S` seconds, in a loop, until it is cancelled."""
        while True:
            try:
                await self._probe.run()
                self._stored_at = time.monotonic()
            except LogUnavailable as error:
                self._failure = str(error)
                logger.debug("nothing stored", error=self._failure)
            metrics.WRITABLE.set(not self.detail)
            await asyncio.sleep(TRY_EVERY_S)
