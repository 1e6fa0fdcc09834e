"""Invariants of the appends, acknowledgements, commits and resources of processes. Pure functions."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tailrace.proto.entries import Attempt, End
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests import promises
from tests.checker import expected_answer
from tests.checker.history import Ack, Append, Commit, Post, ResourceCount
from tests.checker.run import NS_PER_S, Position, Run
from tests.checker.verdicts import Bounds, combine, unknown, violation
from tests.promises import History, Verdict


def no_loss(run: Run, _: Bounds) -> Verdict:
    """I4: an acknowledged append is in the log with its bytes, a failed one is not, an unclear one at most once."""
    appends = [append for append in run.of(Append) if append.key not in run.deleted_turns]
    posts = [post for post in run.of(Post) if post.outcome == "ok" and post.key not in run.deleted_turns]
    return combine(len(appends) + len(posts), "appends and POSTs", _loss_problems(run, appends, posts))


def _loss_problems(run: Run, appends: Sequence[Append], posts: Sequence[Post]) -> Iterator[Verdict]:
    # An entry's bytes contain its generator and its predecessor, so equal entries are a repeated append.
    copies: dict[tuple[TurnKey, str], list[Position]] = defaultdict(list)
    for position in run.positions.values():
        copies[position.key, position.sha256].append(position)
    valid = {stored.seq for turn in run.turns.values() for stored in turn.valid}
    reported = set()
    for append in appends:
        assert append.key is not None
        name = f"{append.process}'s {append.kind} of {append.turn}"
        same = copies.get((append.key, append.sha256), [])
        if append.outcome == "ok":
            found = run.positions.get(append.seq)
            if found is None:
                yield violation(f"{name} was acknowledged at {append.seq}, which is not in the log", append)
            elif (found.key, found.kind, found.sha256) != (append.key, append.kind, append.sha256):
                yield violation(f"{name} was acknowledged at {append.seq}, a different entry", append, found.message)
        elif append.outcome == "fail" and any(
            position.message.seq in valid and not _is_superseded(run, position) for position in same
        ):
            yield violation(f"{name} failed, and it is in the log", append)
        if run.final.servers == 1 and len(same) > 1 and same[0].message.seq not in reported:
            reported.add(same[0].message.seq)
            yield violation(f"{name} is stored {len(same)} times", append, *(one.message for one in same[:2]))
    for post in posts:
        if post.key is None:
            yield violation("a POST was answered without a turn", post)
            continue
        request = run.folds.get(post.key, Turn()).request
        if request is None:
            yield violation(f"{post.turn} was acknowledged, and its request is not in the log", post)
        elif post.question and expected_answer.question_of(request) != post.question:
            yield violation(f"the question of {post.turn} is {expected_answer.question_of(request)!r}", post)


def _is_superseded(run: Run, position: Position) -> bool:
    """Whether another writer's attempt or end follows this attempt, so that its own append reported FenceLost (R13)."""
    valid = run.turns[position.key].valid
    behind = bisect_right(valid, position.message.seq, key=lambda stored: stored.seq)
    return position.kind == "attempt" and behind < len(valid) and isinstance(valid[behind].entry, Attempt | End)


def rows(run: Run, _: Bounds) -> Verdict:
    """I10: SQLite has each turn of the log once and no other, committed before it was acknowledged (promises 4, 5)."""
    if run.rows is None:
        return unknown("the rows were not recorded")
    return combine(len(run.rows), "rows", _row_problems(run))


def _row_problems(run: Run) -> Iterator[Verdict]:
    assert run.rows is not None
    for key, count in Counter(TurnKey(row.tenant, row.record.turn) for row in run.rows).items():
        if count > 1:
            yield violation(f"{key.turn} has {count} rows")
    for key, turn in run.folds.items():
        if key in run.deleted_turns or turn.request is None:
            continue
        history = run.history(key)
        verdicts = [promises.nothing_forgotten(history), promises.compare_row(history, key, turn)]
        if turn.end is not None:
            yield from (verdict for verdict in verdicts if verdict.holds is not True)
    for row in run.rows:
        key = TurnKey(row.tenant, row.record.turn)
        if key not in run.turns and key not in run.deleted_turns:
            yield violation(f"{key.turn} has a row and is not in the log", row)
    yield from _uncommitted_acks(run)
    if run.final.backlogs is None:
        yield unknown("the backlog of persistence was not recorded")
    elif (backlog := run.final.backlogs.get(PERSISTENCE)) is None or backlog.waiting or backlog.leased:
        yield violation(f"persistence has a backlog: {backlog}")


def _uncommitted_acks(run: Run) -> Iterator[Verdict]:
    """Yields acknowledgements by persistence of entries that were not committed."""
    commits = run.of(Commit)
    if not commits:
        return
    committed: dict[str, list[tuple[Seq, int]]] = defaultdict(list)
    for commit in commits:
        if commit.outcome == "ok" and commit.returned is not None:
            for name, cursor in commit.rows.items():
                committed[name].append((cursor, commit.returned))
    for ack in run.of(Ack):
        if ack.consumer != PERSISTENCE or ack.key is None or ack.key not in run.turns or ack.key in run.deleted_turns:
            continue
        name = f"{ack.tenant} {ack.turn}"
        if not any(cursor >= ack.seq and at <= ack.invoked for cursor, at in committed[name]):
            yield violation(f"{ack.process} acknowledged {ack.seq} of {ack.turn} before it was committed", ack)


def leases(run: Run, bounds: Bounds) -> Verdict:
    """I14: a generator acknowledges a request after its turn's end (PROTOCOL R17)."""
    acks = [
        ack
        for ack in run.of(Ack)
        if ack.consumer == GENERATORS and ack.key in run.turns and ack.key not in run.deleted_turns
    ]
    return combine(len(acks), "acknowledgements by generators", _lease_problems(run, bounds, acks))


def _lease_problems(run: Run, bounds: Bounds, acks: Sequence[Ack]) -> Iterator[Verdict]:
    for ack in acks:
        turn = run.folds[ack.key] if ack.key is not None else Turn()
        ended = run.monotonic(turn.ended_at) if turn.ended_at is not None else None
        if turn.end is None:
            yield violation(f"{ack.process} acknowledged {ack.turn}, which has no end", ack)
        elif ended is None:
            yield unknown("there is no clock reading", ack)
        elif ended > ack.invoked + bounds.clock_s * NS_PER_S:
            early_s = (ended - ack.invoked) / NS_PER_S
            yield violation(f"{ack.process} acknowledged {ack.turn} {early_s:.2f} s before its end", ack)


def resources(run: Run, bounds: Bounds) -> Verdict:
    """I12: at the end each count is at most what it was at the beginning, and memory does not grow.

    A restarted process may hold no more than the one before it. Memory is compared only without a restart.
    """
    counts: dict[str, list[ResourceCount]] = defaultdict(list)
    for count in run.of(ResourceCount):
        counts[count.subject].append(count)
    twice = {subject: some for subject, some in counts.items() if len(some) > 1}
    return combine(len(twice), "processes that were counted twice", _resource_problems(twice, bounds))


def budgets(run: Run, _: Bounds) -> Verdict:
    """I21: once all is quiet, no budget and no slot is held for a turn that does not exist (promise 6)."""
    verdict = promises.nothing_held(History(budgets=run.final.budgets, samples=run.final.samples))
    return verdict._replace(evidence=verdict.evidence or promises.held_in_all(run.final.budgets or ()))


def _resource_problems(counts: dict[str, list[ResourceCount]], bounds: Bounds) -> Iterator[Verdict]:
    for subject, (first, *_, last) in counts.items():
        for name, count in last.counts.items():
            more = count - first.counts.get(name, 0)
            if name != "rss_bytes" and more > 0:
                yield violation(f"{subject} has {more} {name} more than at the beginning", first, last)
        took_s = (last.invoked - first.invoked) / NS_PER_S
        if first.pid == last.pid and "rss_bytes" in first.counts and took_s >= bounds.rss_judged_after_s:
            slope = (last.counts.get("rss_bytes", 0) - first.counts["rss_bytes"]) / took_s * 3600
            if slope > bounds.rss_bytes_per_h:
                yield violation(f"{subject} grows by {slope / 2**20:.1f} MiB an hour", first, last)
