"""Prometheus metrics of budgets. Label values are fixed sets: never a tenant or a key."""

from prometheus_client import Counter

BUDGETS_REACHED = Counter(
    "tailrace_persistence_budgets_reached_total",
    "Budgets of which a share was spent, or which have refused a turn: each once in a period, by percent",
    ["percent"],
)
CORRECTIONS = Counter(
    "tailrace_persistence_budget_corrections_total",
    "Counters of budgets that did not agree with recorded and running turns, by the direction of the correction; "
    "0 is normal while no process is killed",
    ["direction"],
)
CORRECTED_NANO_USD = Counter(
    "tailrace_persistence_budget_corrected_nano_usd_total",
    "Amounts of these corrections, in billionths of a dollar, by direction",
    ["direction"],
)
FREED_SLOTS = Counter(
    "tailrace_persistence_freed_slots_total", "Slots of `running` whose turn had ended or was never stored"
)

# For Prometheus, a series that appears with its first event has not grown.
for _direction in ("up", "down"):
    CORRECTIONS.labels(_direction)
    CORRECTED_NANO_USD.labels(_direction)
