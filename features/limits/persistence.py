"""Compares usage with budgets and counters, and stores the webhooks about budgets that are reached."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import structlog

from tailrace.features.common.budgets import ListReachedBudgets, ReachedBudget, ReachedBudgets
from tailrace.features.limits import metrics
from tailrace.features.limits.percents import Settings, parse_percents
from tailrace.features.limits.reconciler import ROUND_S, Reconciler
from tailrace.features.limits.records import BudgetState, BudgetWebhook, CheckBudget
from tailrace.features.limits.reservations import Budget, ReservationTable, parse_budget, rows_of
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.rows import micros
from tailrace.persistence.run_every import run_beside, run_every
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store
from tailrace.persistence.tables import Tables
from tailrace.proto.errors import StoreBusy, StoreUnwritable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.subjects import BUDGETS
from tailrace.proto.usage import NANO_USD_PER_USD

logger = structlog.get_logger()

# A gateway whose clock is late may ask about a period that has ended.
KEPT_AFTER = timedelta(days=2)
# The list of reached budgets has these newest notices.
REACHED_MAX = 2000


class BudgetQueries:
    """Answers the queries about budgets. Each raises StoreError."""

    def __init__(self, store: Store, raise_to_recorded: Callable[[Budget], Awaitable[int]]) -> None:
        """`raise_to_recorded` is that of a Reconciler."""
        self._store = store
        self._table = ReservationTable(store)
        self._raise_to_recorded = raise_to_recorded

    async def check(self, tenant: Tenant, query: CheckBudget) -> BudgetState:
        """Returns what is spent. Stores a webhook, counts and logs each share that is reached for the first time.

        The counter then has at least this amount: it lacks the turns that were accepted before the budget was set.
        Raises LogUnavailable.
        """
        budget = parse_budget(query.name)._replace(tenant=tenant)
        if query.keys is not None:
            await self._table.put_keys(tenant, budget.owner, query.keys)
        spent = await self._raise_to_recorded(budget)
        reached = [
            percent
            for percent in sorted(query.percents)
            if query.is_refused or spent * 100 >= percent * query.limit_nano_usd
        ]
        for percent in reached:
            await self._note(tenant, query, spent, percent)
        return BudgetState(spent, max(reached, default=0))

    async def reached(self, _: Tenant, __: ListReachedBudgets) -> ReachedBudgets:
        """Returns the budgets of all tenants that have reached a share in their current period, newest first."""
        rows = await self._store.read("reached_budgets", now=micros(datetime.now(UTC) + KEPT_AFTER), limit=REACHED_MAX)
        found: dict[tuple[object, ...], ReachedBudget] = {}
        for row in rows:
            one = msgspec.json.decode(row["body"], type=BudgetWebhook).data
            name = one.tenant, one.of, one.key, one.budget, one.limit_usd
            known = found.setdefault(name, one)
            # Several shares may be noted at the same moment.
            if (one.percent, one.is_refused) > (known.percent, known.is_refused):
                found[name] = one
        return ReachedBudgets(list(found.values()))

    async def _note(self, tenant: Tenant, query: CheckBudget, spent: int, percent: int) -> None:
        now = datetime.now(UTC)
        data = ReachedBudget(
            tenant=tenant,
            of="tenant" if query.keys is None else "key",
            key=query.key,
            budget=query.budget,
            percent=percent,
            limit_usd=query.limit_nano_usd / NANO_USD_PER_USD,
            spent_usd=spent / NANO_USD_PER_USD,
            is_refused=query.is_refused,
            renews_at=query.renews_at,
        )
        named = hashlib.sha256(f"{query.name} {query.limit_nano_usd} {percent}".encode()).hexdigest()[:32]
        row: dict[str, Any] = {
            "tenant": tenant,
            "notice": f"budget_{named}",
            "body": msgspec.json.encode(BudgetWebhook("budget.reached", now, data, {"limits": "/v1/limits"})).decode(),
            "noted_at": micros(now),
            "expires_at": micros(query.renews_at + KEPT_AFTER),
        }
        async with self._store.write(tenant) as writer:
            await writer.execute("delete_old_notices", row)
            is_new = await writer.execute("put_notice", row)
        if is_new:
            metrics.BUDGETS_REACHED.labels(str(percent)).inc()
            logger.warning("a share of a budget is reached", **msgspec.to_builtins(data))


def _start(services: Services, settings: Settings) -> Parts:
    # For Prometheus, a series that appears with its first event has not grown. So create the series of the alert at 0.
    for percent in parse_percents(settings.soft_limits):
        metrics.BUDGETS_REACHED.labels(str(percent))
    table = ReservationTable(services.store)
    reader = DirectReader(services.connection, BUDGETS)
    new_reconciler = partial(Reconciler, services.connection, reader, services.log, table, services.caught_up)
    queries = BudgetQueries(services.store, new_reconciler().raise_to_recorded)
    return Parts(
        [(CheckBudget, queries.check), (ListReachedBudgets, queries.reached)],
        beside=[partial(run_beside, partial(_reconcile, services, new_reconciler))],
    )


async def _reconcile(services: Services, new_reconciler: Callable[[], Reconciler], stop: asyncio.Event) -> None:
    """Compares budgets until `stop` is set. Of several processes with one database, one does."""
    while not stop.is_set():
        try:
            async with services.store.lock("budgets"):
                # Not the values that this process has read before it had the lock.
                await run_every(ROUND_S, new_reconciler().run_round, "the comparison of budgets", stop)
        except (StoreBusy, StoreUnwritable) as error:
            logger.debug("budgets wait for the database", why=str(error))
            await is_set_within(stop, services.retry_wait_s)


def _check(settings: Settings) -> None:
    parse_percents(settings.soft_limits)


TABLES = Tables(
    read_queries(__package__),
    rows_of,
    of_unstored=("put_reservations", "put_budget_keys"),
    erase_tenant=[("", "delete_notices"), ("", "delete_reservations"), ("", "delete_budget_keys")],
)
FEATURE = Feature(Settings, _start, TABLES, check=_check)
"""Limits of a key and of a tenant, counted over all gateways: requests, tokens, money, running turns and streams."""
