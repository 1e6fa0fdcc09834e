"""Each invariant with a correct run, and with the same run changed in one place."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from msgspec.structs import replace

from tailrace.proto import entries, subjects
from tailrace.proto.entries import KINDS, Attempt, Event, Unreadable
from tailrace.proto.fold import text_proof
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.checker import sample_run
from tests.checker.__main__ import main
from tests.checker.history import (
    HISTORY,
    Ack,
    Append,
    Cancel,
    ClockReading,
    Commit,
    Delete,
    Fault,
    Get,
    GetBatch,
    Line,
    Overload,
    Post,
    Read,
    RecordedOperation,
    ResourceCount,
    Results,
    Steer,
)
from tests.checker.invariants import INVARIANTS, find_failed, judge, report
from tests.checker.run import Backlog, LogMessage, Run, save
from tests.checker.sample_run import ANSWERED, BATCH, CANCELLED, SUCCESSOR, TENANT, ns
from tests.checker.verdicts import Bounds
from tests.harness.generator_in_loop import words
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import NOON
from tests.promises import Budget, Frame

Change = Callable[[Run], Run]
Log = list[LogMessage]
Case = tuple[str, bool | None, Change]
# Sequences of the correct run.
REQUEST, THIRD_WORD, FOURTH_WORD, END, CANCELLED_END = 2, 14, 16, 22, 35
INPUT, INPUT_END, BATCH_END = 39, 46, 56


def copy(run: Run, **given: Any) -> Run:
    """Returns a changed run without the derived values of `run`."""
    return Run(**{name: getattr(run, name) for name in Run.__struct_fields__} | given)


def apply_all(*changes: Change) -> Change:
    def apply(run: Run) -> Run:
        for change in changes:
            run = change(run)
        return run

    return apply


# Changes of operations.


def change_each(
    kind: type[RecordedOperation], change: Callable[[Any], RecordedOperation | None], when: Callable[[Any], Any]
) -> Change:
    def apply(run: Run) -> Run:
        changed = [change(one) if isinstance(one, kind) and when(one) else one for one in run.operations]
        return copy(run, operations=[one for one in changed if one is not None])

    return apply


def edit(kind: type[RecordedOperation], when: Callable[[Any], Any] = bool, **given: Any) -> Change:
    return change_each(kind, lambda one: replace(one, **given), when)


def drop(kind: type[RecordedOperation], when: Callable[[Any], Any] = bool) -> Change:
    return change_each(kind, lambda _: None, when)


def has_seq(seq: int) -> Callable[[Any], bool]:
    return lambda one: bool(one.seq == seq)


def is_by(process: str) -> Callable[[Any], bool]:
    return lambda one: bool(one.process == process)


def resumes(read: Read) -> bool:
    return read.cursor > 0


def of_batch(operation: Any) -> Any:
    return replace(operation, tenant=TENANT, turn=BATCH.turn)


def change_lines(change: Callable[[tuple[Line, ...]], Sequence[Line]], **given: Any) -> Change:
    return change_each(Results, lambda one: replace(one, lines=tuple(change(one.lines)), **given), bool)


def change_frames(change: Callable[[tuple[Frame, ...]], tuple[Frame, ...]]) -> Change:
    """Changes what the reader's second connection received."""
    return change_each(
        Read, lambda read: replace(read, frames=change(read.frames)), lambda one: is_by("reader")(one) and one.cursor
    )


def add_operation(operation: Any, process: str, at_s: float, **given: Any) -> Change:
    known = {"process": process, "number": 999, "invoked": ns(at_s), "returned": ns(at_s + 1), "outcome": "ok"}
    operation = replace(operation, **known | given)
    return lambda run: copy(run, operations=sorted([*run.operations, operation], key=lambda one: one.invoked))


def add_fault(at_s: float, **given: Any) -> Change:
    return add_operation(Fault(**given), "injector", at_s)


# Changes of the log.


def change_log(change: Callable[[Log], Log]) -> Change:
    return lambda run: copy(run, log=sorted(change(run.log), key=lambda one: one.seq))


def change_entry(seq: int, **given: Any) -> Change:
    return change_log(lambda entries: [replace(one, **given) if one.seq == seq else one for one in entries])


def remove_entries(seq: int) -> Change:
    return change_log(lambda entries: [one for one in entries if one.seq != seq])


def rewrite(old: str, new: str, *seqs: int) -> Callable[[Log], Log]:
    """Replaces text in the payloads at `seqs`, or in all of them."""
    return lambda entries: [
        replace(one, payload=one.payload.replace(old, new)) if not seqs or one.seq in seqs else one for one in entries
    ]


def add_fork(seq: int, prev: int) -> Change:
    """Adds an entry by a generator that lost its turn."""
    delta = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" late"}}'
    message = LogMessage(
        seq=Seq(seq),
        at=NOON + timedelta(seconds=seq),
        subject=subjects.entry(ANSWERED, "event"),
        fence=prev,
        fence_subject=subjects.entries(ANSWERED),
        payload=entries.encode(Event(prev=Seq(prev), attempt=1, event=msgspec.Raw(delta))).decode(),
    )
    return change_log(lambda entries: [*entries, message])


def add_takeover(written: Log) -> Log:
    """Another generator continues at 15, between the third word and the fourth."""
    attempt = Attempt(prev=Seq(14), attempt=2, generator="generator-2", backend="claude", mode="continue")
    message = replace(
        written[0],
        seq=Seq(15),
        at=NOON + timedelta(seconds=15),
        subject=subjects.entry(ANSWERED, "attempt"),
        fence=14,
        payload=entries.encode(attempt).decode(),
    )
    later = rewrite('"attempt":1', '"attempt":2', 16, 18, 20, 22)(rewrite('"prev":14', '"prev":15', 16)(written))
    later = [replace(one, fence=15) if one.seq == 16 else one for one in later]
    return sorted([*later, message], key=lambda one: one.seq)


def add_two_takeovers(written: Log) -> Log:
    """A third generator continues at 16, before the second has written an event."""
    third = Attempt(prev=Seq(15), attempt=3, generator="generator-3", backend="claude", mode="continue")
    given: Any = {"subject": subjects.entry(ANSWERED, "attempt"), "payload": entries.encode(third).decode()}
    return [replace(one, **given) if one.seq == 16 else one for one in add_takeover(written)]


def report_append_as_failed(seq: int) -> Change:
    """The append at `seq` failed for its writer. Later appends were not recorded."""

    def apply(run: Run) -> Run:
        position = run.positions[Seq(seq)]
        append = Append(tenant=TENANT, turn=ANSWERED.turn, kind=position.kind, sha256=position.sha256)
        return add_operation(append, "generator-2", 15, outcome="fail")(drop(Append, lambda one: one.seq >= seq)(run))

    return apply


def replace_word(written: Log) -> Log:
    """Replaces a word, also in the hash of the end."""
    right, wrong = words(4, "a"), words(4, "a").replace("a000003", "a000007")
    changed = rewrite("a000003", "a000007", FOURTH_WORD)(written)
    return rewrite(text_proof(right)[1], text_proof(wrong)[1], END)(changed)


def remove_last_word(written: Log) -> Log:
    """Removes the last word, and links the entries around it."""
    shorter = rewrite('"prev":16', '"prev":14', 18)([one for one in written if one.seq != FOURTH_WORD])
    return [replace(one, fence=14) if one.seq == 18 else one for one in shorter]


def repeat_question(outcome: str, idempotency_key: str) -> Change:
    """Gives the cancelled turn the question of the answered one, with a POST that has an idempotency key."""
    question = sample_run.QUESTIONS[ANSWERED]
    post = Post(tenant=TENANT, question=question, body_sha256="body", idempotency_key=idempotency_key)
    return apply_all(
        change_log(rewrite(sample_run.QUESTIONS[CANCELLED], question)),
        add_operation(post, "client", 20, outcome=outcome),
    )


def read_half_of_cancelled(request: Get | Read) -> Change:
    """Adds a request for plain text that returns one of the three words of the cancelled turn."""
    return add_operation(replace(request, tenant=TENANT, turn=CANCELLED.turn, text="c000000", status=200), "late", 40)


def find_nothing(at_s: float) -> Change:
    """Adds a GET of the answered turn by another client, which is answered with 404."""
    get = Get(tenant=TENANT, turn=ANSWERED.turn, status=404)
    return add_operation(get, "another client", at_s, outcome="fail")


# Changes of the final state.


def change_final_state(**given: Any) -> Change:
    return lambda run: copy(run, final=replace(run.final, **given))


def change_cluster(change: Change) -> Change:
    return apply_all(change_final_state(servers=3), change)


def change_calls(change: Callable[[list[Any]], list[Any]], **given: Any) -> Change:
    def apply(run: Run) -> Run:
        assert run.final.account is not None
        return change_final_state(account=replace(run.final.account, calls=change(run.final.account.calls), **given))(
            run
        )

    return apply


def change_call(number: int, **given: Any) -> Change:
    return change_calls(lambda some: [replace(one, **given) if one.number == number else one for one in some])


def add_call(**given: Any) -> Change:
    """Adds a call with the question of the first one."""
    return change_calls(lambda some: [*some, replace(some[0], number=3, begun=ns(10), closed=ns(12), **given)])


def change_rows(change: Callable[[list[Any]], list[Any]]) -> Change:
    return lambda run: copy(run, rows=change(run.rows or []))


def change_row(**given: Any) -> Change:
    """Changes the row of the answered turn."""
    return change_rows(lambda some: [replace(some[0], record=replace(some[0].record, **given)), *some[1:]])


def change_blobs(old: str, new: str) -> Change:
    return lambda run: copy(run, blobs=rewrite(old, new)(run.blobs or []))


def add_resources(at_s: float, counts: dict[str, int], pid: int = 0) -> Change:
    return add_operation(ResourceCount(subject="gateway", pid=pid, counts=counts), "resources", at_s)


def drop_turn(key: TurnKey) -> Change:
    return change_log(lambda entries: [one for one in entries if subjects.parse(one.subject)[0] != key])


def copy_turn(key: TurnKey, seq: int) -> Change:
    """Adds a turn with the same entries from `seq` on."""

    def add(written: Log) -> Log:
        found = [one for one in written if subjects.parse(one.subject)[0] == key]
        copies = []
        for number, one in enumerate(found):
            _, kind = subjects.parse(one.subject)
            copied = key._replace(turn=TurnId("copy"))
            fence = seq + number - 1 if number else 0
            payload = one.payload.replace(f'"prev":{one.fence}', f'"prev":{fence}')
            copies.append(
                replace(one, seq=Seq(seq + number), subject=subjects.entry(copied, kind), fence=fence, payload=payload)
            )
        return [*written, *copies]

    return change_log(add)


ANOTHER_MESSAGE = change_log(rewrite("tag=s", "tag=z", 60))
NOT_STORED = Append(tenant=TENANT, turn=ANSWERED.turn, kind="event", sha256="1")
POST_WITHOUT_LOG = add_operation(Post(tenant=TENANT, turn=TurnId("unknown"), status=202), "client", 10)
LATE_END = change_entry(END, at=NOON + timedelta(seconds=120))
ABORTED = add_call(over="aborted")
HELD = Budget(name="usd_month", limit=100, left=69, recorded=30)
SPENT_TWICE = Budget(name="usd_month", limit=100, left=71, recorded=30)
MIB_100, MIB_200 = 10**8, 2 * 10**8
OTHER_TENANT = Post(tenant=Tenant("b"), turn=TurnId("bs"), idempotency_key="key", body_sha256="2", status=202)
LATE_CALL = change_call(2, closed=ns(39))
FREEZE = add_fault(37, kind="freeze", interrupts=1)
NO_INPUT = change_log(lambda entries: [one for one in entries if not INPUT <= one.seq <= INPUT_END])
CANCELLED_BATCH = change_log(rewrite('"completed"', '"cancelled"', BATCH_END))
CANCEL_BATCH = add_operation(of_batch(Cancel(status=200)), "canceller", 54)
SEEN_CANCELLED = edit(GetBatch, lambda one: one.done, ended="cancelled")
SUBMITTED_TWICE = change_calls(
    list, submitted=sample_run.submit("msgbatch_1", 37.5) + sample_run.submit("msgbatch_2", 38.5)
)
# The deleted batch is then the one in the log, the database and the blobs.
DELETE_BATCH = edit(Delete, turn=BATCH.turn)
NOTHING_STORED = apply_all(change_log(lambda _: []), change_rows(lambda _: []), drop(GetBatch), drop(Results))
FORK_FRAME = change_frames(lambda some: (Frame(Seq(13), b"x"), *some))
CASES: dict[str, list[Case]] = {
    "I1 order": [
        ("an entry without a fence", False, change_entry(THIRD_WORD, fence=None)),
        ("a fence of another subject", False, change_entry(THIRD_WORD, fence_subject="turns.x.y.event")),
        ("an entry stored against its fence", False, change_entry(THIRD_WORD, fence=10)),
        ("a fork on one server", False, add_fork(13, 10)),
        ("a fork on three servers", True, change_cluster(add_fork(13, 10))),
        ("an entry without a fence on three servers", False, change_cluster(change_entry(THIRD_WORD, fence=None))),
        ("a lost entry", False, remove_entries(THIRD_WORD)),
        ("an entry before the request", False, change_cluster(add_fork(1, 0))),
        ("no request", False, change_cluster(remove_entries(REQUEST))),
        ("an entry that is not UTF-8", False, change_entry(THIRD_WORD, payload="", junk=b"\xff")),
        ("an empty log", None, change_log(lambda _: [])),
    ],
    "I2 one end": [
        ("no end", False, remove_entries(END)),
        ("no end, collected too early", None, apply_all(remove_entries(END), change_final_state(collected=ns(61)))),
        ("no end, collected soon after a fault", None, apply_all(remove_entries(END), add_fault(100))),
        ("a late end", False, LATE_END),
        ("a late end beside a fault", True, apply_all(LATE_END, add_fault(80), change_final_state(collected=ns(500)))),
        ("a fork after the end", True, change_cluster(add_fork(24, 20))),
        ("a valid entry after the end", False, add_fork(24, 22)),
        ("an acknowledged turn that is not stored", False, POST_WITHOUT_LOG),
    ],
    "I3 attempts": [
        ("a missing attempt number", False, change_log(rewrite('"attempt":1', '"attempt":2', *range(4, 24, 2)))),
        ("events of an unknown attempt", False, change_log(rewrite('"attempt":1', '"attempt":7', 20, 22))),
        ("two processes in one attempt", False, edit(Append, has_seq(THIRD_WORD), process="g2")),
        ("no turns", None, change_log(lambda _: [])),
    ],
    "I4 no loss": [
        ("an acknowledged append that is not stored", False, remove_entries(THIRD_WORD)),
        ("an acknowledged append with other bytes", False, edit(Append, has_seq(THIRD_WORD), sha256="0")),
        ("a failed append that is stored", False, edit(Append, has_seq(THIRD_WORD), outcome="fail")),
        ("a failed attempt that is stored", False, apply_all(change_log(add_takeover), report_append_as_failed(15))),
        (
            "a failed attempt that was superseded",
            True,
            apply_all(change_log(add_two_takeovers), report_append_as_failed(15)),
        ),
        ("an unclear append that is stored", True, edit(Append, has_seq(THIRD_WORD), outcome="info", seq=0)),
        ("an unclear append that is not stored", True, add_operation(NOT_STORED, "g2", 15, outcome="info")),
        ("a failed append that is not stored", True, add_operation(NOT_STORED, "g2", 15, outcome="fail")),
        ("an append that is stored twice", False, change_log(lambda some: [*some, replace(some[5], seq=Seq(13))])),
        ("an acknowledged POST that is not stored", False, POST_WITHOUT_LOG),
        ("a POST stored with another question", False, edit(Post, is_by("other"), question="Why?")),
        ("a POST answered without a turn", False, edit(Post, is_by("other"), turn=None)),
        ("no appends", None, apply_all(drop(Append), drop(Post))),
    ],
    "I5 text": [
        ("another word", False, apply_all(change_log(replace_word), drop(Read, is_by("text reader")))),
        ("an incomplete text", False, change_log(remove_last_word)),
        ("an end with another hash", False, change_log(rewrite('"text_sha256":"', '"text_sha256":"0', END))),
        ("an end with another usage", False, change_log(rewrite('"output_tokens":4', '"output_tokens":5', END))),
        ("usage that the model has not reported", False, change_log(rewrite('"output_tokens":4', '"output_tokens":5'))),
        ("a GET with another text", False, edit(Get, text="b000000")),
        ("a GET with less text than its cursor", False, edit(Get, text="a000000")),
        ("a GET with the cursor of another turn", False, edit(Get, cursor=Seq(THIRD_WORD - 1))),
        ("a GET of a cancelled turn with half the text", False, read_half_of_cancelled(Get(cursor=Seq(CANCELLED_END)))),
        ("a text reader of a cancelled turn with half the text", False, read_half_of_cancelled(Read(over="ended"))),
        ("a disconnected text reader of a cancelled turn", True, read_half_of_cancelled(Read(over="cut"))),
        ("a text reader with another text", False, edit(Read, is_by("text reader"), text="b000000")),
        ("a text reader with the end and half the text", False, edit(Read, is_by("text reader"), text="a000000")),
        ("a disconnected text reader", True, edit(Read, is_by("text reader"), text="a000000", over="cut")),
        ("no answers", None, change_log(lambda _: [])),
    ],
    "I6 readers": [
        ("a missing frame", False, change_frames(lambda some: some[1:])),
        ("a repeated frame", False, change_frames(lambda some: (some[0], *some))),
        ("two frames swapped", False, change_frames(lambda some: (some[1], some[0], *some[2:]))),
        ("other bytes", False, change_frames(lambda some: (Frame(some[0].seq, b"x"), *some[1:]))),
        ("a frame of another turn", False, change_frames(lambda some: (Frame(Seq(29), b"x"), *some))),
        ("a frame of no entry", False, change_frames(lambda some: (*some, Frame(Seq(999), b"x")))),
        ("a frame of a fork", False, apply_all(change_cluster(add_fork(13, 10)), FORK_FRAME)),
        ("a fork that no reader received", True, change_cluster(add_fork(13, 10))),
        ("a reader that did not reconnect", None, drop(Read, resumes)),
        (
            "other bytes before a reader that did not reconnect",
            False,
            apply_all(drop(Read, resumes), edit(Read, is_by("reader"), frames=(Frame(Seq(REQUEST), b"x"),))),
        ),
        ("a reader of an unknown turn", None, change_log(lambda _: [])),
    ],
    "I7 idempotency": [
        ("one key, two turns", False, edit(Post, is_by("other"), turn=TurnId("another"))),
        ("two keys, one turn", False, edit(Post, is_by("other"), idempotency_key="2")),
        ("another body accepted", False, edit(Post, is_by("other"), body_sha256="2")),
        ("the same body refused", False, edit(Post, is_by("other"), status=422, outcome="fail", turn=None)),
        ("one turn for POSTs with and without a key", False, edit(Post, is_by("other"), idempotency_key=None)),
        ("an unanswered POST that made a second turn", False, repeat_question("info", "key")),
        (
            "the same question with two keys",
            True,
            apply_all(
                repeat_question("ok", "another key"),
                drop(Post, lambda one: one.question == sample_run.QUESTIONS[CANCELLED]),
            ),
        ),
        ("the same key of two tenants", True, add_operation(OTHER_TENANT, "b", 10)),
        ("no keys", None, edit(Post, idempotency_key=None, outcome="info")),
    ],
    "I8 cancellation": [
        ("a cancelled turn without an end", False, remove_entries(CANCELLED_END)),
        ("no cancellations", None, drop(Cancel)),
    ],
    "I9 cost": [
        ("a surplus call", False, add_call(over="whole")),
        ("a call after a refusal", True, add_call(over="529", deltas=0)),
        ("a call whose response was lost", True, apply_all(ABORTED, add_fault(10, kind="cut", calls=1))),
        (
            "more surplus calls than lost responses",
            False,
            apply_all(ABORTED, ABORTED, add_fault(10, kind="cut", calls=1)),
        ),
        ("a call of no turn", False, add_call(key="unknown")),
        ("a call before the request", False, change_call(1, begun=ns(1.8))),
        ("a call after the end", False, change_call(1, begun=ns(25), closed=ns(26))),
        ("a call that ran on", False, LATE_CALL),
        ("a call that is still open", False, change_call(2, closed=None)),
        ("a call that ran on while its generator was frozen", True, apply_all(LATE_CALL, FREEZE)),
        ("a call that ran on after its generator continued", False, apply_all(change_call(2, closed=ns(41)), FREEZE)),
        ("calls not recorded", None, change_final_state(account=None)),
        ("an unexplained attempt", False, change_log(add_takeover)),
        (
            "an attempt after an interruption",
            True,
            apply_all(change_log(add_takeover), add_fault(10, interrupts=1), ABORTED),
        ),
        (
            "an attempt after its generator was killed",
            True,
            apply_all(change_log(add_takeover), add_fault(10, target="generator-1"), ABORTED),
        ),
        (
            "an attempt after another generator was killed",
            False,
            apply_all(change_log(add_takeover), add_fault(10, target="generator-2"), ABORTED),
        ),
        ("an attempt after a failure of the model", True, apply_all(change_log(add_takeover), add_call(over="cut"))),
        ("an incomplete list of calls", None, change_calls(list, forgotten=1)),
        ("no clock reading", None, drop(ClockReading)),
    ],
    "I10 rows": [
        ("a row with another text", False, change_row(text="other")),
        ("a row with another usage", False, change_row(cost_usd=1.0)),
        ("a row that is still running", False, change_row(outcome="running")),
        ("no row", False, change_rows(lambda some: some[1:])),
        ("two rows", False, change_rows(lambda some: [*some, some[0]])),
        (
            "an acknowledgement before the commit",
            False,
            edit(Ack, lambda one: has_seq(END)(one) and is_by("persistence")(one), invoked=ns(22.5)),
        ),
        (
            "an acknowledgement without a commit",
            False,
            edit(Commit, lambda one: f"{TENANT} {ANSWERED.turn}" in one.rows, outcome="info"),
        ),
        ("a backlog", False, change_final_state(backlogs={GENERATORS: Backlog(0, 0), PERSISTENCE: Backlog(0, 1)})),
        ("backlog not recorded", None, change_final_state(backlogs=None)),
        (
            "a row of an unknown turn",
            False,
            change_log(lambda some: [one for one in some if subjects.parse(one.subject)[0] != ANSWERED]),
        ),
        ("rows not recorded", None, lambda run: copy(run, rows=None)),
    ],
    "I11 visibility": [
        ("a seen turn is not found", False, edit(Get, status=404, outcome="fail", cursor=Seq(0))),
        ("a cursor before a seen one", False, edit(Get, cursor=Seq(4))),
        ("a received cursor is refused", False, edit(Read, resumes, status=400, outcome="fail", frames=())),
        ("a seen turn cannot be cancelled", False, edit(Cancel, status=404, outcome="fail")),
        ("an acknowledged turn is not found by another client", False, find_nothing(10)),
        ("a turn is not found before it is acknowledged", True, find_nothing(1)),
        ("a GET that overlaps the read", True, edit(Get, invoked=ns(1), cursor=Seq(0))),
        (
            "deleted turns",
            None,
            apply_all(
                edit(Get, status=404, outcome="fail", cursor=Seq(0)),
                add_operation(Delete(tenant=TENANT, turn=ANSWERED.turn), "client", 8),
                add_operation(Delete(tenant=TENANT, turn=CANCELLED.turn), "client", 8, number=1000),
            ),
        ),
        ("no requests", None, lambda run: copy(run, operations=[])),
    ],
    "I12 resources": [
        ("one more open file", False, edit(ResourceCount, lambda one: one.invoked, counts={"fds": 21})),
        ("a new resource", False, add_resources(3600, {"fds": 20, "rss_bytes": MIB_100, "consumers": 1})),
        ("growing memory", False, add_resources(3600, {"fds": 20, "rss_bytes": MIB_200})),
        ("growing memory after a restart", True, add_resources(3600, {"fds": 20, "rss_bytes": MIB_200}, pid=2)),
        ("growing memory in a short run", True, add_resources(90, {"fds": 20, "rss_bytes": MIB_200})),
        ("one count", None, drop(ResourceCount, lambda one: one.invoked)),
    ],
    "I13 isolation": [
        ("another tenant's POST fails", False, edit(Post, is_by("other"), status=429, outcome="fail", turn=None)),
        (
            "another tenant's reader fails",
            False,
            add_operation(Read(tenant=TENANT, turn=ANSWERED.turn, status=503), "reader", 56, outcome="fail"),
        ),
        ("no overload", None, drop(Overload)),
        ("an overload that is not refused", None, edit(Post, is_by("overloader"), status=202)),
    ],
    "I14 leases": [
        ("an acknowledgement before the end", False, edit(Ack, lambda one: one.consumer == GENERATORS, invoked=ns(21))),
        ("an acknowledgement without an end", False, remove_entries(END)),
        ("no clock reading", None, drop(ClockReading)),
        ("no acknowledgements", None, drop(Ack)),
    ],
    "I15 errors": [
        ("an unexpected error", False, edit(Get, status=500, outcome="fail")),
        ("no responses", None, lambda run: copy(run, operations=[])),
    ],
    "I16 inputs": [
        ("an input without a turn", False, NO_INPUT),
        ("an input of a cancelled batch without a turn", True, apply_all(NO_INPUT, CANCELLED_BATCH, drop(Results))),
        ("an input with another question", False, change_log(rewrite("tag=d", "tag=e", INPUT))),
        ("an input with another name", False, change_log(rewrite('"c0"', '"c1"', INPUT))),
        ("a turn that is no input", False, change_log(rewrite('"session-1"', f'"s","parent":"{BATCH.turn}"', 21))),
        (
            "a line with the answer of another input",
            False,
            change_lines(lambda some: [replace(some[0], text="e000000")]),
        ),
        ("a line with another outcome", False, change_lines(lambda some: [replace(some[0], outcome="failed")])),
        ("a line twice", False, change_lines(lambda some: [some[0], *some])),
        ("a line of no input", False, change_lines(lambda some: [*some, Line("c2", "completed", "")])),
        ("a missing line", False, change_lines(lambda some: some[:1])),
        ("a connection that was cut", True, change_lines(lambda some: some[:1], is_whole=False)),
        ("no batches", None, drop(Post)),
    ],
    "I17 payment": [
        ("an input in two message batches", False, SUBMITTED_TWICE),
        (
            "an input in two message batches because of a wrong clock",
            True,
            apply_all(SUBMITTED_TWICE, add_fault(38, kind="jump-clock", target="generator-0")),
        ),
        ("a call for an input", False, add_call(question=sample_run.INPUTS["c0"])),
        ("an answer that is no turn", False, NO_INPUT),
        ("an answer that a turn does not have", False, change_log(rewrite('"completed"', '"failed"', INPUT_END))),
        ("calls not recorded", None, change_final_state(account=None)),
        ("no message batches", None, change_calls(list, submitted=[])),
    ],
    "I18 counts": [
        ("a wrong count at a gateway", False, edit(GetBatch, lambda one: one.done, done=1)),
        ("a wrong count in the log", False, change_log(rewrite('"done":2', '"done":1', 55))),
        ("an input that is not counted", False, change_log(rewrite('"completed"', '"failed"', INPUT_END))),
        ("a batch that no client cancelled", False, CANCELLED_BATCH),
        ("a cancelled batch that counts its answers", True, apply_all(CANCELLED_BATCH, CANCEL_BATCH, SEEN_CANCELLED)),
        ("another outcome at a gateway", False, edit(GetBatch, lambda one: one.done, ended="cancelled")),
        ("a failed batch", False, change_log(rewrite('"completed"', '"failed"', BATCH_END))),
        ("a batch that runs again", False, add_operation(of_batch(GetBatch()), "late", 60)),
        ("no GETs", None, drop(GetBatch)),
    ],
    "I19 deletion": [
        ("a deleted turn in the log", False, add_operation(Delete(tenant=TENANT, turn=ANSWERED.turn), "client", 70)),
        ("a deleted turn in the database", False, apply_all(DELETE_BATCH, change_log(lambda _: []))),
        ("inputs of a deleted batch in a blob", False, apply_all(DELETE_BATCH, NOTHING_STORED)),
        (
            "inputs of a deleted batch in a blob that is marked as deleted",
            True,
            apply_all(DELETE_BATCH, NOTHING_STORED, change_blobs('{"bytes":99}', '{"bytes":99,"is_doomed":true}')),
        ),
        ("a deleted batch that is found", False, edit(GetBatch, lambda one: one.status == 404, outcome="ok")),
        (
            "a deleted batch that is found after a second deletion",
            False,
            apply_all(
                edit(Delete, status=404, outcome="info"), edit(GetBatch, lambda one: one.status == 404, outcome="ok")
            ),
        ),
        ("no acknowledged deletions", None, edit(Delete, outcome="info")),
    ],
    "I20 steers": [
        ("an accepted message that is not stored", False, drop_turn(SUCCESSOR)),
        ("a message that is stored twice", False, copy_turn(SUCCESSOR, 60)),
        ("two turns that follow the steered one", False, apply_all(copy_turn(SUCCESSOR, 60), ANOTHER_MESSAGE)),
        ("a message before the steered answer", False, edit(Steer, steered=TurnId("later"))),
        ("readers that go on into another turn", False, change_log(rewrite('"successor":"s', '"successor":"x'))),
        ("no steers", None, drop(Steer)),
    ],
    "I21 budgets": [
        ("money that no turn holds", False, change_final_state(budgets=(HELD,))),
        ("a moment at which more was left", False, change_final_state(samples=(SPENT_TWICE,))),
        ("budgets that were not read", None, change_final_state(budgets=None)),
    ],
}


def test_a_correct_run_holds_every_invariant() -> None:
    """Including a probe (PROTOCOL R68) that a killed process left: it has no fence and needs no end."""
    run = sample_run.run()
    probe = LogMessage(seq=Seq(run.log[-1].seq + 1), at=NOON, subject=subjects.probe(TurnId("probe")), payload="{}")
    for correct in (run, change_log(lambda entries: [*entries, probe])(run)):
        verdicts = judge(correct)
        assert find_failed(verdicts) == {}
        assert "\n".join(report(verdicts)).count("holds") == len(INVARIANTS)


@pytest.mark.parametrize(
    ("name", "answer", "change"),
    [
        pytest.param(name, answer, change, id=f"{name}: {case}")
        for name, cases in CASES.items()
        for case, answer, change in cases
    ],
)
def test_an_invariant_judges_a_run_with_one_change(name: str, answer: bool | None, change: Change) -> None:
    verdict = INVARIANTS[name](change(sample_run.run()), Bounds())
    assert verdict.holds is answer, verdict
    assert verdict.evidence


def test_each_invariant_has_a_case_that_violates_it_and_one_that_cannot_show_it() -> None:
    for answer in (False, None):
        assert {name for name, cases in CASES.items() if answer in {case[1] for case in cases}} == set(INVARIANTS)


@pytest.mark.parametrize(
    ("run", "status"),
    [(Run(), 1), (sample_run.run(), 0), (change_log(lambda log: log[1:])(sample_run.run()), 1)],
    ids=["empty", "correct", "changed"],
)
def test_the_exit_status_is_0_if_an_invariant_holds_and_none_is_violated(run: Run, status: int, tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_bytes(b"\n".join(map(msgspec.json.encode, run.operations)))
    save(tmp_path, run)
    assert main([str(tmp_path)]) == status


def test_the_loss_of_any_entry_violates_an_invariant() -> None:
    for message in sample_run.run().log:
        assert False in {verdict.holds for verdict in judge(remove_entries(message.seq)(sample_run.run())).values()}, (
            message
        )


@given(logs())
def test_an_invalid_entry_violates_the_order_on_one_server_and_not_on_three(written: MadeUp) -> None:
    tails = [0, *(stored.seq for stored in written.stored)]
    messages = [
        LogMessage(
            seq=stored.seq,
            at=stored.at,
            subject=subjects.entry(ANSWERED, KINDS.get(type(stored.entry), "newer")),
            fence=tail,
            fence_subject=subjects.entries(ANSWERED),
            payload=msgspec.json.encode(stored.entry).decode() if not isinstance(stored.entry, Unreadable) else "",
        )
        for stored, tail in zip(written.stored, tails, strict=False)
    ]
    run = Run(log=messages)
    assert INVARIANTS["I1 order"](run, Bounds()).holds is (len(written.valid) == len(written.stored))
    assert INVARIANTS["I1 order"](change_final_state(servers=3)(run), Bounds()).holds is True
