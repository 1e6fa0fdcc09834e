"""Restart of a nats-server after a failed write: it stores nothing until then, even when the cause is gone.

The cause is a full disk, or a data directory that was away.

The server reports it on its monitoring port. As long as the disk is full it is left running, because it still serves
reads.
"""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress

from tailrace.deploy.local.nats_server import ServerSpec, wait_started
from tailrace.deploy.local.readiness import Response, http_get
from tailrace.deploy.local.supervisor import Supervisor

# Two of the largest messages.
FREE_BYTES_MIN = 16 * 1024**2
# Reported after a failed write by a single server, and by a server of a cluster, which disables JetStream.
SIGNS = "write error", "JetStream not enabled"
INFO_S_MAX = 1.0


async def restart_stuck_server(specs: Sequence[ServerSpec], supervisor: Supervisor) -> None:
    """Checks all servers once, and restarts at most one of them. Raises OSError if the disk cannot be read.

    A server of a cluster gets the messages that it missed from the others.
    """
    for spec in specs:
        health = await http_get("127.0.0.1", spec.monitor_port, "/healthz")
        has_space = shutil.disk_usage(spec.store).free >= FREE_BYTES_MIN
        if is_stuck(health) and has_space and await has_started(spec):
            supervisor.console.log(f"{spec.name} stopped storing after a failed write; restarting it")
            supervisor.restart(spec.name)
            return


def is_stuck(health: Response) -> bool:
    """Returns whether a write has failed; the server then tries no other. A starting server may report the same."""
    return health.status == 503 and any(sign in health.body for sign in SIGNS)


async def has_started(spec: ServerSpec) -> bool:
    """Returns whether the server accepts clients, which it does after it has read its store."""
    with suppress(TimeoutError):
        async with asyncio.timeout(INFO_S_MAX):
            await wait_started(spec.port)
            return True
    return False
