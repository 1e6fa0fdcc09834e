"""Whether a turn may name the webhook that it names; raises a refusal. It sends nothing and resolves no name."""

from tailrace.gateway.settings import Settings
from tailrace.proto.errors import Refused
from tailrace.proto.ssrf import UrlNotAllowed, check_url, parse_private_hosts


def check_webhook(url: str | None, settings: Settings) -> None:
    """Raises Refused for a URL that nobody would be sent to. Where its host leads is seen when it is called."""
    if url is None:
        return
    if not settings.webhooks:
        raise Refused(
            "request_invalid",
            "`webhook`: this server sends none: `up` does with a TAILRACE_WEBHOOK_KEY, a gateway of its own with "
            "TAILRACE_WEBHOOKS as well",
        )
    try:
        check_url(url, parse_private_hosts(settings.webhook_private_hosts))
    except UrlNotAllowed as error:
        raise Refused("request_invalid", f"`webhook` {error}") from error
