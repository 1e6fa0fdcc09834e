"""Turns in the database: builders of rows, what the store contains, and how much a query reads."""

import random
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from tailrace.features.batches.records import Api
from tailrace.features.files.records import FileRecord
from tailrace.features.projects.persistence import ProjectTable
from tailrace.features.projects.records import CreateProject
from tailrace.features.search.words import hash_words
from tailrace.persistence.database import TABLES as KEYS
from tailrace.persistence.rows import TurnRow, build_row, micros
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.records import SessionRecord, TurnRecord
from tests.harness.turn_builder import NOON, Handwritten

OURS, THEIRS = Tenant("ours"), Tenant("theirs")
TABLES = [table for table in KEYS if table not in ("reached", "totals")]


def key(turn: str, tenant: Tenant = OURS) -> TurnKey:
    return TurnKey(tenant, TurnId(turn))


def running_row(
    turn: str, *, session: str = "session-1", parent: str | None = None, step: int = 1, **given: object
) -> TurnRow:
    """The row of a turn that is running; `step` is also the second at which it was asked."""
    log = Handwritten(step)
    log.store_request(session=SessionId(session), parent=parent, **given)
    return build_row(key(turn), log.turn)


def file_record(
    file: str,
    *,
    sha256: str | None = None,
    purpose: str = "batch",
    expires_at: datetime | None = None,
    bytes_count: int = 1,
) -> FileRecord:
    """The record of a file; without `sha256`, its blob has its own id."""
    return FileRecord(
        file=file,
        sha256=sha256 or file,
        bytes=bytes_count,
        filename="n",
        media_type="t",
        purpose=purpose,
        created_at=NOON,
        expires_at=expires_at,
    )


async def session_of(store: Store, session: str, since: datetime = NOON) -> SessionRecord:
    found = await store.session(OURS, session, since)
    assert found is not None
    return found


async def turn_of(store: Store, where: TurnKey) -> TurnRecord:
    found = await store.turn(where)
    assert found is not None
    return found


async def content_of(store: Store) -> list[dict[str, object]]:
    """All rows except those of totals, which stay."""
    return [
        row
        for table in TABLES
        for row in await store.database.read(f"SELECT * FROM {table} ORDER BY {', '.join(KEYS[table])}", {})
    ]


SOURCES: dict[Api | None, str] = {
    None: "",
    "openai": ',"file":{"file":"file-1","endpoint":"/v1/chat/completions"}',
    "anthropic": ',"file":{"file":null,"endpoint":"/v1/messages"}',
}
PROJECTS = {
    f"session-{number}": project
    for number, project in enumerate(
        ("rivers", "rivers", "hills", "rivers", None, "rivers", "seas", "rivers", "rivers")
    )
}


def history(chance: random.Random) -> list[TurnRow]:
    """Returns turns of few sessions, users and times. The order of their ids is not that of their times."""
    rows: list[TurnRow] = []
    for number, name in enumerate(chance.sample(range(40), 40)):
        row = running_row(f"turn-{name:02}")
        labels = {"model": chance.choice(("m", "n")), "key": "k", "metadata.team": chance.choice(("ann", "b"))}
        user, of = chance.choice(("ann", "bob", "cat", None)), chance.choice((None, *SOURCES))
        labels |= {"user": user} if user else {}
        session = f"session-{number % 9}"
        day = chance.randrange(3)
        if day == 2:
            labels["metadata.team"] = "a"
        row = msgspec.structs.replace(row, added=words_row(hash_text(f"all {chance.choice(('odd', 'even'))}")))
        if chance.random() < 0.5:
            row = with_batch(row, f'{{"of":1,"parallel":1{SOURCES[of]}}}')
        rows.append(
            msgspec.structs.replace(
                row,
                session=session,
                project=PROJECTS[session],
                user=user,
                model=labels["model"],
                asked_by="k",
                asked_at=micros(NOON + timedelta(days=day, seconds=chance.randrange(3))),
                labels=msgspec.json.encode(labels).decode(),
                parent=chance.choice(rows).turn if number % 3 else None,
                outcome=chance.choice(("running", "completed", "completed", "cancelled", "failed")),
                blobs=f'["{number % 7}"]',
                cursor=number,
                messages=number,
                input_tokens=2**number,
                output_tokens=number,
                cache_creation_input_tokens=number,
                cache_read_input_tokens=number,
                cost_nusd=number,
            )
        )
    return rows


async def record_history(store: Store) -> list[TurnRow]:
    """Records the same turns for two tenants; returns those of ours."""
    rows = history(random.Random(11))
    for number, project in enumerate(("lakes", "hills", "rivers", "seas", "dunes")):
        created_at = NOON - timedelta(days=number // 3)
        for tenant in (THEIRS, OURS):
            assert await ProjectTable(store).new_project(tenant, CreateProject(project, project), created_at)
    for tenant in (OURS, THEIRS):
        await store.record([msgspec.structs.replace(row, tenant=tenant) for row in rows])
    return rows


def latest_first(rows: Iterable[TurnRow]) -> list[str]:
    return [row.turn for row in sorted(rows, key=lambda row: (row.asked_at, row.turn), reverse=True)]


COUNTS = (
    "messages", "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "cost_nusd",
)  # fmt: skip
DIMENSIONS = ("day", "session", "project", "model", "key", "user", "metadata.team")


def hash_text(text: str) -> str:
    return hash_words(OURS, [text])


def words_row(hashed: str) -> AddedRows:
    """The row of a turn's words, which the search adds."""
    return {"put_words": {"words": hashed}} if hashed else {}


def with_batch(row: TurnRow, batch: str | None) -> TurnRow:
    """The row of a turn that is a batch with these counts as JSON, unless they are None."""
    return row if batch is None else msgspec.structs.replace(row, added={**row.added, "put_batch": {"batch": batch}})


def batch_of_row(row: TurnRow) -> str | None:
    """The counts that `with_batch` has added, as JSON."""
    return row.added["put_batch"]["batch"] if "put_batch" in row.added else None


def words_of_row(row: TurnRow) -> str:
    """The hashed words that `words_row` has added."""
    return str(row.added["put_words"]["words"])


@asynccontextmanager
async def counting_reads(store: Store) -> AsyncIterator[list[int]]:
    """Yields a list of what each query costs: steps of SQLite's machine, or rows that PostgreSQL's plan reads."""
    costs: list[int] = []
    read = store.database.read

    async def count_rows(statement: str, values: Mapping[str, Any]) -> int:
        (plan,) = await read(f"EXPLAIN (ANALYZE, FORMAT json) {statement}", values)
        return sum(rows_of(msgspec.json.decode(plan["QUERY PLAN"])[0]["Plan"]))

    async def count_steps(statement: str, values: Mapping[str, Any]) -> int:
        (file,) = await read("SELECT file FROM pragma_database_list WHERE name = 'main'", {})
        steps: list[int] = []
        with closing(sqlite3.connect(file["file"])) as database:
            database.set_progress_handler(lambda: steps.append(1), 1)
            database.execute(statement, values).fetchall()
        return len(steps)

    count = count_steps if store.system == "sqlite" else count_rows

    async def read_and_count(
        statement: str, values: Mapping[str, Any], *, is_page: bool = False
    ) -> list[dict[str, Any]]:
        costs.append(await count(statement, values))
        return await read(statement, values, is_page=is_page)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.database, "read", read_and_count)
        yield costs


def rows_of(step: dict[str, Any]) -> Iterator[int]:
    """The rows that each step of a plan has read. Not those of an index of words: it has no order."""
    if step["Node Type"] != "Bitmap Index Scan":
        each = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
        yield round(each * step["Actual Loops"])
    for part in step.get("Plans", []):
        yield from rows_of(part)
