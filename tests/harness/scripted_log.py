"""ScriptedServer: a LogServer with given answers, which records the requests and their times."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from tailrace.proto.entries import Entry, StoredEntry
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats.log_server import PAGE_MAX, Count, EntryPage, LiveFeed

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
NOTHING = EntryPage([], is_last=True)


def page(*stored: StoredEntry, is_last: bool = True) -> EntryPage:
    return EntryPage(list(stored), is_last=is_last)


class Request(NamedTuple):
    name: str
    arguments: tuple[Any, ...]
    at_s: float


class ScriptedServer:
    """Answers the requests of each method in the given order; the last answer is repeated. Exceptions are raised.

    Every request must name the turn `KEY`. `last_request` answers `last_seq` for entries of the kind `request`.
    """

    damaged: frozenset[TurnKey] = frozenset()

    def __init__(self, **answers: Sequence[Any]) -> None:
        self.requests: list[Request] = []
        self.forkless_after: Seq | None = None
        self._answers = {name: list(given) for name, given in answers.items()}

    @property
    def names(self) -> list[str]:
        """The methods that were called, in order."""
        return [request.name for request in self.requests]

    def times(self, name: str) -> list[float]:
        """When the method was called, in seconds of the loop."""
        return [request.at_s for request in self.requests if request.name == name]

    async def publish(self, key: TurnKey, entry: Entry, fence: Seq) -> Seq:
        seq: Seq = self._answer("publish", key, entry, fence)
        return seq

    async def read(self, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        answer: EntryPage = self._answer("read", key, after, limit)
        return answer

    async def read_first(self, key: TurnKey) -> EntryPage:
        answer: EntryPage = self._answer("read_first", key)
        return answer

    async def last_seq(self, key: TurnKey, kind: str | None = None) -> Seq:
        seq: Seq = self._answer(f"last_{kind}" if kind else "last_seq", key)
        return seq

    async def has_entry(self, key: TurnKey, seq: Seq) -> bool:
        answer: bool = self._answer("has_entry", key, seq)
        return answer

    async def count(self, key: TurnKey) -> Count:
        count: Count = self._answer("count", key)
        return count

    def is_forkless(self, key: TurnKey, request: Seq) -> bool:
        assert key == KEY
        return self.forkless_after is not None and request > self.forkless_after

    async def has_recorded_end(self, key: TurnKey) -> bool | None:
        return None if "has_recorded_end" not in self._answers else self._answer("has_recorded_end", key)

    async def note_damage(self, key: TurnKey, lost: str) -> None:
        raise AssertionError(f"{key.turn} is damaged: {lost}")

    async def purge(self, key: TurnKey) -> None:
        raise NotImplementedError

    def subscribe(self, key: TurnKey, kind: str = ">") -> AbstractAsyncContextManager[LiveFeed]:
        raise NotImplementedError

    def _answer(self, name: str, key: TurnKey, *arguments: Any) -> Any:
        assert key == KEY
        self.requests.append(Request(name, arguments, asyncio.get_running_loop().time()))
        answers = self._answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer
