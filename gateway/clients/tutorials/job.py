"""The dialect `job`: named events, for pages that start a job and watch it with an EventSource.

event: progress   {"type":"progress","job_id":…,"status":"queued"|"running","text":…}   what is new of the answer
event: reset      {"type":"reset","job_id":…}                                           forget the text so far
event: complete   {"type":"complete","job_id":…,"status":"completed"|"cancelled","result":…,"usage":…}
event: failed     {"type":"failed","job_id":…,"error":…,"code":…}       not `error`: an EventSource has one of its own
"""

from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.dialect import SILENT, Dialect, Frame
from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.clients.growing_text import Pieces
from tailrace.gateway.clients.native.text import said
from tailrace.gateway.streaming import sse
from tailrace.proto.entries import Attempt, End, Failure, Outcome, Request, Stored
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage

_encode = msgspec.json.Encoder().encode


class JobState(NamedTuple):
    """The answer so far, and whose it is."""

    job: TurnId
    so_far: Pieces = Pieces()


def start(key: TurnKey) -> JobState:
    return JobState(key.turn)


def render(told: JobState, stored: Stored) -> tuple[Frame, JobState]:
    match stored.entry:
        case Request():
            return _frame("progress", told.job, {"status": "queued", "text": ""}, stored.seq), told
        case Attempt(mode="restart"):
            return _frame("reset", told.job, {}, stored.seq), JobState(told.job)
        case End() as end:
            return _end(told.job, end.outcome, told.so_far.text(), end.usage, end.error, stored.seq), told
        case entry:
            text = said(entry)
            if not text:
                return SILENT, told
            progress = {"status": "running", "text": text}
            return _frame("progress", told.job, progress, stored.seq), JobState(told.job, told.so_far.plus(text))


def render_record(record: TurnRecord, _: int) -> Frame:
    """Its end says all of it."""
    outcome: Outcome = "failed" if record.outcome == "running" else record.outcome
    return _end(record.turn, outcome, record.text, record.usage, record.error, record.cursor)


def _end(job: TurnId, outcome: Outcome, text: str, usage: Usage, error: Failure | None, seq: int) -> Frame:
    if outcome == "failed":
        failure = error or LOST
        return _frame("failed", job, {"error": failure.message, "code": failure.code}, seq)
    return _frame("complete", job, {"status": outcome, "result": text, "usage": usage}, seq)


def _frame(kind: str, job: TurnId, shown: dict[str, Any], seq: int) -> Frame:
    event = {"type": kind, "job_id": job, **shown}
    return Frame(sse.frame(_encode(event), seq=seq, event=kind.encode()))


JOB = Dialect(
    name="job",
    media_type=sse.MEDIA_TYPE,
    heartbeat=sse.HEARTBEAT,
    is_self_delimited=True,
    can_reset=True,
    start=start,
    render=render,
    render_record=render_record,
    is_stateful=True,
)
