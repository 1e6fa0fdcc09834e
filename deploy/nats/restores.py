"""Records that the log was restored, before any other process uses it (PROTOCOL R150)."""

import asyncio
import time

import msgspec

from tailrace.gateway.log.restores import NAME, bucket, read_restores
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.restores import EPOCH_MAX, Restore
from tailrace.proto.subjects import STREAM

# Of more restores, no turn of before is in the log.
KEPT = 100


def new_epoch() -> int:
    """Returns the epoch of this second: a number of 1 to EPOCH_MAX, which is used again after 2.5 hours."""
    return int(time.time()) % EPOCH_MAX + 1


async def record_restore(url: str) -> None:
    """Adds a restore to the list, with the last entry that the log has now. `url` is a gateway's.

    Returns when the second of its epoch is over: another restore of the same backup, which does not know this one, gets
    another epoch. Raises LogUnavailable.
    """
    connection = await Connection.open(url, "tailrace-restored", GATEWAY)
    try:
        restores = await read_restores(connection)
        while (epoch := new_epoch()) in {one.epoch for one in restores}:
            await _end_of_second()
        tail = (await connection.stream_info(STREAM)).state.last_seq
        restores = [*restores, Restore(epoch, tail)][-KEPT:]
        await bucket(connection).put(NAME, msgspec.json.encode(restores))
    finally:
        await connection.close()
    while new_epoch() == epoch:
        await _end_of_second()


async def _end_of_second() -> None:
    await asyncio.sleep(1 - time.time() % 1)
