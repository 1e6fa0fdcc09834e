"""A whole run of real processes, recorded and judged: what is sound is found to be, by everything that can be asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.checker.bounds import Bounds
from tests.checker.client import Client
from tests.checker.history import Ack, Append, Ask, Commit, Noise
from tests.checker.house import NOISY, House, opened
from tests.checker.invariants import judge, not_held
from tests.checker.run import load
from tests.promises import Verdict


async def visit(house: House, tag: str) -> None:
    """Asked twice with one key, read in pieces at two gateways, looked at, cancelled; thoughts and a tool as well."""
    asker, reader, late = (house.client(f"{name} {tag}") for name in ("asker", "reader", "late"))
    key = await asker.ask(f"#sim words=60 rate=100 tag={tag}a", key=f"once-{tag}")
    assert key is not None
    assert await asker.ask(f"#sim words=60 rate=100 tag={tag}a", key=f"once-{tag}") == key
    assert await asker.ask(f"#sim words=61 rate=100 tag={tag}a", key=f"once-{tag}") is None
    first = await reader.read(key, most=5)
    await reader.look(key)
    await asyncio.gather(reader.read_on(key, first.frames[-1].seq), late.read_text(key))
    stopped = await asker.ask(f"#sim words=900 rate=50 tag={tag}b")
    spoken = await asker.ask(f"#sim words=3 tag={tag}c thinking=2 tool=look")
    assert stopped is not None
    assert spoken is not None
    await late.read(stopped, most=4)
    await late.cancel(stopped)
    await late.read_on(spoken)


@asynccontextmanager
async def noise(house: House, tag: str) -> AsyncIterator[None]:
    """Meanwhile another tenant asks for as much as it can, and for more than it may."""
    noisy = [house.noisy(f"noisy {number} {tag}") for number in range(2)]

    async def ask(client: Client) -> None:
        while True:
            await client.ask(f"#sim words=1 tag={tag}n")

    with house.nemesis(f"noise {tag}").recording(Noise(tenant=NOISY)) as making:
        asking = [asyncio.create_task(ask(client)) for client in noisy]
        try:
            yield
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        making.ok()


@pytest.mark.timeout(90)
async def test_a_run_without_faults_holds_all_that_can_be_asked(tmp_path: Path) -> None:
    """Every invariant; nothing is stored, and no turn left, unrecorded."""
    async with opened(tmp_path, gateways=2, limits="requests=360, burst=12") as house:
        async with noise(house, "a"):
            await visit(house, "a")
        await house.settled()
        before = await house.count()
        async with noise(house, "b"):
            await visit(house, "b")
        await house.settled()
        await house.count_again(before)
        await house.collect()
    run = load(tmp_path)
    assert {append.seq for append in run.of(Append) if append.outcome == "ok"} == set(run.places)
    assert {ack.consumer for ack in run.of(Ack)} == {GENERATORS, PERSISTENCE}
    committed = {name for commit in run.of(Commit) for name in commit.rows}
    assert committed == {f"{key.tenant} {key.turn}" for key in run.turns}
    assert {ask.status for ask in run.of(Ask) if ask.tenant == NOISY} >= {202, 429}
    assert not_held(judge(run, Bounds(end_s=0))) == {}


@pytest.mark.timeout(90)
async def test_a_run_whose_generators_hedge_breaks_nothing(tmp_path: Path) -> None:
    """Whichever of two calls has a token first; and only who does not know of hedges finds a call too many."""
    late = ("fault=stall@0x1", "wait=0.4")
    async with opened(tmp_path, generators=2, TAILRACE_HEDGE_AFTER_S=0.1, TAILRACE_STALL_TIMEOUT_S=20) as house:
        reader = house.client("reader")
        keys = [await reader.ask(f"#sim words=9 rate=0 {why} tag=h{n}x") for n, why in enumerate(late * 3)]
        await asyncio.gather(*(reader.read_on(key) for key in keys if key is not None))
        await house.settled()
        await house.collect()
    run = load(tmp_path)
    assert sum(turn.hedges for turn in run.folds.values()) >= len(keys) / 2
    assert false(judge(run, Bounds(end_s=0, hedges=1))) == {}
    assert set(false(judge(run, Bounds(end_s=0)))) == {"I9 cost"}


def false(verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    return {name: verdict for name, verdict in verdicts.items() if verdict.holds is False}
