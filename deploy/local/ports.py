"""TCP ports: the public port, which is bound by `up`, and free loopback ports for the processes."""

import errno
import os
import secrets
import socket
import sys
from collections import deque
from collections.abc import Collection

from tailrace.deploy.local.errors import UpRefused

# Connections that wait while gateways start or restart: `up` holds the socket, so none is refused meanwhile.
BACKLOG = 2048
# Below the ports that the kernel gives to outgoing connections, above those that people usually choose.
FREE_RANGE = range(20_000, 32_768)
# From TAILRACE_METRICS_PORT to the port before the first generator's. In between are the gateways of `up`, at most 64.
GENERATORS_OFFSET = 100
# `up` looks for fewer ports than that before all its servers have bound theirs.
HELD_MAX = 100
_held = deque[int]()
"""The sockets that are bound to the ports of the last calls of `find_free`."""


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket, which all gateways inherit. Raises UpRefused if the address cannot be bound.

    For a name with IPv4 and IPv6 addresses, such as `localhost`, binds the first IPv4 address.
    """
    listener = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except ValueError as error:
        raise UpRefused(f"{host!r} is not a host name: choose another address with --host") from error
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UpRefused(
                f"port {port} on {host} is in use: stop the program that uses it, or choose another with --port"
            ) from error
        # Only root may listen on a port below 1024.
        other = "port with --port" if error.errno == errno.EACCES else "address with --host"
        raise UpRefused(f"cannot listen on {host} port {port} ({error.strerror}): choose another {other}") from error
    return listener


def loopback_of(host: str) -> str:
    """Returns the address to connect to on this machine: a wildcard address becomes the loopback address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared, not bound


def in_url(host: str) -> str:
    """Returns `host` for a URL: an IPv6 address gets brackets."""
    return f"[{host}]" if ":" in host else host


def find_free(count: int) -> list[int]:
    """Returns `count` different free loopback ports.

    This process stays bound to the last HELD_MAX ports and does not listen, so that no other call finds them, not even
    in another process. A server can bind them with SO_REUSEADDR, which all servers here set: Linux allows this as long
    as no other socket listens. macOS does not, so there the ports are only bound until the call returns.

    Ports of the kernel's range for outgoing connections (Linux: ip_local_port_range, from 32768 on by default) are not
    used: while a server restarts, an outgoing connection could take the server's port for hours.

    Raises UpRefused if no program can connect to loopback.
    """
    _require_loopback()
    ports: list[int] = []
    bound: list[int] = []
    while len(ports) < count:
        one = socket.socket()
        try:
            # Not with SO_REUSEADDR, which would accept a port that another process holds.
            one.bind(("127.0.0.1", secrets.choice(FREE_RANGE)))
        except OSError:
            one.close()
            continue
        ports.append(one.getsockname()[1])
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.append(one.detach())
    _held.extend(bound)
    while len(_held) > (HELD_MAX if sys.platform == "linux" else 0):
        os.close(_held.popleft())
    return ports


def _require_loopback() -> None:
    """Raises UpRefused if no program can connect to 127.0.0.1. A server could still listen there."""
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        try:
            # The connect of a datagram socket looks for a route and sends nothing. Any port will do.
            one.connect(("127.0.0.1", 9))
        except OSError as error:
            raise UpRefused(
                f"this machine cannot reach its own address 127.0.0.1 ({error.strerror}): bring its loopback interface"
                " up, on Linux with `ip link set lo up`"
            ) from error


def find_fixed(first: int, generators: int, gateways: int, own: Collection[int] = ()) -> list[int]:
    """Returns the metrics ports from TAILRACE_METRICS_PORT=`first` on: persistence, generators, gateways.

    Each role has a range of its own, so that a further generator does not change the port of a gateway. The ranges are
    the same as in the units in deploy/systemd. Raises UpRefused for an invalid port number, and for a port in use,
    except those in `own`, which processes of this `up` use.
    """
    of_generators = range(first + GENERATORS_OFFSET + 1, first + GENERATORS_OFFSET + 1 + generators)
    ports = [first, *of_generators, *range(first + 1, first + 1 + gateways)]
    for number in ports:
        if number in own:
            continue
        try:
            with socket.socket() as one:
                # The metrics server does this, too: a port in TIME_WAIT is free.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("127.0.0.1", number))
        except (OSError, OverflowError) as error:
            raise UpRefused(
                f"TAILRACE_METRICS_PORT={first}: persistence needs this port, gateways those from {first + 1} on, "
                f"generators those from {first + GENERATORS_OFFSET + 1} on, and {number} is not free: stop the "
                "program that uses it, or choose another first port, or unset it to use free ones"
            ) from error
    return ports
