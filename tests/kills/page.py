"""Renders docs/KILLS.md from the results of the kills: one table per process, and one of the dialects."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tailrace.gateway.clients.registry import DIALECTS
from tests.kills.cell import ALONE, BLOCKS, CLOSING, OF_BLOCK, OPENING, POLICIES, TOGETHER, UNACKNOWLEDGED
from tests.kills.results import Hit
from tests.kills.round import PROCESSES
from tests.promises import Verdict

PAGE = Path(__file__).parents[2] / "docs/KILLS.md"
EVIDENCE_CHARS = 300

HEAD = """# The kill matrix

Written by `make kills`; do not edit. Real processes, `kill -9`. A turn is paused at each of its
entries: the generator waits there until every reader has received all stored entries. Then the
process is killed, and the turn continues. There is no randomness: the same command writes the same
page.

`✓ 3` means that three kills hit this cell, and that after each of them all of this was true:

- the [five promises](../tests/promises.py): no gap, no repeat, one end, one story, nothing
  forgotten;
- the turn ended as its `on_interrupt` requires, in the expected number of attempts, without an
  additional model call (`fail` fails if the generator died after a block had begun and before the
  answer was complete);
- a reader in each dialect that resumed received the same bytes as a reader that was never
  disconnected;
- all [invariants](../tests/checker/invariants.py) that apply to the run.

`✗` means that one of these was false; the evidence is below the tables. `-` means that there is no
such entry.
"""

EFFECTS = {
    "generator": "Another generator takes over. Last row: after the settlement of limits, before the acknowledgement.",
    "gateway": "Its readers resume at another gateway.",
    "persistence": "It is restarted. It only consumes `request` and `end`; a kill at another entry affects nothing.",
    "nats-server": "It is restarted with its store. No other process is restarted.",
}


def page(hits: Sequence[Hit], broken: dict[str, dict[str, Verdict]]) -> str:
    return "\n".join([HEAD, *_tables(hits), *_dialects(hits), *_evidence(hits, broken)])


def _tables(hits: Sequence[Hit]) -> Iterator[str]:
    for process in PROCESSES:
        yield f"## {process} killed\n\n{EFFECTS[process]}\n"
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
    return "✗" if any(hit.wrong for hit in found) else f"✓ {len({hit.kill for hit in found})}"


def _dialects(hits: Sequence[Hit]) -> Iterator[str]:
    yield "## The dialects\n\nThe number of turns with a kill that a reader received in this dialect.\n"
    yield f"| dialect | {' | '.join(f'{process} killed' for process in PROCESSES)} |"
    yield "|---" * (len(PROCESSES) + 1) + "|"
    for dialect in DIALECTS:
        cells = (_render_received([hit for hit in hits if hit.process == process], dialect) for process in PROCESSES)
        yield f"| `{dialect}` | {' | '.join(cells)} |"


def _render_received(hits: Sequence[Hit], dialect: str) -> str:
    received = [hit for hit in hits if dialect in hit.dialects]
    if not received:
        return "-"
    return "✗" if any(dialect in hit.wrong for hit in received) else f"✓ {len(received)}"


def _evidence(hits: Sequence[Hit], broken: dict[str, dict[str, Verdict]]) -> Iterator[str]:
    lines = list(evidence(hits, broken))
    if lines:
        yield "\n## Failed checks\n"
        yield from (f"- {line[:EVIDENCE_CHARS]}" for line in lines)
    yield ""


def evidence(hits: Sequence[Hit], broken: dict[str, dict[str, Verdict]]) -> Iterator[str]:
    """Yields one line for each check that failed."""
    for hit in hits:
        cell = hit.cell
        for what, problem in hit.wrong.items():
            where = f"{hit.process} killed at {cell.entry} of {cell.kind}, {cell.policy}"
            yield f"{where}{f', {what}' if what else ''}: {problem}"
    for process, found in broken.items():
        for name, verdict in found.items():
            yield f"{process} killed, {name}: {verdict.evidence}"
