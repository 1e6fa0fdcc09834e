"""Bytes of an event stream become the data of its events, wherever the bytes were cut; it reads no socket, no JSON.

The rules are WHATWG's ("Parsing an event stream"), less what the model's stream does not use: `id`, `retry`, and the
event's name, which Anthropic repeats inside the data.
"""

BOM = b"\xef\xbb\xbf"
EVENT_BYTES_MAX = 4 * 2**20  # the largest events, a tool's results, are some 100 kB; the bound is against mishaps


class EventTooLong(ValueError):
    """More than EVENT_BYTES_MAX without the end of an event."""


class SseDecoder:
    """Feed it what arrives; it gives the data of each event that is now complete."""

    __slots__ = ("_data", "_data_bytes", "_is_after_cr", "_is_first", "_line")

    def __init__(self) -> None:
        self._line = b""  # the beginning of a line whose end has not come
        self._data: list[bytes] = []  # the data lines of an event whose end has not come
        self._data_bytes = 0
        self._is_first = True
        self._is_after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises EventTooLong."""
        events: list[bytes] = []
        for line in self._lines(chunk) if chunk else ():
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._data_bytes += len(line)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
        if len(self._line) + self._data_bytes > EVENT_BYTES_MAX:
            raise EventTooLong(f"more than {EVENT_BYTES_MAX} bytes in one event")
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        if self._is_after_cr:
            chunk = chunk.removeprefix(b"\n")  # the second half of a CRLF that was cut in two
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
