"""FeedJoin: by example, and by property for all ways in which a feed can fail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import End, StoredEntry
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.ids import Seq
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import completed_turn, text_delta

LOG = completed_turn("The", " sky", " is", " blue.", step=10).stored
FIRST, SECOND, THIRD, FOURTH = LOG[:4]


def join_after(position: int) -> FeedJoin:
    """A join that has read the first `position` entries of LOG."""
    join = FeedJoin()
    assert join.add_read(LOG[:position]) == LOG[:position]
    return join


@pytest.mark.rule("R16")
def test_an_entry_with_a_later_predecessor_proves_a_gap_that_only_the_log_closes() -> None:
    """A read that is behind does not. An early entry may belong to a fork, whose rival was missed."""
    join = join_after(3)
    rival = text_delta(Chain(FOURTH.seq, 1), "rival")
    forked = StoredEntry(Seq(LOG[4].seq + 5), LOG[4].at, rival)
    assert (join.add_live(forked), join.has_gap) == (False, True)
    assert join.add_read([FOURTH]) == [FOURTH]
    assert join.has_gap
    assert join.add_read([LOG[4], forked]) == [LOG[4]]
    assert (join.has_gap, join.skipped) == (False, 1)


@pytest.mark.rule("R16")
def test_an_entry_that_was_read_is_not_returned_again() -> None:
    """A page may begin before the position of the join."""
    join = join_after(2)
    assert join.add_read([FIRST, SECOND, THIRD]) == [THIRD]
    assert (join.chain.last, join.skipped) == (THIRD.seq, 0)


@pytest.mark.rule("R16")
def test_a_fork_in_the_feed_is_skipped_and_counted() -> None:
    """It continues an entry that the chain has passed."""
    join = join_after(3)
    fork = StoredEntry(Seq(35), FOURTH.at, text_delta(Chain(SECOND.seq, 1), "fork"))
    assert not join.add_live(fork)
    assert (join.has_gap, join.skipped) == (False, 1)
    assert join.add_live(FOURTH)


@pytest.mark.rule("R16")
def test_an_entry_that_was_read_as_invalid_stays_invalid_when_the_feed_repeats_it() -> None:
    """A faulty writer named as its predecessor an entry that was stored later. The readers of the log skip it."""
    join = join_after(2)
    early = StoredEntry(Seq(THIRD.seq - 5), THIRD.at, text_delta(Chain(THIRD.seq, 1), "early"))
    assert join.add_read([early, THIRD]) == [THIRD]
    assert not join.add_next(early)
    assert not join.add_live(early)
    assert (join.chain.last, join.read_upto) == (THIRD.seq, THIRD.seq)


@pytest.mark.rule("R16")
def test_no_entry_is_accepted_after_the_end() -> None:
    join = join_after(len(LOG))
    end = LOG[-1]
    late = StoredEntry(Seq(end.seq + 1), end.at, text_delta(join.chain, "late"))
    assert isinstance(end.entry, End)
    assert not join.add_live(late)
    assert not join.has_gap


@pytest.mark.rule("R16")
@given(logs(has_forks=False), st.data())
def test_any_feed_and_any_reads_give_the_log_exactly(log: MadeUp, data: st.DataObject) -> None:
    """Drops, delays, repeats, reordering and reads that are behind: each entry once, in order, all of them."""
    received, join = follow(log, data)
    assert received == log.valid
    assert join.skipped == 0


@pytest.mark.rule("R16")
@given(logs(), st.data())
def test_a_join_returns_the_log_or_its_last_entry_is_not_valid(log: MadeUp, data: st.DataObject) -> None:
    """A fork whose rival the feed has lost may be returned; one read of the log shows that, also without followers."""
    received, join = follow(log, data)
    if received != log.valid:
        assert join.chain.last not in [stored.seq for stored in log.valid]


@pytest.mark.rule("R14")
@given(logs(), st.data())
def test_reads_alone_give_the_log_exactly(log: MadeUp, data: st.DataObject) -> None:
    """Without a feed, in any number of pages and stale reads: forks and junk are skipped."""
    join, received = FeedJoin(), list[StoredEntry]()
    while join.read_upto < log.stored[-1].seq:
        after = [stored for stored in log.stored if stored.seq > join.read_upto]
        if data.draw(st.booleans()):
            received += join.add_read([])
        received += join.add_read(after[: data.draw(st.integers(1, len(after)))])
    assert received == log.valid
    assert join.skipped == len(log.stored) - len(log.valid)


@pytest.mark.rule("R15")
@given(logs(has_forks=False), st.data())
def test_any_cursor_is_followed_from_there(log: MadeUp, data: st.DataObject) -> None:
    position = data.draw(st.integers(1, len(log.valid)))
    last = log.valid[position - 1]
    chain = Chain(last.seq, getattr(last.entry, "attempt", 0), isinstance(last.entry, End))
    received, _ = follow(log, data, chain)
    assert received == log.valid[position:]


def follow(log: MadeUp, data: st.DataObject, chain: Chain = START) -> tuple[list[StoredEntry], FeedJoin]:
    """Runs a join over `log` under a schedule that hypothesis draws, and at last reads the whole log."""
    join, received = FeedJoin(chain), list[StoredEntry]()
    # The feed: every entry any number of times, in any order, and none before it was stored.
    hints = data.draw(st.lists(st.sampled_from(log.stored), max_size=2 * len(log.stored)))
    stored_upto = Seq(0)
    for hint in hints:
        stored_upto = max(stored_upto, hint.seq, data.draw(st.sampled_from(log.stored)).seq)
        if join.add_live(hint):
            received.append(hint)
        if join.has_gap:
            # A read may be behind by any number of entries, and is asked again while it is.
            there = [stored for stored in log.stored if join.read_upto < stored.seq <= stored_upto]
            received += join.add_read(there[: data.draw(st.integers(0, len(there)))])
    received += join.add_read([stored for stored in log.stored if stored.seq > join.read_upto])
    assert not join.has_gap
    return received, join
