"""A query parameter that is a day."""

from datetime import UTC, date, datetime

from starlette.requests import Request

from tailrace.proto.errors import Refused


def day_of(request: Request, field: str) -> date | None:
    """Returns the day in a query parameter, None without it. Raises Refused."""
    text = request.query_params.get(field)
    if text is None:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        day = None
    # The database has no times before 1970, and Python has no day after the year 9999.
    if day is None or not text.isascii() or not 1970 <= day.year <= 9998:
        raise Refused("request_invalid", f"`{field}` must be a day such as 2026-01-31.")
    return day
