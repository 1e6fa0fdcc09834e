"""Metrics: label values come from fixed sets, and the page of metrics lists every metric."""

import re
from collections.abc import Iterable
from typing import get_args

import prometheus_client
import pytest
from prometheus_client.metrics import MetricWrapperBase

import tailrace.features.failover.metrics
import tailrace.features.limits.metrics
import tailrace.features.structured_output.metrics
import tailrace.features.unstored.metrics
import tailrace.features.webhooks.metrics
import tailrace.gateway.metrics
import tailrace.generators.backends.measured
import tailrace.generators.metrics
import tailrace.persistence.metrics
import tailrace.proto.nats.certificates
import tailrace.proto.nats.follower
import tailrace.proto.nats.setup_state
import tailrace.proto.runtime.trace_export
import tailrace.proto.service
import tailrace.proto.waiting
from tailrace.features.backends import BACKENDS
from tailrace.features.gateway import DIALECTS, ROUTES
from tailrace.features.limits.percents import PERCENTS
from tailrace.features.webhooks.metrics import GivenUp
from tailrace.gateway.metrics import StreamEnd
from tailrace.generators.backend_order import FAILOVER_CODES
from tailrace.generators.backends.measured import CANCELLED, OTHER
from tailrace.generators.backends.registry import CORE
from tailrace.generators.settings import METRICS_TENANTS_MAX
from tailrace.proto.entries import Mode, Outcome
from tailrace.proto.errors import CODES
from tailrace.proto.models import models
from tailrace.proto.nats.stream_configs import CONSUMERS, EVERY_STREAM
from tailrace.proto.runtime.fast_metrics import FastMetric
from tailrace.proto.usage import Usage
from tools.reference_tables import labels_of, metrics_tables

STREAM_GAUGES = [f"jetstream_stream_{name}" for name in ("total_messages", "total_bytes", "limit_bytes")]
STREAM_GAUGES += ["tailrace_nats_replicas_behind"]
CONSUMER_GAUGES = [f"jetstream_consumer_num_{name}" for name in ("pending", "ack_pending", "redelivered")]
MODELS = (*models(), "other")
# Those that the operator lists.
TENANTS = [*map(str, range(METRICS_TENANTS_MAX)), "other"]
BACKEND_NAMES = [kind.name for kind in (*CORE, *BACKENDS)]
PROVIDERS = ("anthropic", "aws.bedrock", "gcp.vertex_ai", "litellm")
# The possible values of each label. A value from a client or a model would make the number of series unbounded.
LABELS: dict[tuple[str, str], Iterable[str]] = {
    ("tailrace_gateway_request_seconds", "route"): {route.path for route in ROUTES},
    ("tailrace_gateway_request_seconds", "method"): {"HEAD"} | {route.method for route in ROUTES},
    ("tailrace_gateway_request_seconds", "status"): ("2xx", "3xx", "4xx", "5xx"),
    ("tailrace_gateway_streams_open", "dialect"): DIALECTS,
    ("tailrace_gateway_first_token_seconds", "dialect"): DIALECTS,
    ("gen_ai_client_operation_duration_seconds", "gen_ai_provider_name"): PROVIDERS,
    ("gen_ai_client_operation_duration_seconds", "gen_ai_request_model"): MODELS,
    ("gen_ai_client_operation_duration_seconds", "error_type"): ("", CANCELLED, OTHER, *CODES),
    ("gen_ai_client_operation_time_to_first_chunk_seconds", "gen_ai_provider_name"): PROVIDERS,
    ("gen_ai_client_operation_time_to_first_chunk_seconds", "gen_ai_request_model"): MODELS,
    ("gen_ai_client_operation_time_per_output_chunk_seconds", "gen_ai_request_model"): MODELS,
    ("tailrace_generator_turn_seconds", "outcome"): get_args(Outcome),
    ("tailrace_generator_turn_seconds", "model"): MODELS,
    ("tailrace_generator_cost_dollars", "model"): MODELS,
    ("tailrace_generator_usage_tokens", "model"): MODELS,
    ("tailrace_expected_processes", "role"): {"gateway", "generators", "persistence"},
    ("tailrace_gateway_refused", "code"): CODES,
    ("tailrace_gateway_stream_ends", "end"): get_args(StreamEnd),
    **{(name, "stream_name"): EVERY_STREAM for name in (*STREAM_GAUGES, *CONSUMER_GAUGES)},
    **{(name, "consumer_name"): CONSUMERS for name in CONSUMER_GAUGES},
    ("tailrace_generator_attempts", "mode"): get_args(Mode),
    ("tailrace_generator_ends", "outcome"): get_args(Outcome),
    ("tailrace_persistence_turns_ended", "outcome"): get_args(Outcome),
    ("tailrace_generator_backend_failures", "code"): CODES,
    ("tailrace_generator_failures", "code"): CODES,
    ("tailrace_generator_failovers", "backend"): BACKEND_NAMES,
    ("tailrace_generator_backend_down", "backend"): BACKEND_NAMES,
    ("tailrace_generator_key_refused", "backend"): BACKEND_NAMES,
    ("tailrace_generator_failovers", "code"): FAILOVER_CODES,
    ("tailrace_generator_calls_repeated", "code"): CODES,
    ("tailrace_generator_peers_gone", "verdict"): ("dead", "unsure", "alive"),
    ("tailrace_generator_schema_checks", "verdict"): ("fits", "misfit", "unchecked"),
    ("tailrace_generator_usage_tokens", "kind"): Usage.__struct_fields__,
    ("tailrace_generator_tenant_usage_tokens", "kind"): Usage.__struct_fields__,
    ("tailrace_generator_tenant_usage_tokens", "tenant"): TENANTS,
    ("tailrace_generator_tenant_cost_dollars", "tenant"): TENANTS,
    ("tailrace_persistence_webhooks_given_up", "reason"): get_args(GivenUp),
    ("tailrace_persistence_budgets_reached", "percent"): PERCENTS,
    ("tailrace_persistence_budget_corrected_dollars", "direction"): {"up", "down"},
}
# The number of values of all labels. Copies that are behind, by stream: 13.
# Verdicts on absent generators: 3.
SERIES_MAX = 1013
MODULES = (
    tailrace.gateway.metrics,
    tailrace.generators.metrics,
    tailrace.generators.backends.measured,
    tailrace.features.failover.metrics,
    tailrace.features.limits.metrics,
    tailrace.features.structured_output.metrics,
    tailrace.features.unstored.metrics,
    tailrace.features.webhooks.metrics,
    tailrace.persistence.metrics,
    tailrace.proto.nats.certificates,
    tailrace.proto.nats.follower,
    tailrace.proto.nats.setup_state,
    tailrace.proto.runtime.trace_export,
    tailrace.proto.service,
    tailrace.proto.waiting,
)
METRICS = [
    one for module in MODULES for one in vars(module).values() if isinstance(one, MetricWrapperBase | FastMetric)
]


@pytest.mark.rule("S11")
def test_every_label_has_a_fixed_set_of_values() -> None:
    """A label with unbounded values would let a client fill the memory of a process."""
    found = {(next(iter(metric.describe())).name, label) for metric in METRICS for label in labels_of(metric)}
    assert found == set(LABELS)
    assert sum(len(set(values)) for values in LABELS.values()) < SERIES_MAX


def test_metrics_page_lists_every_scraped_name() -> None:
    """The names are those that Prometheus scrapes."""
    scraped = re.findall(
        r"^# TYPE ((?:tailrace|gen_ai|jetstream)_\S+) ", prometheus_client.generate_latest().decode(), re.MULTILINE
    )
    names = {name for name in scraped if not name.endswith("_created")}
    page = metrics_tables()
    assert len(names) == len(METRICS)
    assert names == set(re.findall(r"^\| `((?:tailrace|gen_ai|jetstream)_\w+)` \|", page, re.MULTILINE))
