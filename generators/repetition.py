"""Where a broken answer is taken up: what the model says there a second time. Pure; it leaves nothing out by guess.

Words are repeated for certain, and left out, when what comes begins with the very end of what is stored, character by
character; when that is `REPEATED_MIN` characters or more without the white space, begins with a word, and does not end
a line; and when its last `REPEATED_MIN` characters stand nowhere else in the answer. So a refrain, a table's next
row and the next closing brace are told, and so is half a sentence that is told twice in other words.
"""

REPEATED_MIN = 24


class RepetitionFilter:
    """A continuing call's first text, beside the text that it goes on from: held while it may be a repetition."""

    def __init__(self, stored: str) -> None:
        self._stored = stored
        self._tail = tail(stored)
        # What the answer has said before it may be about to say again, and who ends a line may begin another like it.
        is_telling = bool(self._tail) and not self._tail.rstrip(" ").endswith("\n")
        self._is_open = is_telling and stored.find(self._tail) == len(stored) - len(self._tail)
        self._held = ""

    def take(self, text: str) -> tuple[str, int]:
        """What there is to tell after `text` has come, and how many characters were left out before it."""
        if not self._is_open:
            return text, 0
        self._held += text
        repeated = self._repeated()
        if repeated or not self._may_be_repeated():
            return self.rest()[repeated:], repeated
        return "", 0

    def rest(self) -> str:
        """What was held and is no whole repetition, since something else follows it."""
        held, self._held, self._is_open = self._held, "", False
        return held

    def _repeated(self) -> int:
        found = self._held.find(self._tail)
        if found < 0:
            return 0
        # There is no second place to look at: the tail would stand twice in what is stored.
        chars = found + len(self._tail)
        is_end = self._stored.endswith(self._held[:chars])
        return chars if is_end and begins_word(self._stored, len(self._stored) - chars) else 0

    def _may_be_repeated(self) -> bool:
        last = len(self._stored) - len(self._tail)
        place = self._stored.find(self._held)
        while 0 <= place <= last:
            if begins_word(self._stored, place):
                return True
            place = self._stored.find(self._held, place + 1)
        return False


def tail(text: str) -> str:
    """The end of `text` that has so many characters without the white space; empty when it has fewer."""
    solid = 0
    for place in range(len(text) - 1, -1, -1):
        solid += not text[place].isspace()
        if solid == REPEATED_MIN:
            return text[place:]
    return ""


def begins_word(text: str, place: int) -> bool:
    """Whether no word is cut in two before `place`."""
    return not place or not (text[place - 1].isalnum() and text[place].isalnum())
