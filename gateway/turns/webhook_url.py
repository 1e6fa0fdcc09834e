"""Checks the webhook URL of a turn. Sends nothing and resolves no host name."""

from operator import attrgetter

from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.submission import Feature, TurnSubmission
from tailrace.proto.errors import Refused
from tailrace.proto.ssrf import UrlNotAllowed, check_url, parse_private_hosts


def webhook_feature(settings: Settings) -> Feature[TurnSubmission]:
    """Returns the step that refuses a turn with a webhook URL that no webhook would be sent to."""

    async def check(submission: TurnSubmission) -> None:
        check_webhook(submission.new_turn.webhook, settings)

    return Feature(check, attrgetter("new_turn.webhook"))


def check_webhook(url: str | None, settings: Settings) -> None:
    """Raises Refused for a URL that no webhook would be sent to. Its host is resolved only when it is called."""
    if url is None:
        return
    if not settings.webhooks:
        raise Refused(
            "request_invalid",
            "`webhook`: this server sends none: set TAILRACE_WEBHOOK_KEY for `up`, and TAILRACE_WEBHOOKS as well "
            "for a gateway that is started by itself",
        )
    try:
        check_url(url, parse_private_hosts(settings.webhook_private_hosts))
    except UrlNotAllowed as error:
        raise Refused("request_invalid", f"`webhook` {error}") from error
