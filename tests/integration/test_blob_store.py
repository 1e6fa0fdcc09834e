"""The blob store on a real server: put, renew, read, mark as deleted, purge; blobs belong to one tenant."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

import nats.js.errors
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto import subjects
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown, LogFull, LogUnavailable
from tailrace.proto.ids import Seq, Tenant, new_id
from tailrace.proto.nats import BlobStore, Connection, blobs, streams
from tailrace.proto.nats.blobs import CHUNK_BYTES
from tailrace.proto.subjects import BODIES
from tests.harness.until import until

# Two whole chunks and a part.
CONTENT = os.urandom(2 * CHUNK_BYTES + 1000)
BLOB = Blob(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
LIFTED = {BLOB.sha256: CONTENT}
LIFE_S = 5.0


@pytest.fixture
def store(connection: Connection) -> BlobStore:
    return BlobStore(connection)


@pytest_asyncio.fixture
async def short_lived(tmp_path: Path) -> AsyncIterator[Connection]:
    """A server where a blob lives for five seconds, and 4 MB of them at once."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "test")
        await streams.apply(connection, bytes_max=int(4_000_000 / streams.BODIES_SHARE), bodies_retention_s=LIFE_S)
        yield connection
        await connection.close()


async def mark_seq(connection: Connection, tenant: Tenant) -> int:
    """The sequence of the blob's mark: another one when it was stored again; 0 when it is not there."""
    try:
        return (await connection.jetstream.get_last_msg(BODIES, subjects.blob(tenant, BLOB.sha256))).seq or 0
    except nats.js.errors.NotFoundError:
        return 0


def names(tenant: Tenant) -> list[str]:
    """Of the blob's chunks, and then of its mark."""
    return [f"bodies.{tenant}.{BLOB.sha256}.{number}" for number in range(3)] + [f"bodies.{tenant}.{BLOB.sha256}"]


@pytest.mark.rule("R34")
async def test_a_blob_is_chunks_and_then_a_mark(store: BlobStore, connection: Connection, tenant: Tenant) -> None:
    """In that order, under these very names."""
    await store.put(tenant, LIFTED)
    stored = [await connection.jetstream.get_last_msg(BODIES, name) for name in names(tenant)]
    parts = [CONTENT[:CHUNK_BYTES], CONTENT[CHUNK_BYTES : 2 * CHUNK_BYTES], CONTENT[2 * CHUNK_BYTES :]]
    assert [message.data for message in stored] == [*parts, b'{"bytes":%d}' % len(CONTENT)]
    seqs = [message.seq for message in stored]
    assert seqs == sorted(seqs, key=lambda seq: seq or 0)
    info = await connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.>")
    assert info.state.subjects == dict.fromkeys(names(tenant), 1)


async def test_what_was_put_is_read(store: BlobStore, tenant: Tenant) -> None:
    """Byte for byte; and how large it is."""
    await store.put(tenant, LIFTED)
    assert await store.size(tenant, BLOB.sha256) == len(CONTENT)
    assert await store.read(tenant, BLOB) == CONTENT


async def test_a_blob_is_its_tenants_own(store: BlobStore, tenant: Tenant) -> None:
    """To another tenant it is not there, although its name is known."""
    await store.put(tenant, LIFTED)
    for call in (store.size(Tenant(new_id()), BLOB.sha256), store.read(Tenant(new_id()), BLOB)):
        with pytest.raises(BlobUnknown):
            await call


@pytest.mark.rule("R34")
async def test_a_blob_without_its_mark_is_not_there(store: BlobStore, connection: Connection, tenant: Tenant) -> None:
    """Its writer died before all of it was stored; the next one stores it."""
    await store.put(tenant, LIFTED)
    await connection.jetstream.purge_stream(BODIES, subject=subjects.blob(tenant, BLOB.sha256))
    for call in (store.size(tenant, BLOB.sha256), store.renew(tenant, [BLOB]), store.read(tenant, BLOB)):
        with pytest.raises(BlobUnknown):
            await call
    await store.put(tenant, LIFTED)
    assert await store.read(tenant, BLOB) == CONTENT


async def test_a_blob_of_another_length_is_another(store: BlobStore, tenant: Tenant) -> None:
    """What a reference says of it is what was made room for."""
    await store.put(tenant, LIFTED)
    with pytest.raises(BlobUnknown):
        await store.read(tenant, Blob(BLOB.sha256, BLOB.bytes + 1))


@pytest.mark.rule("R34")
async def test_a_blob_that_is_young_is_not_stored_again(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """The same picture in each turn costs one question, and no disk."""
    await store.put(tenant, LIFTED)
    before = await mark_seq(connection, tenant)
    await store.put(tenant, LIFTED)
    await store.renew(tenant, [BLOB])
    assert await mark_seq(connection, tenant) == before


@pytest.mark.rule("R34")
@pytest.mark.parametrize("is_sent", [True, False], ids=["sent again", "referred to"])
async def test_a_blob_past_half_its_life_is_stored_again(
    short_lived: Connection, tenant: Tenant, is_sent: bool
) -> None:
    """All of it, and not before: a conversation that goes on keeps its pictures."""
    store, begun = BlobStore(short_lived), asyncio.get_running_loop().time()
    await store.put(tenant, LIFTED)
    first = await mark_seq(short_lived, tenant)

    async def is_new() -> bool:
        await (store.put(tenant, LIFTED) if is_sent else store.renew(tenant, [BLOB]))
        return await mark_seq(short_lived, tenant) > first

    await until(is_new)
    assert asyncio.get_running_loop().time() - begun >= LIFE_S / 2
    stored = [await short_lived.jetstream.get_last_msg(BODIES, name) for name in names(tenant)]
    assert min(message.seq or 0 for message in stored) > first
    assert await store.read(tenant, BLOB) == CONTENT


async def test_a_blob_that_nobody_uses_expires(short_lived: Connection, tenant: Tenant) -> None:
    """Then it is not there any more; and sent again, it is."""
    store = BlobStore(short_lived)
    await store.put(tenant, LIFTED)
    config = (await short_lived.jetstream.stream_info(BODIES)).config
    await short_lived.jetstream.update_stream(config.evolve(max_age=0.2, duplicate_window=0.2))

    async def is_gone() -> bool:
        return await mark_seq(short_lived, tenant) == 0

    await until(is_gone)
    with pytest.raises(BlobUnknown):
        await store.read(tenant, BLOB)
    await short_lived.jetstream.update_stream(config)
    await store.put(tenant, LIFTED)
    assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
async def test_any_number_may_store_and_read_a_blob_at_once(nats_url: str, tenant: Tenant) -> None:
    """Each of them finds the whole of it, whoever is in the middle of storing it."""
    connections = [await Connection.open(nats_url, "test") for _ in range(4)]

    async def put_and_read(connection: Connection) -> bytes:
        store = BlobStore(connection)
        await store.put(tenant, LIFTED)
        return await store.read(tenant, BLOB)

    read = await asyncio.gather(*(put_and_read(connection) for connection in connections * 4))
    assert read == [CONTENT] * 16
    for connection in connections:
        await connection.close()


@pytest.mark.rule("R34")
async def test_a_chunk_that_one_read_does_not_find_is_read_again(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """A follower may be behind the mark that its leader has shown."""
    await store.put(tenant, LIFTED)
    await connection.jetstream.purge_stream(BODIES, subject=subjects.chunk(tenant, BLOB.sha256, 1))
    reading = asyncio.create_task(store.read(tenant, BLOB))
    done, _ = await asyncio.wait([reading], timeout=0.2)
    assert not done
    await connection.jetstream.publish(subjects.chunk(tenant, BLOB.sha256, 1), CONTENT[CHUNK_BYTES : 2 * CHUNK_BYTES])
    assert await reading == CONTENT


@pytest.mark.rule("R34")
async def test_a_blob_that_is_denied_once_is_there(
    store: BlobStore, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that has just woken up knows nothing of what came while it slept, and a turn would fail for it (R14)."""
    await store.put(tenant, LIFTED)
    last, denials = BlobStore._last, [None]

    async def asked(self: BlobStore, tenant: Tenant, sha256: str) -> blobs.Mark.Message | None:
        return denials.pop() if denials else await last(self, tenant, sha256)

    monkeypatch.setattr(BlobStore, "_last", asked)
    assert await store.read(tenant, BLOB) == CONTENT
    assert not denials


async def test_chunks_that_are_not_what_was_stored_are_no_blob(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """A disk that has changed a byte does not change a question."""
    await store.put(tenant, LIFTED)
    first, *rest = CONTENT[2 * CHUNK_BYTES :]
    await connection.jetstream.publish(subjects.chunk(tenant, BLOB.sha256, 2), bytes([first ^ 1, *rest]))
    with pytest.raises(LogUnavailable, match="do not have its hash"):
        await store.read(tenant, BLOB)


async def test_a_full_store_refuses_what_is_new_and_keeps_what_is_there(
    short_lived: Connection, tenant: Tenant
) -> None:
    """A 503 for the one, and nothing is thrown out for it; what is stored again needs no room."""
    store = BlobStore(short_lived)
    await store.put(tenant, LIFTED)
    other = os.urandom(4_000_000)
    with pytest.raises(LogFull, match="BODIES"):
        await store.put(tenant, {hashlib.sha256(other).hexdigest(): other})
    assert await store._store(tenant, BLOB.sha256, CONTENT, (await store._marked(tenant, BLOB.sha256)).seq)
    assert await store.read(tenant, BLOB) == CONTENT


async def test_a_store_that_is_away_is_said_so_in_bounded_time(
    own_server: NatsServer, own_connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once it is back, it is asked again."""
    monkeypatch.setattr(blobs, "TIMEOUT_S", 0.3)
    store = BlobStore(own_connection)
    await store.put(tenant, LIFTED)
    await own_server.stop(SIGKILL)
    calls = (store.put(tenant, LIFTED), store.renew(tenant, [BLOB]), store.read(tenant, BLOB))
    async with asyncio.timeout(len(calls) * 2 * blobs.TRY_TIMEOUT_S):
        for call in calls:
            with pytest.raises(LogUnavailable):
                await call
    await own_server.start()
    monkeypatch.undo()
    assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
async def test_what_is_condemned_is_read_until_it_is_purged(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """A turn that runs may need it; then all of it is gone, and whoever wants it hears so at once."""
    assert await store.mark_deleted(tenant, BLOB.sha256) is None
    await store.put(tenant, LIFTED)
    condemned = await store.mark_deleted(tenant, BLOB.sha256)
    assert condemned is not None
    assert await store.mark_deleted(tenant, BLOB.sha256) == condemned
    assert await store.read(tenant, BLOB) == CONTENT
    chunks = store.chunks(tenant, BLOB)
    await anext(chunks)
    await store.purge(tenant, BLOB.sha256, condemned)
    async with asyncio.timeout(blobs.TIMEOUT_S / 2):
        with pytest.raises(BlobUnknown):
            await anext(chunks)
    info = await connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.>")
    assert not info.state.subjects


@pytest.mark.rule("R34")
@pytest.mark.parametrize("is_sent", [True, False], ids=["sent again", "referred to"])
async def test_what_was_condemned_and_is_referred_to_is_stored_again(
    store: BlobStore, tenant: Tenant, is_sent: bool
) -> None:
    """The purge takes the life before, and nothing of this one, whenever it comes."""
    await store.put(tenant, LIFTED)
    condemned = await store.mark_deleted(tenant, BLOB.sha256)
    assert condemned is not None
    await (store.put(tenant, LIFTED) if is_sent else store.renew(tenant, [BLOB]))
    for _ in range(2):
        await store.purge(tenant, BLOB.sha256, condemned)
        assert await store.read(tenant, BLOB) == CONTENT


@pytest.mark.rule("R34")
async def test_who_is_overtaken_while_they_store_begin_again(
    store: BlobStore, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After their first chunk others store all of it, condemn it and purge it: their mark would be of nothing whole."""
    publish, due = BlobStore._publish, [1]

    async def overtaken(self: BlobStore, subject: str, *given: object) -> int:
        seq = await publish(self, subject, *given)  # type: ignore[arg-type]
        # Of a mark it is told what the one before it was.
        if due and len(given) == 1 and due.pop():
            await store.put(tenant, LIFTED)
            condemned = await store.mark_deleted(tenant, BLOB.sha256)
            assert condemned is not None
            await store.purge(tenant, BLOB.sha256, condemned)
        return seq

    monkeypatch.setattr(BlobStore, "_publish", overtaken)
    await store.put(tenant, LIFTED)
    assert await store.read(tenant, BLOB) == CONTENT


async def test_who_is_overtaken_again_and_again_gives_up(
    store: BlobStore, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others store and condemn the same blob as fast as this one can look: it is said, and not tried for ever."""

    async def refused(*_: object) -> None:
        return None

    monkeypatch.setattr(BlobStore, "_mark", refused)
    with pytest.raises(LogUnavailable, match="is being stored and deleted at the same time"):
        await store.put(tenant, LIFTED)


async def test_a_doomed_blob_whose_chunks_have_expired_is_gone(
    store: BlobStore, connection: Connection, tenant: Tenant
) -> None:
    """Its mark is younger than they are: who reads it is not kept waiting for what will not come."""
    await store.put(tenant, LIFTED)
    await store.mark_deleted(tenant, BLOB.sha256)
    await connection.jetstream.purge_stream(BODIES, subject=subjects.chunk(tenant, BLOB.sha256, 0))
    async with asyncio.timeout(blobs.TIMEOUT_S / 2):
        with pytest.raises(BlobUnknown):
            await store.read(tenant, BLOB)


async def test_a_store_that_is_full_to_the_byte_can_be_emptied(short_lived: Connection, tenant: Tenant) -> None:
    """The sign that a blob is doomed is a little longer than what it takes the place of."""
    store = BlobStore(short_lived)
    await store.put(tenant, LIFTED)
    for size in (100_000, 1_000, 10, 1):
        with suppress(nats.js.errors.APIError):
            for number in range(100):
                await short_lived.jetstream.publish(subjects.chunk(Tenant("other"), f"x{size}", number), b"x" * size)
    with pytest.raises(LogFull):
        await store._mark(
            tenant, BLOB.sha256, blobs.Size(BLOB.bytes, is_doomed=True), Seq(await mark_seq(short_lived, tenant))
        )
    condemned = await store.mark_deleted(tenant, BLOB.sha256)
    assert condemned is not None
    await store.purge(tenant, BLOB.sha256, condemned)
    assert await mark_seq(short_lived, tenant) == 0
