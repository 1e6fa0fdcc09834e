"""Items of `input` that name an output item of an earlier response."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from tailrace.gateway.clients.openai.item_references import insert_items
from tailrace.gateway.clients.openai.responses_input import InputItem
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.harness.scripted_log import KEY
from tests.harness.turn_builder import completed_turn

COUNT = 50
REFERENCE = InputItem(type="item_reference", id=f"msg_{KEY.turn}_0")
ANSWER = "a" * 10_000


class Answered:
    """The reader of one turn, which has ended."""

    async def read(self, key: TurnKey) -> TurnRecord:
        assert key == KEY
        return record_from_fold(key, completed_turn(ANSWER).turn)


async def insert(items: Any, bytes_max: int) -> tuple[list[InputItem], int]:
    replaced, inserted_bytes = await insert_items(items, Tenant("t"), cast("TurnReader", Answered()), bytes_max)
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


async def test_a_text_and_other_items_stay_as_they_are() -> None:
    question = msgspec.convert({"role": "user", "content": "hi"}, InputItem)
    assert [await insert(given, 1) for given in ("hi", [question])] == [("hi", 0), ([question], 0)]
