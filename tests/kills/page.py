"""The result of the kills as data, and its tables for docs/KILLS.md: one per process, and one of the dialects."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tailrace.features.gateway import DIALECTS
from tests.kills.cell import ALONE, BLOCKS, CLOSING, OF_BLOCK, OPENING, TOGETHER, UNACKNOWLEDGED, policies_of
from tests.kills.results import Hit
from tests.kills.round import PROCESSES
from tests.promises import Verdict

RESULT = Path(__file__).with_name("result.json")
EVIDENCE_CHARS = 300
NO_ENTRY = "-"
EFFECTS = {
    "generator": "Another generator takes over. Last row: after the settlement of limits, before the acknowledgement.",
    "gateway": "Its readers resume at another gateway.",
    "persistence": "It is restarted. It only consumes `request` and `end`; a kill at another entry affects nothing.",
    "nats-server": "It is restarted with its store. No other process is restarted.",
}


class Result(msgspec.Struct):
    """The cells of the tables: `✓ 3` for three kills after which each promise was kept, `✗` for a broken one."""

    at: str
    """The day of the run."""
    cells: dict[str, dict[str, dict[str, dict[str, str]]]]
    """By killed process, kind of answer, last entry and policy."""
    dialects: dict[str, dict[str, str]]
    """By killed process and dialect: the turns that a reader received."""
    failed: list[str] = []
    """A line of evidence for each check that failed."""


def summarize(at: str, hits: Sequence[Hit], broken: Mapping[str, Mapping[str, Verdict]]) -> Result:
    """Returns the result of the kills of one day."""
    found: dict[tuple[str, str, str, str], list[Hit]] = {}
    for hit in hits:
        found.setdefault((hit.process, hit.cell.kind, hit.cell.entry, hit.cell.policy), []).append(hit)
    result = Result(at, {}, {}, [line[:EVIDENCE_CHARS] for line in evidence(hits, broken)])
    for (process, kind, entry, policy), of_cell in found.items():
        result.cells.setdefault(process, {}).setdefault(kind, {}).setdefault(entry, {})[policy] = _cell(of_cell)
    for process in {hit.process: None for hit in hits}:
        of_process = [hit for hit in hits if hit.process == process]
        result.dialects[process] = {name: _received(of_process, name) for name in DIALECTS}
    return result


def _cell(hits: Sequence[Hit]) -> str:
    return "✗" if any(hit.wrong for hit in hits) else f"✓ {len({hit.kill for hit in hits})}"


def _received(hits: Iterable[Hit], dialect: str) -> str:
    received = [hit for hit in hits if dialect in hit.dialects]
    if not received:
        return NO_ENTRY
    return "✗" if any(dialect in hit.wrong for hit in received) else f"✓ {len(received)}"


def evidence(hits: Sequence[Hit], broken: Mapping[str, Mapping[str, Verdict]]) -> Iterator[str]:
    """Yields one line for each check that failed."""
    for hit in hits:
        cell = hit.cell
        for what, problem in hit.wrong.items():
            where = f"{hit.process} killed at {cell.entry} of {cell.kind}, {cell.policy}"
            yield f"{where}{f', {what}' if what else ''}: {problem}"
    for process, found in broken.items():
        for name, verdict in found.items():
            yield f"{process} killed, {name}: {verdict.evidence}"


def write(result: Result) -> None:
    RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read() -> Result:
    """Returns the result of the last complete run."""
    return msgspec.json.decode(RESULT.read_bytes(), type=Result)


def tables(result: Result) -> str:
    """Returns the tables in Markdown."""
    lines = [f"Result of {result.at}.\n", *_processes(result), *_dialects(result)]
    if result.failed:
        lines += ["\n## Failed checks\n", *(f"- {line}" for line in result.failed)]
    return "\n".join(lines)


def _processes(result: Result) -> Iterator[str]:
    for process in PROCESSES:
        of_kind = result.cells.get(process, {})
        yield f"## {process} killed\n\n{EFFECTS[process]}\n"
        yield from _table(of_kind, ALONE)
        yield f"\nAn answer of {TOGETHER}:\n"
        yield from _table(of_kind, [TOGETHER])
        yield ""


def _table(of_kind: Mapping[str, Mapping[str, Mapping[str, str]]], kinds: Sequence[str]) -> Iterator[str]:
    columns = [(kind, policy) for kind in kinds for policy in policies_of(kind)]
    heads = (f"{kind}, `{policy}`" if len(kinds) > 1 else f"`{policy}`" for kind, policy in columns)
    yield f"| last entry | {' | '.join(heads)} |"
    yield "|---" * (len(columns) + 1) + "|"
    of_blocks = OF_BLOCK if len(kinds) > 1 else BLOCKS[kinds[0]]
    for entry in (*OPENING, *of_blocks, *CLOSING, UNACKNOWLEDGED):
        cells = (of_kind.get(kind, {}).get(entry, {}).get(policy, NO_ENTRY) for kind, policy in columns)
        yield f"| {entry} | {' | '.join(cells)} |"


def _dialects(result: Result) -> Iterator[str]:
    yield "## The dialects\n\nThe number of turns with a kill that a reader received in this dialect.\n"
    yield f"| dialect | {' | '.join(f'{process} killed' for process in PROCESSES)} |"
    yield "|---" * (len(PROCESSES) + 1) + "|"
    for dialect in DIALECTS:
        cells = (result.dialects.get(process, {}).get(dialect, NO_ENTRY) for process in PROCESSES)
        yield f"| `{dialect}` | {' | '.join(cells)} |"
