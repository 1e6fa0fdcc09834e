"""Free ports at fixed distances, for servers that choose their ports by a first one."""

import socket
from contextlib import ExitStack

from tailrace.deploy.local import ports


def find_first(distances: tuple[int, ...], stack: ExitStack) -> int:
    """Returns a free port for which the ports at these distances above it are free, too.

    Until `stack` is closed, only a server can bind those, as with `ports.find_free`.
    """
    while True:
        (first,) = ports.find_free(1)
        with ExitStack() as tried:
            try:
                for distance in distances:
                    held = tried.enter_context(socket.socket())
                    # Not with SO_REUSEADDR, which would accept a port that another process holds.
                    held.bind(("127.0.0.1", first + distance))
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            except OSError:
                continue
            stack.push(tried.pop_all())
            return first
