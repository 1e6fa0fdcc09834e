"""Monitoring: dashboards, recording rules and alerts, with example configurations of Prometheus and Grafana."""

RUNBOOK_URL = "https://runbook.example/RUNBOOK.md"
"""Stands for the address of the operator's docs/RUNBOOK.md, which `tailrace monitoring` writes in its place."""
