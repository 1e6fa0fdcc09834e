"""Readers of a steered turn go on into its successor: on the same connection, and with a cursor of either turn."""

import asyncio
import re

import msgspec
import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.features.steer.successions import NextTurn, Successions
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto.chain import START, link
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Entry
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.testing import MemoryLog
from tests.harness.response_client import Client, client
from tests.harness.turn_builder import KEY, attempt, closing_events, event, opening_events, request, text_delta
from tests.harness.until import until

FIRST, SECOND, THIRD = (KEY._replace(turn=TurnId(f"turn-{number}")) for number in (1, 2, 3))
TAILRACE = DIALECTS["tailrace"]


class SteeredLog(MemoryLog):
    """Three turns: the second steers the first, and the third the second. Each request is stored before that end."""

    def __init__(self) -> None:
        super().__init__()
        self._chains = dict.fromkeys((FIRST, SECOND, THIRD), START)
        self.add_request(FIRST)
        self.answer(FIRST, "one")
        self.add_request(SECOND, FIRST)
        self.steer(FIRST, SECOND)
        self.answer(SECOND, "two")
        self.add_request(THIRD, SECOND)
        self.steer(SECOND, THIRD)
        self.answer(THIRD, "three")
        self.add(THIRD, *(event(self._chains[THIRD], one) for one in closing_events(1)))

    def add_request(self, key: TurnKey, parent: TurnKey | None = None) -> None:
        self.add(key, request(parent=parent and parent.turn, is_queued=parent is not None))

    def answer(self, key: TurnKey, text: str) -> None:
        self.add(key, attempt(self._chains[key]))
        for one in opening_events():
            self.add(key, event(self._chains[key], one))
        self.add(key, text_delta(self._chains[key], text))

    def steer(self, key: TurnKey, successor: TurnKey) -> None:
        end = build_end(fold(self.stored[key]), "cancelled", cause="steer", by="me", successor=successor.turn)
        self.add(key, end)

    def complete(self, key: TurnKey) -> None:
        self.add(key, build_end(fold(self.stored[key]), "completed"))

    def add(self, key: TurnKey, *added: Entry) -> None:
        for entry in added:
            whole = msgspec.structs.replace(entry, prev=self._chains[key].last)
            stored = self.store(key, whole)
            chain = link(self._chains[key], stored.seq, stored.entry)
            assert chain is not None
            self._chains[key] = chain

    def last(self, key: TurnKey) -> Seq:
        return self._chains[key].last


def go_on(one: Client, log: MemoryLog) -> None:
    one.streams.successions.append(Successions(log).go_on)


def shown(one: Client) -> list[str]:
    """Returns the types of the events, with the text of deltas and the turn of `start` and `steered`."""
    data = [msgspec.json.decode(line) for line in re.findall(rb"^data: (.*)$", one.body, re.MULTILINE)]
    return [":".join(filter(None, (each["type"], each.get("text"), each.get("turn")))) for each in data]


def ids(one: Client) -> list[int]:
    return [int(found) for found in re.findall(rb"^id: (\d+)$", one.body, re.MULTILINE)]


async def read(log: MemoryLog, key: TurnKey, cursor: Seq = BEFORE_FIRST, dialect: Dialect = TAILRACE) -> Client:
    async with client(log) as one:
        go_on(one, log)
        await one.run(dialect, cursor=cursor, key=key)
    return one


@pytest.fixture
def log() -> SteeredLog:
    made = SteeredLog()
    made.complete(THIRD)
    return made


WHOLE = ["start:turn-1", "delta:one", "steered:turn-2", "delta:two", "steered:turn-3", "delta:three", "done"]


@pytest.mark.rule("R138")
async def test_a_reader_goes_on_into_each_successor_on_one_connection(log: SteeredLog) -> None:
    """The ids grow, although the request of a successor is stored before the end that names it."""
    one = await read(log, FIRST)
    assert shown(one) == WHOLE
    assert ids(one) == sorted(set(ids(one)))
    assert one.is_complete
    assert not any(map(one.fan_out.has_readers, (FIRST, SECOND, THIRD)))


@pytest.mark.rule("R138")
@pytest.mark.parametrize("key", [FIRST, SECOND, THIRD])
async def test_every_cursor_of_either_turn_resumes_without_a_gap_and_without_a_repeat(
    log: SteeredLog, key: TurnKey
) -> None:
    """Another gateway has only the log. The client may ask for the turn that it began with, or for the newest one."""
    frames = (await read(log, FIRST)).body.split(b"\n\n")
    whole = shown(await read(log, FIRST))
    assert len(frames) > len(whole)
    seqs = ids(await read(log, FIRST))
    for count, cursor in enumerate(seqs, 1):
        one = await read(log, key, Seq(cursor))
        assert shown(one) == whole[count:], cursor
        assert one.status == (200 if count < len(seqs) else 204)


@pytest.mark.rule("R138")
async def test_the_headers_name_the_turn_in_which_a_reader_goes_on(log: SteeredLog) -> None:
    """A client that resumes with the turn that it began with acts on this turn, and reads its end after a 204."""
    for owner, turn in ((FIRST, SECOND), (SECOND, THIRD), (THIRD, THIRD)):
        one = await read(log, FIRST, log.last(owner))
        assert dict(one.sent[0]["headers"])[b"tailrace-turn"] == turn.turn.encode()


async def test_a_dialect_without_such_an_event_ends_with_the_steered_turn(log: SteeredLog) -> None:
    one = await read(log, FIRST, dialect=DIALECTS["text"])
    assert one.body == b"one"
    assert one.is_complete


async def test_the_ai_sdk_gets_the_turn_of_the_new_answer_as_a_data_part(log: SteeredLog) -> None:
    """Its stream is one message of the chat, so it ends with the steered turn."""
    one = await read(log, FIRST, dialect=DIALECTS["ui"])
    chunks = [line for line in one.body.decode().splitlines() if line.startswith("data: {")]
    steered = 'data: {"type":"data-steered","data":{"turn":"turn-2"},"transient":true}'
    assert steered in chunks
    assert chunks.index(steered) < next(index for index, chunk in enumerate(chunks) if '"abort"' in chunk)
    assert '"finish"' in chunks[-1]


async def test_a_stream_ends_as_usual_if_the_successor_is_gone(log: SteeredLog) -> None:
    await log.purge(SECOND)
    one = await read(log, FIRST)
    assert shown(one) == WHOLE[:3]
    assert one.is_complete
    assert (await read(log, FIRST, log.last(FIRST))).status == 204


@pytest.mark.rule("R138")
async def test_a_ticket_for_one_turn_does_not_read_the_next_one(log: SteeredLog) -> None:
    found = Successions(log).find_next
    shared = LOCAL._replace(turn=FIRST.turn)
    assert await found(shared, ScopedKey.whole(FIRST), log.last(FIRST), TAILRACE) is None
    assert await found(LOCAL, ScopedKey.whole(FIRST), log.last(FIRST), TAILRACE) == NextTurn(
        ScopedKey.whole(SECOND), BEFORE_FIRST
    )


async def test_a_cursor_of_an_unrelated_turn_or_of_another_tenant_is_unknown(log: SteeredLog) -> None:
    other, foreign = KEY._replace(turn=TurnId("turn-9")), TurnKey(Tenant("bob"), TurnId("turn-8"))
    for key in (other, foreign):
        log.store(key, request())
    found = Successions(log).find_next
    newest = await log.newest_seq()
    assert await found(LOCAL, ScopedKey.whole(FIRST), newest, TAILRACE) is None
    assert await found(LOCAL, ScopedKey.whole(FIRST), Seq(newest - 1), TAILRACE) is None
    assert await found(LOCAL, ScopedKey.whole(FIRST), Seq(newest + 1), TAILRACE) is None


async def test_a_reader_that_waits_goes_on_as_soon_as_the_turn_is_steered() -> None:
    """It follows the live feed of each turn, and its stream counts as one."""
    log = SteeredLog()
    async with client(log) as one:
        go_on(one, log)
        reading = asyncio.create_task(one.run())
        await until(lambda: shown(one)[-1:] == ["delta:three"])
        log.complete(THIRD)
        await reading
    assert shown(one) == WHOLE
