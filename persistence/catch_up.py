"""Waits until the database holds everything that any client was told. It reads no turn.

What a client has been told is stored in the log; what this consumer has acknowledged is committed. So the question is
only whether the one has reached the other. Under a constant load the backlog is never empty: then it is enough that all
that was stored at the time of the question has been acknowledged.
"""

import asyncio
from collections.abc import Callable

from tailrace.proto.errors import Refused
from tailrace.proto.nats import Deliveries

# A batch takes some milliseconds from its delivery to its acknowledgement.
LOOK_EVERY_S = 0.01


async def catch_up(deliveries: Deliveries, trouble: Callable[[], str], timeout_s: float) -> None:
    """Returns once all that was stored before this call is in the database.

    Raises Refused after `timeout_s`, or at once when there is trouble: an old truth is not an answer. LogUnavailable.
    """
    if await deliveries.is_drained():
        return
    last = await deliveries.last()
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not ((await deliveries.backlog()).floor >= last or await deliveries.is_drained()):
        if trouble() or asyncio.get_running_loop().time() >= deadline:
            raise Refused(
                "persistence_unavailable", "the history is behind the log just now: try again", retry_after_s=2
            )
        await asyncio.sleep(LOOK_EVERY_S)
