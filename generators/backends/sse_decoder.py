"""Incremental decoder of server-sent events: bytes in any pieces go in, the data of complete events comes out. Pure.

Follows WHATWG, "Parsing an event stream", without the fields that the model's stream does not need: `id`, `retry`, and
`event`, which Anthropic repeats inside the data.
"""

from tailrace.proto.errors import BackendError

BOM = b"\xef\xbb\xbf"
EVENT_BYTES_MAX = 4 * 2**20  # the largest real events, a tool's results, have about 100 kB


class SseDecoder:
    """The state of one stream: the line and the event that are not complete yet."""

    __slots__ = ("_data", "_data_bytes", "_is_after_cr", "_is_first", "_line")

    def __init__(self) -> None:
        self._line = b""  # the start of a line that is not complete
        self._data: list[bytes] = []  # the data lines of an event that is not complete
        self._data_bytes = 0
        self._is_first = True
        self._is_after_cr = False

    def decode(self, chunk: bytes) -> list[bytes]:
        """Returns the data of each event that `chunk` completes. Raises BackendError beyond EVENT_BYTES_MAX."""
        events: list[bytes] = []
        for line in self._lines(chunk) if chunk else ():
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._data_bytes += len(line)
            elif not line and self._data:
                if self._data_bytes > EVENT_BYTES_MAX:
                    raise too_large()
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
        if len(self._line) + self._data_bytes > EVENT_BYTES_MAX:
            raise too_large()
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        if self._is_after_cr:
            chunk = chunk.removeprefix(b"\n")  # the second half of a CRLF that was split
        text = self._line + chunk
        if self._is_first:
            if len(text) < len(BOM) and BOM.startswith(text):
                self._line = text
                return []
            text = text.removeprefix(BOM)
            self._is_first = False
        self._is_after_cr = text.endswith(b"\r")
        lines = text.splitlines()
        self._line = b"" if not text or text.endswith((b"\r", b"\n")) else lines.pop()
        return lines


def too_large() -> BackendError:
    """Returns the error for an event of more than EVENT_BYTES_MAX."""
    return BackendError("backend_event_too_large", f"the model sent an event of more than {EVENT_BYTES_MAX} bytes")
