"""A text that grows piece by piece in an immutable state: adding one costs the same however long it is."""

from typing import NamedTuple


class Pieces(NamedTuple):
    """The newest piece first, then what was there before it."""

    piece: str = ""
    before: "Pieces | None" = None

    def plus(self, piece: str) -> "Pieces":
        return Pieces(piece, self)

    def text(self) -> str:
        found: list[str] = []
        pieces: Pieces | None = self
        while pieces is not None:
            found.append(pieces.piece)
            pieces = pieces.before
        return "".join(reversed(found))
