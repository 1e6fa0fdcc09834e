"""Prometheus metrics of persistence. Label values are fixed sets: never a tenant, turn or session."""

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from tailrace.proto.entries import Outcome

RECORDED = Counter("tailrace_persistence_turns_recorded_total", "Turn rows written, including those of running turns")
ENDED = Counter(
    "tailrace_persistence_turns_ended_total",
    "Turns whose end was read from the log and recorded, by outcome: also turns of generators that were killed since",
    ["outcome"],
)
BATCH_S = Histogram(
    "tailrace_persistence_batch_seconds",
    "Time from receiving a batch until it is folded, committed and acknowledged",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
LAG_S = Histogram(
    "tailrace_persistence_lag_seconds",
    "Time from storing an entry in the log until its row is committed; of each batch, its newest entry",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300, 3600),
)
TRANSACTION_S = Histogram(
    "tailrace_persistence_transaction_seconds",
    "Time of a transaction of the database that was committed, without the wait for the one before it",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
BACKLOG = Gauge("tailrace_persistence_backlog", "Entries that are stored in the log and not yet in the database")
FAILING = Gauge(
    "tailrace_persistence_failing", "1 while persistence can record nothing, or the database does not answer"
)
PROOF_MISMATCHES = Counter(
    "tailrace_persistence_proof_mismatches_total", "Turns whose text does not match the hash in their end; 0 is normal"
)
SKIPPED = Counter("tailrace_persistence_skipped_entries_total", "Invalid stored entries (forks); 0 is normal")
LEFT_OUT = Counter("tailrace_persistence_turns_left_out_total", "Turns that could not be recorded at all; 0 is normal")
DAMAGED = Gauge("tailrace_persistence_damaged_turns", "Turns of which the log has lost entries; 0 is normal")
LOST = Counter("tailrace_persistence_turns_lost_total", "Turns that left the log without an end; 0 is normal")

# For Prometheus, a series that appears with its first event has not grown.
for _outcome in get_args(Outcome):
    ENDED.labels(_outcome)
