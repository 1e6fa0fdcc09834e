"""Clients that take their time, in short: `python -m benchmarks.slow` has thousands of them, and figures."""

from pathlib import Path

import pytest

from benchmarks.slow import Beside, measured
from benchmarks.storm import OTHERS

MB = 2**20
ENTRIES = 40


@pytest.mark.rule("S14")
@pytest.mark.timeout(120)
async def test_beside_clients_that_take_their_time_all_others_are_told_all_of_it(tmp_path: Path) -> None:
    """FAULTS S14, F24: headers and reading a byte a second, no reading at all, and many streams of one tenant."""
    beside = Beside(silent=10, dripping=10, trickling=100, streams=600)
    (seen,) = await measured(tmp_path, [beside], ENTRIES)
    assert len(seen.late[0]) >= ENTRIES * OTHERS
    assert seen.each_bytes[0] < MB
    # One takes as long as there are objects: with 5,000 streams, most of a second in which nobody is told anything.
    assert seen.looks == 0
