"""A change of the leader of the generators' consumer: requests that have waited go to one generator each."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness.generator_in_loop import read_stats, shorten_lease
from tests.harness.readers import read
from tests.harness.system import System
from tests.harness.until import until

CHANGES = 2
WAITING = 3
# A long lease, so that no generator happens to renew it between the delivery and the change of the leader.
ACK_WAIT_S = 6.0
WAITED_S = 7.0

pytestmark = pytest.mark.timeout(300)


async def request(system: System, action: str, **given: str) -> None:
    """Sends a request about the consumer to JetStream."""
    subject = f"$JS.API.CONSUMER.{action}.{STREAM}.{GENERATORS}"
    reply = await system.connection.request(subject, msgspec.json.encode(given) if given else b"", timeout_s=5)
    assert "error" not in msgspec.json.decode(reply.data)


async def until_begun(system: System, calls: int) -> None:
    """Waits until the model has had so many calls."""

    async def have_begun() -> bool:
        return (await read_stats(system.claude.url))["calls"] >= calls

    await until(have_begun)


@pytest.mark.rule("R18")
async def test_a_request_that_has_waited_goes_to_one_generator_at_a_change_of_the_leader(tmp_path: Path) -> None:
    """nats-server would count the lease's time from the storing of the request, and deliver it again at once."""
    async with System(tmp_path, servers=3) as system:
        await shorten_lease(system.connection, ACK_WAIT_S)
        await system.start(generators=2)
        client = system.clients[0]
        for _ in range(CHANGES):
            before = await read_stats(system.claude.url)
            # No request is delivered while the consumer is paused.
            await request(system, "PAUSE", pause_until="2099-01-01T00:00:00Z")
            body = {"message": "#sim words=60 rate=20"}
            posted = [(await client.post("/v1/turns", json=body)).json()["turn"] for _ in range(WAITING)]
            await asyncio.sleep(WAITED_S)
            await request(system, "PAUSE", pause_until="2020-01-01T00:00:00Z")
            await until_begun(system, before["calls"] + WAITING)
            await request(system, "LEADER.STEPDOWN")
            for received in [await read(client, turn) for turn in posted]:
                assert received.over == "ended"
            calls = (await read_stats(system.claude.url))["calls"]
            assert calls == before["calls"] + WAITING
