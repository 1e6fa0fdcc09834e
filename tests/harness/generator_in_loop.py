"""Test helpers: a generator in the test's event loop, turns for it, and the statistics of the simulated Claude."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import nats.js.api
from prometheus_client import REGISTRY

from tailrace.deploy.simulated_claude.account import AccountReport
from tailrace.features.backends import Settings
from tailrace.features.generators import FEATURES
from tailrace.generators.feature import Features
from tailrace.generators.serve import serve
from tailrace.proto.chain import START
from tailrace.proto.entries import Attempt, Message
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.service import Stop
from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness.processes import as_user
from tests.harness.turn_builder import request
from tests.harness.until import until

# Claude Code starts twice in some tests, and a busy machine needs ten seconds for each.
END_S_MAX = 40.0
# Longer than a test, so that a loaded machine makes no second call. A test of stalls shortens it.
STALL_TIMEOUT_S = 90.0


@asynccontextmanager
async def running_generator(
    nats_url: str, claude_url: str, *, features: Features = FEATURES, **given: Any
) -> AsyncIterator[Stop]:
    """Runs a generator like its process, with short waits between calls. Yields the event that acts as SIGTERM.

    Cancels the generator at the end of the context.
    """
    settings: dict[str, Any] = {
        "nats_url": nats_url,
        "anthropic_base_url": claude_url,
        "anthropic_api_key": "sk-test",
        "stall_timeout_s": STALL_TIMEOUT_S,
        "call_wait_s": 0.01,
    }
    stop = Stop()
    connection = await Connection.open(as_user(nats_url, GENERATORS), "test-generator")
    serving = asyncio.create_task(serve(Settings(**settings | given), connection, stop, features=features))
    try:
        yield stop
    finally:
        while not serving.done():
            # Once may not be enough: Python 3.11's `wait_for` loses a cancellation that meets an answer.
            serving.cancel()
            await asyncio.wait([serving], timeout=0.5)
        await connection.close()
        if not serving.cancelled():
            serving.result()


async def append_request(log: TurnLog, line: str, tenant: Tenant = Tenant("tenant"), **given: Any) -> TurnKey:  # noqa: B008
    """Appends the request of a turn with that `#sim` line; returns its key."""
    key = TurnKey(tenant, TurnId(new_id()))
    await log.append(key, START, request(messages=[Message("user", f"#sim {line}")], **given))
    return key


async def wait_for_end(log: TurnLog, key: TurnKey) -> Turn:
    """Waits for the turn's end; returns its fold."""
    async with asyncio.timeout(END_S_MAX):
        async for _ in log.follow(ScopedKey.whole(key)):
            pass
    return await log.read_turn(ScopedKey.whole(key))


def failure_code(turn: Turn) -> str:
    """Returns the error code of a turn, which must have failed."""
    assert turn.error is not None
    assert turn.outcome == "failed"
    return turn.error.code


async def read_attempts(log: TurnLog, key: TurnKey) -> list[Attempt]:
    return [
        stored.entry for stored in await log.read_entries(ScopedKey.whole(key)) if isinstance(stored.entry, Attempt)
    ]


async def is_acknowledged(connection: Connection) -> bool:
    """Whether all requests are acknowledged."""
    backlog = await (await Deliveries.open(connection, GENERATORS)).backlog()
    return not backlog.waiting and not backlog.leased


async def shorten_lease(connection: Connection, ack_wait_s: float, durable: str = GENERATORS) -> None:
    """Shortens the lease of a consumer, for processes that start after this."""
    jetstream = connection.jetstream
    config = (await jetstream.consumer_info(STREAM, durable)).config
    shorter: nats.js.api.ConsumerConfig = config.evolve(ack_wait=ack_wait_s)
    await jetstream.add_consumer(STREAM, shorter)


async def read_stats(url: str) -> dict[str, int]:
    """Returns the counters of the simulated Claude."""
    return dict(msgspec.json.decode(await _read(url, "stats")))


async def read_last_request(url: str) -> dict[str, Any]:
    """Returns the last request to the simulated Claude: its `body` and `version`."""
    return dict(msgspec.json.decode(await _read(url, "last")))


async def read_calls(url: str) -> AccountReport:
    """Returns all calls of the simulated Claude, with their request and how they ended."""
    return msgspec.json.decode(await _read(url, "calls"), type=AccountReport)


async def _read(url: str, name: str) -> bytes:
    async with httpx2.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=30) as client:
        return (await client.get(f"/_sim/{name}")).content


async def wait_for_open_streams(url: str, count: int) -> None:
    """Returns when the simulated Claude has that many open streams."""

    async def are_open() -> bool:
        return (await read_stats(url))["streams_open"] == count

    await until(are_open)


def fences_lost() -> float:
    """Returns how many turns generators of this process have left to another writer."""
    return REGISTRY.get_sample_value("tailrace_generator_fences_lost_total") or 0.0


def words(count: int, tag: str = "w") -> str:
    """What `#sim words=… tag=…` answers."""
    return " ".join(f"{tag}{number:06d}" for number in range(count))
