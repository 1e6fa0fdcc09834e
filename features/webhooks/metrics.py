"""Prometheus metrics of webhooks. Label values are fixed sets: never a tenant, turn or session."""

from typing import Literal, get_args

from prometheus_client import Counter, Gauge

GivenUp = Literal["gone", "expired", "refused", "error"]
"""Why a webhook will not be delivered."""

WEBHOOKS_TAKEN = Counter("tailrace_persistence_webhooks_taken_total", "Webhooks that their receivers accepted (2xx)")
WEBHOOK_FAILURES = Counter(
    "tailrace_persistence_webhook_failures_total", "Failed delivery attempts of webhooks; each is retried"
)
WEBHOOKS_GIVEN_UP = Counter(
    "tailrace_persistence_webhooks_given_up_total", "Webhooks that will not be delivered, by reason", ["reason"]
)
WEBHOOKS_WAITING = Gauge("tailrace_persistence_webhooks_waiting", "Ended turns whose webhook is not yet delivered")
WEBHOOKS_BEYOND_SHARE = Gauge(
    "tailrace_persistence_webhooks_beyond_share",
    "Webhooks that wait in the log because their tenant has TAILRACE_WEBHOOK_SHARE of them waiting",
)
WEBHOOKS_LATE = Gauge(
    "tailrace_persistence_webhooks_late",
    "Webhooks, of those within the share of their tenant, that have waited for 1/24 of TAILRACE_WEBHOOK_GIVE_UP_S, by "
    "default an hour",
)

# For Prometheus, a series that appears with its first event has not grown. So create the series of alerts at 0.
for _reason in get_args(GivenUp):
    WEBHOOKS_GIVEN_UP.labels(_reason)
