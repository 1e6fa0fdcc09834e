"""Invariants of the log and of the answers in it. Pure functions."""

from collections.abc import Iterator

from tailrace.deploy.simulated_claude.answer import Part
from tailrace.proto import subjects
from tailrace.proto.chain import START, link
from tailrace.proto.entries import Attempt, Request
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq, TurnKey
from tests import promises
from tests.checker import expected_answer
from tests.checker.history import Append, Fault, Get, Post, Read
from tests.checker.run import NS_PER_S, Run
from tests.checker.verdicts import Bounds, combine, violation
from tests.promises import Verdict


def order(run: Run, _: Bounds) -> Verdict:
    """I1: each entry has its turn's fence, and the valid ones are one chain from a request; on one server, all are."""
    return combine(len(run.log), "entries", _order_problems(run))


def _order_problems(run: Run) -> Iterator[Verdict]:
    for key, turn in run.turns.items():
        chain, tail = START, Seq(0)
        for message, stored in zip(turn.messages, turn.stored, strict=True):
            name = f"{message.seq} of {key.turn}"
            if message.fence is None or message.fence_subject != subjects.entries(key):
                yield violation(f"{name} was stored without its fence", message)
            elif run.final.servers == 1 and message.fence != tail:
                yield violation(f"{name} was stored with the fence {message.fence} after {tail}", message)
            linked = link(chain, stored.seq, stored.entry)
            if linked is None and run.final.servers == 1:
                yield violation(f"{name} is not valid after {chain.last}; one server stores no forks", message)
            chain, tail = linked or chain, message.seq
        if turn.valid[:1] != turn.stored[:1] and key not in run.deleted_turns:
            yield violation(f"the log of {key.turn} does not begin with a request", *turn.messages[:2])


def one_end(run: Run, bounds: Bounds) -> Verdict:
    """I2: each turn in the log and each acknowledged turn has one end, and nothing after it (promise 3)."""
    expected = (run.acknowledged_turns | set(run.turns)) - run.deleted_turns
    return combine(len(expected), "turns", _end_problems(run, bounds, expected))


def _end_problems(run: Run, bounds: Bounds, expected: set[TurnKey]) -> Iterator[Verdict]:
    last_fault = max((fault.returned or fault.invoked for fault in run.of(Fault)), default=0)
    quiet_since = max(last_fault, _last_post(run))
    is_late = run.final.collected - quiet_since >= bounds.end_s * NS_PER_S
    for key in expected:
        logged = run.turns.get(key)
        if run.folds.get(key, Turn()).end is None:
            tail = logged.messages[-1:] if logged else []
            late = f"after {bounds.end_s:g} s" if is_late else "yet; the run was collected too early"
            yield Verdict(False if is_late else None, f"{key.turn} has no end {late}", tuple(tail))
            continue
        ended_at = run.folds[key].ended_at
        ended = run.monotonic(ended_at) if ended_at is not None else None
        if bounds.end_s and ended is not None and ended - quiet_since > bounds.end_s * NS_PER_S:
            late_s = (ended - quiet_since) / NS_PER_S
            yield violation(f"{key.turn} ended {late_s:.0f} s after the last fault and the last POST")
        verdict = promises.one_end(run.history(key))
        if verdict.holds is not True:
            end = run.folds[key].chain.last
            after = [one for one in logged.messages if one.seq >= end][:2] if logged else []
            yield verdict._replace(shown=tuple(after))


def _last_post(run: Run) -> int:
    return max((post.invoked for post in run.of(Post)), default=0)


def attempts(run: Run, _: Bounds) -> Verdict:
    """I3: attempts are numbered 1, 2, 3…; the entries of one are between it and the next, and from one process."""
    return combine(len(run.turns), "turns", _attempt_problems(run))


def _attempt_problems(run: Run) -> Iterator[Verdict]:
    writers = {append.seq: append for append in run.of(Append) if append.outcome == "ok"}
    for key, turn in run.turns.items():
        number, begun_by = 0, None
        for stored in turn.valid:
            if isinstance(stored.entry, Request):
                continue
            of = getattr(stored.entry, "attempt", 0)
            append = writers.get(stored.seq)
            if isinstance(stored.entry, Attempt):
                if of != number + 1:
                    yield violation(f"{key.turn}: attempt {of} at {stored.seq} follows attempt {number}", stored)
                # Every process writes the same bytes from the result of a message batch (PROTOCOL R67).
                number, begun_by = of, append if not stored.entry.is_shared else None
            elif of != number:
                yield violation(f"{key.turn}: {stored.seq} is of attempt {of}, during attempt {number}", stored)
            elif append and begun_by and append.process != begun_by.process and append.kind != "end":
                yield violation(
                    f"{key.turn}: {append.process} wrote in attempt {number} of another process", begun_by, append
                )


def text(run: Run, _: Bounds) -> Verdict:
    """I5: the answer is a prefix of the simulated Claude's, and all of it if the turn is completed.

    The end has its hash and the usage of the log. A GET has the text of the log up to its cursor. A reader of plain
    text has a prefix of the answer, and the text of the log if it received all of it.
    """
    expected = {
        key: answer
        for key, turn in run.folds.items()
        if turn.request is not None and (answer := expected_answer.expected_answer(turn.request)) is not None
    }
    return combine(len(expected), "answers", _text_problems(run, expected))


def _text_problems(run: Run, expected: dict[TurnKey, Part]) -> Iterator[Verdict]:
    for key, answer in expected.items():
        turn = run.folds[key]
        is_whole = expected_answer.is_whole(turn)
        for kind in ("text", "thinking", "tool_use"):
            found = "".join(block.text for block in turn.blocks if block.type == kind)
            if problem := _difference(_content(answer, kind), found, is_whole=is_whole):
                yield violation(f"{key.turn} ({turn.outcome}), {kind}: {problem}")
        if is_whole and turn.attempt == 1 and turn.usage.output_tokens != answer.deltas:
            yield violation(f"{key.turn} has {turn.usage.output_tokens} output tokens instead of {answer.deltas}")
        if turn.end is not None:
            yield promises.compare_end(key, turn, turn.end)
    responses: list[Get | Read] = [*run.of(Get), *run.of(Read)]
    for one in responses:
        if one.key not in expected or one.key in run.deleted_turns or one.text is None:
            continue
        is_whole = isinstance(one, Get) or one.over == "ended"
        wanted = run.folds[one.key].text if is_whole else _content(expected[one.key], "text")
        if isinstance(one, Get):
            shown = [stored for stored in run.turns[one.key].valid if stored.seq <= one.cursor]
            wanted = fold(shown).text
            if not shown or shown[-1].seq != one.cursor:
                yield violation(f"{one.process} got {one.turn} up to {one.cursor}, which is not a valid entry", one)
        if problem := _difference(wanted, one.text, is_whole=is_whole):
            yield violation(f"{one.process} of {one.turn}: {problem}", one)


def _content(answer: Part, kind: str) -> str:
    return "".join(block.content for block in answer.blocks if block.kind == kind)


def _difference(expected: str, found: str, *, is_whole: bool) -> str:
    """Describes where `found` differs from `expected`; empty when it is a prefix, or with `is_whole` the same."""
    if found == expected or (not is_whole and expected.startswith(found)):
        return ""
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((n for n, (one, other) in pairs if one != other), min(len(expected), len(found)))
    begin = max(at - 10, 0)
    return f"after {at} characters {found[begin : at + 20]!r} instead of {expected[begin : at + 20]!r}"
