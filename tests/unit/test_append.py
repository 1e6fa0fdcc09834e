"""append: what it requests after each answer. What a server really answers is tested in tests/integration."""

from itertools import pairwise

import pytest

from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, Entry, StoredEntry
from tailrace.proto.errors import FenceLost, LogFull, LogUnavailable, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.append import append
from tailrace.proto.nats.log_server import Count, PublishUnclear
from tests.harness.scripted_log import KEY, NOTHING, ScriptedServer, page
from tests.harness.turn_builder import NOON, attempted_turn, started_turn, text_delta
from tests.harness.virtual_time import run

CHAIN = Chain(Seq(7), 1)
ENTRY = text_delta(CHAIN, "a")
STORED = Seq(8)
REFUSED = PublishUnclear("10071")
NO_ANSWER = PublishUnclear("no answer", is_answered=False)


def append_entry(server: ScriptedServer, entry: Entry = ENTRY) -> Chain:
    return run(append(server, KEY, CHAIN, entry, timeout_s=30))


def waits_of(server: ScriptedServer) -> list[float]:
    return [round(after - before, 3) for before, after in pairwise(server.times("publish"))]


def attempt_of(backend: str, generator: str) -> Attempt:
    return Attempt(prev=CHAIN.last, attempt=2, generator=generator, backend=backend, mode="fresh")


def test_a_refusal_without_a_rival_asks_the_leader_whether_the_turn_exists() -> None:
    """Appends to a purged turn are refused for ever, and no entry says why. The first entry makes the turn exist."""
    server = ScriptedServer(publish=[REFUSED, REFUSED, STORED], read=[NOTHING], last_request=[Seq(1)])
    assert append_entry(server) == Chain(STORED, 1)
    assert server.names == ["publish", *2 * ["read", "last_request", "publish"]]
    assert [one.arguments for one in server.requests if one.name == "publish"] == 3 * [(ENTRY, CHAIN.last)]
    assert {one.arguments[0] for one in server.requests if one.name == "read"} == {CHAIN.last}
    assert waits_of(server) == [0.05, 0.05]
    server = ScriptedServer(publish=[REFUSED, Seq(1)], read=[NOTHING])
    assert run(append(server, KEY, START, started_turn().stored[0].entry, timeout_s=30)).last == 1


def test_without_a_leader_publishes_become_rarer_up_to_two_a_second() -> None:
    """A thousand turns that publish twenty times a second would keep the servers from electing a leader.

    The leader is sent no request, which would wait two seconds for its time-out.
    """
    server = ScriptedServer(publish=[*6 * [NO_ANSWER], STORED], read=[NOTHING])
    append_entry(server)
    assert waits_of(server) == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert set(server.names) == {"publish", "read"}


@pytest.mark.rule("R13")
@pytest.mark.parametrize("is_last", [True, False])
def test_a_stored_attempt_with_followers_is_an_earlier_one_of_this_process(*, is_last: bool) -> None:
    """A generator that planned from an old read must not make its call a second time."""
    attempt = attempt_of("anthropic", "g-1")
    there, following = StoredEntry(STORED, NOON, attempt), StoredEntry(Seq(9), NOON, text_delta(Chain(STORED, 2), "a"))
    tail = page(there, following) if is_last else page(there, is_last=False)
    with pytest.raises(FenceLost, match=r"^turn-1 already has this attempt, at 8$"):
        append_entry(ScriptedServer(publish=[REFUSED], read=[tail]), attempt)


@pytest.mark.rule("R13")
def test_a_stored_attempt_without_followers_is_the_one_whose_answer_was_lost() -> None:
    attempt = attempt_of("anthropic", "g-1")
    tail = page(StoredEntry(STORED, NOON, attempt))
    assert append_entry(ScriptedServer(publish=[NO_ANSWER], read=[tail]), attempt) == Chain(STORED, 2)


@pytest.mark.rule("R13")
@pytest.mark.parametrize("failed", [REFUSED, NO_ANSWER])
def test_an_entry_that_was_published_already_is_looked_for_before_it_is_published_again(failed: PublishUnclear) -> None:
    """`publish_soon` has published it, and `append` receives the unclear outcome."""
    stored = ScriptedServer(read=[page(StoredEntry(STORED, NOON, ENTRY))])
    assert run(append(stored, KEY, CHAIN, ENTRY, timeout_s=30, failed=failed)) == Chain(STORED, 1)
    assert stored.names == ["read"]
    missing = ScriptedServer(publish=[STORED], read=[NOTHING], last_request=[Seq(1)])
    assert run(append(missing, KEY, CHAIN, ENTRY, timeout_s=30, failed=failed)) == Chain(STORED, 1)
    assert missing.names == ["read", *(["last_request"] if failed.is_answered else []), "publish"]
    assert missing.requests[-1].arguments == (ENTRY, CHAIN.last)


def test_an_entry_that_was_published_already_is_unavailable_after_the_timeout() -> None:
    server = ScriptedServer(publish=[NO_ANSWER], read=[LogUnavailable("no leader")])
    with pytest.raises(LogUnavailable, match=r"no leader$"):
        run(append(server, KEY, CHAIN, ENTRY, timeout_s=3, failed=NO_ANSWER))
    assert 3 <= server.requests[-1].at_s < 4


@pytest.mark.rule("R13")
def test_a_stored_attempt_of_a_message_batch_counts_as_appended() -> None:
    """A generator that takes a message batch over writes its answers again from the first entry on."""
    attempt = attempt_of(MESSAGE_BATCHES, "msgbatch_1")
    there, following = StoredEntry(STORED, NOON, attempt), StoredEntry(Seq(9), NOON, text_delta(Chain(STORED, 2), "a"))
    server = ScriptedServer(publish=[REFUSED], read=[page(there, following)])
    assert append_entry(server, attempt) == Chain(STORED, 2)


def test_an_entry_that_does_not_continue_the_chain_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match=r"^a Event after 7 does not continue the chain at 3$"):
        run(append(ScriptedServer(), KEY, Chain(Seq(3), 1), ENTRY, timeout_s=1))


@pytest.mark.rule("R12")
def test_an_entry_of_another_writer_after_the_chain_loses_the_fence() -> None:
    rival = StoredEntry(STORED, NOON, text_delta(CHAIN, "b"))
    with pytest.raises(FenceLost, match=r"^another writer has continued turn-1 after 7$"):
        append_entry(ScriptedServer(publish=[REFUSED], read=[page(rival)]))


@pytest.mark.rule("R12")
def test_the_next_publish_is_fenced_after_entries_that_do_not_continue_the_chain() -> None:
    """A late entry of a fork: readers skip it, but the server's fence counts it. `CHAIN` itself is valid."""
    log = started_turn()
    last, entry = log.chain, text_delta(log.chain, "a")
    late = StoredEntry(Seq(last.last + 1), NOON, text_delta(Chain(Seq(1)), "late"))
    following = Seq(last.last + 2)
    server = ScriptedServer(publish=[REFUSED, following], read=[page(late), page(*log.stored, late)])
    assert run(append(server, KEY, last, entry, timeout_s=30)).last == following
    assert server.requests[-1].arguments == (entry, late.seq)


@pytest.mark.rule("R12")
def test_a_chain_that_belongs_to_a_fork_loses_the_fence() -> None:
    log = started_turn()
    fork = Chain(Seq(log.chain.last + 1), log.chain.attempt)
    late = StoredEntry(Seq(fork.last + 1), NOON, text_delta(Chain(Seq(1)), "late"))
    server = ScriptedServer(publish=[REFUSED], read=[page(late), page(*log.stored, late)])
    with pytest.raises(
        FenceLost, match=f"^another writer of turn-1 has stored a valid entry instead of .* {fork.last}$"
    ):
        run(append(server, KEY, fork, text_delta(fork, "a"), timeout_s=30))


def test_an_append_to_a_purged_turn_fails() -> None:
    with pytest.raises(TurnUnknown):
        append_entry(ScriptedServer(publish=[REFUSED], read=[NOTHING], last_request=[BEFORE_FIRST]))


def test_a_full_log_is_reported_after_one_look_at_the_tail() -> None:
    """The entry may be stored, if an earlier acknowledgement was lost."""
    with pytest.raises(LogFull, match=r"^full$"):
        append_entry(ScriptedServer(publish=[LogFull("full")], read=[NOTHING], last_request=[Seq(1)]))
    stored = StoredEntry(STORED, NOON, ENTRY)
    assert append_entry(ScriptedServer(publish=[LogFull("full")], read=[page(stored)])) == Chain(STORED, 1)


def test_an_entry_whose_outcome_stays_unclear_is_unavailable_after_the_timeout() -> None:
    server = ScriptedServer(publish=[NO_ANSWER], read=[LogUnavailable("no leader")])
    with pytest.raises(LogUnavailable, match=r"^an entry of turn-1 could not be stored in time: no leader$"):
        append_entry(server)
    assert 30 <= server.requests[-1].at_s < 31


@pytest.mark.rule("R12")
def test_an_end_of_a_fork_is_not_the_end_of_the_turn() -> None:
    log = attempted_turn()
    before = log.chain
    log.end("cancelled")
    end = log.stored[-1].entry
    valid = ScriptedServer(publish=[log.chain.last], count=[Count(3, log.chain.last)])
    assert run(append(valid, KEY, before, end, timeout_s=30)) == log.chain
    rival = StoredEntry(log.stored[-1].seq, NOON, text_delta(before, "a"))
    late = StoredEntry(Seq(rival.seq + 1), NOON, end)
    server = ScriptedServer(publish=[late.seq], count=[Count(4, late.seq)], read=[page(*log.stored[:-1], rival, late)])
    with pytest.raises(FenceLost, match=f"the end at {late.seq} belongs to a fork$"):
        run(append(server, KEY, before, end, timeout_s=30))
