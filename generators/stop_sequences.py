"""Finds a stop sequence whose beginning is stored and whose end a continuing call writes (PROTOCOL R75). Pure.

The model's API sees the text of its own call only, so it does not stop at such a sequence.
"""


class StopSequences:
    """Filters the first text of a continuing call. Holds text back while it may complete a stop sequence."""

    def __init__(self, stored: str, sequences: object) -> None:
        """`stored` is the text of the block that the call continues; `sequences` is the client's option."""
        given = sequences if isinstance(sequences, list) else []
        self._sequences = [one for one in given if isinstance(one, str) and one]
        longest = max(map(len, self._sequences), default=1)
        self._tail = stored[-(longest - 1) :] if longest > 1 else ""
        self._held = ""
        self.found: str | None = None
        """The stop sequence that the text has completed."""

    def filter(self, text: str) -> str:
        """Adds `text`; returns the text to pass on now."""
        if not self._tail:
            return text
        self._held += text
        may_follow = False
        for start in range(len(self._tail)):
            joined = self._tail[start:] + self._held
            seam = len(self._tail) - start
            for sequence in self._sequences:
                if len(sequence) > seam and joined.startswith(sequence):
                    self.found = sequence
                    return ""
                may_follow |= sequence.startswith(joined)
        return "" if may_follow else self.flush()

    def flush(self) -> str:
        """Ends the filter; returns the text held back, which completes no stop sequence."""
        held, self._held, self._tail = self._held, "", ""
        return held
