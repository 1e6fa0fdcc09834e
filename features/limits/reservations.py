"""The reservations of budgets in the database: rows of turns, and the records of budgets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from tailrace.features.limits.reconciliation import Held
from tailrace.features.limits.records import TENANT
from tailrace.persistence.rows import EPOCH, micros, moment
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows
from tailrace.proto import subjects
from tailrace.proto.entries import MESSAGE_BATCHES, Reservation
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, is_child_id
from tailrace.proto.records import TurnRecord

WHATS = ("usd_day", "usd_month")
# The kinds of counters beside that of a budget: given back, recorded, and lost with a database.
BESIDE = ("_back", "_recorded", "_lost")
# The results of a message batch may be stored this long after its request.
RESULTS_WITHIN = timedelta(hours=24)
# How long the rows of turns that have ended are kept: as long as a comparison may be late.
ENDED_KEPT = timedelta(minutes=10)
UNSURE_MAX = 1000
# The clocks of gateways and of NATS may differ by less.
PERIOD_MARGIN = timedelta(minutes=10)


class Budget(NamedTuple):
    """The counter of a budget, as its subject names it."""

    tenant: Tenant
    owner: str
    what: str
    period: str

    @property
    def subject(self) -> str:
        return subjects.budget(self.tenant, self.owner, self.what, self.period)

    @property
    def days(self) -> tuple[date, date]:
        """The first and the last day of the period."""
        if self.what == "usd_day":
            first = date.fromisoformat(self.period)
            return first, first
        first = date.fromisoformat(f"{self.period}-01")
        return first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def parse_budget(subject: str) -> Budget:
    """Returns the budget of a counter. Raises ValueError if the subject has another form."""
    _, tenant, owner, what, period = subject.split(".")
    return Budget(Tenant(tenant), owner, what, period)


def counters_at(now: datetime) -> list[str]:
    """Returns the filters of the counters of budgets of the periods around `now`, and of those beside them."""
    moments = [(now + margin).astimezone(UTC).date().isoformat() for margin in (-PERIOD_MARGIN, PERIOD_MARGIN)]
    periods = dict.fromkeys((what, day if what == "usd_day" else day[:7]) for day in moments for what in WHATS)
    return [f"budgets.*.*.{what}{kind}.{period}" for what, period in periods for kind in ("", *BESIDE)]


def rows_of(key: TurnKey, turn: Turn, _: TurnRecord) -> AddedRows:
    """Returns the rows of a turn's reservations, and those of the credential that has made them."""
    request = turn.request
    if request is None or turn.asked_at is None:
        return {}
    batch, parent = request.batch, request.parent
    budgets = [hold for hold in (batch or request).holds or () if hold.unit == "nusd"]
    if not budgets:
        return {}
    # The results of a message batch that was cancelled are stored after its end.
    has_results = batch is not None and request.via == MESSAGE_BATCHES
    is_over = turn.ended_at is not None and not (has_results and turn.outcome != "completed")
    reservations = {
        "held": msgspec.json.encode(list(_amounts(budgets, turn.asked_at, is_batch=batch is not None))).decode(),
        "batch": parent if parent is not None and is_child_id(key.turn, parent) else None,
        "ended_at": micros(turn.ended_at) if is_over and turn.ended_at is not None else None,
        "kept_until": micros(turn.asked_at + RESULTS_WITHIN) if has_results else None,
    }
    owners = sorted({parse_budget(one.subject).owner for one in budgets} - {TENANT})
    keys = {"owners": msgspec.json.encode(owners).decode(), "key": request.by or ""}
    return {"put_reservations": reservations} | ({"put_budget_keys": keys} if owners else {})


def _amounts(
    budgets: Iterable[Reservation], asked_at: datetime, *, is_batch: bool
) -> Iterator[tuple[str, int, int, int | None]]:
    """Yields counter, amount, sequence, and 1 if the cost of the turn counts there; None for a batch."""
    for hold in budgets:
        own = subjects.budget_at(hold.subject, asked_at)
        yield hold.subject, hold.amount, hold.seq, None if is_batch else int(own == hold.subject)
        if own != hold.subject:
            # Reserved before midnight: the cost counts on the day of the request (PROTOCOL R90).
            yield own, 0, hold.seq, None if is_batch else 1


class Recorded(NamedTuple):
    """A budget in the database at one moment: the cost of its period, and its turns."""

    cost: int
    turns: Sequence[Held]

    def cost_until(self, upto: datetime) -> int:
        """Returns the cost without that of turns that have ended after `upto`."""
        return self.cost - sum(one.cost for one in self.turns if one.ended_at is not None and one.ended_at > upto)


class ReservationTable:
    """The reservations of all tenants. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put_keys(self, tenant: Tenant, owner: str, keys: Iterable[str]) -> None:
        """Notes which credentials use the budget of an owner."""
        owners = msgspec.json.encode([owner]).decode()
        rows = [{"tenant": tenant, "owners": owners, "key": key} for key in keys]
        async with self._store.write(tenant) as writer:
            await writer.executemany("put_budget_keys", rows)

    async def read(self, budget: Budget, since: datetime, lost: int = 0) -> Recorded:
        """Returns the budget, with the turns that run or have ended after `since`.

        `lost`: the cost that an earlier database had recorded, and this one has not.
        """
        first, last = budget.days
        rows = await self._store.read(
            "budget_of_tenant" if budget.owner == TENANT else "budget_of_key",
            tenant=budget.tenant,
            owner=budget.owner,
            subject=budget.subject,
            first=(first - EPOCH.date()).days,
            last=(last - EPOCH.date()).days,
            since=micros(since),
        )
        return Recorded(rows[0]["spent"] + lost, [_held(row) for row in rows if row["turn"] is not None])

    async def unsure(self) -> list[tuple[TurnKey, datetime | None]]:
        """Returns up to UNSURE_MAX turns that hold a budget and that the database does not show as running.

        Other ones each time: many of them may run. Each with the time until which the turns of a batch that has ended
        may be stored.
        """
        rows = await self._store.read("unsure_reservations", limit=UNSURE_MAX)
        return sorted(
            (TurnKey(row["tenant"], row["turn"]), moment(row["kept_until"]) if row["kept_until"] else None)
            for row in rows
        )

    async def end(self, turns: Iterable[TurnKey], now: datetime) -> None:
        """Ends the reservations of turns."""
        rows = [{"tenant": key.tenant, "turn": key.turn, "ended_at": micros(now)} for key in turns]
        async with self._store.write() as writer:
            await writer.executemany("end_reservations", rows)

    async def delete_ended(self, now: datetime) -> None:
        """Deletes the rows of turns that have ended ENDED_KEPT ago."""
        async with self._store.write() as writer:
            await writer.execute("delete_ended_reservations", {"oldest_at": micros(now - ENDED_KEPT)})

    async def running(self, tenant: Tenant, turns: Iterable[TurnId]) -> set[TurnId]:
        """Returns those of `turns` that the database shows as running."""
        listed = msgspec.json.encode(list(turns)).decode()
        return {row["turn"] for row in await self._store.read("running_of_listed", tenant=tenant, listed=listed)}


def _held(row: Mapping[str, Any]) -> Held:
    return Held(
        TurnId(row["turn"]),
        max(0, row["amount"]),
        Seq(row["seq"]),
        moment(row["asked_at"]),
        moment(row["ended_at"]) if row["ended_at"] is not None else None,
        row["cost_nusd"] or 0,
        is_batch=row["cost_nusd"] is None,
    )
