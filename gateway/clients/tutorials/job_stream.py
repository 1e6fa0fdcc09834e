"""The dialect `job`: named events, for pages that start a job and watch it with an EventSource.

event: progress   {"type":"progress","job_id":…,"status":"queued"|"running","text":…}   a delta of the answer's text
event: reset      {"type":"reset","job_id":…}                                           discard the text so far
event: complete   {"type":"complete","job_id":…,"status":"completed"|"cancelled","result":…,"usage":…}
event: failed     {"type":"failed","job_id":…,"error":…,"code":…}      not `error`, which EventSource itself dispatches
"""

from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.failure import LOST
from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.gateway.clients.native.text_stream import text_of
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto.entries import Attempt, End, Failure, Outcome, Request, Stored
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import Usage

_encode = msgspec.json.Encoder().encode


class JobState(NamedTuple):
    """The job's id and the answer so far."""

    job: TurnId
    answer: GrowingText = GrowingText()


def start(key: TurnKey) -> JobState:
    return JobState(key.turn)


def render(state: JobState, stored: Stored) -> tuple[Frame, JobState]:
    match stored.entry:
        case Request():
            return _frame("progress", state.job, {"status": "queued", "text": ""}, stored.seq), state
        case Attempt(mode="restart"):
            return _frame("reset", state.job, {}, stored.seq), JobState(state.job)
        case End() as end:
            return _end(state.job, end.outcome, state.answer.text(), end.usage, end.error, stored.seq), state
        case entry:
            text = text_of(entry)
            if not text:
                return SILENT, state
            fields = {"status": "running", "text": text}
            return _frame("progress", state.job, fields, stored.seq), JobState(state.job, state.answer.plus(text))


def render_record(record: TurnRecord, _: int) -> Frame:
    """Renders the last event only: it holds the whole answer."""
    outcome: Outcome = "failed" if record.outcome == "running" else record.outcome
    return _end(record.turn, outcome, record.text, record.usage, record.error, record.cursor)


def _end(job: TurnId, outcome: Outcome, text: str, usage: Usage, error: Failure | None, seq: int) -> Frame:
    if outcome == "failed":
        failure = error or LOST
        return _frame("failed", job, {"error": failure.message, "code": failure.code}, seq)
    return _frame("complete", job, {"status": outcome, "result": text, "usage": usage}, seq)


def _frame(name: str, job: TurnId, fields: dict[str, Any], seq: int) -> Frame:
    event = {"type": name, "job_id": job, **fields}
    return Frame(sse.frame(_encode(event), seq=seq, event=name.encode()))


JOB = Dialect(
    name="job",
    start=start,
    render=render,
    render_record=render_record,
    is_self_delimited=True,
    can_reset=True,
    is_stateful=True,
)
