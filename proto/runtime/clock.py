"""Differences between times of the log and of this machine's clock."""

import time
from datetime import datetime


def age_s(since: datetime) -> float:
    """Returns the seconds since a time of the log, at least 0: the log's clock may be ahead of this machine's."""
    return max(time.time() - since.timestamp(), 0.0)


def seconds_between(since: datetime | None, until: datetime | None) -> float | None:
    """Returns the seconds from one time to another, None if one is missing.

    The clocks of two machines may differ, so the difference may be negative: the result is then 0.
    """
    return None if since is None or until is None else max(round((until - since).total_seconds(), 3), 0.0)
