"""Prometheus metrics of turns with `store: false`."""

from prometheus_client import Gauge

UNSTORED_DUE = Gauge(
    "tailrace_persistence_unstored_due", "Turns with `store: false` whose time is over and that are not yet erased"
)
