"""Makes what Tailrace needs in a NATS server that runs; never changes or removes what is there."""

import asyncio
import time

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import streams
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.permissions import ADMIN

# The rest of the store is for the bodies (BODIES_SHARE), the claims, and for what the server itself writes.
LOG_SHARE_MAX = 0.8


AGAIN_S = 0.1


async def apply(url: str, *, file_bytes_max: int, replicas: int = 1, wait_s: float = 0.0) -> None:
    """Creates what is missing, for servers that may store `file_bytes_max` each.

    Servers of a cluster answer before they have chosen who leads: they have `wait_s` seconds for that.
    Raises LogMisconfigured when something is there and differs, LogUnavailable when nobody answers.
    """
    connection = await Connection.open(url, "tailrace-streams", ADMIN)
    deadline = time.monotonic() + wait_s
    bytes_max = log_bytes_max(file_bytes_max)
    try:
        while True:
            try:
                await streams.apply(connection, replicas=replicas, bytes_max=bytes_max)
            except LogUnavailable:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                return
    finally:
        await connection.close()


def log_bytes_max(file_bytes_max: int) -> int:
    """How large the log may grow on servers that may store `file_bytes_max` each."""
    return min(streams.BYTES_MAX, int(LOG_SHARE_MAX * file_bytes_max))
