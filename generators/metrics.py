"""The generator's metrics. Label values come from fixed sets: never a tenant, a turn or a model's text."""

from prometheus_client import Counter, Gauge, Histogram

from tailrace.proto.entries import End
from tailrace.proto.usage import NANO_USD_PER_USD

RUNNING = Gauge("tailrace_generator_turns_running", "Turns that run in this process")
ATTEMPTS = Counter("tailrace_generator_attempts_total", "Attempts begun, by mode", ["mode"])
ENDS = Counter("tailrace_generator_ends_total", "Turns ended here, by outcome", ["outcome"])
FAILURES = Counter("tailrace_generator_failures_total", "Turns failed here, by code", ["code"])
LOST = Counter("tailrace_generator_fences_lost_total", "Turns left because another writer had continued them")
REPETITIONS = Counter(
    "tailrace_generator_repetitions_total", "Continuations that repeated the end of the stored text; it was left out"
)
BACKEND_FAILURES = Counter("tailrace_generator_backend_failures_total", "Attempts that broke off, by code", ["code"])
FAILOVERS = Counter("tailrace_generator_failovers_total", "Failovers of turns, by the new backend", ["backend"])
HEDGES = Counter(
    "tailrace_generator_hedges_total",
    "Hedges that were first (won), were not (lost), or broke off (failed); and those that no generator took (declined)",
    ["outcome"],
)
HEDGE_COST = Counter("tailrace_generator_hedge_cost_dollars_total", "Cost of calls that lost a race, as far as known")
CALLS_REPEATED = Counter(
    "tailrace_generator_calls_repeated_total", "Calls repeated before the first event, by code", ["code"]
)
SCHEMA_CHECKS = Counter(
    "tailrace_generator_schema_checks_total",
    "Answers checked against a JSON Schema: fits, misfit, unchecked",
    ["verdict"],
)
APPEND_S = Histogram(
    "tailrace_generator_append_seconds",
    "Time from passing an entry to the log until it is acknowledged",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
)
USAGE = Counter("tailrace_generator_usage_tokens_total", "Tokens of the turns ended here, by kind", ["kind"])
COST = Counter("tailrace_generator_cost_dollars_total", "Cost of the turns ended here")
SKIPPED = Counter("tailrace_generator_skipped_entries_total", "Stored entries that were not valid: forks; 0 is normal")


def count_end(end: End) -> None:
    """Counts a turn that was ended here, and its usage."""
    ENDS.labels(end.outcome).inc()
    if end.error is not None:
        FAILURES.labels(end.error.code).inc()
    COST.inc(end.cost_nano_usd / NANO_USD_PER_USD)
    for kind in end.usage.__struct_fields__:
        USAGE.labels(kind).inc(getattr(end.usage, kind))
