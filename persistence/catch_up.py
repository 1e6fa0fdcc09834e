"""Waiting until the database holds everything that the log acknowledged before a query.

Clients receive only what is stored in the log, and persistence acknowledges only what is committed. So the database
has caught up when the consumer has acknowledged up to the log's last sequence. Under constant load the backlog is never
empty: what was stored after the query arrived is not waited for.
"""

import asyncio
from collections.abc import Callable

from tailrace.proto.errors import Refused
from tailrace.proto.nats import Deliveries

# A batch takes some milliseconds from its delivery to its acknowledgement.
POLL_S = 0.01


async def catch_up(deliveries: Deliveries, failure: Callable[[], str], timeout_s: float) -> None:
    """Returns once all that was stored before this call is in the database.

    Raises Refused (persistence_unavailable) after `timeout_s`, or at once while the recorder reports a `failure`,
    because an outdated answer would be wrong. Raises LogUnavailable.
    """
    if await deliveries.is_drained():
        return
    last = await deliveries.last()
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not ((await deliveries.backlog()).floor >= last or await deliveries.is_drained()):
        if failure() or asyncio.get_running_loop().time() >= deadline:
            raise Refused(
                "persistence_unavailable",
                "the database is behind the log: try again in some seconds",
                retry_after_s=2,
            )
        await asyncio.sleep(POLL_S)
