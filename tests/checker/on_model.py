"""Invariants of what the model was called for, and for how long: what is paid. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tailrace.deploy.simulated_claude.account import Call
from tailrace.proto.entries import Attempt
from tailrace.proto.fold import Turn
from tailrace.proto.subjects import TurnKey
from tests.checker import oracle
from tests.checker.bounds import Bounds
from tests.checker.history import Cancel, Fault
from tests.checker.run import NS_PER_S, Run
from tests.checker.verdict import broken, unknown, verdict
from tests.promises import Verdict


def cancellation(run: Run, bounds: Bounds) -> Verdict:
    """I8: who is told that a turn was cancelled, or had ended, finds its end; and the model is not paid for long."""
    told = [cancel for cancel in run.of(Cancel) if cancel.outcome == "ok" and cancel.key not in run.deleted]
    return verdict(len(told), "cancellations", _uncancelled(run, bounds, told))


def _uncancelled(run: Run, bounds: Bounds, told: Sequence[Cancel]) -> Iterator[Verdict]:
    calls = _calls_by_key(run)
    for cancel in told:
        turn = run.folds.get(cancel.key, Turn()) if cancel.key is not None else Turn()
        if turn.end is None or turn.request is None:
            yield broken(f"{cancel.turn} was cancelled and has no end", cancel)
        elif calls is None:
            yield unknown("nobody asked the model for its account", cancel)
        elif turn.outcome == "cancelled" and cancel.returned is not None:
            latest = _latest(run, cancel.returned, bounds.cancel_s)
            for call in calls.get(oracle.call_key(turn.request) or "", []):
                closed = call.closed if call.closed is not None else run.rest.collected
                if call.begun < cancel.returned and closed > latest:
                    late_s = (closed - cancel.returned) / NS_PER_S
                    yield broken(f"{cancel.turn} was cancelled, and its call went on for {late_s:.1f} s", cancel, call)


def cost(run: Run, bounds: Bounds) -> Verdict:
    """I9: no more calls than attempts and refusals explain, no more attempts than faults do; none before or after."""
    calls, account = _calls_by_key(run), run.rest.account
    if calls is None or account is None:
        return unknown("nobody asked the model for its account")
    if account.forgotten:
        return unknown(f"the model has forgotten {account.forgotten} of its calls")
    return verdict(len(account.calls), "calls", _overpaid(run, bounds, calls))


def _overpaid(run: Run, bounds: Bounds, calls: dict[str, list[Call]]) -> Iterator[Verdict]:
    asked: dict[str, list[TurnKey]] = defaultdict(list)
    is_all_known = not run.deleted
    for key, turn in run.folds.items():
        if turn.request is not None and (call_key := oracle.call_key(turn.request)) is not None:
            asked[call_key].append(key)
            # What is asked again because it does not fit is another conversation.
            is_all_known &= turn.misfit is None
    targets = {fault.target for fault in run.of(Fault)}
    excess: dict[TurnKey, int] = {}
    # What a lost link has had made again.
    lost_calls = sum(fault.calls for fault in run.of(Fault))
    for call_key, made in calls.items():
        # Several turns may ask the very same, and then nobody can tell their calls apart.
        keys = asked.get(call_key, [])
        if not keys:
            if is_all_known:
                yield broken(f"a call for {made[0].question!r}, which no turn in the log asks", made[0])
            continue
        broke = [call for call in made if call.over not in ("whole", "aborted", "open")]
        # Before the first delta, the same attempt may ask again.
        refused = sum(not call.deltas for call in broke)
        taken = sum(run.folds[key].attempt for key in keys)
        # A hedge that had a token first is an attempt; one that had not is in no entry.
        hedges = sum(bounds.hedges - sum(one.is_hedge for one in _attempts(run, key)) for key in keys)
        beyond = max(len(made) - taken - refused - max(hedges, 0), 0)
        lost_calls -= beyond
        if beyond and lost_calls < 0:
            names = ", ".join(key.turn for key in keys)
            yield broken(f"{names}: {len(made)} calls in {taken} attempts, {refused} of them refused", *made[-2:])
        lost = sum(
            attempt.generator not in targets and not (bounds.hedges and after.is_hedge)
            for key in keys
            for attempt, after in pairwise(_attempts(run, key))
        )
        excess[keys[0]] = max(lost - len(broke), 0)
        yield from _outside(run, bounds, keys, made)
    interrupts = sum(fault.interrupts for fault in run.of(Fault))
    if sum(excess.values()) > interrupts:
        key = max(excess, key=lambda one: excess[one])
        yield broken(
            f"{sum(excess.values())} attempts that nothing the model did explains, {excess[key]} of {key.turn}, "
            f"and {interrupts} that a fault may have interrupted",
            *_attempts(run, key),
        )


def _attempts(run: Run, key: TurnKey) -> list[Attempt]:
    return [stored.entry for stored in run.turns[key].valid if isinstance(stored.entry, Attempt)]


def _outside(run: Run, bounds: Bounds, keys: Sequence[TurnKey], made: Sequence[Call]) -> Iterator[Verdict]:
    """Calls that began before their turn was asked, or after it had ended."""
    folded = [run.folds[key] for key in keys]
    begun = [run.monotonic(turn.asked_at) for turn in folded if turn.asked_at is not None]
    ended = [run.monotonic(turn.ended_at) for turn in folded if turn.ended_at is not None]
    if None in begun or None in ended:
        yield unknown("nobody looked at the clock", made[0])
        return
    early = min(at for at in begun if at is not None) - bounds.clock_s * NS_PER_S
    late = None
    if len(ended) == len(folded):
        late = _latest(run, max(at for at in ended if at is not None), bounds.cancel_s)
    for call in made:
        if call.begun < early:
            yield broken(f"a call for {keys[0].turn} began before it was asked", call)
        if late is not None and call.begun > late:
            yield broken(f"a call for {keys[0].turn} began after its end", call)


def _calls_by_key(run: Run) -> dict[str, list[Call]] | None:
    if run.rest.account is None:
        return None
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in run.rest.account.calls:
        calls[call.key].append(call)
    return calls


def _latest(run: Run, since: int, bound_s: float) -> float:
    """By when something has to have happened that had `bound_s` from `since` on: a fault stops the clock."""
    bound = bound_s * NS_PER_S
    latest = since + bound
    while (later := run.healed(latest) + bound) > latest:
        latest = later
    return latest
