"""The blob store on a real nats-server: put, renew, read, mark as deleted, purge, expiry and concurrent writers."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import nats.js.errors
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.proto import subjects
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown, LogFull, LogUnavailable
from tailrace.proto.ids import Seq, Tenant, new_id
from tailrace.proto.nats import BlobStore, Connection, chunks, stream_configs
from tailrace.proto.nats.chunks import CHUNK_BYTES
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.stream_leader import Leader, StoredMessage
from tailrace.proto.subjects import BODIES
from tests.harness.until import until

# Two whole chunks and a part.
CONTENT = os.urandom(2 * CHUNK_BYTES + 1000)
PARTS = [CONTENT[at : at + CHUNK_BYTES] for at in range(0, len(CONTENT), CHUNK_BYTES)]
BLOB = Blob(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
CONTENTS = {BLOB.sha256: CONTENT}
LIFE_S = 4.0

both_ways = pytest.mark.parametrize("is_sent", [True, False], ids=["sent again", "referred to"])


@pytest.fixture
async def store(connection: Connection, tenant: Tenant) -> BlobStore:
    """A store that holds the blob."""
    store = BlobStore(connection)
    await store.put(tenant, CONTENTS)
    return store


@pytest.fixture
async def short_lived_bucket(tmp_path: Path) -> AsyncIterator[Connection]:
    """A server where a blob lives for `LIFE_S`, and that holds 4 MB of blobs."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "test")
        await setup.apply(connection, bytes_max=int(4_000_000 / stream_configs.BODIES_SHARE), bodies_retention_s=LIFE_S)
        yield connection
        await connection.close()


@pytest.fixture
async def short_lived_store(short_lived_bucket: Connection, tenant: Tenant) -> BlobStore:
    store = BlobStore(short_lived_bucket)
    await store.put(tenant, CONTENTS)
    return store


async def mark_seq(connection: Connection, tenant: Tenant) -> int:
    """Returns the sequence of the blob's mark, or 0; a blob that is stored again has another one."""
    try:
        return (await connection.jetstream.get_last_msg(BODIES, subjects.blob(tenant, BLOB.sha256))).seq or 0
    except nats.js.errors.NotFoundError:
        return 0


async def subjects_of(connection: Connection, tenant: Tenant) -> dict[str, int]:
    info = await connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.>")
    return info.state.subjects or {}


async def mark_deleted(store: BlobStore, tenant: Tenant) -> Seq:
    marked = await store.mark_deleted(tenant, BLOB.sha256)
    assert marked is not None
    return marked


@pytest.mark.rule("R34")
async def test_a_blob_is_stored_as_chunks_and_then_a_mark(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    names = [*(f"bodies.{tenant}.{BLOB.sha256}.{number}" for number in range(3)), f"bodies.{tenant}.{BLOB.sha256}"]
    stored = [await connection.jetstream.get_last_msg(BODIES, name) for name in names]
    assert [message.data for message in stored] == [*PARTS, b'{"bytes":%d}' % len(CONTENT)]
    seqs = [message.seq or 0 for message in stored]
    assert seqs == sorted(seqs)
    assert await subjects_of(connection, tenant) == dict.fromkeys(names, 1)


@pytest.mark.rule("R34")
async def test_a_young_blob_is_not_stored_again(store: BlobStore, connection: Connection, tenant: Tenant) -> None:
    before = await mark_seq(connection, tenant)
    await store.put(tenant, CONTENTS)
    await store.renew(tenant, [BLOB])
    assert await mark_seq(connection, tenant) == before


@pytest.mark.rule("R34")
@both_ways
async def test_a_blob_past_half_its_life_is_stored_again(
    short_lived_bucket: Connection, tenant: Tenant, is_sent: bool
) -> None:
    store, now = BlobStore(short_lived_bucket), asyncio.get_running_loop().time
    began = now()
    await store.put(tenant, CONTENTS)
    first = await mark_seq(short_lived_bucket, tenant)

    async def is_new() -> bool:
        await (store.put(tenant, CONTENTS) if is_sent else store.renew(tenant, [BLOB]))
        return await mark_seq(short_lived_bucket, tenant) > first

    await until(is_new)
    assert now() - began >= LIFE_S / 2
    for name in await subjects_of(short_lived_bucket, tenant):
        assert ((await short_lived_bucket.jetstream.get_last_msg(BODIES, name)).seq or 0) > first
    assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
async def test_concurrent_writers_of_one_blob_all_read_it_whole(nats_url: str, tenant: Tenant) -> None:
    connections = [await Connection.open(nats_url, "test") for _ in range(4)]

    async def put_and_read(connection: Connection) -> bytes:
        store = BlobStore(connection)
        await store.put(tenant, CONTENTS)
        return await store.read(tenant, BLOB)

    assert await asyncio.gather(*map(put_and_read, connections * 4)) == [CONTENT] * 16
    for connection in connections:
        await connection.close()


@pytest.mark.rule("R34")
async def test_a_missing_chunk_is_read_again(store: BlobStore, connection: Connection, tenant: Tenant) -> None:
    """A follower may be behind the leader that has shown the mark."""
    chunk = subjects.chunk(tenant, BLOB.sha256, 1)
    await connection.jetstream.purge_stream(BODIES, subject=chunk)
    reading = asyncio.create_task(store.read(tenant, BLOB))
    done, _ = await asyncio.wait([reading], timeout=0.2)
    assert not done
    await connection.jetstream.publish(chunk, PARTS[1])
    assert await reading == CONTENT


@pytest.mark.rule("R34")
async def test_a_blob_that_one_answer_denies_is_looked_up_again(
    store: BlobStore, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that was frozen does not know what was stored meanwhile (R14)."""
    last, denials = Leader.last, [None]

    async def deny_once(self: Leader, subject: str) -> StoredMessage | None:
        return denials.pop() if denials else await last(self, subject)

    monkeypatch.setattr(Leader, "last", deny_once)
    assert await store.read(tenant, BLOB) == CONTENT
    assert not denials


async def test_a_changed_chunk_is_refused(store: BlobStore, connection: Connection, tenant: Tenant) -> None:
    first, *rest = PARTS[2]
    await connection.jetstream.publish(subjects.chunk(tenant, BLOB.sha256, 2), bytes([first ^ 1, *rest]))
    with pytest.raises(LogUnavailable, match="do not have its hash"):
        await store.read(tenant, BLOB)


async def test_a_full_store_refuses_a_new_blob_and_can_be_emptied(
    short_lived_bucket: Connection, short_lived_store: BlobStore, tenant: Tenant
) -> None:
    """Existing blobs stay; marking one as deleted must fit although its mark becomes longer."""
    other = os.urandom(4_000_000)
    with pytest.raises(LogFull, match="BODIES"):
        await short_lived_store.put(tenant, {hashlib.sha256(other).hexdigest(): other})
    assert await short_lived_store.read(tenant, BLOB) == CONTENT
    # Full to the byte.
    for size in (100_000, 1_000, 10, 1):
        with suppress(nats.js.errors.APIError):
            for number in range(100):
                await short_lived_bucket.jetstream.publish(
                    subjects.chunk(Tenant("other"), f"x{size}", number), b"x" * size
                )
    await short_lived_store.purge(tenant, BLOB.sha256, await mark_deleted(short_lived_store, tenant))
    assert await mark_seq(short_lived_bucket, tenant) == 0


async def test_an_unreachable_store_fails_in_bounded_time_and_recovers(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(own_connection)
    await store.put(tenant, CONTENTS)
    monkeypatch.setattr(chunks, "TIMEOUT_S", 0.3)
    await own_server.stop(SIGKILL)
    calls = (store.put(tenant, CONTENTS), store.renew(tenant, [BLOB]), store.read(tenant, BLOB))
    async with asyncio.timeout(len(calls) * 2 * chunks.TRY_TIMEOUT_S):
        for call in calls:
            with pytest.raises(LogUnavailable):
                await call
    await own_server.start()
    monkeypatch.undo()
    assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
async def test_a_blob_that_is_marked_as_deleted_is_readable_until_it_is_purged(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """A running turn may need it. After the purge a reader fails at once."""
    assert await store.mark_deleted(Tenant(new_id()), BLOB.sha256) is None
    marked = await mark_deleted(store, tenant)
    assert await store.mark_deleted(tenant, BLOB.sha256) == marked
    assert await store.read(tenant, BLOB) == CONTENT
    reading = store.chunks(tenant, BLOB)
    await anext(reading)
    await store.purge(tenant, BLOB.sha256, marked)
    async with asyncio.timeout(chunks.TIMEOUT_S / 2):
        with pytest.raises(BlobUnknown):
            await anext(reading)
    assert not await subjects_of(connection, tenant)


@pytest.mark.rule("R34")
async def test_a_purged_blob_does_not_exist_after_the_server_was_killed(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant
) -> None:
    """The server restores the last message that the mark has replaced. The content can be stored again."""
    store = BlobStore(own_connection)
    for _ in range(2):
        await store.put(tenant, CONTENTS, is_renewed=True)
    # The server forgets the messages of an empty stream at once.
    await store.put(Tenant("other"), CONTENTS)
    await store.purge(tenant, BLOB.sha256, await mark_deleted(store, tenant))
    assert not await subjects_of(own_connection, tenant)
    await own_server.stop(SIGKILL)
    await own_server.start()
    with pytest.raises(BlobUnknown):
        await store.read(tenant, BLOB)
    await store.put(tenant, CONTENTS)
    assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
@both_ways
async def test_a_blob_used_after_its_mark_of_deletion_survives_the_purge(
    store: BlobStore, tenant: Tenant, is_sent: bool
) -> None:
    marked = await mark_deleted(store, tenant)
    await (store.put(tenant, CONTENTS) if is_sent else store.renew(tenant, [BLOB]))
    for _ in range(2):
        await store.purge(tenant, BLOB.sha256, marked)
        assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
async def test_a_writer_whose_chunks_are_purged_meanwhile_stores_them_again(
    connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its first chunk another writer stores the blob, marks it as deleted and purges it."""
    store, request, is_due = BlobStore(connection), connection.request, [True]
    first_chunk = subjects.chunk(tenant, BLOB.sha256, 0)

    async def request_before_purge(subject: str, *given: Any, **named: Any) -> Message:
        reply = await request(subject, *given, **named)
        if subject == first_chunk and is_due and is_due.pop():
            await store.put(tenant, CONTENTS)
            await store.purge(tenant, BLOB.sha256, await mark_deleted(store, tenant))
        return reply

    monkeypatch.setattr(connection, "request", request_before_purge)
    await store.put(tenant, CONTENTS)
    assert await store.read(tenant, BLOB) == CONTENT
    assert not is_due


async def test_a_writer_that_never_stores_its_mark_gives_up(
    connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        return None

    monkeypatch.setattr(BlobStore, "_store_mark", refuse)
    with pytest.raises(LogUnavailable, match="is being stored and deleted at the same time"):
        await BlobStore(connection).put(tenant, CONTENTS)


async def test_a_deleted_blob_whose_chunks_have_expired_is_unknown_at_once(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """Its mark is younger than its chunks."""
    await store.mark_deleted(tenant, BLOB.sha256)
    await connection.jetstream.purge_stream(BODIES, subject=subjects.chunk(tenant, BLOB.sha256, 0))
    async with asyncio.timeout(chunks.TIMEOUT_S / 2):
        with pytest.raises(BlobUnknown):
            await store.read(tenant, BLOB)
