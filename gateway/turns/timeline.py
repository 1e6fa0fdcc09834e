"""The timeline of one turn, computed from its entries: times, tokens and cost, and no text of the conversation.

`tailrace turn` prints it, and `GET /v1/turns/{turn}/timeline` returns it.
"""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from tailrace.gateway.history_client import HistoryClient
from tailrace.proto import events
from tailrace.proto.chain import START, link
from tailrace.proto.entries import Attempt, End, Event, Mode, Outcome, Request, StoredEntry
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.reader_report import GatewayReaders, ReaderReport
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage

# A reader hardly notices a shorter pause. A takeover takes about two seconds.
PAUSE_MIN = timedelta(seconds=1)

_decode_readers = msgspec.json.Decoder(GatewayReaders).decode


class AttemptStep(msgspec.Struct, kw_only=True):
    """An attempt."""

    attempt: int
    """The number of the attempt, from 1."""
    at: datetime
    """When the attempt began."""
    generator: str
    """The generator that made the attempt."""
    backend: str
    """The backend that it called."""
    mode: Mode
    """Whether the answer was begun, continued or restarted."""
    is_hedge: bool
    """Whether it was a second call beside a slow one."""
    first_token_at: datetime | None = None
    """When its first delta was stored."""
    last_event_at: datetime | None = None
    """When its last event was stored."""
    events: int = 0
    """The number of its stored events."""


class Pause(msgspec.Struct, frozen=True):
    """A time of at least one second after the first token in which nothing was stored."""

    at: datetime
    """When the pause began."""
    seconds: float
    """How long it took."""


class Write(msgspec.Struct, frozen=True, array_like=True):
    """A stored entry: its sequence, the milliseconds since acceptance, and the characters that it adds to the answer.

    Deltas that arrived during an append are joined in one entry, which then has more characters.
    """

    seq: Seq
    ms: int
    chars: int


class EndStep(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the turn."""

    at: datetime
    """When the end was stored."""
    outcome: Outcome
    """How the turn ended."""
    stop_reason: str | None
    """Why the model stopped."""
    code: str | None
    """The code of the error, if the turn failed."""
    usage: Usage
    """The tokens of the turn."""
    usage_is_estimated: bool
    """Whether output tokens are estimated from the bytes of the text."""
    cost_usd: float | None
    """The cost in dollars; null if the model's price is unknown."""


class ReaderStep(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of the turn."""

    report: ReaderReport
    """The stream that a gateway served."""
    sent: int
    """The number of entries up to the last one that was written to it."""


class Step(msgspec.Struct, frozen=True):
    """A step of the turn, as a line of text."""

    at: datetime
    """The time of the event."""
    text: str
    """The event in words, as the page and `tailrace turn` show it."""


class Timeline(msgspec.Struct, kw_only=True):
    """The steps of a turn, and its readers."""

    turn: TurnId
    """The id of the turn."""
    tenant: Tenant
    """The tenant of the turn."""
    session: SessionId | None = None
    """The session of the turn."""
    model: str | None = None
    """The model that answers."""
    accepted_at: datetime | None = None
    """When the request was stored."""
    queue_position: int | None = None
    """The estimated position in the queue when the turn was accepted, from 1; null if a generator was free."""
    attempts: list[AttemptStep] = []
    """The attempts, in order."""
    first_token_at: datetime | None = None
    """When the first delta of the answer was stored."""
    pauses: list[Pause] = []
    """The longer times in which nothing was stored."""
    end: EndStep | None = None
    """The end of the turn; null while it runs."""
    entries: int = 0
    """The number of the turn's valid entries."""
    writes: list[Write] = []
    """The stored entries of the answer."""
    skipped_entries: int = 0
    """The number of entries that a fork has made invalid."""
    recorded: bool | None = None
    """Whether the database has the turn with its end; null if persistence did not answer."""
    gateways: int = 0
    """The number of gateways that have answered."""
    remembered_since: datetime | None = None
    """The time since which all gateways remember their readers; null if no gateway answered."""
    readers: list[ReaderStep] = []
    """The streams of the turn."""
    delivered: str = ""
    """Whether a reader was sent the whole turn, in one sentence."""
    steps: list[Step] = []
    """The acceptance, attempts, pauses, readers and end as lines of text, in the order of time."""


def build(key: TurnKey, stored: Iterable[StoredEntry], gateways: Sequence[GatewayReaders]) -> Timeline:
    """Returns the timeline of a turn, without `recorded`. Invalid entries are only counted."""
    found = Timeline(turn=key.turn, tenant=key.tenant)
    chain, times, last_at = START, dict[Seq, datetime](), None
    for one in stored:
        linked = link(chain, one.seq, one.entry)
        if linked is None:
            found.skipped_entries += 1
            continue
        chain = linked
        times[one.seq] = one.at
        if last_at is not None and found.first_token_at is not None and one.at - last_at >= PAUSE_MIN:
            found.pauses.append(Pause(last_at, round((one.at - last_at).total_seconds(), 3)))
        last_at = one.at
        chars = _add(found, one)
        since = one.at - found.accepted_at if found.accepted_at is not None else timedelta()
        found.writes.append(Write(one.seq, round(since / timedelta(milliseconds=1)), chars))
    seqs = list(times)
    found.entries = len(seqs)
    found.gateways = len(gateways)
    found.remembered_since = max((gateway.since for gateway in gateways), default=None)
    reports = [reader for gateway in gateways for reader in gateway.readers]
    if found.accepted_at is not None and found.remembered_since is not None:
        reports += _lost_readers(reports, found.accepted_at, times, found.remembered_since)
    reports.sort(key=lambda report: report.opened_at)
    found.readers = [ReaderStep(report=report, sent=bisect_right(seqs, report.written)) for report in reports]
    found.delivered = _describe_delivery(found, seqs[-1] if seqs else BEFORE_FIRST)
    found.steps = _describe_steps(found)
    return found


def _lost_readers(
    known: Sequence[ReaderReport], accepted_at: datetime, times: Mapping[Seq, datetime], newest_start: datetime
) -> list[ReaderReport]:
    """Returns the streams that were lost with their gateways, inferred from the streams that resumed them.

    A client whose cursor no known earlier stream had sent must have received it from a lost stream. This is inferred
    only if a gateway has started since the cursor's entry was stored: otherwise it may be the client's first stream.
    """
    # By cursor: the time at which a stream that had sent its entry was closed first.
    sent_at: dict[Seq, datetime] = {}
    cursors = sorted({reader.cursor for reader in known})
    for closed_at, cursor, written in sorted(
        (one.closed_at, one.cursor, one.written) for one in known if one.closed_at
    ):
        sent = slice(bisect_right(cursors, cursor), bisect_right(cursors, written))
        sent_at.update(dict.fromkeys(cursors[sent], closed_at))
        del cursors[sent]
    lost = []
    for reader in known:
        stored_at = times.get(reader.cursor)
        was_sent = reader.cursor in sent_at and sent_at[reader.cursor] <= reader.opened_at
        if stored_at is None or was_sent or stored_at >= newest_start:
            continue
        # The times are estimates: the lost stream opened after `accepted_at`, and closed after `stored_at`.
        fields = {"opened_at": accepted_at, "closed_at": stored_at, "cursor": BEFORE_FIRST, "written": reader.cursor}
        lost.append(msgspec.structs.replace(reader, ending="lost", **fields))
    return lost


async def read(
    log: TurnLog, history: HistoryClient, key: TurnKey, ask_gateways: Callable[[], Awaitable[list[bytes]]]
) -> Timeline:
    """Returns the timeline of a turn; of one that has left the log, the fields of its record.

    `ask_gateways` returns the readers of the turn at each gateway, as JSON. It is called for a turn that exists.
    Raises TurnUnknown, Refused, LogUnavailable.
    """
    stored: list[StoredEntry] = []
    while page := await log.read_entries(key, stored[-1].seq if stored else BEFORE_FIRST):
        stored += page
    record, recorded = None, None
    try:
        record = await history.query(key.tenant, GetTurn(key.turn))
        recorded = record.ended_at is not None
    except Refused as refused:
        is_unknown = refused.code == "turn_not_found"
        if stored:
            recorded = False if is_unknown else None
        elif is_unknown:
            raise TurnUnknown(f"neither the log nor the database has a turn {key.turn} of {key.tenant}") from refused
        else:
            raise
    found = build(key, stored, [_decode_readers(reply) for reply in await ask_gateways()])
    found.recorded = recorded
    if record is not None and not stored:
        found.session, found.model, found.accepted_at = record.session, record.model, record.asked_at
        found.first_token_at = record.first_token_at
        if record.ended_at is not None and record.outcome != "running":
            found.end = _end_step(record.ended_at, record.outcome, record)
        found.delivered, found.steps = _describe_delivery(found, record.cursor), _describe_steps(found)
    return found


def _end_step(at: datetime, outcome: Outcome, end: End | TurnRecord) -> EndStep:
    return EndStep(
        at=at,
        outcome=outcome,
        stop_reason=end.stop_reason,
        code=end.error.code if end.error is not None else None,
        usage=end.usage,
        usage_is_estimated=end.usage_is_estimated,
        cost_usd=end.cost_usd,
    )


def _add(found: Timeline, stored: StoredEntry) -> int:
    """Adds an entry; returns the characters that it adds to the answer."""
    chars = 0
    match stored.entry:
        case Request() as request:
            found.session, found.model = request.session, request.model
            found.accepted_at, found.queue_position = stored.at, request.queue_position
        case Attempt() as attempt:
            found.attempts.append(
                AttemptStep(
                    attempt=attempt.attempt,
                    at=stored.at,
                    generator=attempt.generator,
                    backend=attempt.backend,
                    mode=attempt.mode,
                    is_hedge=attempt.is_hedge,
                )
            )
        case Event(event=raw) if found.attempts:
            last = found.attempts[-1]
            last.events += 1
            last.last_event_at = stored.at
            if isinstance(event := events.decode(raw), events.BlockDelta):
                chars = _length(event.delta)
                last.first_token_at = last.first_token_at or stored.at
                found.first_token_at = found.first_token_at or stored.at
        case End() as end:
            found.end = _end_step(stored.at, end.outcome, end)
        case _:
            pass
    return chars


def _length(delta: events.Delta) -> int:
    match delta:
        case events.TextDelta(added) | events.ThinkingDelta(added) | events.InputJsonDelta(added):
            return len(added)
        case _:
            return 0


def _describe_delivery(found: Timeline, last: Seq) -> str:
    """Returns how much of the turn, whose last entry is `last`, was written to readers.

    The gateway cannot know whether a client has shown it.
    """
    reports = [reader.report for reader in found.readers]
    # A client may disconnect right after it has received the end.
    whole = sum(found.end is not None and (one.ending == "ended" or one.written >= last) for one in reports)
    if whole:
        return f"yes: {whole} of {len(found.readers)} streams were sent all entries up to the end"
    reading = sum(reader.report.ending == "open" for reader in found.readers)
    if reading:
        return f"in progress: {reading} streams are open"
    if found.readers:
        furthest = max(reader.sent for reader in found.readers)
        how_far = f", the furthest after {furthest} of {found.entries} entries" if found.entries else ""
        return f"not completely: every stream was cut{how_far}"
    if found.remembered_since is None:
        return "unknown: no gateway answered"
    if found.accepted_at is not None and found.accepted_at >= found.remembered_since:
        return "no stream was opened; the answer may have been read as one response, without a stream"
    return (
        f"unknown: the gateways remember streams since {found.remembered_since.astimezone():%Y-%m-%d %H:%M:%S %Z} only"
    )


# The text of an attempt after the first one begins with these words, by its mode.
LATER_ATTEMPTS: Mapping[Mode, str] = {
    "fresh": "A new attempt",
    "continue": "Takeover: the answer goes on",
    "restart": "Takeover: the answer begins anew",
}


def _describe_steps(found: Timeline) -> list[Step]:
    """Returns the steps of the turn, in the order of time."""
    steps = [Step(pause.at, f"Pause of {pause.seconds:.1f} s") for pause in found.pauses]
    if found.accepted_at is not None:
        queue = f", number {found.queue_position} in the queue" if found.queue_position else ""
        steps.append(Step(found.accepted_at, f"Accepted{queue}"))
    for one in found.attempts:
        what = "Claimed" if one.attempt == 1 else LATER_ATTEMPTS[one.mode]
        hedge = ", a hedge" if one.is_hedge else ""
        steps.append(Step(one.at, f"{what}. Attempt {one.attempt} by {one.generator}, {one.backend}{hedge}"))
        if one.first_token_at is not None:
            is_first = one.first_token_at == found.first_token_at
            steps.append(Step(one.first_token_at, "First token" if is_first else "Next token"))
    for reader in found.readers:
        report, sent = reader.report, f"{reader.sent:,} of {found.entries:,} entries"
        if report.ending == "lost":
            steps.append(
                Step(report.closed_at or report.opened_at, f"A reader lost its gateway, which had sent {sent}")
            )
            continue
        how = f"resumed after {report.cursor}" if report.cursor else "began"
        steps.append(Step(report.opened_at, f"A reader {how} ({report.dialect})"))
        if report.closed_at is not None:
            ending = "received everything" if report.ending == "ended" else f"was cut ({report.ending})"
            # The entries of a turn that has left the log are not counted.
            count = f": {sent}" if found.entries else ""
            steps.append(Step(report.closed_at, f"A reader {ending}, up to {report.written}{count}"))
    if (end := found.end) is not None:
        why = end.code or end.stop_reason
        steps.append(Step(end.at, f"{end.outcome.capitalize()}{f' ({why})' if why else ''}"))
    return sorted(steps, key=lambda step: step.at)
