"""A short kill matrix: one round for each process with eleven cells; `make kills` runs all cells."""

from pathlib import Path

import pytest

from tailrace.features.gateway import DIALECTS
from tests.kills.cell import ALONE, UNACKNOWLEDGED, Cell
from tests.kills.matrix import Matrix, run
from tests.kills.page import evidence, summarize, tables
from tests.kills.round import PROCESSES

# Each policy, each kind of block, and each sort of entry at least once.
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
    Cell("large text", "continue", "delta 1"),
]
assert {cell.kind for cell in SOME} == set(ALONE)


@pytest.mark.rule("F1")
@pytest.mark.rule("F2")
@pytest.mark.rule("F5")
@pytest.mark.rule("F36")
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.timeout(300)
async def test_every_reader_receives_the_whole_turn_when_a_process_is_killed_at_an_entry(
    tmp_path: Path, process: str
) -> None:
    matrix = Matrix()
    await run(matrix, process, [("short", SOME)], tmp_path, victims=2)
    assert list(evidence(matrix.hits, matrix.broken)) == []
    assert len(matrix.hits) == len(SOME)
    shown = tables(summarize("today", matrix.hits, matrix.broken))
    assert ("✗" in shown, shown.count("✓ ")) == (False, len(SOME) + len(DIALECTS))
