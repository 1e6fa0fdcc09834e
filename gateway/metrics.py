"""Prometheus metrics of a gateway. Label values are fixed sets: never a tenant, turn, path or name from a client."""

from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from tailrace.proto.runtime.fast_metrics import FastCounter, FastHistogram

WAIT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# Few buckets: most series are those of routes, and each line of a scrape takes CPU from the streams.
REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
DELAY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
DELTA_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 10)
ENTRIES_BUCKETS = (1, 5, 10, 50, 100, 500, 1000, 5000)

StreamEnd = Literal["whole", "failed", "cut", "aged", "drained", "expired", "left"]
"""The end of a stream.

`whole`: the end of the turn was written. `failed`: likewise, but the turn had failed. `cut`: the gateway closed the
stream earlier. `aged`, `drained`, `expired`: likewise, for the stream's age, because the gateway stopped, or because
the credential was no longer valid; the reader resumes. `left`: the reader closed it.
"""

ACCEPTED = Counter("tailrace_gateway_turns_accepted_total", "Turns whose request is in the log")
REPEATED = Counter("tailrace_gateway_turns_repeated_total", "POSTs answered with the turn of their Idempotency-Key")
CANCELLED = Counter("tailrace_gateway_turns_cancelled_total", "Turns that this gateway ended as cancelled")
REFUSED = Counter("tailrace_gateway_refused_total", "Requests answered with an error, by code", ["code"])
REQUEST_S = Histogram(
    "tailrace_gateway_request_seconds",
    "Time from a request's headers until its response begins, by route, method and class of the status",
    ["route", "method", "status"],
    buckets=REQUEST_BUCKETS_S,
)
STREAMS = Gauge("tailrace_gateway_streams_open", "Streams that are being read now, by dialect", ["dialect"])
RESUMED = Counter("tailrace_gateway_streams_resumed_total", "Streams that began after a cursor")
RESUME_S = Histogram(
    "tailrace_gateway_resume_seconds",
    "Time from the request of a reader that resumes until the first bytes of the turn are written to it",
    buckets=WAIT_BUCKETS_S,
)
REPLAYED = Histogram(
    "tailrace_gateway_replayed_entries",
    "Entries that were stored already when a stream with a cursor began",
    buckets=ENTRIES_BUCKETS,
)
FIRST_TOKEN_S = Histogram(
    "tailrace_gateway_first_token_seconds",
    "Time from storing a turn's request until its first delta is written to a reader that was connected before it, "
    "by dialect",
    ["dialect"],
    buckets=WAIT_BUCKETS_S,
)
DELTA_GAP_S = FastHistogram(
    "tailrace_gateway_delta_gap_seconds",
    "Time between two writes of new deltas to a reader",
    buckets=DELTA_BUCKETS_S,
)
DELTA_DELAY_S = FastHistogram(
    "tailrace_gateway_delta_delay_seconds",
    "Time from storing a delta in the log until it is written to a reader",
    buckets=DELAY_BUCKETS_S,
)
HELD = Gauge("tailrace_gateway_streams_held", "Readers that have resumed and are held until the log answers")
STREAM_ENDS = Counter("tailrace_gateway_stream_ends_total", "Streams that ended, by how they ended", ["end"])
BROKEN_OFF = Counter(
    "tailrace_gateway_streams_broken_off_total", "Streams that the gateway closed before their turn's end"
)
AGED = Counter("tailrace_gateway_streams_aged_total", "Streams that were closed for their age; their readers resume")
UNREAD = Counter("tailrace_gateway_connections_unread_total", "Connections closed because their clients did not read")
ENTRIES = FastCounter(
    "tailrace_gateway_entries_total", "Entries read from the log, once for each turn that is followed"
)
WRITABLE = Gauge(
    "tailrace_gateway_log_writable",
    "1 while the log and the bucket CLAIMS store messages, 0 after one of them has stored none for some seconds",
)
SENT_BYTES = FastCounter("tailrace_gateway_sent_bytes_total", "Bytes of frames written to streams")
DISK_FREE = Gauge("tailrace_gateway_disk_free_bytes", "Free bytes of the disk of TAILRACE_DISK; 0 without it")
DISK_RESERVE = Gauge(
    "tailrace_gateway_disk_reserve_bytes", "Free bytes below which new turns are refused; 0 without TAILRACE_DISK"
)
FULLNESS = Gauge("tailrace_gateway_log_fullness_ratio", "Share of the stream's byte limit that is used")
OLDEST_WAITING_S = Gauge(
    "tailrace_gateway_oldest_waiting_turn_seconds", "Age of the oldest turn that waits for a generator; 0 without any"
)
ORPHANED = Gauge(
    "tailrace_gateway_orphaned_turns",
    "Turns that no generator runs any more: its process ended, or it gave them back some seconds ago",
)

# For Prometheus, a series that appears with its first event has not grown. So create the series of alerts at 0.
for _end in get_args(StreamEnd):
    STREAM_ENDS.labels(_end)
for _code in ("server_busy", "log_full", "log_unavailable", "persistence_unavailable"):
    REFUSED.labels(_code)


def create_series(dialects: Iterable[str]) -> None:
    """Creates the series of service levels by dialect at 0, for the same reason."""
    for name in dialects:
        FIRST_TOKEN_S.labels(name)
