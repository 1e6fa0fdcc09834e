"""Idempotency keys on a real server: claim, repeat, expiry."""

import asyncio

import pytest

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Claim, Claims, Connection

BODY = "0" * 64


def a_claim() -> Claim:
    return Claim(TurnId(new_id()), BODY)


@pytest.fixture
def claims(connection: Connection) -> Claims:
    return Claims(connection)


@pytest.mark.rule("R26")
async def test_the_first_claim_stands(claims: Claims, tenant: Tenant) -> None:
    """Whoever comes later with the same key finds the turn and the body that it stands for."""
    first = a_claim()
    assert await claims.claim(tenant, "key", first) == first
    assert await claims.claim(tenant, "key", a_claim()) == first
    assert await claims.claim(tenant, "other key", first) == first


@pytest.mark.rule("R26")
async def test_a_claim_of_one_tenant_is_not_seen_by_another(claims: Claims, tenant: Tenant) -> None:
    """The tenant is part of what is hashed, and cannot be moved into the key."""
    other = Tenant(f"tenant-{new_id()}")
    mine, theirs = a_claim(), a_claim()
    assert await claims.claim(tenant, "key", mine) == mine
    assert await claims.claim(other, "key", theirs) == theirs
    assert await claims.claim(Tenant(f"{tenant}k"), "ey", theirs) == theirs


@pytest.mark.rule("R26")
@pytest.mark.parametrize("key", ["*", ">", "a.b", "", " ", "ключ", "x" * 10_000, "\0"])
async def test_any_text_is_a_key(claims: Claims, tenant: Tenant, key: str) -> None:
    """It becomes a hash before it becomes a name."""
    first = a_claim()
    assert await claims.claim(tenant, key, first) == first
    assert await claims.claim(tenant, key, a_claim()) == first


@pytest.mark.rule("R26")
async def test_of_many_at_once_one_is_first(claims: Claims, tenant: Tenant) -> None:
    """All are told the same one, and it is one of theirs."""
    mine = [a_claim() for _ in range(50)]
    found = await asyncio.gather(*(claims.claim(tenant, "key", one) for one in mine))
    assert len(set(found)) == 1
    assert found[0] in mine


@pytest.mark.rule("R26")
async def test_a_claim_is_stored_under_the_hash_of_tenant_and_key(connection: Connection, claims: Claims) -> None:
    """sha256(tenant \\0 key) in hex, as any other implementation would find it."""
    tenant, first = Tenant("rule-26"), a_claim()
    await claims.claim(tenant, "key", first)
    bucket = await connection.jetstream.key_value("CLAIMS")
    # printf 'rule-26\0key' | sha256sum
    entry = await bucket.get("b14b2e7f62c50976416dd939c7bd4232c0a6ab81b9c948e36faa3724340183f4")
    assert entry.value == f'{{"turn":"{first.turn}","body_sha256":"{BODY}"}}'.encode()


@pytest.mark.rule("R26")
async def test_without_a_server_nothing_is_claimed(own_connection: Connection, tenant: Tenant) -> None:
    """A key that may be somebody's is not taken for free."""
    claims = Claims(own_connection)
    await own_connection.close()
    with pytest.raises(LogUnavailable):
        await claims.claim(tenant, "key", a_claim())
