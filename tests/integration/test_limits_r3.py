"""Limits on three servers, while who leads their counters changes: never more is let through than is allowed.

A counter that did not answer may have counted: then less is let through, and whoever was refused for it comes again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from signal import SIGKILL

import httpx2
import pytest
import pytest_asyncio

from tailrace.proto.subjects import LIMITS, SLOTS
from tests.harness.nats_cluster import Cluster
from tests.harness.until import until
from tests.integration.conftest import NewGateway

CLIENTS = 50
GATEWAYS = 3
TURNS = 6
ALLOWED = 20
Fault = Callable[[Cluster, str], Awaitable[None]]
WAITS: dict[str, object] = {"message": "#sim words=9 wait=60"}
# What is limited, and the stream that it is counted in.
RACES = [(f"requests=1, burst={ALLOWED}", LIMITS), (f"running={ALLOWED}", SLOTS)]


@pytest_asyncio.fixture
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def step_down(cluster: Cluster, stream: str) -> None:
    await cluster.step_down(stream)


async def kill(cluster: Cluster, stream: str) -> None:
    await (await cluster.leader(stream)).stop(SIGKILL)


async def asked(client: httpx2.AsyncClient, going: asyncio.Event, deadline: float) -> list[int]:
    """Asks for `TURNS`, each until it is let in, or told that there is no room; the statuses that it got."""
    statuses: list[int] = []
    await going.wait()
    for _ in range(TURNS):
        status = 503
        while status == 503 and time.monotonic() < deadline:
            status = (await client.post("/v1/turns", json=WAITS)).status_code
            statuses.append(status)
    return statuses


@pytest.mark.rule("R37")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", [step_down, kill])
@pytest.mark.parametrize(("limits", "stream"), RACES, ids=["requests", "running"])
async def test_limits_hold_while_the_counters_change_their_leader(
    cluster: Cluster, new_gateway: NewGateway, limits: str, stream: str, fault: Fault
) -> None:
    """Fifty clients at three gateways; in their midst another server begins to lead what they are counted in."""
    gateways = [await new_gateway(cluster.url, limits_key=limits) for _ in range(GATEWAYS)]
    # `burst` at one a minute is a window of as many minutes: all of this is within one.
    await until(lambda: time.time() % (60 * ALLOWED) < 60 * ALLOWED - 60, 70)
    going, deadline = asyncio.Event(), time.monotonic() + 40
    clients = [gateways[number % GATEWAYS].client for number in range(CLIENTS)]
    asking = [asyncio.create_task(asked(client, going, deadline)) for client in clients]
    await cluster.leader(stream)
    going.set()
    # When it changes some have been let in, and most are on their way.
    await fault(cluster, stream)
    assert not all(one.done() for one in asking), "they were quicker than the fault"
    counted = Counter(status for statuses in await asyncio.gather(*asking) for status in statuses)
    print(f"\n{limits}: allowed {ALLOWED}, {dict(counted)}")
    assert counted[202] <= ALLOWED
    assert counted[202] + counted[429] == CLIENTS * TURNS
    assert set(counted) <= {202, 429, 503}
