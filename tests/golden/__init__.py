"""Golden files of the dialects: the entries of a turn (CASE.jsonl), and what each dialect renders (CASE.DIALECT.txt).

A line of CASE.jsonl is one stored entry: its sequence, time, kind and content. CASE.DIALECT.txt has up to four parts:
the stream of a reader that was there from the start, the turn from the database, the JSON body of a request without
streaming, and the turn from the database for a reader that has a part of it, if that is another. `python -m
tests.golden --update` writes the .txt files again; review the difference before you commit it.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.history_client import close_record
from tailrace.gateway.streaming.dialect import SOME_EVENTS, Dialect, Frame
from tailrace.proto import entries
from tailrace.proto.entries import StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq
from tailrace.proto.records import record_from_fold
from tests.harness.turn_builder import KEY

FOLDER = Path(__file__).parent
CASES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))
BREAK = "[the connection is broken off]\n"


class Line(msgspec.Struct, frozen=True):
    """One line of a .jsonl file."""

    seq: int
    at: datetime
    kind: str
    entry: msgspec.Raw


def read_case(case: str) -> list[StoredEntry]:
    """Returns the entries of a case."""
    lines = (FOLDER / f"{case}.jsonl").read_bytes().splitlines()
    parsed = (msgspec.json.decode(line, type=Line) for line in lines)
    return [StoredEntry(Seq(line.seq), line.at, entries.decode(line.kind, bytes(line.entry))) for line in parsed]


def golden_path(case: str, dialect: str) -> Path:
    return FOLDER / f"{case}.{dialect}.txt"


def render_golden(case: str, dialect: Dialect) -> str:
    """Returns the content of a .txt file."""
    log = read_case(case)
    record = close_record(record_from_fold(KEY, fold(log)))
    rest = dialect.render_record(record, SOME_EVENTS)
    is_other = dialect.can_reset and rest != dialect.render_record(record, 0)
    return render_log(log, dialect) + (f"=== from the database, with a part\n{_text(rest)}" if is_other else "")


def render_log(log: list[StoredEntry], dialect: Dialect) -> str:
    """Returns what a dialect renders of a turn: the stream, the turn from the database, and the JSON body."""
    record = close_record(record_from_fold(KEY, fold(log)))
    parts = ["=== stream\n", *_stream(dialect, log), "=== from the database\n", _text(dialect.render_record(record, 0))]
    if dialect.render_json is not None and record.outcome == "completed":
        body: Any = msgspec.json.decode(dialect.render_json(record))
        parts += ["=== JSON body\n", msgspec.json.format(msgspec.json.encode(body), indent=2).decode(), "\n"]
    return "".join(parts)


def update() -> None:
    for case in CASES:
        for name, dialect in DIALECTS.items():
            golden_path(case, name).write_text(render_golden(case, dialect))


def _stream(dialect: Dialect, log: list[StoredEntry]) -> Iterator[str]:
    state = dialect.start(KEY)
    for stored in log:
        frame, state = dialect.render(state, stored)
        if not frame.data and not frame.is_break:
            frame = dialect.comment_on(stored)
        yield _text(frame)


def _text(frame: Frame) -> str:
    text = frame.data.decode()
    # Plain text has no line break at its end.
    line_break = "\n" if text and not text.endswith("\n") else ""
    return text + line_break + (BREAK if frame.is_break else "")
