"""Client of Anthropic's Message Batches API: times of the listed message batches."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anthropic
import httpx2
import pytest

from tailrace.features.batches.message_batches_api import MessageBatchesApi


@pytest.mark.rule("R67")
@pytest.mark.parametrize("ahead", [timedelta(hours=-1), timedelta(), timedelta(hours=1)], ids=str)
def test_message_batches_are_listed_by_this_clock(ahead: timedelta) -> None:
    """Otherwise the search for a message batch misses it if one of the clocks is wrong, and creates another one."""
    now = datetime.now(UTC)

    def answer(_: httpx2.Request) -> httpx2.Response:
        made = [
            {
                "id": name,
                "created_at": (now + ahead + age).isoformat(),
                "processing_status": "ended",
                "request_counts": {},
            }
            for name, age in (("new", timedelta(minutes=-2)), ("old", timedelta(minutes=-9)))
        ]
        date = format_datetime(now + ahead, usegmt=True)
        return httpx2.Response(200, json={"data": made, "has_more": False}, headers={"date": date})

    async def list_since(since: datetime) -> list[str]:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
        async with anthropic.AsyncAnthropic(api_key="sk-test", http_client=http) as client:
            return [one.id for one in await MessageBatchesApi(client).list_since(since)]

    assert asyncio.run(list_since(now - timedelta(minutes=5))) == ["new"]
