"""The turn log against a real nats-server: appends, replays and followers, and what happens when it does not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import msgspec
import pytest

from benchmarks.lost import lost_acknowledgements
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto import entries, subjects
from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Entry, Stored, kind_of
from tailrace.proto.errors import CursorUnknown, EntryTooLarge, FenceLost, LogFull, LogUnavailable, TurnUnknown
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog, streams
from tailrace.proto.nats.jetstream_log import FENCE, FENCE_SUBJECT
from tailrace.proto.nats.log_server import BATCH
from tailrace.proto.subjects import STREAM, TurnKey
from tests.harness.freeze import freeze
from tests.harness.turn_builder import attempt, closing, event, opening, request, says
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.harness.wire import Wire


async def begin(log: TurnLog, key: TurnKey, *texts: str) -> Chain:
    """A turn that an attempt has taken and that has said `texts`: 4 entries and one for each text."""
    chain = await log.append(key, START, request())
    chain = await log.append(key, chain, attempt(chain))
    for one in opening():
        chain = await log.append(key, chain, event(chain, one))
    return await say(log, key, chain, *texts)


async def say(log: TurnLog, key: TurnKey, chain: Chain, *texts: str) -> Chain:
    for text in texts:
        chain = await log.append(key, chain, says(chain, text))
    return chain


async def finish(log: TurnLog, key: TurnKey, chain: Chain) -> Chain:
    for one in closing(1):
        chain = await log.append(key, chain, event(chain, one))
    return await log.append(key, chain, build_end(await log.turn(key), "completed"))


async def store(connection: Connection, key: TurnKey, kind: str, payload: bytes, headers: Any = None) -> Seq:
    """Puts an entry into the stream past the turn log, as a broker that lost its fence would. Its sequence."""
    ack = await connection.jetstream.publish(subjects.entry(key, kind), payload, headers=headers)
    return Seq(ack.seq)


async def tell(connection: Connection, key: TurnKey, seq: Seq, entry: Entry) -> None:
    """Has the live feed tell of an entry, stored or not."""
    kind = kind_of(entry)
    headers = {
        "Nats-Sequence": str(seq),
        "Nats-Subject": subjects.entry(key, kind),
        "Nats-Time-Stamp": "2026-01-01T12:00:00Z",
    }
    await connection.client.publish(f"live.{key.tenant}.{key.turn}.{kind}", entries.encode(entry), headers=headers)


def bodies(stored: list[Stored]) -> list[tuple[Seq, bytes]]:
    """What two readers may be compared by; two msgspec.Raw of the same bytes are not equal."""
    return [(one.seq, entries.encode(one.entry)) for one in stored]


class Follower:
    """A follower at work: what it was told, and how it went."""

    def __init__(self, log: TurnLog, key: TurnKey, after: Seq) -> None:
        self.told: list[Stored] = []
        self.lists = 0
        self.task = asyncio.create_task(self._follow(log, key, after))

    async def _follow(self, log: TurnLog, key: TurnKey, after: Seq) -> None:
        async with aclosing(log.follow(key, after)) as follower:
            async for some in follower:
                self.told += some
                self.lists += 1

    @property
    def text(self) -> str:
        return fold(self.told).text


@pytest.fixture
async def follow() -> AsyncIterator[Any]:
    """Starts followers, and ends them with the test."""
    followers: list[Follower] = []

    def start(log: TurnLog, key: TurnKey, after: Seq = BEFORE_FIRST) -> Follower:
        followers.append(Follower(log, key, after))
        return followers[-1]

    yield start
    for follower in followers:
        follower.task.cancel()
        with suppress(asyncio.CancelledError, LogUnavailable, TurnUnknown, CursorUnknown):
            await follower.task


# Appending


@pytest.mark.rule("R1")
async def test_what_is_appended_is_read_back_in_order(log: TurnLog, key: TurnKey) -> None:
    """A turn's log is its entries by the stream's sequence, each as it was written."""
    chain = await finish(log, key, await begin(log, key, "The sky", " is blue."))
    stored = await log.replay(key)
    assert [kind_of(one.entry) for one in stored] == ["request", "attempt", *["event"] * 6, "end"]
    assert stored[0].entry == request()
    assert stored[-1].seq == chain.last
    turn = fold(stored)
    assert (turn.text, turn.chain, turn.skipped) == ("The sky is blue.", chain, 0)
    assert turn == await log.turn(key)


@pytest.mark.rule("R8")
async def test_every_append_carries_the_fence_of_its_turn(connection: Connection, log: TurnLog, key: TurnKey) -> None:
    """Request and end like all others: the last sequence, and `turns.{tenant}.{turn}.>` as its subject."""
    await finish(log, key, await begin(log, key, "A"))
    for stored in await log.replay(key):
        message = await connection.jetstream.get_msg(STREAM, seq=stored.seq, direct=True)
        assert message.headers is not None
        assert message.headers[FENCE] == str(stored.entry.prev)
        assert message.headers[FENCE_SUBJECT] == f"turns.{key.tenant}.{key.turn}.>"


@pytest.mark.rule("R13")
async def test_the_slower_of_two_writers_is_refused_and_never_seen(log: TurnLog, key: TurnKey, follow: Any) -> None:
    """Who lost the fence is told so, and no reader gets what was refused."""
    chain = await begin(log, key)
    follower = follow(log, key)
    faster = await log.append(key, chain, says(chain, "faster"))
    with pytest.raises(FenceLost):
        await log.append(key, chain, says(chain, "slower"))
    await finish(log, key, faster)
    await until(follower.task.done)
    assert follower.text == "faster"
    assert bodies(follower.told) == bodies(await log.replay(key))


@pytest.mark.rule("R13")
async def test_nothing_is_appended_after_the_end(log: TurnLog, key: TurnKey) -> None:
    """A generator whose turn was cancelled finds out at its next append."""
    chain = await begin(log, key, "A")
    end = await log.append(key, chain, build_end(await log.turn(key), "cancelled"))
    with pytest.raises(FenceLost):
        await log.append(key, chain, says(chain, "B"))
    assert (await log.turn(key)).chain == end


@pytest.mark.rule("R12")
async def test_an_entry_that_stands_already_is_not_stored_twice(nats_url: str, log: TurnLog, key: TurnKey) -> None:
    """Two writers of the same entry, or one whose acknowledgement was lost: both learn where it stands."""
    other = await Connection.open(nats_url, "other")
    chain = await begin(log, key)
    entry = says(chain, "once")
    first = await log.append(key, chain, entry)
    assert await TurnLog(other).append(key, chain, entry) == first
    assert (await log.turn(key)).text == "once"
    await other.close()


@pytest.mark.rule("F14")
@pytest.mark.rule("R12")
async def test_a_lost_acknowledgement_is_told_from_a_lost_fence(
    own_server: NatsServer, own_log: TurnLog, key: TurnKey
) -> None:
    """The server stored it and its answer was lost: the writer reads the tail, finds its own entry, and goes on."""
    async with Wire(own_server.url) as wire:
        connection = await Connection.open(wire.url, "deaf")
        chain = await begin(own_log, key)
        wire.is_deaf = True
        appending = asyncio.create_task(TurnLog(connection).append(key, chain, says(chain, "once")))
        stored = await until(lambda: own_log.replay(key, chain.last))
        await until(lambda: b'"seq":' in wire.lost)
        wire.mend()
        assert (await appending).last == stored[0].seq
        turn = await own_log.turn(key)
        assert (turn.text, turn.skipped) == ("once", 0)
        await connection.close()


@pytest.mark.rule("F14")
@pytest.mark.rule("R12")
async def test_of_a_hundred_lost_acknowledgements_none_makes_an_entry_twice(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant
) -> None:
    """FAULTS F14: many writers, each of whom is not told of every second entry that it has stored."""
    assert await lost_acknowledgements(own_server, own_log, tenant, count=100) == 0


@pytest.mark.rule("R11")
async def test_an_entry_that_no_reader_would_take_is_never_stored(log: TurnLog, key: TurnKey) -> None:
    """Appending what does not continue the chain is our own mistake, and the log must not keep it."""
    chain = await begin(log, key)
    with pytest.raises(AssertionError, match="does not continue"):
        await log.append(key, chain, says(Chain(Seq(chain.last - 1), 1), "A"))
    assert (await log.turn(key)).tail == chain.last


@pytest.mark.rule("R12")
async def test_a_request_expects_that_there_is_no_turn_yet(log: TurnLog, key: TurnKey) -> None:
    """Turn ids are never used twice: a second, different request is refused, the same one stands."""
    chain = await log.append(key, START, request())
    assert await log.append(key, START, request()) == chain
    with pytest.raises(FenceLost):
        await log.append(key, START, request(max_tokens=1))


@pytest.mark.rule("R11")
async def test_a_fork_in_the_log_is_skipped_by_everybody_and_appending_goes_on(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any
) -> None:
    """The broker stored what it should have refused: the chain says who was first, the fence counts both."""
    chain = await begin(log, key, "The sky")
    early = follow(log, key)
    await until(lambda: early.lists)
    before = (await log.replay(key))[-2].seq
    fork = says(Chain(before, 1), " FORK")
    await store(connection, key, "event", entries.encode(fork))
    await store(connection, key, "end", b"junk")
    chain = await say(log, key, chain, " is blue.")
    chain = await finish(log, key, chain)
    late, middle = follow(log, key), follow(log, key, before)
    await until(lambda: early.task.done() and late.task.done() and middle.task.done())
    turn = await log.turn(key)
    assert (turn.text, turn.skipped, turn.chain) == ("The sky is blue.", 2, chain)
    assert early.text == late.text == turn.text
    assert bodies(early.told) == bodies(late.told)
    assert bodies(middle.told) == [one for one in bodies(late.told) if one[0] > before]


@pytest.mark.rule("R16")
async def test_a_follower_who_was_told_a_fork_finds_out(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed lost an entry and told of its rival: the next entry shows it, and the follower stops."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 60)
    chain = await begin(log, key)
    follower = follow(log, key)
    await until(lambda: follower.lists)
    # The rival will be stored after the entry that the feed loses: here it is heard of before either.
    rival = Seq(chain.last + 2)
    await tell(connection, key, rival, says(chain, "RIVAL"))
    await until(lambda: follower.text == "RIVAL")
    true = await say(log, key, chain, "true")
    assert await store(connection, key, "event", entries.encode(says(chain, "RIVAL"))) == rival
    await say(log, key, true, " story")
    await until(follower.task.done)
    assert isinstance(follower.task.exception(), CursorUnknown)
    with pytest.raises(CursorUnknown):
        await anext(log.follow(key, rival))


@pytest.mark.rule("R16")
async def test_an_end_that_is_a_forks_is_told_to_nobody(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lost an entry and told of its rival, an end: nothing need follow that shows it, so the log is asked."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 60)
    chain = await begin(log, key)
    follower = follow(log, key)
    await until(lambda: follower.lists)
    forked = build_end(await log.turn(key), "cancelled")
    await tell(connection, key, rival := Seq(chain.last + 2), forked)
    true = await say(log, key, chain, "true")
    assert await store(connection, key, "end", entries.encode(forked)) == rival
    await until(lambda: follower.text == "true")
    await finish(log, key, true)
    await until(follower.task.done)
    assert bodies(follower.told) == [one for one in bodies(await log.replay(key)) if one[0] != rival]


@pytest.mark.rule("R15")
async def test_a_cursor_in_a_fork_that_has_an_end_is_refused(
    connection: Connection, log: TurnLog, key: TurnKey
) -> None:
    """Whoever was told a fork and was cut off comes back to what follows there, and nothing of that is skipped."""
    chain = await begin(log, key)
    await log.append(key, chain, says(chain, "first"))
    fork = await store(connection, key, "event", entries.encode(says(chain, "rival")))
    end = msgspec.structs.replace(build_end(await log.turn(key), "completed"), prev=fork)
    await store(connection, key, "end", entries.encode(end))
    with pytest.raises(CursorUnknown):
        await anext(log.follow(key, fork))


@pytest.mark.rule("R13")
async def test_a_writer_whose_end_is_a_forks_has_not_ended_the_turn(
    connection: Connection, log: TurnLog, key: TurnKey
) -> None:
    """His whole fork was acknowledged, and nobody has refused him: he must not let go of a turn that has no end."""
    chain = await begin(log, key)
    await log.append(key, chain, says(chain, "first"))
    fork = Chain(await store(connection, key, "event", entries.encode(says(chain, "rival"))), 1)
    with pytest.raises(FenceLost, match="belongs to a fork"):
        await log.append(
            key, fork, msgspec.structs.replace(build_end(await log.turn(key), "completed"), prev=fork.last)
        )
    assert (await log.turn(key)).outcome == "running"


@pytest.mark.rule("R13")
async def test_a_writer_whose_entry_is_a_fork_finds_out(connection: Connection, log: TurnLog, key: TurnKey) -> None:
    """Both rivals were acknowledged: who was second goes on until it is refused, and then stops instead of retrying."""
    chain = await begin(log, key)
    mine = await log.append(key, chain, says(chain, "first"))
    rival = await store(connection, key, "event", entries.encode(says(chain, "rival")))
    await log.append(key, mine, says(mine, " and second"))
    with pytest.raises(FenceLost, match="another writer"):
        await log.append(key, Chain(rival, 1), says(Chain(rival, 1), "never"), timeout_s=2)
    assert (await log.turn(key)).text == "first and second"


@pytest.mark.rule("R16")
async def test_what_was_read_is_told_although_the_rest_cannot_be_read_yet(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any
) -> None:
    """The feed tells of an entry that the log does not show: meanwhile nothing waits for it, and nothing is lost."""
    chain = await begin(log, key)
    follower = follow(log, key)
    await until(lambda: follower.lists)
    await tell(connection, key, Seq(chain.last + 1_000_000), says(Chain(Seq(chain.last + 999_999), 1), "far"))
    chain = await say(log, key, chain, "The", " sky", " is", " blue.")
    await until(lambda: follower.text == "The sky is blue.")
    await finish(log, key, chain)
    await until(follower.task.done)
    assert bodies(follower.told) == bodies(await log.replay(key))


@pytest.mark.rule("R16")
async def test_a_follower_who_was_told_a_fork_finds_out_also_when_nothing_follows(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn was cancelled, the feed lost that and told of a late delta: after a silence the log says so."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.3)
    chain = await begin(log, key)
    follower = follow(log, key)
    await until(lambda: follower.lists)
    late = says(chain, "LATE")
    await tell(connection, key, Seq(chain.last + 2), late)
    await until(lambda: follower.text == "LATE")
    await log.append(key, chain, build_end(await log.turn(key), "cancelled"))
    await store(connection, key, "event", entries.encode(late))
    await until(follower.task.done)
    assert isinstance(follower.task.exception(), CursorUnknown)


@pytest.mark.rule("R32")
async def test_an_entry_may_fill_the_servers_limit_to_the_byte(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any
) -> None:
    """Payload and headers together; one more is refused before it is sent, and the connection lives."""
    chain = await begin(log, key)
    follower = follow(log, key)
    headers = {FENCE: str(chain.last), FENCE_SUBJECT: subjects.entries(key)}
    headers_bytes = len("NATS/1.0\r\n\r\n") + sum(len(f"{name}: {value}\r\n") for name, value in headers.items())
    room = connection.client.max_payload - headers_bytes - len(entries.encode(says(chain, "")))
    with pytest.raises(EntryTooLarge):
        await log.append(key, chain, says(chain, "x" * (room + 1)))
    assert connection.is_up
    chain = await log.append(key, chain, says(chain, "x" * room))
    await finish(log, key, chain)
    await until(follower.task.done)
    assert (await log.turn(key)).text == follower.text == "x" * room


@pytest.mark.rule("F15")
@pytest.mark.rule("R32")
async def test_a_full_log_refuses_appends_and_serves_its_readers(tmp_path: Path, key: TurnKey, follow: Any) -> None:
    """Nothing is thrown out to make room; what is stored can be read, and space that comes back is used."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "small")
        await streams.apply(connection, bytes_max=100_000)
        log, old = TurnLog(connection), TurnKey(key.tenant, TurnId(new_id()))
        await finish(log, old, await begin(log, old, "x" * 50_000))
        chain = await begin(log, key, "The sky")
        follower = follow(log, key)
        with pytest.raises(LogFull):
            await log.append(key, chain, says(chain, "y" * 50_000))
        assert (await log.turn(key)).text == "The sky"
        await until(lambda: follower.text == "The sky")
        assert (await log.turn(old)).outcome == "completed"
        # As the retention does.
        await connection.jetstream.purge_stream(STREAM, subject=subjects.entries(old))
        chain = await log.append(key, chain, says(chain, "y" * 50_000))
        await until(lambda: follower.text == "The sky" + "y" * 50_000)
        await connection.close()


# Reading


@pytest.mark.rule("R14")
async def test_a_log_of_many_pages_is_read_whole(log: TurnLog, key: TurnKey, follow: Any) -> None:
    """A page holds 512 entries at most; the fold and a follower go on to the last."""
    words = [f" {number}" for number in range(2 * BATCH + 10)]
    chain = await begin(log, key)
    chain = await finish(log, key, await say(log, key, chain, *words))
    follower = follow(log, key)
    page = await log.replay(key)
    assert len(page) == BATCH
    assert len(await log.replay(key, page[-1].seq)) == BATCH
    assert len(await log.replay(key, page[0].seq, limit=3)) == 3
    turn = await log.turn(key)
    assert turn.text == "".join(words)
    await until(follower.task.done)
    assert (follower.text, follower.lists) == (turn.text, 1)
    half = fold(page)
    assert await log.turn(key, half) == turn


@pytest.mark.rule("R14")
async def test_a_turn_that_nobody_asked_for_is_unknown(log: TurnLog, key: TurnKey) -> None:
    """The stream's leader was asked: neither fold nor follower waits for it."""
    assert await log.replay(key) == []
    with pytest.raises(TurnUnknown):
        await log.turn(key)
    with pytest.raises(TurnUnknown):
        await anext(log.follow(key))


@pytest.mark.rule("R72")
async def test_the_leader_says_which_entry_of_a_turn_is_the_last(log: TurnLog, key: TurnKey) -> None:
    """Of that turn, whatever kind it is, and whatever others have stored since; of none, that there is none."""

    writer, other = Writer(log, key), Writer(log, TurnKey(key.tenant, TurnId(new_id())))
    await writer.ask()
    assert await log.last_seq(key) == writer.chain.last
    await writer.begin("Light")
    await other.ask()
    assert await log.last_seq(key) == writer.chain.last
    await writer.end()
    assert await log.last_seq(key) == writer.chain.last
    assert await log.last_seq(TurnKey(key.tenant, TurnId(new_id()))) == BEFORE_FIRST


@pytest.mark.rule("R14")
async def test_a_turn_whose_request_cannot_be_read_is_unknown(
    connection: Connection, log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Junk in the place of a request neither breaks nor holds up whoever is asked to answer it for ever."""
    monkeypatch.setattr("tailrace.proto.nats.replay.READ_TIMEOUT_S", 0.1)
    await store(connection, key, "request", b"junk")
    with pytest.raises(TurnUnknown):
        await log.turn(key)


@pytest.mark.rule("R15")
async def test_a_follower_starts_at_any_entry_and_misses_nothing(log: TurnLog, key: TurnKey, follow: Any) -> None:
    """From every cursor of a turn: exactly what follows it. From the end: nothing, and it is over."""
    await finish(log, key, await begin(log, key, "The", " sky", " is", " blue."))
    whole = await log.replay(key)
    for position, stored in enumerate(whole):
        follower = follow(log, key, stored.seq)
        await until(follower.task.done)
        assert bodies(follower.told) == bodies(whole[position + 1 :])


@pytest.mark.rule("F31")
@pytest.mark.rule("R15")
async def test_a_cursor_that_is_no_entry_of_the_turn_is_refused(log: TurnLog, key: TurnKey) -> None:
    """Another turn's, one from the future, and any of a turn that is unknown."""
    chain = await begin(log, key)
    other = TurnKey(key.tenant, TurnId(new_id()))
    other_chain = await begin(log, other)
    for cursor in (other_chain.last, Seq(chain.last + 1_000_000)):
        with pytest.raises(CursorUnknown):
            await anext(log.follow(key, cursor))
    unknown = TurnKey(key.tenant, TurnId(new_id()))
    with pytest.raises(CursorUnknown):
        await anext(log.follow(unknown, chain.last))


@pytest.mark.rule("R15")
async def test_a_cursor_that_is_a_forks_entry_is_refused(
    connection: Connection, log: TurnLog, key: TurnKey, follow: Any
) -> None:
    """What is valid does not continue it: who is there already finds out, who comes later is told at once."""
    chain = await begin(log, key, "A")
    before = (await log.replay(key))[-2].seq
    fork = await store(connection, key, "event", entries.encode(says(Chain(before, 1), "FORK")))
    early = follow(log, key, fork)
    await until(lambda: early.lists)
    await say(log, key, chain, "B")
    await until(early.task.done)
    assert isinstance(early.task.exception(), CursorUnknown)
    with pytest.raises(CursorUnknown):
        await anext(log.follow(key, fork))


@pytest.mark.rule("R7")
async def test_a_newer_kind_passes_through(connection: Connection, log: TurnLog, key: TurnKey, follow: Any) -> None:
    """An entry that this version does not know is a link of the chain for all, and what follows it is valid."""
    chain = await begin(log, key, "A")
    payload = msgspec.json.encode({"prev": chain.last, "attempt": 1, "newer": True})
    newer = await store(connection, key, "newer", payload)
    chain = await finish(log, key, await say(log, key, Chain(newer, 1), "B"))
    follower = follow(log, key)
    await until(follower.task.done)
    assert (follower.text, (await log.turn(key)).skipped) == ("AB", 0)
    assert newer in [one.seq for one in follower.told]


# Following


@pytest.mark.rule("R16")
async def test_followers_who_join_at_any_time_are_told_the_same(log: TurnLog, key: TurnKey, follow: Any) -> None:
    """Replay, then the feed, joined by the chain: one joins at each entry while the turn is being written."""
    chain = await begin(log, key)
    followers = [follow(log, key)]
    for number in range(30):
        chain = await say(log, key, chain, f" {number}")
        followers.append(follow(log, key))
    await finish(log, key, chain)
    whole = bodies(await log.replay(key))
    for follower in followers:
        await until(follower.task.done)
        assert bodies(follower.told) == whole


@pytest.mark.rule("R16")
async def test_the_live_feed_says_what_the_log_says(log: TurnLog, key: TurnKey, follow: Any) -> None:
    """An entry that was heard is equal to the one that is read, its time included."""
    chain = await begin(log, key)
    follower = follow(log, key)
    await until(lambda: follower.lists)
    await finish(log, key, await say(log, key, chain, "heard"))
    await until(follower.task.done)
    assert follower.lists > 1
    assert [(one.seq, one.at) for one in follower.told] == [(one.seq, one.at) for one in await log.replay(key)]


@pytest.mark.rule("F13")
@pytest.mark.rule("R16")
async def test_what_a_follower_missed_while_it_was_cut_off_is_read(
    own_server: NatsServer, own_log: TurnLog, key: TurnKey, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect the log is read again, whether anything is heard or not: no gap, no repeat."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 60)
    async with Wire(own_server.url) as wire:
        connection = await Connection.open(wire.url, "cut")
        chain = await begin(own_log, key, "The")
        follower = follow(TurnLog(connection), key)
        await until(lambda: follower.text == "The")
        wire.cut()
        chain = await say(own_log, key, chain, " sky", " is")
        await until(lambda: not connection.is_up)
        wire.mend()
        await until(lambda: follower.text == "The sky is")
        await finish(own_log, key, await say(own_log, key, chain, " blue."))
        await until(follower.task.done)
        assert bodies(follower.told) == bodies(await own_log.replay(key))
        await connection.close()


@pytest.mark.rule("R16")
async def test_an_entry_that_the_feed_lost_is_read_after_a_silence(
    own_server: NatsServer, own_log: TurnLog, key: TurnKey, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last entry of a turn can be lost, and nothing follows that would show the gap."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.3)
    async with Wire(own_server.url) as wire:
        connection = await Connection.open(wire.url, "deaf")
        chain = await begin(own_log, key, "The sky")
        follower = follow(TurnLog(connection), key)
        await until(lambda: follower.text == "The sky")
        wire.is_deaf = True
        await finish(own_log, key, chain)
        await until(lambda: f"{key.turn}.end ".encode() in wire.lost)
        wire.mend()
        await until(follower.task.done)
        assert connection.client.stats["reconnects"] == 0
        assert bodies(follower.told) == bodies(await own_log.replay(key))
        await connection.close()


@pytest.mark.rule("F10")
@pytest.mark.rule("R16")
async def test_followers_survive_the_servers_death(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, key: TurnKey, follow: Any
) -> None:
    """Killed and started again on its port and store: who followed goes on, and the writer, too."""
    chain = await begin(own_log, key, "The sky")
    follower = follow(own_log, key)
    await until(lambda: follower.text == "The sky")
    await own_server.stop(SIGKILL)
    appending = asyncio.create_task(own_log.append(key, chain, says(chain, " is")))
    await until(lambda: not own_connection.is_up)
    with pytest.raises(LogUnavailable):
        # As long as this takes to give up, the append has found its tail unreadable, too.
        await own_log.turn(key)
    await own_server.start()
    chain = await appending
    await finish(own_log, key, await say(own_log, key, chain, " blue."))
    await until(follower.task.done)
    assert follower.text == (await own_log.turn(key)).text == "The sky is blue."
    assert bodies(follower.told) == bodies(await own_log.replay(key))


@pytest.mark.rule("R22")
async def test_the_end_of_a_turn_is_heard_of_by_who_writes_it(log: TurnLog, key: TurnKey) -> None:
    """A cancelled turn's generator stops also while its model is silent."""
    await begin(log, key)
    watching = asyncio.create_task(log.until_ended(key))
    # The subscription is on its way before the request that follows it on the same connection.
    turn = await log.turn(key)
    assert not watching.done()
    await log.append(key, turn.chain, build_end(turn, "cancelled"))
    await until(watching.done)


@pytest.mark.rule("R22")
async def test_an_end_that_came_before_anybody_listened_is_found(log: TurnLog, key: TurnKey) -> None:
    """Between an attempt and its call a turn may be cancelled, and the feed says so once."""
    await begin(log, key)
    turn = await log.turn(key)
    await log.append(key, turn.chain, build_end(turn, "cancelled"))
    await asyncio.wait_for(log.until_ended(key), 2)


@pytest.mark.rule("R22")
async def test_an_end_that_is_a_forks_stops_nobody(
    connection: Connection, log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the log: whoever carries the turn would be stopped by it again and again."""
    looks, has_end = [], TurnLog.has_end

    async def looked(self: TurnLog, key: TurnKey) -> bool:
        looks.append(found := await has_end(self, key))
        return found

    monkeypatch.setattr(TurnLog, "has_end", looked)
    monkeypatch.setattr("tailrace.proto.nats.turn_log.REREAD_S", 0.01)
    chain = await begin(log, key)
    mine = await log.append(key, chain, says(chain, "first"))
    fork = await store(connection, key, "event", entries.encode(says(chain, "rival")))
    forked = msgspec.structs.replace(build_end(await log.turn(key), "completed"), prev=fork)
    await store(connection, key, "end", entries.encode(forked))
    watching = asyncio.create_task(log.until_ended(key))
    await until(lambda: len(looks) > 3)
    assert (looks[0], watching.done()) == (True, False)
    await finish(log, key, mine)
    await until(watching.done)


# A server that does not answer


@pytest.mark.rule("R12")
async def test_a_server_that_is_away_is_said_so_in_bounded_time_and_comes_back_by_itself(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, key: TurnKey
) -> None:
    """Appends, folds and new followers fail within seconds, and leave nothing behind that is sent later."""
    chain = await begin(own_log, key)
    await own_server.stop(SIGKILL)
    await until(lambda: not own_connection.is_up)
    async with asyncio.timeout(12):
        with pytest.raises(LogUnavailable):
            await own_log.append(key, chain, says(chain, "A"), timeout_s=0.5)
        with pytest.raises(LogUnavailable):
            await own_log.turn(key)
        with pytest.raises(LogUnavailable):
            await anext(own_log.follow(key))
    await own_server.start()
    await until(lambda: own_connection.is_up)
    await own_log.append(key, chain, says(chain, "B"))
    assert (await own_log.turn(key)).text == "B"


@pytest.mark.rule("R12")
async def test_an_append_to_a_frozen_server_may_be_stored_later_and_then_stands_once(
    own_server: NatsServer, own_log: TurnLog, key: TurnKey
) -> None:
    """LogUnavailable means "unclear": what was given up may be stored when the server wakes, and is then found."""
    chain = await begin(own_log, key)
    entry = says(chain, "once")
    freeze(own_server)
    try:
        with pytest.raises(LogUnavailable):
            await own_log.append(key, chain, entry, timeout_s=0.5)
    finally:
        own_server.signal(SIGCONT)
    after = await own_log.append(key, chain, entry)
    turn = await own_log.turn(key)
    assert (turn.text, turn.chain, turn.skipped) == ("once", after, 0)


@pytest.mark.rule("R16")
async def test_a_follower_can_leave_while_the_server_is_away(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, key: TurnKey
) -> None:
    """Closing it raises nothing and waits for nobody."""
    await begin(own_log, key, "A")
    follower = own_log.follow(key)
    assert fold(await anext(follower)).text == "A"
    await own_server.stop(SIGKILL)
    await until(lambda: not own_connection.is_up)
    async with asyncio.timeout(2):
        await follower.aclose()


async def test_a_server_that_was_never_there_is_said_so(
    monkeypatch: pytest.MonkeyPatch, own_server: NatsServer
) -> None:
    """A process that starts without NATS ends with a sentence, and its supervisor starts it again."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.5)
    await own_server.stop(SIGKILL)
    async with asyncio.timeout(5):
        with pytest.raises(LogUnavailable, match="no NATS server answers"):
            await Connection.open(own_server.url, "test")
