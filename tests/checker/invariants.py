"""The invariants of every recorded run, whatever faults it had. Pure functions.

Each takes a Run and returns true, false or unknown, with the smallest evidence. Several include one of the
promises. A stored entry that is not valid is a fork, which readers skip (PROTOCOL R11): a cluster may store forks, one
server may not, and no reader may receive one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from tests.checker import batch_invariants, client_invariants, log_invariants, model_invariants, worker_invariants
from tests.checker.run import Run
from tests.checker.verdicts import Bounds
from tests.promises import Verdict

Invariant = Callable[[Run, Bounds], Verdict]

SHOWN_CHARS = 300

INVARIANTS: dict[str, Invariant] = {
    "I1 order": log_invariants.order,
    "I2 one end": log_invariants.one_end,
    "I3 attempts": log_invariants.attempts,
    "I4 no loss": worker_invariants.no_loss,
    "I5 text": log_invariants.text,
    "I6 readers": client_invariants.readers,
    "I7 idempotency": client_invariants.idempotency,
    "I8 cancellation": model_invariants.cancellation,
    "I9 cost": model_invariants.cost,
    "I10 rows": worker_invariants.rows,
    "I11 visibility": client_invariants.visibility,
    "I12 resources": worker_invariants.resources,
    "I13 isolation": client_invariants.isolation,
    "I14 leases": worker_invariants.leases,
    "I15 errors": client_invariants.errors,
    "I16 inputs": batch_invariants.inputs,
    "I17 payment": batch_invariants.payment,
    "I18 counts": batch_invariants.counts,
    "I19 deletion": batch_invariants.deletion,
    "I20 steers": client_invariants.steers,
    "I21 budgets": worker_invariants.budgets,
}
# Unknown in a run without batches.
OF_BATCHES = ("I16 inputs", "I17 payment", "I18 counts", "I19 deletion")


def judge(run: Run, bounds: Bounds = Bounds()) -> dict[str, Verdict]:  # noqa: B008
    """Returns the verdict of each invariant by its name."""
    return {name: invariant(run, bounds) for name, invariant in INVARIANTS.items()}


def report(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """Yields one line for each invariant, and the evidence below a violated one."""
    words = {True: "holds", False: "VIOLATED", None: "unknown"}
    for name, verdict in verdicts.items():
        yield f"{name:16} {words[verdict.holds]:8} {verdict.evidence}"
        for one in verdict.shown if verdict.holds is False else ():
            yield f"{'':8}{type(one).__name__} {msgspec.json.encode(one).decode()[:SHOWN_CHARS]}"


def find_failed(verdicts: Mapping[str, Verdict], unknown: Iterable[str] = ()) -> dict[str, Verdict]:
    """Returns the verdicts that are not green. Those named in `unknown` may be unknown: the run cannot show them."""
    allowed = set(unknown)
    assert allowed <= set(INVARIANTS), allowed - set(INVARIANTS)
    return {
        name: verdict
        for name, verdict in verdicts.items()
        if not verdict.is_green and not (verdict.holds is None and name in allowed)
    }
