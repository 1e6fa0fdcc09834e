"""The timeline of one turn, computed from its entries: times, tokens and cost, and no text of the conversation.

`tailrace turn` prints it, and `GET /v1/turns/{turn}/timeline` returns it.
"""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.streaming.reader_report import GatewayReaders, ReaderReport
from tailrace.proto import events
from tailrace.proto.chain import START, link
from tailrace.proto.entries import Attempt, End, Event, Mode, Outcome, Prefix, Request, StoredEntry
from tailrace.proto.errors import Refused, TurnUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.thinking_prefix import count_unchanged_tokens
from tailrace.proto.usage import NANO_USD_PER_USD, Usage

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
    cause: str | None = None
    """Why it follows the attempt before it: the code of the error that ended that one; `pause_turn`: the model paused;
    `schema`: the answer did not fit its schema; `handover`: its generator was stopped; `takeover`: its generator gave
    no reason, for example if it was killed; `redelivery`: the same generator was interrupted. Null for the first
    attempt."""
    reason: str | None = None
    """With the mode `restart`: why the answer so far could not be continued: `on_interrupt`, `schema`, or the type of a
    content block. Null if `cause` says all."""
    is_handed_over: bool = False
    """Whether its generator was stopped, and gave the turn back."""
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


class WaitStep(msgspec.Struct, frozen=True):
    """A wait for a model that could not be connected to."""

    at: datetime
    """When the wait began, or when its reason changed."""
    reason: str
    """The obstacle to the connection, for example `no such host`."""


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
    message: str | None = None
    """The error in one sentence, if the turn failed. It may quote the model's API."""
    cause: str | None = None
    """Why the turn was cancelled: `request`: by a client; `session`: by a client, with the session's other running
    turns; `on_busy`: by a newer turn; `steer`: by a message into the answer; `on_disconnect`: it had no reader;
    `deletion`; `batch`: its batch has ended. Null: not cancelled, cancelled by an older version, or only the database
    has the turn."""
    by: str | None = None
    """The id of the credential of the client that cancelled it."""
    successor: TurnId | None = None
    """The turn that answers the message, if one was put into the answer."""
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
    max_cost_usd: float | None = None
    """The highest cost of the answer, in dollars; null: no limit."""
    queue_position: int | None = None
    """The estimated position in the queue when the turn was accepted, from 1; null if a generator was free."""
    attempts: list[AttemptStep] = []
    """The attempts, in order."""
    first_token_at: datetime | None = None
    """When the first delta of the answer was stored."""
    pauses: list[Pause] = []
    """The longer times in which nothing was stored."""
    waits: list[WaitStep] = []
    """The waits for a model that could not be connected to."""
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
    prompt: str = ""
    """Which parts of the prompt differ from the turn before, in one sentence; empty: it has none, or it is unknown."""
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
    # By cursor: when a stream that had sent the cursor's entry was first closed.
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
    log: TurnLog, history: HistoryClient, key: ScopedKey, ask_gateways: Callable[[], Awaitable[list[bytes]]]
) -> Timeline:
    """Returns the timeline of a turn; if the turn has left the log, the fields of its record.

    `ask_gateways` returns the readers of the turn at each gateway, as JSON. The turn must exist.
    Raises TurnUnknown, Refused, LogUnavailable.
    """
    stored: list[StoredEntry] = []
    while page := await log.read_entries(key, stored[-1].seq if stored else BEFORE_FIRST):
        stored += page
    record, recorded = None, None
    try:
        record = await history.query(key.scope, GetTurn(key.turn))
        recorded = record.ended_at is not None
    except Refused as refused:
        is_unknown = refused.code == "turn_not_found"
        if stored:
            recorded = False if is_unknown else None
        elif is_unknown:
            raise TurnUnknown(f"neither the log nor the database has a turn {key.turn} of {key.tenant}") from refused
        else:
            raise
    found = build(key.plain, stored, [_decode_readers(reply) for reply in await ask_gateways()])
    found.recorded = recorded
    if record is not None and not stored:
        found.session, found.model, found.accepted_at = record.session, record.model, record.asked_at
        found.first_token_at = record.first_token_at
        if record.ended_at is not None and record.outcome != "running":
            found.end = _end_step(record.ended_at, record.outcome, record)
            found.prompt = describe_prompt(record.prefixes, record.usage)
        found.delivered, found.steps = _describe_delivery(found, record.cursor), _describe_steps(found)
    return found


def describe_prompt(prompts: Sequence[Prefix], usage: Usage) -> str:
    """Returns a sentence about the difference of a turn's first prompt from that of the turn before."""
    unchanged = count_unchanged_tokens(prompts, usage)
    if unchanged is None:
        return ""
    tokens = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    changed = ", ".join(prompts[0].changed)
    begun = f"{changed} changed since the turn before" if changed else "only added to that of the turn before"
    return f"{begun}: about {unchanged:,} of {tokens:,} tokens are unchanged, {usage.cache_read_input_tokens:,} cached"


def _end_step(at: datetime, outcome: Outcome, end: End | TurnRecord) -> EndStep:
    cause, by, successor = (end.cause, end.by, end.successor) if isinstance(end, End) else (None, None, None)
    return EndStep(
        at=at,
        outcome=outcome,
        stop_reason=end.stop_reason,
        code=end.error.code if end.error is not None else None,
        message=end.error.message if end.error is not None else None,
        cause=cause,
        by=by,
        successor=successor,
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
            if request.max_cost_nano_usd is not None:
                found.max_cost_usd = request.max_cost_nano_usd / NANO_USD_PER_USD
        case Attempt() as attempt:
            before = found.attempts[-1] if found.attempts else None
            found.attempts.append(
                AttemptStep(
                    attempt=attempt.attempt,
                    at=stored.at,
                    generator=attempt.generator,
                    backend=attempt.backend,
                    mode=attempt.mode,
                    cause=None if before is None else _find_cause(attempt, before),
                    reason=attempt.reason,
                )
            )
        case Event(event=raw, is_hidden=True) if found.attempts and raw == events.HANDOVER:
            found.attempts[-1].is_handed_over = True
        case Event(event=raw, is_hidden=True) if (wait := events.decode_wait(raw)) is not None:
            found.waits.append(WaitStep(stored.at, wait.obstacle))
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
            found.prompt = describe_prompt(end.prefixes, end.usage)
        case _:
            pass
    return chars


def _find_cause(attempt: Attempt, before: AttemptStep) -> str:
    """Returns why `attempt` follows the attempt `before`; see AttemptStep.cause."""
    if attempt.cause is not None:
        return attempt.cause
    if attempt.misfit is not None:
        return "schema"
    if before.is_handed_over:
        return "handover"
    return "redelivery" if attempt.generator == before.generator else "takeover"


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


MODES: Mapping[Mode, str] = {
    "fresh": "begins the answer",
    "continue": "continues the answer",
    "restart": "restarts the answer, with a reset for its readers",
}


def _describe_attempt(one: AttemptStep, before: AttemptStep | None) -> str:
    """Returns an attempt in words, and why it follows the attempt `before`."""
    who = f"Attempt {one.attempt} by {one.generator}, {one.backend}"
    if before is None:
        return f"Claimed. {who}"
    match one.cause:
        case "handover":
            why = f"Handover: {before.generator} was stopped"
        case "takeover":
            why = f"Takeover: {before.generator} gave no reason (killed, frozen, stopped, or without NATS)"
        case "redelivery":
            why = f"Repeated: {before.generator} was interrupted (without NATS, or an error that its log has)"
        case "schema":
            why = "Correction: the answer does not fit its schema"
        case events.PAUSE:
            why = f"The model paused ({events.PAUSE})"
        case code:
            why = f"The call failed ({code})"
    match one.reason:
        case None:
            reason = ""
        case "on_interrupt":
            reason = ", as on_interrupt says"
        case "schema":
            reason = ", because the JSON of a schema has to be written in one call"
        case block:
            reason = f", because a block of type {block} cannot be continued"
    return f"{why}. {who}, {MODES[one.mode]}{reason}"


CANCEL_CAUSES: Mapping[str, str] = {
    "request": "a client has cancelled it",
    "session": "a client has cancelled all running turns of the session",
    "on_busy": "a newer turn of the session has on_busy: interrupt",
    "steer": "a client has put a message into the answer",
    "on_disconnect": "it had no reader, and has on_disconnect",
    "deletion": "it is being deleted",
    "batch": "its batch has ended",
}


def _describe_end(end: EndStep, max_cost_usd: float | None) -> str:
    """Returns how a turn has ended, why, and by whom."""
    what = end.outcome.capitalize()
    match end.outcome:
        case "failed" if end.code is not None:
            # A message of the model's API may have several lines.
            return f"{what} ({end.code}): {' '.join((end.message or '').split())}".removesuffix(": ")
        case "cancelled" if end.cause is not None:
            by = f", with the credential {end.by}" if end.by is not None else ""
            following = f"; turn {end.successor} answers it" if end.successor is not None else ""
            return f"{what} ({end.cause}): {CANCEL_CAUSES.get(end.cause, 'by a newer version')}{by}{following}"
        case "completed" if end.stop_reason == "max_cost" and max_cost_usd is not None:
            return f"{what} (max_cost): the answer may cost {max_cost_usd:.6g} $"
        case "completed" if end.stop_reason == "budget":
            return f"{what} (budget): a budget of the key or its tenant had no further step left"
        case _:
            return f"{what} ({end.stop_reason})" if end.stop_reason else what


def _describe_steps(found: Timeline) -> list[Step]:
    """Returns the steps of the turn, in the order of time."""
    steps = [Step(pause.at, f"Pause of {pause.seconds:.1f} s") for pause in found.pauses]
    steps += [Step(wait.at, f"Waiting for the model: {wait.reason}") for wait in found.waits]
    if found.accepted_at is not None:
        queue = f", number {found.queue_position} in the queue" if found.queue_position else ""
        steps.append(Step(found.accepted_at, f"Accepted{queue}"))
    for index, one in enumerate(found.attempts):
        steps.append(Step(one.at, _describe_attempt(one, found.attempts[index - 1] if index else None)))
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
        steps.append(Step(end.at, _describe_end(end, found.max_cost_usd)))
    return sorted(steps, key=lambda step: step.at)
