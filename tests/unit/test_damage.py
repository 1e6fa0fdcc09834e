"""Continuity: the entries that a turn's log lacks."""

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.damage import Continuity
from tailrace.proto.entries import Entry, StoredEntry
from tailrace.proto.ids import Seq
from tests.harness import turn_builder
from tests.harness.turn_builder import NOON


def stored(seq: int, entry: Entry) -> StoredEntry:
    return StoredEntry(Seq(seq), NOON, entry)


def text(seq: int, after: int) -> StoredEntry:
    return stored(seq, turn_builder.text_delta(Chain(Seq(after), 1), "?"))


REQUEST = stored(1, turn_builder.request())
ATTEMPT = stored(2, turn_builder.attempt(Chain(Seq(1))))


@pytest.mark.rule("R144")
@pytest.mark.parametrize(
    ("later", "missing"),
    [
        ([text(3, 2), text(5, 3)], []),
        ([text(3, 2), text(4, 2), text(5, 4), text(6, 3)], []),
        ([text(3, 2), text(5, 4), text(6, 5)], [4]),
        ([text(5, 4), text(8, 7)], [4, 7]),
    ],
    ids=["whole", "fork", "gap", "gaps"],
)
def test_an_entry_that_is_named_and_not_stored_is_missing(later: list[StoredEntry], missing: list[Seq]) -> None:
    assert Continuity([REQUEST, ATTEMPT, *later]).missing == missing


@pytest.mark.rule("R144")
def test_the_first_entry_of_what_is_left_shows_a_lost_request() -> None:
    found = Continuity([ATTEMPT, text(3, 2)])
    assert (found.missing, found.chain.last) == ([1], 0)
