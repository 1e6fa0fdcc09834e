"""The turn log on a real nats-server: appends, replays, followers, forks, and a server that does not answer."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from benchmarks.lost import lost_acknowledgements
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.proto import entries, subjects
from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import KINDS, StoredEntry
from tailrace.proto.errors import CursorUnknown, EntryTooLarge, FenceLost, LogFull, LogUnavailable, TurnUnknown
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog, jetstream_log
from tailrace.proto.nats.direct_get import DirectReader, MessagePage
from tailrace.proto.nats.jetstream_log import FENCE_SUBJECT, ErasedEntries
from tailrace.proto.nats.log_server import PAGE_MAX, LiveFeed
from tailrace.proto.nats.pub_ack import FENCE
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import STREAM
from tests.harness.freeze import freeze
from tests.harness.proxy import Proxy
from tests.harness.turn_builder import closing_events, request, text_delta
from tests.harness.turn_writer import Writer
from tests.harness.until import until

REREAD_S = "tailrace.proto.nats.follower.REREAD_S"


class Follower:
    """A task that follows a turn; `received` has its entries, `lists` counts the lists that they came in."""

    def __init__(self, log: TurnLog, key: TurnKey, after: Seq) -> None:
        self.received: list[StoredEntry] = []
        self.lists = 0
        self.task = asyncio.create_task(self._follow(log, key, after))

    async def _follow(self, log: TurnLog, key: TurnKey, after: Seq) -> None:
        async with aclosing(log.follow(ScopedKey.whole(key), after)) as follower:
            async for some in follower:
                self.received += some
                self.lists += 1

    @property
    def text(self) -> str:
        return fold(self.received).text

    async def finish(self) -> list[tuple[Any, ...]]:
        """Waits for the end of the turn; returns the entries received, comparable."""
        await until(self.task.done)
        self.task.result()
        return comparable(self.received)


class ReceivedEntries:
    """The entries that a follower has passed on."""

    def __init__(self) -> None:
        self.entries: list[StoredEntry] = []

    def add(self, entries: list[StoredEntry]) -> None:
        self.entries += entries


@pytest.fixture
async def follow() -> AsyncIterator[Any]:
    """Starts followers and waits for their first list; cancels them after the test."""
    followers: list[Follower] = []

    async def start(log: TurnLog, key: TurnKey, after: Seq = BEFORE_FIRST) -> Follower:
        followers.append(one := Follower(log, key, after))
        await until(lambda: one.lists or one.task.done())
        return one

    yield start
    for follower in followers:
        follower.task.cancel()
        with suppress(asyncio.CancelledError, LogUnavailable, TurnUnknown, CursorUnknown):
            await follower.task


@pytest.fixture
def own_writer(own_log: TurnLog, key: TurnKey) -> Writer:
    return Writer(own_log, key)


def comparable(stored: list[StoredEntry]) -> list[tuple[Any, ...]]:
    """Two msgspec.Raw of the same bytes are not equal; their encodings are."""
    return [(one.seq, one.at, entries.encode(one.entry)) for one in stored]


async def read_log(log: TurnLog, key: TurnKey) -> list[tuple[Any, ...]]:
    return comparable(await log.read_entries(ScopedKey.whole(key)))


def count_filled_gaps() -> float:
    return REGISTRY.get_sample_value("tailrace_feed_gaps_filled_total") or 0.0


async def store_unfenced(connection: Connection, key: TurnKey, kind: str, payload: bytes) -> Seq:
    """Stores an entry without a fence, as a server that has lost an acknowledged entry would. Returns its sequence."""
    ack = await connection.jetstream.publish(subjects.entry(key, kind), payload)
    return Seq(ack.seq)


def another_turn(key: TurnKey) -> TurnKey:
    return TurnKey(key.tenant, TurnId(new_id()))


# Appends


@pytest.mark.rule("R1")
@pytest.mark.rule("R8")
async def test_entries_are_read_back_in_order_and_each_carried_its_fence(
    connection: Connection, log: TurnLog, writer: Writer
) -> None:
    """The fence is the turn's last sequence, on `turns.{tenant}.{turn}.>`."""
    await writer.open("The sky", " is blue.")
    await writer.end()
    key, stored = writer.key, await log.read_entries(ScopedKey.whole(writer.key))
    assert [KINDS[type(one.entry)] for one in stored] == ["request", "attempt", *["event"] * 6, "end"]
    assert stored[0].entry == request()
    turn = fold(stored)
    assert (turn.text, turn.chain, turn.skipped) == ("The sky is blue.", writer.chain, 0)
    assert turn == await log.read_turn(ScopedKey.whole(key))
    for one in stored:
        message = await connection.jetstream.get_msg(STREAM, seq=one.seq, direct=True)
        assert message.headers is not None
        assert message.headers[FENCE] == str(one.entry.prev)
        assert message.headers[FENCE_SUBJECT] == f"turns.{key.tenant}.{key.turn}.>"


@pytest.mark.rule("F14")
@pytest.mark.rule("R12")
async def test_of_a_hundred_lost_acknowledgements_none_stores_an_entry_twice(
    own_server: NatsServer, own_log: TurnLog, tenant: Tenant
) -> None:
    """Twenty writers, each of which misses every second acknowledgement, read the tail and go on."""
    assert await lost_acknowledgements(own_server, own_log, tenant, count=100) == 0


@pytest.mark.rule("R32")
async def test_an_entry_may_fill_the_servers_limit_to_the_byte(
    connection: Connection, log: TurnLog, writer: Writer, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payload and headers together. A larger one is refused before it is sent, and the connection stays up.

    An event of this size would be a blob.
    """
    monkeypatch.setattr(jetstream_log, "INLINE_BYTES_MAX", 2**30)
    await writer.open()
    follower = await follow(log, writer.key)
    headers = {FENCE: str(writer.chain.last), FENCE_SUBJECT: subjects.entries(writer.key)}
    headers_bytes = len("NATS/1.0\r\n\r\n") + sum(len(f"{name}: {value}\r\n") for name, value in headers.items())
    text_bytes = connection.client.max_payload - headers_bytes - len(entries.encode(text_delta(writer.chain, "")))
    with pytest.raises(EntryTooLarge):
        await writer.store_texts("x" * (text_bytes + 1))
    assert connection.is_up
    await writer.store_texts("x" * text_bytes)
    await writer.end()
    await follower.finish()
    assert (await log.read_turn(ScopedKey.whole(writer.key))).text == follower.text == "x" * text_bytes


@pytest.mark.rule("F15")
@pytest.mark.rule("R32")
async def test_a_full_log_refuses_appends_and_serves_its_readers(tmp_path: Path, key: TurnKey, follow: Any) -> None:
    """No stored entry is evicted; space that retention frees is used."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "small")
        await setup.apply(connection, bytes_max=100_000)
        log = TurnLog(connection)
        old, new = Writer(log, another_turn(key)), Writer(log, key)
        await old.open("x" * 50_000)
        await old.end()
        await new.open("The sky")
        follower = await follow(log, key)
        with pytest.raises(LogFull):
            await new.store_texts("y" * 50_000)
        assert (await log.read_turn(ScopedKey.whole(key))).text == follower.text == "The sky"
        assert (await log.read_turn(ScopedKey.whole(old.key))).outcome == "completed"
        await connection.jetstream.purge_stream(STREAM, subject=subjects.entries(old.key))
        await new.store_texts("y" * 50_000)
        await until(lambda: follower.text == "The sky" + "y" * 50_000)
        await connection.close()


# Reads


@pytest.mark.rule("R14")
async def test_a_log_of_many_pages_is_read_whole(log: TurnLog, writer: Writer, follow: Any) -> None:
    """A page holds 512 entries at most; folds and followers read on to the last."""
    words = [f" {number}" for number in range(PAGE_MAX + 10)]
    await writer.open(*words)
    await writer.end()
    key = writer.key
    page = await log.read_entries(ScopedKey.whole(key))
    assert len(page) == PAGE_MAX
    assert 0 < len(await log.read_entries(ScopedKey.whole(key), page[-1].seq)) < PAGE_MAX
    assert len(await log.read_entries(ScopedKey.whole(key), page[0].seq, limit=3)) == 3
    turn = await log.read_turn(ScopedKey.whole(key))
    assert turn.text == "".join(words)
    assert turn == await log.read_turn(ScopedKey.whole(key), fold(page))
    follower = await follow(log, key)
    await follower.finish()
    assert (follower.text, follower.lists) == (turn.text, 1)


@pytest.mark.rule("R72")
@pytest.mark.rule("R80")
async def test_the_leader_knows_the_last_sequence_and_the_number_of_the_entries_of_a_turn(
    connection: Connection, log: TurnLog, writer: Writer
) -> None:
    """Whatever kinds they have, and whatever other turns have stored since."""
    other = Writer(log, another_turn(writer.key))
    for write in (writer.store_request, lambda: writer.begin("Light"), writer.end):
        await write()
        await (other.store_texts("more") if other.chain.last else other.open())
        assert await log.last_seq(writer.key) == writer.chain.last
    assert await log.last_seq(another_turn(writer.key)) == BEFORE_FIRST
    count = await log.count(writer.key)
    assert (count.entries, count.upto > writer.chain.last) == (writer.chain.length, True)
    await store_unfenced(connection, writer.key, "end", b"junk")
    assert (await log.count(writer.key)).entries == count.entries + 1
    # The request is the first entry that expires.
    request = (await log.read_entries(ScopedKey.whole(writer.key), limit=1))[0].seq
    await connection.jetstream.delete_msg(STREAM, request)
    assert (await log.count(writer.key)).entries == 0


@pytest.mark.rule("R91")
async def test_an_entry_that_cannot_be_overwritten_is_not_reported_as_erased(
    own_connection: Connection, own_log: TurnLog, key: TurnKey
) -> None:
    """A purge would hide it, and leave its bytes in the file."""
    writer = Writer(own_log, key)
    await writer.open("a secret")
    turns = (await own_connection.jetstream.stream_info(STREAM)).config
    await own_connection.jetstream.update_stream(turns.evolve(deny_delete=True))
    with pytest.raises(LogUnavailable, match="could not be erased"):
        await own_log.erase(key)
    assert (await own_log.read_turn(ScopedKey.whole(key))).text == "a secret"


@pytest.mark.rule("R91")
async def test_an_erasure_overwrites_entries_that_the_replica_it_reads_does_not_have(
    own_log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge would remove them, and leave their bytes in the files of all three servers."""
    writer = Writer(own_log, key)
    await writer.open("a", " secret")
    await writer.end()
    entries, page = await own_log.read_entries(ScopedKey.whole(key)), DirectReader.page

    async def read_behind(self: DirectReader, *given: Any) -> MessagePage:
        found = await page(self, *given)
        return found._replace(messages=[one for one in found.messages if one.header(b"Nats-Sequence") != last])

    last = str(entries[-1].seq)
    monkeypatch.setattr(DirectReader, "page", read_behind)
    assert await own_log.erase(key) == ErasedEntries(len(entries), is_gone=True)


def lose_leader_after(patch: pytest.MonkeyPatch, deletions: int) -> None:
    """Lets so many deletions succeed. Each later one raises LogUnavailable."""
    delete, left = Leader.delete, deletions

    async def delete_some(self: Leader, seq: Seq, *, erases: bool = False) -> bool:
        nonlocal left
        if not left:
            raise LogUnavailable("no leader")
        left -= 1
        return await delete(self, seq, erases=erases)

    patch.setattr(Leader, "delete", delete_some)


@pytest.mark.rule("R91")
async def test_an_interrupted_erasure_counts_each_entry_once_and_is_completed_by_another(
    own_connection: Connection, own_log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its deadline, or because the log becomes unavailable meanwhile.

    The request is erased last: a turn without one does not exist, and the rest of its text would stay.
    """
    writer = Writer(own_log, key)
    await writer.open("a", " secret")
    await writer.end()
    entries, now = await own_log.read_entries(ScopedKey.whole(key)), asyncio.get_running_loop().time()
    assert await own_log.erase(key, now) == ErasedEntries(1, is_gone=False)
    with monkeypatch.context() as patch:
        lose_leader_after(patch, len(entries) - 2)
        assert await own_log.erase(key, now + 60) == ErasedEntries(len(entries) - 2, is_gone=False)
        with pytest.raises(LogUnavailable, match="no leader"):
            await own_log.erase(key, now + 60)
    assert await own_log.read_entries(ScopedKey.whole(key)) == entries[:1]
    assert (await own_log.read_turn(ScopedKey.whole(key))).request is not None
    assert await own_log.erase(key) == ErasedEntries(1, is_gone=True)
    assert await own_log.erase(key) == ErasedEntries(0, is_gone=True)
    assert not await own_log.has_turn(ScopedKey.whole(key))
    assert (await own_connection.jetstream.stream_info(STREAM)).state.messages == 0


async def test_information_about_streams_is_answered_during_erasures(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes erase several turns at once. nats-server does other requests before those for information."""
    deltas, delete, running, most = 30, Leader.delete, 0, 0

    async def count_delete(self: Leader, seq: Seq, *, erases: bool = False) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        is_deleted = await delete(self, seq, erases=erases)
        running -= 1
        return is_deleted

    monkeypatch.setattr(Leader, "delete", count_delete)
    writers = [Writer(own_log, TurnKey(Tenant("ours"), TurnId(new_id()))) for _ in range(6)]
    for writer in writers:
        await writer.open(*["a word "] * deltas)
    other = await Connection.open(own_server.url, "other")
    logs = (own_log, TurnLog(other))
    erasing = asyncio.gather(*(logs[number % 2].erase(writer.key) for number, writer in enumerate(writers)))
    answers = 0
    while not erasing.done():
        await own_connection.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout_s=60)
        answers += 1
    assert answers > sum(erased.entries for erased in await erasing) / 10
    assert most <= len(logs)
    await other.close()


async def test_an_error_of_the_server_is_not_taken_for_an_empty_log(
    own_connection: Connection, own_log: TurnLog, key: TurnKey
) -> None:
    writer = Writer(own_log, key)
    await writer.open("a")
    assert await own_log.newest_seq() == writer.chain.last
    await own_connection.jetstream.delete_stream(STREAM)
    with pytest.raises(LogUnavailable, match="stream not found"):
        await own_log.newest_seq()


@pytest.mark.rule("F31")
@pytest.mark.rule("R15")
async def test_a_follower_starts_after_any_entry_of_its_turn_and_after_no_other(
    log: TurnLog, writer: Writer, follow: Any
) -> None:
    """Refused: a cursor of another turn, one in the future, and any cursor of an unknown turn."""
    other = Writer(log, another_turn(writer.key))
    await other.store_request()
    await writer.open("The", " sky", " is", " blue.")
    await writer.end()
    whole = await log.read_entries(ScopedKey.whole(writer.key))
    for number, stored in enumerate(whole, 1):
        follower = await follow(log, writer.key, stored.seq)
        assert await follower.finish() == comparable(whole[number:])
    for key, cursor in (
        (writer.key, other.chain.last),
        (writer.key, Seq(writer.chain.last + 1_000_000)),
        (another_turn(writer.key), writer.chain.last),
    ):
        with pytest.raises(CursorUnknown):
            await anext(log.follow(ScopedKey.whole(key), cursor))


# Followers


@pytest.mark.rule("F13")
@pytest.mark.rule("R16")
async def test_a_follower_that_was_disconnected_reads_from_the_log_what_its_feed_has_lost(
    own_server: NatsServer, own_writer: Writer, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once after the reconnect, and not only after REREAD_S seconds of silence."""
    monkeypatch.setattr(REREAD_S, 60)
    async with Proxy.in_front_of(own_server.url) as proxy:
        connection = await Connection.open(proxy.url_of(own_server.url), "reader")
        await own_writer.open("The")
        follower = await follow(TurnLog(connection), own_writer.key)
        gaps = count_filled_gaps()
        proxy.fail("cut")
        await own_writer.store_texts(" sky")
        await until(lambda: not connection.is_up)
        proxy.restore()
        await until(lambda: follower.text == "The sky")
        await own_writer.end()
        assert await follower.finish() == await read_log(own_writer.log, own_writer.key)
        assert connection.client.stats["reconnects"] == 1
        assert count_filled_gaps() > gaps
        await connection.close()


async def test_a_turn_that_was_followed_to_its_end_is_freed_without_a_garbage_collection(
    log: TurnLog, writer: Writer
) -> None:
    """Its entries are old objects by then: a collection of those may come only after 20,000 turns."""

    async def follow_to_end() -> weakref.ref[ReceivedEntries]:
        received = ReceivedEntries()
        following = asyncio.create_task(log.follow_into(writer.key, BEFORE_FIRST, received.add))
        await writer.store_request()
        await until(lambda: received.entries)
        await writer.begin("Hello")
        await writer.end()
        await following
        return weakref.ref(received)

    gc.disable()
    try:
        freed = await follow_to_end()
        await until(lambda: freed() is None, deadline_s=1)
    finally:
        gc.enable()


# Forks: NATS has stored an entry that the fence should have refused


@pytest.mark.rule("R13")
@pytest.mark.rule("R15")
@pytest.mark.rule("R22")
async def test_a_fork_with_its_own_end_ends_nothing(
    connection: Connection, log: TurnLog, writer: Writer, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer loses the fence, a cursor in it is refused, and the valid writer is not stopped by it."""
    looks, has_end = [], TurnLog.has_end

    async def look(self: TurnLog, key: TurnKey) -> bool:
        looks.append(found := await has_end(self, key))
        return found

    monkeypatch.setattr(TurnLog, "has_end", look)
    monkeypatch.setattr("tailrace.proto.nats.turn_log.REREAD_S", 0.01)
    await writer.open()
    key, start = writer.key, writer.chain
    await writer.store_texts("valid")
    fork = Chain(await store_unfenced(connection, key, "event", entries.encode(text_delta(start, "rival"))), 1)
    follower = await follow(log, key, fork.last)
    # The follower skips the next valid entry, and that shows the fork.
    await writer.store_texts(" and more")
    await until(follower.task.done)
    assert isinstance(follower.task.exception(), CursorUnknown)
    with pytest.raises(FenceLost, match="another writer"):
        await log.append(key, fork, text_delta(fork, "never"), timeout_s=2)
    end = msgspec.structs.replace(build_end(await log.read_turn(ScopedKey.whole(key)), "completed"), prev=fork.last)
    await store_unfenced(connection, key, "end", entries.encode(end))
    with pytest.raises(FenceLost, match="belongs to a fork"):
        await log.append(key, fork, end)
    with pytest.raises(CursorUnknown):
        await anext(log.follow(ScopedKey.whole(key), fork.last))
    assert (await log.read_turn(ScopedKey.whole(key))).outcome == "running"
    watching = asyncio.create_task(log.wait_for_end(key))
    await until(lambda: len(looks) > 3)
    assert (looks[0], watching.done()) == (True, False)
    await writer.store_events(*closing_events(1))
    await writer.end("cancelled")
    await until(watching.done)


# A server that does not answer


async def test_a_missed_end_is_found_soon_after_a_read_that_failed(
    log: TurnLog, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut route between two servers loses the end on the live feed. The model's call is open meanwhile."""
    has_end = TurnLog.has_end

    async def fail_once(*_: object) -> bool:
        monkeypatch.setattr(TurnLog, "has_end", has_end)
        monkeypatch.setattr("tailrace.proto.nats.turn_log.REREAD_S", 60)
        raise LogUnavailable("no answer")

    monkeypatch.setattr(TurnLog, "has_end", fail_once)
    monkeypatch.setattr("tailrace.proto.nats.turn_log.REREAD_S", 0.01)
    await writer.open("The sky")
    await writer.end("cancelled")
    async with asyncio.timeout(10):
        await log.wait_for_end(writer.key, LiveFeed())


@pytest.mark.rule("F10")
@pytest.mark.rule("R12")
@pytest.mark.rule("R16")
async def test_the_log_survives_the_death_of_the_server(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_writer: Writer, follow: Any
) -> None:
    """Each call fails within its time; a patient append, and followers, continue once the server is back."""
    await own_writer.open("The sky")
    key, chain = own_writer.key, own_writer.chain
    follower = await follow(own_log, key)
    leaving = own_log.follow(ScopedKey.whole(key))
    await anext(leaving)
    await own_server.stop(SIGKILL)
    appending = asyncio.create_task(own_writer.store_texts(" is"))
    await until(lambda: not own_connection.is_up)
    async with asyncio.timeout(12):
        await leaving.aclose()
        with pytest.raises(LogUnavailable):
            await own_log.append(another_turn(key), START, request(), timeout_s=0.5)
        with pytest.raises(LogUnavailable):
            await own_log.read_turn(ScopedKey.whole(key))
        with pytest.raises(LogUnavailable):
            await anext(own_log.follow(ScopedKey.whole(key), chain.last))
    await own_server.start()
    await appending
    await own_writer.store_texts(" blue.")
    await own_writer.end()
    assert await follower.finish() == await read_log(own_log, key)
    assert follower.text == "The sky is blue."


@pytest.mark.rule("R12")
async def test_an_append_that_was_given_up_may_be_stored_later_and_once(
    own_server: NatsServer, own_log: TurnLog, own_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LogUnavailable means that the outcome is unclear: a frozen server stores the entry when it continues."""
    monkeypatch.setattr(jetstream_log, "PUBLISH_TIMEOUT_S", 0.3)
    await own_writer.open()
    key, entry = own_writer.key, text_delta(own_writer.chain, "once")
    freeze(own_server)
    try:
        with pytest.raises(LogUnavailable):
            await own_log.append(key, own_writer.chain, entry, timeout_s=0.5)
    finally:
        own_server.signal(SIGCONT)
    after = await own_log.append(key, own_writer.chain, entry)
    turn = await own_log.read_turn(ScopedKey.whole(key))
    assert (turn.text, turn.chain, turn.skipped) == ("once", after, 0)
