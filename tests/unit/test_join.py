"""Joining a log with its live feed: by example, and for every way in which a feed can fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import End, Stored
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.ids import Seq
from tests.handwritten import answered, says
from tests.made_up import MadeUp, logs

LOG = answered("The", " sky", " is", " blue.", step=10).stored
FIRST, SECOND, THIRD, FOURTH = LOG[:4]


def at(position: int) -> FeedJoin:
    """A follower who has read the first `position` entries of LOG."""
    join = FeedJoin()
    assert join.add_read(LOG[:position]) == LOG[:position]
    return join


@pytest.mark.rule("R16")
def test_what_continues_the_chain_is_taken_from_the_feed() -> None:
    """Nothing is read for an entry that names the last one as its predecessor."""
    join = at(2)
    assert join.add_live(THIRD)
    assert join.add_live(FOURTH)
    assert not join.has_gap


@pytest.mark.rule("R16")
def test_a_repeated_entry_is_dropped() -> None:
    """The feed repeats at a leader's death, and says again what a replay has read."""
    join = at(3)
    assert not join.add_live(THIRD)
    assert not join.add_live(FIRST)
    assert not join.has_gap


@pytest.mark.rule("R16")
def test_an_entry_that_is_further_on_proves_a_gap() -> None:
    """The log has to be read until it reaches at least there; one that is behind does not close the gap."""
    join = at(1)
    assert not join.add_live(FOURTH)
    assert join.has_gap
    assert join.add_read([SECOND]) == [SECOND]
    assert join.has_gap
    assert join.add_read([THIRD, FOURTH]) == [THIRD, FOURTH]
    assert not join.has_gap


@pytest.mark.rule("R16")
def test_a_gap_is_closed_by_the_log_and_not_by_what_came_too_early() -> None:
    """What was heard too early may be a fork's, and its rival the very entry that was missed."""
    join = at(3)
    rival = says(Chain(FOURTH.seq, 1), "rival")
    forked = Stored(Seq(LOG[4].seq + 5), LOG[4].at, rival)
    assert not join.add_live(forked)
    assert join.add_read([FOURTH]) == [FOURTH]
    assert join.has_gap
    assert join.add_read([LOG[4], forked]) == [LOG[4]]
    assert (join.has_gap, join.skipped) == (False, 1)


@pytest.mark.rule("R16")
def test_a_fork_in_the_feed_is_skipped_and_counted() -> None:
    """It continues what the chain has passed already."""
    join = at(3)
    fork = Stored(Seq(35), FOURTH.at, says(Chain(SECOND.seq, 1), "fork"))
    assert not join.add_live(fork)
    assert (join.has_gap, join.skipped) == (False, 1)
    assert join.add_live(FOURTH)


@pytest.mark.rule("R16")
def test_nothing_is_taken_after_the_end() -> None:
    """Whatever the feed says of an ended turn, its story is over."""
    join = at(len(LOG))
    end = LOG[-1]
    late = Stored(Seq(end.seq + 1), end.at, says(join.chain, "late"))
    assert isinstance(end.entry, End)
    assert not join.add_live(late)
    assert not join.has_gap


@pytest.mark.rule("R16")
@given(logs(has_forks=False), st.data())
def test_any_feed_and_any_reads_give_the_log_exactly(log: MadeUp, data: st.DataObject) -> None:
    """Drops, delays, repeats, any order, and reads that are behind: each entry once, in order, all of them."""
    told, join = follow(log, data)
    assert told == log.valid
    assert join.skipped == 0


@pytest.mark.rule("R16")
@given(logs(), st.data())
def test_a_follower_tells_the_log_or_its_last_entry_is_not_valid(log: MadeUp, data: st.DataObject) -> None:
    """A fork whose rival the feed has lost may be told: one look at the log shows it, also when nothing follows."""
    told, join = follow(log, data)
    if told != log.valid:
        assert join.chain.last not in [stored.seq for stored in log.valid]


@pytest.mark.rule("R14")
@given(logs(), st.data())
def test_reads_alone_give_the_log_exactly(log: MadeUp, data: st.DataObject) -> None:
    """Without a feed, however many pages and however stale, forks and junk are skipped."""
    join, told = FeedJoin(), list[Stored]()
    while join.read_upto < log.stored[-1].seq:
        after = [stored for stored in log.stored if stored.seq > join.read_upto]
        if data.draw(st.booleans()):
            told += join.add_read([])
        told += join.add_read(after[: data.draw(st.integers(1, len(after)))])
    assert told == log.valid
    assert join.skipped == len(log.stored) - len(log.valid)


@pytest.mark.rule("R15")
@given(logs(has_forks=False), st.data())
def test_any_cursor_is_followed_from_there(log: MadeUp, data: st.DataObject) -> None:
    """Starting at an entry gives exactly what follows it."""
    position = data.draw(st.integers(1, len(log.valid)))
    last = log.valid[position - 1]
    chain = Chain(last.seq, getattr(last.entry, "attempt", 0), isinstance(last.entry, End))
    told, _ = follow(log, data, chain)
    assert told == log.valid[position:]


def follow(log: MadeUp, data: st.DataObject, chain: Chain = START) -> tuple[list[Stored], FeedJoin]:
    """A follower of `log` under a schedule that hypothesis draws; at the end it reads until there is nothing more."""
    join, told = FeedJoin(chain), list[Stored]()
    # The feed: every entry any number of times, in any order, and none before it was stored.
    hints = data.draw(st.lists(st.sampled_from(log.stored), max_size=2 * len(log.stored)))
    stored_upto = Seq(0)
    for hint in hints:
        stored_upto = max(stored_upto, hint.seq, data.draw(st.sampled_from(log.stored)).seq)
        if join.add_live(hint):
            told.append(hint)
        if join.has_gap:
            # A read may be behind by any number of entries, and is asked again while it is.
            there = [stored for stored in log.stored if join.read_upto < stored.seq <= stored_upto]
            told += join.add_read(there[: data.draw(st.integers(0, len(there)))])
    told += join.add_read([stored for stored in log.stored if stored.seq > join.read_upto])
    assert not join.has_gap
    return told, join
