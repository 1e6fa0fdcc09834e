"""What has to be true of every run, whatever was broken in it: FAULTS section 4. Pure, and linear in what was recorded.

Each invariant takes a Run and answers true, false or unknown, with the smallest evidence; the five promises are under
several of them. An entry that is stored and not valid is a fork that the chain has skipped (PROTOCOL R11): with several
nodes that is allowed and counted, with one it is not; and a reader who was given one has been told two stories.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from tests.checker import on_clients, on_log, on_model, on_processes, on_workers
from tests.checker.bounds import Bounds
from tests.checker.run import Run
from tests.promises import Verdict

Invariant = Callable[[Run, Bounds], Verdict]

SHOWN_CHARS = 300

INVARIANTS: dict[str, Invariant] = {
    "I1 order": on_log.order,
    "I2 one end": on_log.one_end,
    "I3 attempts": on_log.attempts,
    "I4 no loss": on_workers.no_loss,
    "I5 text": on_log.text,
    "I6 readers": on_clients.readers,
    "I7 idempotency": on_clients.idempotency,
    "I8 cancellation": on_model.cancellation,
    "I9 cost": on_model.cost,
    "I10 rows": on_workers.rows,
    "I11 visibility": on_clients.visibility,
    "I12 resources": on_processes.resources,
    "I13 isolation": on_clients.isolation,
    "I14 leases": on_workers.leases,
}


def judge(run: Run, bounds: Bounds = Bounds()) -> dict[str, Verdict]:  # noqa: B008
    """All of them, by name."""
    return {name: invariant(run, bounds) for name, invariant in INVARIANTS.items()}


def report(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """A line an invariant, and below one that does not hold what shows it."""
    said = {True: "holds", False: "BROKEN", None: "unknown"}
    for name, verdict in verdicts.items():
        yield f"{name:16} {said[verdict.holds]:8} {verdict.evidence}"
        for one in verdict.shown if verdict.holds is False else ():
            yield f"{'':8}{type(one).__name__} {msgspec.json.encode(one).decode()[:SHOWN_CHARS]}"


def not_held(verdicts: Mapping[str, Verdict], unknown: Iterable[str] = ()) -> dict[str, Verdict]:
    """Those that are not green; `unknown` names those that the run could not show, and only they may be unknown."""
    allowed = set(unknown)
    assert allowed <= set(INVARIANTS), allowed - set(INVARIANTS)
    return {
        name: verdict
        for name, verdict in verdicts.items()
        if not verdict.is_green and not (verdict.holds is None and name in allowed)
    }
