"""Recording rules and alerts: promtool and amtool accept the files, and each alert fires for its series only."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tailrace.deploy.monitoring.rules import ALERTS, SERVICE_LEVELS
from tailrace.features.ops.panels import DASHBOARDS, HEALTH
from tools.reference_tables import metrics_tables

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "deploy/monitoring"
needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("amtool") is None, reason="no promtool and amtool: `make clients`"
)
ROUTES = ("amtool", "config", "routes", "test", "--config.file=alertmanager.yml")
# Each alert with series that make it fire, one value a minute: `0+10` grows by 10 from 0 on.
FIRES = {
    "FirstTokensLate": {
        "tailrace_gateway_first_token_seconds_count": "0+10",
        'tailrace_gateway_first_token_seconds_bucket{le="5.0"}': "0+8",
    },
    "StreamsNotWhole": {
        'tailrace_gateway_stream_ends_total{end="whole"}': "0+50",
        'tailrace_gateway_stream_ends_total{end="cut"}': "0+1",
    },
    "ResumesLate": {
        "tailrace_gateway_resume_seconds_count": "0+10",
        'tailrace_gateway_resume_seconds_bucket{le="0.5"}': "0+8",
    },
    "ProcessDown": {'up{job="tailrace"}': "0+0"},
    "ProcessFrozen": {'up{job="tailrace"}': "0+0", 'scrape_duration_seconds{job="tailrace"}': "10+0"},
    "ProcessNotReady": {"tailrace_ready": "0+0"},
    # The target of the fourth is gone, too.
    "ProcessesMissing": {
        'tailrace_expected_processes{role="generators"}': "4+0",
        **{f'tailrace_generator_slots{{instance="{name}"}}': "32+0" for name in "abc"},
    },
    "LogNotWritable": {"tailrace_gateway_log_writable": "0+0"},
    "LogNearlyFull": {"tailrace_gateway_log_fullness_ratio": "0.85+0"},
    "DiskNearlyFull": {
        "tailrace_gateway_disk_free_bytes": "190+0",
        "tailrace_gateway_disk_reserve_bytes": "100+0",
    },
    "TurnsRefused": {'tailrace_gateway_refused_total{code="persistence_unavailable"}': "0+3"},
    "LogSlow": {
        'tailrace_generator_append_seconds_bucket{le="0.1"}': "0+90",
        'tailrace_generator_append_seconds_bucket{le="0.5"}': "0+100",
        'tailrace_generator_append_seconds_bucket{le="+Inf"}': "0+100",
    },
    "ModelKeyRefused": {'tailrace_generator_key_refused{backend="claude"}': "1+0"},
    "NatsPartsMissing": {"tailrace_nats_missing": "1+0"},
    "LogNotRedundant": {'tailrace_nats_replicas_behind{stream_name="TURNS"}': "1+0"},
    # promtool's time begins at 0: the certificate ends after ten days.
    "CertificateEnds": {"tailrace_nats_certificate_expiry_timestamp_seconds": "864000+0"},
    "ClocksDiffer": {"tailrace_clock_offset_seconds": "-180+0"},
    "TurnsWait": {'jetstream_consumer_num_pending{consumer_name="generators"}': "3+0"},
    "AnswersBreakOff": {
        'tailrace_generator_attempts_total{mode="fresh"}': "0+80",
        'tailrace_generator_attempts_total{mode="continue"}': "0+20",
    },
    "ModelFails": {
        'tailrace_generator_backend_failures_total{code="backend_overloaded"}': "0+20",
        'tailrace_generator_attempts_total{mode="fresh"}': "0+100",
    },
    "AttemptsExhausted": {'tailrace_generator_failures_total{code="attempts_exhausted"}': "0+1"},
    "AnswersRepeat": {
        "tailrace_generator_repetitions_total": "0+1",
        'tailrace_generator_attempts_total{mode="continue"}': "0+4",
        'tailrace_generator_attempts_total{mode="fresh"}': "0+96",
    },
    "EntriesSkipped": {"tailrace_persistence_skipped_entries_total": "0+1"},
    "TurnsDamaged": {"tailrace_persistence_damaged_turns": "1+0"},
    "RecordsInvalid": {"tailrace_persistence_proof_mismatches_total": "1+0"},
    "DatabaseFails": {"tailrace_persistence_failing": "1+0"},
    "DatabaseBehind": {"tailrace_persistence_backlog": "0+5"},
    # Their number does not grow: a full share, or a tenant that ends no more turns.
    "WebhooksWait": {"tailrace_persistence_webhooks_late": "20+0"},
    "WebhooksBeyondShare": {"tailrace_persistence_webhooks_beyond_share": "1+0"},
    "WebhooksGivenUp": {'tailrace_persistence_webhooks_given_up_total{reason="gone"}': "0+1"},
    "BudgetReached": {'tailrace_persistence_budgets_reached_total{percent="80"}': "0+1"},
    "GatewaysBusy": {'tailrace_gateway_refused_total{code="server_busy"}': "0+1"},
    "ClientsDoNotRead": {"tailrace_gateway_connections_unread_total": "0+12"},
}
# A busy system without a fault: no alert fires.
HEALTHY = {
    "tailrace_gateway_first_token_seconds_count": "0+1000",
    'tailrace_gateway_first_token_seconds_bucket{le="5.0"}': "0+1000",
    'tailrace_gateway_stream_ends_total{end="whole"}': "0+1000",
    'tailrace_gateway_stream_ends_total{end="cut"}': "0+0",
    "tailrace_gateway_resume_seconds_count": "0+100",
    'tailrace_gateway_resume_seconds_bucket{le="0.5"}': "0+100",
    'up{job="tailrace"}': "1+0",
    # On a busy machine, a scrape of a process that answers may take as long.
    'scrape_duration_seconds{job="tailrace"}': "5+0",
    "tailrace_ready": "1+0",
    "tailrace_gateway_log_writable": "1+0",
    'tailrace_expected_processes{role="gateway"}': "1+0",
    'tailrace_expected_processes{role="generators"}': "2+0",
    **{f'tailrace_generator_slots{{instance="{name}"}}': "32+0" for name in "abc"},
    "tailrace_gateway_log_fullness_ratio": "0.5+0",
    "tailrace_gateway_disk_free_bytes": "0+0",
    "tailrace_gateway_disk_reserve_bytes": "0+0",
    'tailrace_generator_append_seconds_bucket{le="0.1"}': "0+100",
    'tailrace_generator_append_seconds_bucket{le="+Inf"}': "0+100",
    "tailrace_nats_missing": "0+0",
    "tailrace_clock_offset_seconds": "-0.2+0",
    "tailrace_nats_certificate_expiry_timestamp_seconds": "8640000+0",
    'tailrace_nats_replicas_behind{stream_name="TURNS"}': "0+0",
    'jetstream_consumer_num_pending{consumer_name="generators"}': "0+0",
    'tailrace_generator_attempts_total{mode="fresh"}': "0+100",
    'tailrace_generator_attempts_total{mode="continue"}': "0+5",
    'tailrace_generator_backend_failures_total{code="backend_overloaded"}': "0+5",
    'tailrace_generator_failures_total{code="attempts_exhausted"}': "3+0",
    "tailrace_generator_repetitions_total": "2+0",
    'tailrace_generator_ends_total{outcome="completed"}': "0+100",
    "tailrace_generator_skipped_entries_total": "1+0",
    "tailrace_persistence_proof_mismatches_total": "0+0",
    "tailrace_persistence_backlog": "10+0",
    "tailrace_persistence_failing": "0+0",
    "tailrace_persistence_damaged_turns": "0+0",
    "tailrace_persistence_webhooks_waiting": "20+0",
    "tailrace_persistence_webhooks_late": "3+0",
    "tailrace_persistence_webhooks_beyond_share": "0+0",
    'tailrace_persistence_webhooks_given_up_total{reason="gone"}': "2+0",
    'tailrace_persistence_budgets_reached_total{percent="80"}': "3+0",
    'tailrace_gateway_refused_total{code="server_busy"}': "5+0",
    "tailrace_gateway_connections_unread_total": "0+1",
}
# A system with few users, which had one bad event of each kind some minutes ago.
QUIET = {
    "tailrace_gateway_first_token_seconds_count": "0x170 1+0",
    'tailrace_gateway_first_token_seconds_bucket{le="5.0"}': "0+0",
    'tailrace_gateway_stream_ends_total{end="whole"}': "0x170 3+0",
    'tailrace_gateway_stream_ends_total{end="cut"}': "0x170 1+0",
    "tailrace_gateway_resume_seconds_count": "0x170 1+0",
    'tailrace_gateway_resume_seconds_bucket{le="0.5"}': "0+0",
    'tailrace_generator_attempts_total{mode="fresh"}': "0x186 2+0",
    'tailrace_generator_attempts_total{mode="continue"}': "0x186 1+0",
    'tailrace_generator_backend_failures_total{code="backend_overloaded"}': "0x186 1+0",
    "tailrace_generator_repetitions_total": "0x170 1+0",
    'tailrace_generator_ends_total{outcome="completed"}': "0x170 1+0",
}
FIRING = 'min by (alertname) (ALERTS{alertstate="firing"})'
PAGES = 'min by (alertname) (ALERTS{alertstate="firing",severity="page"})'
# Longer than any alert is held back.
MINUTES = 200


def case(
    series: dict[str, str], alerts: list[str], firing: str = FIRING, *, has_processes: bool = True
) -> dict[str, object]:
    """Returns a test of promtool: with `series` of processes that answer, exactly these alerts fire at the end."""
    if has_processes:
        series = {'up{job="tailrace"}': "1+0"} | series
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{values}x{MINUTES}"} for name, values in series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": f"{MINUTES - 1}m", "exp_samples": samples}],
    }


def check_rules(tests: list[dict[str, object]], folder: Path) -> None:
    cases = folder / "cases.yml"
    rules = [str(FOLDER / "rules.yml")]
    # Less often than the default of a minute: most of the time goes into evaluating rules.
    cases.write_text(json.dumps({"rule_files": rules, "evaluation_interval": "4m", "tests": tests}))
    run("promtool", "test", "rules", str(cases))


def test_each_alert_has_a_test() -> None:
    assert set(FIRES) == {alert.name for alert in ALERTS}


@needs_prometheus
def test_no_alert_fires_without_a_fault(tmp_path: Path) -> None:
    check_rules([case(HEALTHY, [])], tmp_path)


@needs_prometheus
@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_fires_for_its_series_only(alert: str, tmp_path: Path) -> None:
    check_rules([case(FIRES[alert], [alert])], tmp_path)


# Alerts about a state, not about events that have happened.
OF_EVENTS = {"RecordsInvalid", *(level.alert for level in SERVICE_LEVELS)}
STATES = [alert.name for alert in ALERTS if "[" not in alert.expr and alert.name not in OF_EVENTS]


@needs_prometheus
@pytest.mark.parametrize("alert", STATES)
def test_no_alert_fires_for_the_last_samples_before_a_restart_of_prometheus(alert: str, tmp_path: Path) -> None:
    """Docker restarts, and every process has another address. The old series are shown for 5 minutes."""
    series = {name: f"{values}x190 _x10" for name, values in FIRES[alert].items()}
    series['up{job="tailrace",instance="new"}'] = "1+0x200"
    test: dict[str, object] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": FIRING, "eval_time": "193m", "exp_samples": []}],
    }
    check_rules([test], tmp_path)


@needs_prometheus
@pytest.mark.parametrize("role", ["gateway", "generators", "persistence"])
def test_an_alert_fires_if_the_last_process_of_a_role_vanishes_with_its_target(role: str, tmp_path: Path) -> None:
    expected = f'tailrace_expected_processes{{role="{role}"}}'
    check_rules([case({expected: "1+0"}, ["ProcessesMissing"]), case({expected: "0+0"}, [])], tmp_path)


@needs_prometheus
def test_a_database_that_waits_for_nats_is_not_its_failure(tmp_path: Path) -> None:
    check_rules([case(FIRES["DatabaseFails"] | FIRES["LogNotWritable"], ["LogNotWritable"])], tmp_path)


@needs_prometheus
def test_an_alert_fires_if_no_process_has_ever_been_discovered(tmp_path: Path) -> None:
    """As for a Prometheus that was started while Tailrace was down."""
    check_rules([case({'up{job="other"}': "1+0"}, ["ProcessDown"], has_processes=False)], tmp_path)


@needs_prometheus
def test_one_bad_event_makes_a_ticket_and_many_make_a_page(tmp_path: Path) -> None:
    """In a system with few users, one event is a large share of all events."""
    levels = [level.alert for level in SERVICE_LEVELS]
    pages = [case(FIRES[alert], [alert], PAGES) for alert in levels]
    check_rules([case(QUIET, levels), case(QUIET, [], PAGES), *pages], tmp_path)


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "rules", "rules.yml"),
        ("promtool", "check", "config", "prometheus.yml"),
        ("amtool", "check-config", "alertmanager.yml"),
        (*ROUTES, "--verify.receivers=on-call", "severity=page"),
        (*ROUTES, "--verify.receivers=tickets", "severity=ticket"),
    ],
    ids=lambda command: command[-1],
)
def test_prometheus_and_alertmanager_accept_the_files(command: tuple[str, ...]) -> None:
    """Alertmanager sends pages and tickets to different receivers."""
    run(*command)


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_dashboard_begins_with_the_health_of_the_system() -> None:
    titles = [panel.title for panel in HEALTH]
    for path in (FOLDER / "dashboards").iterdir():
        row, *panels = json.loads(path.read_text())["panels"]
        assert (row["type"], row["title"]) == ("row", "Is it healthy?")
        first = panels[: len(titles)]
        assert [panel["title"] for panel in first] == titles
        # All in one row of Grafana's grid.
        assert len({panel["gridPos"]["y"] for panel in first}) == 1
        assert sum(panel["gridPos"]["w"] for panel in first) == 24


def test_every_query_and_alert_names_documented_metrics() -> None:
    """A metric that was renamed would leave a panel empty and an alert silent."""
    pages = [HEALTH, *(page.panels for page in DASHBOARDS)]
    queries = [query.expression.promql() for panels in pages for panel in panels for query in panel.queries]
    queries += [alert.expr for alert in ALERTS] + [level.bad + level.every for level in SERVICE_LEVELS]
    named = set(re.findall(r"\b(?:tailrace|gen_ai|jetstream)_\w+", " ".join(queries)))
    documented = set(re.findall(r"^\| `(\w+)` \|", metrics_tables(), re.MULTILINE))
    assert {name for name in named if re.sub(r"_(bucket|count|sum)$", "", name) not in documented} == {
        "gen_ai_request_model"  # a label
    }


def test_every_panel_and_alert_links_to_a_section_of_the_runbook() -> None:
    headings = re.findall(r"^##+ (.*)$", (CHECKOUT / "docs/RUNBOOK.md").read_text(), re.MULTILINE)
    sections = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = {panel.section for page in DASHBOARDS for panel in page.panels} | {panel.section for panel in HEALTH}
    linked |= {alert.section for alert in ALERTS}
    assert linked - sections == set()
