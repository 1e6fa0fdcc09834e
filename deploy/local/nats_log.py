"""What a nats-server says: all of it goes to a file, and a person is told what went wrong; never changes a line."""

import re
from contextlib import suppress
from pathlib import Path

FILE = "nats.log"
# What was said before that is in a second file, and before that is gone.
FILE_BYTES_MAX = 8 * 1024**2
LINE = re.compile(r"\[\d+\] [\d/]+ [\d:.]+ \[(?P<level>[A-Z]{3})\] ?(?P<text>.*)")
NO_TROUBLE = ("DBG", "INF", "TRC")
READY = "Server is ready"
# Of three that start or stop, one is the first, and the last: each says so as a warning, or an error. Who is away
# for longer is said by `up`, and by the streams that have lost their majority.
USUAL = re.compile(
    "Plaintext passwords detected"
    "|Waiting for routing to be established"
    "|JetStream has not established contact with a meta leader"
    "|Error trying to connect to route"
    "|Metalayer blocking snapshot"
    "|Catchup for stream .* resetting first sequence"
    "|Failed to install snapshot for .*: store is closed"
)


def is_told(line: str) -> bool:
    """Whether a person needs it: that the server is ready, what is no usual trouble, and what has another form."""
    found = LINE.fullmatch(line)
    if found is None:
        return True  # a setting that is refused, a panic
    if found["level"] in NO_TROUBLE:
        return found["text"] == READY
    return USUAL.match(found["text"]) is None


class NatsLines:
    """The lines of one server, in its folder. A disk that is full keeps none of them, and stops nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def heard(self, line: str) -> bool:
        """Keeps `line`; whether it is to be told."""
        with suppress(OSError):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                is_full = file.tell() >= FILE_BYTES_MAX
            if is_full:
                self._path.replace(self._path.with_suffix(".log.1"))
        return is_told(line)
