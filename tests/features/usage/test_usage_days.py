"""The days of a usage query, and since when its answer is whole."""

from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from tailrace.features.usage.gateway import DAYS_MAX, days_of, usage_response
from tailrace.features.usage.records import UsagePage
from tailrace.proto.ids import Tenant
from tailrace.proto.ownership import WHOLE, Scope

TODAY = date(2026, 3, 1)


def request_with(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


@pytest.mark.parametrize(
    ("query", "first", "last"),
    [
        ("", date(2026, 1, 31), TODAY),
        ("from=2026-02-28", date(2026, 2, 28), TODAY),
        ("to=2026-01-30", date(2026, 1, 1), date(2026, 1, 30)),
        ("from=2026-01-01&to=2026-01-01", date(2026, 1, 1), date(2026, 1, 1)),
        ("from=2024-01-01&to=2024-12-31", date(2024, 1, 1), date(2024, 12, 31)),
    ],
)
def test_days_are_those_of_the_query_or_the_last_30(query: str, first: date, last: date) -> None:
    """Both ends are included, so a leap year is the longest range."""
    assert days_of(request_with(query), TODAY) == (first, last)
    assert (last - first).days < DAYS_MAX


async def test_the_answer_says_since_when_it_is_whole() -> None:
    since = datetime(2026, 2, 1, tzinfo=UTC)

    class History:
        async def query(self, *_: object) -> UsagePage:
            return UsagePage([], None, since)

    history: Any = History()
    answer = await usage_response(request_with(""), history, Scope(Tenant("t"), WHOLE))
    assert msgspec.json.decode(answer.body)["whole_since"] == "2026-02-01T00:00:00Z"
