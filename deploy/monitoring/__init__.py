"""Monitoring: dashboards, recording rules and alerts, with example configurations of Prometheus and Grafana."""

RUNBOOK_URL = "https://runbook.example/RUNBOOK.md"
"""Stands for the address at which the operator keeps docs/RUNBOOK.md: panels and alerts link to its sections."""
