"""Creates the streams, buckets and consumers of running servers, whose log has the right size for their disks."""

import asyncio
import time
from collections.abc import Sequence

from tailrace.deploy.nats import setup
from tailrace.deploy.nats.new_log import LogUnseen, Source, require_new
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import stream_configs
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.users import ADMIN

GIB = 1024**3
GIB_OF_SERVER = 10
# The rest of the store is for large bodies (BODIES_SHARE), claims, and the server's own files.
LOG_SHARE_MAX = 0.8
RETRY_S = 0.1


async def apply(
    url: str,
    *,
    file_bytes_max: int | None,
    replicas: int | None = None,
    wait_s: float = 0.0,
    repairs: bool = False,
    is_new: bool = False,
    others: Sequence[Source] = (),
) -> int:
    """Creates all that is missing, for servers that may store `file_bytes_max` each; returns the number created.

    Without `file_bytes_max` or `replicas`, the size or the replicas of the existing streams are used. Retries for
    `wait_s` seconds, because the servers of a cluster answer before they have elected a leader. Raises LogMisconfigured
    if an existing stream or consumer differs, LogUnavailable if no server answers. `repairs`: see deploy.nats.setup.

    Without `is_new`, a missing log is created only if persistence or one of `others` says that there was none (see
    deploy.nats.new_log). Raises LogUnseen, in a cluster after `wait_s`.
    """
    connection = await Connection.open(url, "tailrace-streams", ADMIN)
    deadline = time.monotonic() + wait_s
    try:
        while True:
            try:
                existing = await setup.read_existing(connection)
                copies = replicas or existing.replicas or 1
                if not (existing.has_log or is_new):
                    await require_new(connection, *others)
                bytes_max = existing.bytes_max if file_bytes_max is None else log_bytes_max(file_bytes_max)
                return await setup.apply(
                    connection,
                    replicas=copies,
                    bytes_max=bytes_max or log_bytes_max(GIB_OF_SERVER * GIB),
                    repairs=repairs,
                )
            except LogUnseen:
                # The leader of a cluster that has just started may not have read all that it stores.
                if copies == 1 or time.monotonic() >= deadline:
                    raise
            except LogUnavailable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(RETRY_S)
    finally:
        await connection.close()


def log_bytes_max(file_bytes_max: int) -> int:
    """Returns the size limit of the log, for servers that may store `file_bytes_max` each."""
    return min(stream_configs.BYTES_MAX, int(LOG_SHARE_MAX * file_bytes_max))
