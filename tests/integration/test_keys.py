"""API keys in the KV bucket KEYS of a real nats-server, and the cache that gateways keep of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from signal import SIGKILL

import msgspec
import pytest
from nats.js.api import KeyValueConfig
from starlette.requests import Request

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.api_key import SCOPES, NewKey, new_key
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.nats.api_keys import ApiKeyStore, KeyPosition
from tailrace.proto.subjects import EVERY_KEY, EVERY_LIVE_KEY, KEYS, KEYS_STREAM
from tests.conftest import apply_streams
from tests.harness.until import until
from tests.harness.without_jetstream import without_jetstream

ASKING = Request({"type": "http", "method": "GET", "headers": []})
ALICE = Tenant("alice")


def a_key(tenant: Tenant = ALICE) -> NewKey:
    return new_key(tenant, now=int(time.time()), scopes=SCOPES)


@pytest.fixture
def keys(own_connection: Connection) -> ApiKeyStore:
    return ApiKeyStore(own_connection)


@asynccontextmanager
async def kept_up(ring: ApiKeyCache, keys: ApiKeyStore, connection: Connection) -> AsyncIterator[ApiKeyCache]:
    keeping = asyncio.create_task(ring.follow(keys, connection))
    try:
        yield ring
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


@pytest.fixture
async def ring(keys: ApiKeyStore, own_connection: Connection) -> AsyncIterator[ApiKeyCache]:
    """A ring that keeps up, as in a gateway."""
    ring = ApiKeyCache()
    await ring.load(keys)
    async with kept_up(ring, keys, own_connection):
        yield ring


async def found(ring: ApiKeyCache, key: NewKey) -> Principal | None:
    return await ring.verify(key.secret.encode(), ASKING)


@pytest.mark.rule("S13")
@pytest.mark.rule("R38")
async def test_a_stored_record_does_not_contain_the_key(keys: ApiKeyStore, own_connection: Connection) -> None:
    """Its SHA-256 and who it is for, under an id that is no part of it: no bytes of the secret anywhere."""
    key = a_key()
    await keys.create(key.record)
    stored = await own_connection.jetstream.get_last_msg(KEYS_STREAM, f"$KV.{KEYS}.{key.record.id}")
    assert stored.data is not None
    assert msgspec.json.decode(stored.data) == {
        "id": key.record.id,
        "sha256": key.record.sha256,
        "tenant": "alice",
        "scopes": ["manage", "read", "write"],
        "created_at": key.record.created_at,
    }
    assert key.secret not in repr(key.record)
    assert key.secret.startswith("tr_")
    assert len(key.secret) == 46  # 256 bits in base64


async def test_new_keys_differ() -> None:
    """Neither their secrets nor their ids."""
    made = [a_key() for _ in range(100)]
    assert len({key.secret for key in made}) == len({key.record.id for key in made}) == 100


@pytest.mark.rule("R38")
async def test_load_reads_all_keys(keys: ApiKeyStore, own_connection: Connection) -> None:
    """Also when they fill several pages of a read; and a revoked one is known as such."""
    made = [a_key(Tenant(f"tenant-{number}")) for number in range(600)]
    await asyncio.gather(*(keys.create(key.record) for key in made))
    await keys.revoke(made[7].record.id, 1)
    ring = ApiKeyCache()
    await ring.load(keys)
    callers = [await found(ring, key) for key in made]
    assert [caller.tenant if caller else None for caller in callers] == [
        None if number == 7 else f"tenant-{number}" for number in range(600)
    ]
    assert ring.is_ended(made[7].record.id)


@pytest.mark.rule("R38")
async def test_a_new_key_and_its_revocation_arrive_by_the_live_feed(ring: ApiKeyCache, keys: ApiKeyStore) -> None:
    """What its record says is the caller's; whoever watches it is told once it is revoked."""
    key = new_key(ALICE, now=5, scopes={"read"}, limits={"requests_per_minute": 3.0})
    assert await found(ring, key) is None
    await keys.create(key.record)
    await until(lambda: found(ring, key))
    assert await found(ring, key) == Principal(
        ALICE, key.record.id, frozenset({"read"}), limits={"requests_per_minute": 3.0}
    )
    with ring.watch(key.record.id) as gone:
        assert not gone.is_set()
        assert not ring.is_ended(key.record.id)
        await keys.revoke(key.record.id, 9)
        await asyncio.wait_for(gone.wait(), 5)
    assert ring.is_ended(key.record.id)
    assert await found(ring, key) is None
    with ring.watch(key.record.id) as gone:
        assert gone.is_set()


@pytest.mark.rule("R38")
async def test_polling_finds_what_the_live_feed_missed(own_connection: Connection, keys: ApiKeyStore) -> None:
    """A ring that hears nothing, as of a bucket that republishes nothing, is a second behind and no more."""
    await own_connection.jetstream.delete_key_value(KEYS)
    await own_connection.jetstream.create_key_value(KeyValueConfig(bucket=KEYS, direct=True))
    ring, key = ApiKeyCache(), a_key()
    await ring.load(keys)
    async with kept_up(ring, keys, own_connection):
        await keys.create(key.record)
        await until(lambda: found(ring, key))
        await keys.revoke(key.record.id, 1)
        await until(lambda: ring.is_ended(key.record.id))


@pytest.mark.rule("R38")
async def test_known_keys_stay_valid_without_nats_and_are_reloaded_after_a_reconnect(
    own_server: NatsServer, ring: ApiKeyCache, keys: ApiKeyStore
) -> None:
    """A broker that falls over locks nobody out; what happened meanwhile is heard of when it is back."""
    key, other = a_key(), a_key()
    await keys.create(key.record)
    await until(lambda: found(ring, key))
    await own_server.stop(SIGKILL)
    with pytest.raises(LogUnavailable):
        await keys.position()
    assert await found(ring, key) is not None
    await own_server.start()
    elsewhere = await Connection.open(own_server.url, "test-elsewhere")
    try:
        await ApiKeyStore(elsewhere).create(other.record)
        await ApiKeyStore(elsewhere).revoke(key.record.id, 1)
    finally:
        await elsewhere.close()
    await until(lambda: found(ring, other))
    await until(lambda: ring.is_ended(key.record.id))


@pytest.mark.rule("R38")
async def test_keys_of_a_deleted_bucket_are_dropped(
    own_server: NatsServer, ring: ApiKeyCache, keys: ApiKeyStore, own_connection: Connection
) -> None:
    """Made anew, its numbers begin at 1 again: a ring that went by them alone would believe the old ones for ever."""
    old, young = a_key(), a_key()
    await keys.create(a_key().record)
    await keys.create(old.record)
    await until(lambda: found(ring, old))
    with ring.watch(old.record.id) as gone:
        await own_connection.jetstream.delete_key_value(KEYS)
        await apply_streams(own_server.url)
        await ApiKeyStore(own_connection).create(young.record)
        await asyncio.wait_for(gone.wait(), 5)
    await until(lambda: found(ring, young))
    assert await found(ring, old) is None
    assert ring.is_used


@pytest.mark.rule("R38")
async def test_a_deleted_record_is_no_longer_a_key(
    ring: ApiKeyCache, keys: ApiKeyStore, own_connection: Connection
) -> None:
    """`nats kv del KEYS …`: whoever holds the broker may do so."""
    key = a_key()
    await keys.create(key.record)
    await until(lambda: found(ring, key))
    bucket = await own_connection.jetstream.key_value(KEYS)
    await bucket.delete(key.record.id)
    await until(lambda: ring.is_ended(key.record.id))
    assert await found(ring, key) is None


@pytest.mark.parametrize("payload", [b"", b"null", b"{}", b"\xff", b'{"id": "key_0123456789abcdef"}', b"[" * 20_000])
async def test_an_unreadable_record_is_not_a_key(keys: ApiKeyStore, own_connection: Connection, payload: bytes) -> None:
    """Nor does it keep the others from being read; nor does one under another's name."""
    key, moved = a_key(), a_key()
    bucket = await own_connection.jetstream.key_value(KEYS)
    await bucket.put("key_0123456789abcdef", payload)
    await bucket.put("key_0000000000000000", msgspec.json.encode(moved.record))
    await keys.create(key.record)
    ring = ApiKeyCache()
    await ring.load(keys)
    assert await found(ring, key) is not None
    assert await found(ring, moved) is None


async def test_an_unknown_scope_is_not_granted(keys: ApiKeyStore) -> None:
    """And those that it knows are."""
    key = a_key()
    await keys.create(msgspec.structs.replace(key.record, scopes=["read", "fly"]))
    ring = ApiKeyCache()
    await ring.load(keys)
    caller = await found(ring, key)
    assert caller is not None
    assert caller.scopes == {"read"}


async def test_the_old_scope_name_ask_in_a_stored_record_grants_write(keys: ApiKeyStore) -> None:
    key = a_key()
    await keys.create(msgspec.structs.replace(key.record, scopes=["ask"]))
    ring = ApiKeyCache()
    await ring.load(keys)
    caller = await found(ring, key)
    assert caller is not None
    assert caller.scopes == {"write"}


async def test_concurrent_revocations_store_one_time(keys: ApiKeyStore, own_connection: Connection) -> None:
    """By any number at once: the time of the first stands. What is no key's id revokes nothing."""
    key = a_key()
    await keys.create(key.record)
    revoked = await asyncio.gather(*(keys.revoke(key.record.id, now) for now in range(1, 6)))
    times = {one[0].revoked_at for one in revoked if one is not None}
    assert len(times) == 1
    assert sorted(was_before for _, was_before in filter(None, revoked)) == [False, True, True, True, True]
    assert [record.revoked_at for record in await keys.list_keys()] == [*times]
    bucket = await own_connection.jetstream.key_value(KEYS)
    await bucket.put("key_0123456789abcdef", b"no record")
    for unknown in ("key_ffffffffffffffff", "key_0123456789abcdef", "", "*", ">", "a b", key.secret):
        assert await keys.revoke(unknown, 9) is None


async def test_the_bucket_has_republish_and_direct_reads(own_connection: Connection) -> None:
    """Without either a revocation would take a second, or not be read at all."""
    config = (await own_connection.jetstream.stream_info(KEYS_STREAM)).config
    assert config.allow_direct
    assert config.republish is not None
    assert (config.republish.src, config.republish.dest) == (EVERY_KEY, EVERY_LIVE_KEY)
    assert config.max_age == 0


async def test_failed_polls_keep_the_polling_interval(
    own_server: NatsServer,
    own_connection: Connection,
    keys: ApiKeyStore,
    ring: ApiKeyCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Back without its log, and away again: what fails at once and is asked again at once lets nothing else run."""
    place, failed = ApiKeyStore.position, 0

    async def counted(asked: ApiKeyStore) -> KeyPosition:
        nonlocal failed
        try:
            return await place(asked)
        except LogUnavailable:
            failed += 1
            assert failed < 50
            raise

    monkeypatch.setattr(ApiKeyStore, "position", counted)
    async with without_jetstream(own_server):
        await until(lambda: failed > 0)
    since = failed
    await until(lambda: failed > since)
    await own_server.start()
    await until(lambda: own_connection.is_up)
    key = a_key()
    await keys.create(key.record)

    async def is_known() -> bool:
        return await found(ring, key) is not None

    await until(is_known)
