"""The count of tokens without readers: one task looks at all turns, and counts each once."""

import asyncio
from typing import Any

import pytest

from tailrace.features.unread_tokens import gateway as unread_tokens
from tailrace.features.unread_tokens.gateway import UNREAD_TOKENS, UnreadTokens
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.runtime.flag import Flag
from tests.harness.turn_builder import completed_turn
from tests.harness.until import until

MODEL = "claude-haiku-5-5"
OUTPUT_TOKENS = 2


class Turns:
    """The presence of readers of some turns, all of which have the same stored answer."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.group = group
        self.draining = Flag()
        self.fan_out = self.log = self
        self.read = set[TurnKey]()
        self.over = set[TurnKey]()
        self.lost = set[TurnKey]()
        self.looks: list[TurnKey] = []

    def has_readers(self, key: TurnKey) -> bool:
        self.looks.append(key)
        return key in self.read

    async def is_over(self, key: TurnKey) -> bool:
        if key in self.lost:
            raise LogUnavailable("away")
        return key in self.over

    async def has_end(self, key: TurnKey) -> bool:
        return await self.is_over(key)

    async def has_readers_anywhere(self, _: TurnKey) -> bool:
        return False

    async def read_entries(self, _: TurnKey, after: Seq) -> list[StoredEntry]:
        return [] if after else completed_turn("a", "b").stored


def counted() -> float:
    return float(UNREAD_TOKENS.labels(MODEL)._value.get())  # noqa: SLF001  # it has no public getter


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_LOOK_S", "LOOK_EVERY_S", "TICK_S"):
        monkeypatch.setattr(unread_tokens, name, 0.01)


async def test_turns_without_readers_are_counted_once_when_they_have_ended() -> None:
    """Also while the log is unavailable for another turn, which is not counted."""
    before = counted()
    async with asyncio.TaskGroup() as group:
        turns: Any = Turns(group)
        unread = UnreadTokens(turns)
        quiet, read, lost = (TurnKey(Tenant("a"), TurnId(name)) for name in ("quiet", "read", "lost"))
        turns.read.add(read)
        turns.lost.add(lost)
        for key in (quiet, read, lost):
            unread.watch_readers(key, MODEL)
        await until(lambda: turns.looks.count(quiet) > 2 and turns.looks.count(read) > 2)
        assert counted() == before
        turns.read.clear()
        turns.over |= {quiet, read}
        # The task ends, as it has no more turns to watch.
        await until(lambda: unread._task is None)  # noqa: SLF001
        # A turn that had readers at each look has no tokens without.
        assert counted() - before == OUTPUT_TOKENS
        assert turns.looks.count(lost) == 1
        unread.watch_readers(TurnKey(Tenant("a"), TurnId("next")), MODEL)
        await until(lambda: turns.looks[-1].turn == "next")
        turns.draining.set()


async def test_a_draining_gateway_counts_the_turns_that_have_ended_and_forgets_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No turn is looked at a second time before the drain.
    monkeypatch.setattr(unread_tokens, "LOOK_EVERY_S", 60)
    before = counted()
    async with asyncio.TaskGroup() as group:
        turns: Any = Turns(group)
        unread = UnreadTokens(turns)
        ended, running = (TurnKey(Tenant("a"), TurnId(name)) for name in ("ended", "running"))
        for key in (ended, running):
            unread.watch_readers(key, MODEL)
        await until(lambda: {ended, running} <= set(turns.looks))
        turns.over.add(ended)
        turns.draining.set()
    assert counted() - before == OUTPUT_TOKENS
