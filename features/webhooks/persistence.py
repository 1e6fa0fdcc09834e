"""Webhooks: settings, and the part of the persistence process that sends them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Meta

from tailrace.features.webhooks import signature
from tailrace.features.webhooks.http import WebhookClient
from tailrace.features.webhooks.marks import Marks
from tailrace.features.webhooks.notices import NoticeSender
from tailrace.features.webhooks.sender import WebhookSender, parse_urls
from tailrace.features.webhooks.ssrf import parse_private_hosts
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.settings import SECONDS_MAX
from tailrace.persistence.sql import read_queries
from tailrace.persistence.tables import Tables
from tailrace.proto.errors import StoreBusy, StoreUnwritable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Deliveries
from tailrace.proto.runtime.logged_causes import LoggedCauses
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.subjects import WEBHOOKS

logger = structlog.get_logger()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of webhooks."""

    webhook_key: Annotated[
        str,
        Meta(
            description="key from which each tenant's signing secret is derived, 32 characters or more; empty: no "
            "webhooks are sent. To rotate it, set new and old key, separated by a comma: both sign"
        ),
    ] = ""
    webhook_urls: Annotated[
        str,
        Meta(description="TENANT=URL pairs, separated by commas: default receivers for turns without a `webhook`"),
    ] = ""
    budget_webhook_urls: Annotated[
        str,
        Meta(
            description="TENANT=URL pairs, separated by commas: receivers of `budget.reached`, which get no turns; "
            "else those of TAILRACE_WEBHOOK_URLS get it"
        ),
    ] = ""
    webhook_private_hosts: Annotated[
        str, Meta(description="hosts, separated by commas, that may be private addresses and may use plain http")
    ] = ""
    webhook_timeout_s: Annotated[float, Meta(gt=0, description="time limit for a receiver's response")] = 15.0
    webhook_wait_s: Annotated[
        float, Meta(gt=0, description="wait before the first retry of a webhook; doubles up to an hour, with jitter")
    ] = 5.0
    webhook_give_up_s: Annotated[
        float,
        Meta(gt=0, le=SECONDS_MAX, description="a webhook is given up when its turn ended longer ago than this"),
    ] = 24 * 3600.0
    webhook_share: Annotated[
        int,
        Meta(
            gt=0,
            description="how many webhooks of a tenant may be in sending or wait for a retry; its others wait in the "
            "log, so that a receiver that is down delays only the webhooks of its own tenant",
        ),
    ] = 200
    webhook_requires_action: Annotated[
        bool,
        Meta(
            description="whether a completed turn that ended with calls of the client's tools has the type "
            "`turn.requires_action` in its webhook, and not `turn.completed`"
        ),
    ] = False


def check(settings: Settings) -> None:
    """Raises SettingsInvalid for invalid signing keys or URLs."""
    signature.parse_keys(settings.webhook_key)
    _urls(settings)


def _urls(settings: Settings) -> tuple[Mapping[Tenant, str], Mapping[Tenant, str]]:
    """Returns the URL of each tenant for its turns, and for its budgets. Raises SettingsInvalid."""
    private = parse_private_hosts(settings.webhook_private_hosts)
    of_turns = parse_urls("TAILRACE_WEBHOOK_URLS", settings.webhook_urls, private)
    of_budgets = parse_urls("TAILRACE_BUDGET_WEBHOOK_URLS", settings.budget_webhook_urls, private)
    return of_turns, {**of_turns, **of_budgets}


def _start(services: Services, settings: Settings) -> Parts:
    keys = signature.parse_keys(settings.webhook_key)
    return Parts(beside=[partial(_send, services, settings, keys)] if keys else [])


@asynccontextmanager
async def _send(
    services: Services, settings: Settings, keys: Sequence[bytes], stop: asyncio.Event
) -> AsyncIterator[None]:
    """Sends webhooks while the block runs. An unexpected error ends the process.

    Of several processes with one database, only the one that holds the lock `webhooks` sends.
    """
    private = parse_private_hosts(settings.webhook_private_hosts)
    deliveries = await Deliveries.open(services.connection, WEBHOOKS)
    async with WebhookClient(private, timeout_s=settings.webhook_timeout_s) as client:
        common: dict[str, Any] = {
            "keys": keys,
            "first_wait_s": settings.webhook_wait_s,
            "give_up_s": settings.webhook_give_up_s,
        }
        urls, budget_urls = _urls(settings)
        of_turns = {
            "urls": urls,
            "share": settings.webhook_share,
            "names_action": settings.webhook_requires_action,
            **common,
        }
        marks = Marks(services.connection)
        build = partial(WebhookSender, services.log, services.tombstones, deliveries, marks, client, **of_turns)
        notices = NoticeSender(services.store, client, urls=budget_urls, **common)
        is_sender, logged = asyncio.Event(), LoggedCauses()

        async def send() -> None:
            while not stop.is_set():
                try:
                    async with services.store.lock("webhooks"):
                        is_sender.set()
                        logged.clear()
                        async with asyncio.TaskGroup() as group:
                            noticing = group.create_task(notices.run(stop))
                            await build().run(stop)
                            noticing.cancel()
                except (StoreBusy, StoreUnwritable) as error:
                    if logged.add(str(error)):
                        logger.warning("webhooks wait for the database", why=str(error))
                    await is_set_within(stop, services.retry_wait_s)
                finally:
                    is_sender.clear()

        sending = asyncio.create_task(send())
        sending.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
            if not is_sender.is_set():
                sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending


FEATURE = Feature(Settings, _start, Tables(read_queries(__package__)), check=check)
