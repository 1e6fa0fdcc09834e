"""Invariants of what workers did: appended, acknowledged, committed. Pure."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tailrace.proto.entries import Attempt, End
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, TurnKey
from tests import promises
from tests.checker import oracle
from tests.checker.bounds import Bounds
from tests.checker.history import Ack, Append, Ask, Commit
from tests.checker.run import NS_PER_S, Place, Run
from tests.checker.verdict import broken, unknown, verdict
from tests.promises import Verdict


def no_loss(run: Run, _: Bounds) -> Verdict:
    """I4: what was acknowledged is in the log with its bytes; what is unclear, at most once; what failed, not."""
    appends = [append for append in run.of(Append) if append.key not in run.deleted]
    asks = [ask for ask in run.of(Ask) if ask.outcome == "ok" and ask.key not in run.deleted]
    return verdict(len(appends) + len(asks), "appends and POSTs", _lost(run, appends, asks))


def _lost(run: Run, appends: Sequence[Append], asks: Sequence[Ask]) -> Iterator[Verdict]:
    # An entry's bytes say which generator wrote it, and after which: two are the same only if one was repeated.
    copies: dict[tuple[TurnKey, str], list[Place]] = defaultdict(list)
    for place in run.places.values():
        copies[place.key, place.sha256].append(place)
    valid = {stored.seq for entered in run.turns.values() for stored in entered.valid}
    twice = set()
    for append in appends:
        assert append.key is not None
        what = f"{append.process}'s {append.kind} of {append.turn}"
        same = copies.get((append.key, append.sha256), [])
        if append.outcome == "ok":
            found = run.places.get(append.seq)
            if found is None:
                yield broken(f"{what} was acknowledged at {append.seq}, where nothing stands", append)
            elif (found.key, found.kind, found.sha256) != (append.key, append.kind, append.sha256):
                yield broken(f"{what} was acknowledged at {append.seq}, where other stands", append, found.logged)
        elif append.outcome == "fail" and any(
            place.logged.seq in valid and not _is_overtaken(run, place) for place in same
        ):
            yield broken(f"{what} was told that it is not stored, and it stands", append)
        if run.rest.nodes == 1 and len(same) > 1 and same[0].logged.seq not in twice:
            twice.add(same[0].logged.seq)
            yield broken(f"{what} is stored {len(same)} times", append, *(place.logged for place in same[:2]))
    for ask in asks:
        if ask.key is None:
            yield broken("a POST was answered without a turn", ask)
            continue
        request = run.folds.get(ask.key, Turn()).request
        if request is None:
            yield broken(f"{ask.turn} was acknowledged, and its request is not in the log", ask)
        elif ask.question and oracle.question_of(request) != ask.question:
            yield broken(f"{ask.turn} asks {oracle.question_of(request)!r}", ask)


def _is_overtaken(run: Run, place: Place) -> bool:
    """Whether this is an attempt that another writer has followed: who finds it so has lost the fence (R13)."""
    valid = run.turns[place.key].valid
    behind = bisect_right(valid, place.logged.seq, key=lambda stored: stored.seq)
    return place.kind == "attempt" and behind < len(valid) and isinstance(valid[behind].entry, Attempt | End)


def rows(run: Run, bounds: Bounds) -> Verdict:
    """I10: SQLite has each turn once, as the log tells it, and nothing was acknowledged before it was there (4, 5)."""
    if run.rows is None:
        return unknown("nobody looked into SQLite")
    return verdict(len(run.rows), "rows", _wrong_rows(run, bounds))


def _wrong_rows(run: Run, bounds: Bounds) -> Iterator[Verdict]:
    assert run.rows is not None
    for key, count in Counter(TurnKey(row.tenant, row.record.turn) for row in run.rows).items():
        if count > 1:
            yield broken(f"{key.turn} has {count} rows")
    for key, turn in run.folds.items():
        if key in run.deleted or turn.request is None:
            continue
        history = run.history(key)
        kept = [promises.nothing_forgotten(history), promises.same_row(history, key, turn)]
        if turn.end is not None:
            yield from (one for one in kept if one.holds is not True)
    for row in run.rows:
        key = TurnKey(row.tenant, row.record.turn)
        if key not in run.turns and key not in run.deleted:
            yield broken(f"{key.turn} has a row, and the log nothing of it", row)
    yield from _early_acks(run)
    if run.rest.queues is None:
        yield unknown("nobody asked how far persistence is")
    elif (queue := run.rest.queues.get(PERSISTENCE)) is None or queue.waiting or queue.leased:
        yield broken(f"persistence is behind: {queue}")


def _early_acks(run: Run) -> Iterator[Verdict]:
    """Acknowledgements by persistence of what no transaction held yet."""
    commits = run.of(Commit)
    if not commits:
        return
    # Whoever committed: what is in the file is there for all.
    held: dict[str, list[tuple[Seq, int]]] = defaultdict(list)
    for commit in commits:
        if commit.outcome == "ok" and commit.returned is not None:
            for name, cursor in commit.rows.items():
                held[name].append((cursor, commit.returned))
    for ack in run.of(Ack):
        if ack.consumer != PERSISTENCE or ack.key is None or ack.key not in run.turns or ack.key in run.deleted:
            continue
        name = f"{ack.tenant} {ack.turn}"
        if not any(cursor >= ack.seq and at <= ack.invoked for cursor, at in held[name]):
            yield broken(f"{ack.process} acknowledged {ack.seq} of {ack.turn} before it was committed", ack)


def leases(run: Run, bounds: Bounds) -> Verdict:
    """I14: a request is acknowledged after its turn has its end, and never before (PROTOCOL R17)."""
    acks = [
        ack for ack in run.of(Ack) if ack.consumer == GENERATORS and ack.key in run.turns and ack.key not in run.deleted
    ]
    return verdict(len(acks), "acknowledgements by generators", _too_early(run, bounds, acks))


def _too_early(run: Run, bounds: Bounds, acks: Sequence[Ack]) -> Iterator[Verdict]:
    for ack in acks:
        turn = run.folds[ack.key] if ack.key is not None else Turn()
        ended = run.monotonic(turn.ended_at) if turn.ended_at is not None else None
        if turn.end is None:
            yield broken(f"{ack.process} acknowledged {ack.turn}, which has no end", ack)
        elif ended is None:
            yield unknown("nobody looked at the clock", ack)
        elif ended > ack.invoked + bounds.clock_s * NS_PER_S:
            early_s = (ended - ack.invoked) / NS_PER_S
            yield broken(f"{ack.process} acknowledged {ack.turn} {early_s:.2f} s before its end", ack)
