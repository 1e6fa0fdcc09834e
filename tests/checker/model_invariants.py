"""Invariants of the calls of the model: how many there are, and for how long. Pure functions."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tailrace.deploy.simulated_claude.account import Call
from tailrace.proto.entries import Attempt
from tailrace.proto.ids import TurnKey
from tests.checker import expected_answer
from tests.checker.history import Cancel, Fault
from tests.checker.run import NS_PER_S, Run
from tests.checker.verdicts import Bounds, combine, unknown, violation
from tests.promises import Verdict


def cancellation(run: Run, _: Bounds) -> Verdict:
    """I8: a turn whose cancellation succeeded has an end. I9 judges its calls."""
    cancels = [cancel for cancel in run.of(Cancel) if cancel.outcome == "ok" and cancel.key not in run.deleted_turns]
    endless = (one for one in cancels if one.key not in run.folds or run.folds[one.key].end is None)
    return combine(
        len(cancels), "cancellations", (violation(f"{one.turn} was cancelled and has no end", one) for one in endless)
    )


def cost(run: Run, bounds: Bounds) -> Verdict:
    """I9: calls <= attempts + refusals; attempts <= 1 + failures + faults; no call before the POST or after the end."""
    account = run.final.account
    if account is None:
        return unknown("the model's calls were not recorded")
    if account.forgotten:
        return unknown(f"the model has dropped {account.forgotten} calls from its report")
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in account.calls:
        calls[call.key].append(call)
    return combine(len(account.calls), "calls", _cost_problems(run, bounds, calls))


def _cost_problems(run: Run, bounds: Bounds, calls_by_key: dict[str, list[Call]]) -> Iterator[Verdict]:
    turns_by_key: dict[str, list[TurnKey]] = defaultdict(list)
    is_complete = True
    for key, turn in run.folds.items():
        request = run.whole_request(key)
        if request is not None and (call_key := expected_answer.call_key(request)) is not None:
            turns_by_key[call_key].append(key)
            # An answer that does not fit its schema is requested again, in another conversation.
            is_complete &= turn.misfit is None
    targets = {fault.target for fault in run.of(Fault)}
    unexplained: dict[TurnKey, int] = {}
    lost_calls = sum(fault.calls for fault in run.of(Fault))
    for call_key, calls in calls_by_key.items():
        # The calls of turns with the same question cannot be distinguished.
        keys = turns_by_key.get(call_key, [])
        if not keys:
            if is_complete and calls[0].question not in run.deleted_questions:
                yield violation(f"there is a call for {calls[0].question!r}, and no such turn", calls[0])
            continue
        failed = [call for call in calls if call.over not in ("whole", "aborted", "open")]
        # Before the first delta, an attempt may repeat its call.
        refused = sum(not call.deltas for call in failed)
        attempts = sum(run.folds[key].attempt for key in keys)
        surplus = max(len(calls) - attempts - refused, 0)
        lost_calls -= surplus
        if surplus and lost_calls < 0:
            names = ", ".join(key.turn for key in keys)
            yield violation(f"{names}: {len(calls)} calls in {attempts} attempts, {refused} refused", *calls[-2:])
        takeovers = sum(
            attempt.generator not in targets for key in keys for attempt, _ in pairwise(_attempts(run, key))
        )
        unexplained[keys[0]] = max(takeovers - len(failed), 0)
        yield from _time_problems(run, bounds, keys, calls)
    interrupts = sum(fault.interrupts for fault in run.of(Fault))
    if sum(unexplained.values()) > interrupts:
        key = max(unexplained, key=lambda one: unexplained[one])
        yield violation(
            f"{sum(unexplained.values())} attempts that the model's failures do not explain, {unexplained[key]} of "
            f"{key.turn}, and {interrupts} that a fault may have interrupted",
            *_attempts(run, key),
        )


def _attempts(run: Run, key: TurnKey) -> list[Attempt]:
    return [stored.entry for stored in run.turns[key].valid if isinstance(stored.entry, Attempt)]


def _time_problems(run: Run, bounds: Bounds, keys: Sequence[TurnKey], calls: Sequence[Call]) -> Iterator[Verdict]:
    """Yields calls that began before their turn's request, or were open after its end."""
    turns = [run.folds[key] for key in keys]
    begun = [run.monotonic(turn.asked_at) for turn in turns if turn.asked_at is not None]
    ended = [run.monotonic(turn.ended_at) for turn in turns if turn.ended_at is not None]
    if None in begun or None in ended:
        yield unknown("there is no clock reading", calls[0])
        return
    earliest = min(at for at in begun if at is not None) - bounds.clock_s * NS_PER_S
    latest = None
    if len(ended) == len(turns):
        latest = _deadline(run, max(at for at in ended if at is not None), bounds.cancel_s)
    for call in calls:
        if call.begun < earliest:
            yield violation(f"a call for {keys[0].turn} began before its request", call)
        if latest is not None and (call.closed or run.final.collected) > latest:
            yield violation(f"a call for {keys[0].turn} was open after its end", call)


def _deadline(run: Run, since: int, bound_s: float) -> float:
    """Returns `since` plus `bound_s`, extended by the faults meanwhile: they stop the clock."""
    bound = bound_s * NS_PER_S
    deadline = since + bound
    while (later := run.healed_at(deadline) + bound) > deadline:
        deadline = later
    return deadline
