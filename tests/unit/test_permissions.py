"""What leads from one account of NATS into another: all that a role may ask elsewhere, and nothing beside it."""

from itertools import permutations

import pytest

from tailrace.proto.nats.permissions import ADMIN, GATEWAY, LOG, RIGHTS, Import, account, imports_of
from tailrace.proto.subjects import EVERY_LIVE, GENERATORS, PERSISTENCE


def overlap(one: str, other: str) -> bool:
    """Whether there is a subject that both mean."""
    a, b = one.split("."), other.split(".")
    for x, y in zip(a, b, strict=False):
        if ">" in (x, y):
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(a) == len(b)


@pytest.mark.parametrize("user", RIGHTS)
def test_no_question_goes_two_ways(user: str) -> None:
    """It would be asked twice, and an entry be stored twice. Who answers is discovered in both accounts that do."""
    asked = [way for way in imports_of(user) if way.subject != "$SRV.>"]
    assert [pair for pair in permutations(asked, 2) if overlap(pair[0].subject, pair[1].subject)] == []


def test_each_role_has_an_account_and_whoever_has_none_is_with_the_log() -> None:
    """The log's own is that of the admin, too, and of what a test or a person adds."""
    own = [account(user) for user in (GATEWAY, GENERATORS, PERSISTENCE)]
    assert own == ["TAILRACE_GATEWAY", "TAILRACE_GENERATORS", "TAILRACE_PERSISTENCE"]
    assert account(ADMIN) == account("somebody") == LOG


def test_what_is_said_among_the_processes_of_a_role_leads_nowhere() -> None:
    """Hedges, and who reads: no other role hears them, and none can speak up."""
    every = {way.subject for user in RIGHTS for way in imports_of(user)}
    assert not {"hedges", "hedges.*", "readers.*.*"} & every


def test_a_question_goes_to_who_answers_it_and_all_else_to_the_log() -> None:
    """A model's list to the generators, the history to persistence, entries and reads to the log."""
    ways = imports_of(GATEWAY)
    assert Import(account(GENERATORS), "queries.*.models") in ways
    assert Import(account(PERSISTENCE), "queries.*.session_turns") in ways
    assert Import(LOG, "turns.*.*.request") in ways
    assert Import(LOG, EVERY_LIVE, is_stream=True) in ways


@pytest.mark.parametrize("user", RIGHTS)
def test_all_that_a_role_may_ask_is_answered_somewhere(user: str) -> None:
    """By the log, by another role, or among its own."""
    rights = RIGHTS[user]
    led = {way.subject for way in imports_of(user)}
    assert [subject for subject in rights.publish if subject not in led | {*rights.subscribe} and user != ADMIN] == []


@pytest.mark.parametrize("user", RIGHTS)
def test_no_role_has_a_way_to_the_keys_but_who_needs_it(user: str) -> None:
    """The gateway reads keys and has the secrets; the admin is where they are, and makes them."""
    ways = {way.subject for way in imports_of(user)}
    found = {subject for subject in ways if "KEYS" in subject or "SECRETS" in subject or "LOGINS" in subject}
    reads = {"$JS.API.DIRECT.GET.KV_KEYS", "$JS.API.STREAM.MSG.GET.KV_SECRETS", "$JS.API.STREAM.MSG.GET.KV_LOGINS"}
    assert found == ({*reads, "$KV.SECRETS.*", "$KV.LOGINS.*"} if user == GATEWAY else set())
