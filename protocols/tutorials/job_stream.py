"""The dialect `job`: named events, for pages that start a job and watch it with an EventSource.

event: progress   {"type":"progress","job_id":…,"status":"queued"|"running","progress":42,"text":…}  a delta of the text
event: reset      {"type":"reset","job_id":…}                                           discard the text so far
event: complete   {"type":"complete","job_id":…,"status":"completed"|"cancelled","result":…,"usage":…}
event: failed     {"type":"failed","job_id":…,"error":…,"code":…}      not `error`, which EventSource itself dispatches

The events of the dialect `state` precede them, without a name, for pages that only listen to `message`.
"""

from typing import Any

import msgspec

from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SILENT, Frame
from tailrace.proto.entries import Attempt, End, Request, StoredEntry
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord
from tailrace.protocols.common.answer_warnings import Warnings
from tailrace.protocols.tutorials import state_stream
from tailrace.protocols.tutorials.state_stream import JobState, end_fields
from tailrace.protocols.tutorials.text_state import TextState, record_warnings

_encode = msgspec.json.Encoder().encode


def render(state: JobState, stored: StoredEntry) -> tuple[Frame, JobState]:
    unnamed, following = state_stream.render(state, stored)
    return _join(_render_named(following, stored), unnamed), following


def _render_named(state: JobState, stored: StoredEntry) -> Frame:
    """Returns the named event of an entry. `state` includes the entry."""
    match stored.entry:
        case Request():
            return _frame("progress", state.job, {"status": "queued", "progress": 0, "text": ""}, stored.seq)
        case Attempt(mode="restart"):
            return _frame("reset", state.job, {}, stored.seq)
        case End() as end:
            ending = _end(state.job, end, state.answer.text(), stored.seq, state.texts.warnings(end))
            return Frame(_rest(state, end) + ending.events)
        case _:
            fields = {"status": "running", "progress": state.progress, "text": state.text}
            return _frame("progress", state.job, fields, stored.seq) if state.text else SILENT


def _rest(state: JobState, end: End) -> sse.Events:
    """Returns the progress event of text that was held back until the end; `complete` has the whole text itself."""
    if not state.text or end.outcome != "failed":
        return ()
    fields = {"status": "running", "progress": state.progress, "text": state.text}
    return tuple(event._replace(seq=None) for event in _frame("progress", state.job, fields, end.prev).events)


def render_record(record: TurnRecord, seen: int) -> Frame:
    """Renders the last events: they hold the whole answer. Before a failure, the text replaces what a reader has."""
    named = _end(record.turn, record, record.text, record.cursor, record_warnings(record))
    if record.outcome == "failed":
        progress = JobState(record.turn, TextState(record.turn), chars=len(record.text)).progress
        text = {"status": "running", "progress": progress, "text": record.text}
        named = _join(named, _frame("progress", record.turn, text, record.cursor))
        named = _join(named, _frame("reset", record.turn, {}, record.cursor))
    return _join(named, state_stream.render_record(record, seen))


def _join(named: Frame, unnamed: Frame) -> Frame:
    """Returns the events of both frames. Only the last event has the id, so that a client resumes after whole entries.

    A cut between them repeats the unnamed event, which is a whole state; a repeated delta would be shown twice.
    """
    if not named.events:
        return unnamed
    return Frame((*(event._replace(seq=None) for event in unnamed.events), *named.events))


def _end(job: TurnId, ended: End | TurnRecord, text: str, seq: int, warnings: Warnings) -> Frame:
    fields = end_fields(ended, text, warnings)
    if ended.outcome == "failed":
        return _frame("failed", job, {name: fields[name] for name in ("error", "code")}, seq)
    return _frame("complete", job, fields, seq)


def _frame(name: str, job: TurnId, fields: dict[str, Any], seq: int) -> Frame:
    event = {"type": name, "job_id": job, **fields}
    return Frame(sse.frame(_encode(event), seq=seq, event=name.encode()))


JOB = state_stream.STATE._replace(name="job", render=render, render_record=render_record)
