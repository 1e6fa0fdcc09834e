"""`tailrace turn`: reads a turn's log, record and readers over NATS as the administrator, and renders its timeline."""

from contextlib import suppress
from datetime import datetime

import msgspec

from tailrace.deploy.cli.turn_timeline import Timeline, build
from tailrace.proto.entries import Stored
from tailrace.proto.errors import LogUnavailable, Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Tenant, TurnId
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.nats.find_turn import find_turn
from tailrace.proto.nats.permissions import ADMIN
from tailrace.proto.reader_report import GatewayReaders
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey

QUERY_TIMEOUT_S = 5.0
# Gateways answer from memory.
GATEWAYS_WAIT_S = 0.5


async def fetch(url: str, turn: TurnId, tenant: Tenant | None) -> Timeline:
    """Returns the timeline of a turn. Without `tenant` the turn must be in the log.

    Raises TurnUnknown, Refused, LogUnavailable.
    """
    connection = await Connection.open(url, "tailrace-turn", ADMIN)
    try:
        key = TurnKey(tenant, turn) if tenant is not None else await find_turn(connection, turn)
        if key is None:
            raise TurnUnknown(f"the log has no turn {turn}: if it is older than the log, name its tenant with --tenant")
        rpc = Rpc(connection)
        replies = await rpc.every_readers(key, wait_s=GATEWAYS_WAIT_S)
        gateways = [msgspec.json.decode(reply, type=GatewayReaders) for reply in replies]
        stored = await _stored(TurnLog(connection), key)
        timeline = build(key, stored, gateways)
        with suppress(LogUnavailable):
            await _add_record(rpc, key, timeline)
        return timeline
    finally:
        await connection.close()


async def _stored(log: TurnLog, key: TurnKey) -> list[Stored]:
    stored: list[Stored] = []
    while page := await log.replay(key, stored[-1].seq if stored else BEFORE_FIRST):
        stored += page
    return stored


async def _add_record(rpc: Rpc, key: TurnKey, timeline: Timeline) -> None:
    """Adds whether the turn is recorded. If the turn has left the log, also adds the fields of its record."""
    try:
        answer = await rpc.request(
            key.tenant, GetTurn.query, msgspec.json.encode(GetTurn(key.turn)), timeout_s=QUERY_TIMEOUT_S
        )
    except Refused as refused:
        if refused.code != "turn_not_found":
            return
        if not timeline.entries:
            raise TurnUnknown(f"neither the log nor the database has a turn {key.turn} of {key.tenant}") from refused
        timeline.recorded = False
        return
    record = msgspec.json.decode(answer, type=TurnRecord)
    timeline.recorded = record.ended_at is not None
    if not timeline.entries:
        timeline.session, timeline.model, timeline.accepted_at = record.session, record.model, record.asked_at


def render(found: Timeline) -> str:
    """Returns the timeline as text: one line for each step, with the local time and the seconds since acceptance."""
    start = found.accepted_at
    steps: list[tuple[datetime, str]] = []
    if start is not None:
        queue = f", position {found.queue_position} in the queue" if found.queue_position else ""
        steps.append((start, f"accepted{queue}"))
    for one in found.attempts:
        hedge = ", a hedge" if one.is_hedge else ""
        steps.append((one.at, f"attempt {one.attempt}: {one.mode}, {one.backend}, by {one.generator}{hedge}"))
        if one.first_token_at is not None:
            first = "first token" if one.first_token_at == found.first_token_at else "next token"
            steps.append((one.first_token_at, first))
    steps += [(pause.at, f"pause of {pause.seconds:.1f} s") for pause in found.pauses]
    for reader in found.readers:
        report, resumed = reader.report, f" after {reader.report.cursor}" if reader.report.cursor else ""
        steps.append((report.opened_at, f"reader {'resumed' if resumed else 'opened'}{resumed} ({report.dialect})"))
        if report.closed_at is not None:
            ending = "reader ended" if report.ending == "ended" else f"reader cut: {report.ending}"
            text = f"{ending}, at {report.written}: {reader.sent} of {found.entries} entries"
            steps.append((report.closed_at, text))
    if found.end is not None:
        steps.append((found.end.at, _end(found)))
    steps.sort(key=lambda step: step[0])
    recorded = {True: "yes", False: "not yet", None: "unknown: persistence does not answer"}[found.recorded]
    lines = [
        f"turn       {found.turn}",
        f"tenant     {found.tenant}",
        *([f"session    {found.session}", f"model      {found.model}"] if found.session else []),
        "",
        *(_line(at, start, text) for at, text in steps),
        "",
        f"recorded   {recorded}",
        *([f"skipped    {found.skipped_entries} entries of a fork"] if found.skipped_entries else []),
        f"delivered  {found.delivered}",
    ]
    return "\n".join(lines)


def _end(found: Timeline) -> str:
    assert found.end is not None  # noqa: S101
    end = found.end
    about = "about " if end.usage_is_estimated else ""
    cost = f"{end.cost_usd:.6f} $" if end.cost_usd is not None else "at an unknown price"
    tokens = f"{about}{end.usage.input_tokens} tokens in, {end.usage.output_tokens} out, {cost}"
    why = end.code or end.stop_reason
    return f"{end.outcome}{f' ({why})' if why else ''}: {tokens}"


def _line(at: datetime, start: datetime | None, text: str) -> str:
    since = f"{(at - start).total_seconds():+10.3f}" if start is not None else " " * 10
    return f"{at.astimezone():%H:%M:%S}.{at.microsecond // 1000:03d} {since}  {text}"
