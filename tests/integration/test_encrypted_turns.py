"""Turns with `store: false` on a real nats-server: what it stores, who can read it, and what an erasure overwrites."""

import asyncio
from contextlib import aclosing

import pytest

from tailrace.proto import entries, entry_encryption, subjects
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.direct_get import DirectReader, MessagePage
from tailrace.proto.nats.event_blobs import INLINE_BYTES_MAX
from tailrace.proto.nats.jetstream_log import ErasedEntries
from tailrace.proto.nats.log_server import PublishUnclear
from tailrace.proto.nats.stream_leader import Leader, StoredMessage
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import BODIES, STREAM
from tests.harness import readers
from tests.harness.generator_in_loop import words
from tests.harness.own_system import OwnSystem
from tests.harness.turn_builder import request, text_delta
from tests.harness.turn_writer import Writer
from tests.integration.conftest import Gateway, NewGateway

pytestmark = pytest.mark.rule("R113")

ENCRYPTION_KEY = entry_encryption.new_key()


@pytest.fixture
async def writer(own_log: TurnLog, key: TurnKey) -> Writer:
    """The writer of an encrypted turn, of which the request is stored."""
    writer = Writer(own_log, key)
    await writer.store_request(store=False, encryption_key=ENCRYPTION_KEY)
    return writer


@pytest.fixture
async def other_log(own_connection: Connection) -> TurnLog:
    """The log as another process sees it, which knows no keys."""
    return TurnLog(own_connection)


@pytest.fixture
def deleted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[Seq]:
    """The sequences of the messages that are overwritten or deleted one by one."""
    found, delete = list[Seq](), Leader.delete

    async def note(self: Leader, seq: Seq, *, erases: bool = False) -> bool:
        found.append(seq)
        return await delete(self, seq, erases=erases)

    monkeypatch.setattr(Leader, "delete", note)
    return found


async def stored_payloads(connection: Connection, key: TurnKey) -> dict[str, list[bytes]]:
    """Returns the payloads of a turn's messages in the stream, by kind."""
    found: dict[str, list[bytes]] = {}
    leader, seq = Leader(connection, STREAM), 1
    while (message := await leader.first(subjects.entries(key), seq)) is not None:
        found.setdefault(subjects.parse(message.subject)[1], []).append(message.data)
        seq = message.seq + 1
    return found


def encrypted_kinds(payloads: dict[str, list[bytes]]) -> set[str]:
    """Returns the kinds of which all payloads are encrypted."""
    return {kind for kind, found in payloads.items() if all(map(entry_encryption.is_encrypted, found))}


async def test_nats_has_no_entry_in_clear_but_the_request(
    own_connection: Connection, writer: Writer, own_log: TurnLog, other_log: TurnLog
) -> None:
    await writer.begin("a secret")
    await writer.end()
    payloads = await stored_payloads(own_connection, writer.key)
    assert set(payloads) == {"request", "attempt", "event", "end"}
    assert encrypted_kinds(payloads) == {"attempt", "event", "end"}
    for log in (own_log, other_log):
        turn = await log.read_turn(ScopedKey.whole(writer.key))
        assert (turn.text, turn.outcome, turn.chain) == ("a secret", "completed", writer.chain)


async def test_a_turn_is_encrypted_also_when_its_key_was_forgotten(
    own_connection: Connection,
    writer: Writer,
    own_log: TurnLog,
    other_log: TurnLog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writer's process reads other turns meanwhile. A process that has read nothing appends the end."""
    monkeypatch.setattr(entry_encryption, "KEYS_MAX", 1)
    other = Writer(own_log, TurnKey(writer.key.tenant, TurnId(new_id())))
    await other.store_request()
    await writer.begin("a")
    for text in (" secret", "x" * (INLINE_BYTES_MAX + 1)):
        await own_log.read_turn(ScopedKey.whole(other.key))
        await writer.store_texts(text)
    await other_log.append(writer.key, writer.chain, text_delta(writer.chain, " and more"))
    payloads = await stored_payloads(own_connection, writer.key)
    assert encrypted_kinds(payloads) == {"attempt", "event"}
    chunk = await Leader(own_connection, BODIES).last(subjects.event_chunks(writer.key))
    assert chunk is not None
    assert entry_encryption.is_encrypted(chunk.data)


async def test_an_entry_of_a_turn_without_a_request_is_not_published(
    own_connection: Connection, writer: Writer, other_log: TurnLog
) -> None:
    """It was erased: the key is gone with it, and an entry in clear would stay."""
    await writer.begin("a", " secret")
    await Leader(own_connection, STREAM).delete(writer.chain.first, erases=True)
    with pytest.raises(TurnUnknown):
        await other_log.append(writer.key, writer.chain, text_delta(writer.chain, "in clear"))
    with pytest.raises(PublishUnclear):
        await other_log.publish(writer.key, text_delta(writer.chain, "in clear"), writer.chain.last)
    payloads = await stored_payloads(own_connection, writer.key)
    assert encrypted_kinds(payloads) == {"attempt", "event"}


async def test_a_process_that_has_not_read_the_request_reads_and_follows_after_any_entry(
    writer: Writer, other_log: TurnLog, own_connection: Connection
) -> None:
    await writer.begin("a", " secret")
    cursor = writer.chain.last
    received: list[entries.StoredEntry] = []

    async def follow(log: TurnLog) -> None:
        async with aclosing(log.follow(ScopedKey.whole(writer.key), cursor)) as following:
            async for some in following:
                received.extend(some)

    (last,) = await TurnLog(own_connection).read_entries(ScopedKey.whole(writer.key), Seq(cursor - 1))
    assert (last.seq, type(last.entry)) == (cursor, entries.Event)
    task = asyncio.create_task(follow(other_log))
    await writer.store_texts(" and", " more")
    await writer.end()
    await task
    whole = await TurnLog(own_connection).read_entries(ScopedKey.whole(writer.key))
    assert [one.seq for one in received] == [one.seq for one in whole if one.seq > cursor]
    assert fold([*(one for one in whole if one.seq <= cursor), *received]).text == "a secret and more"


async def test_live_entries_that_cannot_be_decrypted_make_the_reader_read_the_log(
    writer: Writer, other_log: TurnLog
) -> None:
    """A feed that begins after the request: the key is still unknown when its entries arrive."""
    await writer.begin("a")
    async with other_log.subscribe(writer.key) as feed:
        await writer.store_texts(" secret")
        assert await feed.next(5.0) == []
        await other_log.read_turn(ScopedKey.whole(writer.key))
        await writer.store_texts(" and more")
        assert [one.seq for one in await feed.next(5.0)] == [writer.chain.last]


async def test_an_entry_of_another_turn_is_not_accepted(writer: Writer, other_log: TurnLog) -> None:
    """Nor is one that is encrypted with no key of the turn. The turn continues after both."""
    await writer.begin("a")
    other = TurnKey(writer.key.tenant, TurnId(new_id()))
    connection = writer.log.connection
    payload = entries.encode(text_delta(writer.chain, "forged"))
    subject = subjects.entry(writer.key, "event")
    for forged in (
        entry_encryption.encrypt(ENCRYPTION_KEY, subjects.entry(other, "event"), payload),
        entry_encryption.encrypt(entry_encryption.new_key(), subject, payload),
        entry_encryption.MARK,
    ):
        await connection.jetstream.publish(subject, forged)
    await writer.store_texts(" secret")
    turn = await other_log.read_turn(ScopedKey.whole(writer.key))
    assert (turn.text, turn.skipped) == ("a secret", 3)


async def test_a_fork_of_the_request_with_another_key_hides_nothing(
    writer: Writer, other_log: TurnLog, deleted_one_by_one: list[Seq]
) -> None:
    """NATS has stored a second request that the fence should have refused. An erasure overwrites both keys."""
    rival = request(store=False, encryption_key=entry_encryption.new_key())
    connection = writer.log.connection
    await connection.jetstream.publish(subjects.entry(writer.key, "request"), entries.encode(rival))
    await writer.begin("a", " secret")
    cursor = writer.chain.last
    for log in (writer.log, other_log):
        (last,) = await log.read_entries(ScopedKey.whole(writer.key), Seq(cursor - 1))
        assert (last.seq, type(last.entry)) == (cursor, entries.Event)
        assert (await log.read_turn(ScopedKey.whole(writer.key))).text == "a secret"
    assert (await other_log.erase(writer.key)).is_gone
    assert len(deleted_one_by_one) == 2


async def test_an_erasure_overwrites_the_request_and_what_an_older_version_has_not_encrypted(
    writer: Writer,
    other_log: TurnLog,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    deleted_one_by_one: list[Seq],
) -> None:
    """The encrypted entries are removed after it, also by a second erasure if the first was killed in between."""
    await writer.begin("a", " secret")
    in_clear = entries.encode(text_delta(writer.chain, " in clear"))
    stored = await own_connection.jetstream.publish(subjects.entry(writer.key, "event"), in_clear)
    assert (await other_log.read_turn(ScopedKey.whole(writer.key))).text == "a secret in clear"
    count = len(await other_log.read_entries(ScopedKey.whole(writer.key)))

    async def fail(_: TurnLog, __: TurnKey) -> None:
        raise LogUnavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(TurnLog, "purge", fail)
        assert await other_log.erase(writer.key) == ErasedEntries(2, is_gone=False)
    assert deleted_one_by_one == [stored.seq, writer.chain.first]
    assert await TurnLog(own_connection).erase(writer.key) == ErasedEntries(count - 2, is_gone=True)
    assert (await own_connection.jetstream.stream_info(STREAM)).state.messages == 0


async def test_an_erasure_whose_deadline_is_over_after_the_request_removes_the_whole_turn(
    writer: Writer, other_log: TurnLog, own_connection: Connection
) -> None:
    """Otherwise it would be found by no later call, and not be counted."""
    await writer.begin("a", " secret")
    count = len(await other_log.read_entries(ScopedKey.whole(writer.key)))
    assert await other_log.erase(writer.key, asyncio.get_running_loop().time()) == ErasedEntries(count, is_gone=True)
    assert (await own_connection.jetstream.stream_info(STREAM)).state.messages == 0


async def test_a_request_that_a_replica_does_not_have_yet_is_overwritten(
    writer: Writer, other_log: TurnLog, monkeypatch: pytest.MonkeyPatch, deleted_one_by_one: list[Seq]
) -> None:
    """A purge alone would leave the key in the file."""
    await writer.begin("a", " secret")

    async def read_nothing(*_: object) -> MessagePage:
        return MessagePage([], is_last=True)

    monkeypatch.setattr(DirectReader, "page", read_nothing)
    assert (await other_log.erase(writer.key)).is_gone
    assert deleted_one_by_one == [writer.chain.first]


async def test_a_new_process_cannot_read_a_turn_whose_request_is_overwritten(
    writer: Writer, own_connection: Connection
) -> None:
    await writer.begin("a", " secret")
    await Leader(own_connection, STREAM).delete(writer.chain.first, erases=True)
    left = await TurnLog(own_connection).read_entries(ScopedKey.whole(writer.key))
    assert left
    assert {type(one.entry) for one in left} == {entries.Unreadable}


async def test_a_new_turn_asks_the_leader_for_no_request(
    own: OwnSystem, own_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator has received the request with its lease. To ask for the key would take a round trip a turn."""
    asked, first = list[str](), Leader.first

    async def note(self: Leader, subject: str, seq: int) -> StoredMessage | None:
        asked.append(subject)
        return await first(self, subject, seq)

    monkeypatch.setattr(Leader, "first", note)
    async with own.running_generator():
        for store in (True, False):
            body = {"message": "#sim words=3", "store": store}
            started = (await own_gateway.client.post("/v1/turns", json=body)).json()
            await readers.read(own_gateway.client, started["turn"])
    assert [subject for subject in asked if subject.endswith(".request")] == []


async def test_a_generator_continues_the_encrypted_turn_of_a_killed_one(
    own: OwnSystem, own_gateway: Gateway, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """A reader that had the first part resumes on another gateway. A turn that is stored is not encrypted."""
    await own.shorten_lease(0.2)
    body = {"message": "#sim words=50 rate=200", "store": False}
    started = (await own_gateway.client.post("/v1/turns", json=body)).json()
    assert await own.run_and_kill_after(6)
    async with own.running_generator():
        plain = (await own_gateway.client.post("/v1/turns", json=body | {"store": True})).json()
        whole = (await readers.read(own_gateway.client, started["turn"])).frames
        half = len(whole) // 2
        other = await new_gateway(own.server.url)
        rest = (await readers.read(other.client, started["turn"], whole[half - 1].seq)).frames
        await readers.read(other.client, plain["turn"])
    assert rest == whole[half:]
    for turn, kinds in ((started, {"attempt", "event", "end"}), (plain, set())):
        payloads = await stored_payloads(own.connection, TurnKey(tenant, TurnId(turn["turn"])))
        assert encrypted_kinds(payloads) == kinds
    turn = (await other.client.get(f"/v1/turns/{started['turn']}")).json()
    assert (turn["text"], turn["outcome"], turn["attempts"]) == (words(50), "completed", 2)
