"""What leads from one account of NATS into another: all that a role may ask elsewhere, and nothing beside it."""

from itertools import permutations

import pytest

from tailrace.deploy.nats.permissions import RIGHTS, imports_of
from tailrace.proto.nats.peers import SERVERS
from tailrace.proto.nats.users import ADMIN, GATEWAY


def overlap(one: str, other: str) -> bool:
    """Returns whether a subject matches both patterns."""
    a, b = one.split("."), other.split(".")
    for x, y in zip(a, b, strict=False):
        if ">" in (x, y):
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(a) == len(b)


@pytest.mark.parametrize("user", RIGHTS)
def test_no_request_has_two_routes(user: str) -> None:
    """It would be answered, or an entry stored, twice. Discovery works in both accounts with services."""
    imported = [way for way in imports_of(user) if way.subject != "$SRV.>"]
    assert [pair for pair in permutations(imported, 2) if overlap(pair[0].subject, pair[1].subject)] == []


def test_messages_within_a_role_stay_in_its_account() -> None:
    """Reader counts: no other role can receive or send them."""
    every = {way.subject for user in RIGHTS for way in imports_of(user)}
    assert "readers.*.*" not in every


@pytest.mark.parametrize("user", RIGHTS)
def test_all_that_a_role_may_ask_is_answered_somewhere(user: str) -> None:
    """By the log, by another role, among its own, or by nats-server in each account."""
    rights = RIGHTS[user]
    led = {way.subject for way in imports_of(user)}
    assert [
        subject
        for subject in rights.publish
        if subject not in led | {*rights.subscribe, *rights.serves, SERVERS} and user != ADMIN
    ] == []


@pytest.mark.parametrize("user", RIGHTS)
def test_only_gateway_and_admin_can_access_the_keys(user: str) -> None:
    """The gateway writes keys for operators (PROTOCOL R107)."""
    ways = {way.subject for way in imports_of(user)}
    found = {subject for subject in ways if "KEYS" in subject or "SECRETS" in subject or "LOGINS" in subject}
    reads = {
        "$JS.API.DIRECT.GET.KV_KEYS",
        "$JS.API.DIRECT.GET.KV_KEYS.>",
        "$KV.KEYS.>",
        "$JS.API.STREAM.MSG.GET.KV_SECRETS",
        "$JS.API.STREAM.MSG.GET.KV_LOGINS",
    }
    assert found == ({*reads, "$KV.SECRETS.*", "$KV.LOGINS.*"} if user == GATEWAY else set())
