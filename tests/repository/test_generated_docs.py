"""Generated files equal what the code generates, and the generated pages of the site list all that they describe."""

import csv
import json
import os
import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tailrace.deploy.cli.main import GROUPS
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.monitoring.rules import ALERTS, SERVICE_LEVELS
from tailrace.deploy.simulated_claude.fault import FAULT_KINDS
from tailrace.features.gateway import DIALECTS
from tailrace.proto.errors import CODES
from tailrace.proto.nats.stream_configs import CONSUMERS, EVERY_STREAM
from tailrace.proto.records import Query
from tailrace.proto.runtime import settings
from tailrace.protocols.common.unsupported import unsupported_fields
from tailrace.protocols.openai.chat_request import ChatCompletionRequest
from tailrace.protocols.openai.responses_request import ResponseRequest
from tests.clients.proofs import proofs
from tests.kills import page as kills
from tests.kills.cell import KINDS, UNACKNOWLEDGED, entries_of, policies_of
from tests.kills.round import PROCESSES
from tests.rules import rules
from tools import api_surface, reference_tables, run_findings
from tools.docs_site import MARK
from tools.generate_docs import GENERATOR_QUERIES, entries_schema, generate_files, queries_schema, required_streams
from tools.generated_pages import PARTS, build_page, main
from tools.reference_tables import feature_folders

ROOT = Path(__file__).parents[2]


def rows_of(path: str) -> list[dict[str, str]]:
    with (ROOT / path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_generated_files_are_up_to_date() -> None:
    """`make schema` writes them."""
    out_of_date = [path for path, content in generate_files().items() if (ROOT / path).read_text() != content]
    assert out_of_date == [], "out of date: run `make schema`"


def test_the_schema_of_queries_has_each_query() -> None:
    """Also those of features. Each question says which refusals it has, in its description."""
    schema = json.loads(queries_schema())
    assert set(schema["queries"]) == {query.query for query in Query.__subclasses__()} | set(GENERATOR_QUERIES)
    assert "Refused: turn_not_found." in schema["$defs"]["GetTurn"]["description"]


def test_each_field_of_an_entry_has_a_description() -> None:
    """PROTOCOL.md does not repeat the fields, so their meaning must be in the schema."""
    structs = json.loads(entries_schema())["$defs"]
    assert list(structs["Event"]["properties"])[:3] == ["prev", "attempt", "event"]
    undescribed = [
        (name, field)
        for name, struct in structs.items()
        for field, schema in struct["properties"].items()
        if "description" not in schema
    ]
    assert undescribed == []


def test_the_required_streams_have_each_stream_and_consumer() -> None:
    """With the settings that are on: PROTOCOL.md does not repeat them."""
    required = json.loads(required_streams())
    streams = {one["name"]: one for one in required["streams"]}
    assert set(streams) == set(EVERY_STREAM)
    assert streams["TURNS"]["republish"] == {"src": "turns.>", "dest": "live.>"}
    assert [name for name, one in streams.items() if "max_bytes" in one or "num_replicas" in one] == []
    assert {one["durable_name"]: one["max_deliver"] for one in required["consumers"]} == dict.fromkeys(CONSUMERS, -1)


def test_each_page_with_a_mark_has_a_generated_part() -> None:
    """A page without its part would reach the site with the mark only."""
    marked = {
        str(path.relative_to(ROOT))
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
        if MARK.search(path.read_text())
    }
    assert marked == {path for path in PARTS if path.endswith(".md")}
    assert [path for path in PARTS if MARK.search(build_page(path))] == []


@pytest.mark.parametrize(
    ("page", "cells"),
    [
        ("SETTINGS", [[f"`{row[0]}`", *row[1:2], row[3]] for _, kind in SERVICES for row in settings.table(kind)]),
        ("ERRORS", [[f"`{code}`", row.meaning, row.advice] for code, row in CODES.items()]),
        ("ALERTS", [[f"`{level.alert}`", level.promise, level.action] for level in SERVICE_LEVELS]),
        ("ALERTS", [[f"`{one.name}`", one.summary] for one in ALERTS if one.section != "service-levels"]),
        ("CLAUDE_API", [[f"`{name}`"] for group in api_surface.read_table().values() for name in group.rows]),
        ("CLIENTS", [[proof.feature, proof.client] for proof in proofs()]),
        ("FINDINGS", [[run_findings.read_header(one)["title"]] for one in run_findings.scripts_of(ROOT / "findings")]),
        ("RUNBOOK", [[row["error"], row["action"]] for row in rows_of("docs/database_errors.csv")]),
        ("PROGRAMS", [[f"| {row['program']} |", row["setting"]] for row in rows_of("tests/clients/programs.csv")]),
        ("DEPENDENCIES", [[f"| {row['package']} |", row["licence"]] for row in rows_of("tools/dependencies.csv")]),
        ("DEPENDENCIES", [[row["module"], row["library"]] for row in rows_of("tools/own_code.csv")]),
        ("DEPENDENCIES", [[row["private part"]] for row in rows_of("tools/nats_py_overrides.csv")]),
        ("CLIENTS", [[row["client"], row["limitation"]] for row in rows_of("tests/clients/limitations.csv")]),
        ("CLIENTS", [[row["client"], row["end of the first turn"]] for row in rows_of("tests/clients/repeats.csv")]),
        ("COMMAND_LINE", [[f"| `{name}` |", about] for group in GROUPS.values() for name, about in group.items()]),
        ("OPENAI", [[f"| `{name}` |"] for name in ChatCompletionRequest.__struct_fields__]),
        ("OPENAI", [[f"| `{name}` |"] for name in ResponseRequest.__struct_fields__]),
        (
            "OPENAI",
            [
                [name, one.reason]
                for body in (ChatCompletionRequest, ResponseRequest)
                for name, one in unsupported_fields(body).items()
            ],
        ),
        ("GROWING", [[row["change"]] for row in rows_of("benchmarks/growing.csv")]),
        ("../ARCHITECTURE", [[f"| [{one.name}]", reference_tables.about_feature(one)] for one in feature_folders()]),
        ("SIMULATED", [[kind] for kind in FAULT_KINDS]),
        ("KILLS", [[f"`{name}`", "✓ 332", "✓ 166"] for name in DIALECTS]),
        ("FAULTS", [[f"| {fault} |"] for fault in rules("tests/faults.csv")]),
        ("../SECURITY", [[f"| {threat} |"] for threat in rules("tests/attacks.csv")]),
        ("BENCHMARKS", [["tailrace-always", "µs", "ms"], ["tuned", "1.00"]]),
        ("BENCHMARKS", [[row["change"]] for row in rows_of("benchmarks/not_made.csv")]),
    ],
)
def test_the_page_of_the_site_has_a_row_for_each(page: str, cells: list[list[str]]) -> None:
    rows = [line for line in build_page(os.path.normpath(f"docs/{page}.md")).splitlines() if line.startswith("| ")]
    assert cells != []
    assert [row for row in cells if not any(all(cell in line for cell in row) for line in rows)] == []


def test_the_page_of_events_has_each_dialect() -> None:
    page = build_page("docs/EVENTS.md")
    assert [name for name in DIALECTS if f"## {name}\n" not in page] == []
    assert '{"type": "delta", "text": "Hel"}' in page
    assert "event: warning  a sentence" in page


def test_each_row_of_the_comparison_has_a_version_or_a_source_and_its_day() -> None:
    for row in rows_of("docs/comparison.csv"):
        assert re.search(r"https://|\d+\.\d+\.\d+|\w+=v\d", row["product, version"]), row
        assert date.fromisoformat(row["read on"]) <= datetime.now(UTC).date()
        assert all(row.values()), row


def test_each_feature_says_what_it_does() -> None:
    """In the first line of the docstring of its package or of its first module, which ARCHITECTURE.md shows."""
    assert [folder.name for folder in feature_folders() if not reference_tables.about_feature(folder)] == []


def test_the_kept_result_of_the_kills_has_every_cell() -> None:
    """A run that was stopped would be kept with holes, which the page shows like entries that do not exist."""
    result = kills.read()
    for process in PROCESSES:
        for kind in KINDS:
            entries = result.cells[process][kind]
            assert set(entries) == {*entries_of(kind), UNACKNOWLEDGED}
            assert all(set(by_policy) == set(policies_of(kind)) for by_policy in entries.values())
    texts = [cell for by in result.cells.values() for of in by.values() for row in of.values() for cell in row.values()]
    assert [text for text in texts if not re.fullmatch(r"✓ [12]", text)] == result.failed == []


def test_all_pages_are_written_for_the_site(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make docs` calls this program, then MkDocs."""
    monkeypatch.setattr("sys.argv", ["generated_pages"])
    assert main() == 0
    assert capsys.readouterr().out.split() == [f"dist/generated/{path}" for path in PARTS]
