"""Recording rules and alerts as data, from which `tools/monitoring.py` writes rules.yml and docs/ALERTS.md.

The alerts of a service level follow "Alerting on SLOs" of Google's Site Reliability Workbook: an alert needs a high use
of the error budget over a long window, and over a short window, so that it ends soon after its cause.
"""

from typing import Any, Literal, NamedTuple

from tailrace.deploy.monitoring import RUNBOOK_URL
from tailrace.features.ops import panels

UP = 'up{job="tailrace"}'
# A refused connection takes milliseconds, and a scrape that times out at least the shortest usual limit of a second.
TIMED_OUT = 'scrape_duration_seconds{job="tailrace"} > 0.9'
WAITING = 'jetstream_consumer_num_pending{consumer_name="generators"}'
WRITABLE = "tailrace_gateway_log_writable"
Severity = Literal["page", "ticket"]
"""page: a person acts now. ticket: a person acts on the next working day."""

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# A long window, a short window, and the burn rate: how many times faster than allowed the error budget is used. The
# rates use 2 % of a month's budget in an hour, 5 % in 6 hours, 10 % in a day, and 10 % in 3 days.
BURN_RATES: dict[Severity, tuple[tuple[str, str, float], ...]] = {
    "page": (("1h", "5m", 14.4), ("6h", "30m", 6)),
    "ticket": (("1d", "2h", 3), ("3d", "6h", 1)),
}
# An alert about a share of events needs at least this many bad events in its (long) window: in a system with few users,
# one event is a large share. Tickets of a service level have no minimum, because their budgets are for days.
EVENTS_MIN = 5
# `tailrace doctor` has the same limits.
CERTIFICATE_DAYS_MIN = 21
CLOCK_OFFSET_S_MAX = 1
# The codes of requests that no client can cure. `queue_full` may be the share of one tenant.
OUTAGES = ("log_full", "log_unavailable", "persistence_unavailable")
# A gauge that each process of the role exports from its start to its end.
GAUGES_OF_ROLES = {
    "gateway": WRITABLE,
    "generators": "tailrace_generator_slots",
    "persistence": "tailrace_persistence_backlog",
}
# An interval of scrapes of at most a minute, and a while. ProcessDown is held longer.
FRESH_S = 65


class Alert(NamedTuple):
    """Fires when `expr` has had a value for the time `hold`. `section` is an anchor in docs/RUNBOOK.md."""

    name: str
    expr: str
    hold: str
    severity: Severity
    summary: str
    action: str
    section: str


class ServiceLevel(NamedTuple):
    """At most the share `budget` of events may be bad. `bad` and `every` are rates with `WINDOW` for the window."""

    name: str
    promise: str
    budget: float
    bad: str
    every: str
    alert: str
    action: str


def _slow_rates(histogram: str, limit: str) -> tuple[str, str]:
    """Returns the rates of observations above a bucket's limit, and of all observations."""
    every = f"sum(rate({histogram}_count[WINDOW]))"
    return f'{every} - sum(rate({histogram}_bucket{{le="{limit}"}}[WINDOW]))', every


SERVICE_LEVELS = (
    ServiceLevel(
        "first_token",
        "99 % of first tokens are written within 5 s",
        0.01,
        *_slow_rates("tailrace_gateway_first_token_seconds", "5.0"),
        "FirstTokensLate",
        "Find the slow part on the dashboards: the queue, the model, or the log.",
    ),
    ServiceLevel(
        "whole_stream",
        "99.9 % of streams end with the whole answer",
        0.001,
        'sum(rate(tailrace_gateway_stream_ends_total{end=~"failed|cut"}[WINDOW]))',
        'sum(rate(tailrace_gateway_stream_ends_total{end=~"whole|failed|cut"}[WINDOW]))',
        "StreamsNotWhole",
        "See failed turns by code, and how streams end.",
    ),
    ServiceLevel(
        "resume",
        "99 % of readers that resume receive bytes within 0.5 s",
        0.01,
        *_slow_rates("tailrace_gateway_resume_seconds", "0.5"),
        "ResumesLate",
        "Check the CPU of the gateways, and that the log answers.",
    ),
)


def _burn_condition(level: ServiceLevel, severity: Severity) -> str:
    def compare(window: str, factor: float) -> str:
        return f'tailrace:slo_bad:ratio_rate{window}{{slo="{level.name}"}} > {factor * level.budget:.4g}'

    def are_enough(window: str) -> str:
        bad = level.bad.replace("rate(", "increase(").replace("WINDOW", window)
        return f" and on() {bad} >= {EVENTS_MIN}" if severity == "page" else ""

    return " or ".join(
        f"({compare(long, factor)} and {compare(short, factor)}{are_enough(long)})"
        for long, short, factor in BURN_RATES[severity]
    )


def _fresh(gauge: str) -> str:
    """Returns the selector `gauge` without series whose last sample is old.

    A Prometheus that stops leaves series without an end: for 5 minutes, it shows the last samples of processes that
    have another address since. Docker stops all containers at once, so these samples often report a failure.
    """
    return f"({gauge} and time() - timestamp({gauge}) < {FRESH_S})"


def _has_fewer(role: str, gauge: str) -> str:
    """Returns the condition that fewer processes report `gauge`, which all of a role have, than TAILRACE_EXPECTED says.

    Processes that drain report it, too. A target that discovery no longer finds has no `up` that could be 0.
    """
    expected = f'tailrace_expected_processes{{role="{role}"}}'
    return f"max by (role) ({_fresh(expected)}) > on () group_left () (count({_fresh(gauge)}) or vector(0))"


def _exceeds(bad: str, share: float, every: str) -> str:
    """Returns the condition that the sum `bad` is more than a share of the sum `every`, and more than a few events."""
    return f"{bad} > {share:g} * {every} and {bad} >= {EVENTS_MIN}"


ALERTS = (
    *(
        Alert(
            level.alert,
            _burn_condition(level, severity),
            "2m" if severity == "page" else "15m",
            severity,
            f"Service level missed too often: {level.promise}",
            level.action,
            "service-levels",
        )
        for level in SERVICE_LEVELS
        for severity in BURN_RATES
    ),
    Alert(
        "ProcessDown",
        # A Prometheus that has started since the outage has discovered no process.
        f"{_fresh(UP)} == 0 unless {TIMED_OUT} or absent({UP})",
        "90s",
        "page",
        "A process does not answer",
        "Start the process. Its log says why it ended.",
        panels.NOT_READY,
    ),
    Alert(
        "ProcessFrozen",
        # Sooner than ProcessDown: a process that is restarted refuses connections, and no scrape of it times out.
        f"{_fresh(UP)} == 0 and {TIMED_OUT}",
        "30s",
        "page",
        "A process has its port open and answers nothing, or its machine is cut off",
        "Kill the process with SIGKILL, and start it.",
        panels.FROZEN,
    ),
    Alert(
        "ProcessNotReady",
        f"{_fresh('tailrace_ready')} == 0",
        "1m",
        "page",
        "A process runs, and does not do its work",
        "Its `/readyz` and its log say what it waits for. If NATS is lost later, LogNotWritable fires instead.",
        panels.NOT_READY,
    ),
    Alert(
        "ProcessesMissing",
        " or ".join(_has_fewer(role, gauge) for role, gauge in GAUGES_OF_ROLES.items()),
        "5m",
        "ticket",
        "Fewer processes report than TAILRACE_EXPECTED states",
        "Start the missing one. `tailrace status` has their numbers.",
        panels.MISSING,
    ),
    Alert(
        "LogNotWritable",
        f"min({_fresh(WRITABLE)}) == 0",
        "0s",
        "page",
        "The log stores nothing",
        "Start the missing nats-servers, or make space on their disks.",
        panels.STORES_NOTHING,
    ),
    Alert(
        "LogNearlyFull",
        f"max({_fresh('tailrace_gateway_log_fullness_ratio')}) > 0.8",
        "0s",
        "page",
        "The log is more than 80 % full",
        "New turns are refused at 90 %: give the stream more space.",
        panels.FULL,
    ),
    Alert(
        "DiskNearlyFull",
        # Without TAILRACE_DISK, both are 0.
        f"min({_fresh('tailrace_gateway_disk_free_bytes')} - 2 * tailrace_gateway_disk_reserve_bytes) < 0",
        "1m",
        "page",
        "The disk of the log has little space left",
        "New turns are refused when half of it is used: make space.",
        panels.FULL,
    ),
    Alert(
        "TurnsRefused",
        # Longer than the window: an election of a leader refuses requests for some seconds, and is no outage.
        f'sum(rate(tailrace_gateway_refused_total{{code=~"{"|".join(OUTAGES)}"}}[5m])) > 0',
        "6m",
        "page",
        "Requests are refused because a part of the system does not work",
        "`/readyz` names the part.",
        panels.NOT_READY,
    ),
    Alert(
        "LogSlow",
        "histogram_quantile(0.99, sum by (le) (rate(tailrace_generator_append_seconds_bucket[5m]))) > 0.1",
        "5m",
        "ticket",
        "Appends to the log take more than 0.1 s (p99)",
        "The disk of the log is slow, or the connection between its servers.",
        panels.STORES_NOTHING,
    ),
    Alert(
        "NatsPartsMissing",
        f"max({_fresh('tailrace_nats_missing')}) > 0",
        "1m",
        "page",
        "NATS lacks a stream, bucket or consumer",
        "Run `tailrace streams`.",
        panels.DELETED,
    ),
    Alert(
        "LogNotRedundant",
        f"max({_fresh('tailrace_nats_replicas_behind')}) > 0",
        "3m",
        "ticket",
        "A nats-server is away, or far behind: if one more fails, the log stops",
        "Start it. `tailrace status` names it.",
        panels.REDUNDANCY,
    ),
    Alert(
        "CertificateEnds",
        f"min({_fresh('tailrace_nats_certificate_expiry_timestamp_seconds')} > 0) - time() "
        f"< {CERTIFICATE_DAYS_MIN} * 86400",
        "1h",
        "ticket",
        "A certificate of the connection to NATS ends within three weeks",
        "Renew it, and reload nats-server. After its end, all processes stop at the next reconnect.",
        panels.CERTIFICATES,
    ),
    Alert(
        "ClocksDiffer",
        f"max(abs({_fresh('tailrace_clock_offset_seconds')})) > {CLOCK_OFFSET_S_MAX}",
        "5m",
        "ticket",
        "The clock of a machine differs from that of nats-server by more than a second",
        "Set it with NTP: measured times, tickets and budgets depend on it.",
        panels.CLOCK,
    ),
    Alert(
        "TurnsWait",
        f"max({_fresh(WAITING)}) > 0",
        "5m",
        "ticket",
        "Turns wait for a generator",
        "Add generators, or raise TAILRACE_CONCURRENCY.",
        panels.CAPACITY,
    ),
    Alert(
        "AnswersBreakOff",
        _exceeds(
            'sum(increase(tailrace_generator_attempts_total{mode!="fresh"}[10m]))',
            0.1,
            "sum(increase(tailrace_generator_attempts_total[10m]))",
        ),
        "5m",
        "ticket",
        "More than a tenth of the attempts continue a broken answer, or start again",
        "Check which generators end, and which errors the model's API gives.",
        panels.SLOW,
    ),
    Alert(
        "ModelFails",
        _exceeds(
            "sum(increase(tailrace_generator_backend_failures_total[10m]))",
            0.1,
            "sum(increase(tailrace_generator_attempts_total[10m]))",
        ),
        "5m",
        "ticket",
        "More than a tenth of the attempts break off",
        "The panel of broken attempts shows the codes: check the status page of the model's provider.",
        panels.SLOW,
    ),
    Alert(
        "ModelKeyRefused",
        f"max by (backend) ({_fresh('tailrace_generator_key_refused')}) > 0",
        "1m",
        "page",
        "The model's API refuses the key of a backend",
        "Check the key and its account. With a new key, restart the generators.",
        panels.NOT_READY,
    ),
    Alert(
        "AttemptsExhausted",
        'sum(increase(tailrace_generator_failures_total{code="attempts_exhausted"}[10m])) > 0',
        "0s",
        "ticket",
        "Turns fail after their last attempt",
        "Requests that kill their generators, or answers that always break off: the log lines name the turns.",
        panels.SLOW,
    ),
    Alert(
        "AnswersRepeat",
        _exceeds(
            "sum(increase(tailrace_generator_repetitions_total[1h]))",
            0.2,
            'sum(increase(tailrace_generator_attempts_total{mode="continue"}[1h]))',
        ),
        "15m",
        "ticket",
        "More than a fifth of the continuations repeat the end of the text",
        "A model that repeats its last words. Readers do not see it; it costs tokens.",
        panels.COSTS,
    ),
    Alert(
        "EntriesSkipped",
        "sum(increase(tailrace_generator_skipped_entries_total[1h])) > 0 or "
        "sum(increase(tailrace_persistence_skipped_entries_total[1h])) > 0",
        "0s",
        "ticket",
        "nats-server has stored a fork",
        "With one server, find out which program writes to `turns.>`.",
        panels.FORKS,
    ),
    Alert(
        "TurnsDamaged",
        f"max({_fresh('tailrace_persistence_damaged_turns')}) > 0",
        "0s",
        "ticket",
        "The log has lost entries of turns",
        "Check the disk. `tailrace doctor` names the turns; `tailrace verify` reads all.",
        panels.DAMAGED,
    ),
    Alert(
        "RecordsInvalid",
        "sum(tailrace_persistence_proof_mismatches_total) > 0 or sum(tailrace_persistence_turns_left_out_total) > 0 or "
        'sum(tailrace_generator_failures_total{code="events_lost"}) > 0',
        "0s",
        "ticket",
        "A text does not match the hash in its end, a turn has no row in the database, or a generator has lost events",
        "The log line of persistence, or of the generator, names the turn.",
        panels.RECORDS,
    ),
    Alert(
        "DatabaseFails",
        # If NATS is lost, LogNotWritable fires instead.
        f"max({_fresh('tailrace_persistence_failing')}) > 0 unless min({_fresh(WRITABLE)}) == 0",
        "1m",
        "page",
        "The database cannot be read or written",
        "History and sessions answer 503, and turns wait in the log. `/readyz` shows the error.",
        panels.DATABASE,
    ),
    Alert(
        "DatabaseBehind",
        "max(tailrace_persistence_backlog) > 0 and max(deriv(tailrace_persistence_backlog[10m])) > 0",
        "5m",
        "page",
        "The database falls behind the log",
        "Its disk or its server is too slow.",
        panels.DATABASE,
    ),
    Alert(
        "WebhooksWait",
        f"sum({_fresh('tailrace_persistence_webhooks_late')}) > 10",
        "1h",
        "ticket",
        "More than ten webhooks have waited for hours",
        "A receiver is unavailable: the log of persistence gives the reason.",
        panels.WEBHOOKS,
    ),
    Alert(
        "WebhooksBeyondShare",
        f"sum({_fresh('tailrace_persistence_webhooks_beyond_share')}) > 0",
        "15m",
        "ticket",
        "A tenant has more webhooks waiting than its share: its others wait in the log",
        "The log line of persistence names the tenant, whose receiver is unavailable or too slow.",
        panels.WEBHOOKS,
    ),
    Alert(
        "WebhooksGivenUp",
        "sum(increase(tailrace_persistence_webhooks_given_up_total[1h])) > 0",
        "0s",
        "ticket",
        "Webhooks were given up",
        "The log of persistence gives the reason for each.",
        panels.WEBHOOKS,
    ),
    Alert(
        "BudgetReached",
        "sum by (percent) (increase(tailrace_persistence_budgets_reached_total[1h])) > 0",
        "0s",
        "ticket",
        "A share of a budget is spent, or a budget refuses turns",
        "The log line of persistence names the tenant, the key and the share.",
        panels.COSTS,
    ),
    Alert(
        "GatewaysBusy",
        'sum(rate(tailrace_gateway_refused_total{code="server_busy"}[5m])) > 0',
        "5m",
        "page",
        "Gateways refuse requests because they are busy",
        "Add a gateway.",
        panels.REFUSED,
    ),
    Alert(
        "ClientsDoNotRead",
        "sum(rate(tailrace_gateway_connections_unread_total[10m])) > 0.1",
        "10m",
        "ticket",
        "Connections are closed because their clients do not read",
        "Check the proxy: it must not buffer.",
        panels.REFUSED,
    ),
)


def document() -> dict[str, Any]:
    """Returns the content of Prometheus's rule file."""
    budgets = [
        {"record": "tailrace:slo_budget:ratio", "expr": f"vector({level.budget})", "labels": {"slo": level.name}}
        for level in SERVICE_LEVELS
    ]
    shares = [
        {
            "record": f"tailrace:slo_bad:ratio_rate{window}",
            "expr": f"({level.bad}) / ({level.every})".replace("WINDOW", window),
            "labels": {"slo": level.name},
        }
        for level in SERVICE_LEVELS
        for window in WINDOWS
    ]
    return {
        "groups": [
            {"name": "tailrace-service-levels", "rules": budgets + shares},
            {"name": "tailrace-alerts", "rules": [_rule(alert) for alert in ALERTS]},
        ]
    }


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.hold,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.action,
            "runbook_url": f"{RUNBOOK_URL}#{alert.section}",
        },
    }
