"""Reads of a turn although a single read may be behind: what is requested, and what is believed."""

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import Stored
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnUnknown
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId
from tailrace.proto.nats.replay import STALE_MAX_S, WOKEN_WAIT_S, read_current_turn, read_from, read_turn, require_turn
from tailrace.proto.subjects import TurnKey
from tests.harness.scripted_log import NOTHING, ScriptedServer, page
from tests.harness.turn_builder import NOON, Handwritten, opening, says
from tests.harness.virtual_time import run

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
CURSOR = Seq(7)
BEFORE = Chain(Seq(6), 1)
AT_CURSOR = Stored(CURSOR, NOON, says(BEFORE, "a"))
AFTER_CURSOR = Stored(Seq(8), NOON, says(BEFORE, "a"))


def begun() -> Handwritten:
    """A turn whose answer has begun."""
    log = Handwritten()
    log.ask()
    log.take()
    log.hear(*opening())
    log.say("Hi")
    return log


@pytest.mark.rule("R14")
def test_a_turn_that_one_answer_denies_is_asked_for_again() -> None:
    """A frozen former leader that wakes up answers as if it led: its denial is no proof."""
    server = ScriptedServer(last_seq=[BEFORE_FIRST, Seq(1)])
    run(require_turn(server, KEY))
    assert server.times("last_seq") == [0.0, WOKEN_WAIT_S]


@pytest.mark.rule("R14")
def test_a_turn_that_two_answers_deny_is_unknown() -> None:
    """A request for a turn that does not exist fails."""
    with pytest.raises(TurnUnknown):
        run(require_turn(ScriptedServer(last_seq=[BEFORE_FIRST]), KEY))


@pytest.mark.rule("R14")
def test_a_turn_that_is_stored_and_cannot_be_read_is_not_unknown() -> None:
    """A generator would otherwise acknowledge a turn that then never ends."""
    with pytest.raises(LogUnavailable):
        run(read_turn(ScriptedServer(read=[NOTHING], last_seq=[Seq(1)]), KEY))


@pytest.mark.rule("R72")
def test_a_running_turn_is_read_as_far_as_the_leader_has_it() -> None:
    """A client that has seen more at another server would see its answer become shorter."""
    log = begun()
    behind = [page(*log.stored[:2]), *100 * [NOTHING]]
    server = ScriptedServer(read=[*behind, page(*log.stored[2:])], last_seq=[log.stored[-1].seq])
    assert run(read_current_turn(server, KEY)) == fold(log.stored)
    assert server.names == ["read", "last_seq", *101 * ["read"]]


@pytest.mark.rule("R72")
def test_a_running_turn_that_cannot_be_read_so_far_is_unavailable() -> None:
    """It is neither unknown nor answered with fewer entries."""
    log = begun()
    server = ScriptedServer(read=[page(*log.stored[:2]), NOTHING], last_seq=[log.stored[-1].seq])
    with pytest.raises(LogUnavailable):
        run(read_current_turn(server, KEY))
    assert server.requests[-1].at_s >= STALE_MAX_S


@pytest.mark.rule("R72")
def test_an_ended_turn_is_read_without_a_leader() -> None:
    """Nothing follows an end: it can be read while most servers are away."""
    log = begun()
    log.end()
    server = ScriptedServer(read=[page(*log.stored)], last_seq=[LogUnavailable("no leader")])
    assert run(read_current_turn(server, KEY)) == fold(log.stored)


@pytest.mark.rule("R72")
def test_a_turn_that_the_leader_does_not_have_any_more_is_unknown() -> None:
    """It was deleted, and the server that was read is behind."""
    with pytest.raises(TurnUnknown):
        run(read_current_turn(ScriptedServer(read=[page(*begun().stored)], last_seq=[BEFORE_FIRST]), KEY))


@pytest.mark.rule("R15")
def test_a_cursor_that_the_leader_has_is_read_until_it_is_seen() -> None:
    """A server with a slow connection to the others is seconds behind, and its readers come from another one."""
    server = ScriptedServer(read=[*100 * [NOTHING], page(AT_CURSOR, AFTER_CURSOR)], has_entry=[True])
    assert run(read_from(server, KEY, CURSOR)) == (Chain(CURSOR, 1), page(AFTER_CURSOR))
    assert server.requests[0].arguments[0] == Seq(6)
    assert server.names == [*100 * ["read", "has_entry"], "read"]


@pytest.mark.rule("R15")
def test_a_cursor_that_is_stored_and_cannot_be_read_is_not_refused() -> None:
    """An EventSource gives up after a refusal; after an unavailable log it returns with the same cursor."""
    with pytest.raises(LogUnavailable):
        run(read_from(ScriptedServer(read=[NOTHING], has_entry=[True]), KEY, CURSOR))


@pytest.mark.rule("R15")
def test_a_cursor_that_the_leader_denies_twice_is_refused() -> None:
    """One denial may come from a former leader."""
    server = ScriptedServer(read=[NOTHING], has_entry=[False])
    with pytest.raises(CursorUnknown):
        run(read_from(server, KEY, CURSOR))
    assert server.names == ["read", "has_entry", "has_entry"]


@pytest.mark.rule("R15")
def test_a_cursor_before_an_entry_of_the_same_read_is_refused() -> None:
    """A server that has a later entry is not behind."""
    with pytest.raises(CursorUnknown):
        run(read_from(ScriptedServer(read=[page(AFTER_CURSOR)]), KEY, CURSOR))
