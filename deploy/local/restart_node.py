"""A planned restart of one nats-server of a cluster: it hands over, leaves, and `up` starts it again.

Killed, a server that leads takes appends with it for seconds, until the others have missed it and chosen another. One
that is told to go has chosen it first (SIGUSR2, which NATS calls lame duck mode).
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGUSR2

from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.deploy.local.errors import UpRefused
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection
from tailrace.proto.nats.streams import lagging_servers

# It sends its clients away a second apart.
LEAVE_S_MAX = 60.0
CATCH_UP_S_MAX = 300.0
# An election takes 4 to 9 s.
LED_S_MAX = 15.0
LOOK_EVERY_S = 0.1
# With thirty turns told, one look in ten found a copy of the log an entry behind.
LOOKS = 10


async def restart(folder: Path, name: str) -> None:
    """Returns when the server is back and has all that the others have.

    Raises UpRefused when its fellows could not do without it, SettingsInvalid, LogUnavailable.
    """
    url = nats_server.url(folder, {})
    pid_file = folder / nats_cluster.FOLDER / name / nats_server.PID_FILE
    if not pid_file.exists():
        raise UpRefused(f"the `up` in {folder} has one nats-server: start it with --cluster to have three")
    # Each is asked itself: of one that hangs the others know only after a while.
    for fellow, address in zip(nats_cluster.names(), url.split(","), strict=True):
        try:
            await (await Connection.open(address, "tailrace-node")).close()
        except LogUnavailable as error:
            raise UpRefused(f"{fellow} does not answer: without {name}, too, nothing could be stored") from error
    connection = await Connection.open(url, "tailrace-node")
    try:
        if missing := await _behind(connection):
            raise UpRefused(f"{', '.join(sorted(missing))} has not caught up: wait until it has all that {name} has")
        pid = pid_file.read_text(encoding="utf-8")
        os.kill(int(pid), SIGUSR2)

        async def is_another() -> bool:
            return pid_file.exists() and pid_file.read_text(encoding="utf-8") not in ("", pid)

        async def is_whole() -> bool:
            # Whoever it was connected to is looked for, and what it led is led by another.
            with suppress(LogUnavailable):
                return not await lagging_servers(connection)
            return False

        await _until(is_another, LEAVE_S_MAX, f"{name} has not been started again: see what `up` says of it")
        await _until(is_whole, CATCH_UP_S_MAX, f"{name} runs, and has not caught up: see what `up` says of it")
    finally:
        await connection.close()


async def _behind(connection: Connection) -> set[str]:
    """The servers that are; asked again while a stream has no leader, as for a moment after each restart.

    And some times more, for a copy that is written to is a moment behind.
    """
    deadline = asyncio.get_running_loop().time() + LED_S_MAX
    looks = 0
    while True:
        try:
            looks += 1
            if not (missing := await lagging_servers(connection)) or looks >= LOOKS:
                return missing
        except LogUnavailable:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(LOOK_EVERY_S)


async def _until(condition: Callable[[], Awaitable[bool]], deadline_s: float, otherwise: str) -> None:
    try:
        async with asyncio.timeout(deadline_s):
            while not await condition():  # noqa: ASYNC110  # another process makes it true
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError as error:
        raise UpRefused(otherwise) from error
