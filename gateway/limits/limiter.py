"""What a turn takes before it is asked, from its key's limits and its tenant's; and what came to nothing is given back.

The counters and slots are in NATS, and true over all gateways. Counting is "add, then look": whoever is over takes back
what was added, so that those who were let in are never more than the limit, and what was refused is not counted.
A slot of a running turn is free as soon as the log has the turn's end, whoever forgot to give it up.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

import msgspec

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits.cost_estimate import NOTHING, Estimate, estimate_of
from tailrace.gateway.limits.pdf_pages import PageCounter
from tailrace.gateway.limits.quotas import Owner, Quota, What, owners, quota
from tailrace.proto.entries import Request, Reservation
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.limits import MINUTE_S, Limits
from tailrace.proto.nats import Counters, Slots, TurnLog
from tailrace.proto.nats.slots import HeldSlot
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD

# A turn that has a slot, and that the log does not know after this long, was never asked: its gateway died before.
ASKED_WITHIN = timedelta(seconds=60)
# So many slots are looked at for one that is free when all are taken; those that end give up their own.
LOOKED_AT_MAX = 64
RUNNING_AGAIN_S = 1.0

PER = {"requests": "request", "tokens": "token", "bytes_day": "byte"}
LARGE = " of pictures, documents and long texts"
PERIOD = {"usd_day": "day", "usd_month": "month"}


class Standing(NamedTuple):
    """How a caller stands with a limit, as it is told in headers."""

    quota: Quota
    remaining: int


class Limiter:
    """`of_keys` and `of_tenants` hold for each that has none of its own. `now`: Unix seconds.

    `is_hedged`: generators may make a late call a second time.
    """

    def __init__(
        self,
        counters: Counters,
        slots: Slots,
        log: TurnLog,
        of_keys: Limits,
        of_tenants: Limits,
        now: Callable[[], float] = time.time,
        *,
        is_hedged: bool = False,
    ) -> None:
        self.counters = counters
        self.slots = slots
        self.log = log
        self.now = now
        self.is_hedged = is_hedged
        self._of_keys = of_keys
        self._of_tenants = of_tenants

    def owners(self, caller: Principal) -> tuple[Owner, Owner]:
        return owners(caller, self._of_keys, self._of_tenants)

    def admission(self, caller: Principal) -> "Admission":
        return Admission(self, caller.tenant, self.owners(caller))


class Admission:
    """What one request has taken. As a context it gives all of it back, unless it was kept."""

    def __init__(self, limiter: Limiter, tenant: Tenant, of: Sequence[Owner]) -> None:
        self._limiter = limiter
        self._tenant = tenant
        self._owners = of
        self._taken: list[tuple[Quota, int]] = []
        self._slots: list[Seq] = []
        self._counter = PageCounter()
        self.standings: dict[str, Standing] = {}
        """By counter, as it stood when it was last looked at."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        taken, self._taken = self._taken, []
        slots, self._slots = self._slots, []
        # Where NATS is away by now it stays counted: for a minute, or, an estimate, for the day.
        with suppress(LogError):
            for limited, amount in reversed(taken):
                self._stands(limited, await self._limiter.counters.add(limited.subject, -amount))
            for seq in slots:
                await self._limiter.slots.release(seq)

    def keep(self) -> None:
        """The turn is in the log, or may be: what it holds is settled with its end."""
        self._taken, self._slots = [], []

    async def request(self) -> None:
        """Counts one request; raises Refused, LogUnavailable."""
        await self._take("requests", 1)

    async def stored(self, size: int) -> None:
        """Counts bytes that are stored beside the log; raises Refused, LogUnavailable."""
        await self._take("bytes_day", size)

    async def estimate(self, request: Request) -> Estimate:
        """What `request` may come to, for limits that ask for it: pages are not counted for nobody."""
        if not any(owner.limits.is_estimated for owner in self._owners):
            return NOTHING
        # Elsewhere: to look through long PDFs takes a tenth of a second, for which every stream would stand still.
        return await asyncio.to_thread(estimate_of, request, self._counter, is_hedged=self._limiter.is_hedged)

    async def turn(self, turn: TurnId, request: Request) -> Request:
        """`request` with what limits hold for it until its end. Raises Refused, LogUnavailable."""
        (holds,), slots, _ = await self.batch(turn, [await self.estimate(request)], 1)
        return msgspec.structs.replace(request, holds=[*holds, *slots] or None)

    async def batch(
        self, turn: TurnId, estimates: Sequence[Estimate], parallel: int
    ) -> tuple[list[list[Reservation]], list[Reservation], int]:
        """What limits hold for each of a batch's turns, for the batch, and how many of `parallel` may run at once.

        Tokens and money are counted for all of them now; each turn settles its own. Raises Refused, LogUnavailable.
        """
        tokens = await self._take("tokens", sum(estimate.tokens for estimate in estimates))
        # Before money: of many at once, those who find no place would have the budget look spent to those who do.
        slots, running = await self._places(turn, parallel)
        money = sum(estimate.nano_usd for estimate in estimates)
        nano_usd = [*await self._take("usd_day", money), *await self._take("usd_month", money)]
        each = [
            [Reservation(subject, "tokens", estimate.tokens) for subject in tokens]
            + [Reservation(subject, "nusd", estimate.nano_usd) for subject in nano_usd]
            for estimate in estimates
        ]
        return each, slots, running

    async def _places(self, turn: TurnId, most: int) -> tuple[list[Reservation], int]:
        """The slots that `most` running turns have, or as many of them as there are; one at least, or Refused."""
        slots: list[Reservation] = []
        for running in range(most):
            try:
                slots += await self._run(turn)
            except Refused:
                if not running:
                    raise
                return slots, running
        return slots, most

    async def _take(self, what: What, amount: int) -> list[str]:
        """The counters that `amount` was added to."""
        added: list[str] = []
        for owner in self._owners:
            limited = quota(owner, what, self._limiter.now())
            if limited is None:
                continue
            # Where the answer is lost it may have been added; that stays, since too much is safer than too little.
            value = await self._limiter.counters.add(limited.subject, amount)
            self._taken.append((limited, amount))
            self._stands(limited, value)
            if value > limited.most:
                raise refusal(limited, amount, value - amount, self._limiter.now())
            added.append(limited.subject)
        return added

    def _stands(self, limited: Quota, held: int) -> None:
        self.standings[limited.subject] = Standing(limited, max(0, limited.most - held))

    async def _run(self, turn: TurnId) -> list[Reservation]:
        """A slot of each owner whose running turns are limited, or none of any: then it raises Refused."""
        taken: list[Reservation] = []
        for owner in self._owners:
            most = owner.limits.running
            if most is None:
                continue
            place = await self._limiter.slots.acquire(owner.tenant, owner.name, "running", most, turn)
            if place is None and await self._sweep(owner):
                place = await self._limiter.slots.acquire(owner.tenant, owner.name, "running", most, turn)
            if place is None:
                for slot in taken:
                    await self._limiter.slots.release(Seq(slot.amount))
                    self._slots.remove(Seq(slot.amount))
                raise Refused(
                    "too_many_turns",
                    f"{most} turns of this {owner.noun} are running, and no more may: wait for one to end",
                    retry_after_s=RUNNING_AGAIN_S,
                )
            self._slots.append(place.seq)
            taken.append(Reservation(place.subject, "slot", place.seq))
        return taken

    async def _sweep(self, owner: Owner) -> bool:
        """Gives up the slots of turns that have ended, or never began; whether there was one."""
        held = await self._limiter.slots.held(owner.tenant, owner.name, "running")
        over = await asyncio.gather(*(self._is_over(slot) for slot in held[:LOOKED_AT_MAX]))
        ended = [slot for slot, is_over in zip(held, over, strict=False) if is_over]
        for slot in ended:
            await self._limiter.slots.release(slot.seq)
        return bool(ended)

    async def _is_over(self, slot: HeldSlot) -> bool:
        key = TurnKey(self._tenant, TurnId(slot.holder))
        log = self._limiter.log
        if await log.has_end(key):
            return True
        age = datetime.fromtimestamp(self._limiter.now(), UTC) - slot.at
        return age > ASKED_WITHIN and not await log.is_known(key)


def refusal(limited: Quota, amount: int, held: int, now: float) -> Refused:
    """Why `amount` more is too much, and when it is not."""
    at = f"{datetime.fromtimestamp(limited.renews_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if limited.what in ("usd_day", "usd_month"):
        # 402, and no Retry-After: the SDKs repeat a 429, and nothing changes until then.
        return Refused(
            "budget_exceeded",
            f"the budget of this {limited.noun} for the {PERIOD[limited.what]} is {_usd(limited.most)}: "
            f"{_usd(held)} are spent or held for turns that run, and this turn may cost {_usd(amount)}. "
            f"It renews at {at}; a smaller `max_tokens` or a `max_cost` holds less",
        )
    if amount > limited.most:
        # No 429: who repeats it waits for nothing.
        return Refused(
            "request_invalid",
            f"this needs {_counted(amount, limited)}, and this {limited.noun} may use {_most(limited)}: "
            "ask for less at once, with a smaller `max_tokens` for one",
        )
    return Refused(
        "rate_limited",
        f"this {limited.noun} may use {_most(limited)}: "
        f"{max(0, limited.most - held)} left until {at}, and this needs {amount}",
        retry_after_s=max(0.001, limited.renews_at - now),
    )


def _most(limited: Quota) -> str:
    """As it was set, too: a minute's, where a `burst` has it counted in shorter windows."""
    most = _counted(limited.most, limited)
    if limited.what == "bytes_day":
        return f"{most}{LARGE} a day"
    if limited.window_s == MINUTE_S:
        return f"{most} a minute"
    return f"{most} in {limited.window_s:g} s ({limited.most * MINUTE_S / limited.window_s:g} a minute)"


def _counted(amount: int, limited: Quota) -> str:
    return f"{amount} {PER[limited.what]}{'' if amount == 1 else 's'}"


def _usd(nano_usd: int) -> str:
    return f"${nano_usd / NANO_USD_PER_USD:.4f}".rstrip("0").rstrip(".")
