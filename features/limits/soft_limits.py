"""Soft limits: has persistence compare a budget with the recorded usage when a share of it may be reached.

A turn costs nothing here: its admission has read what is spent or reserved. As long as that may reach the next share,
a background task asks persistence what is spent, which stores a webhook for each share once (records.py).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog

from tailrace.features.common.budgets import Budget
from tailrace.features.limits.quotas import Owner, Quota
from tailrace.features.limits.records import CheckBudget
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats import Counters
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.runtime.race import is_set_within

logger = structlog.get_logger()

# The wait between two comparisons of the same budget, while its running turns may reach a share.
EVERY_S = 5.0
# Turns of many clients that reach a share together are compared once.
PAUSE_S = 0.5
# A turn is admitted without the comparison if persistence does not answer sooner.
FIRST_WAIT_S = 1.0
# A turn whose counter NATS has lost is refused after this time: what was spent is not known.
LOST_WAIT_S = 5.0
BUDGETS: tuple[Budget, ...] = ("usd_day", "usd_month")


class Watched(NamedTuple):
    """A budget that is to be compared. `key` is the id of the credential that has used it."""

    owner: Owner
    quota: Quota
    key: str | None
    is_refused: bool = False


class SoftLimits:
    """The shares of budgets, in percent, and the budgets that may reach one of them.

    `ids_of(key)` returns the ids of the credentials that share the budget of this one.
    """

    def __init__(
        self,
        percents: Sequence[int],
        counters: Counters,
        history: HistoryClient,
        ids_of: Callable[[str | None], list[str]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._percents = percents
        self._counters = counters
        self._history = history
        self._ids_of = ids_of
        self._now = now
        self._watched: dict[str, Watched] = {}
        """By the subjects of the counters."""
        self._reached: dict[str, tuple[Quota, int]] = {}
        """The share that each compared budget has reached, by the same subjects."""
        self._spent: dict[str, int] = {}
        """The spent amount of each budget when it was compared last, by the same subjects. Its counter is not below."""
        self._newest = BEFORE_FIRST
        """The sequence of the newest increment in the stream of the counters."""
        self._losses = 0
        """How often the stream was lost."""
        self._lost: set[str] = set()
        """The subjects of the counters that were lost with it, until they are compared."""
        self._first: dict[tuple[str, int], asyncio.Task[int]] = {}
        """The first comparison of each budget for a turn, by the subject of its counter and its size."""
        self._added = asyncio.Event()

    def watch(self, owner: Owner, quota: Quota, counted: int, key: str | None, *, is_refused: bool = False) -> None:
        """Notes that the counter of a budget has reached `counted`, or that the budget has refused a turn.

        A budget that was not compared before is compared until that has succeeded.
        """
        if self._next(quota) is None:
            return
        if is_refused or not self.is_known(quota) or self._may_reach(quota, counted):
            was_refused = quota.subject in self._watched and self._watched[quota.subject].is_refused
            self._watched[quota.subject] = Watched(owner, quota, key, is_refused or was_refused)
            self._added.set()

    async def check(self, owner: Owner, quota: Quota, key: str | None, *, is_refused: bool = False) -> int:
        """Has persistence compare a budget. Returns what is spent, in nano-dollars. Raises Refused, LogUnavailable.

        The counter then has at least this amount: persistence adds what it lacks.
        """
        losses = self._losses
        renews_at = datetime.fromtimestamp(quota.renews_at, UTC)
        is_of_key = quota.noun == "key"
        state = await self._history.query(
            Scope(owner.tenant, WHOLE),
            CheckBudget(
                name=quota.subject,
                budget="usd_day" if quota.what == "usd_day" else "usd_month",
                key=key if is_of_key else None,
                keys=self._ids_of(key) if is_of_key else None,
                limit_nano_usd=quota.most,
                first=(renews_at - timedelta(seconds=quota.window_s)).date(),
                last=(renews_at - timedelta(days=1)).date(),
                renews_at=renews_at,
                percents=list(self._percents),
                is_refused=is_refused,
            ),
        )
        self._reached[quota.subject] = (quota, state.reached_percent)
        self._spent[quota.subject] = state.spent_nano_usd
        if losses == self._losses:
            self._lost.discard(quota.subject)
        return state.spent_nano_usd

    async def complete(self, owner: Owner, quota: Quota, key: str | None) -> None:
        """Compares a budget that this process has not compared, before a turn is counted: see `check`.

        If persistence does not answer, the turn does not wait, and the comparison is repeated in the background.
        """
        if not self.is_known(quota):
            await self._compare_first(owner, quota, key, FIRST_WAIT_S)

    async def complete_again(self, owner: Owner, quota: Quota, key: str | None) -> None:
        """Like `complete`, for a budget whose counter NATS has lost since this process compared it.

        Raises LogUnavailable if it is lost for certain and persistence does not answer.
        """
        if (first := self._first.get((quota.subject, quota.most))) is not None and first.done():
            del self._first[quota.subject, quota.most]
        is_certain = quota.subject in self._lost
        await self._compare_first(owner, quota, key, LOST_WAIT_S if is_certain else FIRST_WAIT_S)
        if is_certain and quota.subject in self._lost:
            raise LogUnavailable("NATS has lost the counter of this budget, and its usage cannot be read now: retry")

    async def _compare_first(self, owner: Owner, quota: Quota, key: str | None, wait_s: float) -> None:
        name = quota.subject, quota.most
        if name not in self._first:
            self._first[name] = asyncio.create_task(self.check(owner, quota, key))
            # asyncio would report an error that nobody reads. `watch` repeats the comparison.
            self._first[name].add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait([self._first[name]], timeout=wait_s)

    async def run(self) -> None:
        """Compares the watched budgets, forever."""
        while True:
            await is_set_within(self._added, EVERY_S)
            self._added.clear()
            await asyncio.sleep(PAUSE_S)
            for one in list(self._watched.values()):
                try:
                    await self._compare(one)
                except (Refused, LogError) as error:
                    logger.debug("a budget is compared later", tenant=one.owner.tenant, why=str(error))
            self._forget_ended()

    async def _compare(self, one: Watched) -> None:
        await self.check(one.owner, one.quota, one.key, is_refused=one.is_refused)
        counted = await self._counters.add(one.quota.subject, 0)
        # A turn that is admitted meanwhile replaces the entry.
        if self._watched.get(one.quota.subject) is one and not self._may_reach(one.quota, counted):
            del self._watched[one.quota.subject]

    def _forget_ended(self) -> None:
        for subject, (quota, _) in list(self._reached.items()):
            if quota.renews_at < self._now():
                del self._reached[subject], self._spent[subject]
                self._lost.discard(subject)
                self._watched.pop(subject, None)
        for name, task in list(self._first.items()):
            if task.done():
                del self._first[name]

    def is_known(self, quota: Quota) -> bool:
        """Returns whether this process has compared the budget."""
        known = self._reached.get(quota.subject)
        return known is not None and known[0].most == quota.most

    def is_lost(self, quota: Quota, counted: int) -> bool:
        """Returns whether the counter of a compared budget, at `counted` without the turn, may be a new one."""
        return quota.subject in self._lost or counted <= 0 or counted < self._spent.get(quota.subject, 0)

    def note_increment(self, seq: Seq) -> None:
        """Notes the sequence of an increment. If it is not greater than the one before, the stream was lost."""
        if seq <= self._newest:
            self._losses += 1
            self._lost |= self._reached.keys()
        self._newest = seq

    def _next(self, quota: Quota) -> int | None:
        """Returns the next share that the budget may reach; None if it has reached all."""
        reached = self._reached[quota.subject][1] if self.is_known(quota) else 0
        return min((percent for percent in self._percents if percent > reached), default=None)

    def _may_reach(self, quota: Quota, counted: int) -> bool:
        following = self._next(quota)
        return following is not None and counted * 100 >= following * quota.most
