"""Admission of turns by the limits of a key and of its tenant.

Counters and slots are in NATS and shared by all gateways. A counter is incremented first and read after that; above the
limit the increment is undone, so concurrent requests never exceed a limit and refused ones are not counted. The slot of
a running turn counts as free as soon as the log has the turn's end, even if no process freed it.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from tailrace.features.limits.cost_estimate import ZERO, Estimate, estimate_request
from tailrace.features.limits.give_back import give_back
from tailrace.features.limits.pdf_pages import PageCounter
from tailrace.features.limits.quotas import (
    Owner,
    Quota,
    QuotaRest,
    What,
    effective_limits,
    owner_name,
    owner_of_key,
    owners_of,
    quota_of,
)
from tailrace.features.limits.rate_headers import Headers, rate_headers
from tailrace.features.limits.rates import MINUTE_S
from tailrace.features.limits.records import TENANT
from tailrace.features.limits.soft_limits import BUDGETS, SoftLimits
from tailrace.features.limits.stream_slots import HeldSlots, StreamSlots
from tailrace.gateway.auth import admission
from tailrace.gateway.auth.admission import Reserved, Share
from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.limits import UNLIMITED, BudgetUse, Limits, Unreadable
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.entries import Request, Reservation
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Counters, Slots, TurnLog
from tailrace.proto.nats.counters import RESERVED_WITHIN_S
from tailrace.proto.ownership import Scope
from tailrace.proto.runtime.gather import gather_limited
from tailrace.proto.usage import NANO_USD_PER_USD

# When all slots are taken, so many at once are checked for an ended turn.
CHECKED_AT_ONCE = 64
RUNNING_RETRY_AFTER_S = 1.0
# After this time, concurrent requests that were refused have given back what they had counted.
GIVEN_BACK_S = 0.05

UNITS = {"requests": "request", "tokens": "token", "bytes_day": "byte"}
PERIOD = {"usd_day": "day", "usd_month": "month"}


class Limiter(admission.Limiter):
    """The limits of this gateway.

    `of_keys` and `tenant_defaults` apply to each key and tenant without limits of its own. `now` returns Unix seconds.
    `own_limits_of` returns the limits that an operator has given to one tenant.
    """

    def __init__(
        self,
        counters: Counters,
        slots: Slots,
        log: TurnLog,
        of_keys: Limits,
        tenant_defaults: Limits,
        now: Callable[[], float] = time.time,
        *,
        own_limits_of: Callable[[Tenant], Mapping[str, float] | Unreadable | None] = lambda _: None,
        log_share: Share = admission.Limiter.log_share,
        blob_share: Share = admission.Limiter.blob_share,
        soft_limits: SoftLimits | None = None,
    ) -> None:
        self.counters = counters
        self.slots = slots
        self.log = log
        self.now = now
        self.streams = StreamSlots(slots)
        self.log_share = log_share
        self.blob_share = blob_share
        self.soft_limits = soft_limits
        self._of_keys = of_keys
        self._tenant_defaults = tenant_defaults
        self._own_limits_of = own_limits_of
        self._has_common_limits = (of_keys, tenant_defaults) != (UNLIMITED, UNLIMITED)

    def owners(self, principal: Principal) -> Sequence[Owner]:
        """Returns the key and the tenant of `principal` with their limits; nothing if no limit can apply to them.

        Raises LogUnavailable.
        """
        tenant = principal.access.tenant
        own = self._own_limits_of(tenant)
        if isinstance(own, Unreadable):
            raise LogUnavailable(
                f"the limits of the tenant {tenant} in the bucket KEYS cannot be read: set them again with "
                f"`tailrace limits {tenant} --set NAME=NUMBER,…`, or remove them with `--clear`"
            )
        if not (self._has_common_limits or principal.limits or own):
            return ()
        return owners_of(principal, self._of_keys, self.effective_limits(own or {}))

    def admission(self, principal: Principal) -> "Admission | None":
        owners = self.owners(principal)
        return Admission(self, principal.access, owners, principal.key) if owners else None

    async def count_operator(self, principal: Principal, requests_max: int) -> None:
        """Counts a request to a route for operators: a credential has `requests_max` a minute. Raises Refused."""
        owner = Owner(principal.access.tenant, owner_name("admin_", principal), Limits(requests=requests_max))
        await Admission(self, principal.access, [owner]).count_request()

    def slots_of(self, principal: Principal) -> HeldSlots | None:
        limited = [owner for owner in self.owners(principal) if owner.limits.streams is not None]
        return HeldSlots(self.streams, limited) if limited else None

    def effective_limits(self, own: Mapping[str, float], *, of_key: bool = False) -> Limits:
        return effective_limits(own, self._of_keys if of_key else self._tenant_defaults)

    async def budget_uses(self, tenant: Tenant, own: Mapping[str, float]) -> list[BudgetUse]:
        return await self._budget_uses(Owner(tenant, TENANT, self.effective_limits(own)), None)

    async def budget_uses_of_key(self, key: ApiKey) -> list[BudgetUse]:
        return await self._budget_uses(owner_of_key(key, self._of_keys), key.id)

    async def _budget_uses(self, owner: Owner, key: str | None) -> list[BudgetUse]:
        found = list[BudgetUse]()
        for what in BUDGETS:
            quota = quota_of(owner, what, self.now())
            if quota is not None and self.soft_limits is not None:
                spent = await self.soft_limits.check(owner, quota, key)
                left = max(0, quota.most - await self.counters.add(quota.subject, 0))
                found.append(
                    BudgetUse(
                        name=what,
                        limit=quota.most / NANO_USD_PER_USD,
                        spent=spent / NANO_USD_PER_USD,
                        left=left / NANO_USD_PER_USD,
                        renews_at=datetime.fromtimestamp(quota.renews_at, UTC),
                    )
                )
        return found


class Taken(NamedTuple):
    """The amount that a request has added to the counter of a quota, and the sequence of the increment."""

    quota: Quota
    amount: int
    seq: Seq

    def reserve(self, unit: Literal["tokens", "nusd"], amount: int) -> Reservation:
        """Returns the reservation of `amount`, which is all or a part of what was added."""
        limit = self.quota.most if unit == "nusd" else None
        return Reservation(self.quota.subject, unit, amount, self.seq, limit)


class Admission:
    """The counts and slots that one request has taken from its limits."""

    def __init__(self, limiter: Limiter, scope: Scope, of: Sequence[Owner], key: str | None = None) -> None:
        self._key = key
        self._limiter = limiter
        self._scope = scope
        self._owners = of
        self._taken: list[Taken] = []
        self._slots: list[Seq] = []
        self._counter = PageCounter()
        self.append_until = math.inf
        self.quota_rests: dict[str, QuotaRest] = {}
        """The rest of each quota at its last read, by the subject of its counter."""

    def headers(self, path: str) -> Headers:
        """Returns the response headers with what is left of the limits, as the route's client protocol names them."""
        return rate_headers(path, self.quota_rests.values(), self._limiter.now())

    async def release(self) -> None:
        """Gives back all counts and slots if no turn was stored. If a turn was stored, its end settles them."""
        taken, self._taken = self._taken, []
        slots, self._slots = self._slots, []
        # If NATS is unreachable, requests stay counted for a minute, and persistence gives the money back. All at once,
        # as the client waits for its error.
        await asyncio.gather(*map(self._give_back, taken), *map(self._free_slot, slots))

    async def _give_back(self, taken: Taken) -> None:
        subject, is_money = taken.quota.subject, taken.quota.what in BUDGETS
        # Later, persistence may have given the money back.
        if is_money and _now() >= self.append_until:
            return
        counters, amount = self._limiter.counters, taken.amount
        with suppress(LogError):
            counted = await (give_back(counters, subject, amount) if is_money else counters.add(subject, -amount))
            self._record(taken.quota, counted)

    async def _free_slot(self, seq: Seq) -> None:
        with suppress(LogError):
            await self._limiter.slots.release(seq)

    async def count_request(self) -> None:
        """Counts one request. Raises Refused, LogUnavailable."""
        await self._take("requests", 1)

    async def count_stored_bytes(self, size: int) -> None:
        """Counts bytes of an entry, of its blobs, or of a row. Raises Refused, LogUnavailable."""
        await self._take("bytes_day", size)

    async def _estimate(self, requests: Sequence[Request]) -> list[Estimate]:
        """Returns the estimate for each request; zero if no limit of tokens or money needs one."""
        if not any(owner.limits.is_estimated for owner in self._owners):
            return [ZERO] * len(requests)
        # In a thread: counting the pages of long PDFs takes 0.1 s and would stop every stream.
        return [await asyncio.to_thread(estimate_request, request, self._counter) for request in requests]

    async def reserve_turn(self, turn: TurnId, request: Request) -> Request:
        """Returns `request` with its reservations until its end, in `holds`. Raises Refused, LogUnavailable."""
        (holds,), _, slots, _ = await self.reserve_batch(turn, [request], 1)
        return msgspec.structs.replace(request, holds=[*holds, *slots] or None)

    async def reserve_batch(self, turn: TurnId, requests: Sequence[Request], parallel: int) -> Reserved:
        """Reserves what all turns of a batch may use, and slots for up to `parallel` of them.

        Tokens and money of all turns are counted now; each turn settles its own. Raises Refused, LogUnavailable.
        """
        estimates = await self._estimate(requests)
        # Before the first slot and the first increment.
        self.append_until = _now() + RESERVED_WITHIN_S
        tokens = await self._take("tokens", sum(estimate.tokens for estimate in estimates))
        # Before money: concurrent requests without a slot would make the budget look exceeded to those with one.
        slots, running = await self._running_slots(turn, parallel)
        costs = [self._known_cost(estimate) for estimate in estimates]
        nano_usd = await self._take_money(sum(costs))
        each = [
            [taken.reserve("tokens", estimate.tokens) for taken in tokens]
            + [taken.reserve("nusd", cost) for taken in nano_usd]
            for estimate, cost in zip(estimates, costs, strict=True)
        ]
        together = [taken.reserve("tokens", taken.amount) for taken in tokens]
        together += [taken.reserve("nusd", taken.amount) for taken in nano_usd]
        if not (slots or nano_usd):
            self.append_until = math.inf
        return Reserved(each, together, slots, running)

    def _known_cost(self, estimate: Estimate) -> int:
        """Returns the estimated cost. Raises Refused if it is unknown and there is a budget."""
        if estimate.nano_usd is not None:
            return estimate.nano_usd
        for owner in self._owners:
            if owner.limits.usd_day is not None or owner.limits.usd_month is not None:
                why = f"the price of this model is unknown, and this {owner.noun} has a budget"
                raise Refused("price_unknown", why)
        return 0

    async def _running_slots(self, turn: TurnId, most: int) -> tuple[list[Reservation], int]:
        """Takes slots for up to `most` running turns; returns them and their number. Raises Refused if none is free."""
        slots: list[Reservation] = []
        for running in range(most):
            try:
                slots += await self._take_running_slot(turn)
            except Refused:
                if not running:
                    raise
                return slots, running
        return slots, most

    async def _take_money(self, amount: int) -> list[Taken]:
        """Adds `amount` to the counters of the budgets. Raises Refused, LogUnavailable.

        Concurrent requests that are refused are counted for a moment, and a 402 is final for clients. So a budget is
        compared again, when they have given back their amounts, before it refuses.
        """
        before = len(self._taken)
        try:
            return await self._take_budgets(amount)
        except Refused:
            taken, self._taken = self._taken[before:], self._taken[:before]
            await asyncio.gather(*map(self._give_back, taken))
            await asyncio.sleep(GIVEN_BACK_S)
            await self._take_budgets(amount, is_counted=False, is_final=True)
            return await self._take_budgets(amount, is_final=True)

    async def _take_budgets(self, amount: int, *, is_counted: bool = True, is_final: bool = False) -> list[Taken]:
        """`_take` for the budgets of a day and of a month."""
        day = await self._take("usd_day", amount, is_counted=is_counted, is_final=is_final)
        return [*day, *await self._take("usd_month", amount, is_counted=is_counted, is_final=is_final)]

    async def _take(self, what: What, amount: int, *, is_counted: bool = True, is_final: bool = False) -> list[Taken]:
        """Adds `amount` to the counters of one limit. Raises Refused, LogUnavailable.

        `is_counted`: False only compares the amount with what is left. `is_final`: whether the client gets a refusal.
        """
        added: list[Taken] = []
        for owner in self._owners:
            quota = quota_of(owner, what, self._limiter.now())
            if quota is None:
                continue
            soft_limits = self._limiter.soft_limits if what in BUDGETS else None
            was_known = soft_limits is not None and soft_limits.is_known(quota)
            if soft_limits is not None:
                await soft_limits.complete(owner, quota, self._key)
            # An amount above the whole limit is compared, and not added: smaller requests at the same moment would be
            # refused.
            counted = amount if is_counted and amount <= quota.most else 0
            # If the acknowledgement is lost, the amount stays counted until persistence compares it (PROTOCOL R148).
            value, seq = await self._limiter.counters.increment(quota.subject, counted)
            if soft_limits is not None:
                soft_limits.note_increment(seq)
            if soft_limits is not None and was_known and counted and soft_limits.is_lost(quota, value - counted):
                # Other turns may be counted in it already.
                await self._give_back(Taken(quota, counted, seq))
                await soft_limits.complete_again(owner, quota, self._key)
                value, seq = await self._limiter.counters.increment(quota.subject, counted)
            taken = Taken(quota, counted, seq)
            if counted:
                self._taken.append(taken)
            self._record(quota, value)
            is_refused = value - counted + amount > quota.most
            if soft_limits is not None:
                # No budget of this size would have allowed an amount above the whole of it.
                is_reached = is_refused and is_final and amount <= quota.most
                soft_limits.watch(owner, quota, value, self._key, is_refused=is_reached)
            if is_refused:
                hides = quota.noun == "tenant" and not self._scope.is_whole_tenant
                raise quota_error(quota, amount, value - counted, self._limiter.now(), hides_budget=hides)
            added.append(taken)
        return added

    def _record(self, quota: Quota, counted: int) -> None:
        self.quota_rests[quota.subject] = QuotaRest(quota, max(0, quota.most - counted))

    async def _take_running_slot(self, turn: TurnId) -> list[Reservation]:
        """Takes one slot of each owner with a limit `running`. Raises Refused, and takes no slot, if one has none."""
        taken: list[Reservation] = []
        for owner in self._owners:
            most = owner.limits.running
            if most is None:
                continue
            slot = await self._limiter.slots.acquire(owner.tenant, owner.name, "running", most, turn)
            if slot is None and await self._free_ended(owner):
                slot = await self._limiter.slots.acquire(owner.tenant, owner.name, "running", most, turn)
            if slot is None:
                for reservation in taken:
                    await self._limiter.slots.release(Seq(reservation.amount))
                    self._slots.remove(Seq(reservation.amount))
                raise Refused(
                    "too_many_turns",
                    f"This {owner.noun} has {most} running turns, its limit; wait for one to end.",
                    retry_after_s=RUNNING_RETRY_AFTER_S,
                )
            self._slots.append(slot.seq)
            taken.append(Reservation(slot.subject, "slot", slot.seq))
        return taken

    async def _free_ended(self, owner: Owner) -> bool:
        """Frees slots of turns that have just ended; returns whether it has freed any. Persistence frees all others."""
        held = await self._limiter.slots.list_held(owner.tenant, owner.name, "running")
        keys = [TurnKey(self._scope.tenant, TurnId(slot.holder)) for slot in held]
        have_ended = await gather_limited(self._limiter.log.has_end, keys, CHECKED_AT_ONCE)
        ended = [slot for slot, has_ended in zip(held, have_ended, strict=True) if has_ended]
        for slot in ended:
            await self._limiter.slots.release(slot.seq)
        return bool(ended)


def _now() -> float:
    return asyncio.get_running_loop().time()


def quota_error(quota: Quota, amount: int, held: int, now: float, *, hides_budget: bool = False) -> Refused:
    """Returns the error for `amount` more than the quota allows, with the time at which it renews.

    `hides_budget`: without the sums of a budget, for a private user, who must not learn what others have spent.
    """
    at = f"{datetime.fromtimestamp(quota.renews_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if quota.what in ("usd_day", "usd_month"):
        # 402 without Retry-After: SDKs repeat a 429, which would fail until the quota renews.
        sums = f"{_usd(quota.most)}: {_usd(held)} is spent or reserved for running turns"
        return Refused(
            "budget_exceeded",
            f"The budget of this {quota.noun} for the {PERIOD[quota.what]} is "
            f"{'nearly spent' if hides_budget else sums}, and this turn reserves {_usd(amount)}. "
            f"It renews at {at}. A shorter prompt or a `max_cost` reserves less.",
        )
    if amount > quota.most:
        # Not a 429: a retry can never succeed.
        advice = "a smaller `max_tokens`, or less text" if quota.what == "tokens" else "less text, or smaller files"
        return Refused(
            "request_invalid",
            f"This request needs {_format_amount(amount, quota)}, and this {quota.noun} may use "
            f"{_format_limit(quota)}. Send {advice}.",
        )
    return Refused(
        "rate_limited",
        f"This {quota.noun} may use {_format_limit(quota)}: "
        f"{max(0, quota.most - held)} left until {at}, and this request needs {amount}. Retry then.",
        retry_after_s=max(0.001, quota.renews_at - now),
    )


def _format_limit(quota: Quota) -> str:
    """Formats the limit as it was set: by the minute too, where `burst` makes the window shorter."""
    most = _format_amount(quota.most, quota)
    if quota.what == "bytes_day":
        return f"{most} of storage a day"
    if quota.window_s == MINUTE_S:
        return f"{most} a minute"
    return f"{most} in {quota.window_s:g} s ({quota.most * MINUTE_S / quota.window_s:g} a minute)"


def _format_amount(amount: int, quota: Quota) -> str:
    return f"{amount} {UNITS[quota.what]}{'' if amount == 1 else 's'}"


def _usd(nano_usd: int) -> str:
    return f"${nano_usd / NANO_USD_PER_USD:.4f}".rstrip("0").rstrip(".")
