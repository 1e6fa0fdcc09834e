"""Reads of a turn although a single read may be behind: what is requested, and what is believed."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tailrace.persistence.rows import build_row
from tailrace.proto.chain import START, Chain
from tailrace.proto.entries import KINDS, Event, StoredEntry, Unreadable
from tailrace.proto.errors import CursorUnknown, LogUnavailable, TurnUnknown
from tailrace.proto.feed_join import FeedJoin
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.log_server import FIRST_EVENTS, PAGE_MAX, Count, EntryPage
from tailrace.proto.nats.replay import (
    READ_TIMEOUT_S,
    STALE_MAX_S,
    STALE_WAIT_S,
    WOKEN_WAIT_S,
    find_stored,
    is_stored_chain,
    is_valid,
    read_ended_turn,
    read_from,
    read_turn,
    read_turn_direct,
    read_turn_upto,
    read_valid,
    require_turn,
)
from tests.harness.scripted_log import KEY, NOTHING, ScriptedServer, page
from tests.harness.turn_builder import NOON, Handwritten, completed_turn, started_turn, text_delta
from tests.harness.virtual_time import run

CURSOR = Seq(7)
BEFORE = Chain(Seq(6), 1)
AT_CURSOR = StoredEntry(CURSOR, NOON, text_delta(BEFORE, "a"))
AFTER_CURSOR = StoredEntry(Seq(8), NOON, text_delta(BEFORE, "a"))


def open_log() -> Handwritten:
    """A turn whose answer has begun."""
    return started_turn("Hi")


@pytest.mark.rule("R14")
def test_a_turn_is_looked_up_again_after_one_reply_without_it_and_unknown_after_two() -> None:
    """A frozen former leader that wakes up answers as if it led: its denial is no proof."""
    server = ScriptedServer(last_request=[BEFORE_FIRST, Seq(1), BEFORE_FIRST])
    assert run(require_turn(server, KEY)) == 1
    assert server.times("last_request") == [0.0, WOKEN_WAIT_S]
    with pytest.raises(TurnUnknown, match=r"^the log has no turn turn-1$"):
        run(require_turn(server, KEY))


@pytest.mark.rule("R14")
def test_several_turns_are_looked_up_again_after_one_wait() -> None:
    server = ScriptedServer(last_request=[BEFORE_FIRST, Seq(1), BEFORE_FIRST])
    assert run(find_stored(server, [KEY] * 3)) == {KEY}
    assert server.times("last_request") == [0.0, 0.0, 0.0]
    server = ScriptedServer(last_request=[BEFORE_FIRST, BEFORE_FIRST, Seq(1)])
    assert run(find_stored(server, [KEY])) == set()
    assert run(find_stored(server, [KEY])) == {KEY}
    assert server.times("last_request") == [0.0, WOKEN_WAIT_S, 0.0]


@pytest.mark.rule("R14")
def test_a_turn_that_is_stored_and_cannot_be_read_is_not_unknown() -> None:
    """A generator would otherwise acknowledge a turn that then never ends."""
    server = ScriptedServer(read=[NOTHING], last_request=[Seq(1)])
    with pytest.raises(LogUnavailable, match=r"^turn-1 is stored but cannot be read yet: try again$"):
        run(read_turn_direct(server, KEY))
    assert READ_TIMEOUT_S <= server.requests[-1].at_s < READ_TIMEOUT_S + 2 * STALE_WAIT_S


@pytest.mark.rule("R72")
def test_a_running_turn_is_read_as_far_as_the_leader_has_it() -> None:
    """A client that has seen more at another server would see its answer become shorter."""
    log = open_log()
    behind = [page(*log.stored[:2]), *100 * [NOTHING]]
    server = ScriptedServer(read=[*behind, page(*log.stored[2:])], last_seq=[log.stored[-1].seq])
    assert run(read_turn(server, KEY)) == fold(log.stored)
    assert server.names == ["read", "last_seq", *101 * ["read"]]


@pytest.mark.rule("R72")
def test_a_running_turn_that_cannot_be_read_so_far_is_unavailable() -> None:
    """It is neither unknown nor answered with fewer entries."""
    log = open_log()
    server = ScriptedServer(read=[page(*log.stored[:2]), NOTHING], last_seq=[log.stored[-1].seq])
    with pytest.raises(LogUnavailable, match=r"^turn-1 has an entry at \d+ that cannot be read yet: try again$"):
        run(read_turn(server, KEY))
    assert STALE_MAX_S <= server.requests[-1].at_s + STALE_WAIT_S < STALE_MAX_S + 3 * STALE_WAIT_S


@pytest.mark.rule("R72")
def test_an_ended_turn_is_read_without_a_leader() -> None:
    """Nothing follows an end: it can be read while most servers are away."""
    log = open_log()
    log.end()
    server = ScriptedServer(read=[page(*log.stored)], last_seq=[LogUnavailable("no leader")])
    assert run(read_turn(server, KEY)) == fold(log.stored)


@pytest.mark.rule("R72")
def test_a_turn_that_the_leader_does_not_have_any_more_is_unknown() -> None:
    """It was deleted, and the server that was read is behind."""
    server = ScriptedServer(read=[page(*open_log().stored)], last_seq=[BEFORE_FIRST], last_request=[BEFORE_FIRST])
    with pytest.raises(TurnUnknown):
        run(read_turn(server, KEY))


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
    server = ScriptedServer(read=[NOTHING], has_entry=[True])
    with pytest.raises(LogUnavailable, match=r"^turn-1 has an entry at 7 that cannot be read yet: try again$"):
        run(read_from(server, KEY, CURSOR))
    assert STALE_MAX_S <= server.requests[-1].at_s < STALE_MAX_S + 2 * STALE_WAIT_S


@pytest.mark.rule("R15")
def test_a_cursor_that_the_leader_denies_twice_is_refused() -> None:
    """One denial may come from a former leader."""
    server = ScriptedServer(read=[NOTHING], has_entry=[False])
    with pytest.raises(CursorUnknown, match=r"^the cursor is not an `id:` of this turn: send back the last one"):
        run(read_from(server, KEY, CURSOR))
    assert server.names == ["read", "has_entry", "has_entry"]
    assert server.times("has_entry") == [0.0, WOKEN_WAIT_S]
    assert [request.arguments for request in server.requests[1:]] == [(CURSOR,), (CURSOR,)]


@pytest.mark.rule("R15")
def test_a_cursor_before_an_entry_of_the_same_read_is_refused() -> None:
    """A server that has a later entry is not behind."""
    with pytest.raises(CursorUnknown):
        run(read_from(ScriptedServer(read=[page(AFTER_CURSOR)]), KEY, CURSOR))


@pytest.mark.rule("R15")
@pytest.mark.parametrize(
    ("entry", "chain"),
    [("request", Chain(Seq(1))), ("attempt", Chain(Seq(2), 1)), ("end", Chain(Seq(7), 1, is_ended=True))],
)
def test_the_entry_at_a_cursor_is_the_last_link_of_the_chain(entry: str, chain: Chain) -> None:
    log = open_log()
    log.end()
    [stored] = [one for one in log.stored if KINDS[type(one.entry)] == entry]
    after = log.stored[log.stored.index(stored) + 1 :]
    server = ScriptedServer(read=[page(stored, *after, is_last=False)])
    assert run(read_from(server, KEY, stored.seq)) == (
        Chain(stored.seq, chain.attempt, chain.is_ended),
        page(*after, is_last=False),
    )


def test_a_reader_without_a_cursor_starts_before_the_first_entry() -> None:
    server = ScriptedServer(read=[page(AT_CURSOR)])
    assert run(read_from(server, KEY, BEFORE_FIRST)) == (START, page(AT_CURSOR))
    assert server.requests[0].arguments[0] == BEFORE_FIRST


ENDED = completed_turn("Light ", "scatters.", *("." * 20))
END = ENDED.stored[-1]
# What `read_first` returns: the request, and three events.
FIRST = [ENDED.stored[0], *[stored for stored in ENDED.stored if isinstance(stored.entry, Event)][:FIRST_EVENTS]]
ALL = Count(len(ENDED.stored), END.seq)


@pytest.mark.rule("R110")
def test_an_ended_turn_is_recorded_from_its_first_entries_and_its_end() -> None:
    """The database then has what a fold of all entries has, and the log is asked for the first entries."""
    server = ScriptedServer(count=[ALL], read_first=[page(*FIRST, is_last=False)])
    turn = run(read_ended_turn(server, KEY, END))
    assert build_row(KEY, turn) == build_row(KEY, ENDED.turn)
    assert [(request.name, *request.arguments) for request in server.requests] == [
        ("read_first",),
        ("count",),
    ]


@pytest.mark.rule("R110")
@pytest.mark.parametrize("more", [0, 1, -1], ids=["whole", "an entry of a writer without a fence", "purged meanwhile"])
def test_the_read_of_the_first_entries_counts_those_of_a_log_without_forks(more: int) -> None:
    """One request is enough. With another number of entries, all of them are folded."""
    following = ALL.entries - len(FIRST) + more
    first = EntryPage(FIRST, is_last=False, following=following)
    server = ScriptedServer(read_first=[first], read=[page(*ENDED.stored)])
    server.forkless_after = BEFORE_FIRST
    turn = run(read_ended_turn(server, KEY, END))
    assert build_row(KEY, turn) == build_row(KEY, ENDED.turn)
    assert server.names == ["read_first", *(["read"] if more else [])]


@pytest.mark.rule("R110")
@pytest.mark.parametrize(
    ("count", "changed", "first"),
    [
        pytest.param(Count(ALL.entries + 1, END.seq), {}, len(FIRST), id="the log has an entry that is not valid"),
        pytest.param(Count(0, END.seq), {}, len(FIRST), id="some entries have expired"),
        pytest.param(Count(ALL.entries, Seq(END.seq - 1)), {}, len(FIRST), id="the leader was frozen"),
        pytest.param(LogUnavailable("no leader"), {}, len(FIRST), id="no leader answers"),
        pytest.param(ALL, {"length": None}, len(FIRST), id="the writer does not know the length"),
        pytest.param(ALL, {"blocks": None}, len(FIRST), id="the answer is long, or its writer is older"),
        pytest.param(ALL, {}, 3, id="the first token comes later"),
        pytest.param(ALL, {}, 0, id="the server that was read is behind"),
    ],
)
def test_all_entries_are_folded_when_the_first_ones_and_the_end_are_not_enough(
    count: Count | LogUnavailable, changed: dict[str, Any], first: int
) -> None:
    end = msgspec.structs.replace(END, entry=msgspec.structs.replace(END.entry, **changed))
    log = [*ENDED.stored[:-1], end]
    server = ScriptedServer(count=[count], read_first=[page(*FIRST[:first], is_last=False)], read=[page(*log)])
    assert run(read_ended_turn(server, KEY, end)) == fold(log)


@pytest.mark.rule("R110")
def test_the_end_of_a_deleted_turn_does_not_end_another_run_of_it() -> None:
    """A process that was frozen has the old `end`. The new run has as many entries as the old one had."""
    moved = [msgspec.structs.replace(stored, seq=Seq(stored.seq + END.seq)) for stored in ENDED.stored[:-1]]
    prevs = [BEFORE_FIRST, *(stored.seq for stored in moved)]
    entries = [msgspec.structs.replace(one.entry, prev=prev) for one, prev in zip(moved, prevs, strict=False)]
    again = [msgspec.structs.replace(one, entry=entry) for one, entry in zip(moved, entries, strict=True)]
    server = ScriptedServer(
        count=[Count(ALL.entries, again[-1].seq)],
        read_first=[page(*(again[ENDED.stored.index(one)] for one in FIRST), is_last=False)],
        read=[page(*again)],
    )
    assert run(read_ended_turn(server, KEY, END)) == fold(again)


@pytest.mark.rule("R14")
def test_a_turn_is_read_in_pages_up_to_an_entry_that_is_stored() -> None:
    """A server that is behind is read again from the last entry that it had."""
    log = open_log()
    behind = [page(*log.stored[:1], is_last=False), page(*log.stored[1:2]), NOTHING]
    server = ScriptedServer(read=[*behind, page(*log.stored[2:])])
    assert run(read_turn_upto(server, KEY, log.stored[-1].seq)) == fold(log.stored)
    seqs = [BEFORE_FIRST, log.stored[0].seq, log.stored[1].seq, log.stored[1].seq]
    assert [request.arguments[0] for request in server.requests] == seqs
    assert server.requests[-1].at_s == 2 * STALE_WAIT_S


@pytest.mark.rule("R27")
@pytest.mark.parametrize("behind", [[], [NOTHING]], ids=["up to date", "behind"])
def test_a_running_turn_is_read_up_to_its_request(behind: list[EntryPage]) -> None:
    """One entry is enough. A server that does not have it yet is read again, for all that is stored by then."""
    log = open_log()
    server = ScriptedServer(read=[*behind, page(*log.stored[: None if behind else 1])])
    turn = run(read_turn_upto(server, KEY, log.stored[0].seq, 1))
    assert turn == fold(log.stored[: None if behind else 1])
    limits = [request.arguments[1] for request in server.requests]
    assert limits == ([1, PAGE_MAX] if behind else [1])


@pytest.mark.rule("R16")
def test_valid_entries_are_read_until_the_gap_of_the_feed_is_closed() -> None:
    """The feed has delivered a later entry, so the entries before it are stored, although this server is behind."""
    log = open_log()
    first, *rest = log.stored
    join = FeedJoin(Chain(first.seq))
    join.stored_upto = rest[-1].seq
    server = ScriptedServer(read=[NOTHING, page(rest[0], is_last=False), page(*rest[1:])])
    assert run(read_valid(server, KEY, join)) == rest
    assert [request.arguments[0] for request in server.requests] == [first.seq, first.seq, rest[0].seq]
    assert server.times("read") == [0.0, STALE_WAIT_S, STALE_WAIT_S]


def test_a_gap_that_stays_open_is_unavailable() -> None:
    join = FeedJoin(Chain(Seq(1)))
    join.stored_upto = Seq(5)
    server = ScriptedServer(read=[NOTHING])
    with pytest.raises(LogUnavailable, match=r"^turn-1 has entries that cannot be read yet: try again$"):
        run(read_valid(server, KEY, join))
    assert READ_TIMEOUT_S <= server.requests[-1].at_s < READ_TIMEOUT_S + 2 * STALE_WAIT_S


def test_the_first_read_waits_for_the_request_of_a_stored_turn_and_fails_for_an_unknown_one() -> None:
    log = open_log()
    server = ScriptedServer(read=[NOTHING, page(*log.stored)], last_request=[Seq(1)])
    assert run(read_valid(server, KEY, FeedJoin(START), is_first=True)) == log.stored
    server = ScriptedServer(read=[NOTHING], last_request=[BEFORE_FIRST])
    with pytest.raises(TurnUnknown):
        run(read_valid(server, KEY, FeedJoin(START), is_first=True))


@pytest.mark.rule("R11")
@pytest.mark.parametrize(
    "read", [read_turn_direct, lambda server, key: read_valid(server, key, FeedJoin(), is_first=True)]
)
@pytest.mark.parametrize(
    "stored",
    [[StoredEntry(Seq(1), NOON, Unreadable())], open_log().stored[1:]],
    ids=["cannot be decoded", "was removed, and the others are still there"],
)
def test_a_turn_whose_request_cannot_be_read_is_unknown(read: Callable[..., Any], stored: list[StoredEntry]) -> None:
    """At once: the recorder and each step of a deletion read such a turn. A repeated read would not change it."""
    server = ScriptedServer(read=[page(*stored), NOTHING], last_request=[Seq(1)])
    with pytest.raises(TurnUnknown, match=r"^turn-1 has no request in the log that can be read$"):
        run(read(server, KEY))
    assert server.requests[-1].at_s == 0.0


@pytest.mark.rule("R14")
def test_an_entry_is_valid_if_the_chain_reaches_it() -> None:
    log = open_log()
    rival = StoredEntry(Seq(log.stored[-1].seq + 1), NOON, text_delta(BEFORE, "a"))
    for seq, expected in [(log.stored[-1].seq, True), (rival.seq, False)]:
        server = ScriptedServer(read=[page(*log.stored, rival)])
        assert run(is_valid(server, KEY, seq, START)) is expected
    server = ScriptedServer(read=[page(*log.stored[:1]), page(*log.stored[1:])])
    assert run(is_valid(server, KEY, log.stored[-1].seq, START))
    assert server.names == ["read", "read"]


LAST = open_log().chain.last
LENGTH = len(open_log().stored)


@pytest.mark.rule("R80")
@pytest.mark.parametrize(("after", "counts"), [(-1, 0), (0, 1), (None, 1)])
def test_a_chain_is_not_compared_with_a_log_without_forks(after: int | None, counts: int) -> None:
    """The log has no forks if it had one replica before the turn's request."""
    log = open_log()
    server = ScriptedServer(count=[Count(LENGTH, LAST)])
    server.forkless_after = None if after is None else Seq(log.stored[0].seq + after)
    assert run(is_stored_chain(server, KEY, log.chain))
    assert len(server.requests) == counts


@pytest.mark.rule("R80")
@pytest.mark.parametrize(
    ("count", "is_known", "reads"),
    [
        (Count(LENGTH, LAST), True, 0),
        (Count(LENGTH, Seq(LAST + 5)), True, 0),
        (Count(LENGTH + 1, Seq(LAST + 5)), True, 1),
        (Count(LENGTH, Seq(LAST - 1)), True, 1),
        (Count(0, LAST), True, 1),
        (LogUnavailable("no leader"), True, 1),
        (Count(LENGTH, LAST), False, 1),
    ],
    ids=["same", "other turns go on", "one more", "leader behind", "expired", "no leader", "from a cursor"],
)
def test_entries_are_read_unless_their_number_proves_the_chain(
    count: Count | LogUnavailable, is_known: bool, reads: int
) -> None:
    log = open_log()
    server = ScriptedServer(count=[count], read=[page(*log.stored)])
    chain = log.chain if is_known else msgspec.structs.replace(log.chain, length=None)
    assert run(is_stored_chain(server, KEY, chain))
    assert server.names.count("read") == reads
