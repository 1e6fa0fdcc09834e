"""Deletion of sessions by age: in persistence, with a real log."""

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.usage.records import GetUsage, UsagePage
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.records import GetTurn, TurnRecord
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_writer import OURS, write_turn
from tests.harness.until import until_equal


async def is_there(persistence: Persistence, key: TurnKey) -> bool:
    try:
        await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)
    except Refused as refused:
        if refused.code != "turn_not_found":
            raise
        return False
    return True


@pytest.mark.rule("R92")
async def test_a_session_that_was_not_used_for_long_is_deleted_when_the_log_has_none_of_it(
    own_server: NatsServer, own_log: TurnLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one whose turn is still in the log, nor one that was used. The usage stays counted.

    The clock of this machine is wrong by a year, and does not count.
    """

    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=365)

    monkeypatch.setattr("tailrace.features.retention.persistence.datetime", WrongClock)
    database = tmp_path / "tailrace.db"
    old, used, in_log = [await write_turn(own_log, "Light", session=name) for name in ("old", "used", "in-log")]
    async with Persistence(own_server.url, database) as persistence:
        record = await persistence.ask(OURS, "turn", GetTurn(in_log.turn), TurnRecord)
    for key in (old, used):
        await own_log.purge(key)
    with closing(sqlite3.connect(database)) as writing:
        writing.execute("UPDATE sessions SET updated_at = 1 WHERE session <> 'used'")
        writing.commit()
    async with Persistence(own_server.url, database) as persistence:
        assert await is_there(persistence, old)
    async with Persistence(own_server.url, database, history_days=2) as persistence:
        await until_equal(lambda: is_there(persistence, old), False)
        assert (await is_there(persistence, used), await is_there(persistence, in_log)) == (True, True)
        day = record.asked_at.date()
        usage = await persistence.ask(OURS, "usage", GetUsage("day", day, day), UsagePage)
        assert [one.turns for one in usage.usage] == [3]
