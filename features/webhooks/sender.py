"""Webhook delivery: consumes `end` entries and posts each ended turn, with retries, in order within a session.

It stores nothing. An `end` stays leased until its webhook is delivered or given up, and is acknowledged then. If this
process is killed, the next one delivers the waiting webhooks under the same ids. Each attempt folds the turn from the
log again, so a turn that was deleted meanwhile, or that the log keeps no longer, is not sent.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from weakref import WeakValueDictionary

import structlog

from tailrace.features.webhooks import metrics, payload, signature
from tailrace.features.webhooks.http import Answer, WebhookClient
from tailrace.features.webhooks.ssrf import UrlNotAllowed, check_url
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable, SettingsInvalid, TurnUnknown, WebhookFailed, WebhookRefused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, TurnKey, is_child_id, is_token
from tailrace.proto.nats import Deliveries, Delivery, Tombstones, TurnLog
from tailrace.proto.records import record_from_fold
from tailrace.proto.runtime.race import is_set_within, run_until

logger = structlog.get_logger()

# Each waiting webhook costs a task and the renewals of its lease. A tenant whose receiver is down for a day may have
# half of them; its further webhooks are given up, because otherwise all tenants would wait. If the receiver
# works, one of them ends within SLOT_WAIT_S, and its slot is free again: after an outage, more may wait.
WAITING_MAX = 10_000
WAITING_TENANT_MAX = WAITING_MAX // 2
SLOT_WAIT_S = 1.0
# Concurrent connections to one tenant's receivers, so that a slow receiver delays only its own tenant.
CONNECTIONS = 8
BATCH_MAX = 100
# Attempts that do not find the turn. A deletion removes a turn from the log seconds before it sets the tombstone.
MISSING_MAX = 3
LOG_WAIT_S = 1.0

Session = tuple[Tenant, str]


class WebhookSender:
    """Sends a webhook for each `end` of `deliveries` to the turn's `webhook`, or else to the tenant's URL in `urls`.

    One sender at a time: the order within a session is kept in its memory.

    `keys` are the operator's signing keys (signature.py). The wait before a retry is `first_wait_s` and doubles, until
    the end is older than `give_up_s`. Each webhook is attempted at least once. See `payload.render` for `names_action`.
    """

    def __init__(
        self,
        log: TurnLog,
        tombstones: Tombstones,
        deliveries: Deliveries,
        client: WebhookClient,
        *,
        keys: Sequence[bytes],
        urls: Mapping[Tenant, str],
        first_wait_s: float,
        give_up_s: float,
        names_action: bool = False,
    ) -> None:
        self._log = log
        self._tombstones = tombstones
        self._deliveries = deliveries
        self._client = client
        self._keys = keys
        self._urls = urls
        self._first_wait_s = first_wait_s
        self._give_up_s = give_up_s
        self._names_action = names_action
        self._held: dict[Seq, Delivery] = {}
        self._number = 0
        """The number of the last delivery."""
        self._tasks: dict[Seq, asyncio.Task[None]] = {}
        self._last: dict[Session, asyncio.Task[None]] = {}
        # A tenant without a webhook needs no memory: each user of a login may be a tenant.
        self._slots: WeakValueDictionary[Tenant, asyncio.Semaphore] = WeakValueDictionary()
        self._stuck: set[Tenant] = set()
        """Tenants of which no webhook has ended for SLOT_WAIT_S, while all their slots were in use."""
        self._connections: WeakValueDictionary[Tenant, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, stop: asyncio.Event) -> None:
        """Delivers until `stop` is set, and returns the undelivered entries to the log then."""
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._deliveries.keep_renewed(self._held.values))
            while not stop.is_set():
                free = WAITING_MAX - len(self._held)
                if free <= 0:
                    await run_until(stop.wait(), *self._tasks.values())
                    continue
                found, has_gap = await self._receive(free)
                if has_gap:
                    found += await self._receive_leased(found, stop)
                await self._start(group, found, stop)
                with suppress(LogUnavailable):
                    metrics.WEBHOOKS_WAITING.set(len(self._held) + (await self._deliveries.backlog()).waiting)
            for task in (renewing, *self._tasks.values()):
                task.cancel()
        for seq in sorted(self._held):
            await self._held[seq].release()

    async def _receive(self, most: int) -> tuple[list[Delivery], bool]:
        """Receives entries, at most BATCH_MAX, and returns whether others were delivered but did not arrive here.

        The previous process may have them, or the connection to NATS was lost while they were on their way.
        """
        found = await self._deliveries.next(min(most, BATCH_MAX))
        if not found:
            return [], False
        previous, self._number = self._number, found[-1].number
        return found, self._number - previous != len(found)

    async def _receive_leased(self, received: Sequence[Delivery], stop: asyncio.Event) -> list[Delivery]:
        """Receives the leased entries that this process does not have, and entries that are delivered in between.

        The server delivers them again when their leases expire. `received` and newer entries must not be sent before
        them.
        """
        self._held.update((delivery.seq, delivery) for delivery in received)
        found: list[Delivery] = []
        deadline = _now() + 2 * self._deliveries.ack_wait_s
        while _now() < deadline and not stop.is_set():
            try:
                missing = (await self._deliveries.backlog()).leased - len(self._held)
            except LogUnavailable:
                # Nothing is delivered meanwhile.
                missing, deadline = 1, _now() + 2 * self._deliveries.ack_wait_s
            if missing <= 0:
                break
            more, _ = await self._receive(missing)
            self._held.update((delivery.seq, delivery) for delivery in more)
            found += more
        return found

    async def _start(self, group: asyncio.TaskGroup, deliveries: Sequence[Delivery], stop: asyncio.Event) -> None:
        """Starts a task for each webhook, in log order; it waits for the task of its session's previous webhook.

        When `stop` is set, it leaves the rest to `run`, which returns them to the log.
        """
        # An end whose lease expired meanwhile is delivered twice. The last delivery has the valid lease.
        latest = {delivery.seq: delivery for delivery in deliveries}
        ordered = sorted(latest.values(), key=lambda delivery: delivery.seq)
        self._held.update(latest)
        # A running webhook that is delivered again only gets the newer lease.
        new = [delivery for delivery in ordered if delivery.seq not in self._tasks]
        for delivery in new:
            key = delivery.key
            while not stop.is_set():
                try:
                    request = await self._request(key)
                    break
                except LogUnavailable:
                    # The end keeps its lease. An end that was returned while NATS is away would come after later ones.
                    await is_set_within(stop, LOG_WAIT_S)
            else:
                return
            # A turn with `store: false` leaves nothing behind (R109), also not at the tenant's receiver.
            url = (request.webhook or self._urls.get(key.tenant)) if request is not None and request.store else None
            slots = self._slots.setdefault(key.tenant, asyncio.Semaphore(WAITING_TENANT_MAX))
            if request is None or url is None:
                await self._ack(delivery.seq)
            elif not await self._reserve(slots, key.tenant):
                _give_up(key, "tenant_limit", f"{WAITING_TENANT_MAX} other webhooks of this tenant are waiting")
                await self._ack(delivery.seq)
            else:
                session = (key.tenant, request.session)
                task = group.create_task(self._run(key, delivery.seq, url, session, self._last.get(session), slots))
                self._tasks[delivery.seq] = self._last[session] = task

    async def _reserve(self, slots: asyncio.Semaphore, tenant: Tenant) -> bool:
        """Reserves a slot of the tenant. Returns False if none is free within SLOT_WAIT_S, or the tenant is stuck."""
        if slots.locked() and tenant in self._stuck:
            return False
        try:
            async with asyncio.timeout(SLOT_WAIT_S):
                await slots.acquire()
        except TimeoutError:
            self._stuck.add(tenant)
            return False
        return True

    async def _run(
        self,
        key: TurnKey,
        seq: Seq,
        url: str,
        session: Session,
        previous: asyncio.Task[None] | None,
        slots: asyncio.Semaphore,
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
        self._stuck.discard(key.tenant)
        slots.release()

    async def _deliver(self, key: TurnKey, seq: Seq, url: str) -> None:
        """Posts the webhook until it is delivered or given up."""
        missing = 0
        for attempts in count(1):
            ended_at, retry_after_s = None, None
            try:
                async with self._connections.setdefault(key.tenant, asyncio.Semaphore(CONNECTIONS)):
                    turn = await self._find_turn(key, seq)
                    if turn is None:
                        logger.debug("webhook dropped: its turn was deleted", turn=key.turn)
                        return
                    if turn.chain.last != seq:
                        # A fork's `end`. The turn's valid one is delivered separately.
                        return
                    ended_at = turn.ended_at
                    answer = await self._post(key, turn, url)
            except TurnUnknown:
                missing += 1
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
            # Thousands of webhooks may wait for an hour: their conversations need not stay in memory.
            turn = None
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
            turn = await self._log.read_turn_upto(key, seq)
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

    async def _post(self, key: TurnKey, turn: Turn, url: str) -> Answer:
        body = payload.render(record_from_fold(key, turn), names_action=self._names_action)
        secrets = [signature.derive_secret(operator_key, key.tenant) for operator_key in self._keys]
        return await self._client.post(url, signature.sign(key.turn, int(time.time()), body, secrets), body)

    async def _request(self, key: TurnKey) -> Request | None:
        """Returns the turn's request; None if the turn was deleted, or has left the log before its webhook was known.

        Reads only the first entry if possible.
        """
        for stored in await self._log.read_entries(key, limit=1):
            if isinstance(stored.entry, Request):
                return stored.entry
        with suppress(TurnUnknown):
            return (await self._log.read_turn(key)).request
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
