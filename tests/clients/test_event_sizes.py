"""Clients in Python that refuse long events by default: see docs/CLIENTS.md."""

from typing import Any

import aiohttp
import httpx2
import pytest
from aiohttp.http_exceptions import LineTooLong

from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness.turn_writer import Writer
from tests.integration.conftest import NewGateway

# Each event of the dialect `state` has the whole text.
DELTA_CHARS, DELTAS = 100_000, 12
DOCUMENTED_BUFFER_BYTES = 2**24


@pytest.fixture
async def url(log: TurnLog, nats_url: str, new_gateway: NewGateway) -> str:
    """The stream of an answer of 1.2 MB, whose last events are longer than either limit."""
    writer = Writer(log, TurnKey(LOCAL.access.tenant, TurnId(new_id())))
    await writer.open("a" * DELTA_CHARS)
    await writer.store_texts(*["b" * DELTA_CHARS] * (DELTAS - 1))
    await writer.end()
    gateway = await new_gateway(nats_url, api_keys="")
    return f"{gateway.url}/v1/turns/{writer.key.turn}/events?dialect=state"


async def read_with_aiohttp(url: str, **options: Any) -> int:
    """Returns the length of the longest line."""
    async with aiohttp.ClientSession(**options) as session, session.get(url) as response:
        return max([len(line) async for line in response.content])


async def test_aiohttp_reads_an_event_of_more_than_512_kib_only_with_a_larger_buffer(url: str) -> None:
    with pytest.raises(LineTooLong):
        await read_with_aiohttp(url)
    assert await read_with_aiohttp(url, read_bufsize=DOCUMENTED_BUFFER_BYTES) > DELTAS * DELTA_CHARS


async def read_with_httpx2(url: str, **options: Any) -> int:
    """Returns the length of the longest event."""
    async with httpx2.AsyncClient(trust_env=False) as client, client.stream("GET", url) as response:
        return max([len(event.data) async for event in httpx2.EventSource(response, **options)])


async def test_httpx2_reads_an_event_of_more_than_1_mib_only_without_its_limit(url: str) -> None:
    with pytest.raises(httpx2.SSEError) as raised:
        await read_with_httpx2(url)
    assert isinstance(raised.value, httpx2.TransportError)
    assert await read_with_httpx2(url, max_event_size=None) > DELTAS * DELTA_CHARS
