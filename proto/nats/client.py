"""nats-py's client, with a way to hang up on a server that takes nothing any more. It knows no setting of ours."""

from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv


class Client(NatsClient):
    """nats-py closes politely before it looks for another server.

    One that is frozen takes neither what is still to be written, for which it was waited without end, nor TLS's
    goodbye, for which it was waited for 30 s.
    """

    def abort(self) -> None:
        # nats-py has no call for it.
        if self._transport:
            self._transport._io_writer.transport.abort()  # type: ignore[attr-defined]  # noqa: SLF001

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Srv) -> None:
        # What a server has refused is still open, and four times a second there would be one more.
        self.abort()
        await super()._connect_to_server(s)
