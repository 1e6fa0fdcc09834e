"""A nats-server with the streams of the product, for one measurement."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Sync
from tailrace.proto.nats import Connection
from tests.conftest import apply_streams


@asynccontextmanager
async def running_log(folder: Path, sync: Sync = "default") -> AsyncIterator[tuple[NatsServer, Connection]]:
    """Starts a server with its data in `folder`, and connects to it. Stops it at the end."""
    async with NatsServer(folder, sync=sync) as server:
        await apply_streams(server.url)
        connection = await Connection.open(server.url, "bench")
        try:
            yield server, connection
        finally:
            await connection.close()
