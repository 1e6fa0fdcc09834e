"""Recorded runs of real processes: a run without faults holds every invariant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.checker.history import Ack, Append, Commit, Overload, Post
from tests.checker.invariants import find_failed, judge
from tests.checker.recorded_client import Client
from tests.checker.recorded_system import OVERLOADER, RecordedSystem, tenant_keys
from tests.checker.run import load
from tests.checker.verdicts import Bounds
from tests.harness.system import Settings

CLIENTS = 2
# Between two posts of a client: without a pause it would mostly take CPU from the system under test.
PAUSE_S = 0.02


@asynccontextmanager
async def overload(system: RecordedSystem, prompt: str) -> AsyncIterator[None]:
    """Another tenant posts `prompt` again and again while the block runs. The gateways must know `tenant_keys()`."""
    clients = [system.client(f"overloader {number} of {prompt}", OVERLOADER) for number in range(CLIENTS)]

    async def post(client: Client) -> None:
        while True:
            await client.post(prompt)
            await asyncio.sleep(PAUSE_S)

    with system.recorder(f"overload of {prompt}").recording(Overload(tenant=OVERLOADER)) as recording:
        posting = [asyncio.create_task(post(client)) for client in clients]
        try:
            yield
        finally:
            for one in posting:
                one.cancel()
            await asyncio.gather(*posting, return_exceptions=True)
        recording.ok()


async def use(system: RecordedSystem, tag: str) -> None:
    """Posts with idempotency keys, reads in pieces at two gateways, gets, cancels, steers, deletes; batches."""
    client, reader, late = (system.client(f"{name} {tag}") for name in ("client", "reader", "late"))
    key = await client.post(f"#sim words=60 rate=100 tag={tag}a", key=f"once-{tag}")
    assert key is not None
    assert await client.post(f"#sim words=60 rate=100 tag={tag}a", key=f"once-{tag}") == key
    assert await client.post(f"#sim words=61 rate=100 tag={tag}a", key=f"once-{tag}") is None
    first = await reader.read(key, most=5)
    await reader.get(key)
    await asyncio.gather(reader.read_to_end(key, first.frames[-1].seq), late.read_text(key))
    cancelled = await client.post(f"#sim words=900 rate=50 tag={tag}b")
    steered = await client.post(f"#sim words=900 rate=50 tag={tag}f")
    assert steered is not None
    message = f"#sim words=3 tag={tag}g"
    successor = await client.steer(steered, message, f"steer-{tag}")
    assert successor is not None
    assert await late.steer(steered, message, f"steer-{tag}") == successor
    await reader.read_to_end(successor)
    several_blocks = await client.post(f"#sim words=3 tag={tag}c thinking=2 tool=look")
    assert cancelled is not None
    assert several_blocks is not None
    await late.read(cancelled, most=4)
    await late.cancel(cancelled)
    await late.read_to_end(several_blocks)
    cheap = await client.post_batch({"d": f"#sim words=3 tag={tag}d"}, f"cheap-{tag}", "message_batches")
    dear = await client.post_batch({"e": f"#sim words=3 tag={tag}e"}, f"dear-{tag}", "messages")
    assert cheap is not None
    assert dear is not None
    for batch in (cheap, dear):
        await reader.read_to_end(batch)
        await late.get_batch(batch)
        await late.results(batch)
    await client.delete(dear)
    await late.get_batch(dear)


@pytest.mark.timeout(90)
async def test_a_run_without_faults_holds_every_invariant(tmp_path: Path) -> None:
    """Also: every stored entry, every acknowledgement and every commit of a turn was recorded."""
    settings: Settings = {"gateway": {**tenant_keys(), "TAILRACE_LIMITS_TENANT": "requests=360, burst=12"}}
    async with RecordedSystem(tmp_path, settings=settings) as system:
        await system.start(gateways=2)
        async with overload(system, "#sim words=1 tag=an"):
            await use(system, "a")
        await system.wait_until_settled()
        before = await system.count()
        async with overload(system, "#sim words=1 tag=bn"):
            await use(system, "b")
        await system.wait_until_settled()
        await system.count_again(before)
        await system.collect()
    run = load(tmp_path)
    kept = [append for append in run.of(Append) if append.key not in run.deleted_turns]
    assert {append.seq for append in kept if append.outcome == "ok"} == set(run.positions)
    assert {ack.consumer for ack in run.of(Ack)} == {GENERATORS, PERSISTENCE}
    committed = {name for commit in run.of(Commit) for name in commit.rows}
    assert committed == {f"{key.tenant} {key.turn}" for key in run.deleted_turns.union(run.turns)}
    assert {post.status for post in run.of(Post) if post.tenant == OVERLOADER} >= {202, 429}
    assert find_failed(judge(run, Bounds(end_s=0))) == {}
