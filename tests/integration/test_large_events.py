"""Events of a model that are too large for an entry, on a real nats-server (PROTOCOL R120)."""

import asyncio
import base64
import os
from collections.abc import Awaitable
from contextlib import aclosing

import msgspec
import pytest

from tailrace.proto import entries, entry_encryption, events, subjects
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Event, StoredEntry
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.ids import Seq, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog, event_blobs
from tailrace.proto.nats.event_blobs import INLINE_BYTES_MAX
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import BODIES, STREAM
from tests.harness import turn_builder
from tests.harness.turn_writer import Writer

pytestmark = pytest.mark.rule("R120")

PDF = base64.b64encode(os.urandom(2_700_000)).decode()


def fetched(pdf: str = PDF, index: int = 1) -> msgspec.Raw:
    """Returns the event of a fetched document, with spaces and escapes that no encoder of ours would write."""
    return msgspec.Raw(
        b'{"type": "content_block_start",  "index": %d, "content_block": {"type": "web_fetch_tool_result", '
        b'"tool_use_id": "srvtoolu_1", "content": {"type": "web_fetch_result", "content": {"type": "document", '
        b'"title": "\\u00e9\\/", "source": {"type": "base64", "data": "%b"}}}}}' % (index, pdf.encode())
    )


def large_entry(chain: Chain, raw: msgspec.Raw) -> Event:
    return Event(prev=chain.last, attempt=chain.attempt, event=raw)


async def chunks_of(connection: Connection, key: TurnKey) -> list[str]:
    """Returns the subjects of the chunks that are stored for a turn, without emptied ones."""
    found, leader, seq = list[str](), Leader(connection, BODIES), 1
    while (message := await leader.first(subjects.event_chunks(key), seq)) is not None:
        seq = message.seq + 1
        if message.data:
            found.append(message.subject)
    return found


async def stored_payload(connection: Connection, key: TurnKey, seq: Seq) -> bytes:
    found = await Leader(connection, STREAM).first(subjects.entries(key), seq)
    assert found is not None
    return found.data


@pytest.fixture
async def writer(own_log: TurnLog, key: TurnKey) -> Writer:
    """The writer of a turn with an open text block."""
    writer = Writer(own_log, key)
    await writer.open("Here it is.")
    return writer


async def test_every_reader_gets_a_large_event_byte_for_byte(own_connection: Connection, writer: Writer) -> None:
    """The reader that follows live, the one that replays, and a fold."""
    received: list[StoredEntry] = []
    has_begun = asyncio.Event()

    async def follow() -> None:
        async with aclosing(TurnLog(own_connection).follow(ScopedKey.whole(writer.key))) as following:
            async for some in following:
                received.extend(some)
                has_begun.set()

    following = asyncio.create_task(follow())
    await has_begun.wait()
    raw = fetched()
    seq = await writer.store(large_entry(writer.chain, raw))
    await writer.store_events(events.BlockStop(1))
    await writer.end()
    async with asyncio.timeout(10):
        await following
    replayed = await TurnLog(own_connection).read_entries(ScopedKey.whole(writer.key))
    assert received == replayed
    (large,) = [one.entry for one in replayed if one.seq == seq]
    assert isinstance(large, Event)
    assert (bytes(large.event), large.blob) == (bytes(raw), None)
    turn = await TurnLog(own_connection).read_turn(ScopedKey.whole(writer.key))
    assert turn.blocks[1].start["content"]["content"]["source"]["data"] == PDF
    assert turn.chain == writer.chain


async def test_the_entry_is_small_and_an_older_version_reads_a_block_without_its_content(
    own_connection: Connection, writer: Writer
) -> None:
    class OldEvent(msgspec.Struct):
        prev: int
        attempt: int
        event: msgspec.Raw

    seq = await writer.store(large_entry(writer.chain, fetched()))
    payload = await stored_payload(own_connection, writer.key, seq)
    assert len(payload) < 1000
    block = {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_1"}
    stub = events.decode(msgspec.json.decode(payload, type=OldEvent).event)
    assert isinstance(stub, events.BlockStart)
    assert {name: stub.content_block[name] for name in block} == block
    assert PDF[:100] not in payload.decode()


async def test_an_event_without_long_strings_is_kept_as_well(own_connection: Connection, writer: Writer) -> None:
    """A list of many small values, in an event of an unknown type."""
    raw = msgspec.Raw(b'{"type":"numbers","n":[%b]}' % b",".join(b"%d" % n for n in range(300_000)))
    assert len(raw) > INLINE_BYTES_MAX
    seq = await writer.store(large_entry(writer.chain, raw))
    assert len(await stored_payload(own_connection, writer.key, seq)) < 1000
    (stored,) = await TurnLog(own_connection).read_entries(ScopedKey.whole(writer.key), Seq(seq - 1))
    assert isinstance(stored.entry, Event)
    assert stored.entry.event == raw


async def test_an_append_whose_outcome_is_unclear_finds_its_large_event(
    own_connection: Connection, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement is lost: the entry that is read from the log equals the one being appended (R13)."""
    monkeypatch.setattr("tailrace.proto.nats.jetstream_log.PUBLISH_TIMEOUT_S", 0.2)
    request, lost = Connection.request, list[str]()

    def lose_once(self: Connection, subject: str, payload: bytes, **options: object) -> Awaitable[object]:
        stored = request(self, subject, payload, **options)  # type: ignore[arg-type]
        if not subject.endswith(".event") or lost:
            return stored
        lost.append(subject)

        async def lose() -> None:
            await stored
            raise LogUnavailable("the answer is lost")

        return lose()

    monkeypatch.setattr(Connection, "request", lose_once)
    await writer.store(large_entry(writer.chain, fetched()))
    assert lost
    await writer.store_events(events.BlockStop(1))
    turn = await TurnLog(own_connection).read_turn(ScopedKey.whole(writer.key))
    assert (turn.skipped, len(turn.blocks)) == (0, 2)


@pytest.mark.rule("R35")
async def test_a_purge_removes_the_large_events_of_the_turn(own_connection: Connection, writer: Writer) -> None:
    await writer.store(large_entry(writer.chain, fetched()))
    assert len(await chunks_of(own_connection, writer.key)) == -(-len(fetched()) // (512 * 1024))
    other = Writer(writer.log, TurnKey(writer.key.tenant, TurnId(new_id())))
    await other.open("And another.")
    await other.store(large_entry(other.chain, fetched()))
    await writer.log.purge_events(writer.key)
    assert await chunks_of(own_connection, writer.key) == []
    assert (await TurnLog(own_connection).read_turn(ScopedKey.whole(other.key))).blocks[1].start["content"]


@pytest.mark.rule("R35")
async def test_a_writer_that_finds_its_turn_purged_removes_the_event(
    own_connection: Connection, writer: Writer
) -> None:
    """The purge came before the chunks: no other process would remove them."""
    await writer.log.purge(writer.key)
    with pytest.raises(TurnUnknown):
        await writer.store(large_entry(writer.chain, fetched()))
    assert await chunks_of(own_connection, writer.key) == []


@pytest.mark.rule("R113")
async def test_a_large_event_of_a_turn_with_store_false_is_encrypted_and_erased(
    own_connection: Connection, own_log: TurnLog, key: TurnKey
) -> None:
    writer = Writer(own_log, key)
    await writer.store_request(store=False, encryption_key=entry_encryption.new_key())
    await writer.begin("Here it is.")
    raw = fetched()
    seq = await writer.store(large_entry(writer.chain, raw))
    leader = Leader(own_connection, BODIES)
    stored = [await leader.last(subject) for subject in await chunks_of(own_connection, key)]
    assert stored
    assert all(chunk is not None and entry_encryption.is_encrypted(chunk.data) for chunk in stored)
    other = TurnLog(own_connection)
    (last,) = await other.read_entries(ScopedKey.whole(key), Seq(seq - 1))
    assert isinstance(last.entry, Event)
    assert last.entry.event == raw
    await writer.end()
    assert (await other.erase(key)).is_gone
    await other.purge_events(key)
    assert await chunks_of(own_connection, key) == []


async def test_a_read_ends_after_many_bytes_of_large_events(
    own_connection: Connection, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of stubs could stand for gigabytes. Each page has at least one entry, so that every reader goes on."""
    monkeypatch.setattr(event_blobs, "PAGE_BYTES_MAX", 2 * len(fetched()) + 1000)
    for index in range(1, 6):
        await writer.store(large_entry(writer.chain, fetched(index=index)))
    log = TurnLog(own_connection)
    pages = [len(await log.read_entries(ScopedKey.whole(writer.key), Seq(0)))]
    assert pages[0] < 9
    turn = await log.read_turn(ScopedKey.whole(writer.key))
    assert len(turn.blocks) == 6
    assert all(block.start["content"] for block in turn.blocks[1:])


async def test_an_event_whose_chunks_have_expired_is_read_as_its_stub(
    own_connection: Connection, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator keeps blobs for a shorter time than entries. The rest of the turn can be read."""
    monkeypatch.setattr("tailrace.proto.nats.chunks.BEHIND_MAX_S", 0.1)
    await writer.store(large_entry(writer.chain, fetched()))
    await writer.store_events(events.BlockStop(1))
    await own_connection.jetstream.purge_stream(BODIES, subject=subjects.event_chunks(writer.key))
    turn = await TurnLog(own_connection).read_turn(ScopedKey.whole(writer.key))
    assert (turn.chain, turn.blocks[1].type) == (writer.chain, "web_fetch_tool_result")


def test_entries_that_are_not_large_do_not_change() -> None:
    """The field of the reference is left out, so two versions write the same bytes."""
    entry = turn_builder.text_delta(Chain(Seq(3), 1), "x")
    assert "blob" not in msgspec.json.decode(entries.encode(entry))
