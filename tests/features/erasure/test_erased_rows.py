"""Erasure of a user in the database: rounds, follow-ups, sessions of others, inputs of batches."""

import msgspec
import pytest

from tailrace.persistence.paging import NEWEST
from tailrace.persistence.store import Store
from tailrace.proto.ids import TurnId
from tailrace.proto.resources import ChangeSession, DeleteResource
from tests.harness.stored_turns import (
    OURS,
    counting_reads,
    running_row,
    with_batch,
)
from tests.harness.turn_builder import NOON


@pytest.mark.parametrize(
    ("batch", "outcome", "is_released"),
    [("{}", "completed", True), ("{}", "running", False), (None, "completed", False)],
)
async def test_an_erasure_releases_the_inputs_of_batches_that_have_ended(
    store: Store, batch: str | None, outcome: str, is_released: bool
) -> None:
    """A running batch has inputs of other users to submit. The parent of other turns is no batch."""
    parent = msgspec.structs.replace(running_row("parent"), outcome=outcome, blobs='["inputs"]')
    child = running_row("child", parent="parent", user="ann", step=2)
    await store.record([with_batch(parent, batch), msgspec.structs.replace(child, blobs='["own"]')])
    await store.delete(OURS, DeleteResource("user", "ann", (TurnId("child"),)))
    assert await store.released_blobs(OURS) == (["inputs", "own"] if is_released else ["own"])
    assert await store.referenced_blobs(OURS, ["inputs", "own"]) == ([] if is_released else ["inputs"])


async def test_a_user_whose_turns_are_deleted_in_several_rounds_leaves_no_session(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session in which another user has a turn stays, without the name and the title."""
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 1)
    rows = [running_row(f"turn-{n}", session=f"session-{n}", user="ann", step=n) for n in range(3)]
    await store.record([*rows, running_row("turn-3", session="session-0", user="bob", step=3)])
    await store.change_session(OURS, ChangeSession("session-0", "Ann on rivers"))
    # The last turn of a session of another user.
    bobs = [
        running_row("turn-4", session="session-9", user="bob"),
        running_row("turn-5", session="session-9", user="ann"),
    ]
    await store.record(bobs)
    await store.delete(OURS, DeleteResource("turn", "turn-4", (TurnId("turn-4"),)))
    ann = DeleteResource("user", "ann")
    while turns := await store.turns_to_delete(OURS, ann):
        await store.delete(OURS, msgspec.structs.replace(ann, purged=tuple(turn.turn for turn in turns)))
    left = await store.sessions(OURS, None, NEWEST, 9, NOON, owner=None)
    assert [(one.session, one.user, one.title) for one in left] == [
        ("session-0", None, None),
        ("session-9", "bob", None),
    ]


async def test_an_erasure_in_rounds_reads_a_part_of_the_turns_and_deletes_follow_ups_before_their_parents(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of other users, which continue old and new turns of the user."""
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 10)
    ann, made, costs = DeleteResource("user", "ann"), 0, []
    for total in (40, 600):
        begun = [running_row(f"ann-{n:03}", step=n, user="ann") for n in range(made, total)]
        anns = [with_batch(msgspec.structs.replace(row, outcome="completed"), "{}") for row in begun]
        # One continues its parent at once, the other when the user has many newer turns.
        bobs = [
            running_row(f"bob-{n:03}", step=n + later, user="bob", parent=f"ann-{n:03}")
            for n, later in ((made + 3, 2000), (total - 3, 1))
        ]
        await store.record([*anns, *bobs])
        made = total
        async with counting_reads(store) as read:
            await store.turns_to_delete(OURS, ann)
        costs.append(sum(read))
    small, large = costs
    # PostgreSQL reads a small table as a whole.
    assert large < 2 * small or store.system == "postgresql"
    deleted: list[TurnId] = []
    while turns := await store.turns_to_delete(OURS, ann):
        assert len(turns) <= 10
        purged = tuple(turn.turn for turn in turns[:7])
        await store.delete(OURS, msgspec.structs.replace(ann, purged=purged))
        deleted += purged
    bobs_parents = {turn: turn.replace("bob", "ann") for turn in deleted if turn.startswith("bob")}
    assert (len(deleted), len(bobs_parents)) == (604, 4)
    assert [turn for turn, parent in bobs_parents.items() if deleted.index(TurnId(parent)) < deleted.index(turn)] == []
