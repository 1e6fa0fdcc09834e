"""API keys in the KV bucket KEYS of a real nats-server, and the cache of a gateway that follows it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from signal import SIGKILL

import msgspec
import pytest
from nats.js.api import KeyValueConfig
from starlette.requests import Request
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.gateway.auth.api_key_store import KeyPosition, RecordChange
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.limits import Unreadable
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.subjects import EVERY_KEY, EVERY_LIVE_KEY, KEYS, KEYS_STREAM, limits_of_tenant
from tests.conftest import apply_streams
from tests.harness.until import until
from tests.harness.without_jetstream import without_jetstream

REQUEST = Request({"type": "http", "method": "GET", "headers": []})
ALICE = Tenant("alice")


def make_key(tenant: Tenant = ALICE) -> NewKey:
    return new_key(tenant, now=int(time.time()), scopes=SCOPES)


@pytest.fixture
def keys(own_connection: Connection) -> KeyStore:
    return KeyStore(own_connection)


async def load_cache(keys: KeyStore) -> ApiKeyCache:
    """Returns a cache of the keys that does not follow changes."""
    cache = ApiKeyCache()
    await cache.load(keys)
    return cache


@asynccontextmanager
async def followed_cache(cache: ApiKeyCache, keys: KeyStore, connection: Connection) -> AsyncIterator[ApiKeyCache]:
    task = asyncio.create_task(cache.follow(keys, connection))
    try:
        yield cache
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def cache(keys: KeyStore, own_connection: Connection) -> AsyncIterator[ApiKeyCache]:
    """A cache that follows changes, as in a gateway."""
    async with followed_cache(await load_cache(keys), keys, own_connection) as cache:
        yield cache


async def verify(cache: ApiKeyCache, key: NewKey) -> Principal | None:
    return await cache.verify(key.secret.encode(), REQUEST)


async def create(cache: ApiKeyCache, keys: KeyStore) -> NewKey:
    """Creates a key and waits until the cache has it."""
    key = make_key()
    await keys.create(key.record)
    await until(lambda: verify(cache, key))
    return key


@pytest.mark.rule("S13")
@pytest.mark.rule("R38")
async def test_a_stored_record_does_not_contain_the_secret(keys: KeyStore, own_connection: Connection) -> None:
    key = make_key()
    await keys.create(key.record)
    stored = await own_connection.jetstream.get_last_msg(KEYS_STREAM, f"$KV.{KEYS}.{key.record.id}")
    assert msgspec.json.decode(stored.data or b"") == {
        "id": key.record.id,
        "sha256": key.record.sha256,
        "tenant": "alice",
        "scopes": ["admin", "manage", "operate", "read", "write"],
        "created_at": key.record.created_at,
    }
    assert key.secret not in repr(key.record)
    # 256 bits in base64.
    assert (key.secret[:3], len(key.secret)) == ("tr_", 46)
    made = [make_key() for _ in range(100)]
    assert len({key.secret for key in made}) == len({key.record.id for key in made}) == 100


@pytest.mark.rule("R38")
async def test_a_watched_key_ends_at_the_expiry_that_a_rotation_has_set(cache: ApiKeyCache, keys: KeyStore) -> None:
    key = await create(cache, keys)
    ended = cache.watch(key.record.id)
    assert await keys.replace(key.record.id, "key_0000000000000000", int(time.time()), 1)
    await asyncio.wait_for(ended.wait(), 5)


@pytest.mark.rule("R38")
async def test_load_reads_several_pages_of_keys_and_revocations(keys: KeyStore) -> None:
    made = [make_key(Tenant(f"tenant-{number}")) for number in range(600)]
    await asyncio.gather(*(keys.create(key.record) for key in made))
    await keys.revoke(made[7].record.id, 1)
    cache = await load_cache(keys)
    for number, key in enumerate(made):
        principal = await verify(cache, key)
        assert (principal.access.tenant if principal else None) == (None if number == 7 else f"tenant-{number}")
    assert cache.is_ended(made[7].record.id)


@pytest.mark.rule("R38")
async def test_polling_finds_what_the_live_feed_missed(own_connection: Connection, keys: KeyStore) -> None:
    """The bucket republishes nothing here."""
    await own_connection.jetstream.delete_key_value(KEYS)
    await own_connection.jetstream.create_key_value(KeyValueConfig(bucket=KEYS, direct=True))
    async with followed_cache(await load_cache(keys), keys, own_connection) as cache:
        key = await create(cache, keys)
        await keys.revoke(key.record.id, 1)
        await until(lambda: cache.is_ended(key.record.id))


@pytest.mark.rule("R38")
async def test_keys_stay_valid_without_nats_and_changes_arrive_after_a_reconnect(
    own_server: NatsServer, cache: ApiKeyCache, keys: KeyStore
) -> None:
    key, other = await create(cache, keys), make_key()
    await own_server.stop(SIGKILL)
    with pytest.raises(LogUnavailable):
        await keys.position()
    assert await verify(cache, key) is not None
    await own_server.start()
    connection = await Connection.open(own_server.url, "test-other")
    await KeyStore(connection).create(other.record)
    await KeyStore(connection).revoke(key.record.id, 1)
    await connection.close()
    await until(lambda: verify(cache, other))
    await until(lambda: cache.is_ended(key.record.id))


@pytest.mark.rule("R38")
async def test_a_revoked_key_stays_revoked_if_a_server_that_lags_behind_is_read_after_a_reconnect(
    keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That server has as many records as the leader, and the key's record from before its revocation."""
    key = make_key()
    await keys.create(key.record)
    _, before = await keys.snapshot()
    await keys.revoke(key.record.id, 1)
    cache = await load_cache(keys)

    async def read_late(_: Seq) -> list[RecordChange]:
        return before

    monkeypatch.setattr(keys, "changes_after", read_late)
    await cache.load(keys)
    assert await verify(cache, key) is None


@pytest.mark.rule("R38")
async def test_keys_of_a_deleted_bucket_or_record_end(
    own_server: NatsServer, cache: ApiKeyCache, keys: KeyStore, own_connection: Connection
) -> None:
    """The sequences of a new bucket begin at 1 again."""
    first, old = await create(cache, keys), await create(cache, keys)
    bucket = await own_connection.jetstream.key_value(KEYS)
    await bucket.delete(first.record.id)
    await until(lambda: cache.is_ended(first.record.id))
    assert await verify(cache, first) is None
    ended = cache.watch(old.record.id)
    await own_connection.jetstream.delete_key_value(KEYS)
    await apply_streams(own_server.url)
    young = await create(cache, keys)
    await asyncio.wait_for(ended.wait(), 5)
    assert await verify(cache, old) is None
    assert await verify(cache, young) is not None
    assert cache.is_used


@pytest.mark.rule("R145")
@pytest.mark.rule("R108")
async def test_settings_of_tenants_stay_in_force_when_the_bucket_is_lost(
    own_server: NatsServer, cache: ApiKeyCache, keys: KeyStore, own_connection: Connection
) -> None:
    """Until they are set anew: without them, users would see and spend more."""
    old = [await create(cache, keys) for _ in range(4)]
    await keys.set_limits(ALICE, {"requests": 1})
    await keys.set_users(ALICE, "private")
    await until(lambda: (cache.limits.get(ALICE), cache.users_of(ALICE)) == ({"requests": 1}, "private"))
    await own_connection.jetstream.delete_key_value(KEYS)
    await apply_streams(own_server.url)
    await until(lambda: cache.is_ended(old[0].record.id))
    assert (cache.limits.get(ALICE), cache.users_of(ALICE)) == ({"requests": 1}, "private")
    await keys.set_limits(ALICE, {"requests": 2})
    await keys.set_users(ALICE, "shared")
    await until(lambda: (cache.limits.get(ALICE), cache.users_of(ALICE)) == ({"requests": 2}, "shared"))


@pytest.mark.rule("R108")
@pytest.mark.parametrize(
    "data", [b"no limits", b"[]", b'{"requests": "many"}', b'{"usd_day": -1}', b'{"running": 5000}']
)
async def test_limits_that_cannot_be_read_do_not_become_no_limits(
    cache: ApiKeyCache, keys: KeyStore, own_connection: Connection, data: bytes
) -> None:
    """The earlier limits stay. A cache that has read no earlier ones says so."""
    bucket = await own_connection.jetstream.key_value(KEYS)
    await keys.set_limits(ALICE, {"requests": 1, "from_a_newer_version": 1})
    await until(lambda: ALICE in cache.limits)
    await bucket.put(limits_of_tenant(ALICE), data)
    await create(cache, keys)
    assert cache.limits[ALICE] == {"requests": 1, "from_a_newer_version": 1}
    assert (await load_cache(keys)).limits == {ALICE: Unreadable.LIMITS}
    # As `tailrace limits` does after it was shown none.
    assert await keys.set_limits(ALICE, {}, expected={})
    assert (await load_cache(keys)).limits == {ALICE: {}}


@pytest.mark.rule("R38")
@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_key_that_was_deleted_or_cannot_be_read_closes_the_gateway(
    keys: KeyStore, own_connection: Connection, is_deleted: bool
) -> None:
    """The bucket has had a key."""
    await keys.set_limits(ALICE, {"requests": 1})
    assert not (await load_cache(keys)).is_used
    key, bucket = make_key(), await own_connection.jetstream.key_value(KEYS)
    await keys.create(key.record)
    await (bucket.delete(key.record.id) if is_deleted else bucket.put(key.record.id, b"{}"))
    cache = await load_cache(keys)
    assert (cache.is_used, await verify(cache, key)) == (True, None)


async def test_unreadable_records_are_ignored_and_each_is_logged_once(
    keys: KeyStore, own_connection: Connection
) -> None:
    """Also a record that is stored under the id of another key, and limits of a tenant."""
    bucket = await own_connection.jetstream.key_value(KEYS)
    payloads = (b"", b"null", b"{}", b"\xff", b'{"id": "key_0123456789abcdef"}', b"[" * 20_000)
    for number, payload in enumerate(payloads):
        await bucket.put(f"key_{number:016x}", payload)
    key, moved = make_key(), make_key()
    await bucket.put("key_00000000000000ff", msgspec.json.encode(moved.record))
    await bucket.put(limits_of_tenant(ALICE), b"no limits")
    await keys.create(key.record)
    assert await keys.announce_revocation(key.record.id, lambda _: True)
    with capture_logs() as logged:
        cache = await load_cache(keys)
        await cache.load(keys)
    assert await verify(cache, key) is not None
    assert await verify(cache, moved) is None
    # A deletion has no payload either.
    names = [*(f"key_{number:016x}" for number in (1, 2, 3, 4, 5, 255)), limits_of_tenant(ALICE)]
    assert [line["entry"] for line in logged] == names


async def test_unknown_scopes_are_ignored(keys: KeyStore) -> None:
    key = make_key()
    await keys.create(msgspec.structs.replace(key.record, scopes=["read", "fly"]))
    principal = await verify(await load_cache(keys), key)
    assert principal is not None
    assert principal.scopes == {"read"}


async def test_concurrent_revocations_store_one_time(keys: KeyStore, own_connection: Connection) -> None:
    key = make_key()
    await keys.create(key.record)
    revoked = await asyncio.gather(*(keys.revoke(key.record.id, now) for now in range(1, 6)))
    times = {one[0].revoked_at for one in revoked if one is not None}
    assert len(times) == 1
    assert sorted(was_before for _, was_before in filter(None, revoked)) == [False, True, True, True, True]
    assert [record.revoked_at for record in await keys.list_keys()] == [*times]
    await (await own_connection.jetstream.key_value(KEYS)).put("key_0123456789abcdef", b"no record")
    for unknown in ("key_ffffffffffffffff", "key_0123456789abcdef", "", "*", ">", "a b", key.secret):
        assert await keys.revoke(unknown, 9) is None


async def test_the_bucket_republishes_and_allows_direct_reads(own_connection: Connection) -> None:
    config = (await own_connection.jetstream.stream_info(KEYS_STREAM)).config
    assert config.republish is not None
    assert (config.republish.src, config.republish.dest) == (EVERY_KEY, EVERY_LIVE_KEY)
    assert (config.allow_direct, config.max_age) == (True, 0)


async def test_failed_polls_keep_the_polling_interval(
    own_server: NatsServer,
    own_connection: Connection,
    keys: KeyStore,
    cache: ApiKeyCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A poll that fails at once and is repeated at once would starve the loop."""
    position, failed = KeyStore.position, 0

    async def count_reads(store: KeyStore) -> KeyPosition:
        nonlocal failed
        try:
            return await position(store)
        except LogUnavailable:
            failed += 1
            assert failed < 50
            raise

    monkeypatch.setattr(KeyStore, "position", count_reads)
    async with without_jetstream(own_server):
        await until(lambda: failed > 0)
    since = failed
    await until(lambda: failed > since)
    await own_server.start()
    await until(lambda: own_connection.is_up)
    await create(cache, keys)
