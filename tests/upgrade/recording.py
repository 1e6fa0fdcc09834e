"""Recordings of what a version stored and sent: `NAME.jsonl` and, of some, `NAME.sql`, which are never changed."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tailrace.persistence.migrations import migrations
from tailrace.proto import entries, subjects
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats import Connection
from tailrace.proto.ownership import hash_subject

FOLDER = Path(__file__).parent
# Of what stood between the entries, and is gone: whether the log takes anything was once tried there (PROTOCOL R68).
PROBE = "turns._.recorded.probe"


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag="entry"):
    """One message of the stream TURNS."""

    seq: int
    at: datetime
    subject: str
    payload: str


class Received(msgspec.Struct, frozen=True, kw_only=True, tag="told"):
    """The record of a turn, and its stream in every dialect of that version."""

    name: str
    turn: str
    record: dict[str, Any]
    streams: dict[str, str]


class Recording(NamedTuple):
    name: str
    entries: list[Entry]
    received: list[Received]

    def of(self, name: str) -> Received:
        return next(turn for turn in self.received if turn.name == name)

    def key(self, turn: str) -> TurnKey:
        return next(key for one in self.entries for key, _ in [subjects.parse(one.subject)] if key.turn == turn)

    def log(self, turn: str) -> list[StoredEntry]:
        """Returns the entries of a turn, decoded by this version."""
        return [
            StoredEntry(Seq(one.seq), one.at, entries.decode(kind, one.payload.encode()))
            for one in self.entries
            for key, kind in [subjects.parse(one.subject)]
            if key.turn == turn
        ]

    async def store(self, connection: Connection, upto: int | None = None) -> None:
        """Stores the recording up to a sequence in an empty log, with the same bytes and sequences."""
        jetstream, seq = connection.jetstream, 0
        for one in self.entries:
            while seq + 1 < one.seq:
                seq = (await jetstream.publish(PROBE, b"")).seq
                await jetstream.delete_msg(subjects.STREAM, seq)
            if upto is not None and one.seq > upto:
                return
            seq = (await jetstream.publish(one.subject, one.payload.encode())).seq
            assert seq == one.seq


_line = msgspec.json.Decoder(Entry | Received)


def write(name: str, stored: Sequence[Entry], received: Sequence[Received]) -> None:
    lines = [msgspec.json.encode(one) for one in (*stored, *received)]
    (FOLDER / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def read(name: str) -> Recording:
    lines = [_line.decode(line) for line in (FOLDER / f"{name}.jsonl").read_bytes().splitlines()]
    return Recording(
        name, [one for one in lines if isinstance(one, Entry)], [one for one in lines if isinstance(one, Received)]
    )


def names() -> list[str]:
    """Returns the names of all recordings, oldest first."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def names_with_database() -> list[str]:
    """Returns the names of the recordings with a database, oldest first."""
    return sorted(path.stem for path in FOLDER.glob("*.sql"))


def database(name: str, path: Path) -> Path:
    """Creates the database of a recording."""
    return restore((FOLDER / f"{name}.sql").read_text(encoding="utf-8"), path)


def restore(statements: str, path: Path) -> Path:
    """Creates a database of what `dump` returned."""
    with closing(sqlite3.connect(path)) as made:
        made.executescript(statements)
    return path


def dump(path: Path) -> str:
    """Returns the SQL statements that create a database with the same content.

    `iterdump` writes rows into a full text index before the index can be used. So the index is created empty at the
    end, and rebuilt from the table that it was made of.
    """
    with closing(sqlite3.connect(path)) as written, closing(sqlite3.connect(":memory:")) as copy:
        written.backup(copy)
        virtual = copy.execute("SELECT name, sql FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL TABLE%'").fetchall()
        for name, _ in virtual:
            copy.execute(f"DROP TABLE {name}")
        rebuilt = [f"{sql};\nINSERT INTO {name} ({name}) VALUES ('rebuild');" for name, sql in virtual]
        ((version,),) = copy.execute("PRAGMA user_version")
        return "\n".join([*copy.iterdump(), *rebuilt, f"PRAGMA user_version = {version};"]) + "\n"


def downgrade(version: int, written: Path) -> Path:
    """Returns what an earlier version would have written into its database instead of `written`."""
    earlier = written.with_name(f"version-{version}.db")
    with closing(sqlite3.connect(earlier)) as made:
        made.create_function("subject_hash", 1, hash_subject, deterministic=True)
        made.executescript("".join(step.sql for step in migrations()[:version]) + f"PRAGMA user_version = {version};")
        made.execute("ATTACH ? AS now", (str(written),))
        tables = "SELECT name FROM {}.sqlite_schema WHERE type = 'table'"
        for (table,) in made.execute(f"{tables.format('main')} INTERSECT {tables.format('now')}").fetchall():
            made.execute(f"DELETE FROM main.{table}")
            # A version after the recording has columns that the recording lacks.
            both = set.intersection(
                *(
                    {column for _, column, *_ in made.execute(f"PRAGMA {of}.table_info({table})")}
                    for of in ("main", "now")
                )
            )
            columns = ", ".join(sorted(both))
            made.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}")
        made.commit()
    return earlier
