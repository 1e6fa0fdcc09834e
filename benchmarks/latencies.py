"""Percentiles of measured times."""

from collections.abc import Sequence
from statistics import quantiles


def percentile(values: Sequence[float], percent: int) -> float:
    """Returns a percentile, by linear interpolation between the two nearest values; of one value, this value."""
    # Before Python 3.13, `quantiles` refuses a single value.
    return values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]


def describe_latencies(times_s: list[float]) -> str:
    """Returns median, 99th percentile and maximum as text."""
    return f"median {percentile(times_s, 50):.3f} s, p99 {percentile(times_s, 99):.3f} s, most {max(times_s):.3f} s"
