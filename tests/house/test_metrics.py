"""What is counted, and by which labels: each from a set that is fixed before anybody asks."""

import pytest
import re
from collections.abc import Iterable
from typing import get_args

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase

import gateway.metrics
import generators.metrics
import persistence.metrics
import proto.process
from generators.backends import table
from persistence.webhooks import GivenUp
from proto.entries import Mode, Outcome
from proto.errors import CODES
from proto.usage import Usage
from tests.processes import CHECKOUT

# Whoever adds a label says here which values it can have. What a client names, or a model says, is no such set.
LABELS: dict[tuple[str, str], Iterable[str]] = {
    ("tailrace_gateway_refused", "code"): CODES,
    ("tailrace_generator_attempts", "mode"): get_args(Mode),
    ("tailrace_generator_ends", "outcome"): get_args(Outcome),
    ("tailrace_generator_backend_failures", "code"): CODES,
    ("tailrace_generator_failures", "code"): CODES,
    ("tailrace_generator_failovers", "backend"): table.NAMES,
    ("tailrace_generator_hedges", "outcome"): ("won", "lost", "failed", "nobody"),
    ("tailrace_generator_calls_again", "code"): CODES,
    ("tailrace_generator_answers_judged", "verdict"): ("fits", "misfit", "unjudged"),
    ("tailrace_generator_usage_tokens", "kind"): Usage.__struct_fields__,
    ("tailrace_persistence_webhooks_given_up", "reason"): get_args(GivenUp),
}
# Of all metrics together, if each label came with all of its values.
SERIES_MAX = 400
MODULES = (gateway.metrics, generators.metrics, persistence.metrics, proto.process)
METRICS = [one for module in MODULES for one in vars(module).values() if isinstance(one, MetricWrapperBase)]


@pytest.mark.rule("S11")
def test_every_label_is_in_the_table() -> None:
    """A metric with a label that nobody has judged may be filled by who asks often enough."""
    assert {(metric._name, label) for metric in METRICS for label in metric._labelnames} == set(LABELS)
    assert sum(len(set(values)) for values in LABELS.values()) < SERIES_MAX


def test_every_metric_stands_in_the_docs_under_the_name_that_is_scraped() -> None:
    """Who writes an alert finds its name, what it tells and its labels."""
    scraped = re.findall(r"^# TYPE (tailrace_\S+) ", prometheus_client.generate_latest().decode(), re.MULTILINE)
    names = {name for name in scraped if not name.endswith("_created")}
    page = (CHECKOUT / "docs/METRICS.md").read_text()
    assert len(names) == len(METRICS)
    assert names == set(re.findall(r"^\| `(tailrace_\w+)` \|", page, re.MULTILINE))


def test_metrics_are_made_where_the_table_looks() -> None:
    """In these modules, and nowhere else."""
    made = re.compile(r"\b(?:Counter|Gauge|Histogram|Summary|Info|Enum)\(\s*\"tailrace_")
    folders = ("proto", "gateway", "generators", "persistence", "deploy")
    files = {path for folder in folders for path in (CHECKOUT / folder).rglob("*.py") if made.search(path.read_text())}
    assert {str(path) for path in files} == {module.__file__ for module in MODULES}
