"""The three nats-servers of `tailrace up --cluster`, each with its own directory and ports on loopback."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from tailrace.deploy.local import ports
from tailrace.deploy.local.nats_server import ClusterMember, ServerSpec, new_passwords
from tailrace.deploy.local.options import Sync

NODES = 3
DIRECTORY = "cluster"


def new_specs(data_dir: Path, *, sync: Sync, file_bytes_max: int) -> list[ServerSpec]:
    """Returns three servers below `data_dir` with free ports. A user has the same password on all three.

    `file_bytes_max` is the storage limit of each server.
    """
    free = ports.find_free(3 * NODES)
    own, monitor, routes = free[:NODES], free[NODES : 2 * NODES], free[2 * NODES :]
    passwords, password = new_passwords(), secrets.token_hex(16)
    return [
        ServerSpec(
            data_dir / DIRECTORY / name,
            own[number],
            monitor[number],
            passwords,
            sync,
            file_bytes_max,
            name,
            ClusterMember(routes[number], tuple(other for other in routes if other != routes[number]), password),
        )
        for number, name in enumerate(names())
    ]


def names() -> list[str]:
    return [f"nats-{number}" for number in range(1, NODES + 1)]


def url(specs: Sequence[ServerSpec], user: str) -> str:
    """Returns the NATS URL of `user` with the addresses of all servers."""
    return ",".join(spec.url(user) for spec in specs)
