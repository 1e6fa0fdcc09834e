"""The dialect `state`: each event is the whole state of the job, for pages that keep only the last event (`useSSE`).

{"job_id":…,"status":"queued"|"running","progress":42,"text":…}                  the answer so far
{"job_id":…,"status":"completed"|"cancelled","progress":100,"text":…,"result":…,"usage":…}
{"job_id":…,"status":"failed","progress":42,"text":…,"error":…,"code":…}

The last event of an answer that is not whole has its `stop_reason`, and `warnings`.

An event repeats the text, so not every entry has one. All events of a turn together are at most about 33 times as long
as its text.
"""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.clients.growing_text import GrowingText
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Dialect, Frame
from tailrace.proto.entries import Attempt, End, Progress, Request, StoredEntry
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import Warnings, warnings_field
from tailrace.protocols.common.failure import LOST
from tailrace.protocols.common.stop_reasons import stop_reason_field
from tailrace.protocols.tutorials.text_state import TextState, record_warnings, start_text

INTERVAL = timedelta(seconds=0.25)
# The share of the text that must be new: it bounds the sum of all events of a long answer.
GROWTH = 1 / 32
# The length of an answer is unknown before its end. Progress is 50 at this many characters, and below 100.
HALF_CHARS = 2000

_encode = msgspec.json.Encoder().encode


class JobState(NamedTuple):
    """The job's id, the answer so far, and the last event."""

    job: TurnId
    texts: TextState
    answer: GrowingText = GrowingText()
    chars: int = 0
    inputs: int | None = None
    """The progress of a batch in percent; None for other turns."""
    sent_chars: int = 0
    sent_at: datetime | None = None
    text: str = ""
    """The text that the last entry has added."""

    @property
    def progress(self) -> int:
        """Percent for a progress bar: of the batch, or an estimate that grows with the text and stays below 100."""
        return 100 * self.chars // (self.chars + HALF_CHARS) if self.inputs is None else self.inputs

    def is_due(self, at: datetime) -> bool:
        """Returns whether an event at the time `at` is neither too soon nor too similar to the last one."""
        is_new = self.chars - self.sent_chars >= self.chars * GROWTH
        # The server's clock may have been set back.
        return self.sent_at is None or (is_new and abs(at - self.sent_at) >= INTERVAL)


def start(key: TurnKey) -> JobState:
    return JobState(key.turn, start_text(key))


def render(state: JobState, stored: StoredEntry) -> tuple[Frame, JobState]:
    text, texts = state.texts.next(stored.entry)
    answer = state.answer.plus(text) if text else state.answer
    state = state._replace(answer=answer, chars=state.chars + len(text), texts=texts, text=text)
    match stored.entry:
        case Request():
            return _frame(state, {"status": "queued"}, stored.seq), state
        case Attempt(mode="restart"):
            return _render_running(JobState(state.job, texts), stored)
        case Progress(done=done, failed=failed, of=of):
            state = state._replace(inputs=100 * (done + failed) // max(of, 1))
        case End() as end:
            return _frame(state, end_fields(end, state.answer.text(), texts.warnings(end)), stored.seq), state
        case _ if not text:
            return SILENT, state
    return _render_running(state, stored) if state.is_due(stored.at) else (SILENT, state)


def render_record(record: TurnRecord, _: int) -> Frame:
    """Renders the last event only: it holds the whole answer."""
    state = JobState(record.turn, TextState(record.turn), GrowingText(record.text), len(record.text))
    return _frame(state, end_fields(record, record.text, record_warnings(record)), record.cursor)


def end_fields(ended: End | TurnRecord, text: str, warnings: Warnings) -> dict[str, Any]:
    """Returns the fields that only the last event has, with its status."""
    if ended.outcome == "failed":
        failure = ended.error or LOST
        return {"status": ended.outcome, "error": failure.message, "code": failure.code}
    fields = {"status": ended.outcome, "result": text, "usage": ended.usage}
    if ended.outcome == "completed":
        fields |= {**stop_reason_field(ended), **warnings_field(warnings)}
    return fields


def _render_running(state: JobState, stored: StoredEntry) -> tuple[Frame, JobState]:
    sent = state._replace(sent_chars=state.chars, sent_at=stored.at)
    return _frame(sent, {"status": "running"}, stored.seq), sent


def _frame(state: JobState, fields: dict[str, Any], seq: int) -> Frame:
    progress = 100 if fields["status"] == "completed" else state.progress
    head = {"job_id": state.job, "status": fields["status"], "progress": progress, "text": state.answer.text()}
    return Frame(sse.frame(_encode(head | fields), seq=seq))


STATE = Dialect(
    name="state",
    start=start,
    render=render,
    render_record=render_record,
    is_self_delimited=True,
    can_reset=True,
    is_stateful=True,
)
