"""Webhook delivery: consumes `end` entries and posts each ended turn, with retries, in order within a session.

It stores nothing. An `end` stays leased until its webhook is delivered or given up, and is acknowledged then. If this
process is killed, the next one delivers the waiting webhooks under the same ids. Each attempt folds the turn from the
log again, so a turn that was deleted meanwhile, or that the log keeps no longer, is not sent.

A tenant's webhooks beyond its share have no task: their leases are extended by minutes, and the process remembers their
sequences. The oldest one gets the next free slot.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from weakref import WeakValueDictionary

import structlog

from tailrace.features.webhooks import metrics, payload, signature
from tailrace.features.webhooks.http import Answer, WebhookClient
from tailrace.features.webhooks.marks import Marks
from tailrace.features.webhooks.overflow import Overflow
from tailrace.features.webhooks.ssrf import UrlNotAllowed, check_url
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable, SettingsInvalid, TurnUnknown, WebhookFailed, WebhookRefused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnKey, is_child_id, is_token
from tailrace.proto.nats import Deliveries, Delivery, Tombstones, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import record_from_fold
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.runtime.race import is_set_within

logger = structlog.get_logger()

# Each waiting webhook of a tenant's share costs a task and the renewals of its lease. If all tenants together have this
# many, each tenant has one slot, so that no tenant waits for another.
WAITING_MAX = 10_000
# How long the lease of a webhook beyond the share is extended. Until then, a process that starts after a kill knows
# only its tenant, from a mark.
EXTENDED_S_MAX = 300.0
# At most this many of them are extended again in a second, unless one would then wait longer than EXTENDED_S_MAX.
EXTENSIONS_PER_S = 50
OBSERVE_S = 1.0
# A webhook is late after this part of `give_up_s`: by default after an hour.
LATE_PART = 1 / 24
# Concurrent connections to one tenant's receivers, so that a slow receiver delays only its own tenant.
CONNECTIONS = 8
# Turns that are read and folded at once. A turn may be 8 MiB of request and more of answer, and its fold several times
# as large.
FOLDS_MAX = 2
# A larger body is posted when its bytes are free, so that others do not wait for receivers of large ones.
BODY_BYTES = 64 * 1024
LARGE_BODIES_BYTES_MAX = 64 * 1024 * 1024
BATCH_MAX = 100
# Attempts that do not find the turn. A deletion removes a turn from the log seconds before it sets the tombstone.
MISSING_MAX = 3
LOG_WAIT_S = 1.0

Session = tuple[Tenant, str]


class WebhookSender:
    """Sends a webhook for each `end` of `deliveries` to the turn's `webhook`, or else to the tenant's URL in `urls`.

    One sender at a time: the order within a session is kept in its memory.

    `keys` are the operator's signing keys (signature.py). The wait before a retry is `first_wait_s` and doubles, until
    the end is older than `give_up_s`. Each webhook is attempted at least once. `share` is how many webhooks of a tenant
    may be sent or wait for a retry; the others wait in the log. See `payload.render` for `names_action`.
    """

    def __init__(
        self,
        log: TurnLog,
        tombstones: Tombstones,
        deliveries: Deliveries,
        marks: Marks,
        client: WebhookClient,
        *,
        keys: Sequence[bytes],
        urls: Mapping[Tenant, str],
        first_wait_s: float,
        give_up_s: float,
        share: int,
        names_action: bool = False,
    ) -> None:
        self._log = log
        self._tombstones = tombstones
        self._deliveries = deliveries
        self._marks = marks
        self._client = client
        self._keys = keys
        self._urls = urls
        self._first_wait_s = first_wait_s
        self._give_up_s = give_up_s
        self._share = share
        self._names_action = names_action
        self._held: dict[Seq, Delivery] = {}
        self._number = 0
        """The number of the last delivery."""
        self._tasks: dict[Seq, asyncio.Task[None]] = {}
        self._last: dict[Session, asyncio.Task[None]] = {}
        # A tenant without a webhook needs no memory: each user of a login may be a tenant.
        self._used: Counter[Tenant] = Counter()
        """The number of tasks of each tenant."""
        self._overflows: dict[Tenant, Overflow] = {}
        self._unknown_until = 0.0
        """Until then, leases that a previous process has extended may be missing."""
        self._has_free = asyncio.Event()
        self._connections: WeakValueDictionary[Tenant, asyncio.Semaphore] = WeakValueDictionary()
        self._folds = FairSemaphore(FOLDS_MAX)
        self._large_bodies = FairSemaphore(LARGE_BODIES_BYTES_MAX)

    async def run(self, stop: asyncio.Event) -> None:
        """Delivers until `stop` is set, and returns the undelivered entries to the log then."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self._deliveries.keep_renewed(self._held.values)),
                group.create_task(self._resume(group)),
                group.create_task(self._observe()),
            ]
            while not stop.is_set():
                found, has_gap = await self._receive(BATCH_MAX)
                is_complete = True
                if has_gap:
                    more, is_complete = await self._receive_leased(found, stop)
                    found += more
                if not is_complete:
                    self._unknown_until = _now() + EXTENDED_S_MAX + self._deliveries.ack_wait_s
                await self._start(group, found, stop)
            for task in (*beside, *self._tasks.values()):
                task.cancel()
        for seq in sorted(self._held):
            await self._held[seq].release()
        for overflow in self._overflows.values():
            await self._deliveries.release(overflow)
        metrics.WEBHOOKS_BEYOND_SHARE.set(0)
        metrics.WEBHOOKS_LATE.set(0)

    async def _receive(self, most: int) -> tuple[list[Delivery], bool]:
        """Receives entries, at most BATCH_MAX, and returns whether others were delivered but did not arrive here.

        The previous process may have them, or the connection to NATS was lost while they were on their way. Extends
        the leases of the webhooks in an overflow again.
        """
        found = await self._deliveries.next(min(most, BATCH_MAX))
        if not found:
            return [], False
        previous, self._number = self._number, found[-1].number
        has_gap = self._number - previous != len(found)
        new = []
        for delivery in found:
            overflow = self._overflows.get(delivery.key.tenant)
            if overflow is not None and delivery.seq in overflow:
                await delivery.extend(self._extension_s(overflow))
            else:
                new.append(delivery)
        return new, has_gap

    async def _receive_leased(self, received: Sequence[Delivery], stop: asyncio.Event) -> tuple[list[Delivery], bool]:
        """Receives the leased entries that this process does not have, and entries that are delivered in between.

        The server delivers them again when their leases expire. `received` and newer entries must not be sent before
        them. Returns False as well if some are missing, because a process that was killed has extended their leases.
        """
        self._held.update((delivery.seq, delivery) for delivery in received)
        found: list[Delivery] = []
        ack_wait_s = self._deliveries.ack_wait_s
        deadline = _now() + 2 * ack_wait_s
        # nats-server does not count the leases of deleted entries, which this process still counts. A lost delivery
        # comes again when its lease expires.
        least_s = ack_wait_s + OBSERVE_S if self._tasks or self._overflows else 0.0
        earliest = _now() + least_s
        while _now() < deadline and not stop.is_set():
            try:
                missing = (await self._deliveries.backlog()).leased - len(self._held) - self._count_beyond_share()
            except LogUnavailable:
                # Nothing is delivered meanwhile.
                missing, deadline = 1, _now() + 2 * ack_wait_s
            if missing <= 0 and _now() >= earliest:
                return found, True
            more, has_gap = await self._receive(max(missing, 1))
            if has_gap:
                earliest = _now() + least_s
            self._held.update((delivery.seq, delivery) for delivery in more)
            found += more
        return found, False

    async def _start(self, group: asyncio.TaskGroup, deliveries: Sequence[Delivery], stop: asyncio.Event) -> None:
        """Starts a task for each webhook, in log order; it waits for the task of its session's previous webhook.

        When `stop` is set, it leaves the rest to `run`, which returns them to the log.
        """
        # An end whose lease expired meanwhile is delivered twice. The last delivery has the valid lease.
        latest = {delivery.seq: delivery for delivery in deliveries}
        self._held.update(latest)
        for _, delivery in sorted(latest.items()):
            while not stop.is_set():
                try:
                    await self._start_new(group, delivery)
                    break
                except LogUnavailable:
                    # The end keeps its lease. An end that was returned while NATS is away would come after later ones.
                    await is_set_within(stop, LOG_WAIT_S)
            else:
                return

    async def _start_new(self, group: asyncio.TaskGroup, delivery: Delivery) -> None:
        """Starts the webhook's task, or adds the webhook to the overflow of its tenant. Raises LogUnavailable."""
        tenant, seq = delivery.key.tenant, delivery.seq
        if seq in self._tasks:
            # A running webhook that is delivered again only gets the newer lease.
            return
        # A free slot is for the oldest webhook of the overflow, which may be of the same session.
        if tenant not in self._overflows:
            if (target := await self._find_target(delivery.key)) is None:
                await self._ack(seq)
                return
            if _now() < self._unknown_until and await self._marks.exists(tenant):
                # Older ones of the tenant may be missing.
                self._add_overflow(
                    tenant, "a process that was killed may have more of them: they come back when their leases expire"
                )
                self._overflows[tenant].known_at = self._unknown_until
            elif self._used[tenant] < self._slots:
                self._start_task(group, delivery, *target)
                return
            else:
                self._add_overflow(tenant, f"{self._used[tenant]} others of this tenant wait: is its receiver down?")
        overflow = self._overflows[tenant]
        overflow.add(seq)
        del self._held[seq]
        await delivery.extend(self._extension_s(overflow))

    def _start_task(self, group: asyncio.TaskGroup, delivery: Delivery, url: str, session: Session) -> None:
        task = group.create_task(self._run(delivery.key, delivery.seq, url, session, self._last.get(session)))
        self._tasks[delivery.seq] = self._last[session] = task
        self._used[delivery.key.tenant] += 1

    async def _resume(self, group: asyncio.TaskGroup) -> None:
        """Starts webhooks of the overflows while their tenants have free slots, until it is cancelled."""
        while True:
            await self._has_free.wait()
            self._has_free.clear()
            try:
                while ready := [tenant for tenant in self._overflows if self._is_ready(tenant)]:
                    for tenant in ready:
                        await self._resume_oldest(group, tenant)
            except LogUnavailable:
                await asyncio.sleep(LOG_WAIT_S)
                self._has_free.set()

    def _is_ready(self, tenant: Tenant) -> bool:
        """Returns whether the next webhook of a tenant's overflow may be started."""
        return _now() >= self._overflows[tenant].known_at and self._used[tenant] < self._slots

    async def _resume_oldest(self, group: asyncio.TaskGroup, tenant: Tenant) -> None:
        """Starts the oldest webhook of a tenant's overflow, or removes an empty overflow. Raises LogUnavailable."""
        overflow = self._overflows[tenant]
        if not overflow:
            del self._overflows[tenant]
            logger.info("the webhooks of a tenant use no more than their share again", tenant=tenant)
            return
        seq = overflow.first
        if (delivery := await self._deliveries.resume(seq)) is not None:
            self._held[seq] = delivery
            await delivery.renew()
            if (target := await self._find_target(delivery.key)) is None:
                await self._ack(seq)
            else:
                self._start_task(group, delivery, *target)
        elif seq < await self._deliveries.first_seq():
            metrics.WEBHOOKS_GIVEN_UP.labels("expired").inc()
            why = "its turn left the log before other webhooks of the tenant had ended"
            logger.warning("webhook given up", tenant=tenant, seq=seq, reason="expired", why=why)
        overflow.remove_first()

    def _add_overflow(self, tenant: Tenant, why: str) -> None:
        self._overflows[tenant] = Overflow()
        logger.warning("webhooks of a tenant wait in the log", tenant=tenant, why=why)

    @property
    def _slots(self) -> int:
        """How many tasks a tenant may have now."""
        return 1 if len(self._tasks) >= WAITING_MAX else self._share

    def _count_beyond_share(self) -> int:
        return sum(map(len, self._overflows.values()))

    def _extension_s(self, overflow: Overflow) -> float:
        """Returns for how long the lease of a webhook in an overflow is extended.

        An unmarked one gets a usual lease, for which a process that starts after a kill waits.
        """
        return self._spread_s() if _now() < overflow.marked_until else self._deliveries.ack_wait_s

    def _spread_s(self) -> float:
        """Returns for how long leases are extended so that their extensions cost little."""
        spread_s = self._count_beyond_share() / EXTENSIONS_PER_S
        return max(self._deliveries.ack_wait_s, min(spread_s, EXTENDED_S_MAX))

    async def _mark(self) -> None:
        """Marks the tenants whose leases are to be extended longer than usual. Raises LogUnavailable.

        A mark outlives the leases that are extended before the next one.
        """
        if self._spread_s() <= self._deliveries.ack_wait_s:
            return
        for tenant, overflow in list(self._overflows.items()):
            if (now := _now()) + EXTENDED_S_MAX / 2 > overflow.marked_until:
                await self._marks.put(tenant, 2 * EXTENDED_S_MAX + self._deliveries.ack_wait_s)
                overflow.marked_until = now + EXTENDED_S_MAX

    async def _observe(self) -> None:
        """Sets the metrics and the marks, and logs when all slots are in use, until it is cancelled."""
        is_full = False
        while True:
            with suppress(LogUnavailable):
                backlog, now = await self._deliveries.backlog(), await self._log.now()
                metrics.WEBHOOKS_WAITING.set(backlog.waiting + backlog.leased)
                late_after = timedelta(seconds=self._give_up_s * LATE_PART)
                metrics.WEBHOOKS_LATE.set(sum(now - held.at > late_after for held in self._held.values()))
                # Some turns of the overflows may have been deleted.
                beyond = min(self._count_beyond_share(), backlog.leased - len(self._held))
                metrics.WEBHOOKS_BEYOND_SHARE.set(max(beyond, 0))
            if not is_full and len(self._tasks) >= WAITING_MAX:
                is_full = True
                logger.warning("the sender of webhooks is full: one webhook of each tenant", limit=WAITING_MAX)
            elif is_full and len(self._tasks) < WAITING_MAX / 2:
                is_full = False
                logger.info("the sender of webhooks is not full any more")
            if self._overflows:
                self._has_free.set()
            with suppress(LogUnavailable):
                await self._mark()
            await asyncio.sleep(OBSERVE_S)

    async def _run(
        self, key: TurnKey, seq: Seq, url: str, session: Session, previous: asyncio.Task[None] | None
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        try:
            await self._deliver(key, seq, url)
        except Exception:
            # A bug: without an acknowledgement the entry would be delivered for ever and block its session.
            logger.exception("webhook failed unexpectedly", turn=key.turn)
            _give_up(key, "error", "see the traceback")
        await self._ack(seq)
        if self._last.get(session) is self._tasks.pop(seq):
            del self._last[session]
        self._used[key.tenant] -= 1
        if not self._used[key.tenant]:
            del self._used[key.tenant]
        if self._overflows:
            self._has_free.set()

    async def _deliver(self, key: TurnKey, seq: Seq, url: str) -> None:
        """Posts the webhook until it is delivered or given up."""
        missing = 0
        for attempts in count(1):
            ended_at: datetime | None = self._held[seq].at
            retry_after_s = None
            try:
                async with self._connections.setdefault(key.tenant, asyncio.Semaphore(CONNECTIONS)):
                    if (answer := await self._post(key, seq, url)) is None:
                        return
            except TurnUnknown:
                missing, ended_at = missing + 1, None
                why = "the log does not keep its turn any more"
                if missing == MISSING_MAX:
                    _give_up(key, "expired", why)
                    return
            except WebhookRefused as error:
                _give_up(key, "refused", str(error))
                return
            except (WebhookFailed, LogUnavailable) as error:
                why = str(error)
            else:
                why, retry_after_s = f"the receiver answered {answer.status}", answer.retry_after_s
                match payload.classify(answer.status):
                    case "delivered":
                        metrics.WEBHOOKS_TAKEN.inc()
                        logger.info("webhook delivered", turn=key.turn, attempts=attempts)
                        return
                    case "gone":
                        _give_up(key, "gone", why)
                        return
            metrics.WEBHOOK_FAILURES.inc()
            if await self._is_expired(ended_at):
                _give_up(key, "expired", why)
                return
            wait_s = payload.next_wait_s(attempts, self._first_wait_s, retry_after_s, random.random())  # noqa: S311  # spreads load, hides nothing
            logger.info("webhook will be retried", turn=key.turn, attempts=attempts, why=why, wait_s=round(wait_s, 1))
            await asyncio.sleep(wait_s)

    async def _is_expired(self, ended_at: datetime | None) -> bool:
        """Returns whether the webhook of a turn that ended at `ended_at` is given up.

        False while the log does not answer. Uses the log's clock: a wrong clock here would give up every webhook.
        """
        try:
            return payload.is_expired(ended_at, await self._log.now(), self._give_up_s)
        except LogUnavailable:
            return False

    async def _find_turn(self, key: TurnKey, seq: Seq) -> Turn | None:
        """Returns the turn, or None if it was deleted or is being deleted.

        Raises TurnUnknown if the log has removed it by age, LogUnavailable.
        """
        try:
            turn = await self._log.read_turn_upto(ScopedKey.whole(key), seq)
        except TurnUnknown:
            if await self._tombstones.exists(key):
                return None
            raise
        # A server that lags behind the purge still has the turn.
        if await self._tombstones.exists(key):
            return None
        # A deletion marks a turn before it cancels it. If the deletion then fails, the turn stays, marked.
        is_deleted = turn.outcome == "cancelled" and await self._is_being_deleted(key, turn)
        return None if is_deleted else turn

    async def _is_being_deleted(self, key: TurnKey, turn: Turn) -> bool:
        """Returns whether a deletion has cancelled the turn. Raises LogUnavailable."""
        if await self._tombstones.is_deletion_marked(key):
            return True
        # A generator cancels the turns of a batch that a deletion has cancelled. The batch is their parent.
        batch = turn.request.parent if turn.request is not None else None
        if batch is None or not is_child_id(key.turn, batch):
            return False
        return await self._tombstones.is_deletion_marked(TurnKey(key.tenant, batch))

    async def _post(self, key: TurnKey, seq: Seq, url: str, reserved_bytes: int = BODY_BYTES) -> Answer | None:
        """Posts the webhook once; None if it must not be sent. Raises as `_render` and WebhookClient.post do."""
        body = await self._render(key, seq)
        if body is None:
            return None
        if (size := len(body)) > reserved_bytes:
            # It is not kept while it waits for other large ones.
            del body
            async with self._large_bodies.reserve(size, tenant=key.tenant):
                return await self._post(key, seq, url, size)
        secrets = [signature.derive_secret(operator_key, key.tenant) for operator_key in self._keys]
        return await self._client.post(url, signature.sign(key.turn, int(time.time()), body, secrets), body)

    async def _render(self, key: TurnKey, seq: Seq) -> bytes | None:
        """Returns the body of the webhook. None if the turn was deleted, or if its `end` at `seq` is not valid.

        Does not keep the turn, which needs several times as much memory, and a receiver may be slow. Raises
        TurnUnknown, LogUnavailable.
        """
        async with self._folds.reserve(tenant=key.tenant):
            turn = await self._find_turn(key, seq)
            if turn is None:
                logger.debug("webhook dropped: its turn was deleted", turn=key.turn)
                return None
            if turn.chain.last != seq:
                # A fork's `end`. The turn's valid one is delivered separately.
                return None
            return payload.render(record_from_fold(key, turn), names_action=self._names_action)

    async def _find_target(self, key: TurnKey) -> tuple[str, Session] | None:
        """Returns the URL of the turn's webhook, and its session; None if it has no webhook. Raises LogUnavailable."""
        request = await self._request(key)
        # A turn with `store: false` leaves nothing behind (R109), also not at the tenant's receiver.
        if request is None or not request.store or not (url := request.webhook or self._urls.get(key.tenant)):
            return None
        return url, (key.tenant, request.session)

    async def _request(self, key: TurnKey) -> Request | None:
        """Returns the turn's request; None if the turn was deleted, or has left the log before its webhook was known.

        Reads only the first entry if possible.
        """
        for stored in await self._log.read_entries(ScopedKey.whole(key), limit=1):
            if isinstance(stored.entry, Request):
                return stored.entry
        with suppress(TurnUnknown):
            return (await self._log.read_turn(ScopedKey.whole(key))).request
        return None

    async def _ack(self, seq: Seq) -> None:
        await self._held[seq].ack()
        # After the acknowledgement, which is also valid for a newer lease that arrived during it.
        del self._held[seq]


def parse_urls(name: str, text: str, private: frozenset[str]) -> Mapping[Tenant, str]:
    """Returns the URL of each tenant in `text`, the setting `name`. Raises SettingsInvalid."""
    urls: dict[Tenant, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        tenant, _, url = pair.partition("=")
        if not is_token(tenant):
            raise SettingsInvalid(f"{name}: expected TENANT=URL pairs, with TENANT of a-z 0-9 _ -")
        try:
            check_url(url, private)
        except UrlNotAllowed as error:
            raise SettingsInvalid(f"{name}: the URL of {tenant} {error}") from error
        urls[Tenant(tenant)] = url
    return urls


def _give_up(key: TurnKey, reason: metrics.GivenUp, why: str) -> None:
    metrics.WEBHOOKS_GIVEN_UP.labels(reason).inc()
    logger.warning("webhook given up", turn=key.turn, reason=reason, why=why)


def _now() -> float:
    return asyncio.get_running_loop().time()
