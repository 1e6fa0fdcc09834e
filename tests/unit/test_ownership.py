"""The rule about the users of a tenant, the owner of a turn, and the view of a private user."""

import hashlib

import msgspec
import pytest

from tailrace.proto.entries import Message, Request
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.ownership import (
    Users,
    hash_subject,
    may_use,
    owned_key,
    owner_of,
    view_of,
    viewer_in,
    viewer_of,
    whole,
)

ACME = Tenant("acme")
OF_ANN = f"jwt_{hashlib.sha256(b'ann').hexdigest()[:16]}"
REQUEST = Request(model="m", max_tokens=1, messages=[Message("user", "hi")], session=SessionId("s"))


@pytest.mark.rule("R146")
@pytest.mark.parametrize(
    ("user", "users", "owner", "expected"),
    [
        ("ann", "private", "ann", True),
        ("ann", "private", "bob", False),
        ("ann", "private", None, False),
        ("ann", "shared", "bob", True),
        ("ann", "shared", None, True),
        (None, "private", "ann", True),
        (None, "private", None, True),
        (None, "shared", "ann", True),
    ],
)
def test_a_private_user_uses_only_what_it_owns(
    user: str | None, users: Users, owner: str | None, *, expected: bool
) -> None:
    assert may_use(viewer_of(user, users), owner) is expected


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
def test_a_view_is_equal_to_its_tenant_and_goes_into_no_json() -> None:
    """So locks, limits and feeds are the tenant's, and a view that leaves the process fails."""
    view = view_of(ACME, "ann")
    assert (view == ACME, hash(view) == hash(ACME), f"turns.{view}") == (True, True, "turns.acme")
    assert {TurnKey(ACME, TurnId("t")): 1}[TurnKey(view, TurnId("t"))] == 1
    assert (viewer_in(view), viewer_in(ACME), viewer_in(whole(view))) == ("ann", None, None)
    with pytest.raises(TypeError, match="unsupported"):
        msgspec.json.encode(view)
    assert msgspec.json.encode(whole(view)) == b'"acme"'


@pytest.mark.rule("R146")
def test_each_private_user_has_idempotency_keys_of_its_own() -> None:
    keys = {owned_key(tenant, "key") for tenant in (ACME, view_of(ACME, "ann"), view_of(ACME, "bob"))}
    assert keys == {"key", *(f"key@{hash_subject(user)[:32]}" for user in ("ann", "bob"))}
