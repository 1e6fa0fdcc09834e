"""Parses the Retry-After header of a server's response (RFC 9110, 10.2.3). Pure."""

import math
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Returns the wait in seconds, not negative; None without the header or if it is neither a number nor a date.

    `retry-after-ms`, which Anthropic sends, comes before `retry-after`. `now` is Unix time.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        return max(0.0, wait_s) if math.isfinite(wait_s) else None
    try:
        at = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now)
