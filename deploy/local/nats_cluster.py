"""Three nats-servers that are one log, on loopback: where each lives; never starts them.

Each has a folder and a store of its own, so that what one disk's file loses two others have.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from tailrace.deploy.local import ports as port
from tailrace.deploy.local.nats_server import Membership, Site, new_passwords
from tailrace.deploy.local.options import Sync

NODES = 3
FOLDER = "cluster"


def choose(folder: Path, *, sync: Sync, file_bytes_max: int) -> list[Site]:
    """The three sites below `folder`, on free ports; a user has one password for all three.

    `file_bytes_max` is what each of them may store.
    """
    ports = port.free(3 * NODES)
    own, monitor, routes = ports[:NODES], ports[NODES : 2 * NODES], ports[2 * NODES :]
    passwords, password = new_passwords(), secrets.token_hex(16)
    return [
        Site(
            folder / FOLDER / name,
            own[number],
            monitor[number],
            passwords,
            sync,
            file_bytes_max,
            name,
            Membership(routes[number], tuple(other for other in routes if other != routes[number]), password),
        )
        for number, name in enumerate(names())
    ]


def names() -> list[str]:
    return [f"nats-{number}" for number in range(1, NODES + 1)]


def url(sites: Sequence[Site], user: str) -> str:
    """What a client is told that is to know all of them."""
    return ",".join(site.url(user) for site in sites)
