"""Reservations of money: their place in the counter, their time limit, and the period in which a turn is settled."""

import math
from datetime import timedelta

import pytest

from tailrace.features.limits import limiter as limiters
from tailrace.features.limits.limiter import Admission, Limiter
from tailrace.gateway.auth.limits import UNLIMITED, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.turns.submit import TOO_LATE
from tailrace.proto.entries import Reservation
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Counters, Slots, TurnLog
from tailrace.proto.nats.counters import Increment
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.subjects import BUDGETS, STREAM, requests_of_tenant
from tailrace.testing import MemoryCounters, MemoryLog, MemorySlots
from tests.harness.turn_builder import NOON, closing_events, request, started_turn
from tests.integration.conftest import NewGateway

OURS = Tenant("ours")
HELLO = {"message": "hi"}
LIMITS = Limits(usd_day=100, usd_month=300, tokens=1_000_000, running=1)
# `request` reserves 0.01 dollars.
ENOUGH_FOR_ONE = Limits(usd_day=100, usd_month=0.015)


class ListedCounters(MemoryCounters):
    """Lists what was added to each counter, by its name, such as `usd_day`."""

    def __init__(self) -> None:
        super().__init__()
        self.increments: list[tuple[str, int]] = []

    async def increment(self, subject: str, amount: int) -> Increment:
        if amount:
            self.increments.append((subject.split(".")[3], amount))
        return await super().increment(subject, amount)

    def held(self) -> dict[str, int]:
        return {subject.split(".")[3]: value for subject, value in self.values.items() if value}


class CountersWithoutAnswers(ListedCounters):
    """The answers to increments of a month's budget are lost."""

    async def increment(self, subject: str, amount: int) -> Increment:
        added = await super().increment(subject, amount)
        if ".usd_month." in subject:
            raise LogUnavailable("slow")
        return added


def admission_of(counters: Counters, limits: Limits = LIMITS, slots: Slots | None = None) -> Admission:
    limiter = Limiter(counters, slots or MemorySlots(), MemoryLog(), limits, UNLIMITED)
    admission = limiter.admission(Principal(Scope(OURS, WHOLE)))
    assert admission is not None
    return admission


@pytest.mark.rule("R37")
@pytest.mark.rule("R65")
async def test_a_reservation_names_its_increment_and_the_budget(connection: Connection, tenant: Tenant) -> None:
    """Each input of a batch has its part of the same increment."""
    counters = Counters(connection)
    limiter = Limiter(counters, Slots(connection), TurnLog(connection), LIMITS, UNLIMITED)
    for count in (1, 3):
        admission = limiter.admission(Principal(Scope(tenant, WHOLE)))
        assert admission is not None
        each, together, _, _ = await admission.reserve_batch(TurnId(new_id()), [request()] * count, 1)
        for number, hold in enumerate(together):
            parts = [holds[number] for holds in each]
            assert {(part.subject, part.unit, part.seq, part.limit) for part in parts} == {
                (hold.subject, hold.unit, hold.seq, hold.limit)
            }
            assert sum(part.amount for part in parts) == hold.amount > 0
        day, month = (hold for hold in together if hold.unit == "nusd")
        assert (day.limit, month.limit) == (100 * 10**9, 300 * 10**9)
        for hold in (day, month):
            assert (await connection.jetstream.get_last_msg(BUDGETS, hold.subject)).seq == hold.seq
        await admission.release()
        assert await counters.add(day.subject, 0) == 0


@pytest.mark.rule("R37")
async def test_money_that_is_given_back_is_counted_before_it_leaves_the_budget() -> None:
    """Persistence, which compares a budget with its reservations, would otherwise give it back once more."""
    counters = ListedCounters()
    await admission_of(counters, ENOUGH_FOR_ONE).reserve_turn(TurnId(new_id()), request())
    (day, cost), (month, _) = counters.increments
    with pytest.raises(Refused, match="budget"):
        await admission_of(counters, ENOUGH_FOR_ONE).reserve_turn(TurnId(new_id()), request())
    assert counters.held() == {day: cost, month: cost, f"{day}_back": cost, f"{month}_back": cost}
    for name in (day, month):
        back = [counters.increments.index(one) for one in ((f"{name}_back", cost), (name, -cost))]
        assert back == sorted(back)


@pytest.mark.rule("R37")
async def test_money_is_given_back_only_while_persistence_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is released by its sequence, however often."""
    monkeypatch.setattr(limiters, "RESERVED_WITHIN_S", 0.0)
    counters, slots = ListedCounters(), MemorySlots()
    admission = admission_of(counters, slots=slots)
    reserved = await admission.reserve_turn(TurnId(new_id()), request())
    await admission.release()
    money = {hold.subject.split(".")[3]: hold.amount for hold in reserved.holds or () if hold.unit == "nusd"}
    assert counters.held() == money
    [slot] = [hold for hold in reserved.holds or () if hold.unit == "slot"]
    _, _, owner, what, _ = slot.subject.split(".")
    assert await slots.list_held(OURS, owner, what) == []


async def test_a_request_without_money_or_a_slot_has_no_time_limit() -> None:
    """A large batch may need longer."""
    for limits, is_limited in ((Limits(requests=9, burst=9, tokens=9_000), False), (LIMITS, True)):
        admission = admission_of(MemoryCounters(), limits)
        await admission.reserve_turn(TurnId(new_id()), request())
        assert math.isfinite(admission.append_until) is is_limited


@pytest.mark.rule("R37")
async def test_an_increment_whose_answer_is_lost_is_not_given_back() -> None:
    """It may not be stored. Persistence finds that no turn has it."""
    counters = CountersWithoutAnswers()
    admission = admission_of(counters)
    with pytest.raises(LogUnavailable):
        await admission.reserve_turn(TurnId(new_id()), request())
    await admission.release()
    held = counters.held()
    assert held == {"usd_day_back": held["usd_month"], "usd_month": held["usd_month"]}


@pytest.mark.rule("R37")
async def test_a_request_that_is_not_ready_in_time_is_not_stored(
    nats_url: str, tenant: Tenant, connection: Connection, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Persistence gives its money back. The client may repeat it at once."""
    gateway = await new_gateway(nats_url, limits_key="usd_day=1")
    monkeypatch.setattr(limiters, "RESERVED_WITHIN_S", 0.0)
    for path, body in (("/v1/turns", HELLO), ("/v1/turn-batches", {"requests": [{"custom_id": "a", "params": HELLO}]})):
        late = await gateway.client.post(path, json=body)
        assert (late.status_code, late.json()["error"]["message"]) == (503, TOO_LATE)
        assert late.headers.get("x-should-retry") != "false"
    info = await connection.stream_info(STREAM, subjects=requests_of_tenant(tenant), timeout_s=5)
    assert not info.state.subjects
    monkeypatch.setattr(limiters, "RESERVED_WITHIN_S", 45.0)
    assert (await gateway.client.post("/v1/turns", json=HELLO)).status_code == 202


@pytest.mark.rule("R37")
@pytest.mark.rule("R90")
@pytest.mark.parametrize("late_by", [timedelta(0), timedelta(days=1), timedelta(days=40)], ids=str)
async def test_a_turn_counts_in_the_period_of_its_acceptance(late_by: timedelta) -> None:
    """As in the totals. A batch may begin turns after the end of the day or month in which it has reserved for them."""
    counters, amount = MemoryCounters(), 10**9
    holds = [
        Reservation(f"budgets.ours.tenant.{name}", "nusd", amount)
        for name in (f"usd_day.{NOON - late_by:%Y-%m-%d}", f"usd_month.{NOON - late_by:%Y-%m}")
    ]
    for hold in holds:
        await counters.add(hold.subject, amount)
    log = started_turn("hello", holds=holds)
    log.store_events(*closing_events(1))
    log.end()
    turn = log.turn
    assert turn.end is not None
    for _ in range(2):
        await Settlement(counters, MemorySlots()).settle(TurnKey(OURS, TurnId("turn-1")), turn)
    counted = {subject: value for subject, value in counters.values.items() if value}
    assert counted == {
        f"budgets.ours.tenant.{name}": turn.end.cost_nano_usd
        for name in (f"usd_day.{NOON:%Y-%m-%d}", f"usd_month.{NOON:%Y-%m}")
    }
