"""How long deltas wait for others while appends are slow."""

import pytest

from tailrace.generators.event_writer import JOIN_S_MAX, JoinWindow


def window_after(*appends_s: float) -> float:
    """Returns the window after appends of these seconds."""
    window = JoinWindow()
    return [window.add(append_s) for append_s in appends_s][-1]


@pytest.mark.parametrize(
    ("append_s", "window_s"),
    [(0.001, 0), (0.007, 0), (0.019, 0), (0.025, 0.05), (0.06, 0.12), (0.5, JOIN_S_MAX)],
)
def test_the_window_is_twice_the_average_of_slow_appends(append_s: float, window_s: float) -> None:
    assert window_after(*[append_s] * 100) == pytest.approx(window_s, rel=0.01)


def test_one_slow_append_opens_no_window_and_fast_ones_close_it() -> None:
    assert window_after(*[0.001] * 100, 0.1) == window_after(*[0.001] * 100, 30) == 0
    assert window_after(*[0.1] * 100, *[0.001] * 20) == 0
