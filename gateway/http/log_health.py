"""Whether the log takes what is asked: tried all the time, so that who asks for it need not wait for an answer."""

import asyncio
import time

import structlog

from tailrace.gateway import metrics
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection, WriteProbe

logger = structlog.get_logger()

TRY_EVERY_S = 2.0
# A leader that steps down is missed for half a second, and that is nothing that anybody should hear of.
SILENT_S_MAX = 5.0


class LogHealth:
    """How the log was when it was tried last; at the start it is taken to be well."""

    def __init__(self, connection: Connection) -> None:
        self._probe = WriteProbe(connection)
        self._stored_at = time.monotonic()

    @property
    def detail(self) -> str:
        """Why new turns cannot be stored; empty while they can."""
        silent_s = time.monotonic() - self._stored_at
        if silent_s < SILENT_S_MAX:
            return ""
        return f"nothing has been stored for {silent_s:.0f} s"

    async def watch(self) -> None:
        while True:
            try:
                await self._probe.run()
                self._stored_at = time.monotonic()
            except LogUnavailable as error:
                logger.debug("nothing stored", error=str(error))
            metrics.WRITABLE.set(not self.detail)
            await asyncio.sleep(TRY_EVERY_S)
