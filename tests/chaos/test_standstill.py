"""What stood still in a run, and for how long: found in a history that was made by hand."""

import msgspec

from tests.chaos import standstill
from tests.checker import made
from tests.checker.history import Append, Fault
from tests.checker.made import ns
from tests.checker.run import Run


def test_the_longest_time_without_an_entry_is_found_and_what_was_broken_then() -> None:
    """Of all turns by when appends were acknowledged, of one by its own entries."""
    run = made.run()
    last = max(one.returned or 0 for one in run.of(Append))
    late = Append(process="g1", number=900, invoked=ns(90), returned=last + ns(50), outcome="ok")
    lost = msgspec.structs.replace(late, number=901, invoked=ns(60), returned=last + ns(10), outcome="info")
    faults = [
        Fault(process="n", number=1, kind="cut-client", invoked=ns(1), returned=ns(2.5)),
        Fault(process="n", number=2, kind="kill-node", invoked=ns(60), returned=ns(70)),
        Fault(process="n", number=3, kind="cut-log", invoked=last + ns(51), returned=last + ns(52)),
    ]
    seen = Run(operations=[*run.operations, lost, late, *faults], log=run.log, rows=run.rows, rest=run.rest)
    assert standstill.of_all(seen) == (50.0, "all turns", ("kill-node",))
    assert standstill.of_one(seen) == (2.0, "answered", ("cut-client",))
    assert str(standstill.of_one(Run())) == "0.0 s of no turn, beside nothing that was broken"
