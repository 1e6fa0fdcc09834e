"""The generated parts of the documentation: reference tables from the code, reports from the last results.

`make docs` puts each part in the place of MARK in its page (tools/docs_site.py). The pages themselves are written by
hand.
"""

import argparse
import csv
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

import tailrace.features.unread_tokens.gateway
import tailrace.features.webhooks.metrics
import tailrace.gateway.metrics
import tailrace.generators.backends.measured
import tailrace.generators.metrics
import tailrace.persistence.metrics
import tailrace.proto.nats.follower
import tailrace.proto.nats.setup_state
import tailrace.proto.runtime.trace_export
import tailrace.proto.service
from benchmarks.compare import report
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.simulated_claude.directive import HELP
from tailrace.proto.errors import CODES
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.fast_histogram import FastHistogram
from tailrace.proto.version import VERSION
from tests.clients import proofs
from tests.kills import page as kills
from tools import api_surface, asyncapi, monitoring, run_findings
from tools.docs_site import GENERATED, MARK
from tools.generate_docs import schema_text

ROOT = Path(__file__).parent.parent
# The help text indents words by two columns and the kinds of faults by 19.
HELP_WORD = re.compile(r"^  (\S+) +(.*)$", re.MULTILINE)
HELP_KIND = re.compile(r"^ {19}(\S+(?: \S+)*) {2,}(.*)$", re.MULTILINE)
METRICS = {
    "Every process": (
        tailrace.proto.service,
        tailrace.proto.nats.setup_state,
        tailrace.proto.nats.follower,
    ),
    "Gateways": (tailrace.gateway.metrics, tailrace.features.unread_tokens.gateway),
    "Generators": (tailrace.generators.metrics, tailrace.generators.backends.measured),
    "Persistence": (tailrace.persistence.metrics, tailrace.features.webhooks.metrics),
    "Every process that exports traces": (tailrace.proto.runtime.trace_export,),
}
RECORD = re.compile(r"\bADR (\d+)")
PAGE = re.compile(r"docs/(\w+)(\.md(?:#[\w-]+)?)")


def settings_tables() -> str:
    """Returns one table for each process."""
    parts = []
    for name, kind in SERVICES:
        rows = [
            f"| `{variable}` | {type_} | `{default}` | {why} |"
            for variable, type_, default, why in settings.table(kind)
        ]
        parts += [
            f"## python -m tailrace.{name}\n",
            "| name | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(parts)


def metrics_tables() -> str:
    """Returns one table for each kind of process."""
    parts = []
    for of, modules in METRICS.items():
        values = [value for module in modules for value in vars(module).values()]
        rows = [metric_row(value) for value in values if isinstance(value, MetricWrapperBase | FastHistogram)]
        parts += [f"## {of}\n", "| name | type | labels | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def metric_row(metric: MetricWrapperBase | FastHistogram) -> str:
    (family,) = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in labels_of(metric))
    return f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def labels_of(metric: MetricWrapperBase | FastHistogram) -> Sequence[str]:
    if isinstance(metric, FastHistogram):
        return metric.labels
    names: Sequence[str] = metric._labelnames  # noqa: SLF001  # there is no public attribute
    return names


def errors_table() -> str:
    rows = [
        f"| `{code}` | {row.status} | `{row.type}` | {'yes' if row.is_retryable else 'no'} "
        f"| {row.meaning} | {row.advice} |"
        for code, row in CODES.items()
    ]
    columns = ("code", "status", "type", "retry", "meaning", "what to do")
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows, ""])


def simulated_help() -> str:
    """Returns the `--help` text of the simulated Claude, with its directives and faults as tables."""
    about, _, rest = HELP.partition("\n\n")
    listed, _, notes = rest.partition("\n\n")
    return "\n".join(
        [
            f"{about}\n",
            *("| word | meaning |", "|---|---|", *table_rows(HELP_WORD.findall(listed))),
            *("\n| KIND | what happens |", "|---|---|", *table_rows(HELP_KIND.findall(listed))),
            *(f"\n{textwrap.fill(paragraph, 100, break_on_hyphens=False)}" for paragraph in notes.split("\n\n")),
            "",
        ]
    )


def claude_api_tables() -> str:
    """Returns the verdicts on the types of Claude's API as tables, each without its empty columns."""
    groups = api_surface.read_table().values()
    total = Counter(row.verdict for group in groups for row in group.rows.values())
    meanings = [f"| {verdict} | {meaning} | {total[verdict]} |" for verdict, meaning in api_surface.VERDICTS.items()]
    parts = ["| verdict | meaning | types |", "|---|---|---|", *meanings]
    for group in groups:
        about = textwrap.fill(group.about, 100, break_on_hyphens=False, break_long_words=False)
        parts += [f"\n## {group.title}\n", *([f"{about}\n"] if about else [])]
        columns = [name for name in api_surface.COLUMNS if any(getattr(row, name) for row in group.rows.values())]
        parts += [f"| {' | '.join(['type', *(api_surface.COLUMNS[name] for name in columns)])} |"]
        parts += ["|---" * (len(columns) + 1) + "|"]
        for name, row in group.rows.items():
            parts += [f"| {' | '.join([f'`{name}`', *(getattr(row, column) for column in columns)])} |"]
    return "\n".join([*parts, ""])


def csv_tables(path: str, level: str) -> str:
    """Returns a table for each value of the first column of a CSV file, below a heading of this level."""
    parts = []
    with (ROOT / path).open(newline="") as file:
        (_, *columns), *lines = csv.reader(file)
    for topic, rows in groupby(lines, lambda row: row[0]):
        parts += [f"{level} {topic}\n", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        parts += [*(f"| {' | '.join(row[1:])} |" for row in rows), ""]
    return "\n".join(parts)


def findings_table() -> str:
    """Returns one row for each script: the fact, and what Tailrace does about it, from the script's header."""
    rows = []
    for script in run_findings.scripts_of(run_findings.FOLDER):
        header = run_findings.read_header(script)
        rows.append(f"| [{header['title']}](../findings/{script.name}) | {with_links(header['Tailrace'])} |")
    return "\n".join(["| finding | Tailrace |", "|---|---|", *rows, ""])


def with_links(text: str) -> str:
    """Returns a text whose decision records and pages are links."""

    def link_record(found: re.Match[str]) -> str:
        (path,) = ROOT.glob(f"docs/adr/{int(found[1]):04}-*.md")
        return f"[{found[0]}](adr/{path.name})"

    return PAGE.sub(r"[\1](\1\2)", RECORD.sub(link_record, text))


def table_rows(rows: list[tuple[str, str]]) -> list[str]:
    return [f"| `{name}` | {meaning} |" for name, meaning in rows]


# The generated part of each page. A page without MARK is generated as a whole.
PARTS: dict[str, Callable[[], str]] = {
    "SECURITY.md": lambda: csv_tables("tests/attacks.csv", "###"),
    "docs/ALERTS.md": monitoring.alerts_tables,
    "docs/BENCHMARKS.md": lambda: report.tables(report.read()),
    "docs/CLAUDE_API.md": claude_api_tables,
    "docs/CLIENTS.md": proofs.tables,
    "docs/DEPENDENCIES.md": lambda: csv_tables("tools/dependencies.csv", "###"),
    "docs/ERRORS.md": errors_table,
    "docs/FAULTS.md": lambda: csv_tables("tests/faults.csv", "##"),
    "docs/FINDINGS.md": findings_table,
    "docs/KILLS.md": lambda: kills.tables(kills.read()),
    "docs/METRICS.md": metrics_tables,
    "docs/PROGRAMS.md": lambda: csv_tables("tests/clients/programs.csv", "###"),
    "docs/SETTINGS.md": settings_tables,
    "docs/SIMULATED.md": simulated_help,
    "docs/asyncapi.json": lambda: schema_text(asyncapi.build_document(VERSION)),
}


def build_page(path: str) -> str:
    """Returns a page of the site as a whole."""
    part, page = PARTS[path](), ROOT / path
    return page.read_text().replace(MARK, part.strip()) if page.exists() else part


def main() -> int:
    """Writes all pages with a generated part, and prints their paths."""
    argparse.ArgumentParser(prog="python -m tools.generated_pages", description=__doc__).parse_args()
    for path in PARTS:
        target = GENERATED / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(build_page(path))
        sys.stdout.write(f"{target.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
