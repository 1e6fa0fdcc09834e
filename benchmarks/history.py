"""The time of each list and total of the history, over a database of generated turns.

    python -m benchmarks.history --turns 1000000 [--database FILE]

The rows are written with SQL, without the log. The queries are those of the gateway's routes, each 20 times.
"""

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec

from benchmarks.command_line import count, new_parser
from tailrace.persistence.paging import NEWEST, OLDEST
from tailrace.persistence.rows import TurnRow, build_row, micros
from tailrace.persistence.sqlite import STATEMENTS as SQL
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.harness.turn_builder import completed_turn

OURS = Tenant("ours")
TODAY = date(2026, 11, 1)
DAYS, MODELS, USERS, PROJECTS, TURNS_OF_SESSION = 365, 4, 5_000, 50, 5
BATCH = 2_000
REPEATS = 20
LAST_DAYS = TODAY - timedelta(days=29)
NOW = datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC)


def rows_of(turns: int) -> list[Callable[[], TurnRow]]:
    """Returns functions that make the rows, oldest first."""
    made = build_row(TurnKey(OURS, TurnId("turn")), completed_turn("Light scatters.").turn)
    step = DAYS * 86_400_000_000 // turns
    start = micros(NOW) - DAYS * 86_400_000_000

    def row(number: int) -> TurnRow:
        user, model, team = f"user-{number * 7919 % USERS}", f"model-{number % MODELS}", f"team-{number % 20}"
        return msgspec.structs.replace(
            made,
            turn=f"turn-{number:08}",
            session=f"session-{number // TURNS_OF_SESSION:08}",
            project=f"project-{number // TURNS_OF_SESSION % PROJECTS}",
            model=model,
            user=user,
            asked_by=f"key-{number % 10}",
            metadata=f'{{"team":"{team}"}}',
            labels=f'{{"model":"{model}","user":"{user}","key":"key-{number % 10}","metadata.team":"{team}"}}',
            asked_at=start + number * step,
            ended_at=start + number * step + 1_000_000,
            cursor=number + 1,
        )

    return [lambda number=number: row(number) for number in range(turns)]  # type: ignore[misc]


async def fill(path: Path, turns: int) -> None:
    store = await Store.open(path, busy_timeout_s=5)
    await store.migrate()
    await store.close()
    makers, began_at = rows_of(turns), time.monotonic()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        for first in range(0, turns, BATCH):
            columns = [msgspec.structs.asdict(make()) for make in makers[first : first + BATCH]]
            named = [(row["tenant"], row["session"], row["turn"]) for row in columns]
            database.execute("BEGIN")
            for name in ("put_session", "put_project", "put_turn", "put_labels", "put_usage"):
                database.executemany(SQL[name], columns)
            database.execute(SQL["count_usage"], {"listed": msgspec.json.encode(named).decode(), "sign": 1})
            database.execute("COMMIT")
    print(f"{turns:,} turns written in {time.monotonic() - began_at:.0f} s, {size_of(path):,.0f} MB")


def size_of(path: Path) -> float:
    """Returns the size of a file in MB."""
    return path.stat().st_size / 1e6


async def measure(path: Path) -> None:
    store = await Store.open(path, busy_timeout_s=5)
    user = {"user": "user-7"}
    queries: dict[str, Callable[[], Awaitable[object]]] = {
        **{
            f"usage by {by}, 30 days": lambda by=by: store.usage(OURS, by, LAST_DAYS, TODAY, "", 51)  # type: ignore[misc]
            for by in ("day", "model", "key", "user", "session", "project", "metadata.team")
        },
        "usage by user, a year": lambda: store.usage(OURS, "user", TODAY - timedelta(days=365), TODAY, "", 51),
        "turns": lambda: store.turn_list.read_page(OURS, {}, None, NEWEST, 51),
        "turns of a user": lambda: store.turn_list.read_page(OURS, user, None, NEWEST, 51),
        "turns of a user and a model": lambda: store.turn_list.read_page(
            OURS, user | {"model": "model-1"}, None, NEWEST, 51
        ),
        "turns by metadata": lambda: store.turn_list.read_page(OURS, {"metadata.team": "team-3"}, None, NEWEST, 51),
        "turns of a session": lambda: store.session_turns(OURS, "session-00000001", OLDEST, 51),
        "sessions, page 1": lambda: store.numbered_sessions(OURS, None, 0, 51, NOW),
        "sessions of a project": lambda: store.sessions(OURS, "project-3", NEWEST, 51, NOW),
        "sessions of a user": lambda: store.sessions(OURS, None, NEWEST, 51, NOW, "user-7"),
        "projects, page 1": lambda: store.numbered_projects(OURS, 0, 51, NOW),
        "statistics": lambda: store.usage_since(OURS, NOW - timedelta(hours=1)),
    }
    for name, ask in queries.items():
        times = []
        for _ in range(REPEATS):
            began_at = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - began_at)
        print(f"{name:32} {statistics.median(times) * 1000:8.1f} ms")
    await store.close()


async def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--turns", type=count, default=1_000_000)
    parser.add_argument("--database", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.database or Path(folder) / "tailrace.db"
        if not path.exists():
            await fill(path, given.turns)
        await measure(path)


if __name__ == "__main__":
    asyncio.run(main())
