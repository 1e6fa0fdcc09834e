"""What is counted, and by which labels: each from a set that is fixed before anybody asks."""

import re
from collections.abc import Iterable
from typing import get_args

import prometheus_client
import pytest
from prometheus_client.metrics import MetricWrapperBase

import tailrace.gateway.metrics
import tailrace.generators.metrics
import tailrace.persistence.metrics
import tailrace.proto.runtime.main
from tailrace.generators.backends import registry
from tailrace.persistence.webhooks.sender import GivenUp
from tailrace.proto.entries import Mode, Outcome
from tailrace.proto.errors import CODES
from tailrace.proto.usage import Usage
from tests.processes import CHECKOUT

# Whoever adds a label says here which values it can have. What a client names, or a model says, is no such set.
LABELS: dict[tuple[str, str], Iterable[str]] = {
    ("tailrace_gateway_refused", "code"): CODES,
    ("tailrace_generator_attempts", "mode"): get_args(Mode),
    ("tailrace_generator_ends", "outcome"): get_args(Outcome),
    ("tailrace_generator_backend_failures", "code"): CODES,
    ("tailrace_generator_failures", "code"): CODES,
    ("tailrace_generator_failovers", "backend"): registry.NAMES,
    ("tailrace_generator_hedges", "outcome"): ("won", "lost", "failed", "nobody"),
    ("tailrace_generator_calls_again", "code"): CODES,
    ("tailrace_generator_answers_judged", "verdict"): ("fits", "misfit", "unjudged"),
    ("tailrace_generator_usage_tokens", "kind"): Usage.__struct_fields__,
    ("tailrace_persistence_webhooks_given_up", "reason"): get_args(GivenUp),
}
# Of all metrics together, if each label came with all of its values.
SERIES_MAX = 400
MODULES = (
    tailrace.gateway.metrics,
    tailrace.generators.metrics,
    tailrace.persistence.metrics,
    tailrace.proto.runtime.main,
)
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
