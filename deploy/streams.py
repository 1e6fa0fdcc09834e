"""Makes what Tailrace needs in a NATS server that runs; never changes or removes what is there."""

from proto.log import streams
from proto.log.connection import Connection

# The rest of the store is for the bodies (BODIES_SHARE), the claims, and for what the server itself writes.
LOG_SHARE_MAX = 0.8


async def apply(url: str, *, file_bytes_max: int, replicas: int = 1) -> None:
    """Creates what is missing, for a server that may store `file_bytes_max`.

    Raises LogMisconfigured when something is there and differs, LogUnavailable when nobody answers.
    """
    connection = await Connection.open(url, "tailrace-streams")
    try:
        bytes_max = min(streams.BYTES_MAX, int(LOG_SHARE_MAX * file_bytes_max))
        await streams.apply(connection, replicas=replicas, bytes_max=bytes_max)
    finally:
        await connection.close()
