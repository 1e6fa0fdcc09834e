"""Selection of the fault that breaks a call."""

import pytest

from tailrace.deploy.simulated_claude.fault import Break, Fault, first_break

DELTAS = 400


def interruption_points(fault: Fault) -> list[int]:
    """Where in the whole answer a turn is interrupted that is continued each time."""
    start = 0
    places: list[int] = []
    for call in range(1, 20):
        broken = first_break([fault], start, DELTAS - start, call)
        if broken is None:
            return places
        start += broken.after
        places.append(start)
    return [*places, -1]


@pytest.mark.parametrize(
    ("fault", "places"),
    [
        (Fault("cut", 120), [120]),
        (Fault("cut", 400), [400]),
        (Fault("cut", 401), []),
        (Fault("cut", 50, calls=3), [50, 100, 150]),
        (Fault("429", 0, calls=2), [0, 0]),
        (Fault("cut", 399, calls=2), [399]),
        (Fault("cut", 50, lasts=True), [50] * 19 + [-1]),
        (Fault("unknown", 0, calls=2), []),
    ],
)
def test_a_continued_turn_is_interrupted_at_its_faults(fault: Fault, places: list[int]) -> None:
    """Without xM a fault is a position in the whole answer; with xM it breaks M calls, each after its own deltas."""
    assert interruption_points(fault) == places


def test_a_fault_before_the_first_delta_breaks_every_fresh_call() -> None:
    """`529` without xM is a model that never answers."""
    assert [first_break([Fault("529")], 0, DELTAS, call) for call in (1, 2, 9)] == [Break("529", 0)] * 3


def test_of_several_faults_the_first_one_breaks_the_call() -> None:
    """Two cuts are two interruptions, in the order of their positions. A continuation breaks at the same position."""
    faults = [Fault("eof", 200), Fault("cut", 100)]
    assert first_break(faults, 0, DELTAS, 1) == Break("cut", 100)
    assert first_break(faults, 100, DELTAS - 100, 2) == Break("eof", 100)
    assert first_break(faults, 200, DELTAS - 200, 3) is None
