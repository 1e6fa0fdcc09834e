"""nats-py's client with the behaviour for which nats-py has no hook. All use of its private methods is here."""

from contextlib import suppress
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv


class Client(NatsClient):
    """Closes the socket without waiting for a frozen server.

    nats-py flushes and closes a connection before it connects to another server. A frozen server reads neither the
    pending bytes, for which nats-py waits without a limit, nor TLS's close_notify, for which it waits 30 s. So this
    client aborts the socket first.
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

    async def _ping_interval(self) -> None:
        """Sends pings also after a MemoryError, which ends nats-py's loops: unanswered pings replace the connection."""
        while True:
            with suppress(MemoryError):
                return await super()._ping_interval()


class TlsClient(Client):
    """Requires TLS. nats-py continues without TLS, and sends the password, if the server says that it has none.

    Its successor nats-core refuses such a server (nats-io/nats.py#912).
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise nats.errors.Error("nats: the server has no TLS")
        await super()._process_info(info, initial_connection)
