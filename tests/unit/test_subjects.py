"""Subjects: who owns what is in them, and nothing that a client sends gets there."""

import pytest

from tailrace.proto import subjects
from tailrace.proto.entries import KINDS
from tailrace.proto.ids import Tenant, TurnId, TurnKey

KEY = TurnKey(Tenant("acme"), TurnId("0190-1"))


@pytest.mark.rule("R2")
@pytest.mark.parametrize("kind", [*KINDS.values(), "newer"])
def test_an_entrys_subject_names_its_turn_and_kind(kind: str) -> None:
    """turns.{tenant}.{turn}.{kind}, and parsing it gives the same back."""
    subject = subjects.entry(KEY, kind)
    assert subject == f"turns.acme.0190-1.{kind}"
    assert subjects.parse(subject) == (KEY, kind)


@pytest.mark.rule("R8")
@pytest.mark.rule("R16")
@pytest.mark.rule("R28")
def test_the_fence_the_live_feed_queries_health_and_presence_have_their_subjects() -> None:
    """The fence covers every entry of a turn. A query names its tenant, so that no question can name another's."""
    assert subjects.entries(KEY) == "turns.acme.0190-1.>"
    assert subjects.live(KEY) == "live.acme.0190-1.>"
    assert subjects.query(KEY.tenant, "session_turns") == "queries.acme.session_turns"
    assert subjects.every_query("session_turns") == "queries.*.session_turns"
    assert subjects.health("persistence") == "health.persistence"
    assert subjects.presence(KEY) == "readers.acme.0190-1"


@pytest.mark.rule("R3")
@pytest.mark.parametrize("token", ["*", ">", "a.b", "", "A", "a b", "x" * 65])
def test_no_subject_is_built_from_an_invalid_token(token: str) -> None:
    """The server takes a wildcard in a publish and reads everything with it: it must never get there."""
    bad_tenant, bad_turn = TurnKey(Tenant(token), KEY.turn), TurnKey(KEY.tenant, TurnId(token))
    for key in (bad_tenant, bad_turn):
        for build in (subjects.entries, subjects.live, subjects.presence):
            with pytest.raises(ValueError, match="is not a valid subject token"):
                build(key)
        with pytest.raises(ValueError, match="is not a valid subject token"):
            subjects.entry(key, "event")
    for build_query in (subjects.every_query, subjects.health):
        with pytest.raises(ValueError, match="is not a valid subject token"):
            build_query(token)
    with pytest.raises(ValueError, match="is not a valid subject token"):
        subjects.query(Tenant(token), "turn")
    with pytest.raises(ValueError, match="is not a valid subject token"):
        subjects.entry(KEY, token)


@pytest.mark.rule("R2")
@pytest.mark.parametrize("subject", ["live.acme.0190-1.event", "turns.acme.0190-1", "turns", ""])
def test_other_subjects_are_not_entries(subject: str) -> None:
    """Only turns.{tenant}.{turn}.{kind} is the subject of an entry."""
    with pytest.raises(ValueError, match=r"."):
        subjects.parse(subject)
