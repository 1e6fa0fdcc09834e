"""`tailrace streams`: creates missing streams and buckets in a running NATS; existing ones do not change."""

import asyncio
import time

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import streams
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.permissions import ADMIN

# The rest of the store is for large bodies (BODIES_SHARE), claims, and the server's own files.
LOG_SHARE_MAX = 0.8
RETRY_S = 0.1


async def apply(url: str, *, file_bytes_max: int, replicas: int = 1, wait_s: float = 0.0) -> int:
    """Creates what is missing, for servers that may store `file_bytes_max` each; returns how many it has created.

    Retries for `wait_s` seconds, because the servers of a cluster answer before they have elected a leader.
    Raises LogMisconfigured if an existing one differs, LogUnavailable if no server answers.
    """
    connection = await Connection.open(url, "tailrace-streams", ADMIN)
    deadline = time.monotonic() + wait_s
    bytes_max = log_bytes_max(file_bytes_max)
    try:
        while True:
            try:
                return await streams.apply(connection, replicas=replicas, bytes_max=bytes_max)
            except LogUnavailable:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)
    finally:
        await connection.close()


def log_bytes_max(file_bytes_max: int) -> int:
    """Returns the size limit of the log, for servers that may store `file_bytes_max` each."""
    return min(streams.BYTES_MAX, int(LOG_SHARE_MAX * file_bytes_max))
