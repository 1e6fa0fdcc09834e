"""TCP ports: the one that people use is bound at once, the inner ones are found free; never speaks on either."""

import errno
import secrets
import socket
from contextlib import ExitStack, suppress

from tailrace.deploy.local.errors import UpRefused

# Connections that wait while a gateway starts or restarts: the socket is ours, so none is turned away meanwhile.
BACKLOG = 2048
# For what is found free: below those of connections that go out, above those that people name.
OURS = range(20_000, 32_768)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that every gateway inherits, so that they share the port and `up` can refuse early."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UpRefused(
                f"port {port} on {host} is taken: stop what listens there, or choose another with --port"
            ) from error
        raise UpRefused(f"cannot listen on {host} port {port} ({error.strerror}): see --host") from error
    return listener


def reachable(host: str) -> str:
    """Where a listener on `host` is reached from this machine: "every address" is not one."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared, not bound


def free(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on now; held together, so that none comes twice.

    None of those that the system gives to connections that go out (Linux: ip_local_port_range, from 32768 on unless it
    is told otherwise): one of these could have it when a server is started again, and keep it for as long as it lives.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            one = held.enter_context(socket.socket())
            with suppress(OSError):
                one.bind(("127.0.0.1", secrets.choice(OURS)))
                ports.append(one.getsockname()[1])
        return ports


def counted(first: int, count: int) -> list[int]:
    """`count` loopback ports from `first` on; raises UpRefused for one that is taken, or is no port."""
    for number in range(first, first + count):
        try:
            with socket.socket() as one:
                # As the metrics server does: a port that its last owner has just left is not taken.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("127.0.0.1", number))
        except (OSError, OverflowError) as error:
            raise UpRefused(
                f"TAILRACE_METRICS_PORT={first}: {count} ports are counted up from there, one a process, and {number} "
                "cannot be had: choose another, or none for free ones"
            ) from error
    return list(range(first, first + count))
