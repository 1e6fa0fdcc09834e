"""Notifies systemd that this process is ready and alive (sd_notify(3)), and marks the priorities of its log lines."""

import os
import socket
from contextlib import suppress

# The variables that systemd sets for one process only.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM")
# syslog(3): https://www.freedesktop.org/software/systemd/man/latest/sd-daemon.html
PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}


def notify(*states: str) -> None:
    """Sends `states`, such as `READY=1`, if systemd waits for them (`Type=notify`)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A message that is lost must not end the process.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        # `@` stands for the zero byte with which the name of an abstract socket begins.
        sending.sendto("\n".join(states).encode(), address.replace("@", "\0", 1))


def notify_status(status: str, *states: str) -> None:
    """Sends `states` and one line that `systemctl status` shows."""
    notify(*states, f"STATUS={' '.join(status.split())}")


def is_journal(descriptor: int) -> bool:
    """Returns whether the journal reads `descriptor`. It then takes the priority of a line from a prefix `<N>`."""
    stream = os.environ.get("JOURNAL_STREAM")
    with suppress(OSError):
        return bool(stream) and stream == stream_id(descriptor)
    return False


def stream_id(descriptor: int) -> str:
    """Returns the value of JOURNAL_STREAM for a process that writes to `descriptor`. Raises OSError."""
    found = os.fstat(descriptor)
    return f"{found.st_dev}:{found.st_ino}"


def with_priority(level: str, text: str) -> str:
    """Returns `text` with the priority of `level` before each line."""
    prefix = f"<{PRIORITIES[level]}>"
    return "\n".join(prefix + line for line in text.split("\n"))
