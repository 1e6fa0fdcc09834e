"""Writes what is generated from the code: settings, errors, metrics, the schema of an entry. `make schema`.

A test makes them anew and compares, so that what is read in docs/ is what the code does.
"""

import json
import re
import sys
from pathlib import Path

import msgspec
from prometheus_client.metrics import MetricWrapperBase

import tailrace.gateway.metrics
import tailrace.generators.metrics
import tailrace.persistence.metrics
import tailrace.proto.runtime.main
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.simulated_claude.directive import HELP
from tailrace.gateway.app import ROUTES
from tailrace.gateway.openapi.document import document
from tailrace.proto.entries import Attempt, End, Event, Progress, Request
from tailrace.proto.errors import CODES
from tailrace.proto.nats.permissions import RIGHTS
from tailrace.proto.runtime import settings
from tailrace.proto.version import VERSION
from tools import asyncapi

ROOT = Path(__file__).parent.parent
# As the help is set: words begin its lines, the kinds of fault stand under theirs.
HELP_WORD = re.compile(r"^  (\S+) +(.*)$", re.MULTILINE)
HELP_KIND = re.compile(r"^ {19}(\S+(?: \S+)*) {2,}(.*)$", re.MULTILINE)
BY_HAND = """\
`up` starts it by itself. For processes that are started by hand there is
`.venv/bin/python -m tailrace.deploy.simulated_claude --port 9000`, and generators with
`ANTHROPIC_BASE_URL=http://127.0.0.1:9000 ANTHROPIC_API_KEY=any`.
"""
METRICS = {
    "Every process": tailrace.proto.runtime.main,
    "Gateways": tailrace.gateway.metrics,
    "Generators": tailrace.generators.metrics,
    "Persistence": tailrace.persistence.metrics,
}
WRITTEN_BY = "Written by `make schema`; do not edit."


def generated() -> dict[str, str]:
    """Path in the repository to content, of everything that is generated."""
    return {
        "docs/SETTINGS.md": settings_page(),
        "docs/ERRORS.md": errors_page(),
        "docs/METRICS.md": metrics_page(),
        "docs/SIMULATED.md": simulated_page(),
        "proto/entries.schema.json": entries_schema(),
        "docs/nats-users.conf": accounts_configuration(),
        "docs/asyncapi.json": json.dumps(asyncapi.document(VERSION), indent=1) + "\n",
        "gateway/openapi/openapi.json": json.dumps(document(ROUTES, VERSION), indent=1) + "\n",
    }


def settings_page() -> str:
    parts = [f"# Settings\n\n{WRITTEN_BY} Each process prints its own with `--env`.\n"]
    for name, kind in SERVICES:
        rows = [
            f"| `{variable}` | {type_} | `{default}` | {why} |"
            for variable, type_, default, why in settings.table(kind)
        ]
        parts.append(
            "\n".join(
                [f"\n## python -m {name}\n", "| name | type | default | meaning |", "|---|---|---|---|", *rows, ""]
            )
        )
    return "".join(parts)


def metrics_page() -> str:
    head = (
        f"# Metrics\n\n{WRITTEN_BY} Where they are scraped, and what to alert on: [RUNBOOK.md](RUNBOOK.md#metrics).\n"
        "Each process also has prometheus-client's own (`process_…`, `python_…`).\n"
    )
    parts = [head]
    for of, module in METRICS.items():
        rows = [metric_row(metric) for metric in vars(module).values() if isinstance(metric, MetricWrapperBase)]
        parts.append(
            "\n".join([f"\n## {of}\n", "| name | type | labels | what it tells |", "|---|---|---|---|", *rows, ""])
        )
    return "".join(parts)


def metric_row(metric: MetricWrapperBase) -> str:
    (family,) = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001  # it tells nobody
    return f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def errors_page() -> str:
    rows = [
        f"| `{code}` | {row.status} | `{row.type}` | {'yes' if row.is_retryable else 'no'} "
        f"| {row.meaning} | {row.advice} |"
        for code, row in CODES.items()
    ]
    head = (
        f"# Errors\n\n{WRITTEN_BY} Codes are stable. The body of every error response is\n"
        '`{"type": "error", "error": {"message", "type", "code", "param"}}`; the `error` of a failed turn is\n'
        '`{"code", "message"}`. "Retry" says whether the same request may succeed later.\n'
    )
    columns = ("code", "status", "type", "retry", "meaning", "what to do")
    return "\n".join([head, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows, ""])


def simulated_page() -> str:
    """What `--help` of the simulated Claude says, with its words and its faults as tables."""
    about, _, rest = HELP.partition("\n\n")
    listed, _, notes = rest.partition("\n\n")
    return "\n".join(
        [
            "# The simulated Claude\n",
            f"{WRITTEN_BY} It answers while there is no `ANTHROPIC_API_KEY`, and costs nothing.\n",
            BY_HAND,
            f"{about}\n",
            *("| word | meaning |", "|---|---|", *table_rows(HELP_WORD.findall(listed))),
            *("\n| KIND | what happens |", "|---|---|", *table_rows(HELP_KIND.findall(listed))),
            f"\n{notes}",
        ]
    )


def table_rows(rows: list[tuple[str, str]]) -> list[str]:
    return [f"| `{name}` | {meaning} |" for name, meaning in rows]


def accounts_configuration() -> str:
    """For a NATS of one's own: what `up` gives to its server, with the passwords taken from the environment."""
    variables = {user: f"$TAILRACE_{user.upper()}_PASSWORD" for user in RIGHTS}
    head = f"# {WRITTEN_BY} Include it in the `accounts` of nats-server's configuration: docs/RUNBOOK.md says how.\n"
    return head + nats_server.accounts_config(variables)


def entries_schema() -> str:
    (_, definitions) = msgspec.json.schema_components((Request, Attempt, Event, Progress, End))
    return json.dumps({"$comment": WRITTEN_BY, "$defs": definitions}, indent=1, sort_keys=True) + "\n"


def main() -> int:
    for path, content in generated().items():
        (ROOT / path).write_text(content)
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
