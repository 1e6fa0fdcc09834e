"""Tells receivers of turns that have ended: again until they take it, a session's in order. It stores nothing.

An `end` stays leased here until its webhook was taken or given up, and is acknowledged then. So whoever is killed
leaves all that was waiting to the next, which tells it again under the same id. What is told is folded from the log at
each try: a turn that was deleted meanwhile is told to nobody.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Literal

import structlog

from tailrace.persistence import metrics
from tailrace.persistence.settings import Settings
from tailrace.persistence.webhooks import payload, signature
from tailrace.persistence.webhooks.http import Answer, Egress
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable, SettingsInvalid, TurnUnknown, WebhookFailed, WebhookRefused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, Tenant, is_token
from tailrace.proto.nats import Deliveries, Delivery, TurnLog
from tailrace.proto.records import record_from_fold
from tailrace.proto.ssrf import UrlNotAllowed, check_url, parse_private_hosts
from tailrace.proto.subjects import TurnKey

logger = structlog.get_logger()

# Each costs a task, and a renewal of its lease every few seconds. One tenant, whose receiver is away for a day, may
# have half of them: what it has beyond that is given up at once, or everybody's would wait for it.
WAITING_MAX = 10_000
WAITING_TENANT_MAX = WAITING_MAX // 2
# Connections to one tenant's receivers at a time: a slow one makes its own tenant wait, and nobody else.
LINES = 8
TAKEN_MAX = 100
LOG_WAIT_S = 1.0

Session = tuple[Tenant, str]
GivenUp = Literal["unwanted", "expired", "refused", "crowded", "broken"]


class Webhooks:
    """Tells of every `end` that `deliveries` hand out. `urls`: whom, for a tenant whose turn names nobody.

    `keys` are the operator's: see signature.py. The wait after a try is `first_wait_s`, then twice that, and so on,
    until the end is older than `give_up_s`; each is tried once at least.
    """

    def __init__(
        self,
        log: TurnLog,
        deliveries: Deliveries,
        egress: Egress,
        *,
        keys: Sequence[bytes],
        urls: Mapping[Tenant, str],
        first_wait_s: float,
        give_up_s: float,
    ) -> None:
        self._log = log
        self._deliveries = deliveries
        self._egress = egress
        self._keys = keys
        self._urls = urls
        self._first_wait_s = first_wait_s
        self._give_up_s = give_up_s
        self._held: dict[Seq, Delivery] = {}
        self._tasks: dict[Seq, asyncio.Task[None]] = {}
        self._last: dict[Session, asyncio.Task[None]] = {}
        self._crowds: Counter[Tenant] = Counter()
        self._lines: defaultdict[Tenant, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(LINES))

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; what was not taken by then is given back, for the next process.

        Raises LogUnavailable when it cannot begin.
        """
        left = (await self._deliveries.backlog()).leased
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._renew())
            stopping = group.create_task(stop.wait())
            await self._begin(group, await self._left_by_others(left, stop))
            while not stop.is_set():
                room = WAITING_MAX - len(self._held)
                if room <= 0:
                    await asyncio.wait({stopping, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
                    continue
                await self._begin(group, await self._deliveries.next(min(room, TAKEN_MAX)))
                with suppress(LogUnavailable):
                    metrics.WEBHOOKS_WAITING.set(len(self._held) + (await self._deliveries.backlog()).waiting)
            for task in (renewing, *self._tasks.values()):
                task.cancel()
        for seq in sorted(self._held):
            await self._held[seq].give_back()

    async def _left_by_others(self, left: int, stop: asyncio.Event) -> list[Delivery]:
        """All `left` that were leased to a process that is gone, and what came meanwhile: newer ones overtake nothing.

        The server hands it out again when its leases have run out, and does not say what it is before.
        """
        found: list[Delivery] = []
        deadline = _now() + 2 * self._deliveries.ack_wait_s
        while left > 0 and _now() < deadline and not stop.is_set():
            for delivery in await self._deliveries.next(min(left, TAKEN_MAX)):
                self._held[delivery.seq] = delivery
                found.append(delivery)
                left -= delivery.times > 1
        return found

    async def _begin(self, group: asyncio.TaskGroup, deliveries: Sequence[Delivery]) -> None:
        """A task for each webhook, after that of the session's last one; in the order of their ends."""
        ordered = sorted(deliveries, key=lambda delivery: delivery.seq)
        self._held.update({delivery.seq: delivery for delivery in ordered})
        # What runs here already is held by a newer lease now, and that is all.
        new = [delivery for delivery in ordered if delivery.seq not in self._tasks]
        for number, delivery in enumerate(new):
            key = delivery.key
            try:
                request = await self._request(key)
            except LogUnavailable:
                # Back without a delay: with one, a later end of the same session would come before it.
                await asyncio.sleep(LOG_WAIT_S)
                for later in new[number:]:
                    await self._held.pop(later.seq).give_back()
                return
            url = (request.webhook or self._urls.get(key.tenant)) if request is not None else None
            if request is None or url is None:
                await self._let_go(delivery.seq)
            elif self._crowds[key.tenant] >= WAITING_TENANT_MAX:
                _give_up(key, "crowded", f"{WAITING_TENANT_MAX} others of its tenant are waiting")
                await self._let_go(delivery.seq)
            else:
                session = (key.tenant, request.session)
                task = group.create_task(self._carry(key, delivery.seq, url, session, self._last.get(session)))
                self._tasks[delivery.seq] = self._last[session] = task
                self._crowds[key.tenant] += 1

    async def _carry(
        self, key: TurnKey, seq: Seq, url: str, session: Session, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            await self._tell(key, seq, url)
        except Exception:
            # The edge of one webhook: a mistake of ours would come again for ever, and hold all that follow it.
            logger.exception("webhook broke", turn=key.turn)
            _give_up(key, "broken", "see the traceback")
        await self._let_go(seq)
        if self._last.get(session) is self._tasks.pop(seq):
            del self._last[session]
        self._crowds[key.tenant] -= 1

    async def _tell(self, key: TurnKey, seq: Seq, url: str) -> None:
        """Returns when the webhook was taken, or nobody is to be told any more."""
        for tries in count(1):
            ended_at, asked_s = None, None
            try:
                async with self._lines[key.tenant]:
                    turn = await self._log.turn_upto(key, seq)
                    if turn.chain.last != seq:
                        # This `end` is a fork's. The turn's own is delivered like this one.
                        return
                    ended_at = turn.ended_at
                    answer = await self._post(key, turn, url)
            except TurnUnknown:
                logger.debug("turn was deleted, and is told to nobody", turn=key.turn)
                return
            except WebhookRefused as error:
                _give_up(key, "refused", str(error))
                return
            except (WebhookFailed, LogUnavailable) as error:
                why = str(error)
            else:
                why, asked_s = f"it answered {answer.status}", answer.retry_after_s
                match payload.verdict(answer.status):
                    case "taken":
                        metrics.WEBHOOKS_TAKEN.inc()
                        logger.info("webhook taken", turn=key.turn, tries=tries)
                        return
                    case "unwanted":
                        _give_up(key, "unwanted", why)
                        return
            metrics.WEBHOOK_FAILURES.inc()
            if payload.is_over(ended_at, datetime.now(UTC), self._give_up_s):
                _give_up(key, "expired", why)
                return
            wait_s = payload.wait_s(tries, self._first_wait_s, asked_s, random.random())  # noqa: S311  # spreads load, hides nothing
            logger.info("webhook waits", turn=key.turn, tries=tries, why=why, wait_s=round(wait_s, 1))
            await asyncio.sleep(wait_s)

    async def _post(self, key: TurnKey, turn: Turn, url: str) -> Answer:
        body = payload.body(record_from_fold(key, turn))
        secrets = [signature.secret(operators, key.tenant) for operators in self._keys]
        return await self._egress.post(url, signature.headers(key.turn, int(time.time()), body, secrets), body)

    async def _request(self, key: TurnKey) -> Request | None:
        """Who asked what; None when the turn was deleted. The first entry says it: few turns have a webhook."""
        for stored in await self._log.replay(key, limit=1):
            if isinstance(stored.entry, Request):
                return stored.entry
        with suppress(TurnUnknown):
            return (await self._log.turn(key)).request
        return None

    async def _let_go(self, seq: Seq) -> None:
        await self._held[seq].done()
        # Only now: a newer lease that came meanwhile goes with it.
        del self._held[seq]

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._deliveries.renew_every_s)
            for delivery in tuple(self._held.values()):
                await delivery.keep()


def check(settings: Settings) -> None:
    """Raises SettingsInvalid for webhooks that nobody could sign or send."""
    signature.keys(settings.webhook_key)
    tenants_urls(settings.webhook_urls, parse_private_hosts(settings.webhook_private_hosts))


def tenants_urls(text: str, private: frozenset[str]) -> Mapping[Tenant, str]:
    """What the setting says: whom to tell of a tenant's turns. Raises SettingsInvalid."""
    urls: dict[Tenant, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        tenant, _, url = pair.partition("=")
        if not is_token(tenant):
            raise SettingsInvalid("TAILRACE_WEBHOOK_URLS: expected TENANT=URL, TENANT of a-z 0-9 _ -")
        try:
            check_url(url, private)
        except UrlNotAllowed as error:
            raise SettingsInvalid(f"TAILRACE_WEBHOOK_URLS: the URL of {tenant} {error}") from error
        urls[Tenant(tenant)] = url
    return urls


def _give_up(key: TurnKey, reason: GivenUp, why: str) -> None:
    metrics.WEBHOOKS_GIVEN_UP.labels(reason).inc()
    logger.warning("webhook given up", turn=key.turn, reason=reason, why=why)


def _now() -> float:
    return asyncio.get_running_loop().time()
