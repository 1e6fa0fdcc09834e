"""Items of `input` that name an output item of an earlier response."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Rpc
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.openai.item_references import READ_AT_ONCE, insert_items
from tailrace.protocols.openai.responses_input import InputItem
from tailrace.testing import MemoryLog
from tests.harness.scripted_log import KEY
from tests.harness.turn_builder import completed_turn

COUNT = 50
REFERENCE = InputItem(type="item_reference", id=f"msg_{KEY.turn}_0")
ANSWER = "a" * 10_000


def reader_of_ended_turn() -> TurnReader:
    log = MemoryLog()
    log.load(KEY, completed_turn(ANSWER).stored)
    return TurnReader(log, HistoryClient(Rpc(log.connection), 1.0))


async def insert(items: Any, bytes_max: int) -> tuple[list[InputItem], int]:
    replaced, inserted_bytes = await insert_items(items, Scope(Tenant("t"), WHOLE), reader_of_ended_turn(), bytes_max)
    return cast("list[InputItem]", replaced), inserted_bytes


async def test_other_tasks_run_while_many_items_are_inserted() -> None:
    """The size of the inserted items decides with the body whether a thread converts the request."""
    inserting, runs = asyncio.create_task(insert([REFERENCE] * COUNT, 10**6)), 0
    while not inserting.done():
        runs += 1
        await asyncio.sleep(0)
    items, inserted_bytes = await inserting
    assert runs >= COUNT
    assert [one.role for one in items] == ["assistant"] * COUNT
    assert COUNT * len(ANSWER) < inserted_bytes < COUNT * len(ANSWER) * 1.1


async def test_inserted_items_are_limited_together() -> None:
    with pytest.raises(Refused, match="have more than 45000 bytes") as refused:
        await insert([REFERENCE] * 5, 45_000)
    assert refused.value.code == "body_too_large"
    assert len((await insert([REFERENCE] * 4, 45_000))[0]) == 4


class Slow(TurnReader):
    """The reader of turns that have left the log, of which each takes a while."""

    def __init__(self) -> None:
        super().__init__(MemoryLog(), HistoryClient(Rpc(MemoryLog.connection), 1.0))
        self.running = self.most = self.reads = 0

    async def read(self, key: ScopedKey) -> TurnRecord:
        self.reads += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return record_from_fold(key.plain, completed_turn(ANSWER).turn)


async def test_responses_are_read_some_at_a_time() -> None:
    """So that a long conversation of yesterday is not delayed, and no more is read than the limit allows."""
    given = [msgspec.structs.replace(REFERENCE, id=f"msg_turn-{number}_0") for number in range(40)]
    turns = Slow()
    replaced, _ = await insert_items([*given, *given], Scope(Tenant("t"), WHOLE), turns, 10**6)
    assert len(replaced) == 80
    assert (turns.most, turns.reads) == (READ_AT_ONCE, 40)
    turns = Slow()
    with pytest.raises(Refused, match="have more than 45000 bytes"):
        await insert_items(given, Scope(Tenant("t"), WHOLE), turns, 45_000)
    assert turns.reads == READ_AT_ONCE


async def test_a_text_and_other_items_stay_as_they_are() -> None:
    question = msgspec.convert({"role": "user", "content": "hi"}, InputItem)
    assert [await insert(given, 1) for given in ("hi", [question])] == [("hi", 0), ([question], 0)]
