"""Incremental decoder of server-sent events: bytes in any pieces go in, the data of complete events comes out. Pure.

Follows WHATWG, "Parsing an event stream", without the fields that the model's stream does not need: `id`, `retry`, and
`event`, which Anthropic repeats inside the data. Each byte is read once: an event in many chunks takes linear time.
"""

from tailrace.proto.errors import BackendError

BOM = b"\xef\xbb\xbf"
# The API's own limit of a request. A larger block could not be sent back with the next request.
EVENT_BYTES_MAX = 32 * 2**20


class SseDecoder:
    """The state of one stream: the line and the event that are not complete yet."""

    __slots__ = ("_data", "_is_after_cr", "_is_first", "_line", "decoded", "pending_bytes")

    def __init__(self) -> None:
        # Byte arrays: to append to one does not copy it.
        self._line = bytearray()  # the start of a line that is not complete
        self._data: bytes | bytearray | None = None  # the data lines of an event that is not complete
        self._is_first = True
        self._is_after_cr = False
        self.decoded = 0
        """The number of events so far."""
        self.pending_bytes = 0
        """The size of the event that is not complete yet, as far as it has come."""

    def decode(self, chunk: bytes) -> list[bytes]:
        """Returns the data of each event that `chunk` completes. Raises BackendError beyond EVENT_BYTES_MAX."""
        events: list[bytes] = []
        if not chunk:
            return events
        if self._is_after_cr:
            chunk = chunk.removeprefix(b"\n")  # the second half of a CRLF that was split
        if self._is_first:
            chunk = self._without_bom(chunk)
        self._is_after_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()
        rest = b"" if not chunk or chunk.endswith((b"\r", b"\n")) else lines.pop()
        if self._line and lines:
            self._line += lines[0]
            lines[0] = bytes(self._line)
            self._line.clear()
        if rest:
            self._line += rest
        for line in lines:
            if line.startswith(b"data:"):
                data = line[6:] if line[5:6] == b" " else line[5:]
                if self._data is None:
                    self._data = data
                else:
                    self._add_line(data)
            elif not line and self._data is not None:
                if len(self._data) > EVENT_BYTES_MAX:
                    raise too_large()
                events.append(bytes(self._data))
                self._data = None
        self.decoded += len(events)
        self.pending_bytes = len(self._line) + (0 if self._data is None else len(self._data))
        if self.pending_bytes > EVENT_BYTES_MAX:
            raise too_large()
        return events

    def _add_line(self, data: bytes) -> None:
        assert self._data is not None  # noqa: S101  # the first line of an event is set, not added
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        self._data += b"\n"
        self._data += data

    def _without_bom(self, chunk: bytes) -> bytes:
        """Returns the first chunk, with the bytes before it, without a BOM; empty if it may be part of a BOM."""
        chunk = bytes(self._line) + chunk
        self._line.clear()
        if len(chunk) < len(BOM) and BOM.startswith(chunk):
            self._line += chunk
            return b""
        self._is_first = False
        return chunk.removeprefix(BOM)


def too_large() -> BackendError:
    """Returns the error for an event of more than EVENT_BYTES_MAX."""
    return BackendError("backend_event_too_large", f"the model sent an event of more than {EVENT_BYTES_MAX} bytes")
