"""`tailrace verify`: reads all turns of the log and of the database, and says what differs."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Literal, NamedTuple

import msgspec

from tailrace.deploy.cli.arguments import add_data, add_json
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import has_cursor, table
from tailrace.proto import entries, subjects
from tailrace.proto.damage import Continuity
from tailrace.proto.entries import End, Request, StoredEntry
from tailrace.proto.errors import Refused
from tailrace.proto.fold import text_proof
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnKey
from tailrace.proto.nats import Connection, Rpc, Tombstones, TurnLog
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.log_server import PAGE_MAX
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, ListTurns, TurnPage, TurnRecord
from tailrace.proto.runtime.exit_status import EXIT_ERROR
from tailrace.proto.subjects import STREAM

DESCRIPTION = "Compare the turns of the log with those of the database, and say what differs."
EXAMPLES = """\
examples:
  tailrace verify
  tailrace verify --json | jq -r '.differences[].turn'
  tailrace verify --data /srv/tailrace     of the `tailrace up` with this data directory

It reads every entry of the log and every turn of the database that is not older than the log, and changes nothing.
Turns may run meanwhile. Turns with `store: false`, and erased, deleted and expired turns, are left out. It connects to
the NATS of the `tailrace up` with this data directory (--data), or to TAILRACE_NATS_URL; persistence must run.

Exit status 0: nothing differs; 1: something does, or an error; 2: a wrong argument or setting. A lost entry was left
out by nats-server, perhaps because the disk has changed a byte: docs/RUNBOOK.md, A file of the log is damaged.
"""
TIMEOUT_S = 30.0
PROGRESS_EVERY_S = 1.0
# Without a terminal.
LINE_EVERY_S = 10.0
LISTED_MAX = 200
# The tenant of the write probes (R68).
PROBES = "_"

Fault = Literal["lost entry", "lost end", "lost request", "not in the log", "not in the database", "other answer"]
Report = Callable[[str], None]


class Difference(NamedTuple):
    """A difference between log and database."""

    tenant: str
    turn: str
    fault: Fault
    detail: str


class Verification(NamedTuple):
    """How many turns were compared, how many were left out, and what differs."""

    turns: int
    left_out: int
    differences: list[Difference]


class LogTurn:
    """The entries of a turn in the log, folded."""

    def __init__(self) -> None:
        self.found = Continuity()
        self.request: Request | None = None
        self.end: End | None = None

    def add(self, stored: StoredEntry) -> None:
        """Adds the next entry."""
        self.found.add([stored])
        if isinstance(stored.entry, Request):
            self.request = self.request or stored.entry
        if isinstance(stored.entry, End) and self.found.chain.last == stored.seq:
            self.end = stored.entry

    @property
    def is_left_out(self) -> bool:
        """Whether the database has no row of this turn, or its entries cannot be read here."""
        return self.request is not None and (not self.request.store or bool(self.request.encryption_key))

    def compare(self, record: TurnRecord | None) -> tuple[Fault, str] | None:
        """Returns how the log differs from the row of the database, or None."""
        if missing := self.found.missing:
            is_first = self.request is None
            return "lost request" if is_first else "lost entry", f"at {', '.join(map(str, missing))}"
        if record is None:
            return None if self.request is None or self.request.batch else ("not in the database", "")
        if self.end is None:
            return ("lost end", f"the database has {record.outcome}") if record.has_end else None
        if self.end.outcome != record.outcome:
            return "other answer", f"{self.end.outcome} in the log, {record.outcome} in the database"
        if (self.end.text_chars, self.end.text_sha256) != text_proof(record.text):
            return "other answer", f"{self.end.text_chars} characters in the log, {len(record.text)} in the database"
        return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_data(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the differences; returns EXIT_ERROR if there are any. Raises SettingsInvalid, LogUnavailable, Refused."""
    found = asyncio.run(verify(nats_server.find_url(args.data, environ), show_progress()))
    if args.json:
        print_json({**found._asdict(), "differences": [one._asdict() for one in found.differences]})
    else:
        print(render(found))
    return EXIT_ERROR if found.differences else 0


def render(found: Verification) -> str:
    """Returns the differences as a table, and a last line with the numbers."""
    rows = [(one.turn, one.tenant, one.fault, one.detail) for one in found.differences]
    counted = f"{found.turns} turns compared, {found.left_out} left out, {len(rows)} differences"
    return "\n".join([table([("TURN", "TENANT", "FAULT", "DETAIL"), *rows]), counted]) if rows else counted


def show_progress() -> Report:
    """Returns a function that shows a text on the standard error: one line that changes, or now and then a line."""
    is_terminal = has_cursor(sys.stderr)
    every_s, start, end = (PROGRESS_EVERY_S, "\r\x1b[K", "") if is_terminal else (LINE_EVERY_S, "", "\n")
    shown_at = monotonic()

    def show(text: str) -> None:
        nonlocal shown_at
        if monotonic() - shown_at >= every_s or (is_terminal and not text):
            shown_at = monotonic()
            print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    return show


async def verify(url: str, show: Report, user: str | None = ADMIN) -> Verification:
    """Compares all turns. Raises LogUnavailable, Refused if persistence does not answer."""
    connection = await Connection.open(url, "tailrace-verify", user)
    try:
        state = (await connection.stream_info(STREAM)).state
        turns, since = await read_log(connection, state.last_seq, show)
        left_out = {key for key, one in turns.items() if one.is_left_out}
        rows = dict[TurnKey, TurnRecord]()
        rpc = Rpc(connection)
        for tenant in sorted({key.tenant for key in turns}):
            async for record in list_rows(rpc, tenant, since):
                rows[TurnKey(tenant, record.turn)] = record
                show(f"{len(rows)} turns of the database read")
        suspects = [key for key, one in turns.items() if key not in left_out and one.compare(rows.get(key))]
        suspects += [key for key in rows if key not in turns]
        check = Check(connection, rpc, state.first_seq)
        differences = [found for key in suspects if (found := await check.examine(key)) is not None]
        show("")
        return Verification(len(turns.keys() | rows.keys()) - len(left_out), len(left_out), differences)
    finally:
        await connection.close()


async def read_log(connection: Connection, last: Seq, show: Report) -> tuple[dict[TurnKey, LogTurn], datetime]:
    """Returns what the log has of each turn, up to the entry `last`, and the time of the first entry.

    Raises LogUnavailable.
    """
    reader, turns, after = DirectReader(connection), dict[TurnKey, LogTurn](), BEFORE_FIRST
    since = datetime.max.replace(tzinfo=UTC)
    while after < last and (page := await reader.page(subjects.EVERY_TURN, Seq(after + 1), PAGE_MAX)).messages:
        for message in page.messages:
            after = Seq(int(message.header(b"Nats-Sequence")))
            at = datetime.fromisoformat(message.header(b"Nats-Time-Stamp"))
            since = min(since, at)
            key, kind = subjects.parse(message.header(b"Nats-Subject"))
            if key.tenant != PROBES:
                turns.setdefault(key, LogTurn()).add(StoredEntry(after, at, entries.decode(kind, message.data)))
        show(f"{after} of {last} entries read")
    return turns, since


async def list_rows(rpc: Rpc, tenant: Tenant, since: datetime) -> AsyncIterator[TurnRecord]:
    """Yields the turns of the database that were asked at `since` or later, newest first. Raises Refused."""
    after: str | None = None
    while True:
        body = msgspec.json.encode(ListTurns(first=since.date(), after=after, limit=LISTED_MAX))
        reply = await rpc.request(tenant, ListTurns.query, body, timeout_s=TIMEOUT_S)
        page = msgspec.json.decode(reply, type=TurnPage)
        for record in page.turns:
            if record.asked_at >= since:
                yield record
        if (after := page.next) is None:
            return


class Check:
    """Reads a turn that differs once more: it may have run, ended or been deleted meanwhile."""

    def __init__(self, connection: Connection, rpc: Rpc, first: Seq) -> None:
        self._log = TurnLog(connection)
        self._tombstones = Tombstones(connection)
        self._rpc = rpc
        self._first = first

    async def examine(self, key: TurnKey) -> Difference | None:
        """Returns what is wrong with the turn, or None. The database is asked first (PROTOCOL R144)."""
        record = await self._row(key)
        turn = await self._read(key)
        if await self._tombstones.is_deleted(key):
            return None
        if not turn.found.chain.last and not turn.found.missing:
            return None if record is None else Difference(key.tenant, key.turn, "not in the log", record.outcome)
        if turn.request is None and turn.found.missing and turn.found.missing[0] < self._first:
            # Its oldest entries have expired.
            return None
        found = turn.compare(record)
        return None if found is None else Difference(key.tenant, key.turn, *found)

    async def _row(self, key: TurnKey) -> TurnRecord | None:
        try:
            reply = await self._rpc.request(
                key.tenant, GetTurn.query, msgspec.json.encode(GetTurn(key.turn)), timeout_s=TIMEOUT_S
            )
        except Refused as refused:
            if refused.code != "turn_not_found":
                raise
            return None
        return msgspec.json.decode(reply, type=TurnRecord)

    async def _read(self, key: TurnKey) -> LogTurn:
        turn, after = LogTurn(), BEFORE_FIRST
        while stored := await self._log.read_entries(ScopedKey.whole(key), after):
            for one in stored:
                turn.add(one)
            after = stored[-1].seq
        return turn
