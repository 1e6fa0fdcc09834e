"""Filters for the text of a continuation, the model call that asks for the rest of a stored answer. Pure.

One filter removes repetitions, one finds stop sequences. Each holds text back while it cannot decide, and passes other
text on.
"""

REPEATED_MIN = 24


class RepetitionFilter:
    """Leaves out text that the call repeats from the end of the stored answer; removes nothing by guess.

    Text counts as repeated only if all of this holds: it equals the very end of the stored text, character by
    character; it has REPEATED_MIN or more characters that are not white space; it begins with a word; it does not end a
    line; and its last REPEATED_MIN characters occur nowhere else in the stored text. So a refrain, the next row of a
    table, a closing brace and a sentence that is repeated in other words are all kept.
    """

    def __init__(self, stored: str) -> None:
        self._stored = stored
        self._tail = find_tail(stored)
        self._is_active = is_unique(stored)
        self._held = ""

    def filter(self, text: str) -> tuple[str, str]:
        """Adds `text`; returns the text to pass on now, and the text that was left out before it."""
        if not self._is_active:
            return text, ""
        self._held += text
        repeated = self._count_repeated()
        if repeated or not self._may_be_repeated():
            held = self.flush()
            return held[repeated:], held[:repeated]
        return "", ""

    def flush(self) -> str:
        """Ends the filter; returns the text held back, which is no complete repetition."""
        held, self._held, self._is_active = self._held, "", False
        return held

    def _count_repeated(self) -> int:
        found = self._held.find(self._tail)
        if found < 0:
            return 0
        # The tail occurs once in the stored text, so this is the only position to compare.
        chars = found + len(self._tail)
        is_end = self._stored.endswith(self._held[:chars])
        return chars if is_end and begins_word(self._stored, len(self._stored) - chars) else 0

    def _may_be_repeated(self) -> bool:
        last = len(self._stored) - len(self._tail)
        position = self._stored.find(self._held)
        while 0 <= position <= last:
            if begins_word(self._stored, position):
                return True
            position = self._stored.find(self._held, position + 1)
        return False


def is_unique(text: str) -> bool:
    """Returns whether the end of `text` is long, occurs only there, and does not end a line.

    Then its repetition is no refrain, no row of a table and no closing brace.
    """
    tail = find_tail(text)
    return bool(tail) and not ends_line(tail) and text.find(tail) == len(text) - len(tail)


def find_tail(text: str) -> str:
    """Returns the end of `text` with REPEATED_MIN characters that are not white space; empty if it has fewer."""
    solid = 0
    for position in range(len(text) - 1, -1, -1):
        solid += not text[position].isspace()
        if solid == REPEATED_MIN:
            return text[position:]
    return ""


def ends_line(text: str) -> bool:
    """Returns whether `text` ends a line. Another line like it may follow."""
    return text.rstrip(" ").endswith("\n")


def begins_word(text: str, position: int) -> bool:
    """Returns whether `position` is not inside a word."""
    return not position or not (text[position - 1].isalnum() and text[position].isalnum())


class StopSequenceFilter:
    """Finds a stop sequence whose beginning is stored and whose end the continuing call writes (PROTOCOL R75).

    The model's API sees the text of its own call only, so it does not stop at such a sequence.
    """

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
            stored_chars = len(self._tail) - start
            for sequence in self._sequences:
                if len(sequence) > stored_chars and joined.startswith(sequence):
                    # The text belongs to the sequence, or comes after it.
                    self.found, self._held = sequence, ""
                    return ""
                may_follow |= sequence.startswith(joined)
        return "" if may_follow else self.flush()

    def flush(self) -> str:
        """Ends the filter; returns the text held back, which completes no stop sequence."""
        held, self._held, self._tail = self._held, "", ""
        return held
