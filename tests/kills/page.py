"""docs/KILLS.md, from what came of the kills: a table a process, and one of the dialects. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tailrace.gateway.clients.registry import DIALECTS
from tests.kills.cell import ALONE, BLOCKS, CLOSING, OF_BLOCK, OPENING, POLICIES, TOGETHER, UNACKNOWLEDGED
from tests.kills.judged import Hit
from tests.kills.wave import PROCESSES
from tests.promises import Verdict

PAGE = Path(__file__).parents[2] / "docs/KILLS.md"
EVIDENCE_CHARS = 300

HEAD = """# The kill matrix

Written by `make kills`; do not edit. Real processes, `kill -9`. A turn is held at each of its entries: the generator
waits there, the log is looked at, and every reader has been told all that there is. Then the process is killed, and all
goes on. Nothing is drawn by chance, so there is no seed: the same command makes the same page.

`✓ 3` is a cell that was hit by three kills, and after each of them all of this held:

- the [five promises](../tests/promises.py): no gap, no repeat, one end, one story, nothing forgotten;
- the turn came to what its `on_interrupt` says, in as many attempts as that takes (`fail` fails when a block had begun,
  the answer was not whole, and it was the generator that died), and the model was called no more often;
- a reader in each dialect, who came back as its clients do, has what one has who was never cut off, byte for byte;
- of the whole run, all [invariants](../tests/checker/invariants.py) that it can show.

`✗` is one where something did not; what, stands below the tables. `-`: there is no such entry.
"""

SAYS = {
    "generator": "Another takes over. The last row is behind the settling of limits and before the acknowledgement.",
    "gateway": "Its readers come back to another gateway.",
    "persistence": "It is started again. It reads `request` and `end`; at the others it has nothing to lose.",
    "nats-server": "It is started again on what it has stored; nobody else is.",
}


def page(hits: Sequence[Hit], broken: dict[str, dict[str, Verdict]]) -> str:
    return "\n".join([HEAD, *_tables(hits), *_dialects(hits), *_evidence(hits, broken)])


def _tables(hits: Sequence[Hit]) -> Iterator[str]:
    for process in PROCESSES:
        yield f"## {process} killed\n\n{SAYS[process]}\n"
        yield from _table([hit for hit in hits if hit.process == process], ALONE)
        yield f"\nAn answer of {TOGETHER}:\n"
        yield from _table([hit for hit in hits if hit.process == process], [TOGETHER])
        yield ""


def _table(hits: Sequence[Hit], kinds: Sequence[str]) -> Iterator[str]:
    columns = [(kind, policy) for kind in kinds for policy in POLICIES]
    heads = (f"{kind}, `{policy}`" if len(kinds) > 1 else f"`{policy}`" for kind, policy in columns)
    yield f"| last entry | {' | '.join(heads)} |"
    yield "|---" * (len(columns) + 1) + "|"
    of_blocks = OF_BLOCK if len(kinds) > 1 else BLOCKS[kinds[0]]
    for entry in (*OPENING, *of_blocks, *CLOSING, UNACKNOWLEDGED):
        cells = (
            _cell(hit for hit in hits if (hit.cell.kind, hit.cell.policy, hit.cell.entry) == (*column, entry))
            for column in columns
        )
        yield f"| {entry} | {' | '.join(cells)} |"


def _cell(hits: Iterable[Hit]) -> str:
    found = list(hits)
    if not found:
        return "-"
    return "✗" if any(hit.wrong for hit in found) else f"✓ {len({hit.killer for hit in found})}"


def _dialects(hits: Sequence[Hit]) -> Iterator[str]:
    yield "## The dialects\n\nTurns that a reader in this dialect was told, each with a kill in it.\n"
    yield f"| dialect | {' | '.join(f'{process} killed' for process in PROCESSES)} |"
    yield "|---" * (len(PROCESSES) + 1) + "|"
    for dialect in DIALECTS:
        cells = (_told([hit for hit in hits if hit.process == process], dialect) for process in PROCESSES)
        yield f"| `{dialect}` | {' | '.join(cells)} |"


def _told(hits: Sequence[Hit], dialect: str) -> str:
    told = [hit for hit in hits if dialect in hit.dialects]
    if not told:
        return "-"
    return "✗" if any(dialect in hit.wrong for hit in told) else f"✓ {len(told)}"


def _evidence(hits: Sequence[Hit], broken: dict[str, dict[str, Verdict]]) -> Iterator[str]:
    lines = list(evidence(hits, broken))
    if lines:
        yield "\n## What did not hold\n"
        yield from (f"- {line[:EVIDENCE_CHARS]}" for line in lines)
    yield ""


def evidence(hits: Sequence[Hit], broken: dict[str, dict[str, Verdict]]) -> Iterator[str]:
    """A line for all that is wrong."""
    for hit in hits:
        cell = hit.cell
        for what, problem in hit.wrong.items():
            where = f"{hit.process} killed at {cell.entry} of {cell.kind}, {cell.policy}"
            yield f"{where}{f', {what}' if what else ''}: {problem}"
    for process, found in broken.items():
        for name, verdict in found.items():
            yield f"{process} killed, {name}: {verdict.evidence}"
