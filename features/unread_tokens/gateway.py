"""Counts the tokens that turns generated while no reader was connected to any gateway.

The gateway that accepted a turn checks every few seconds whether the turn has readers. It asks other gateways only if
it has none itself. From the times at which the deltas were stored, it then computes the share without readers.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import count

from prometheus_client import Counter

from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.feed import is_delta
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.proto.entries import End
from tailrace.proto.errors import LogError
from tailrace.proto.ids import BEFORE_FIRST, TurnKey
from tailrace.proto.models import model_label
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.runtime.settings import NoSettings

# A client that creates a turn and then opens its stream needs a moment.
FIRST_LOOK_S = 1.0
LOOK_EVERY_S = 5.0
TICK_S = 0.2

UNREAD_TOKENS = Counter(
    "tailrace_gateway_unread_tokens_total",
    "Output tokens that turns accepted here generated while no reader was connected to any gateway, by model; an "
    "estimate from a look at the readers every 5 s, counted at a turn's end; without turns of less than a second",
    ["model"],
)


@dataclass(frozen=True, eq=False)
class WatchedTurn:
    """A turn, and what each look at its readers has found."""

    key: TurnKey
    model: str
    times: list[datetime] = field(default_factory=list)
    is_unread: list[bool] = field(default_factory=list)

    def note(self, time: datetime, *, is_unread: bool) -> None:
        """Adds a look. Of consecutive looks with the same result, only the last is kept."""
        if self.is_unread[-1:] == [is_unread]:
            self.times[-1] = time
        else:
            self.times.append(time)
            self.is_unread.append(is_unread)


class UnreadTokens:
    """Watches the turns that this gateway has accepted, in one task, which runs while there are any."""

    def __init__(self, presence: ReaderPresence) -> None:
        self._presence = presence
        self._due: list[tuple[float, int, WatchedTurn]] = []
        """A heap: when to look at each turn again, in seconds of the event loop's clock."""
        self._numbers = count()
        self._task: asyncio.Task[None] | None = None

    def watch_readers(self, key: TurnKey, model: str) -> None:
        """Begins to watch a stored turn."""
        self._look_in(FIRST_LOOK_S, WatchedTurn(key, model))
        if self._task is None:
            self._task = self._presence.group.create_task(self._watch())

    def _look_in(self, wait_s: float, turn: WatchedTurn) -> None:
        # The number compares turns that are due at the same time.
        heappush(self._due, (asyncio.get_running_loop().time() + wait_s, next(self._numbers), turn))

    async def _watch(self) -> None:
        """Looks at each turn when it is due, until the gateway drains. Then counts the ended turns."""
        now = asyncio.get_running_loop().time
        while self._due:
            if await is_set_within(self._presence.draining, TICK_S):
                await asyncio.gather(*(self._count_if_ended(turn) for _, _, turn in self._due))
                break
            due = list[WatchedTurn]()
            while self._due and self._due[0][0] <= now():
                due.append(heappop(self._due)[2])
            await asyncio.gather(*map(self._look, due))
        self._task = None

    async def _look(self, turn: WatchedTurn) -> None:
        """Looks for readers. Counts a turn that has ended, unless the log is unavailable."""
        presence, key = self._presence, turn.key
        with suppress(LogError):
            has_readers = presence.fan_out.has_readers(key)
            if not has_readers:
                if await presence.is_over(key):
                    await self._count(turn)
                    return
                has_readers = await presence.has_readers_anywhere(key)
            turn.note(datetime.now(UTC), is_unread=not has_readers)
            self._look_in(LOOK_EVERY_S, turn)

    async def _count_if_ended(self, turn: WatchedTurn) -> None:
        """Counts a turn that has ended. The tokens of a turn that runs on are not known yet."""
        with suppress(LogError):
            if await self._presence.log.has_end(turn.key):
                await self._count(turn)

    async def _count(self, turn: WatchedTurn) -> None:
        if any(turn.is_unread):
            tokens = await _count_unread(self._presence.log, turn.key, turn.times, turn.is_unread)
            UNREAD_TOKENS.labels(model_label(turn.model)).inc(tokens)


async def _count_unread(log: TurnLog, key: TurnKey, times: Sequence[datetime], is_unread: Sequence[bool]) -> float:
    """Returns the output tokens of an ended turn, times the share of its deltas that were stored without readers.

    A delta belongs to the look after it, else to the last look.
    """
    deltas = unread = tokens = 0
    after = BEFORE_FIRST
    while page := await log.read_entries(key, after):
        after = page[-1].seq
        for stored in page:
            if isinstance(stored.entry, End):
                tokens = stored.entry.usage.output_tokens
            elif is_delta(stored):
                deltas += 1
                unread += is_unread[min(bisect_left(times, stored.at), len(times) - 1)]
    return tokens * unread / deltas if deltas else 0.0


def start(gateway: Gateway, _: NoSettings) -> Parts:
    """Makes the step that begins to watch a stored turn."""
    return Parts(steps=OptionalSteps(watch_readers=UnreadTokens(gateway.presence).watch_readers))


FEATURE = Feature(NoSettings, start)
