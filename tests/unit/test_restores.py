"""Which cursors name an entry of a restored log."""

import time

import pytest

from tailrace.deploy.nats.restores import new_epoch
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq
from tailrace.proto.nats import Rpc
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import record_from_fold
from tailrace.proto.restores import EPOCH_MAX, EPOCHS_AT, Restore, Restores
from tailrace.testing import MemoryLog
from tests.harness.turn_builder import KEY, completed_turn


def cursor(epoch: int, seq: int) -> int:
    return epoch * EPOCHS_AT + seq


# The log went on to 200 before the second restore, whose backup was older.
TWICE = Restores([Restore(7, Seq(100)), Restore(9, Seq(150))])
BACK = Restores([Restore(7, Seq(100)), Restore(9, Seq(50))])


@pytest.mark.rule("R150")
@pytest.mark.parametrize(
    ("restores", "sent", "seq"),
    [
        (Restores(), 100, 100),
        (Restores(), cursor(3, 1), cursor(3, 1)),
        (TWICE, 100, 100),
        (TWICE, 101, None),
        (TWICE, cursor(7, 150), 150),
        (TWICE, cursor(7, 151), None),
        (TWICE, cursor(9, 900), 900),
        (TWICE, cursor(8, 1), None),
        (BACK, 50, 50),
        (BACK, 51, None),
        (BACK, cursor(7, 51), None),
    ],
)
def test_a_cursor_names_its_entry_unless_a_restore_may_have_removed_it(
    restores: Restores, sent: int, seq: int | None
) -> None:
    assert restores.find(sent) == seq


@pytest.mark.rule("R150")
def test_an_id_has_the_newest_epoch_and_is_exact_in_javascript() -> None:
    assert TWICE.offset + 12 == 9_000_000_000_012
    assert cursor(EPOCH_MAX + 1, 0) < 2**53
    assert Restores().offset == 0


@pytest.mark.rule("R150")
@pytest.mark.parametrize(
    ("sent", "last"), [(0, 0), (80, 80), (120, 100), (cursor(7, 180), 150), (cursor(9, 180), 180), (cursor(8, 9), 0)]
)
def test_the_stream_of_a_session_goes_on_at_what_the_restored_log_has(sent: int, last: int) -> None:
    assert TWICE.find_last(sent) == last


def test_a_turn_has_the_tail_of_the_first_restore_after_its_request() -> None:
    assert [TWICE.find_tail(Seq(request)) for request in (100, 101, 151)] == [100, 150, None]
    assert [BACK.find_tail(Seq(request)) for request in (50, 51, 101)] == [50, 100, None]


def test_an_epoch_is_used_again_after_9000_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    began = 1_740_000_000
    found = set()
    for second in range(began, began + EPOCH_MAX):
        monkeypatch.setattr(time, "time", lambda second=second: second + 0.5)
        found.add(new_epoch())
    assert found == set(range(1, EPOCH_MAX + 1))


@pytest.mark.rule("R150")
async def test_the_cursor_of_a_record_is_an_id_of_the_turns_stream() -> None:
    """In a list and by itself, whether the turn runs or has ended."""
    log, turn = MemoryLog(), completed_turn("a", "b")
    log.restores, last = TWICE, turn.stored[-1].seq
    record = record_from_fold(KEY, fold(turn.stored))
    reader, key = TurnReader(log, HistoryClient(Rpc(MemoryLog.connection), 1.0)), ScopedKey.whole(KEY)
    assert (await reader.refresh(key, record)).cursor == reader.with_cursor(record).cursor == cursor(9, last)
    log.load(KEY, turn.stored[:-1])
    running = record_from_fold(KEY, fold(turn.stored[:-1]))
    assert (await reader.refresh(key, running)).cursor == cursor(9, turn.stored[-2].seq)
