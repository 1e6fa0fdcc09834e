"""Prometheus metrics of failover."""

from prometheus_client import Gauge

BACKEND_DOWN = Gauge(
    "tailrace_generator_backend_down", "Whether this process has found a backend down, and turns avoid it", ["backend"]
)
