"""Invariants of the log alone, and of the story that it tells. Pure."""

from collections.abc import Iterator
from itertools import pairwise

from tailrace.proto import subjects
from tailrace.proto.chain import START, link
from tailrace.proto.entries import Attempt, Request
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tailrace.proto.subjects import TurnKey
from tests import promises
from tests.checker import oracle
from tests.checker.bounds import Bounds
from tests.checker.history import Append, Ask, Fault, Look, Read
from tests.checker.run import NS_PER_S, Run
from tests.checker.verdict import broken, verdict
from tests.promises import Verdict


def order(run: Run, _: Bounds) -> Verdict:
    """I1: each entry came behind the fence, and the valid ones are one chain from one request; on one node, all are."""
    return verdict(len(run.log), "entries", _out_of_order(run))


def _out_of_order(run: Run) -> Iterator[Verdict]:
    for before, after in pairwise(run.log):
        if after.seq <= before.seq:
            yield broken(f"{after.seq} comes after {before.seq} in the log", before, after)
    for key, entered in run.turns.items():
        chain, tail = START, Seq(0)
        for logged, stored in zip(entered.logged, entered.stored, strict=True):
            if logged.fence is None or logged.fence_subject != subjects.entries(key):
                yield broken(f"{logged.seq} of {key.turn} was stored without its fence", logged)
            elif run.rest.nodes == 1 and logged.fence != tail:
                yield broken(f"{logged.seq} of {key.turn} was let in behind {logged.fence}, after {tail}", logged)
            linked = link(chain, stored.seq, stored.entry)
            if linked is None and run.rest.nodes == 1:
                yield broken(
                    f"{logged.seq} of {key.turn} is not valid after {chain.last}, and one node stores no forks", logged
                )
            chain, tail = linked or chain, logged.seq
        # Whatever else a fork may be, it goes on from something.
        if entered.valid[:1] != entered.stored[:1] and key not in run.deleted:
            yield broken(f"the log of {key.turn} does not begin with a request", *entered.logged[:2])


def one_end(run: Run, bounds: Bounds) -> Verdict:
    """I2: exactly one end for every turn that is in the log or was acknowledged, and nothing after it (promise 3)."""
    owed = (run.acknowledged | set(run.turns)) - run.deleted
    return verdict(len(owed), "turns", _without_one_end(run, bounds, owed))


def _without_one_end(run: Run, bounds: Bounds, owed: set[TurnKey]) -> Iterator[Verdict]:
    last_fault = max((fault.returned or fault.invoked for fault in run.of(Fault)), default=0)
    undisturbed = max(last_fault, _last_asked(run))
    had_its_time = run.rest.collected - undisturbed >= bounds.end_s * NS_PER_S
    for key in owed:
        entered = run.turns.get(key)
        if run.folds.get(key, Turn()).end is None:
            tail = entered.logged[-1:] if entered else []
            late = f"within {bounds.end_s:g} s" if had_its_time else "yet, and was not given its time"
            yield Verdict(False if had_its_time else None, f"{key.turn} has no end {late}", tuple(tail))
            continue
        ended_at = run.folds[key].ended_at
        ended = run.monotonic(ended_at) if ended_at is not None else None
        if bounds.end_s and ended is not None and ended - undisturbed > bounds.end_s * NS_PER_S:
            late_s = (ended - undisturbed) / NS_PER_S
            yield broken(f"{key.turn} had its end {late_s:.0f} s after the last fault and the last question")
        kept = promises.one_end(run.history(key))
        if kept.holds is not True:
            end = run.folds[key].chain.last
            after = [one for one in entered.logged if one.seq >= end][:2] if entered else []
            yield kept._replace(shown=tuple(after))


def _last_asked(run: Run) -> int:
    return max((ask.invoked for ask in run.of(Ask)), default=0)


def attempts(run: Run, _: Bounds) -> Verdict:
    """I3: attempts are numbered 1, 2, 3…; what belongs to one comes after it and before the next, from one process."""
    return verdict(len(run.turns), "turns", _wrong_attempts(run))


def _wrong_attempts(run: Run) -> Iterator[Verdict]:
    writers = {append.seq: append for append in run.of(Append) if append.outcome == "ok"}
    for key, entered in run.turns.items():
        number, taken_by = 0, None
        for stored in entered.valid:
            if isinstance(stored.entry, Request):
                continue
            of = getattr(stored.entry, "attempt", 0)
            append = writers.get(stored.seq)
            if isinstance(stored.entry, Attempt):
                if of != number + 1:
                    yield broken(f"{key.turn}: attempt {of} at {stored.seq} follows attempt {number}", stored)
                number, taken_by = of, append
            elif of != number:
                yield broken(f"{key.turn}: {stored.seq} says it is of attempt {of}, during attempt {number}", stored)
            elif append and taken_by and append.process != taken_by.process and append.kind != "end":
                yield broken(f"{key.turn}: {append.process} wrote in attempt {number}, not its own", taken_by, append)


def text(run: Run, _: Bounds) -> Verdict:
    """I5: the answer is what the model had to say, as far as it goes; the whole of it when it is completed."""
    wanted = {
        key: answer
        for key, turn in run.folds.items()
        if turn.request is not None and (answer := oracle.answer_of(turn.request)) is not None
    }
    return verdict(len(wanted), "answers", _wrong_texts(run, wanted))


def _wrong_texts(run: Run, wanted: dict[TurnKey, dict[str, str]]) -> Iterator[Verdict]:
    for key, answer in wanted.items():
        turn = run.folds[key]
        for kind, said in oracle.said(turn).items():
            is_right = said == answer[kind] if oracle.has_to_be_whole(turn) else answer[kind].startswith(said)
            if not is_right:
                yield broken(f"{key.turn} ({turn.outcome}), {kind}: {oracle.difference(answer[kind], said)}")
    for look in run.of(Look):
        if look.key not in wanted or look.text is None:
            continue
        answer, turn = wanted[look.key], run.folds[look.key]
        is_whole = look.cursor == turn.chain.last and oracle.has_to_be_whole(turn)
        if not (look.text == answer["text"] if is_whole else answer["text"].startswith(look.text)):
            yield broken(f"{look.process} of {look.turn}: {oracle.difference(answer['text'], look.text)}", look)
    for read in run.of(Read):
        if read.key not in wanted or read.text is None:
            continue
        answer, turn = wanted[read.key], run.folds[read.key]
        is_whole = read.over == "ended" and oracle.has_to_be_whole(turn)
        if not (read.text == answer["text"] if is_whole else answer["text"].startswith(read.text)):
            yield broken(f"{read.process} of {read.turn}: {oracle.difference(answer['text'], read.text)}", read)
