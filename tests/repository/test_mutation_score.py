"""`make mutation` fails below the floor."""

import msgspec
import pytest

from tools.mutation_score import FLOOR_PERCENT, Stats

FLOOR = round(FLOOR_PERCENT)


@pytest.mark.parametrize(
    ("counts", "is_enough"),
    [
        pytest.param({"killed": FLOOR, "total": 100}, True, id="at-floor"),
        pytest.param({"killed": FLOOR - 1, "total": 100}, False, id="below-floor"),
        pytest.param({"killed": FLOOR - 1, "timeout": 1, "total": 100}, True, id="timeout-is-found"),
        pytest.param({"killed": FLOOR, "skipped": 100, "total": 200}, True, id="skipped-are-not-counted"),
        pytest.param({"killed": FLOOR, "no_tests": 100, "total": 200}, False, id="mutants-without-tests-are-counted"),
        pytest.param({}, False, id="no-mutants"),
    ],
)
def test_score_below_floor_fails(counts: dict[str, int], is_enough: bool) -> None:
    """The counts are those that mutmut writes: it has more kinds than the score needs."""
    written = {"killed": 0, "survived": 0, "total": 0, "no_tests": 0, "skipped": 0, "suspicious": 0, "timeout": 0}
    stats = msgspec.convert(written | counts, Stats)
    assert stats.is_enough() is is_enough
