"""Writes the final state of a run next to its history: log, rows, blobs, the model's calls, the backlogs."""

from datetime import datetime
from pathlib import Path
from time import monotonic_ns

from tailrace.features.persistence import DATABASES
from tailrace.persistence.rows import turn_record
from tailrace.proto import subjects
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.jetstream_log import FENCE_SUBJECT
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.nats.pub_ack import FENCE
from tailrace.proto.subjects import BODIES, EVERY_BLOB, EVERY_TURN, GENERATORS, PERSISTENCE, STREAM
from tests.checker.history import HISTORY, Recorder
from tests.checker.run import Backlog, FinalState, LogMessage, Row, Run, save
from tests.harness.generator_in_loop import read_calls
from tests.promises import Budget

PROBE = "probe"
ROWS = "SELECT * FROM turns JOIN usage USING (tenant, session, turn) ORDER BY tenant, turn"


async def collect(
    folder: Path,
    connection: Connection,
    *,
    claude_url: str | None = None,
    database: Path | str | None = None,
    servers: int = 1,
    budgets: tuple[Budget, ...] | None = None,
    samples: tuple[Budget, ...] = (),
) -> None:
    """Writes all of it into `folder`. Call it when all turns have settled.

    `servers` is the number of nats-servers: a log on one server contains no forks.
    """
    Recorder(folder / HISTORY, "collect").read_clock()
    backlogs = {}
    for durable in (GENERATORS, PERSISTENCE):
        backlog = await consumer_backlog(connection, durable)
        backlogs[durable] = Backlog(backlog.waiting, backlog.leased)
    # Without probes that a killed process did not remove (PROTOCOL R68).
    log = [one for one in await _messages(connection) if subjects.parse(one.subject)[1] != PROBE]
    blobs = await _messages(connection, BODIES, EVERY_BLOB)
    account = await read_calls(claude_url) if claude_url is not None else None
    final = FinalState(
        servers=servers,
        account=account,
        backlogs=backlogs,
        budgets=budgets,
        samples=samples,
        collected=monotonic_ns(),
    )
    rows = await _rows(database) if database is not None else None
    save(folder, Run(log=log, rows=rows, blobs=blobs, final=final))


async def _messages(connection: Connection, stream: str = STREAM, subject: str = EVERY_TURN) -> list[LogMessage]:
    """Returns a whole stream."""
    reads, found = DirectReader(connection, stream), list[LogMessage]()
    while True:
        page = await reads.page(subject, Seq(found[-1].seq + 1 if found else 1))
        found += map(_log_message, page.messages)
        if page.is_last:
            return found


def _log_message(message: Message) -> LogMessage:
    headers = message.headers
    fence = headers.get(FENCE)
    try:
        payload, junk = message.data.decode(), None
    except UnicodeDecodeError:
        payload, junk = "", message.data
    return LogMessage(
        seq=Seq(int(headers["Nats-Sequence"])),
        # Truncated to microseconds, as the log does.
        at=datetime.fromisoformat(headers["Nats-Time-Stamp"]),
        subject=headers["Nats-Subject"],
        fence=int(fence) if fence is not None else None,
        fence_subject=headers.get(FENCE_SUBJECT),
        payload=payload,
        junk=junk,
    )


async def _rows(where: Path | str) -> list[Row]:
    database = await DATABASES.open(where, busy_timeout_s=5)
    try:
        return [Row(Tenant(one["tenant"]), turn_record(one)) for one in await database.read(ROWS, {})]
    finally:
        await database.close()
