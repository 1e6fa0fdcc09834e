"""Compares this machine's clock with the times that the log gives its entries."""

from datetime import UTC, datetime


def age_s(since: datetime) -> float:
    """Returns the seconds since a time of the log, at least 0: the log's clock may be ahead of this machine's."""
    return max((datetime.now(UTC) - since).total_seconds(), 0.0)
