"""look_up: the system's look-up of a host name, in a thread of its own.

uvloop uses at most two threads for look-ups. A DNS server may never answer, and no look-up can be stopped. So two names
could delay all other look-ups, and the process would wait for them at its exit.
"""

import concurrent.futures
import socket
import threading
from collections.abc import Sequence
from typing import Any

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


def look_up(host: str, port: int, family: int = 0) -> concurrent.futures.Future[Sequence[AddressInfo]]:
    """Begins to look up `host` as all programs of the machine do: /etc/hosts, DNS, mDNS.

    The future will have what `socket.getaddrinfo` returns, or an OSError. It cannot be cancelled.
    """
    found: concurrent.futures.Future[Sequence[AddressInfo]] = concurrent.futures.Future()
    # From now on it cannot be cancelled, so that the thread can set its result.
    found.set_running_or_notify_cancel()
    # A daemon, unlike the threads of an executor: the process does not wait for it at its exit.
    try:
        threading.Thread(target=_look_up, args=(found, host, port, family), daemon=True).start()
    except RuntimeError as error:
        # The machine allows no more threads.
        found.set_exception(OSError(str(error)))
    return found


def _look_up(found: concurrent.futures.Future[Sequence[AddressInfo]], host: str, port: int, family: int) -> None:
    try:
        addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except BaseException as error:  # noqa: BLE001  # every look-up must end, otherwise it counts for ever
        found.set_exception(error)
        return
    found.set_result(addresses)
