"""A nats-server whose disk was full stores nothing until it is started again, also once there is room: it is started.

It says so itself, on its monitoring port. As long as there is no room it is left alone: it still tells what it has.
"""

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress

from tailrace.deploy.local.nats_server import Site, answers
from tailrace.deploy.local.readiness import Answer, ask
from tailrace.deploy.local.supervisor import Supervisor

LOOK_EVERY_S = 5.0
# Two of the largest messages.
ROOM_BYTES_MIN = 16 * 1024**2
# What one server says whose write has failed, and what one of three does: it gives up storing altogether.
SIGNS = "write error", "JetStream not enabled"
GREETS_S_MAX = 1.0


async def mend(sites: Sequence[Site], supervisor: Supervisor) -> None:
    """Looks at each for ever. One at a time: what one of three has lost, it gets from the others."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for site in sites:
            answer = await ask("127.0.0.1", site.monitor_port, "/healthz")
            has_room = shutil.disk_usage(site.store).free >= ROOM_BYTES_MIN
            if is_stuck(answer) and has_room and await greets(site):
                supervisor.screen.say(f"{site.name} found its disk full, and there is room again: it is started anew")
                supervisor.restart(site.name)
                break


def is_stuck(answer: Answer) -> bool:
    """Whether a write has failed: from then on no other is tried. One that is still starting may say the same."""
    return answer.status == 503 and any(sign in answer.body for sign in SIGNS)


async def greets(site: Site) -> bool:
    """Whether it has started: it greets nobody before it has read its store."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GREETS_S_MAX):
            await answers(site.port)
            return True
    return False
