"""The fill level of the log and of its disk. A part is kept free, so that running turns can store their end.

nats-server knows only its own limit. On one machine it shares the disk with the database and its journal, with the
blobs, and with programs that Tailrace does not know.
"""

import asyncio
import shutil
from pathlib import Path

import structlog

from tailrace.gateway import metrics
from tailrace.proto import nats
from tailrace.proto.errors import LogFull, LogUnavailable
from tailrace.proto.nats import Connection, StreamSize
from tailrace.proto.subjects import BODIES, STREAM

logger = structlog.get_logger()

LOOK_EVERY_S = 1.0
# The reserve of a disk: enough for the running turns, their rows, and the journal of the database.
RESERVE_BYTES_MAX = 1024**3
RESERVE_SHARE = 0.05


class LogFullness:
    """The values at the last check. One check a second is enough: a tenth of the log is kept in reserve.

    `directory` is on the disk that log and database share; None if they are on other machines.
    """

    def __init__(self, connection: Connection, full_at: float, directory: Path | None = None) -> None:
        self._connection = connection
        self._full_at = full_at
        self._directory = directory
        self.log = StreamSize(0, 0)
        self.blobs = StreamSize(0, 0)
        self.detail = ""
        """The reason for which new turns are refused; empty if they are accepted."""

    def require_room(self) -> None:
        """Raises LogFull if nothing new may be stored."""
        if self.detail:
            raise LogFull("the server's storage is nearly full, and the rest is kept for running turns: retry later")

    async def watch(self) -> None:
        """Measures the streams and the disk every `LOOK_EVERY_S` seconds, until it is cancelled."""
        while True:
            try:
                self.log = await nats.stream_size(self._connection, STREAM)
                metrics.FULLNESS.set(self.log.ratio)
                self.blobs = await nats.stream_size(self._connection, BODIES)
            except LogUnavailable as error:
                logger.debug("fullness unknown", error=str(error))
            if self.log.ratio >= self._full_at:
                self.detail = f"{self.log.ratio:.0%} of the log's bytes are used"
            else:
                self.detail = disk_shortage(self._directory) if self._directory is not None else ""
            await asyncio.sleep(LOOK_EVERY_S)


def disk_shortage(directory: Path) -> str:
    """Returns a message if the disk of `directory` is nearly full; empty if not, or if it cannot be read.

    Sets the metrics of the disk.
    """
    try:
        disk = shutil.disk_usage(directory)
    except OSError as error:
        logger.debug("free space unknown", directory=str(directory), error=str(error))
        return ""
    reserve = min(RESERVE_BYTES_MAX, int(RESERVE_SHARE * disk.total))
    metrics.DISK_FREE.set(disk.free)
    metrics.DISK_RESERVE.set(reserve)
    if disk.free >= reserve:
        return ""
    return f"the disk has {disk.free / 1024**2:,.0f} MiB left, and {reserve / 1024**2:,.0f} are kept for running turns"
