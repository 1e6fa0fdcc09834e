"""Reconnect storms and slow clients, in short: `benchmarks.storm` and `benchmarks.slow` run thousands of clients."""

from pathlib import Path

import pytest

from benchmarks.slow import Beside, measure_rounds
from benchmarks.storm import OTHERS, storm

MB = 2**20
ENTRIES = 25

pytestmark = pytest.mark.timeout(120)


@pytest.mark.rule("F26")
async def test_readers_that_all_reconnect_at_once_catch_up(tmp_path: Path) -> None:
    """Two hundred with random cursors in a third of a second: every entry once, in order, and no connection is lost."""
    seen = await storm(200, 0.3, 7, tmp_path)
    assert (len(seen.caught_up), seen.wrong, seen.broken) == (200, [], 0)
    assert seen.statuses[200] == 200
    assert set(seen.statuses) <= {200, 503}


@pytest.mark.rule("S14")
async def test_slow_clients_do_not_delay_other_readers(tmp_path: Path) -> None:
    """One byte a second of headers or of reading, no reading at all, and many streams of one tenant (S14, F24)."""
    beside = Beside(silent=10, dripping=10, trickling=50, streams=300)
    (seen,) = await measure_rounds(tmp_path, [beside], ENTRIES)
    assert len(seen.late[0]) >= ENTRIES * OTHERS
    assert seen.each_bytes[0] < MB
    # A full garbage collection would stop all readers; with 5,000 streams it takes most of a second.
    assert seen.looks == 0
