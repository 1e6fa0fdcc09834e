"""Invariants of batches and of deletions. Pure functions.

The turns of the inputs are judged like all others: I2 their ends, I5 their texts, I9 their calls, I10 their rows.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from math import inf

from tailrace.features.batches import input_lines
from tailrace.proto.entries import Progress
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tests.checker import expected_answer
from tests.checker.client_invariants import Request
from tests.checker.history import Cancel, Delete, Fault, GetBatch, Post, Results
from tests.checker.run import Run
from tests.checker.verdicts import Bounds, combine, unknown, violation
from tests.promises import Verdict

NOT_FOUND = 404


def inputs(run: Run, _: Bounds) -> Verdict:
    """I16: each input of an accepted batch is one turn, and its line of the results has the answer of this turn.

    An input of a batch that was cancelled may be no turn.
    """
    kept = _kept_batches(run)
    problems = chain(_turn_problems(run, kept), _line_problems(run, kept))
    return combine(sum(len(post.inputs) for post in kept.values()), "inputs", problems)


def _kept_batches(run: Run) -> dict[TurnKey, Post]:
    return {key: post for key, post in run.batches.items() if key not in run.deleted_turns}


def _turn_problems(run: Run, kept: dict[TurnKey, Post]) -> Iterator[Verdict]:
    for key, post in kept.items():
        for (name, question), child in zip(post.inputs.items(), run.inputs_of(key), strict=True):
            request = run.folds.get(child, Turn()).request
            if child in run.deleted_turns:
                continue
            if request is None:
                if run.folds.get(key, Turn()).outcome == "completed":
                    yield violation(f"{key.turn} is completed, and its input {name} is no turn", post)
                continue
            found = (request.parent, input_lines.custom_id(request), expected_answer.question_of(request))
            if found != (key.turn, name, question):
                yield violation(f"{child.turn} is not the input {name} of {key.turn}: {found}", post)
        known = set(run.inputs_of(key))
        for child, turn in run.folds.items():
            if turn.request is not None and turn.request.parent == key.turn and child not in known:
                yield violation(f"{child.turn} is no input of {key.turn}, its batch", post)


def _line_problems(run: Run, kept: dict[TurnKey, Post]) -> Iterator[Verdict]:
    for one in run.of(Results):
        if one.key is None or one.key not in kept:
            continue
        of_batch, names = run.folds.get(one.key, Turn()), list(kept[one.key].inputs)
        turns = dict(zip(names, run.inputs_of(one.key), strict=True))
        expected, received = names[one.after + 1 :], [line.custom_id for line in one.lines]
        rest = iter(expected)
        if not all(name in rest for name in received):
            yield violation(f"{one.process} received the lines {received} of {one.turn}, which has {expected}", one)
            continue
        ended = run.monotonic(of_batch.ended_at) if of_batch.ended_at is not None else None
        is_completed = of_batch.outcome == "completed"
        if is_completed and one.is_whole and ended is not None and ended < one.invoked and received != expected:
            yield violation(f"{one.process} received {len(received)} of {len(expected)} lines of {one.turn}", one)
        for line in one.lines:
            turn = run.folds.get(turns[line.custom_id], Turn())
            # The answers of a cancelled message batch are stored after its end.
            if turns[line.custom_id] in run.deleted_turns or not (is_completed or line.outcome == "completed"):
                continue
            if (line.outcome, line.text) != (turn.outcome, turn.text):
                yield violation(f"{one.process} received {line}, and its turn is {turn.outcome}: {turn.text!r}", one)


def payment(run: Run, _: Bounds) -> Verdict:
    """I17: an input is in one message batch and in no call. If it was answered there, its turn is completed.

    Exception: where the clock of a generator is wrong, a message batch may be made twice (ADR 21).
    """
    account = run.final.account
    if account is None:
        return unknown("the model's calls were not recorded")
    return combine(len(account.submitted), "requests of message batches", _payment_problems(run))


def _payment_problems(run: Run) -> Iterator[Verdict]:
    account = run.final.account
    assert account is not None
    kept: dict[str, TurnKey] = {
        child.turn: child
        for key in _kept_batches(run)
        for child in run.inputs_of(key)
        if child not in run.deleted_turns
    }
    first = {one.custom_id: one for one in reversed(account.submitted)}
    for one in account.submitted:
        other = first[one.custom_id]
        if other is not one and not _is_clock_wrong(run, one.created):
            names = f"{other.message_batch} ({other.over}) and {one.message_batch} ({one.over})"
            yield violation(f"{one.custom_id} is in {names}", other, one)
        child = kept.get(one.custom_id)
        if child is not None and one.over == "succeeded" and run.folds.get(child, Turn()).outcome != "completed":
            yield violation(f"{one.custom_id} was answered in {one.message_batch}, and is not completed", one)
    cheap = {question for post in run.of(Post) if post.via != "messages" for question in post.inputs.values()}
    for call in account.calls:
        if call.question in cheap:
            yield violation(f"{call.question} is the input of a message batch, and has a call", call)


def _is_clock_wrong(run: Run, at: int) -> bool:
    faults = (one for one in run.of(Fault) if one.kind == "jump-clock" and one.target.startswith("generator"))
    return any(one.invoked <= at <= (one.returned or at) for one in faults)


def counts(run: Run, _: Bounds) -> Verdict:
    """I18: a batch that no client cancelled is completed; its counts are those of its turns, at every gateway.

    They never decrease, and do not change after the end. Each progress entry has more ended turns (PROTOCOL R64).
    """
    kept = _kept_batches(run)
    requests = [one for one in run.of(GetBatch) if one.outcome == "ok" and one.key in kept]
    return combine(len(requests), "GETs of batches", _count_problems(run, kept, requests))


def _count_problems(run: Run, kept: dict[TurnKey, Post], requests: Sequence[GetBatch]) -> Iterator[Verdict]:
    cancelled = {one.key for one in run.of(Cancel)}
    for key, post in kept.items():
        of_batch, children = run.folds.get(key, Turn()), run.inputs_of(key)
        if of_batch.end is None:
            continue
        done, failed = (of_batch.progress.done, of_batch.progress.failed) if of_batch.progress else (0, 0)
        completed = sum(run.folds.get(child, Turn()).outcome == "completed" for child in children)
        deleted = sum(child in run.deleted_turns for child in children)
        name = f"{key.turn} ({of_batch.outcome}; {done} done, {failed} failed, {completed} completed turns)"
        if of_batch.outcome == "completed":
            if done + failed != len(children) or not completed <= done <= completed + deleted:
                yield violation(f"{name} does not count its {len(children)} inputs", post)
        elif of_batch.outcome == "failed" or key not in cancelled:
            yield violation(f"{name} was not cancelled by a client", post)
        elif done > completed + deleted:
            yield violation(f"{name} counts too many", post)
        stored = [one.entry for one in run.turns[key].valid if isinstance(one.entry, Progress)]
        for earlier, later in pairwise(stored):
            if later.done + later.failed <= earlier.done + earlier.failed:
                yield violation(f"{name} has a progress entry without an end of a turn", earlier, later)
        of_key = [one for one in requests if one.key == key]
        for one in of_key:
            shown = (one.ended, one.done, one.failed)
            if one.ended is not None and shown != (of_batch.outcome, done, failed):
                yield violation(f"{one.process} received {shown} of {name}", one)
            before = max(
                (other for other in of_key if (other.returned or inf) <= one.invoked), key=_progress_of, default=one
            )
            if _progress_of(one) < _progress_of(before):
                yield violation(f"{one.process} received {shown} of {name}, after a later state", before, one)


def _progress_of(one: GetBatch) -> tuple[bool, int]:
    return one.ended is not None, one.done + one.failed


def deletion(run: Run, _: Bounds) -> Verdict:
    """I19: after an acknowledged deletion nothing of the turn, nor of a batch's inputs, is stored or can be read.

    A blob that is marked as deleted is purged when no process holds it (PROTOCOL R34). A second deletion that finds
    nothing shows the same, except for blobs: those of a deletion that lost its database stay until they expire.
    """
    # An accepted batch exists, so one that is not found has been deleted.
    deletes = [
        one for one in run.of(Delete) if one.outcome == "ok" or (one.status == NOT_FOUND and one.key in run.batches)
    ]
    return combine(len(deletes), "deletions", (bad for one in deletes for bad in _deletion_problems(run, one)))


def _deletion_problems(run: Run, delete: Delete) -> Iterator[Verdict]:
    assert delete.key is not None
    keys = {delete.key, *run.inputs_of(delete.key)}
    for key in keys:
        if key in run.turns:
            yield violation(f"{key.turn} was deleted, and is in the log", delete, *run.turns[key].messages[:2])
        if key in (run.records or {}):
            yield violation(f"{key.turn} was deleted, and has a row", delete)
    for one in run.operations:
        is_after = isinstance(one, Request) and delete.returned is not None and one.invoked > delete.returned
        if is_after and one.key in keys and one.outcome == "ok" and not isinstance(one, Post):
            yield violation(f"{one.process} found {one.turn}, which was deleted", delete, one)
    is_whole = delete.outcome == "ok" and delete.key in run.batches
    questions = run.batches[delete.key].inputs.values() if is_whole else ()
    for blob in run.blobs or ():
        if any(question in blob.payload for question in questions) and not _is_marked(run, blob.subject):
            yield violation(f"{blob.subject} has inputs of {delete.turn}, which was deleted", delete)


def _is_marked(run: Run, chunk: str) -> bool:
    """Returns whether the blob of a chunk is marked as deleted."""
    mark = next((one for one in run.blobs or () if one.subject == chunk.rpartition(".")[0]), None)
    return mark is not None and '"is_doomed":true' in mark.payload
