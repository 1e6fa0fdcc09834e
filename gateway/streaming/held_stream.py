"""HeldStream: the stream of a client that resumes and for which a 503 would be final (ADR 13)."""

import asyncio

from starlette.types import Send

from tailrace.gateway import metrics
from tailrace.gateway.streaming.endings import LEFT
from tailrace.gateway.streaming.event_stream import EventStream
from tailrace.gateway.streaming.response import Interruptions, body
from tailrace.proto.errors import CODES, LogError, LogUnavailable, Refused

# The pause between two tries of an unavailable log: well below the second after which clients reconnect.
TRY_LOG_EVERY_S = 0.5


class HeldStream(EventStream):
    """While the log is unavailable, the client receives heartbeats instead of a 503.

    An EventSource does not reconnect after any status but 200. When the gateway drains, the body ends cleanly and the
    client reconnects to another gateway.
    """

    async def _stream(self, interruptions: Interruptions, send: Send, method: str) -> None:
        """Streams as soon as the log answers, and sends heartbeats until then.

        An error that is not retryable is raised if nothing was sent yet. Otherwise it only ends the response: the
        client repeats its request and receives the error as the answer.
        """
        while not interruptions.is_over:
            try:
                await super()._stream(interruptions, send, method)
            except (LogError, Refused) as error:
                if not CODES[error.code].is_retryable:
                    if not self.is_begun:
                        raise
                    break
            else:
                return
            await self.begin(send, 200)
            with metrics.HELD.track_inprogress():
                if (await interruptions.run(self._wait_until_available(send))).interruption is LEFT:
                    return
        await self.begin(send, 200)
        await send(body(self._dialect.heartbeat, more=not self._dialect.is_self_delimited))

    async def _wait_until_available(self, send: Send) -> None:
        """Sends heartbeats until `_wait_for_log` returns."""
        available = asyncio.create_task(self._wait_for_log())
        try:
            while not available.done():
                await send(body(self._dialect.heartbeat, more=True))
                await asyncio.wait((available,), timeout=self._streams.settings.heartbeat_s)
        finally:
            available.cancel()

    async def _wait_for_log(self) -> None:
        """Returns when another try is worth it: the log serves the turn, or has answered with a final error."""
        while True:
            await asyncio.sleep(TRY_LOG_EVERY_S)
            if not self._streams.log.connection.is_up:
                continue
            try:
                async with self._subscribe(await self._find_start()):
                    return
            except LogUnavailable:
                continue
            except (LogError, Refused):
                return
