"""Output of nats-server: all lines go to a rotated file, and lines that a person needs also go to the terminal."""

import re
from contextlib import suppress
from pathlib import Path

FILE = "nats.log"
# A full file is renamed to nats.log.1, which replaces the previous nats.log.1.
FILE_BYTES_MAX = 8 * 1024**2
LINE = re.compile(r"\[\d+\] [\d/]+ [\d:.]+ \[(?P<level>[A-Z]{3})\] ?(?P<text>.*)")
QUIET_LEVELS = ("DBG", "INF", "TRC")
READY = "Server is ready"
# Warnings and errors that are normal while the servers of a cluster start or stop one after the other. A server that
# stays down is reported by `up`, and by streams that have lost their majority.
EXPECTED = re.compile(
    "Plaintext passwords detected"
    "|Waiting for routing to be established"
    "|JetStream has not established contact with a meta leader"
    "|Error trying to connect to route"
    "|Metalayer blocking snapshot"
    "|Catchup for stream .* resetting first sequence"
    "|Failed to install snapshot for .*: store is closed"
)


def is_shown(line: str) -> bool:
    """Returns whether to show a line: the server is ready, an unexpected warning or error, or another format."""
    found = LINE.fullmatch(line)
    if found is None:
        return True  # a rejected setting, a panic
    if found["level"] in QUIET_LEVELS:
        return found["text"] == READY
    return EXPECTED.match(found["text"]) is None


class NatsLogFile:
    """The log file of one server, in its directory. Lines are lost while the disk is full; nothing stops."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE

    def write(self, line: str) -> bool:
        """Appends `line` to the file, and returns whether to show it."""
        with suppress(OSError):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                is_full = file.tell() >= FILE_BYTES_MAX
            if is_full:
                self._path.replace(self._path.with_suffix(".log.1"))
        return is_shown(line)
