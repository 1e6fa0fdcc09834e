"""Watch of the NATS setup: notices within seconds that a stream, bucket or consumer was deleted.

Without it nothing would fail: a process that fetches from a deleted consumer gets no entries, as when there is no work.
Only the administrator's user may create streams and consumers: `tailrace up` does, and elsewhere `tailrace streams`. A
generator that could create a consumer could have the log's entries sent to any subject (ADR 23).
"""

import asyncio

import prometheus_client
import structlog

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import streams
from tailrace.proto.nats.connection import Connection

logger = structlog.get_logger()

CHECK_EVERY_S = 5.0
MISSING = prometheus_client.Gauge(
    "tailrace_nats_missing", "Streams, buckets and consumers that Tailrace needs and that NATS does not have"
)


async def watch(connection: Connection) -> None:
    """Checks every `CHECK_EVERY_S` seconds, forever; sets `connection.missing`, logs changes and sets the metric."""
    while True:
        await asyncio.sleep(CHECK_EVERY_S)
        try:
            found = (await streams.read_setup_state(connection)).missing
        except LogUnavailable as error:
            logger.debug("NATS setup unknown", error=str(error))
            continue
        if found and found != connection.missing:
            logger.error("NATS lacks what Tailrace needs: run `tailrace streams`", missing=", ".join(found))
        elif connection.missing and not found:
            logger.info("NATS has again what Tailrace needs")
        connection.missing = found
        MISSING.set(len(found))
