"""Sends the webhooks that are about no turn, from the table `notices`, with the retries of all webhooks.

Their state is in the database: a process that is killed leaves them to the next one, which sends them under the same
ids.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from tailrace.features.webhooks import metrics, payload, signature
from tailrace.features.webhooks.http import WebhookClient
from tailrace.persistence.rows import micros, moment
from tailrace.persistence.run_every import run_every
from tailrace.persistence.store import Store
from tailrace.proto.errors import WebhookFailed, WebhookRefused
from tailrace.proto.ids import Tenant

logger = structlog.get_logger()

EVERY_S = 1.0
# Those of a receiver that is down are tried ever later, so that they do not delay the webhooks of others.
AT_ONCE_MAX = 100


class NoticeSender:
    """Sends each webhook to the URL of its tenant in `urls`. See WebhookSender; one sender at a time."""

    def __init__(
        self,
        store: Store,
        client: WebhookClient,
        *,
        keys: Sequence[bytes],
        urls: Mapping[Tenant, str],
        first_wait_s: float,
        give_up_s: float,
    ) -> None:
        self._store = store
        self._client = client
        self._keys = keys
        self._urls = urls
        self._first_wait_s = first_wait_s
        self._give_up_s = give_up_s

    async def run(self, stop: asyncio.Event) -> None:
        """Sends webhooks until `stop` is set."""
        await run_every(EVERY_S, self.send_due, "webhooks about no turn", stop)

    async def send_due(self) -> None:
        """Attempts each webhook whose time has come, once. Raises StoreError."""
        due = await self._store.read("waiting_notices", now=micros(datetime.now(UTC)), limit=AT_ONCE_MAX)
        await asyncio.gather(*map(self._attempt, due))

    async def _attempt(self, row: Mapping[str, Any]) -> None:
        tenant, attempts = Tenant(row["tenant"]), row["attempts"] + 1
        wait_s = await self._post(tenant, row, attempts) if tenant in self._urls else None
        next_at = None if wait_s is None else micros(datetime.now(UTC) + timedelta(seconds=wait_s))
        named = {"tenant": tenant, "notice": row["notice"]}
        async with self._store.write(tenant) as writer:
            await writer.execute("set_notice_attempts", named | {"attempts": attempts, "next_at": next_at})

    async def _post(self, tenant: Tenant, row: Mapping[str, Any], attempts: int) -> float | None:
        """Returns the seconds to wait before the next attempt; None if the webhook is delivered or given up."""
        body, name, retry_after_s = row["body"].encode(), row["notice"], None
        secrets = [signature.derive_secret(key, tenant) for key in self._keys]
        try:
            headers = signature.sign(name, int(time.time()), body, secrets)
            answer = await self._client.post(self._urls[tenant], headers, body)
        except WebhookRefused as error:
            _give_up(name, "refused", str(error))
            return None
        except WebhookFailed as error:
            why = str(error)
        else:
            why, retry_after_s = f"the receiver answered {answer.status}", answer.retry_after_s
            match payload.classify(answer.status):
                case "delivered":
                    metrics.WEBHOOKS_TAKEN.inc()
                    logger.info("webhook delivered", webhook=name, attempts=attempts)
                    return None
                case "gone":
                    _give_up(name, "gone", why)
                    return None
        metrics.WEBHOOK_FAILURES.inc()
        if payload.is_expired(moment(row["noted_at"]), datetime.now(UTC), self._give_up_s):
            _give_up(name, "expired", why)
            return None
        wait_s = payload.next_wait_s(attempts, self._first_wait_s, retry_after_s, random.random())  # noqa: S311  # spreads load, hides nothing
        logger.info("webhook will be retried", webhook=name, attempts=attempts, why=why, wait_s=round(wait_s, 1))
        return wait_s


def _give_up(name: str, reason: metrics.GivenUp, why: str) -> None:
    metrics.WEBHOOKS_GIVEN_UP.labels(reason).inc()
    logger.warning("webhook given up", webhook=name, reason=reason, why=why)
