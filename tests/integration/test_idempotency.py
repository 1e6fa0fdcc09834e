"""Idempotency keys on a real server: claim, repeat, expiry."""

import asyncio

import pytest

from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Claim, Claims, Connection
from tailrace.proto.nats.kv import Bucket, Value

BODY = "0" * 64


def new_claim() -> Claim:
    return Claim(TurnId(new_id()), BODY)


@pytest.fixture
def claims(connection: Connection) -> Claims:
    return Claims(connection)


@pytest.mark.rule("R26")
async def test_any_text_is_a_key(claims: Claims, tenant: Tenant) -> None:
    for key in ("*", ">", "a.b", "", " ", "ключ", "x" * 10_000, "\0"):
        first = new_claim()
        assert await claims.claim(tenant, key, first) == first, key
        assert await claims.claim(tenant, key, new_claim()) == first, key


@pytest.mark.rule("R26")
async def test_of_concurrent_replacements_of_a_deleted_turns_claim_one_is_kept(claims: Claims, tenant: Tenant) -> None:
    deleted = await claims.claim(tenant, "key", new_claim())
    made = [new_claim() for _ in range(50)]
    found = await asyncio.gather(*(claims.replace(tenant, "key", deleted, one) for one in made))
    assert len(set(found)) == 1
    assert found[0] in made
    assert await claims.find(tenant, "key") == found[0]
    # A claim that has expired is made again.
    assert await claims.replace(tenant, "other", deleted, made[0]) == made[0]


@pytest.mark.rule("R26")
async def test_a_replacement_that_reads_a_lagging_server_returns_the_newer_claim(
    claims: Claims, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, newer = await claims.claim(tenant, "key", new_claim()), new_claim()
    current_get, stale = Bucket.get, list[Value | None]()

    async def record(self: Bucket, key: str) -> Value | None:
        stale.append(await current_get(self, key))
        return stale[-1]

    async def get(self: Bucket, key: str) -> Value | None:
        return stale.pop() if stale else await current_get(self, key)

    monkeypatch.setattr(Bucket, "get", record)
    assert await claims.find(tenant, "key") == deleted
    monkeypatch.undo()
    assert await claims.replace(tenant, "key", deleted, newer) == newer
    monkeypatch.setattr(Bucket, "get", get)
    assert await claims.replace(tenant, "key", deleted, new_claim()) == newer
    assert not stale


@pytest.mark.rule("R26")
async def test_a_claim_is_stored_under_the_hash_of_tenant_and_key(connection: Connection, claims: Claims) -> None:
    """sha256(tenant \\0 key) in hex, as PROTOCOL.md says."""
    tenant, first = Tenant("rule-26"), new_claim()
    await claims.claim(tenant, "key", first)
    bucket = await connection.jetstream.key_value("CLAIMS")
    # printf 'rule-26\0key' | sha256sum
    entry = await bucket.get("b14b2e7f62c50976416dd939c7bd4232c0a6ab81b9c948e36faa3724340183f4")
    assert entry.value == f'{{"turn":"{first.turn}","body_sha256":"{BODY}"}}'.encode()
