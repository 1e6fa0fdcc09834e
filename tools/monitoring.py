"""Writes the dashboards of deploy/monitoring as Grafana's JSON and its rules as YAML, and renders docs/ALERTS.md."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, logs, loki, prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphTresholdsStyleMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
)

from tailrace.deploy.monitoring import RUNBOOK_URL, rules
from tailrace.features.ops.panels import DASHBOARDS, HEALTH, Dashboard, Panel

PROMETHEUS = DataSourceRef("prometheus", "tailrace-prometheus")
LOKI = DataSourceRef("loki", "tailrace-loki")
TEMPO = DataSourceRef("tempo", "tailrace-tempo")
# Grafana's grid has 24 columns: two panels a row.
WIDTH, HEIGHT = 12, 8
# The ids of the panels of the first row, after those of all others.
HEALTH_ID = 1001


def generate_files(written_by: str) -> dict[str, str]:
    """Returns the content of each generated file by its path in the repository."""
    pages = {one.uid: metrics_dashboard(one) for one in DASHBOARDS} | {"tailrace-turn": turn_dashboard()}
    return {
        "deploy/monitoring/rules.yml": f"# {written_by}\n" + "\n".join(yaml_lines(rules.document())) + "\n",
        **{
            f"deploy/monitoring/dashboards/{uid}.json": json.dumps(page.build(), cls=JSONEncoder, indent=1) + "\n"
            for uid, page in pages.items()
        },
    }


def new_dashboard(uid: str, title: str, description: str) -> dashboard.Dashboard:
    others = dashboard.DashboardLink("Tailrace").type(DashboardLinkType.DASHBOARDS).tags(["tailrace"])
    page = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["tailrace"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(others.as_dropdown(as_dropdown=True).keep_time(keep_time=True))
    )
    page.with_row(dashboard.Row("Is it healthy?"))
    for number, panel in enumerate(HEALTH, start=HEALTH_ID):
        page.with_panel(health_panel(panel).id(number))
    return page.with_row(dashboard.Row(title))


def metrics_dashboard(one: Dashboard) -> dashboard.Dashboard:
    page = new_dashboard(one.uid, one.title, one.description)
    for number, panel in enumerate(one.panels, start=1):
        page.with_panel(metrics_panel(panel).id(number))
    return page


def health_panel(panel: Panel) -> stat.Panel:
    """Returns a panel of the first row: one number for each query."""
    drawn = (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(PROMETHEUS)
        .links([runbook_link(panel.section)])
        .thresholds(thresholds(panel))
        .span(2 * WIDTH // len(HEALTH))
        .height(HEIGHT // 2)
    )
    for target in targets(panel):
        drawn.with_target(target)
    return drawn


def metrics_panel(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    drawn = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(PROMETHEUS)
        .links([runbook_link(panel.section)])
        .thresholds(thresholds(panel))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
        .min(0)
        .fill_opacity(10)
        .legend(legend.show_legend(show_legend=True).calcs(["lastNotNull", "max"]))
        .span(WIDTH)
        .height(HEIGHT)
    )
    for target in targets(panel):
        drawn.with_target(target)
    return drawn


def targets(panel: Panel) -> Iterator[prometheus.Dataquery]:
    for number, query in enumerate(panel.queries):
        expr = query.expression.promql()
        target = prometheus.Dataquery().expr(expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        # Exemplars of a histogram's buckets lead to traces.
        yield target.range().exemplar(exemplar="_bucket" in expr)


def thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    limit = panel.threshold
    if limit.is_minimum:
        steps = [Threshold(None, "red"), Threshold(limit.critical, "yellow"), Threshold(limit.warning, "green")]
    else:
        steps = [Threshold(None, "green"), Threshold(limit.warning, "yellow"), Threshold(limit.critical, "red")]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def runbook_link(section: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Runbook").type(DashboardLinkType.LINK).url(f"{RUNBOOK_URL}#{section}")
    return link.target_blank(target_blank=True)


def turn_dashboard() -> dashboard.Dashboard:
    """Returns the dashboard of one turn: its log lines and its spans, found by its id."""
    lines = (
        logs.Panel()
        .id(1)
        .title("Log lines")
        .description("Lines of all processes with the turn's id. Loki needs the lines of Tailrace under job=tailrace.")
        .datasource(LOKI)
        .links([runbook_link("one-turn")])
        .with_target(loki.Dataquery().expr('{job="tailrace"} |= `$turn` | json | turn = `$turn`').ref_id("A"))
        .show_time(show_time=True)
        .span(2 * WIDTH)
        .height(2 * HEIGHT)
    )
    found = tempo.TempoQuery().query('{ span.tailrace.turn = "$turn" }').query_type("traceql").limit(100).ref_id("A")
    spans = (
        table.Panel()
        .id(2)
        .title("Traces")
        .description("Traces with a span of the turn: its request, attempts, calls to the model, streams and its row.")
        .datasource(TEMPO)
        .links([runbook_link("one-turn")])
        .with_target(found)
        .span(2 * WIDTH)
        .height(HEIGHT)
    )
    page = new_dashboard("tailrace-turn", "One turn", "The log lines and traces of one turn. Needs Loki and Tempo.")
    page.with_variable(dashboard.TextBoxVariable("turn").label("Turn").default_value(""))
    return page.with_panel(lines).with_panel(spans)


def yaml_lines(value: object) -> Iterator[str]:
    """Yields JSON-like data as YAML, in which every string is quoted."""
    match value:
        case Mapping():
            for key, item in value.items():
                if isinstance(item, Mapping | list):
                    yield f"{key}:"
                    yield from (f"  {line}" for line in yaml_lines(item))
                else:
                    yield f"{key}: {scalar(item)}"
        case list():
            for item in value:
                first, *rest = yaml_lines(item)
                yield f"- {first}"
                yield from (f"  {line}" for line in rest)
        case _:
            yield scalar(value)


def scalar(value: Any) -> str:
    text = str(value)
    return f"'{text}'" if '"' in text else json.dumps(text)


def alerts_tables() -> str:
    """Returns the service levels and the causes of alerts in Markdown."""
    levels = [f"| {level.promise} | `{level.alert}` | {level.action} |" for level in rules.SERVICE_LEVELS]
    rows = [
        f"| `{alert.name}` | {alert.severity} | {alert.summary} | `{alert.expr.replace('|', chr(92) + '|')}` "
        f"for {alert.hold} | [{alert.action}](RUNBOOK.md#{alert.section}) |"
        for alert in rules.ALERTS
        if alert.section != "service-levels"
    ]
    return "\n".join(
        [
            "## Service levels\n",
            "| service level | alert | action |",
            "|---|---|---|",
            *levels,
            "\n## Causes\n",
            "| alert | severity | meaning | condition | action |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
