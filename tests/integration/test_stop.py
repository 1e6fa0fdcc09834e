"""Stop, from anywhere and at any moment (FAULTS F28): one end for all, the model's call closed, what was said kept.

Two gateways, persistence and a generator in the test's own loop, so that a turn can be stopped right before any of its
entries. What is still being paid for says the simulated Claude.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from signal import SIGKILL
from typing import NamedTuple

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.account import Call
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.chain import Chain
from tailrace.proto.entries import End, Entry, Request
from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import PERSISTENCE, TurnKey
from tests.harness import readers
from tests.harness.generator_in_loop import (
    account,
    ask,
    ended,
    is_acknowledged,
    open_streams,
    shorten_lease,
    stats,
    words,
    working,
)
from tests.harness.persistence_in_loop import Persistence
from tests.harness.stop_server import stop
from tests.harness.until import until
from tests.harness.wire import Wire
from tests.integration.conftest import Gateway, NewGateway
from tests.kills.cell import KINDS, TOGETHER, entries_of, named
from tests.promises import Connected, judge

ENTRIES = entries_of(TOGETHER)
# A call that stalls after its last delta is open for whoever is stopped up to there.
LAST_DELTA = "tool use: delta 3"
STALL = "fault=stall@6"
# Whose gateway is asked: that of the turn's reader is the first.
WAYS = {"the reader's gateway": (0,), "another gateway": (1,), "both at once": (0, 1)}
RACES = 100
AT_ONCE = 20
HELD_S_MAX = 30.0


class Ground(NamedTuple):
    server: NatsServer
    connection: Connection
    log: TurnLog
    claude: str
    gateways: list[Gateway]
    persistence: Persistence
    tenant: Tenant

    async def ask(self, line: str) -> TurnKey:
        return await ask(self.log, line, self.tenant)

    def read(self, key: TurnKey) -> asyncio.Task[Connected]:
        """By the first gateway, from the beginning to the end."""
        return asyncio.create_task(readers.read(self.gateways[0].client, key.turn))

    async def cancel(self, key: TurnKey, number: int = 0) -> httpx2.Response:
        return await self.gateways[number].client.post(f"/v1/turns/{key.turn}/cancel")

    async def calls(self, tag: str) -> list[Call]:
        """What the model was called for the question with that tag."""
        return [call for call in (await account(self.claude)).calls if f"tag={tag} " in f"{call.question} "]

    async def settled(self) -> None:
        """Once no call is open and no turn is anybody's any more."""
        await open_streams(self.claude, 0)
        await until(lambda: is_acknowledged(self.connection))

    async def _record(self, key: TurnKey) -> TurnRecord | None:
        # While much is being recorded, or NATS has just come back, it says "try again".
        with suppress(Refused):
            return await self.persistence.ask(key.tenant, "turn", GetTurn(key.turn), TurnRecord)
        return None

    async def proved(self, key: TurnKey, connected: Connected, answers: Sequence[httpx2.Response]) -> Turn:
        """The turn; one end, told alike by the log, its reader, SQLite, and whoever cancelled it."""
        stored = await readers.whole(self.log, key)
        assert [one.seq for one in stored if isinstance(one.entry, End)] == [stored[-1].seq]
        record = await until(lambda: self._record(key))
        assert record is not None
        reader = readers.reader("there", key, connected)
        verdict = judge(await readers.history(self.log, key, reader, records={key: record}))
        assert verdict.is_green, verdict.evidence
        assert connected.over == "ended"
        told = (await self.gateways[1].client.get(f"/v1/turns/{key.turn}")).json()
        assert [(answer.status_code, answer.json()) for answer in answers] == [(200, told)] * len(answers)
        return await self.log.turn(key)


@pytest.fixture
async def ground(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tmp_path: Path,
    tenant: Tenant,
) -> AsyncIterator[Ground]:
    gateways = [await new_gateway(own_server.url) for _ in range(2)]
    async with serving() as claude, Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield Ground(own_server, own_connection, own_log, claude, gateways, persistence, tenant)


class Held:
    """Where generators of this process stop: right before they append so-and-so many entries to a turn, or after."""

    def __init__(self) -> None:
        self.before: dict[TurnKey, int] = {}
        self.after: dict[TurnKey, int] = {}
        self.standing: set[TurnKey] = set()
        self.gate = asyncio.Event()

    async def stand(self, places: dict[TurnKey, int], key: TurnKey) -> None:
        if key in places:
            places[key] -= 1
            if not places[key]:
                self.standing.add(key)
                await self.gate.wait()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Each delta is an entry of its own here. Gateways cancel by another way, and are never held."""
    held, append = Held(), TurnLog.append

    async def held_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = 10) -> Chain:
        if not isinstance(entry, Request):
            await held.stand(held.before, key)
        chain = await append(self, key, chain, entry, timeout_s=timeout_s)
        if not isinstance(entry, Request):
            await held.stand(held.after, key)
        return chain

    monkeypatch.setattr(TurnLog, "append", held_append)
    monkeypatch.setattr("tailrace.generators.delta_buffer.JOINED_BYTES_MAX", 0)
    return held


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
@pytest.mark.timeout(90)
@pytest.mark.parametrize("way", WAYS)
async def test_a_turn_is_stopped_at_each_of_its_entries(ground: Ground, held: Held, way: str) -> None:
    """Thinking, text and tool use: nothing follows the entry but the end, and what was said and paid for is in it."""
    last_delta = ENTRIES.index(LAST_DELTA) + 1
    keys = {
        count: await ground.ask(f"tag=h{count} rate=0 {KINDS[TOGETHER]} {STALL if count <= last_delta else ''}")
        for count in range(1, len(ENTRIES))
    }
    reading = {count: ground.read(key) for count, key in keys.items()}
    held.before = {key: count for count, key in keys.items() if count != last_delta}
    async with working(ground.server.url, ground.claude, stall_timeout_s=60):
        await until(lambda: len(held.standing) == len(held.before), HELD_S_MAX)
        # Its model has fallen silent behind it, and there is nothing that could be held.
        await until(lambda: is_so_long(ground.log, keys[last_delta], last_delta))
        cancels = {
            count: await asyncio.gather(*(ground.cancel(key, number) for number in WAYS[way]))
            for count, key in keys.items()
        }
        held.gate.set()
        await ground.settled()
        again = {count: [await ground.cancel(key, number) for number in (0, 1)] for count, key in keys.items()}
        for count, key in keys.items():
            turn = await ground.proved(key, await reading[count], [*cancels[count], *again[count]])
            stored = await readers.whole(ground.log, key)
            assert named(stored, TOGETHER) == [*ENTRIES[:count], "end"]
            assert turn.end is not None
            assert turn.end.outcome == "cancelled"
            is_begun, is_counted = count > ENTRIES.index("message_start"), "message_delta" in ENTRIES[:count]
            has_said = any("delta " in name for name in ENTRIES[:count])
            assert (turn.end.usage.input_tokens > 0, turn.end.cost_nano_usd > 0) == (is_begun, is_begun)
            assert turn.end.usage_is_estimated == (has_said and not is_counted)
            assert (turn.end.usage.output_tokens > 1) == has_said
            calls = await ground.calls(f"h{count}")
            # Whoever had not begun, never does.
            assert len(calls) == (count > 1), ENTRIES[count - 1]
            assert all(call.closed for call in calls)


async def is_so_long(log: TurnLog, key: TurnKey, count: int) -> bool:
    """Or has ended before, for deltas join."""
    stored = await readers.whole(log, key)
    return len(stored) >= count or isinstance(stored[-1].entry, End)


@pytest.mark.rule("F28")
async def test_what_nobody_has_begun_is_stopped_and_never_asked(ground: Ground) -> None:
    """Before there is a generator, and in the queue of one that is busy; who waits behind it is answered."""
    early = await ground.ask("words=2 tag=early")
    reading = {early: ground.read(early)}
    answers = {early: [await ground.cancel(early), await ground.cancel(early, 1)]}
    async with working(ground.server.url, ground.claude, concurrency=1, stall_timeout_s=60):
        running = await ground.ask("words=2 tag=running fault=stall@1")
        await open_streams(ground.claude, 1)
        queued, next_ = await ground.ask("words=2 tag=queued"), await ground.ask("words=2 tag=next")
        reading |= {key: ground.read(key) for key in (running, queued)}
        answers |= {key: [await ground.cancel(key, 1)] for key in (queued, running)}
        assert (await ended(ground.log, next_)).text == words(2, "next")
        await ground.settled()
    for key, reader in reading.items():
        turn = await ground.proved(key, await reader, answers[key])
        assert (turn.outcome, turn.text) == ("cancelled", words(1, "running") if key == running else "")
    calls = Counter({tag: len(await ground.calls(tag)) for tag in ("early", "queued", "running", "next")})
    assert calls == {"early": 0, "queued": 0, "running": 1, "next": 1}


@pytest.mark.rule("F28")
@pytest.mark.timeout(90)
async def test_stopped_as_it_ends_a_turn_has_one_of_the_two_ends(ground: Ground) -> None:
    """A hundred turns, each stopped somewhere around its natural end: either may be first, and all agree on it."""
    chance = random.Random(7)  # the same races each time, as far as a machine goes
    room = asyncio.Semaphore(AT_ONCE)

    async def race(number: int) -> tuple[TurnKey, Connected, list[httpx2.Response]]:
        async with room:
            key = await ground.ask(f"words=4 rate=200 tag=r{number}")
            reader = ground.read(key)
            count = chance.randint(1, 10)
            await until(lambda: is_so_long(ground.log, key, count))
            # The fault itself: nobody knows when a person stops what is ending.
            await asyncio.sleep(chance.uniform(0, 0.01))
            answers = list(await asyncio.gather(ground.cancel(key), ground.cancel(key, 1)))
            return key, await reader, answers

    async with working(ground.server.url, ground.claude, concurrency=AT_ONCE, stall_timeout_s=60):
        races = await asyncio.gather(*map(race, range(RACES)))
        await ground.settled()
    turns = [await ground.proved(*one) for one in races]
    outcomes = Counter((turn.outcome, turn.stop.stop_reason) for turn in turns)
    print(f"\n{dict(outcomes)}")
    assert outcomes["completed", "end_turn"]
    assert outcomes["cancelled", None]
    assert all(words(4, f"r{number}").startswith(turn.text) for number, turn in enumerate(turns))
    assert (await stats(ground.claude))["calls"] <= RACES


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
async def test_a_turn_that_was_stopped_before_its_generator_listens_is_not_paid_for(ground: Ground, held: Held) -> None:
    """The end comes between attempt and call, so that no more would be heard; and the model thinks before it begins."""
    key = await ground.ask("words=9")
    held.after[key] = 1
    async with silent() as (url, calls), working(ground.server.url, url, stall_timeout_s=90):
        await until(lambda: key in held.standing)
        assert (await ground.cancel(key)).json()["outcome"] == "cancelled"
        held.gate.set()
        await until(lambda: is_acknowledged(ground.connection))
        # It may have begun to call before it knew.
        await until(lambda: all(reader.at_eof() for reader in calls))


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[str, list[asyncio.StreamReader]]]:
    """A model that takes every call, and says nothing; and what its callers send it."""
    calls: list[asyncio.StreamReader] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(reader)
        with closing(writer), suppress(OSError):
            while await reader.read(65536):
                pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", calls
    finally:
        await stop(server)


# nats-py leaves a socket that was accepted and then reset to the garbage collector.
@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_turn_that_is_stopped_while_its_generator_is_cut_off_is_not_paid_for_on(ground: Ground) -> None:
    """It hears nothing of the end, and its model is silent: as soon as it is back, it asks."""
    async with Wire(ground.server.url) as wire, working(wire.url, ground.claude, stall_timeout_s=90):
        key = await ground.ask("words=9 fault=stall@3 tag=silent")
        reader = ground.read(key)
        await until(lambda: is_told(ground.log, key, 3))
        wire.cut()
        answer = await ground.cancel(key)
        wire.mend()
        await ground.settled()
        turn = await ground.proved(key, await reader, [answer])
    assert (turn.outcome, turn.text) == ("cancelled", words(3, "silent"))
    assert [call.closed is not None for call in await ground.calls("silent")] == [True]


async def is_told(log: TurnLog, key: TurnKey, count: int) -> bool:
    return len((await log.turn(key)).text.split()) >= count


@pytest.mark.rule("F10")
@pytest.mark.rule("F28")
@pytest.mark.timeout(90)
async def test_turns_are_stopped_while_their_log_is_killed_and_started_again(ground: Ground) -> None:
    """Before, while it is away, and after: who was told 200 finds the end there; who was told 503 asks again."""
    # What it had just been given when the log died comes to persistence once more, and history is behind until then.
    await shorten_lease(ground.connection, 0.5, PERSISTENCE)
    async with working(ground.server.url, ground.claude, stall_timeout_s=90):
        lines = [
            f"words=9000 rate=40 tag=k{number}" if number % 2 else f"words=9 fault=stall@3 tag=k{number}"
            for number in range(9)
        ]
        keys = [await ground.ask(line) for line in lines]
        readers = [ground.read(key) for key in keys]
        await open_streams(ground.claude, len(keys))
        for key in keys:
            await until(lambda key=key: is_told(ground.log, key, 3))  # type: ignore[misc]
        cancels = [asyncio.create_task(stopped(ground, key)) for key in keys[:3]]
        await ground.server.stop(SIGKILL)
        cancels += [asyncio.create_task(stopped(ground, key)) for key in keys[3:6]]
        await ground.server.start()
        cancels += [asyncio.create_task(stopped(ground, key)) for key in keys[6:]]
        statuses, answers = zip(*await asyncio.gather(*cancels), strict=True)
        await ground.settled()
        for key, reader, answer in zip(keys, readers, answers, strict=True):
            turn = await ground.proved(key, await reader, [answer])
            assert turn.outcome == "cancelled"
            assert turn.end is not None
            assert turn.end.usage.output_tokens > 1
    print(f"\n{statuses}")
    assert {status for some in statuses for status in some} <= {200, 503}


async def stopped(ground: Ground, key: TurnKey) -> tuple[list[int], httpx2.Response]:
    """As a client does that is told to come again: what it was told, and the last answer."""
    statuses: list[int] = []
    while True:
        answer = await ground.cancel(key, len(statuses) % 2)
        statuses.append(answer.status_code)
        if answer.status_code != 503:
            return statuses, answer
