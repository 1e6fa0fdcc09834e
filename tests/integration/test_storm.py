"""Everybody comes back at once, in short: `python -m benchmarks.storm` does the same with ten thousand."""

from pathlib import Path

import pytest

from benchmarks.storm import storm


@pytest.mark.rule("F26")
@pytest.mark.timeout(120)
async def test_when_everybody_comes_back_at_once_each_catches_up(tmp_path: Path) -> None:
    """Three hundred with random cursors in half a second: every entry once, in order, and no connection is lost."""
    seen = await storm(300, 0.5, 7, tmp_path)
    assert (len(seen.caught_up), seen.wrong, seen.broken) == (300, [], 0)
    assert seen.statuses[200] == 300
    # Whoever was not let in was told so.
    assert set(seen.statuses) <= {200, 503}
