"""The check of the webhook URL of a turn or a batch. Sends nothing and resolves no host name."""

from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.features.webhooks.ssrf import UrlNotAllowed, check_url, parse_private_hosts
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of webhooks in the gateway. Persistence, which sends them, has its own."""

    webhooks: Annotated[
        bool,
        Meta(
            description="whether a turn may name a webhook; persistence sends it and needs TAILRACE_WEBHOOK_KEY, with "
            "which `up` sets `true`"
        ),
    ] = False
    webhook_private_hosts: Annotated[
        str, Meta(description="hosts, separated by commas, that may be private addresses and may use plain http")
    ] = ""


def check_webhook(settings: Settings, new_turn: NewTurn) -> None:
    """Raises Refused for a URL that no webhook would be sent to. Its host is resolved only when the URL is called."""
    if not settings.webhooks:
        raise Refused(
            "request_invalid",
            "`webhook`: this server accepts none. Its operator sets TAILRACE_WEBHOOK_KEY, and for a gateway that is "
            "started by itself TAILRACE_WEBHOOKS=true",
        )
    try:
        check_url(new_turn.webhook or "", parse_private_hosts(settings.webhook_private_hosts))
    except UrlNotAllowed as error:
        raise Refused("request_invalid", f"`webhook` {error}") from error


async def check(settings: Settings) -> None:
    """Raises SettingsInvalid for an invalid private host."""
    parse_private_hosts(settings.webhook_private_hosts)


def start(_: Gateway, settings: Settings) -> Parts:
    """Makes the step that checks the webhook of a new turn or batch."""
    return Parts(steps=OptionalSteps(check_webhook=partial(check_webhook, settings)))


FEATURE = Feature(Settings, start, check=check)
