"""Metrics: label values come from fixed sets, and docs/METRICS.md lists every metric."""

import re
from collections.abc import Iterable
from typing import get_args

import prometheus_client
import pytest
from prometheus_client.metrics import MetricWrapperBase

import tailrace.gateway.metrics
import tailrace.generators.metrics
import tailrace.persistence.metrics
import tailrace.proto.nats.setup_watch
import tailrace.proto.service
from tailrace.generators.backends import registry
from tailrace.persistence.webhooks.sender import GivenUp
from tailrace.proto.entries import Mode, Outcome
from tailrace.proto.errors import CODES
from tailrace.proto.usage import Usage
from tests.harness.processes import CHECKOUT

# The possible values of each label. A value from a client or a model would make the number of series unbounded.
LABELS: dict[tuple[str, str], Iterable[str]] = {
    ("tailrace_gateway_refused", "code"): CODES,
    ("tailrace_generator_attempts", "mode"): get_args(Mode),
    ("tailrace_generator_ends", "outcome"): get_args(Outcome),
    ("tailrace_generator_backend_failures", "code"): CODES,
    ("tailrace_generator_failures", "code"): CODES,
    ("tailrace_generator_failovers", "backend"): registry.NAMES,
    ("tailrace_generator_hedges", "outcome"): ("won", "lost", "failed", "declined"),
    ("tailrace_generator_calls_repeated", "code"): CODES,
    ("tailrace_generator_schema_checks", "verdict"): ("fits", "misfit", "unchecked"),
    ("tailrace_generator_usage_tokens", "kind"): Usage.__struct_fields__,
    ("tailrace_persistence_webhooks_given_up", "reason"): get_args(GivenUp),
}
# The number of series if every label has all of its values.
SERIES_MAX = 400
MODULES = (
    tailrace.gateway.metrics,
    tailrace.generators.metrics,
    tailrace.persistence.metrics,
    tailrace.proto.nats.setup_watch,
    tailrace.proto.service,
)
METRICS = [one for module in MODULES for one in vars(module).values() if isinstance(one, MetricWrapperBase)]


@pytest.mark.rule("S11")
def test_every_label_has_a_fixed_set_of_values() -> None:
    """A label with unbounded values would let a client fill the memory of a process."""
    assert {(metric._name, label) for metric in METRICS for label in metric._labelnames} == set(LABELS)
    assert sum(len(set(values)) for values in LABELS.values()) < SERIES_MAX


def test_metrics_page_lists_every_scraped_name() -> None:
    """The names are those that Prometheus scrapes."""
    scraped = re.findall(r"^# TYPE (tailrace_\S+) ", prometheus_client.generate_latest().decode(), re.MULTILINE)
    names = {name for name in scraped if not name.endswith("_created")}
    page = (CHECKOUT / "docs/METRICS.md").read_text()
    assert len(names) == len(METRICS)
    assert names == set(re.findall(r"^\| `(tailrace_\w+)` \|", page, re.MULTILINE))
