"""An immutable text to which a delta is added in constant time, for the states of dialects."""

from typing import NamedTuple


class GrowingText(NamedTuple):
    """A linked list of deltas, newest first."""

    last: str = ""
    before: "GrowingText | None" = None

    def plus(self, delta: str) -> "GrowingText":
        """Returns the text with `delta` added. Takes constant time: the deltas before it are shared, not copied."""
        return GrowingText(delta, self)

    def text(self) -> str:
        """Returns the whole text. Takes time in proportion to its deltas."""
        deltas: list[str] = []
        node: GrowingText | None = self
        while node is not None:
            deltas.append(node.last)
            node = node.before
        return "".join(reversed(deltas))
