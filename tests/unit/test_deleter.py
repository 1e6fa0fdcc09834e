"""The order of a deletion: running turns are cancelled, the log is purged, and then the rows are deleted."""

from collections.abc import Sequence
from typing import Any

import pytest

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.delete import Deleter, DeletionSteps, RunningDeletion
from tailrace.proto.entries import End
from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats.log_server import PAGE_MAX, EntryPage
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.resources import DeletedRows, DeleteResource, Remaining, TurnToDelete
from tailrace.testing import MemoryCounters, MemoryLog, MemorySlots, MemoryTombstones
from tests.harness.turn_builder import Handwritten, completed_turn, started_turn

TENANT = Tenant("acme")


def key(number: int) -> TurnKey:
    return TurnKey(TENANT, TurnId(f"turn-{number}"))


class Rows(HistoryClient):
    """The database of the turns in a log: a row of a turn is deleted once the gateway names the turn as purged."""

    def __init__(self, log: MemoryLog) -> None:
        self.left = list(log.stored)
        self.log = log
        self.early: list[TurnId] = []
        """Turns that were purged before persistence knew their end, or whose rows were deleted before they were purged.

        Persistence would record them again.
        """
        self._running: set[TurnId] = set()

    async def query(self, _: Scope, query: Any) -> Any:
        assert isinstance(query, DeleteResource)
        purged = [one for one in self.left if one.turn in query.purged]
        self.early += [one.turn for one in purged if one in self.log.stored or one.turn in self._running]
        self.left = [one for one in self.left if one not in purged]
        newest_first = self.left[::-1]
        turns = [TurnToDelete(one.turn, is_running=await self._is_running(one)) for one in newest_first]
        self._running = {one.turn for one in turns if one.is_running}
        return Remaining(turns, DeletedRows(turns=len(purged)))

    async def _is_running(self, key: TurnKey) -> bool:
        return key in self.log.stored and (await self.log.read_turn(ScopedKey.whole(key))).ended_at is None


def build(monkeypatch: pytest.MonkeyPatch, turns: Sequence[Handwritten]) -> tuple[Deleter, Rows, MemoryTombstones]:
    log, tombstones = MemoryLog(), MemoryTombstones()
    for number, turn in enumerate(turns):
        log.load(key(number), turn.stored)
    doubles = {"Tombstones": tombstones, "Counters": MemoryCounters(), "Slots": MemorySlots()}
    for name, double in doubles.items():
        monkeypatch.setattr(f"tailrace.gateway.turns.delete.{name}", lambda _, double=double: double)
    rows = Rows(log)
    return Deleter(log.connection, log, rows), rows, tombstones


@pytest.mark.rule("R35")
async def test_a_running_turn_is_marked_and_cancelled_and_nothing_is_purged_before_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its generator would write to a purged log, and its webhook would be sent."""
    deleter, rows, tombstones = build(monkeypatch, [completed_turn("a"), started_turn("b")])
    marked, released = [], []
    cancelled = MemoryLog.publish

    async def publish(log: MemoryLog, key: TurnKey, entry: Any, fence: Any) -> Any:
        if isinstance(entry, End):
            marked.append((key in tombstones.marked, len(log.stored)))
        return await cancelled(log, key, entry, fence)

    async def release(key: TurnKey, turn: Turn) -> None:
        released.append((key, turn.outcome))

    async def ignore(*_: object) -> None: ...

    monkeypatch.setattr(MemoryLog, "publish", publish)
    deleter.steps.append(DeletionSteps(begin=ignore, release=release, withdraw=ignore))
    assert await deleter.delete(Scope(TENANT, WHOLE), "session", "s") == 2
    assert marked == [(True, 2)]
    assert set(released) == {(key(0), "completed"), (key(1), "cancelled")}
    assert (rows.log.stored, rows.left, rows.early) == ({}, [], [])


@pytest.mark.rule("R91")
async def test_an_erasure_counts_each_turn_entry_and_row_once_over_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.gateway.turns.delete.ERASED_TURNS", 2)
    deleter, rows, _ = build(monkeypatch, [completed_turn(text) for text in "abcde"])
    entries = sum(map(len, rows.log.stored.values()))
    deletion = RunningDeletion(erases=True)
    assert await deleter.run(Scope(TENANT, WHOLE), "user", "u", deletion)
    assert deletion.results() == (5, entries, DeletedRows(turns=5))
    assert (rows.log.stored, rows.left, rows.early) == ({}, [], [])


@pytest.mark.rule("R91")
async def test_an_erasure_whose_time_is_over_has_done_one_round_and_the_next_request_does_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tailrace.gateway.turns.delete.ERASED_TURNS", 2)
    deleter, rows, _ = build(monkeypatch, [completed_turn(text) for text in "abc"])
    parts = [RunningDeletion(erases=True, within_s=0.0) for _ in range(2)]
    assert [await deleter.run(Scope(TENANT, WHOLE), "user", "u", part) for part in parts] == [False, True]
    assert [len(part.turns) for part in parts] == [2, 1]
    assert rows.early == []


class BehindLog(MemoryLog):
    """Each first read is from a replica that has not stored the turn yet. Later ones find the owner, as in NATS."""

    def __init__(self) -> None:
        super().__init__()
        self._read = set[TurnKey]()

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        if key not in self._read:
            self._read.add(key)
            return EntryPage([], is_last=True, following=0)
        return await super().read(key, after, limit)


@pytest.mark.rule("R146")
async def test_a_private_user_deletes_no_turn_of_another_one_while_a_replica_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Persistence knows no owner of a turn with `store: false`."""
    hers = Handwritten()
    hers.store_request(owner="ann", store=False)
    monkeypatch.setattr("tests.unit.test_deleter.MemoryLog", BehindLog)
    deleter, rows, _ = build(monkeypatch, [hers])
    with pytest.raises(Refused) as refused:
        await deleter.delete(Scope(TENANT, "bob"), "turn", key(0).turn)
    assert (refused.value.code, len(rows.log.stored)) == ("turn_not_found", 1)
    assert await deleter.delete(Scope(TENANT, "ann"), "turn", key(0).turn) == 1
    # The log has left it, and persistence checks the owner.
    rows.left = [key(0)]
    assert await deleter.delete(Scope(TENANT, "ann"), "turn", key(0).turn) == 1


async def test_a_deletion_ends_with_an_error_when_clients_submit_more_turns_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deleter, *_ = build(monkeypatch, [completed_turn("a")])

    async def query(_: Rows, *__: object) -> Remaining:
        return Remaining([TurnToDelete(key(0).turn, is_running=False)])

    monkeypatch.setattr(Rows, "query", query)
    with pytest.raises(Refused, match="submit") as refused:
        await deleter.delete(Scope(TENANT, WHOLE), "session", "s")
    assert refused.value.code == "session_busy"
