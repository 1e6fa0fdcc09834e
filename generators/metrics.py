"""The generator's metrics. Label values come from fixed sets: never a turn or a model's text.

Tenants are labels only if the operator lists them.
"""

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from tailrace.proto.entries import End, Mode, Outcome
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.models import model_label
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.clock import age_s
from tailrace.proto.runtime.fast_metrics import FastHistogram
from tailrace.proto.usage import NANO_USD_PER_USD, ModelUsage, Usage

# Up to the default `deadline_s` of a turn, 900 s, and beyond.
TURN_BUCKETS_S = (0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 900, 1800)
APPEND_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

SLOTS = Gauge("tailrace_generator_slots", "Maximum number of turns that this process runs at once")
RUNNING = Gauge("tailrace_generator_turns_running", "Turns that run in slots of this process; batches take no slot")
ATTEMPTS = Counter("tailrace_generator_attempts_total", "Attempts begun, by mode", ["mode"])
ENDS = Counter("tailrace_generator_ends_total", "Turns ended here, by outcome", ["outcome"])
FAILURES = Counter("tailrace_generator_failures_total", "Turns failed here, by code", ["code"])
LOST = Counter("tailrace_generator_fences_lost_total", "Turns left because another writer had continued them")
REPETITIONS = Counter(
    "tailrace_generator_repetitions_total", "Continuations that repeated the end of the stored text; it was left out"
)
THINKING_LEFT_OUT = Counter(
    "tailrace_generator_thinking_left_out_total", "Thinking blocks of earlier answers that a changed prompt left out"
)
THINKING_REFUSED = Counter(
    "tailrace_generator_thinking_refused_total",
    "Calls that the model's API refused because of their thinking, and that were repeated without it; 0 is normal, "
    "except for clients that send thinking behind a changed prompt",
)
BACKEND_FAILURES = Counter("tailrace_generator_backend_failures_total", "Attempts that broke off, by code", ["code"])
FAILOVERS = Counter(
    "tailrace_generator_failovers_total",
    "Failovers of turns, by the new backend and the code of the failure",
    ["backend", "code"],
)
KEY_REFUSED = Gauge(
    "tailrace_generator_key_refused", "Whether the API of a backend refused the key in its last call", ["backend"]
)
CALLS_REPEATED = Counter(
    "tailrace_generator_calls_repeated_total", "Calls repeated before the first event, by code", ["code"]
)
APPEND_S = FastHistogram(
    "tailrace_generator_append_seconds",
    "Time from passing an event to the log until it is acknowledged",
    buckets=APPEND_BUCKETS_S,
)
DELTA_STORED_S = FastHistogram(
    "tailrace_generator_delta_stored_seconds",
    "Time from a delta of the model until it is stored in the log; of joined deltas, the first one",
    buckets=APPEND_BUCKETS_S,
)
USAGE = Counter(
    "tailrace_generator_usage_tokens_total",
    "Billed tokens of the turns ended here, by kind and by the model that used them",
    ["kind", "model"],
)
COST = Counter(
    "tailrace_generator_cost_dollars_total", "Cost of the turns ended here, by the model that caused it", ["model"]
)
TENANT_USAGE = Counter(
    "tailrace_generator_tenant_usage_tokens_total",
    "Tokens of the turns ended here, by kind, and by tenant for those of TAILRACE_METRICS_TENANTS",
    ["kind", "tenant"],
)
TENANT_COST = Counter(
    "tailrace_generator_tenant_cost_dollars_total",
    "Cost of the turns ended here, by tenant for those of TAILRACE_METRICS_TENANTS",
    ["tenant"],
)
TURN_S = Histogram(
    "tailrace_generator_turn_seconds",
    "Time from a turn's request to its end, as the log stored them, by outcome and model",
    ["outcome", "model"],
    buckets=TURN_BUCKETS_S,
)
QUEUE_WAIT_S = Histogram(
    "tailrace_generator_queue_wait_seconds",
    "Time from a turn's request until a generator begins its first attempt",
    buckets=WAIT_BUCKETS_S,
)
TAKEOVER_S = Histogram(
    "tailrace_generator_takeover_seconds",
    "Time from the last entry of a generator that stopped until another continues the turn",
    buckets=WAIT_BUCKETS_S,
)
PEERS_GONE = Counter(
    "tailrace_generator_peers_gone_total",
    "Other generators that left NATS without notice: dead, their leases released here; unsure, their leases expire; "
    "alive, this process is taken for dead by another one: 0 is normal",
    ["verdict"],
)
LEASES_RELEASED = Counter(
    "tailrace_generator_leases_released_total", "Turns of a dead generator released before their lease expired"
)
STOP_S = Histogram(
    "tailrace_generator_stop_seconds",
    "Time from a cancellation in the log until the call to the model is closed",
    buckets=WAIT_BUCKETS_S,
)
JOINED = Counter(
    "tailrace_generator_deltas_joined_total", "Deltas that were joined to an earlier one that was still waiting"
)
SKIPPED = Counter("tailrace_generator_skipped_entries_total", "Stored entries that were not valid: forks; 0 is normal")

# For Prometheus, a series that appears with its first event has not grown. So create the series of alerts at 0.
for _mode in get_args(Mode):
    ATTEMPTS.labels(_mode)
for _outcome in get_args(Outcome):
    ENDS.labels(_outcome)
FAILURES.labels("attempts_exhausted")
for _verdict in ("dead", "unsure", "alive"):
    PEERS_GONE.labels(_verdict)


def observe_start(turn: Turn) -> None:
    """Observes how long a turn has waited for this generator: in the queue, or since another generator stopped."""
    if turn.end is not None or turn.asked_at is None or turn.last_entry_at is None:
        return
    trace = tracing.exemplar(turn.request.traceparent if turn.request is not None else None)
    if turn.attempt:
        TAKEOVER_S.observe(age_s(turn.last_entry_at), trace)
    elif turn.request is None or not turn.request.is_queued:
        # A queued turn has waited for another one, not for a generator.
        QUEUE_WAIT_S.observe(age_s(turn.asked_at), trace)


def observe_duration(turn: Turn) -> None:
    """Observes how long the ended turn took."""
    assert turn.request is not None  # noqa: S101
    assert turn.asked_at is not None  # noqa: S101
    TURN_S.labels(turn.outcome, model_label(turn.request.model)).observe(
        age_s(turn.asked_at), tracing.exemplar(turn.request.traceparent)
    )


# The tenants that are labels. All others are `other`; if it is empty, nothing is counted by tenant.
TENANTS: set[str] = set()


def count_end(key: TurnKey, turn: Turn) -> None:
    """Counts a turn that this process has ended: its outcome, tokens and cost."""
    assert turn.end is not None  # noqa: S101
    assert turn.request is not None  # noqa: S101
    end = turn.end
    ENDS.labels(end.outcome).inc()
    if end.error is not None:
        FAILURES.labels(end.error.code).inc()
    for name, part in (end.by_model or {turn.request.model: own_usage(end)}).items():
        _count_usage(part, USAGE, COST, model_label(name))
    if TENANTS:
        _count_usage(own_usage(end), TENANT_USAGE, TENANT_COST, key.tenant if key.tenant in TENANTS else "other")


def own_usage(end: End) -> ModelUsage:
    """Returns the usage and the cost of all models together."""
    return ModelUsage(*end.usage.counts, cost_nano_usd=end.cost_nano_usd, cost_is_unknown=end.cost_is_unknown)


def _count_usage(part: ModelUsage, tokens: Counter, cost: Counter, label: str) -> None:
    """Adds tokens and their cost to the series of a model or a tenant."""
    cost.labels(label).inc(part.cost_nano_usd / NANO_USD_PER_USD)
    for kind in Usage.__struct_fields__:
        tokens.labels(kind, label).inc(getattr(part, kind))
