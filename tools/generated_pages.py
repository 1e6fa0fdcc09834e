"""The generated parts of the documentation: reference tables from the code, reports from the last results.

`make schema` writes each part into docs/tables, to which its page links by a line, MARK. `make docs` and /guides show
the part in the place of this line. The pages themselves are written by hand.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

from tailrace.proto.version import VERSION
from tools import asyncapi, reference_tables, run_findings
from tools.docs_site import GENERATED, LINK, MARK
from tools.schema_text import schema_text

ROOT = Path(__file__).parent.parent
RECORD = re.compile(r"\bADR (\d+)")
PAGE = re.compile(r"docs/(\w+)(\.md(?:#[\w-]+)?)")


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


# These import packages of the development tools, which `make setup-test` does not install.
# ruff: noqa: PLC0415


def alerts_tables() -> str:
    """Returns the alerts, by group."""
    from tools import monitoring

    return monitoring.alerts_tables()


def benchmark_tables() -> str:
    """Returns the systems, the last results, and what was measured by hand."""
    from benchmarks.compare import report

    by_hand = [
        csv_tables(f"benchmarks/{name}.csv", "##") for name in ("growth", "turn_cost", "taken_at_once", "not_made")
    ]
    return "\n".join([csv_tables("benchmarks/compare/arms.csv", "###"), report.tables(report.read()), *by_hand])


def client_tables() -> str:
    """Returns the limitations of clients, the requests that they repeat, and what is tested with each."""
    from tests.clients import proofs

    by_hand = [csv_tables(f"tests/clients/{name}.csv", "##") for name in ("limitations", "repeats")]
    return "\n".join([*by_hand, proofs.tables()])


def sdk_tables() -> str:
    """Returns the SDKs that `make test-all` runs over Tailrace's transport, and the last results of `make sdks`."""
    pinned = []
    for lock in ("dev", "clients"):
        found = dict(re.findall(r"(?m)^(anthropic|openai|httpx2?)==(\S+)", (ROOT / f"locks/{lock}.lock").read_text()))
        library = "httpx" if found["anthropic"].startswith("0.") else "httpx2"
        pinned.append(f"- anthropic {found['anthropic']}, openai {found['openai']}: {library} {found[library]}")
    return "\n".join(["`make test-all` runs:", "", *pinned, "", csv_tables("tests/clients/sdk_versions.csv", "###")])


def kills_tables() -> str:
    """Returns the last results of `make kills`."""
    from tests.kills import page

    return page.tables(page.read())


# The generated part of each page. A page without MARK is generated as a whole.
PARTS: dict[str, Callable[[], str]] = {
    "ARCHITECTURE.md": reference_tables.features_table,
    "SECURITY.md": lambda: csv_tables("tests/attacks.csv", "###"),
    "docs/AUTH.md": lambda: "\n".join(
        csv_tables(f"tests/{name}.csv", "###") for name in ("private_users", "positions")
    ),
    "docs/ALERTS.md": alerts_tables,
    "docs/BENCHMARKS.md": benchmark_tables,
    "docs/CLAUDE_API.md": reference_tables.claude_api_tables,
    "docs/CLIENTS.md": client_tables,
    "docs/COMMAND_LINE.md": reference_tables.commands_table,
    "docs/COMPARISON.md": lambda: csv_tables("docs/comparison.csv", "###"),
    "docs/DEPENDENCIES.md": lambda: "\n".join(
        csv_tables(f"tools/{name}.csv", "##") for name in ("dependencies", "own_code", "nats_py_overrides")
    ),
    "docs/ERRORS.md": reference_tables.errors_table,
    "docs/EVENTS.md": reference_tables.events_of_dialects,
    "docs/FAULTS.md": lambda: csv_tables("tests/faults.csv", "##"),
    "docs/FINDINGS.md": findings_table,
    "docs/GROWING.md": lambda: csv_tables("benchmarks/growing.csv", "###"),
    "docs/KILLS.md": kills_tables,
    "docs/METRICS.md": reference_tables.metrics_tables,
    "docs/OPENAI.md": reference_tables.openai_parameters,
    "docs/PROGRAMS.md": lambda: csv_tables("tests/clients/programs.csv", "###"),
    "docs/PYTHON.md": sdk_tables,
    "docs/RUNBOOK.md": lambda: csv_tables("docs/database_errors.csv", "####"),
    "docs/SHIPPED.md": lambda: "\n".join(
        csv_tables(f"tests/shipped/{name}.csv", "##") for name in ("unproven", "result")
    ),
    "docs/SETTINGS.md": reference_tables.settings_tables,
    "docs/SIMULATED.md": reference_tables.simulated_help,
    "docs/asyncapi.json": lambda: schema_text(asyncapi.build_document(VERSION)),
}


def build_page(path: str) -> str:
    """Returns a page of the site as a whole."""
    part, page = PARTS[path](), ROOT / path
    return MARK.sub(lambda _: part.strip(), page.read_text()) if page.exists() else part


def tables() -> dict[str, Callable[[], str]]:
    """Returns how to generate the part of each Markdown page, by its path in docs/tables."""
    return {f"docs/tables/{Path(path).name}": partial(table, path) for path in PARTS if path.endswith(".md")}


def table(path: str) -> str:
    """Returns the generated part of a page, with links that begin in docs/tables."""
    up = "../" * (2 - len(Path(path).parent.parts))
    return LINK.sub(lambda link: f"[{link[1]}]({up}{link[2]}{link[3] or ''})", PARTS[path]()).strip() + "\n"


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
