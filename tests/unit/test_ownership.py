"""The rule about the users of a tenant, the owner of a turn, and the scope of a private user."""

import asyncio
import hashlib
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.streaming.feed import FanOut
from tailrace.proto.entries import Message, Request
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Rpc
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey, Whole, hash_subject, may_use, owned_key, owner_of
from tailrace.proto.records import GetTurn
from tailrace.testing import MemoryLog
from tests.harness.turn_builder import Handwritten, completed_turn

ACME = Tenant("acme")
OF_ANN = f"jwt_{hashlib.sha256(b'ann').hexdigest()[:16]}"
REQUEST = Request(model="m", max_tokens=1, messages=[Message("user", "hi")], session=SessionId("s"))


@pytest.mark.rule("R146")
@pytest.mark.parametrize(
    ("viewer", "owner", "expected"),
    [("ann", "ann", True), ("ann", "bob", False), ("ann", None, False), (WHOLE, "ann", True), (WHOLE, None, True)],
)
def test_a_private_user_uses_only_what_it_owns(viewer: str | Whole, owner: str | None, *, expected: bool) -> None:
    assert may_use(Scope(ACME, viewer), owner) is expected


@pytest.mark.rule("R146")
@pytest.mark.parametrize(
    ("fields", "owner"),
    [
        ({"owner": "ann", "user": "bob", "by": "key_1"}, "ann"),
        ({"owner": None, "user": "ann", "by": OF_ANN}, None),
        # Of a version without owners.
        ({"user": "ann", "by": OF_ANN}, "ann"),
        ({"user": "bob", "by": OF_ANN}, None),
        ({"user": "ann", "by": "key_1"}, None),
        ({"by": OF_ANN}, None),
        ({"by": f"jwt_{hashlib.sha256(b'').hexdigest()[:16]}"}, None),
        ({"user": "ann", "by": "jwt_"}, None),
        ({}, None),
    ],
)
def test_the_owner_of_a_turn_without_one_is_the_user_that_its_credential_proves(
    fields: dict[str, str | None], owner: str | None
) -> None:
    request = msgspec.convert({**msgspec.to_builtins(REQUEST), **fields}, Request)
    assert owner_of(request) == owner
    # As the log stores it: null is not the same as a field that is left out.
    assert owner_of(msgspec.json.decode(msgspec.json.encode(request), type=Request)) == owner


@pytest.mark.rule("R146")
@pytest.mark.parametrize("viewer", [None, "", UNSET, 0, True, ["ann"], Scope(ACME, "ann")])
def test_a_scope_without_a_viewer_is_refused(viewer: Any) -> None:
    """No viewer is an error, and never the whole tenant."""
    with pytest.raises(TypeError, match="a scope needs a tenant and a viewer"):
        Scope(ACME, viewer)


@pytest.mark.rule("R146")
@pytest.mark.parametrize("tenant", [None, "", Scope(ACME, "ann"), b"acme"])
def test_a_scope_without_the_name_of_a_tenant_is_refused(tenant: Any) -> None:
    with pytest.raises(TypeError, match="a scope needs a tenant and a viewer"):
        Scope(tenant, WHOLE)


@pytest.mark.rule("R146")
def test_a_scope_has_no_default_and_does_not_change() -> None:
    make: Any = Scope
    with pytest.raises(TypeError, match="viewer"):
        make(ACME)
    scope: Any = Scope(ACME, "ann")
    with pytest.raises(AttributeError):
        scope.viewer = WHOLE
    with pytest.raises(TypeError, match="a scope needs"):
        msgspec.structs.replace(scope, viewer=None)


@pytest.mark.rule("R146")
@pytest.mark.parametrize("read", ["read_turn", "read_turn_direct", "read_remains", "read_entries", "has_turn"])
@pytest.mark.parametrize("lost", ["acme", f"{Scope(ACME, 'ann')}", TurnKey(ACME, TurnId("t")), None])
async def test_a_read_of_the_log_without_a_scope_shows_nothing(read: str, lost: Any) -> None:
    log, key = MemoryLog(), TurnKey(ACME, TurnId("t"))
    log.load(key, completed_turn("hers").stored)
    with pytest.raises(AttributeError, match="has no attribute"):
        await getattr(log, read)(lost if lost == key else ScopedKey(lost, key.turn))


@pytest.mark.rule("R146")
@pytest.mark.parametrize("lost", ["acme", f"{Scope(ACME, 'ann')}", None])
async def test_a_query_and_a_stream_without_a_scope_show_nothing(lost: Any) -> None:
    history = HistoryClient(Rpc(MemoryLog.connection), 1.0)
    with pytest.raises(AttributeError, match="has no attribute"):
        await history.query(lost, GetTurn(TurnId("t")))
    async with asyncio.TaskGroup() as group:
        fan_out = FanOut(MemoryLog(), group, linger_s=0, heartbeat_s=1)
        with pytest.raises(AttributeError, match="has no attribute"):
            await fan_out.join(ScopedKey(lost, TurnId("t")), BEFORE_FIRST)


@pytest.mark.rule("R146")
async def test_each_read_of_the_log_shows_a_private_user_its_own_turns_only() -> None:
    log, hers = MemoryLog(), TurnKey(ACME, TurnId("hers"))
    turn = Handwritten()
    turn.store_request(owner="ann")
    log.load(hers, turn.stored)
    seq = turn.stored[0].seq
    ann, bob = (ScopedKey(Scope(ACME, user), hers.turn) for user in ("ann", "bob"))
    assert (await log.read_turn(ann)).request is not None
    assert len(await log.read_entries(ann)) == 1
    assert await log.has_turn(ann)
    assert await log.find_turn_at(ann.scope, seq, name_turn) == ann
    for read in (log.read_turn, log.read_turn_direct, log.read_remains, log.require_owned):
        with pytest.raises(TurnUnknown):
            await read(bob)
    with pytest.raises(TurnUnknown):
        await anext(log.follow(bob))
    assert await log.read_entries(bob) == []
    assert not await log.has_turn(bob)
    assert await log.find_turn_at(bob.scope, seq, name_turn) is None


async def name_turn(key: ScopedKey, _: Request) -> ScopedKey:
    return key


@pytest.mark.rule("R146")
async def test_no_stream_of_another_users_turn_opens_also_while_its_feed_is_in_memory() -> None:
    log, hers, turn = MemoryLog(), TurnKey(ACME, TurnId("hers")), Handwritten()
    turn.store_request(owner="ann")
    log.load(hers, turn.stored)
    async with asyncio.TaskGroup() as group:
        fan_out = FanOut(log, group, linger_s=60, heartbeat_s=1)
        ann, bob = (ScopedKey(Scope(ACME, user), hers.turn) for user in ("ann", "bob"))
        for _ in range(2):
            with pytest.raises(TurnUnknown):
                await fan_out.join(bob, BEFORE_FIRST)
            assert (await fan_out.join(ann, BEFORE_FIRST)).key == hers
        fan_out.close()


@pytest.mark.rule("R146")
def test_each_private_user_has_idempotency_keys_of_its_own() -> None:
    keys = {owned_key(Scope(ACME, viewer), "key") for viewer in (WHOLE, "ann", "bob")}
    assert keys == {"key", *(f"key@{hash_subject(user)[:32]}" for user in ("ann", "bob"))}
