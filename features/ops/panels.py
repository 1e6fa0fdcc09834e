"""The panels as data: queries, units, descriptions, thresholds and sections of the runbook.

`/ops` draws them, and `tools/monitoring.py` writes Grafana's JSON from them. The queries sum over all processes of a
role.
"""

from typing import NamedTuple

from tailrace.features.ops.expressions import Expression, Gauge, Growth, Quantile

HOUR_S = 3600
BUDGET_S = 3 * 24 * HOUR_S
SLOW = "answers-are-slow-or-break-off"
CAPACITY = "add-capacity"
COSTS = "costs-rise"
FULL = "the-log-is-full"
STORES_NOTHING = "the-log-stores-nothing"
DATABASE = "the-database-fails"
DELETED = "something-was-deleted-in-nats"
REDUNDANCY = "a-nats-server-is-missing"
MISSING = "a-process-is-missing"
FROZEN = "a-process-is-frozen"
CERTIFICATES = "renew-certificates"
CLOCK = "a-clock-is-wrong"
FORKS = "skipped-entries"
REFUSED = "clients-are-refused"
RECORDS = "a-turn-is-not-recorded"
DAMAGED = "a-file-of-the-log-is-damaged"
NOT_READY = "a-part-is-not-ready"
WEBHOOKS = "webhooks-are-not-delivered"
FAILED_OR_CUT = 'end=~"failed|cut"'
WHOLE_FAILED_OR_CUT = 'end=~"whole|failed|cut"'


class Query(NamedTuple):
    """A query, and the name of its series, in which `{{label}}` stands for a label's value.

    `/ops` shows `ended_as` where a series has had values before and has none; by default a gap.
    """

    expression: Expression
    legend: str
    ended_as: float | None = None


class Threshold(NamedTuple):
    """A value is yellow from `warning` on, and red from `critical` on; if `is_minimum`, below them."""

    warning: float
    critical: float
    is_minimum: bool = False


class Panel(NamedTuple):
    """`unit` is one of Grafana's names of units, `section` an anchor in docs/RUNBOOK.md."""

    title: str
    unit: str
    description: str
    threshold: Threshold
    section: str
    queries: tuple[Query, ...]

    @property
    def window_s(self) -> int:
        """The longest window that its queries name; 0 if they name none."""
        selections = (one for query in self.queries for one in query.expression.selections())
        return max((one.window_s or 0 for one in selections if isinstance(one, Growth)), default=0)


class Dashboard(NamedTuple):
    """A page of panels. `uid` is also the name of its file."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]


def rate(counter: str, by: str) -> Query:
    """Returns the events per second of a counter, for each value of the label `by`."""
    return Query(Growth(counter, (by,)), f"{{{{{by}}}}}")


def total_rate(counter: str, legend: str) -> Query:
    """Returns the query for the increase of a counter per second, over all its labels."""
    return Query(Growth(counter), legend)


def mean(histogram: str, legend: str) -> Query:
    """Returns the mean over all series of a histogram."""
    return Query(Growth(f"{histogram}_sum") / Growth(f"{histogram}_count"), legend)


def quantiles(histogram: str, *shares: float) -> tuple[Query, ...]:
    """Returns quantiles over all series of a histogram."""
    buckets = Growth(f"{histogram}_bucket", ("le",))
    return tuple(Query(Quantile(share, buckets), f"p{share * 100:g}") for share in shares)


def p95_by(histogram: str, by: str) -> tuple[Query]:
    """Returns the 95th percentile for each value of the label `by`."""
    return (Query(Quantile(0.95, Growth(f"{histogram}_bucket", ("le", by))), f"p95 {{{{{by}}}}}"),)


def increase(counter: str, hours: int, legend: str) -> Query:
    """Returns the query for the increase of a counter in the last `hours`."""
    return Query(Growth(counter, window_s=hours * HOUR_S, is_increase=True), legend)


def _of_consumers(gauge: str, where: str = "") -> tuple[Query]:
    # Every process exports what it has seen of NATS.
    return (Query(Gauge(gauge, ("consumer_name",), where, "max"), "{{consumer_name}}"),)


def _slow_share(histogram: str, limit: str) -> Expression:
    """Returns the share of the observations above a bucket's limit, in an hour."""
    every = Growth(f"{histogram}_count", window_s=HOUR_S)
    return (every - Growth(f"{histogram}_bucket", where=f'le="{limit}"', window_s=HOUR_S)) / every


def _not_whole_share(window_s: int | None = None) -> Expression:
    """Returns the share of the streams that failed or were cut among those that the readers did not leave."""
    ends = "tailrace_gateway_stream_ends_total"
    return Growth(ends, where=FAILED_OR_CUT, window_s=window_s) / Growth(
        ends, where=WHOLE_FAILED_OR_CUT, window_s=window_s
    )


def _budget_left(good: Expression, every: Expression, budget: float) -> Expression:
    """Returns the part of an error budget that is left, if a share of `budget` of the events may be bad."""
    return (1 / budget) * ((good - (1 - budget) * every) / every)


def _left_of_slow(histogram: str, limit: str) -> Expression:
    """Returns `_budget_left` of a service level of 99 % of the observations up to a bucket's limit."""
    good = Growth(f"{histogram}_bucket", where=f'le="{limit}"', window_s=BUDGET_S)
    return _budget_left(good, Growth(f"{histogram}_count", window_s=BUDGET_S), 0.01)


# The first row of each dashboard of Grafana: whether the system is healthy.
HEALTH = (
    Panel(
        "Answers now",
        "short",
        "Turns that run in slots of generators. Batches take no slot.",
        Threshold(1e9, 1e9),
        CAPACITY,
        (Query(Gauge("tailrace_generator_turns_running"), "running"),),
    ),
    Panel(
        "Errors",
        "percentunit",
        "Share of failed and cut streams among those that the readers did not leave.",
        Threshold(0.001, 0.0144),
        SLOW,
        (Query(_not_whole_share(), "not whole"),),
    ),
    Panel(
        "Time to first token (p95)",
        "s",
        "From storing a turn's request until its first delta is written to a reader.",
        Threshold(2.5, 5),
        SLOW,
        quantiles("tailrace_gateway_first_token_seconds", 0.95),
    ),
    Panel(
        "Error budget left",
        "percentunit",
        "The part of the error budget of 3 days that is left, by service level. Below 0, the level is missed.",
        Threshold(0.5, 0, is_minimum=True),
        "service-levels",
        (
            Query(_left_of_slow("tailrace_gateway_first_token_seconds", "5.0"), "first_token"),
            Query(
                _budget_left(
                    Growth("tailrace_gateway_stream_ends_total", where='end="whole"', window_s=BUDGET_S),
                    Growth("tailrace_gateway_stream_ends_total", where=WHOLE_FAILED_OR_CUT, window_s=BUDGET_S),
                    0.001,
                ),
                "whole_stream",
            ),
            Query(_left_of_slow("tailrace_gateway_resume_seconds", "0.5"), "resume"),
        ),
    ),
)


WHAT_USERS_FEEL = Dashboard(
    "tailrace-users",
    "What users feel",
    "Waiting times of readers, how streams end, and what is refused.",
    (
        Panel(
            "Time to first token",
            "s",
            "From storing a turn's request until its first delta is written to a reader that was connected before it. "
            "The service level is 99 % within 5 s.",
            Threshold(2.5, 5),
            SLOW,
            quantiles("tailrace_gateway_first_token_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Time to first token, by client protocol",
            "s",
            "Time to first token for each client protocol. If only one is slow, look at its clients.",
            Threshold(2.5, 5),
            SLOW,
            p95_by("tailrace_gateway_first_token_seconds", "dialect"),
        ),
        Panel(
            "Time between deltas",
            "s",
            'Between two writes of new deltas to a reader. Compare it with the panel "Model: time between deltas".',
            Threshold(0.3, 1),
            SLOW,
            quantiles("tailrace_gateway_delta_gap_seconds", 0.5, 0.95),
        ),
        Panel(
            "Delay of a delta",
            "s",
            "The wait that Tailrace adds to a delta, on average: from the model until it is stored in the log, and "
            "from there until it is written to a reader.",
            Threshold(0.1, 0.5),
            SLOW,
            (
                mean("tailrace_generator_delta_stored_seconds", "from the model to the log"),
                mean("tailrace_gateway_delta_delay_seconds", "from the log to a reader"),
            ),
        ),
        Panel(
            "Delay of a delta, from the log to a reader",
            "s",
            "From storing a delta in the log until it is written to a reader.",
            Threshold(0.1, 0.5),
            SLOW,
            quantiles("tailrace_gateway_delta_delay_seconds", 0.5, 0.95),
        ),
        Panel(
            "Resume to first byte",
            "s",
            "From the request of a reader that resumes until the first bytes. The service level is 99 % within 0.5 s.",
            Threshold(0.25, 0.5),
            SLOW,
            quantiles("tailrace_gateway_resume_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Entries replayed by a resume",
            "short",
            "Entries that were stored already when a stream with a cursor began. Many mean that clients resume late, "
            "or without their newest cursor.",
            Threshold(1000, 5000),
            SLOW,
            quantiles("tailrace_gateway_replayed_entries", 0.5, 0.95),
        ),
        Panel(
            "Stream ends",
            "ops",
            "Streams that ended, by how: whole, failed (the turn has failed), cut (the gateway closed the stream "
            "before the end), left (the reader closed it). After these, the reader resumes: aged (closed for its age), "
            "drained (the gateway stopped), expired (the credential was no longer valid).",
            Threshold(100, 1000),
            SLOW,
            (rate("tailrace_gateway_stream_ends_total", "end"),),
        ),
        Panel(
            "Streams that did not end whole",
            "percentunit",
            "Share of failed and cut streams among those that the readers did not leave. The service level is 0.1 %.",
            Threshold(0.001, 0.0144),
            SLOW,
            (Query(_not_whole_share(), "share"),),
        ),
        Panel(
            "Use of the error budgets",
            "none",
            "How many times faster than allowed each service level uses its error budget, over an hour. 1 uses it up "
            "exactly in its period.",
            Threshold(6, 14.4),
            "service-levels",
            (
                Query(100 * _slow_share("tailrace_gateway_first_token_seconds", "5.0"), "first_token"),
                Query(1000 * _not_whole_share(HOUR_S), "whole_stream"),
                Query(100 * _slow_share("tailrace_gateway_resume_seconds", "0.5"), "resume"),
            ),
        ),
        Panel(
            "Turn duration, by outcome",
            "s",
            "From a turn's request to its end.",
            Threshold(60, 300),
            SLOW,
            p95_by("tailrace_generator_turn_seconds", "outcome"),
        ),
        Panel(
            "HTTP latency, by route",
            "s",
            "From a request's headers until its response begins.",
            Threshold(1, 5),
            REFUSED,
            p95_by("tailrace_gateway_request_seconds", "route"),
        ),
        Panel(
            "Refused requests, by code",
            "reqps",
            "Responses with an error. `tailrace explain errors` lists the codes.",
            Threshold(1, 10),
            REFUSED,
            (rate("tailrace_gateway_refused_total", "code"),),
        ),
        Panel(
            "Open streams, by client protocol",
            "short",
            "Streams that are being read. A gateway refuses more than TAILRACE_STREAMS_MAX.",
            Threshold(5000, 10000),
            REFUSED,
            (Query(Gauge("tailrace_gateway_streams_open", ("dialect",)), "{{dialect}}"),),
        ),
        Panel(
            "Readers that resume or are held",
            "ops",
            "Streams that began after a cursor, and readers that wait because the log does not answer.",
            Threshold(10, 100),
            SLOW,
            (
                total_rate("tailrace_gateway_streams_resumed_total", "resumed"),
                Query(Gauge("tailrace_gateway_streams_held"), "held"),
            ),
        ),
    ),
)

GENERATORS_AND_SCALING = Dashboard(
    "tailrace-generators",
    "Generators and scaling",
    "Whether there are enough processes, what the model's API does, and how broken answers are continued.",
    (
        Panel(
            "Waiting turns",
            "short",
            "Turns that no generator has leased yet. Above 0 for minutes: add generators.",
            Threshold(1, 10),
            CAPACITY,
            (Query(Gauge("jetstream_consumer_num_pending", where='consumer_name="generators"', how="max"), "waiting"),),
        ),
        Panel(
            "Oldest waiting turn",
            "s",
            "Age of the oldest turn that no generator has begun; 0 if none waits.",
            Threshold(5, 60),
            CAPACITY,
            (Query(Gauge("tailrace_gateway_oldest_waiting_turn_seconds", how="max"), "age"),),
        ),
        Panel(
            "Orphaned turns",
            "short",
            "Turns that no generator runs any more: its process ended, or it gave them back. Another one continues "
            "them within seconds.",
            Threshold(1, 10),
            NOT_READY,
            (Query(Gauge("tailrace_gateway_orphaned_turns", how="max"), "turns"),),
        ),
        Panel(
            "Queue wait",
            "s",
            "From a turn's request until a generator begins its first attempt.",
            Threshold(1, 5),
            CAPACITY,
            quantiles("tailrace_generator_queue_wait_seconds", 0.5, 0.95),
        ),
        Panel(
            "Slots in use",
            "percentunit",
            "Share of the generators' slots (TAILRACE_CONCURRENCY) with a running turn.",
            Threshold(0.7, 0.9),
            CAPACITY,
            (Query(Gauge("tailrace_generator_turns_running") / Gauge("tailrace_generator_slots"), "in use"),),
        ),
        Panel(
            "Processes that are ready",
            "short",
            "Processes that do their work, by part. One of each is needed, two of each survive a failure.",
            Threshold(1, 1, is_minimum=True),
            NOT_READY,
            (Query(Gauge("tailrace_ready", ("part",)), "{{part}}", ended_as=0.0),),
        ),
        Panel(
            "Turns by outcome",
            "ops",
            "Turns whose end is recorded in the database. A generator that is killed loses none of them.",
            Threshold(10, 100),
            SLOW,
            (rate("tailrace_persistence_turns_ended_total", "outcome"),),
        ),
        Panel(
            "Attempts by mode",
            "ops",
            "fresh is the first attempt. continue and restart follow a generator that stopped, or a broken answer.",
            Threshold(10, 100),
            SLOW,
            (rate("tailrace_generator_attempts_total", "mode"),),
        ),
        Panel(
            "Takeover",
            "s",
            "From the last entry of a generator that stopped until another one continues the turn.",
            Threshold(15, 30),
            SLOW,
            quantiles("tailrace_generator_takeover_seconds", 0.5, 0.95),
        ),
        Panel(
            "Stop",
            "s",
            "From a cancellation in the log until the call to the model is closed. Until then it costs tokens.",
            Threshold(1, 5),
            COSTS,
            quantiles("tailrace_generator_stop_seconds", 0.5, 0.95),
        ),
        Panel(
            "Model: time to first delta",
            "s",
            "From a call to the model until the first delta of its answer.",
            Threshold(2.5, 5),
            SLOW,
            p95_by("gen_ai_client_operation_time_to_first_chunk_seconds", "gen_ai_request_model"),
        ),
        Panel(
            "Model: time between deltas",
            "s",
            "Between two deltas as the model sent them.",
            Threshold(0.3, 1),
            SLOW,
            p95_by("gen_ai_client_operation_time_per_output_chunk_seconds", "gen_ai_request_model"),
        ),
        Panel(
            "Model: calls by result",
            "reqps",
            "Calls to the model. The series without a name are those that succeeded.",
            Threshold(10, 100),
            SLOW,
            (rate("gen_ai_client_operation_duration_seconds_count", "error_type"),),
        ),
        Panel(
            "Broken attempts and repeated calls, by code",
            "ops",
            "Attempts that broke off, and calls that were repeated before their first event.",
            Threshold(0.1, 1),
            SLOW,
            (
                rate("tailrace_generator_backend_failures_total", "code")._replace(legend="broken {{code}}"),
                rate("tailrace_generator_calls_repeated_total", "code")._replace(legend="repeated {{code}}"),
            ),
        ),
        Panel(
            "Failed turns, by code",
            "ops",
            "Turns that ended as failed. `tailrace explain errors` lists the codes.",
            Threshold(0.01, 0.1),
            SLOW,
            (rate("tailrace_generator_failures_total", "code"),),
        ),
        Panel(
            "Failovers",
            "ops",
            "Turns that went on with another backend.",
            Threshold(0.1, 1),
            SLOW,
            (rate("tailrace_generator_failovers_total", "backend")._replace(legend="failover to {{backend}}"),),
        ),
        Panel(
            "Lost fences and joined deltas",
            "ops",
            "Turns that a generator left because another one had continued them; deltas that waited for the log and "
            "were joined; generators that another one has found dead, or absent without being sure.",
            Threshold(10, 100),
            STORES_NOTHING,
            (
                total_rate("tailrace_generator_fences_lost_total", "lost fences"),
                total_rate("tailrace_generator_deltas_joined_total", "joined deltas"),
                rate("tailrace_generator_peers_gone_total", "verdict")._replace(legend="absent: {{verdict}}"),
            ),
        ),
        Panel(
            "CPU of each process",
            "percentunit",
            "Share of one core. A process uses one core: at 90 % add another process.",
            Threshold(0.7, 0.9),
            CAPACITY,
            (
                Query(
                    Growth("process_cpu_seconds_total", ("part", "instance"), 'job="tailrace"'),
                    "{{part}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Memory of each process",
            "bytes",
            "Resident memory.",
            Threshold(1e9, 2e9),
            CAPACITY,
            (
                Query(
                    Gauge("process_resident_memory_bytes", ("part", "instance"), 'job="tailrace"'),
                    "{{part}} {{instance}}",
                ),
            ),
        ),
    ),
)

LOG_AND_NATS = Dashboard(
    "tailrace-log",
    "Log and NATS",
    "Whether the log takes entries, how full it is, and how far the database is behind.",
    (
        Panel(
            "Log takes entries",
            "bool",
            "1 while the log stores entries; 0 after it has stored none for 5 s.",
            Threshold(1, 1, is_minimum=True),
            STORES_NOTHING,
            (Query(Gauge("tailrace_gateway_log_writable", how="min"), "writable"),),
        ),
        Panel(
            "Fullness of the log",
            "percentunit",
            "Share of the log's byte limit that is used. New turns are refused at 90 %.",
            Threshold(0.8, 0.9),
            FULL,
            (Query(Gauge("tailrace_gateway_log_fullness_ratio", how="max"), "used"),),
        ),
        Panel(
            "Disk of the log",
            "percentunit",
            "The reserve of the disk, divided by its free space. New turns are refused at 100 %.",
            Threshold(0.5, 1),
            FULL,
            (
                Query(
                    Gauge("tailrace_gateway_disk_reserve_bytes", how="max")
                    / Gauge("tailrace_gateway_disk_free_bytes", how="min"),
                    "used",
                ),
            ),
        ),
        Panel(
            "Append",
            "s",
            "From passing an entry to the log until it is acknowledged. Above 0.1 s the disk of the log is slow.",
            Threshold(0.05, 0.1),
            STORES_NOTHING,
            quantiles("tailrace_generator_append_seconds", 0.5, 0.99),
        ),
        Panel(
            "Fullness of each stream",
            "percentunit",
            "Share of the byte limit of each stream that has one.",
            Threshold(0.8, 0.9),
            FULL,
            (
                Query(
                    Gauge("jetstream_stream_total_bytes", ("stream_name",), how="max")
                    / Gauge("jetstream_stream_limit_bytes", ("stream_name",), how="max", is_positive=True),
                    "{{stream_name}}",
                ),
            ),
        ),
        Panel(
            "Messages of each stream",
            "short",
            "Messages that each stream holds.",
            Threshold(1e7, 1e8),
            FULL,
            (Query(Gauge("jetstream_stream_total_messages", ("stream_name",), how="max"), "{{stream_name}}"),),
        ),
        Panel(
            "Waiting entries of each consumer",
            "short",
            "Entries that a consumer has not delivered yet. Webhooks have a panel of their own.",
            Threshold(100, 1000),
            CAPACITY,
            _of_consumers("jetstream_consumer_num_pending", 'consumer_name!="webhooks"'),
        ),
        Panel(
            "Unacknowledged entries of each consumer",
            "short",
            "Entries that were delivered and are not acknowledged yet: running turns, rows that are being written.",
            Threshold(1000, 10000),
            CAPACITY,
            _of_consumers("jetstream_consumer_num_ack_pending"),
        ),
        Panel(
            "Redelivered entries of each consumer",
            "short",
            "Entries that were delivered more than once and are not acknowledged yet: a process stopped, or "
            "cannot write.",
            Threshold(1, 100),
            NOT_READY,
            _of_consumers("jetstream_consumer_num_redelivered"),
        ),
        Panel(
            "Gaps of live feeds",
            "ops",
            "Reads of the log that filled a gap of a turn's live feed: NATS lost or delayed a message. Readers wait up "
            "to 5 s for it.",
            Threshold(1, 10),
            STORES_NOTHING,
            (total_rate("tailrace_feed_gaps_filled_total", "filled"),),
        ),
        Panel(
            "Refused keys of models",
            "short",
            "Backends whose API refused the key in the last call: their answers fail.",
            Threshold(1, 1),
            NOT_READY,
            (Query(Gauge("tailrace_generator_key_refused", how="max"), "refused"),),
        ),
        Panel(
            "Missing parts of NATS",
            "short",
            "Streams, buckets and consumers that were deleted.",
            Threshold(1, 1),
            DELETED,
            (Query(Gauge("tailrace_nats_missing", how="max"), "missing"),),
        ),
        Panel(
            "Copies of streams that are away",
            "short",
            "Copies on nats-servers that are away, or far behind. If one more server fails, the log stops.",
            Threshold(1, 1),
            REDUNDANCY,
            (Query(Gauge("tailrace_nats_replicas_behind", how="max"), "away"),),
        ),
        Panel(
            "Clock ahead of nats-server",
            "s",
            "The largest difference of a process's clock to that of nats-server. Above 1 s, measured times are wrong.",
            Threshold(1, 5),
            CLOCK,
            (Query(Gauge("tailrace_clock_offset_seconds", how="max"), "ahead"),),
        ),
        Panel(
            "Clock behind nats-server",
            "s",
            "The lowest difference: negative if a process's clock is behind. Below -1 s, measured times are wrong.",
            Threshold(-1, -5, is_minimum=True),
            CLOCK,
            (Query(Gauge("tailrace_clock_offset_seconds", how="min"), "behind"),),
        ),
        Panel(
            "Recording lag",
            "s",
            "From storing an entry in the log until its row is committed.",
            Threshold(5, 60),
            DATABASE,
            quantiles("tailrace_persistence_lag_seconds", 0.5, 0.95),
        ),
        Panel(
            "Backlog of persistence",
            "short",
            "Entries in the log that are not in the database yet.",
            Threshold(100, 1000),
            DATABASE,
            (Query(Gauge("tailrace_persistence_backlog", how="max"), "entries"),),
        ),
        Panel(
            "Transactions of the database",
            "s",
            "Time of a committed transaction.",
            Threshold(0.1, 1),
            DATABASE,
            quantiles("tailrace_persistence_transaction_seconds", 0.5, 0.95),
        ),
        Panel(
            "Recorded turns",
            "ops",
            "Rows written, including those of running turns.",
            Threshold(100, 1000),
            DATABASE,
            (total_rate("tailrace_persistence_turns_recorded_total", "rows"),),
        ),
        Panel(
            "Invalid entries and records",
            "short",
            "In an hour: entries of forks that were skipped, texts that do not match their hash, turns without a "
            "row, turns that left the log without an end. Now: turns of which the log has lost entries.",
            Threshold(1, 10),
            FORKS,
            (
                increase("tailrace_generator_skipped_entries_total", 1, "skipped by generators"),
                increase("tailrace_persistence_skipped_entries_total", 1, "skipped by persistence"),
                increase("tailrace_persistence_proof_mismatches_total", 1, "hash mismatches"),
                increase("tailrace_persistence_turns_left_out_total", 1, "turns without a row"),
                increase("tailrace_persistence_turns_lost_total", 1, "turns without an end"),
                Query(Gauge("tailrace_persistence_damaged_turns", how="max"), "damaged turns"),
            ),
        ),
        Panel(
            "Webhooks that wait",
            "short",
            "Ended turns whose webhook is not delivered yet, those that have waited for over an hour, and those "
            "beyond their tenant's share.",
            Threshold(100, 1000),
            WEBHOOKS,
            (
                Query(Gauge("tailrace_persistence_webhooks_waiting"), "waiting"),
                Query(Gauge("tailrace_persistence_webhooks_late"), "over an hour"),
                Query(Gauge("tailrace_persistence_webhooks_beyond_share"), "beyond the share"),
            ),
        ),
        Panel(
            "Webhooks",
            "ops",
            "Webhooks that receivers accepted, failed tries, and webhooks that were given up.",
            Threshold(10, 100),
            WEBHOOKS,
            (
                total_rate("tailrace_persistence_webhooks_taken_total", "accepted"),
                total_rate("tailrace_persistence_webhook_failures_total", "failed tries"),
                total_rate("tailrace_persistence_webhooks_given_up_total", "given up"),
            ),
        ),
        Panel(
            "Bytes to readers",
            "Bps",
            "Bytes of frames written to streams.",
            Threshold(5e7, 1e8),
            REFUSED,
            (total_rate("tailrace_gateway_sent_bytes_total", "sent"),),
        ),
        Panel(
            "Clients that do not read",
            "ops",
            "Connections closed because their clients, or a proxy, did not read.",
            Threshold(0.1, 1),
            REFUSED,
            (total_rate("tailrace_gateway_connections_unread_total", "closed"),),
        ),
    ),
)

COST_AND_TOKENS = Dashboard(
    "tailrace-cost",
    "Cost and tokens",
    "What the turns cost, by model, at the list prices of the model's API.",
    (
        Panel(
            "Tokens, by kind",
            "ops",
            "Tokens per second of the turns that ended.",
            Threshold(1e4, 1e5),
            COSTS,
            (rate("tailrace_generator_usage_tokens_total", "kind"),),
        ),
        Panel(
            "Tokens, by model",
            "ops",
            "Tokens per second of the turns that ended, of all kinds.",
            Threshold(1e4, 1e5),
            COSTS,
            (rate("tailrace_generator_usage_tokens_total", "model"),),
        ),
        Panel(
            "Cost per hour, by model",
            "currencyUSD",
            "Dollars per hour at the current rate.",
            Threshold(10, 100),
            COSTS,
            (Query(HOUR_S * Growth("tailrace_generator_cost_dollars_total", ("model",)), "{{model}}"),),
        ),
        Panel(
            "Cost per hour, by tenant",
            "currencyUSD",
            "Dollars per hour at the current rate, of the tenants in TAILRACE_METRICS_TENANTS and of all others. Empty "
            "without this setting.",
            Threshold(10, 100),
            COSTS,
            (Query(HOUR_S * Growth("tailrace_generator_tenant_cost_dollars_total", ("tenant",)), "{{tenant}}"),),
        ),
        Panel(
            "Tokens, by tenant",
            "ops",
            "Tokens per second of the turns that ended, of the tenants in TAILRACE_METRICS_TENANTS and of all others. "
            "Empty without this setting.",
            Threshold(1e4, 1e5),
            COSTS,
            (rate("tailrace_generator_tenant_usage_tokens_total", "tenant"),),
        ),
        Panel(
            "Cost of the last day",
            "currencyUSD",
            "Dollars in the last 24 hours.",
            Threshold(100, 1000),
            COSTS,
            (increase("tailrace_generator_cost_dollars_total", 24, "cost"),),
        ),
        Panel(
            "Cost of a turn",
            "currencyUSD",
            "Dollars for each turn that ended, on average.",
            Threshold(0.1, 1),
            COSTS,
            (Query(Growth("tailrace_generator_cost_dollars_total") / Growth("tailrace_generator_ends_total"), "cost"),),
        ),
        Panel(
            "Input tokens from the cache",
            "percentunit",
            "Share of the input tokens that were read from the model's prompt cache, at a tenth of the price. Without "
            "TAILRACE_CACHE it is 0.",
            Threshold(0, 0, is_minimum=True),
            COSTS,
            (
                Query(
                    Growth("tailrace_generator_usage_tokens_total", where='kind="cache_read_input_tokens"')
                    / Growth("tailrace_generator_usage_tokens_total", where='kind!="output_tokens"'),
                    "share",
                ),
            ),
        ),
        Panel(
            "Calls for each turn",
            "none",
            "Calls to the model for each turn that ended. Above 1: repeated calls, continuations.",
            Threshold(1.2, 2),
            COSTS,
            (
                Query(
                    Growth("gen_ai_client_operation_duration_seconds_count") / Growth("tailrace_generator_ends_total"),
                    "calls",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (WHAT_USERS_FEEL, GENERATORS_AND_SCALING, LOG_AND_NATS, COST_AND_TOKENS)
