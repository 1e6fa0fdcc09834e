"""What persistence counts. Labels come from fixed sets: never a tenant, a turn or a session."""

from prometheus_client import Counter, Gauge, Histogram

RECORDED = Counter("tailrace_persistence_turns_recorded_total", "Rows written, those of running turns too")
BATCH_S = Histogram(
    "tailrace_persistence_batch_seconds",
    "From having a batch until it is folded, committed and acknowledged",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
BACKLOG = Gauge("tailrace_persistence_backlog", "Entries that are stored in the log and not yet in the database")
PROOF_MISMATCHES = Counter(
    "tailrace_persistence_proof_mismatches_total", "Turns whose text is not what their end says of it; 0 is normal"
)
SKIPPED = Counter(
    "tailrace_persistence_skipped_entries_total", "Stored entries that were not valid: forks; 0 is normal"
)
LEFT_OUT = Counter("tailrace_persistence_turns_left_out_total", "Turns that could not be recorded at all; 0 is normal")
WEBHOOKS_TAKEN = Counter("tailrace_persistence_webhooks_taken_total", "Webhooks that their receivers have taken")
WEBHOOK_FAILURES = Counter("tailrace_persistence_webhook_failures_total", "Tries that will be made again")
WEBHOOKS_GIVEN_UP = Counter(
    "tailrace_persistence_webhooks_given_up_total", "Webhooks that nobody will be told, by reason", ["reason"]
)
WEBHOOKS_WAITING = Gauge("tailrace_persistence_webhooks_waiting", "Ends of turns that nobody was told yet")
