"""A UTC day that does not end during a test."""

import asyncio
from datetime import UTC, date, datetime, timedelta

# A test that fails is ended after 60 seconds.
LEFT_S_MIN = 30.0


async def long_day() -> date:
    """Returns the current UTC day, of which at least LEFT_S_MIN are left. Near its end, waits for the next one."""
    now = datetime.now(UTC)
    tomorrow = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    if (left := tomorrow - now) < timedelta(seconds=LEFT_S_MIN):
        await asyncio.sleep(left.total_seconds())
    return datetime.now(UTC).date()
