"""Planned restart of one nats-server of a cluster: it hands over its leaderships, exits, and `up` starts it again.

When a leader is killed, appends wait for seconds until the others have noticed that and elected a new leader. In lame
duck mode (SIGUSR2) the server hands over before it exits.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGUSR2

from tailrace.deploy.local import nats_cluster, nats_server, status_file
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.nats.setup import lagging_servers
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection

# In lame duck mode a server disconnects its clients one by one, over 30 s.
EXIT_S_MAX = 60.0
CATCH_UP_S_MAX = 300.0
# An election takes 4 to 9 s.
ELECTION_S_MAX = 15.0
POLL_S = 0.1
# With thirty streaming turns, one check in ten found a copy of the log one entry behind.
CHECKS = 10


async def restart(data_dir: Path, name: str) -> None:
    """Restarts the server `name`; returns when it has caught up with the other servers.

    Raises UpRefused if the other servers could not continue without it, SettingsInvalid, LogUnavailable.
    """
    url = nats_server.url(data_dir, {})
    pid_file = data_dir / nats_cluster.DIRECTORY / name / nats_server.PID_FILE
    if not pid_file.exists():
        raise UpRefused(f"the `up` in {data_dir} has one nats-server: start it with --cluster to have three")
    if status_file.read(data_dir) is None:
        raise UpRefused(status_file.explain_absence(data_dir))
    # Each server is contacted directly: the other servers notice only after some time that a server hangs.
    for node, address in zip(nats_cluster.names(), url.split(","), strict=True):
        try:
            await (await Connection.open(address, "tailrace-node")).close()
        except LogUnavailable as error:
            if node == name:
                raise UpRefused(f"{name} does not answer: `up` starts it again, see `tailrace status`") from error
            raise UpRefused(
                f"{node} does not answer: if {name} stopped as well, nothing could be stored. Repair {node} first"
            ) from error
    connection = await Connection.open(url, "tailrace-node")
    try:
        if missing := await _find_lagging(connection):
            raise UpRefused(f"{', '.join(sorted(missing))} has not caught up with {name}: try again in a moment")
        pid = pid_file.read_text(encoding="utf-8")
        os.kill(int(pid), SIGUSR2)

        async def has_new_pid() -> bool:
            return pid_file.exists() and pid_file.read_text(encoding="utf-8") not in ("", pid)

        async def has_caught_up() -> bool:
            # Fails while the client reconnects and while other servers take over its leaderships.
            with suppress(LogUnavailable):
                return not await lagging_servers(connection)
            return False

        await _wait_for(has_new_pid, EXIT_S_MAX, f"{name} was not started again: see the lines that `up` printed")
        await _wait_for(has_caught_up, CATCH_UP_S_MAX, f"{name} runs but has not caught up: see the lines of `up`")
    finally:
        await connection.close()


async def _find_lagging(connection: Connection) -> set[str]:
    """Returns the servers that are behind.

    Repeats the check while a stream has no leader, as shortly after a restart, and up to `CHECKS` times, because a copy
    often lags a moment during writes.
    """
    deadline = asyncio.get_running_loop().time() + ELECTION_S_MAX
    checks = 0
    while True:
        try:
            checks += 1
            if not (missing := await lagging_servers(connection)) or checks >= CHECKS:
                return missing
        except LogUnavailable:
            if asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(POLL_S)


async def _wait_for(condition: Callable[[], Awaitable[bool]], timeout_s: float, failure: str) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not await condition():  # noqa: ASYNC110  # another process makes it true
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise UpRefused(failure) from error
