"""Prometheus metrics of structured output."""

from prometheus_client import Counter

SCHEMA_CHECKS = Counter(
    "tailrace_generator_schema_checks_total",
    "Answers checked against a JSON Schema: fits, misfit, unchecked",
    ["verdict"],
)
