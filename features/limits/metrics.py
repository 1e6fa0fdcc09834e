"""Prometheus metrics of budgets. Label values are fixed sets: never a tenant or a key."""

from prometheus_client import Counter

BUDGETS_REACHED = Counter(
    "tailrace_persistence_budgets_reached_total",
    "Budgets of which a share was spent, or which have refused a turn: each once in a period, by percent",
    ["percent"],
)
