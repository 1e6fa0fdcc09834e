"""Which sessions are old, in the database."""

from datetime import timedelta

import msgspec

from tailrace.features.retention.persistence import Age, OldSessions
from tailrace.persistence.rows import build_row, moment
from tailrace.persistence.store import Store
from tailrace.proto.ids import Seq, TurnId
from tailrace.proto.resources import DeleteResource
from tests.harness.stored_turns import (
    OURS,
    THEIRS,
    key,
)
from tests.harness.turn_builder import NOON, completed_turn


async def test_an_old_session_that_is_used_again_is_not_deleted(store: Store) -> None:
    """Retention has found it just before."""
    old = msgspec.structs.replace(build_row(key("turn-1"), completed_turn("Light").turn), session="old")
    theirs = msgspec.structs.replace(old, tenant=THEIRS)
    await store.record([old, msgspec.structs.replace(old, turn="turn-2", session="unused"), theirs])
    before, first, sessions = NOON + timedelta(days=1), Seq(old.cursor + 1), OldSessions(store)
    age = Age(before, first, NOON)
    assert await sessions.list(age) == [(OURS, "old"), (OURS, "unused"), (THEIRS, "old")]
    assert await sessions.list(age._replace(before=moment(max(old.asked_at, old.ended_at or 0)))) == []
    # The sequences of another log, which is younger than the turns, say nothing.
    assert await sessions.list(age._replace(first=Seq(1))) == []
    assert len(await sessions.list(Age(before, Seq(1), before))) == 3
    late = build_row(key("turn-3"), completed_turn("Light").turn)
    await store.record([msgspec.structs.replace(late, session="old", cursor=first)])
    for session, turn, is_deleted in (("old", "turn-1", False), ("unused", "turn-2", True)):
        what = DeleteResource("session", session, (TurnId(turn),))
        assert await sessions.delete(OURS, what, age) == is_deleted
        assert (await store.turn(key(turn)) is None) == is_deleted
        assert (await store.session(OURS, session, NOON) is None) == is_deleted
