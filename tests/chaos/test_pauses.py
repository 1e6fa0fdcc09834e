"""The longest pauses of a run that was built by hand."""

import msgspec

from tests.chaos import pauses
from tests.checker import sample_run
from tests.checker.history import Append, Fault
from tests.checker.run import Run
from tests.checker.sample_run import ns


def test_the_longest_pause_has_its_duration_its_turn_and_the_faults() -> None:
    run = sample_run.run()
    last = max(one.returned or 0 for one in run.of(Append))
    late = Append(process="g1", number=900, invoked=ns(90), returned=last + ns(50), outcome="ok")
    lost = msgspec.structs.replace(late, number=901, invoked=ns(60), returned=last + ns(10), outcome="info")
    faults = [
        Fault(process="n", number=1, kind="cut-client", invoked=ns(1), returned=ns(2.5)),
        Fault(process="n", number=2, kind="kill-node", invoked=ns(60), returned=ns(70)),
        Fault(process="n", number=3, kind="cut-log", invoked=last + ns(51), returned=last + ns(52)),
    ]
    seen = Run(operations=[*run.operations, lost, late, *faults], log=run.log, rows=run.rows, final=run.final)
    assert pauses.longest_pause(seen) == (50.0, "all turns", ("kill-node",))
    assert pauses.longest_turn_pause(seen) == (2.0, "answered", ("cut-client",))
    assert str(pauses.longest_turn_pause(Run())) == "0.0 s of no turn, during no fault"
