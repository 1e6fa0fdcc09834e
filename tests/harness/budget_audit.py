"""BudgetAudit: all budgets and slots of a running system, for the promise `nothing_held`."""

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from tailrace.features.limits.quotas import counter_name
from tailrace.proto.entries import Reservation
from tailrace.proto.errors import LogError
from tailrace.proto.ids import Seq
from tailrace.proto.nats import Connection, Counters
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.subjects import BUDGETS, EVERY_BUDGET, EVERY_SLOT, SLOTS, lost_cost
from tailrace.proto.usage import NANO_USD_PER_USD
from tests.promises import Budget

# A budget is right within this time after the last fault (PROTOCOL R148).
RIGHT_WITHIN_S = 120.0
READ_EVERY_S = 0.25
# The name of a tenant's counters.
TENANT = "tenant"
# No run spends so much, or has so many turns at once: no request is refused.
LIMITS: Mapping[str, int] = {"usd_day": 1000, "usd_month": 5000, "running": 500}
TOTALS = "SELECT tenant, dimension, key, day, cost_nusd FROM totals WHERE dimension IN ('day', 'key')"
EPOCH = date(1970, 1, 1).toordinal()


def limit_settings(limits: Mapping[str, int] = LIMITS) -> dict[str, object]:
    """Returns the gateway's settings that give these limits to each key and to each tenant."""
    pairs = ",".join(f"{name}={limit}" for name, limit in limits.items())
    return {"TAILRACE_LIMITS_KEY": pairs, "TAILRACE_LIMITS_TENANT": pairs}


class Cost(NamedTuple):
    """The recorded cost of an owner on a day, in nano-dollars."""

    tenant: str
    owner: str
    day: date
    nano_usd: int


class BudgetAudit:
    """Reads the counters and the slots from NATS, and the recorded cost from the SQLite file, but nothing of a gateway.

    `limits`: those of each key and each tenant.
    """

    def __init__(self, connection: Connection, database: Path, limits: Mapping[str, int] = LIMITS) -> None:
        self._counters = Counters(connection)
        self._budgets = DirectReader(connection, BUDGETS)
        self._slots = DirectReader(connection, SLOTS)
        self._database = database
        self._limits = limits
        self.worst: dict[str, Budget] = {}
        """The sample of each budget in which most was left beyond what `recorded` allows."""
        self.waited_s = 0.0
        """How long `wait_until_exact` has waited."""
        self._last: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        """How much less of each budget was recorded than before: a database was lost."""

    async def read(self, holds: Iterable[Reservation] = ()) -> list[Budget]:
        """Returns the state of each budget and of each owner's slots. `holds` are the reservations of running turns.

        Raises LogError, sqlite3.Error.
        """
        # Before the counters: a turn is counted before it is recorded.
        costs = self._costs()
        held = list(holds)
        return [*await self._read_money(costs, held), *await self._read_slots(held)]

    async def wait_until_exact(
        self, holds: Iterable[Reservation] = (), within_s: float = RIGHT_WITHIN_S
    ) -> list[Budget]:
        """Returns the state as soon as nothing is held, or the last one after `within_s`."""
        held, began = list(holds), monotonic()
        while True:
            with suppress(LogError, sqlite3.Error):
                found = await self.read(held)
                self.waited_s = monotonic() - began
                if self.waited_s > within_s or not any(budget.held for budget in found):
                    return found
            assert monotonic() - began < 2 * within_s, "the budgets cannot be read"
            await asyncio.sleep(READ_EVERY_S)

    async def sample(self) -> None:
        """Reads the budgets again and again, for ever, and keeps the worst sample of each."""
        while True:
            # While NATS or the database is away, there is nothing to read.
            with suppress(LogError, sqlite3.Error):
                for budget in await self.read():
                    worst = self.worst.get(budget.name)
                    if worst is None or budget.left + budget.recorded > worst.left + worst.recorded:
                        self.worst[budget.name] = budget
            await asyncio.sleep(READ_EVERY_S)

    async def _read_money(self, costs: list[Cost], holds: list[Reservation]) -> list[Budget]:
        names = {message.headers["Nats-Subject"] for message in await _page(self._budgets, EVERY_BUDGET)}
        # A counter may be lost.
        names |= {name for cost in costs for name in _names(cost)}
        names = {name for name in names if name.split(".")[3] in self._limits and _is_current(name)}
        return [
            Budget(
                name=name,
                limit=(limit := self._limits[name.split(".")[3]] * NANO_USD_PER_USD),
                left=limit - await self._counters.read(name),
                recorded=await self._recorded(name, costs),
                reserved=sum(hold.amount for hold in holds if hold.subject == name),
            )
            for name in sorted(names)
        ]

    async def _recorded(self, name: str, costs: list[Cost]) -> int:
        """Returns the cost in the database, and what an earlier one had. That is never more than was seen in it."""
        recorded = sum(cost.nano_usd for cost in costs if name in _names(cost))
        self._gone[name] = self._gone.get(name, 0) + max(0, self._last.get(name, 0) - recorded)
        self._last[name] = recorded
        return recorded + min(self._gone[name], await self._counters.read(lost_cost(name)))

    async def _read_slots(self, holds: list[Reservation]) -> list[Budget]:
        subjects = [message.headers["Nats-Subject"] for message in await _page(self._slots, EVERY_SLOT) if message.data]
        taken = [_owner(subject) for subject in subjects]
        reserved = [_owner(hold.subject) for hold in holds if hold.unit == "slot"]
        return [
            Budget(
                name=name,
                limit=self._limits["running"],
                left=self._limits["running"] - taken.count(name),
                reserved=reserved.count(name),
            )
            for name in sorted({*taken, *reserved})
            if name.endswith(".running")
        ]

    def _costs(self) -> list[Cost]:
        """Returns the recorded costs, of each tenant and of each key."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=0)) as database:
            rows = database.execute(TOTALS).fetchall()
        return [
            Cost(
                tenant,
                TENANT if dimension == "day" else counter_name("k_", key),
                date.fromordinal(EPOCH + day),
                nano_usd,
            )
            for tenant, dimension, key, day, nano_usd in rows
        ]


def _names(cost: Cost) -> Iterator[str]:
    """Yields the subjects of the counters that have the cost."""
    yield f"budgets.{cost.tenant}.{cost.owner}.usd_day.{cost.day:%Y-%m-%d}"
    yield f"budgets.{cost.tenant}.{cost.owner}.usd_month.{cost.day:%Y-%m}"


def _is_current(name: str) -> bool:
    """Returns whether the period of a counter has not ended. Nothing reads the counter of another one."""
    period, now = name.rpartition(".")[2], f"{datetime.now(UTC):%Y-%m-%d}"
    return period >= now[: len(period)]


def _owner(slot: str) -> str:
    """Returns the subject of a slot without its number."""
    return slot.rpartition(".")[0]


async def _page(reader: DirectReader, subject: str) -> list[Message]:
    found = list[Message]()
    while True:
        page = await reader.page(subject, Seq(int(found[-1].headers["Nats-Sequence"]) + 1 if found else 1))
        found += page.messages
        if page.is_last:
            return found
