"""A correct run, built by hand: an answered turn, a cancelled one, a batch and a deleted one, with all operations."""

from datetime import timedelta
from typing import Any

import msgspec

from tailrace.deploy.simulated_claude.account import AccountReport, Call, SubmittedRequest
from tailrace.features.batches.input_lines import CUSTOM_ID, child_key
from tailrace.proto import entries, subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, Message, Progress, StoredEntry
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.checker import expected_answer
from tests.checker.history import (
    Ack,
    Append,
    Cancel,
    ClockReading,
    Commit,
    Delete,
    Get,
    GetBatch,
    Line,
    Operation,
    Outcome,
    Overload,
    Post,
    Read,
    RecordedOperation,
    ResourceCount,
    Results,
    Steer,
    digest,
)
from tests.checker.run import EPOCH, NS_PER_S, Backlog, FinalState, LogMessage, Row, Run
from tests.harness import readers
from tests.harness.generator_in_loop import words
from tests.harness.turn_builder import NOON, Handwritten, closing_events, opening_events, request
from tests.promises import Budget

TENANT = Tenant("local")
ANSWERED = TurnKey(TENANT, TurnId("answered"))
CANCELLED = TurnKey(TENANT, TurnId("cancelled"))
SUCCESSOR = TurnKey(TENANT, TurnId("successor"))
QUESTIONS = {ANSWERED: "#sim words=4 tag=a", CANCELLED: "#sim words=9 tag=c", SUCCESSOR: "#sim words=2 tag=s"}
BATCH = TurnKey(TENANT, TurnId("01a218f7-d913-71b1-b933-90ee2e2e0957"))
DELETED = TurnKey(TENANT, TurnId("01a218f7-d914-71b1-b933-90ee2e2e0957"))
INPUTS = {"c0": "#sim words=1 tag=d", "c1": "#sim words=1 tag=e"}
CHILDREN = [child_key(BATCH, number) for number in range(len(INPUTS))]
MESSAGE_BATCH = "msgbatch_sim1"


def run() -> Run:
    """Returns the run. A sequence is its time in seconds: entry 7 was stored at 7 s of both clocks."""
    turns = {ANSWERED: _answered_turn(), CANCELLED: _cancelled_turn(), BATCH: _batch_turn()}
    turns[SUCCESSOR] = _successor_turn()
    turns |= {child: _input_turn(number) for number, child in enumerate(CHILDREN)}
    log = _log(turns)
    rows = [Row(TENANT, record_from_fold(key, fold(stored))) for key, stored in turns.items()]
    contents = {"bodies.local.ab": '{"bytes":99}', "bodies.local.ab.0": " ".join(INPUTS.values())}
    blobs = [
        LogMessage(seq=Seq(seq), at=NOON, subject=subject, payload=payload)
        for seq, (subject, payload) in enumerate(contents.items(), 1)
    ]
    return Run(operations=_operations(log, turns[ANSWERED]), log=log, rows=rows, blobs=blobs, final=_final_state(log))


def _answered_turn() -> list[StoredEntry]:
    """Entries at each second sequence from 2 to 22."""
    log = Handwritten(step=2)
    log.store_request(messages=[Message("user", QUESTIONS[ANSWERED])])
    log.store_attempt()
    log.store_events(*opening_events())
    log.store_texts(*_pieces("a", 4))
    log.store_events(*closing_events(4))
    log.end()
    return log.stored


def _cancelled_turn() -> list[StoredEntry]:
    """Entries at each second sequence from 21 to 35."""
    log = _begin_after(19, step=2)
    log.store_request(messages=[Message("user", QUESTIONS[CANCELLED])])
    log.store_attempt()
    log.store_events(*opening_events())
    log.store_texts(*_pieces("c", 9)[:3])
    log.store(build_end(log.turn, "cancelled", cause="steer", successor=SUCCESSOR.turn))
    return log.stored[1:]


def _successor_turn() -> list[StoredEntry]:
    """Entries at 34 and 57. It was cancelled before it began."""
    log = _begin_after(33)
    log.store_request(messages=[Message("user", QUESTIONS[SUCCESSOR])], is_queued=True, parent=CANCELLED.turn)
    log.step = 57 - 34
    log.end("cancelled")
    return log.stored[1:]


def _batch_turn() -> list[StoredEntry]:
    """Entries at 36, 37, 38, 55 and 56. The turns of the inputs are in between."""
    log = _begin_after(35)
    log.store_request(messages=[], via="message_batches", batch=entries.Batch("ab", 99, len(INPUTS), 8))
    log.store_attempt()
    for done in (0, len(INPUTS)):
        progress = Progress(
            prev=log.chain.last, attempt=1, done=done, failed=0, of=len(INPUTS), message_batch=MESSAGE_BATCH
        )
        log.store(progress)
        log.step = 55 - 38
    log.step = 1
    log.end()
    return log.stored[1:]


def _input_turn(number: int) -> list[StoredEntry]:
    """Entries at each sequence from 39 to 46, or from 47 to 54."""
    name, question = list(INPUTS.items())[number]
    log = _begin_after(38 + 8 * number)
    log.store_request(messages=[Message("user", question)], parent=BATCH.turn, metadata={CUSTOM_ID: name})
    log.store(
        Attempt(prev=log.chain.last, attempt=1, generator=MESSAGE_BATCH, backend=entries.MESSAGE_BATCHES, mode="fresh")
    )
    log.store_events(*opening_events())
    log.store_texts(words(1, question[-1]))
    log.store_events(*closing_events(1))
    log.end()
    return log.stored[1:]


def _begin_after(seq: int, step: int = 1) -> Handwritten:
    """Returns a log whose first entry, at `seq`, is not one of the turn's."""
    log = Handwritten(step)
    log.stored.append(StoredEntry(Seq(seq), NOON, entries.Unreadable()))
    return log


def _pieces(tag: str, count: int) -> list[str]:
    return [f"{' ' if number else ''}{word}" for number, word in enumerate(words(count, tag).split())]


def _log(turns: dict[TurnKey, list[StoredEntry]]) -> list[LogMessage]:
    log = [
        LogMessage(
            seq=stored.seq,
            at=NOON + timedelta(seconds=stored.seq),
            subject=subjects.entry(key, entries.KINDS[type(stored.entry)]),
            fence=getattr(stored.entry, "prev", 0),
            fence_subject=subjects.entries(key),
            payload=entries.encode(stored.entry).decode(),
        )
        for key, some in turns.items()
        for stored in some
    ]
    return sorted(log, key=lambda one: one.seq)


def _final_state(log: list[LogMessage]) -> FinalState:
    calls = [
        Call(1, call_key(ANSWERED), QUESTIONS[ANSWERED], 0, ns(5), ns(19), "whole", 4),
        Call(2, call_key(CANCELLED), QUESTIONS[CANCELLED], 0, ns(24), ns(36), "aborted", 3),
    ]
    backlogs = {GENERATORS: Backlog(0, 0), PERSISTENCE: Backlog(0, 0)}
    return FinalState(
        account=AccountReport(calls, 0, submit(MESSAGE_BATCH, 37.5)),
        backlogs=backlogs,
        budgets=(Budget(name="usd_month", limit=100, left=70, recorded=30),),
        collected=ns(log[-1].seq + 100),
    )


def submit(message_batch: str, at_s: float) -> list[SubmittedRequest]:
    """Returns the requests of a message batch with the inputs, which answers all."""
    return [SubmittedRequest(child.turn, message_batch, ns(at_s), "succeeded") for child in CHILDREN]


def call_key(key: TurnKey) -> str:
    return expected_answer.call_key(request(messages=[Message("user", QUESTIONS[key])])) or ""


def _operations(log: list[LogMessage], answered: list[StoredEntry]) -> list[Operation]:
    frames = readers.render_frames(ANSWERED, answered)
    end = answered[-1].seq
    steer = Steer(steered=CANCELLED.turn, question=QUESTIONS[SUCCESSOR], idempotency_key="s", status=202)
    cancelled = max(one.seq for one in log if subjects.parse(one.subject)[0] == CANCELLED)
    lines = tuple(Line(name, "completed", words(1, question[-1])) for name, question in INPUTS.items())
    operations: list[Operation] = [
        _operation("clock", 0, 0, ClockReading(wall=(NOON - EPOCH) // timedelta(microseconds=1) * 1000)),
        _resource_count(0),
        _post_operation("client", 1, ANSWERED, "key"),
        _post_operation("client", 3, ANSWERED, "key"),
        _operation(
            "client", 4, 4.5, Post(tenant=TENANT, idempotency_key="key", body_sha256="other", status=422), "fail"
        ),
        _post_operation("client", 20, CANCELLED, None),
        _read_operation("reader", 6, ANSWERED, Read(frames=frames[:3], over="cut")),
        _operation("reader", 9, 9.5, _of(ANSWERED, Get(cursor=frames[2].seq, text=words(2, "a"), status=200))),
        _read_operation("reader", 12, ANSWERED, Read(cursor=frames[2].seq, frames=frames[3:], over="ended")),
        _read_operation("text reader", 12, ANSWERED, Read(dialect="text", text=words(4, "a"), over="ended")),
        _operation("client", 34.5, 35.5, _of(CANCELLED, Cancel(status=200))),
        _operation("client", 33.5, 35.5, _of(SUCCESSOR, steer)),
        _operation("overload", 50, 60, Overload(tenant=Tenant("overloader"))),
        _operation("overloader", 51, 51, Post(tenant=Tenant("overloader"), status=429), "fail"),
        _post_operation("other", 55, ANSWERED, "key"),
        *_appends(log),
        *_persistence_operations(end, ANSWERED),
        *_persistence_operations(cancelled, CANCELLED),
        *_persistence_operations(Seq(57), SUCCESSOR),
        _batch_operation("batch client", 35.5, BATCH, Post(inputs=INPUTS, via="message_batches", idempotency_key="b")),
        _batch_operation("watcher", 40, BATCH, GetBatch()),
        _batch_operation("late watcher", 57, BATCH, GetBatch(ended="completed", done=len(INPUTS))),
        _batch_operation("results", 58, BATCH, Results(lines=lines, is_whole=True)),
        _batch_operation("deleter", 40, DELETED, Post(inputs={"c0": "#sim words=1 tag=f"}, idempotency_key="d")),
        _batch_operation("deleter", 42, DELETED, Delete(status=200)),
        _operation("late watcher", 45, 45.5, _of(DELETED, GetBatch(status=404)), "fail"),
        _resource_count(85),
    ]
    numbered = [msgspec.structs.replace(one, number=number) for number, one in enumerate(operations)]
    return sorted(numbered, key=lambda one: one.invoked)


def _appends(log: list[LogMessage]) -> list[Operation]:
    """The appends of the gateway and of one generator."""
    operations: list[Operation] = []
    for one in log:
        key, kind = subjects.parse(one.subject)
        is_of_gateway = kind == "request" or (kind == "end" and key in (CANCELLED, SUCCESSOR))
        append = Append(kind=kind, prev=Seq(one.fence or 0), sha256=digest(one.content), seq=one.seq)
        operations.append(
            _operation("gateway" if is_of_gateway else "g1", one.seq - 0.1, one.seq + 0.1, _of(key, append))
        )
    return operations


def _persistence_operations(end: Seq, key: TurnKey) -> list[Operation]:
    """The commit one second after the turn's end, and the acknowledgements."""
    request_seq = Seq({ANSWERED: 2, CANCELLED: 21, SUCCESSOR: 34}[key])
    return [
        _operation("persistence", end + 1, end + 1.1, Commit(rows={f"{key.tenant} {key.turn}": end})),
        _operation("persistence", end + 1.2, end + 1.3, _of(key, Ack(consumer=PERSISTENCE, seq=request_seq))),
        _operation("persistence", end + 1.4, end + 1.5, _of(key, Ack(consumer=PERSISTENCE, seq=end))),
        _operation("g1", end + 0.3, end + 0.4, _of(key, Ack(consumer=GENERATORS, seq=request_seq))),
    ]


def _resource_count(at: float) -> Any:
    return _operation("resources", at, at, ResourceCount(subject="gateway", counts={"fds": 20, "rss_bytes": 10**8}))


def _post_operation(process: str, at: float, key: TurnKey, idempotency_key: str | None) -> Any:
    post = Post(question=QUESTIONS[key], body_sha256="body", idempotency_key=idempotency_key, status=202)
    return _operation(process, at, at + 1.5, _of(key, post))


def _batch_operation(process: str, at: float, key: TurnKey, operation: Any) -> Any:
    return _operation(process, at, at + 1, _of(key, operation))


def _read_operation(process: str, at: float, key: TurnKey, read: Read) -> Any:
    return _operation(process, at, at + 2, _of(key, msgspec.structs.replace(read, status=200)))


def _of(key: TurnKey, operation: Any) -> Any:
    return msgspec.structs.replace(operation, tenant=key.tenant, turn=key.turn)


def _operation(process: str, invoked_s: float, returned_s: float, operation: Any, outcome: Outcome = "ok") -> Any:
    assert isinstance(operation, RecordedOperation)
    return msgspec.structs.replace(
        operation, process=process, invoked=ns(invoked_s), returned=ns(returned_s), outcome=outcome
    )


def ns(at_s: float) -> int:
    return int(at_s * NS_PER_S)
