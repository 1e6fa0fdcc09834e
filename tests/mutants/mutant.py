"""A rule taken away: an edit of the product's text, the scenario that provokes it, and who has to find out."""

from pathlib import Path

import msgspec


class Edit(msgspec.Struct, frozen=True):
    """`old`, which stands once in the file, becomes `new`."""

    path: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Fails when the text is not there any more: then the mutant has to be made anew."""
        file = root / self.path
        text = file.read_text()
        found = text.count(self.old)
        assert found == 1, f"{self.path} has this {found} times, and a mutant is made of it: {self.old!r}"
        file.write_text(text.replace(self.old, self.new))


class Mutant(msgspec.Struct, frozen=True):
    """`caught_by` is one of those that have to be false; others may be, too."""

    name: str
    edits: tuple[Edit, ...]
    scenario: str
    caught_by: str
