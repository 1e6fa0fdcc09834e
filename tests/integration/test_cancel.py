"""Cancel at any moment (fault F28): one end in every place, the call to the model closed, the text and its cost kept.

Two gateways, persistence and generators in the test's event loop, so that a turn can be cancelled right before any of
its entries. The simulated Claude lists the calls that were made and closed.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest

from tailrace.deploy.simulated_claude.account import Call
from tailrace.proto.chain import Chain
from tailrace.proto.entries import End, Entry, Request
from tailrace.proto.errors import FenceLost, Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import PERSISTENCE
from tests.harness import readers
from tests.harness.generator_in_loop import read_calls, shorten_lease, words
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.proxy import Proxy
from tests.harness.stop_server import stop
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway
from tests.kills.cell import KINDS, TOGETHER, entries_of, entry_names
from tests.promises import ReaderConnection, judge

ENTRIES = entries_of(TOGETHER)
# A call that stalls after its last delta is still open when the turn is cancelled there.
LAST_DELTA = "tool use: delta 3"
STALL = "fault=stall@6"
# The gateways that receive the cancel. The reader is at the first.
CANCELLED_BY = ((0,), (1,), (0, 1))
RACES = 20
HELD_S_MAX = 30.0


@dataclass
class CancelSystem(OwnSystem):
    """The test's own system with two gateways and persistence."""

    gateways: list[Gateway]
    persistence: Persistence
    tenant: Tenant

    async def begin(self, line: str) -> TurnKey:
        """Appends the request of a turn of the gateways' tenant."""
        return await self.append_request(line, self.tenant)

    def read(self, key: TurnKey) -> asyncio.Task[ReaderConnection]:
        """Reads the turn at the first gateway, to its end."""
        return asyncio.create_task(readers.read(self.gateways[0].client, key.turn))

    async def cancel(self, key: TurnKey, number: int = 0) -> httpx2.Response:
        return await self.gateways[number].client.post(f"/v1/turns/{key.turn}/cancel")

    async def cancel_patiently(self, key: TurnKey) -> tuple[list[int], httpx2.Response]:
        """Repeats a cancel as long as the answer is 503; returns all statuses and the last answer."""
        statuses: list[int] = []
        while True:
            answer = await self.cancel(key, len(statuses) % 2)
            statuses.append(answer.status_code)
            if answer.status_code != 503:
                return statuses, answer

    async def calls_of(self, tag: str) -> list[Call]:
        """Returns the calls of the turn with that tag."""
        return [call for call in (await read_calls(self.claude)).calls if f"tag={tag} " in f"{call.question} "]

    async def all_settled(self) -> None:
        """Waits until no call is open and all turns are acknowledged."""
        await self.wait_for_open_streams(0)
        await self.wait_until_acknowledged()

    async def has_stored(self, key: TurnKey, count: int) -> bool:
        """Whether the turn has that many entries, or has ended before, because deltas were joined."""
        stored = await readers.read_all_entries(self.log, key)
        return len(stored) >= count or isinstance(stored[-1].entry, End)

    async def has_three_words(self, key: TurnKey) -> bool:
        return len((await self.log.read_turn(ScopedKey.whole(key))).text.split()) >= 3

    async def _record(self, key: TurnKey) -> TurnRecord | None:
        # Persistence refuses while it is behind, or NATS has just come back.
        with suppress(Refused):
            return await self.persistence.ask(key.tenant, "turn", GetTurn(key.turn), TurnRecord)
        return None

    async def assert_one_end(
        self, key: TurnKey, connected: ReaderConnection, answers: Sequence[httpx2.Response]
    ) -> Turn:
        """Returns the turn. The log, its reader, SQLite and every answer to a cancel agree on one end."""
        stored = await readers.read_all_entries(self.log, key)
        assert [one.seq for one in stored if isinstance(one.entry, End)] == [stored[-1].seq]
        record = await until(lambda: self._record(key))
        assert record is not None
        reader = readers.build_reader("there", key, connected)
        verdict = judge(await readers.read_history(self.log, key, reader, records={key: record}))
        assert verdict.is_green, verdict.evidence
        assert connected.over == "ended"
        shown = (await self.gateways[1].client.get(f"/v1/turns/{key.turn}")).json()
        assert [(answer.status_code, answer.json()) for answer in answers] == [(200, shown)] * len(answers)
        return await self.log.read_turn(ScopedKey.whole(key))


@pytest.fixture
async def own(own: OwnSystem, new_gateway: NewGateway, tmp_path: Path, tenant: Tenant) -> AsyncIterator[CancelSystem]:
    gateways = [await new_gateway(own.server.url) for _ in range(2)]
    async with Persistence(own.server.url, tmp_path / "tailrace.db") as persistence:
        yield CancelSystem(**vars(own), gateways=gateways, persistence=persistence, tenant=tenant)


class Hold:
    """Stops generators of this process right before they append the nth entry of a turn, or right after."""

    def __init__(self) -> None:
        self.before: dict[TurnKey, int] = {}
        self.after: dict[TurnKey, int] = {}
        self.held: set[TurnKey] = set()
        self.gate = asyncio.Event()

    async def wait(self, counts: dict[TurnKey, int], key: TurnKey) -> None:
        if key in counts:
            counts[key] -= 1
            if not counts[key]:
                self.held.add(key)
                await self.gate.wait()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Each delta is an entry of its own. Gateways, which cancel by another way, are never held."""
    hold, append, publish_soon = Hold(), TurnLog.append, TurnLog.publish_soon

    def held_publish(self: TurnLog, key: TurnKey, *given: Any) -> bool:
        # An entry that may be held is appended by `held_append`.
        return key not in hold.before and key not in hold.after and publish_soon(self, key, *given)

    async def held_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = 10) -> Chain:
        if not isinstance(entry, Request):
            await hold.wait(hold.before, key)
        chain = await append(self, key, chain, entry, timeout_s=timeout_s)
        if not isinstance(entry, Request):
            await hold.wait(hold.after, key)
        return chain

    monkeypatch.setattr(TurnLog, "append", held_append)
    monkeypatch.setattr(TurnLog, "publish_soon", held_publish)
    monkeypatch.setattr("tailrace.generators.delta_buffer.JOINED_BYTES_MAX", 0)
    return hold


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
@pytest.mark.timeout(90)
async def test_a_turn_can_be_cancelled_before_each_of_its_entries(own: CancelSystem, hold: Hold) -> None:
    """Thinking, text and tool use: only the end follows, and it has the text and the cost so far."""
    last_delta = ENTRIES.index(LAST_DELTA) + 1
    keys = {
        count: await own.begin(f"tag=h{count} rate=0 {KINDS[TOGETHER]} {STALL if count <= last_delta else ''}")
        for count in range(1, len(ENTRIES))
    }
    reading = {count: own.read(key) for count, key in keys.items()}
    hold.before = {key: count for count, key in keys.items() if count != last_delta}
    async with own.running_generator():
        await until(lambda: len(hold.held) == len(hold.before), HELD_S_MAX)
        # The model is silent after its last delta, so the generator appends nothing that could be held.
        await until(lambda: own.has_stored(keys[last_delta], last_delta))
        cancels = {
            count: await asyncio.gather(*(own.cancel(key, number) for number in CANCELLED_BY[count % 3]))
            for count, key in keys.items()
        }
        hold.gate.set()
        await own.all_settled()
        repeats = {count: [await own.cancel(key, number) for number in (0, 1)] for count, key in keys.items()}
        for count, key in keys.items():
            turn = await own.assert_one_end(key, await reading[count], [*cancels[count], *repeats[count]])
            assert entry_names(await readers.read_all_entries(own.log, key), TOGETHER) == [*ENTRIES[:count], "end"]
            assert turn.end is not None
            assert turn.end.outcome == "cancelled"
            is_begun, is_counted = count > ENTRIES.index("message_start"), "message_delta" in ENTRIES[:count]
            has_delta = any("delta " in name for name in ENTRIES[:count])
            assert (turn.end.usage.input_tokens > 0, turn.end.cost_nano_usd > 0) == (is_begun, is_begun)
            assert turn.end.usage_is_estimated == (has_delta and not is_counted)
            assert (turn.end.usage.output_tokens > 1) == has_delta
            calls = await own.calls_of(f"h{count}")
            # Cancelled before its attempt, a turn is never sent to the model.
            assert len(calls) == (count > 1), ENTRIES[count - 1]
            assert all(call.closed for call in calls)


@pytest.mark.rule("F28")
@pytest.mark.rule("R106")
async def test_a_turn_that_is_cancelled_before_it_begins_is_never_sent_to_the_model(own: CancelSystem) -> None:
    """Before any generator runs, and in the queue of a busy one, which answers the next turn."""
    early = await own.begin("words=2 tag=early")
    reading = {early: own.read(early)}
    answers = {early: [await own.cancel(early), await own.cancel(early, 1)]}
    async with own.running_generator(concurrency=1):
        running = await own.begin("words=2 tag=running fault=stall@1")
        await own.wait_for_open_streams(1)
        queued, next_ = await own.begin("words=2 tag=queued"), await own.begin("words=2 tag=next")
        reading |= {key: own.read(key) for key in (running, queued)}
        answers |= {key: [await own.cancel(key, 1)] for key in (queued, running)}
        assert (await own.wait_for_end(next_)).text == words(2, "next")
        await own.all_settled()
    for key, reader in reading.items():
        turn = await own.assert_one_end(key, await reader, answers[key])
        assert (turn.outcome, turn.text) == ("cancelled", words(1, "running") if key == running else "")
    calls = {tag: len(await own.calls_of(tag)) for tag in ("early", "queued", "running", "next")}
    assert calls == {"early": 0, "queued": 0, "running": 1, "next": 1}


@pytest.mark.rule("F28")
@pytest.mark.timeout(90)
async def test_a_cancel_that_races_with_the_natural_end_has_one_of_two_outcomes(own: CancelSystem) -> None:
    """Many turns, each cancelled at a random moment around its end: either end may be first, and all agree on it."""
    chance = random.Random(7)  # the same races each time, as far as a machine allows

    async def race(number: int) -> tuple[TurnKey, ReaderConnection, list[httpx2.Response]]:
        # On a fast machine, the fast ones race with their cancel; on a busy one, the slow ones.
        key = await own.begin(f"words=4 rate={(1, 20, 200)[number % 3]} tag=r{number}")
        reader = own.read(key)
        count = chance.randint(1, 10)
        await until(lambda: own.has_stored(key, count))
        await asyncio.sleep(chance.uniform(0, 0.01))  # the fault: an arbitrary moment
        answers = list(await asyncio.gather(own.cancel(key), own.cancel(key, 1)))
        return key, await reader, answers

    async with own.running_generator(concurrency=RACES):
        races = await asyncio.gather(*map(race, range(RACES)))
        await own.all_settled()
    turns = [await own.assert_one_end(*one) for one in races]
    outcomes = Counter((turn.outcome, turn.stop.stop_reason) for turn in turns)
    assert outcomes["completed", "end_turn"]
    assert outcomes["cancelled", None]
    assert all(words(4, f"r{number}").startswith(turn.text) for number, turn in enumerate(turns))
    assert await own.calls() <= RACES


@asynccontextmanager
async def silent_model() -> AsyncIterator[tuple[str, list[asyncio.StreamReader]]]:
    """Serves a model that accepts every call and answers nothing. Yields its URL and the requests it receives."""
    calls: list[asyncio.StreamReader] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            # A generator checks its key with a GET when it starts, which is no call.
            if (await reader.read(65536)).startswith(b"POST"):
                calls.append(reader)
            while await reader.read(65536):
                pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", calls
    finally:
        await stop(server)


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
async def test_a_cancel_between_attempt_and_call_closes_the_call(own: CancelSystem, hold: Hold) -> None:
    """The end is stored before the generator subscribes to it, and the model is silent."""
    key = await own.begin("words=9")
    hold.after[key] = 1
    async with silent_model() as (url, calls), own.running_generator(claude_url=url):
        await until(lambda: key in hold.held)
        assert (await own.cancel(key)).json()["outcome"] == "cancelled"
        hold.gate.set()
        await own.wait_until_acknowledged()
        # The generator may have begun the call before it noticed the end.
        await until(lambda: all(reader.at_eof() for reader in calls))


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
async def test_a_gateway_far_from_nats_cancels_an_answer_whose_deltas_are_closer_together(
    own: CancelSystem, new_gateway: NewGateway
) -> None:
    """The answer has further entries in each round trip of the gateway, so the fence that it knows is always old."""
    async with Proxy.in_front_of(own.server.url) as proxy, own.running_generator():
        far = await new_gateway(proxy.url_of(own.server.url))
        key = await own.begin("words=9000 rate=40 tag=far")
        reader = own.read(key)
        await until(lambda: own.has_three_words(key))
        proxy.delay_s = 0.1
        proxy.fail("delay")
        answer = await far.client.post(f"/v1/turns/{key.turn}/cancel")
        proxy.restore()
        await own.all_settled()
        turn = await own.assert_one_end(key, await reader, [answer])
    assert turn.outcome == "cancelled"
    assert [call.closed is not None for call in await own.calls_of("far")] == [True]


@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
async def test_a_gateway_cancels_in_time_although_no_generator_answers_the_query(
    own: CancelSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loses the fence sixty times, as when its round trip is as long as the time between two deltas."""
    append, losses = TurnLog.append, iter(range(60))

    async def losing_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = 10) -> Chain:
        if isinstance(entry, End) and next(losses, None) is not None:
            raise FenceLost("the generator has appended a delta")
        return await append(self, key, chain, entry, timeout_s=timeout_s)

    key = await own.begin("words=2 tag=lost")
    monkeypatch.setattr(TurnLog, "append", losing_append)
    answer = await own.cancel(key)
    assert (answer.status_code, answer.json()["outcome"]) == (200, "cancelled")


# nats-py leaves a socket that was accepted and then reset to the garbage collector.
@pytest.mark.rule("R22")
@pytest.mark.rule("F28")
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_generator_that_was_disconnected_during_a_cancel_closes_the_call(own: CancelSystem) -> None:
    """It missed the end, and its model is silent: after the reconnect it reads the log."""
    async with Proxy.in_front_of(own.server.url) as proxy, own.running_generator(nats_url=proxy.url_of(own.server.url)):
        key = await own.begin("words=9 fault=stall@3 tag=silent")
        reader = own.read(key)
        await until(lambda: own.has_three_words(key))
        proxy.fail("cut")
        answer = await own.cancel(key)
        proxy.restore()
        await own.all_settled()
        turn = await own.assert_one_end(key, await reader, [answer])
    assert (turn.outcome, turn.text) == ("cancelled", words(3, "silent"))
    assert [call.closed is not None for call in await own.calls_of("silent")] == [True]


@pytest.mark.rule("F10")
@pytest.mark.rule("F28")
@pytest.mark.timeout(90)
async def test_turns_are_cancelled_before_during_and_after_a_restart_of_nats_server(own: CancelSystem) -> None:
    """A client that received 200 finds the end in the log; one that received 503 repeats the cancel."""
    # Persistence gets the entries that it had leased when the server was killed once more after this lease.
    await shorten_lease(own.connection, 0.5, PERSISTENCE)
    async with own.running_generator():
        lines = ("words=9 fault=stall@3 tag=k{}", "words=9000 rate=40 tag=k{}")
        keys = [await own.begin(lines[number % 2].format(number)) for number in range(9)]
        reading = [own.read(key) for key in keys]
        await own.wait_for_open_streams(len(keys))
        for key in keys:
            await until(lambda key=key: own.has_three_words(key))  # type: ignore[misc]
        cancels = [asyncio.create_task(own.cancel_patiently(key)) for key in keys[:3]]
        await own.server.stop(SIGKILL)
        cancels += [asyncio.create_task(own.cancel_patiently(key)) for key in keys[3:6]]
        await own.server.start()
        cancels += [asyncio.create_task(own.cancel_patiently(key)) for key in keys[6:]]
        statuses, answers = zip(*await asyncio.gather(*cancels), strict=True)
        await own.all_settled()
        for key, reader, answer in zip(keys, reading, answers, strict=True):
            turn = await own.assert_one_end(key, await reader, [answer])
            assert turn.outcome == "cancelled"
            assert turn.end is not None
            assert turn.end.usage.output_tokens > 1
    assert {status for some in statuses for status in some} <= {200, 503}
