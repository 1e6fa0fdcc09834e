"""The limiter with counters, slots and a log in memory: exact admission, refusals, slots of streams."""

import asyncio
import time

import pytest

from tailrace.features.limits import stream_slots
from tailrace.features.limits.limiter import CHECKED_AT_ONCE, Limiter
from tailrace.features.limits.rates import parse_limits_setting
from tailrace.features.limits.records import TENANT
from tailrace.features.limits.stream_slots import SLOT_LIFE_S, HeldSlots, StreamSlots
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.limits import UNLIMITED, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.errors import LogFull, LogUnavailable, Refused
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats.counters import Increment
from tailrace.proto.nats.slots import Slot
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.testing import MemoryCounters, MemoryLog, MemorySlots
from tests.harness.turn_builder import completed_turn, request
from tests.harness.until import until
from tests.harness.virtual_time import run

OURS = Tenant("ours")
PRINCIPAL = Principal(Scope(OURS, WHOLE))
CLIENTS, ENOUGH = 24, 7


class RacingCounters(MemoryCounters):
    """Between an addition and its acknowledgement, other requests run."""

    async def increment(self, subject: str, amount: int) -> Increment:
        added = await super().increment(subject, amount)
        await asyncio.sleep(0)
        return added


class FailingCounters(MemoryCounters):
    """Counters that cannot be decreased."""

    async def increment(self, subject: str, amount: int) -> Increment:
        if amount < 0:
            raise LogUnavailable("slow")
        return await super().increment(subject, amount)


class SlowSlots(MemorySlots):
    """A renewal that returns only when a slot is being released."""

    def __init__(self) -> None:
        super().__init__()
        self.is_renewed, self.is_releasing = asyncio.Event(), asyncio.Event()
        self.renewed = set[str]()

    async def renew(self, slot: Slot, holder: str, life_s: int) -> Slot | None:
        renewed = await super().renew(slot, holder, life_s)
        self.renewed.add(holder)
        self.is_renewed.set()
        await self.is_releasing.wait()
        return renewed

    async def release(self, seq: Seq) -> None:
        self.is_releasing.set()
        await super().release(seq)


def limiter_of(
    tenant: str | Limits,
    counters: MemoryCounters | None = None,
    slots: MemorySlots | None = None,
    *,
    of_keys: Limits = UNLIMITED,
) -> Limiter:
    limits = parse_limits_setting("TAILRACE_LIMITS_TENANT", tenant) if isinstance(tenant, str) else tenant
    now = time.time()
    log = MemoryLog()
    return Limiter(counters or MemoryCounters(), slots or MemorySlots(), log, of_keys, limits, lambda: now)


async def admit(limiter: Limiter, turn: str = "") -> str:
    """Admits one turn. Returns "", or the code of its refusal."""
    try:
        async with Admissions(limiter).open(PRINCIPAL) as admission:
            assert admission is not None
            await admission.count_request()
            await admission.reserve_turn(TurnId(turn or new_id()), request())
    except Refused as refused:
        return refused.code
    return ""


async def tokens_of_one() -> int:
    counters = MemoryCounters()
    await admit(limiter_of("tokens=1000000", counters))
    (tokens,) = counters.values.values()
    return tokens


@pytest.mark.rule("R37")
@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ("requests=1, burst={enough}", "rate_limited"),
        ("tokens={tokens}", "rate_limited"),
        ("running={enough}", "too_many_turns"),
    ],
)
async def test_concurrent_requests_are_admitted_up_to_the_limit_and_refused_ones_are_not_counted(
    limits: str, code: str
) -> None:
    """A turn that the number of running turns refuses gives back its request and its tokens."""
    each = await tokens_of_one()
    limits = limits.format(enough=ENOUGH, tokens=ENOUGH * each)
    counters, slots = RacingCounters(), MemorySlots()
    limiter = limiter_of(limits if "tokens" in limits else f"{limits}, tokens={1000 * each}", counters, slots)
    answers = await asyncio.gather(*(admit(limiter) for _ in range(CLIENTS)))
    assert sorted(answers) == [""] * ENOUGH + [code] * (CLIENTS - ENOUGH)
    counted = {subject.split(".")[3]: value for subject, value in counters.values.items()}
    assert counted == {"tokens": ENOUGH * each} | ({"requests": ENOUGH} if "requests" in limits else {})
    assert len(await slots.list_held(OURS, TENANT, "running")) == (ENOUGH if "running" in limits else 0)


@pytest.mark.rule("R37")
@pytest.mark.parametrize("running", [1, CHECKED_AT_ONCE + 6])
async def test_the_slot_of_an_ended_turn_is_free(running: int) -> None:
    """No process has freed it. The turn that has ended is the newest."""
    limiter = limiter_of(f"running={running}", slots=MemorySlots())
    names = [f"turn {number}" for number in range(running)]
    assert [await admit(limiter, name) for name in names] == [""] * running
    assert await admit(limiter) == "too_many_turns"
    assert isinstance(limiter.log, MemoryLog)
    limiter.log.load(TurnKey(OURS, TurnId(names[-1])), completed_turn("a").stored)
    assert [await admit(limiter, "next"), await admit(limiter)] == ["", "too_many_turns"]


@pytest.mark.parametrize("error", [Refused("request_invalid", "no"), LogFull("not stored")])
async def test_a_request_that_stores_nothing_gives_its_counts_back(error: Exception) -> None:
    """An upload whose blob cannot be stored, for example."""
    limiter = limiter_of(Limits(bytes_day=10), of_keys=Limits(bytes_day=10))

    async def fail() -> None:
        async with Admissions(limiter).open(PRINCIPAL) as admission:
            assert admission is not None
            await admission.count_stored_bytes(6)
            raise error

    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            await fail()


async def test_a_counter_that_is_not_given_back_leaves_no_slot_taken() -> None:
    limiter = limiter_of(Limits(requests=9, running=1), FailingCounters())
    for _ in range(2):
        admission = limiter.admission(PRINCIPAL)
        assert admission is not None
        await admission.count_request()
        await admission.reserve_turn(TurnId(new_id()), request())
        await admission.release()


def streams_of(limiter: Limiter, count: int) -> tuple[StreamSlots, list[HeldSlots]]:
    """Returns the slots of `count` streams of one tenant."""
    return limiter.streams, [held for _ in range(count) if (held := limiter.slots_of(PRINCIPAL)) is not None]


async def test_a_stream_that_ends_during_a_renewal_releases_all_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its key and of its tenant: otherwise its client could not reconnect."""
    monkeypatch.setattr(stream_slots, "RENEW_INTERVAL_S", 0.01)
    slots, one = SlowSlots(), Limits(streams=1)
    limiter = limiter_of(one, slots=slots, of_keys=one)
    streams, (held,) = streams_of(limiter, 1)
    renewing = asyncio.create_task(streams.renew_periodically())
    await held.acquire()
    await slots.is_renewed.wait()
    await held.release()

    async def are_free() -> bool:
        owners = [owner.name for owner in limiter.owners(PRINCIPAL)]
        return not any([await slots.list_held(OURS, owner, stream_slots.STREAMS) for owner in owners])

    await until(are_free, SLOT_LIFE_S / 3)
    renewing.cancel()


async def test_a_slow_renewal_does_not_delay_those_of_other_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, the renewals of thousands of streams would take longer than a slot lives."""
    monkeypatch.setattr(stream_slots, "RENEW_INTERVAL_S", 0.01)
    slots = SlowSlots()
    streams, several = streams_of(limiter_of(Limits(streams=9), slots=slots), 3)
    for held in several:
        await held.acquire()
    renewing = asyncio.create_task(streams.renew_periodically())
    await until(lambda: slots.renewed == {held.holder for held in several})
    slots.is_releasing.set()
    renewing.cancel()


@pytest.mark.rule("R37")
def test_the_slot_of_a_stream_is_kept_while_it_is_open_and_expires_with_its_gateway() -> None:
    """A stream whose slot has expired takes one again, or stays open without one if another stream has it."""

    async def stream() -> None:
        limiter = limiter_of(Limits(streams=1))
        streams, (one, other) = streams_of(limiter, 2)
        renewing = asyncio.create_task(streams.renew_periodically())
        await one.acquire()
        await asyncio.sleep(10 * SLOT_LIFE_S)
        with pytest.raises(Refused):
            await other.acquire()
        # The gateway is frozen for longer than a slot lives, and then goes on.
        renewing.cancel()
        await asyncio.sleep(SLOT_LIFE_S)
        await one.renew()
        with pytest.raises(Refused):
            await other.acquire()
        await asyncio.sleep(SLOT_LIFE_S)
        await other.acquire()
        await one.renew()
        held = await limiter.slots.list_held(OURS, TENANT, stream_slots.STREAMS)
        assert [slot.holder for slot in held] == [other.holder]

    run(stream())
