"""The file of metrics targets that `tailrace up` writes, in the format of Prometheus's discovery by HTTP."""

from collections.abc import Mapping
from pathlib import Path

import msgspec


class TargetGroup(msgspec.Struct, frozen=True):
    """The metrics addresses, HOST:PORT, of the processes of one part, which `labels` names."""

    targets: list[str]
    labels: dict[str, str]


def encode(parts: Mapping[str, str]) -> bytes:
    """Returns the content of the file for the parts (such as `gateway`) by metrics address."""
    return msgspec.json.encode(
        [
            TargetGroup([address for address, of in parts.items() if of == part], {"part": part})
            for part in dict.fromkeys(parts.values())
        ]
    )


def read(path: Path) -> dict[str, str]:
    """Returns the parts by metrics address. Raises OSError, msgspec.DecodeError."""
    groups = msgspec.json.decode(path.read_bytes(), type=list[TargetGroup])
    return {address: group.labels["part"] for group in groups for address in group.targets}


def at_host(parts: Mapping[str, str], host: str) -> dict[str, str]:
    """Returns the targets with the host under which a client has reached one of them.

    `up` knows only an address of this machine; all of its processes listen on the same address.
    """
    return {f"{host}:{address.rpartition(':')[2]}": part for address, part in parts.items()}
