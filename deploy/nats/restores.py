"""Records that the log was restored, before any other process uses it (PROTOCOL R150)."""

import time

import msgspec

from tailrace.gateway.log.restores import NAME, bucket, read_restores
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.restores import EPOCH_MAX, Restore
from tailrace.proto.subjects import STREAM

# Two restores of one backup, of which the second does not know the first, get different epochs.
EPOCH_S = 60
# Of more restores, no turn of before is in the log.
KEPT = 100


def new_epoch() -> int:
    """Returns the epoch that begins now: a number of 1 to EPOCH_MAX, which is used again after six days."""
    return int(time.time() / EPOCH_S) % EPOCH_MAX + 1


async def record_restore(url: str) -> None:
    """Adds a restore to the list, with the last entry that the log has now. `url` is a gateway's.

    Raises LogUnavailable.
    """
    connection = await Connection.open(url, "tailrace-restored", GATEWAY)
    try:
        restores, epoch = await read_restores(connection), new_epoch()
        while any(one.epoch == epoch for one in restores):
            epoch = epoch % EPOCH_MAX + 1
        tail = (await connection.stream_info(STREAM)).state.last_seq
        restores = [*restores, Restore(epoch, tail)][-KEPT:]
        await bucket(connection).put(NAME, msgspec.json.encode(restores))
    finally:
        await connection.close()
