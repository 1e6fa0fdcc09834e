"""A short kill matrix: one wave a process, a few rows of each kind; `make kills` is the whole one."""

from pathlib import Path

import pytest

from tests.kills.cell import ALONE, UNACKNOWLEDGED, Cell
from tests.kills.matrix import Matrix, run
from tests.kills.page import evidence, page
from tests.kills.wave import PROCESSES

# One row each, and each policy and kind at least once.
SOME = [
    Cell("text", "continue", "delta 1"),
    Cell("text", "restart", "delta 2"),
    Cell("text", "fail", "block start"),
    Cell("thinking", "continue", "delta 1"),
    Cell("tool use", "continue", "block stop"),
    Cell("text", "continue", "request"),
    Cell("text", "fail", "attempt"),
    Cell("tool use", "restart", "message_delta"),
    Cell("thinking", "fail", "end"),
    Cell("text", "continue", UNACKNOWLEDGED),
]
assert {cell.kind for cell in SOME} == set(ALONE)


@pytest.mark.rule("F1")
@pytest.mark.rule("F2")
@pytest.mark.rule("F5")
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.timeout(120)
async def test_whatever_is_killed_in_mid_turn_every_reader_gets_all_of_it(tmp_path: Path, process: str) -> None:
    """In each dialect, whatever the turn wants of an interruption; each kill hit where it should."""
    matrix = Matrix()
    await run(matrix, process, [("short", SOME)], tmp_path, victims=2)
    assert list(evidence(matrix.hits, matrix.broken)) == []
    assert len(matrix.hits) == len(SOME)
    assert "✗" not in page(matrix.hits, matrix.broken).partition("## ")[2]
