"""Checks the webhook URL of a turn. Sends nothing and resolves no host name."""

from tailrace.gateway.settings import Settings
from tailrace.proto.errors import Refused
from tailrace.proto.ssrf import UrlNotAllowed, check_url, parse_private_hosts


def check_webhook(settings: Settings, url: str) -> None:
    """Raises Refused for a URL that no webhook would be sent to. Its host is resolved only when it is called."""
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
