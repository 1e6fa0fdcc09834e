"""nats-py's client, extended by `abort`: closes the socket without waiting for a frozen server."""

from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv


class Client(NatsClient):
    """nats-py flushes and closes a connection before it connects to another server.

    A frozen server reads neither the pending bytes, for which nats-py waits without a limit, nor TLS's close_notify,
    for which it waits 30 s. So this client aborts the socket first.
    """

    def abort(self) -> None:
        """Closes the socket at once and drops unsent bytes. nats-py has no public method for it."""
        if self._transport:
            self._transport._io_writer.transport.abort()  # type: ignore[attr-defined]  # noqa: SLF001

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Srv) -> None:
        # A connection that the server refused is still open, and each of four attempts a second would add one.
        self.abort()
        await super()._connect_to_server(s)
