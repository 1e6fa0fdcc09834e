"""Prometheus metrics of budgets. Label values are fixed sets: never a tenant or a key."""

from prometheus_client import Counter

BUDGETS_REACHED = Counter(
    "tailrace_persistence_budgets_reached_total",
    "Budgets of which a share was spent, or which have refused a turn: each once in a period, by percent",
    ["percent"],
)
CORRECTED_DOLLARS = Counter(
    "tailrace_persistence_budget_corrected_dollars_total",
    "Amounts by which the counters of budgets did not agree with recorded and running turns, by the direction of the "
    "correction; it does not grow while no process is killed",
    ["direction"],
)
FREED_SLOTS = Counter(
    "tailrace_persistence_freed_slots_total", "Slots of `running` whose turn had ended or was never stored"
)

# For Prometheus, a series that appears with its first event has not grown.
for _direction in ("up", "down"):
    CORRECTED_DOLLARS.labels(_direction)
