"""Reference from the code, in Markdown: settings, metrics, errors, events, commands, features, parameters."""

import ast
import inspect
import json
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import get_args

import msgspec
from prometheus_client.metrics import MetricWrapperBase

from tailrace.deploy.cli.main import GROUPS
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.simulated_claude.directive import HELP
from tailrace.features.gateway import DIALECTS, ROUTES
from tailrace.gateway.clients.native.event_types import TurnEvent
from tailrace.proto.errors import CODES
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.fast_metrics import FastMetric
from tailrace.proto.version import VERSION
from tailrace.protocols.openai import builtin_tools
from tailrace.protocols.tutorials import content_stream, delta_stream, html_stream
from tools import api_surface, asyncapi
from tools.openapi.descriptions import meanings_of
from tools.openapi.document import build_document

ROOT = Path(__file__).parent.parent
# The process of each module of a feature.
PROCESSES = {"gateway.py": "gateway", "generator.py": "generators", "persistence.py": "persistence"}
# The bodies of OpenAI's two protocols in the OpenAPI document.
# The objects in options of OpenAI's tools.
INNER: dict[type, tuple[tuple[str, type], ...]] = {
    builtin_tools.WebSearchTool: (("filters.", builtin_tools.SearchFilters),),
    builtin_tools.CodeInterpreterTool: (("container.", builtin_tools.Container),),
    builtin_tools.McpTool: (("allowed_tools.", builtin_tools.ToolNames),),
}
OPENAI_BODIES = {"POST /v1/chat/completions": "ChatCompletionRequest", "POST /v1/responses": "ResponseRequest"}
# The reasons of `incomplete_details` in a response, and whether OpenAI's types have them (`IncompleteDetails`).
INCOMPLETE_REASONS = {
    "max_output_tokens": ("a limit has cut the answer, or the model has paused", True),
    "content_filter": ("the model has refused to answer", True),
    "steered": ("a message was put into the answer", True),
    "cancelled": ("the response was cancelled; its status is `cancelled`, too", False),
}
# The help text indents words by two columns and the kinds of faults by 19.
HELP_WORD = re.compile(r"^  (\S+) +(.*(?:\n {17}(?! ).*)*)$", re.MULTILINE)
HELP_KIND = re.compile(r"^ {19}(\S+(?: \S+)*) {2,}(.*)$", re.MULTILINE)
# The module of their `render` is that of the field `cursor`, or of all text dialects.
VARIANTS = {"delta": delta_stream, "content": content_stream, "html": html_stream}
# Modules that are imported when the table is made: traces need optional packages.
METRICS = {
    "Every process": (
        "tailrace.proto.service",
        "tailrace.proto.waiting",
        "tailrace.proto.nats.certificates",
        "tailrace.proto.nats.setup_state",
        "tailrace.proto.nats.follower",
    ),
    "Gateways": ("tailrace.gateway.metrics",),
    "Generators": (
        "tailrace.generators.metrics",
        "tailrace.generators.backends.measured",
        "tailrace.features.failover.metrics",
        "tailrace.features.limits.metrics",
        "tailrace.features.structured_output.metrics",
    ),
    "Persistence": (
        "tailrace.persistence.metrics",
        "tailrace.features.unstored.metrics",
        "tailrace.features.webhooks.metrics",
    ),
    "Every process that exports traces": ("tailrace.proto.runtime.trace_export",),
}


def feature_folders() -> list[Path]:
    """Returns the folder of each client protocol, and of each optional feature; not those of what they share."""
    found = [path.parent for name in ("protocols", "features") for path in sorted(ROOT.glob(f"{name}/*/__init__.py"))]
    return [folder for folder in found if folder.name != "common"]


def about_feature(folder: Path) -> str:
    """Returns the first line of the docstring of a feature: of its package, else of its first module with one."""
    paths = [path for name in ("__init__.py", *PROCESSES) if (path := folder / name).exists()]
    docstrings = (ast.get_docstring(ast.parse(path.read_text())) for path in paths)
    return next((text.partition("\n")[0] for text in docstrings if text), "")


def features_table() -> str:
    """Returns a row for each optional feature: its folder, what it does, and the processes that run it."""
    rows = [
        f"| [{folder.name}]({folder.parent.name}/{folder.name}) | {about_feature(folder)} "
        f"| {', '.join(process for module, process in PROCESSES.items() if (folder / module).exists())} |"
        for folder in feature_folders()
    ]
    return "\n".join(["| folder | feature | processes |", "|---|---|---|", *rows, ""])


def commands_table() -> str:
    """Returns a row for each command of `tailrace`, with its line in `tailrace --help`."""
    rows = [f"| `{name}` | {about} |" for name, about in chain.from_iterable(one.items() for one in GROUPS.values())]
    return "\n".join(["| command | use |", "|---|---|", *rows, ""])


def openai_parameters() -> str:
    """Returns the parameters of OpenAI's two protocols with their meanings, as in the OpenAPI document."""
    schemas = build_document(ROUTES, VERSION)["components"]["schemas"]
    parts = []
    for route, name in OPENAI_BODIES.items():
        rows = [
            f"| `{field}` | {' '.join(schema.get('description', '').split())} |"
            for field, schema in schemas[name]["properties"].items()
        ]
        parts += [f"### Parameters of `{route}`\n", "| parameter | meaning |", "|---|---|", *rows, ""]
    for struct in dict.fromkeys(row.struct for row in builtin_tools.TOOLS.values()):
        kinds = [f"`{kind}`" for kind, row in builtin_tools.TOOLS.items() if row.struct is struct]
        options = [
            f"| `{prefix}{field}` | {meaning} |"
            for prefix, one in [("", struct), *INNER.get(struct, ())]
            for field, meaning in meanings_of(one).items()
        ]
        parts += [f"### Options of the tool {', '.join(kinds)}\n", "| option | verdict |", "|---|---|", *options, ""]
    rows = [
        f"| `{reason}` | {why} | {'yes' if is_known else 'no: clients must accept it as text'} |"
        for reason, (why, is_known) in INCOMPLETE_REASONS.items()
    ]
    head = ["### Reasons in `incomplete_details`\n", "| reason | meaning | in OpenAI's types |", "|---|---|---|"]
    parts += [*head, *rows, ""]
    return "\n".join(parts)


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
        values = [value for module in modules for value in vars(import_module(module)).values()]
        rows = [metric_row(value) for value in values if isinstance(value, MetricWrapperBase | FastMetric)]
        parts += [f"## {of}\n", "| name | type | labels | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def metric_row(metric: MetricWrapperBase | FastMetric) -> str:
    (family,) = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in labels_of(metric))
    return f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def labels_of(metric: MetricWrapperBase | FastMetric) -> Sequence[str]:
    if isinstance(metric, FastMetric):
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


def events_of_dialects() -> str:
    """Returns, for each dialect, the docstring of its module, and one example of each event."""
    parts = []
    for name, dialect in DIALECTS.items():
        module = VARIANTS.get(name) or inspect.getmodule(dialect.render)
        about, *paragraphs = inspect.cleandoc(getattr(module, "__doc__", "")).split("\n\n")
        meaning = about.partition(": ")[2] if about.startswith("The dialect") else about
        parts += [f"## {name}\n", f"{meaning[0].upper()}{meaning[1:]}\n"]
        for paragraph in paragraphs:
            is_list = paragraph.startswith(("{", "event:", "data:"))
            parts += ["```", paragraph, "```\n"] if is_list else [f"{textwrap.fill(paragraph, 100)}\n"]
        if name == "tailrace":
            parts += ["| `type` | fields | meaning |", "|---|---|---|", *map(event_row, get_args(TurnEvent)), ""]
        examples: dict[str, object] = {}
        for event, payload in asyncapi.render_example(dialect):
            examples.setdefault(event, payload)
        lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in examples.values()]
        parts += ["Examples, one of each event:\n", "```", *lines, "```\n"]
    return "\n".join(parts)


def event_row(struct: type[msgspec.Struct]) -> str:
    """Returns the row of an event: `?` marks a field that may be left out."""
    fields = msgspec.structs.fields(struct)
    shown = ", ".join(f"`{field.encode_name}`{'' if field.required else '?'}" for field in fields)
    meaning = " ".join(inspect.cleandoc(struct.__doc__ or "").split())
    return f"| `{struct.__struct_config__.tag}` | {shown} | {meaning} |"


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


def table_rows(rows: list[tuple[str, str]]) -> list[str]:
    return [f"| `{name}` | {' '.join(meaning.split())} |" for name, meaning in rows]
