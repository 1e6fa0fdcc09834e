"""Repair of the NATS setup under `up`: deleted streams, buckets and consumers are made again.

A new consumer continues at the first entry that was not acknowledged. What a deleted stream or bucket contained is
lost: turns that were in the log and not in the database end as failed.
"""

from collections.abc import Sequence

from tailrace.deploy.cli.streams import log_bytes_max
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.nats_server import ServerSpec
from tailrace.proto.errors import LogError
from tailrace.proto.nats import Connection, streams
from tailrace.proto.nats.permissions import ADMIN


class SetupRepair:
    """The checks of one `up`, over a connection of the administrator's user that is opened by the first one."""

    def __init__(self, admin_url: str, console: Console, servers: Sequence[ServerSpec]) -> None:
        self._url = admin_url
        self._console = console
        self._replicas = len(servers)
        self._bytes_max = log_bytes_max(servers[0].file_bytes_max)
        self._connection: Connection | None = None
        self._known = streams.SetupState()

    async def check(self) -> None:
        """Makes again what is missing. Does nothing while NATS does not answer: the processes report that."""
        try:
            if self._connection is None or self._connection.closed.is_set():
                self._connection = await Connection.open(self._url, "tailrace-up", ADMIN)
            found = await streams.read_setup_state(self._connection)
            if found.missing:
                self._console.log(f"NATS lacks {', '.join(found.missing)}: creating it again")
                await streams.apply(
                    self._connection, replicas=self._replicas, bytes_max=self._bytes_max, after=self._known
                )
                found = await streams.read_setup_state(self._connection)
            self._known = found
        except LogError as error:
            if self._connection is not None and self._connection.is_up:
                self._console.log(f"NATS cannot be checked: {error}")

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
