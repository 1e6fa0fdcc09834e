"""The invariants themselves: a sound run, and the same one broken in one place at a time. Each has to say no."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given

from tailrace.proto import entries, subjects
from tailrace.proto.entries import KINDS, Attempt, Event, Unreadable
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.checker import made
from tests.checker.bounds import Bounds
from tests.checker.history import (
    Ack,
    Append,
    Ask,
    Cancel,
    Census,
    Clock,
    Commit,
    Delete,
    Done,
    Fault,
    Look,
    Noise,
    Read,
)
from tests.checker.invariants import INVARIANTS, judge, not_held, report
from tests.checker.made import ANSWERED, CANCELLED, TENANT, ns
from tests.checker.run import Logged, Queue, Run
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import NOON
from tests.promises import Frame

Break = Callable[[Run], Run]
T = TypeVar("T", bound=Done)
# In the sound run.
REQUEST, THIRD_WORD, END = 2, 14, 22
CANCELLED_END = 35


def with_operations(kind: type[T], change: Callable[[T], Done | None], process: str | None = None) -> Break:
    """Changes the operations of one kind, of one process; None takes one away."""

    def broken(run: Run) -> Run:
        changed = [
            change(one) if isinstance(one, kind) and process in (None, one.process) else one for one in run.operations
        ]
        return replaced(run, operations=[one for one in changed if one is not None])

    return broken


def also(operation: Any, process: str, at_s: float, **more: Any) -> Break:
    """One operation more."""
    known = {"process": process, "number": 999, "invoked": ns(at_s), "returned": ns(at_s + 1), "outcome": "ok"}
    operation = msgspec.structs.replace(operation, **known | more)

    def broken(run: Run) -> Run:
        return replaced(run, operations=sorted([*run.operations, operation], key=lambda one: one.invoked))

    return broken


def with_log(change: Callable[[list[Logged]], list[Logged]]) -> Break:
    return lambda run: replaced(run, log=change(run.log))


def with_entry(seq: int, **given: Any) -> Break:
    """Changes what the log holds at `seq`."""
    return with_log(lambda log: [msgspec.structs.replace(one, **given) if one.seq == seq else one for one in log])


def with_rest(**given: Any) -> Break:
    return lambda run: replaced(run, rest=msgspec.structs.replace(run.rest, **given))


def with_call(number: int, **given: Any) -> Break:
    def broken(run: Run) -> Run:
        assert run.rest.account is not None
        calls = [
            msgspec.structs.replace(call, **given) if call.number == number else call for call in run.rest.account.calls
        ]
        account = msgspec.structs.replace(run.rest.account, calls=calls)
        return with_rest(account=account)(run)

    return broken


def also_called(**given: Any) -> Break:
    """A third call, for the question of the first."""

    def broken(run: Run) -> Run:
        assert run.rest.account is not None
        first = run.rest.account.calls[0]
        third = msgspec.structs.replace(first, number=3, begun=ns(10), closed=ns(12), **given)
        return with_rest(account=msgspec.structs.replace(run.rest.account, calls=[*run.rest.account.calls, third]))(run)

    return broken


def with_row(**given: Any) -> Break:
    """Changes the row of the answered turn."""

    def broken(run: Run) -> Run:
        assert run.rows is not None
        first, *rest = run.rows
        record = msgspec.structs.replace(first.record, **given)
        return replaced(run, rows=[msgspec.structs.replace(first, record=record), *rest])

    return broken


def both(*breaks: Break) -> Break:
    def broken(run: Run) -> Run:
        for break_it in breaks:
            run = break_it(run)
        return run

    return broken


def replaced(run: Run, **given: Any) -> Run:
    """A new one, in which nothing was computed yet."""
    return Run(**{name: getattr(run, name) for name in Run.__struct_fields__} | given)


def without(seq: int) -> Break:
    return with_log(lambda log: [one for one in log if one.seq != seq])


def stored_late(seq: int, prev: int, **given: Any) -> Break:
    """A generator that lost its turn writes on, and the server lets it."""
    entry = Event(
        prev=Seq(prev),
        attempt=1,
        event=msgspec.Raw(b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" late"}}'),
    )
    logged = Logged(
        seq=Seq(seq),
        at=NOON + timedelta(seconds=seq),
        subject=subjects.entry(ANSWERED, "event"),
        fence=prev,
        fence_subject=subjects.entries(ANSWERED),
        payload=entries.encode(entry).decode(),
    )
    logged = msgspec.structs.replace(logged, **given)
    return with_log(lambda log: sorted([*log, logged], key=lambda one: one.seq))


def reader(change: Callable[[tuple[Frame, ...]], tuple[Frame, ...]]) -> Break:
    """Changes what the reader's second connection received."""
    return with_operations(
        Read, lambda read: msgspec.structs.replace(read, frames=change(read.frames)) if read.cursor else read, "reader"
    )


def changed(**given: Any) -> Callable[[Any], Any]:
    return lambda one: msgspec.structs.replace(one, **given)


def other_words(log: list[Logged]) -> list[Logged]:
    """The end's hash agrees with it: only who knows what was to be said can tell."""
    return [msgspec.structs.replace(one, payload=one.payload.replace("a000001", "a000007")) for one in log]


def of_attempt(logged: Logged, attempt: int) -> Logged:
    return msgspec.structs.replace(logged, payload=logged.payload.replace('"attempt":1', f'"attempt":{attempt}'))


def taken_over(log: list[Logged], *, is_hedge: bool = False) -> list[Logged]:
    """Another generator goes on at 15, between the third word and the fourth."""
    attempt = Attempt(
        prev=Seq(14), attempt=2, generator="generator-2", backend="claude", mode="continue", is_hedge=is_hedge
    )
    taken = msgspec.structs.replace(
        log[0],
        seq=Seq(15),
        at=NOON + timedelta(seconds=15),
        subject=subjects.entry(ANSWERED, "attempt"),
        fence=14,
        payload=entries.encode(attempt).decode(),
    )
    later = [of_attempt(one, 2) if one.seq > 15 and subjects.parse(one.subject)[0] == ANSWERED else one for one in log]
    later = [
        msgspec.structs.replace(one, fence=15, payload=one.payload.replace('"prev":14', '"prev":15'))
        if one.seq == 16
        else one
        for one in later
    ]
    return sorted([*later, taken], key=lambda one: one.seq)


def taken_over_twice(log: list[Logged]) -> list[Logged]:
    """The generator of the second attempt wrote nothing under it before a third came, at 16."""
    third = Attempt(prev=Seq(15), attempt=3, generator="generator-3", backend="claude", mode="continue")
    taken = {"subject": subjects.entry(ANSWERED, "attempt"), "payload": entries.encode(third).decode()}
    return [msgspec.structs.replace(one, **taken) if one.seq == 16 else one for one in taken_over(log)]


def told_that_it_is_not_stored(seq: int) -> Break:
    """Whoever appended what stands at `seq` was told so; of what came later nobody was told anything."""

    def broken(run: Run) -> Run:
        place = run.places[Seq(seq)]
        append = Append(tenant=TENANT, turn=ANSWERED.turn, kind=place.kind, sha256=place.sha256)
        told = with_operations(Append, lambda one: one if one.seq < seq else None)(run)
        return also(append, "generator-2", 15, outcome="fail")(told)

    return broken


def renumbered(attempt: int, *seqs: int) -> Break:
    """Has entries of the answered turn say that they are of another attempt."""
    return with_log(lambda log: [of_attempt(one, attempt) if one.seq in seqs else one for one in log])


def ends_soon(log: list[Logged]) -> list[Logged]:
    """Without the last word, and with the chain closed over the hole."""
    shorter = [one for one in log if one.seq != 16]
    return [
        msgspec.structs.replace(one, fence=14, payload=one.payload.replace('"prev":16', '"prev":14'))
        if one.seq == 18
        else one
        for one in shorter
    ]


def forgotten(run: Run) -> Run:
    assert run.rest.account is not None
    return with_rest(account=msgspec.structs.replace(run.rest.account, forgotten=1))(run)


def asked_once_more(outcome: str, idempotency_key: str) -> Break:
    """The question of the turn that was cancelled is the first one's, and was asked with a key."""
    question = made.QUESTIONS[ANSWERED]

    def same(log: list[Logged]) -> list[Logged]:
        other = made.QUESTIONS[CANCELLED]
        return [msgspec.structs.replace(one, payload=one.payload.replace(other, question)) for one in log]

    ask = Ask(tenant=TENANT, question=question, body_sha256="body", idempotency_key=idempotency_key)
    return both(with_log(same), also(ask, "asker", 20, outcome=outcome))


def counted(fds: int, rss_bytes: int) -> Break:
    """What the second census finds."""
    counts = {"fds": fds, "rss_bytes": rss_bytes}
    return with_operations(Census, lambda one: changed(counts=counts)(one) if one.invoked else one)


UNSTORED = Append(tenant=TENANT, turn=ANSWERED.turn, kind="event", sha256="1")
FORGOTTEN = Ask(tenant=TENANT, turn=TurnId("forgotten"), status=202)
NINE = "I9 cost"
BREAKS: dict[str, tuple[str, bool | None, Break]] = {
    # I1
    "an entry without a fence": ("I1 order", False, with_entry(THIRD_WORD, fence=None)),
    "a fence around something else": ("I1 order", False, with_entry(THIRD_WORD, fence_subject="turns.x.y.event")),
    "a fence that the server did not hold": ("I1 order", False, with_entry(THIRD_WORD, fence=10)),
    "a fork on one node": ("I1 order", False, stored_late(13, 10)),
    "a fork on three nodes": ("I1 order", True, both(with_rest(nodes=3), stored_late(13, 10))),
    "an entry without a fence on three nodes": (
        "I1 order",
        False,
        both(with_rest(nodes=3), with_entry(14, fence=None)),
    ),
    "an entry lost from the log": ("I1 order", False, without(THIRD_WORD)),
    "something before the request": ("I1 order", False, both(with_rest(nodes=3), stored_late(1, 0))),
    "no request": ("I1 order", False, both(with_rest(nodes=3), without(REQUEST))),
    "a log out of order": (
        "I1 order",
        False,
        both(with_rest(nodes=3), with_log(lambda log: [log[1], log[0], *log[2:]])),
    ),
    "an entry that nobody can read": ("I1 order", False, with_entry(THIRD_WORD, payload="", junk=b"\xff")),
    "an empty log": ("I1 order", None, with_log(lambda _: [])),
    # I2
    "no end": ("I2 one end", False, without(END)),
    "no end, and no time to get one": ("I2 one end", None, both(without(END), with_rest(collected=ns(61)))),
    "no end soon after a fault": ("I2 one end", None, both(without(END), also(Fault(), "nemesis", 100))),
    "an end that came too late": ("I2 one end", False, with_entry(END, at=NOON + timedelta(seconds=120))),
    "an end that came late beside a fault": (
        "I2 one end",
        True,
        both(
            with_entry(END, at=NOON + timedelta(seconds=120)),
            also(Fault(), "nemesis", 80),
            with_rest(collected=ns(500)),
        ),
    ),
    "a fork after the end": ("I2 one end", True, both(with_rest(nodes=3), stored_late(24, 20))),
    "something after the end": ("I2 one end", False, stored_late(24, 22)),
    "a turn that was acknowledged and never stored": (
        "I2 one end",
        False,
        also(FORGOTTEN, "asker", 10),
    ),
    # I3
    "an attempt left out": ("I3 attempts", False, renumbered(2, *range(4, 24, 2))),
    "an event of an attempt that nobody began": ("I3 attempts", False, renumbered(7, 20, 22)),
    "no turns": ("I3 attempts", None, with_log(lambda _: [])),
    "two processes in one attempt": (
        "I3 attempts",
        False,
        with_operations(Append, lambda one: changed(process="g2")(one) if one.seq == THIRD_WORD else one),
    ),
    # I4
    "an acknowledged append that is not there": ("I4 no loss", False, without(THIRD_WORD)),
    "an acknowledged append that is something else": (
        "I4 no loss",
        False,
        with_operations(Append, lambda one: changed(sha256="0")(one) if one.seq == THIRD_WORD else one),
    ),
    "an append that failed and stands": (
        "I4 no loss",
        False,
        with_operations(Append, lambda one: changed(outcome="fail")(one) if one.seq == THIRD_WORD else one),
    ),
    "an attempt that failed and stands": (
        "I4 no loss",
        False,
        both(with_log(taken_over), told_that_it_is_not_stored(15)),
    ),
    "an attempt that another has followed before it was known to stand": (
        "I4 no loss",
        True,
        both(with_log(taken_over_twice), told_that_it_is_not_stored(15)),
    ),
    "an unclear append that stands": (
        "I4 no loss",
        True,
        with_operations(Append, lambda one: changed(outcome="info", seq=0)(one) if one.seq == THIRD_WORD else one),
    ),
    "an unclear append that does not": (
        "I4 no loss",
        True,
        also(UNSTORED, "g2", 15, outcome="info"),
    ),
    "an append that failed and does not stand": ("I4 no loss", True, also(UNSTORED, "g2", 15, outcome="fail")),
    "an append that is stored twice": (
        "I4 no loss",
        False,
        with_log(lambda log: sorted([*log, msgspec.structs.replace(log[5], seq=Seq(13))], key=lambda one: one.seq)),
    ),
    "an acknowledged POST that is not in the log": (
        "I4 no loss",
        False,
        also(FORGOTTEN, "asker", 10),
    ),
    "a POST that became another question": (
        "I4 no loss",
        False,
        with_operations(Ask, changed(question="Why?"), "other"),
    ),
    "a POST that was answered without a turn": ("I4 no loss", False, with_operations(Ask, changed(turn=None), "other")),
    "nobody appended": (
        "I4 no loss",
        None,
        both(with_operations(Append, lambda _: None), with_operations(Ask, lambda _: None)),
    ),
    # I5
    "no answers": ("I5 text", None, with_log(lambda _: [])),
    "another word": ("I5 text", False, with_log(other_words)),
    "a text that ends too soon": ("I5 text", False, with_log(ends_soon)),
    "an answer to a look that is something else": ("I5 text", False, with_operations(Look, changed(text="b000000"))),
    "an answer to a look that lacks the end": (
        "I5 text",
        False,
        with_operations(Look, changed(text="a000000", cursor=Seq(END))),
    ),
    "a listener who heard something else": (
        "I5 text",
        False,
        with_operations(Read, changed(text="b000000"), "listener"),
    ),
    "a listener who heard half, and was told that it was all": (
        "I5 text",
        False,
        with_operations(Read, changed(text="a000000"), "listener"),
    ),
    "a listener who was cut off": (
        "I5 text",
        True,
        with_operations(Read, changed(text="a000000", over="cut"), "listener"),
    ),
    # I6
    "a frame dropped": ("I6 readers", False, reader(lambda frames: frames[1:])),
    "a frame doubled": ("I6 readers", False, reader(lambda frames: (frames[0], *frames))),
    "two frames swapped": ("I6 readers", False, reader(lambda frames: (frames[1], frames[0], *frames[2:]))),
    "other bytes": ("I6 readers", False, reader(lambda frames: (Frame(frames[0].seq, b"x"), *frames[1:]))),
    "a frame of another turn": ("I6 readers", False, reader(lambda frames: (Frame(Seq(29), b"x"), *frames))),
    "a frame of nothing": ("I6 readers", False, reader(lambda frames: (*frames, Frame(Seq(999), b"x")))),
    "a frame of a fork": (
        "I6 readers",
        False,
        both(with_rest(nodes=3), stored_late(13, 10), reader(lambda frames: (Frame(Seq(13), b"x"), *frames))),
    ),
    "a fork that nobody was given": ("I6 readers", True, both(with_rest(nodes=3), stored_late(13, 10))),
    "a reader who never came back": (
        "I6 readers",
        None,
        with_operations(Read, lambda one: None if one.cursor else one, "reader"),
    ),
    "a reader of a turn that is nowhere": ("I6 readers", None, with_log(lambda _: [])),
    # I7
    "one key, two turns": ("I7 idempotency", False, with_operations(Ask, changed(turn=TurnId("another")), "other")),
    "one turn of two keys": ("I7 idempotency", False, with_operations(Ask, changed(idempotency_key="2"), "other")),
    "another body, the same turn": ("I7 idempotency", False, with_operations(Ask, changed(body_sha256="2"), "other")),
    "the same body refused": (
        "I7 idempotency",
        False,
        with_operations(Ask, changed(status=422, outcome="fail", turn=None), "other"),
    ),
    "one turn for two who asked apart": (
        "I7 idempotency",
        False,
        with_operations(Ask, changed(idempotency_key=None), "other"),
    ),
    "a POST that nobody answered, and was asked once more": ("I7 idempotency", False, asked_once_more("info", "key")),
    "what two ask who have a key each": (
        "I7 idempotency",
        True,
        both(
            asked_once_more("ok", "another key"),
            with_operations(Ask, lambda ask: ask if ask.question != made.QUESTIONS[CANCELLED] else None),
        ),
    ),
    "one key of two tenants": (
        "I7 idempotency",
        True,
        also(Ask(tenant=Tenant("b"), turn=TurnId("bs"), idempotency_key="key", body_sha256="2", status=202), "b", 10),
    ),
    "no keys": ("I7 idempotency", None, with_operations(Ask, changed(idempotency_key=None, outcome="info"))),
    # I8
    "a cancellation that came to nothing": ("I8 cancellation", False, without(CANCELLED_END)),
    "a call that went on": ("I8 cancellation", False, with_call(2, closed=ns(39))),
    "a call that is still open": ("I8 cancellation", False, with_call(2, closed=None)),
    "a call that went on while its generator was frozen": (
        "I8 cancellation",
        True,
        both(with_call(2, closed=ns(39)), also(Fault(kind="freeze", interrupts=1), "nemesis", 37)),
    ),
    "a call that went on after its generator was awake again": (
        "I8 cancellation",
        False,
        both(with_call(2, closed=ns(41)), also(Fault(kind="freeze", interrupts=1), "nemesis", 37)),
    ),
    "an account that nobody asked for": ("I8 cancellation", None, with_rest(account=None)),
    "nobody cancelled": ("I8 cancellation", None, with_operations(Cancel, lambda _: None)),
    # I9
    "a call too many": (NINE, False, also_called(over="whole")),
    "a call after a refusal": (NINE, True, also_called(over="529", deltas=0)),
    "a call that was lost on its way": (
        NINE,
        True,
        both(also_called(over="aborted"), also(Fault(kind="cut", calls=1), "nemesis", 10)),
    ),
    "more calls than were lost on their way": (
        NINE,
        False,
        both(also_called(over="aborted"), also_called(over="aborted"), also(Fault(kind="cut", calls=1), "nemesis", 10)),
    ),
    "a call for nobody": (NINE, False, also_called(key="nobody")),
    "a call before its turn was asked": (NINE, False, with_call(1, begun=ns(1.8))),
    "a call after the end": (NINE, False, with_call(1, begun=ns(25))),
    "an attempt that nothing explains": (NINE, False, with_log(taken_over)),
    "an attempt after an interruption": (
        NINE,
        True,
        both(with_log(taken_over), also(Fault(kind="kill", interrupts=1), "nemesis", 10), also_called(over="aborted")),
    ),
    "an attempt after its generator was killed": (
        NINE,
        True,
        both(
            with_log(taken_over),
            also(Fault(kind="kill", target="generator-1"), "nemesis", 10),
            also_called(over="aborted"),
        ),
    ),
    "an attempt after another generator was killed": (
        NINE,
        False,
        both(
            with_log(taken_over),
            also(Fault(kind="kill", target="generator-2"), "nemesis", 10),
            also_called(over="aborted"),
        ),
    ),
    "an attempt after the model broke off": (NINE, True, both(with_log(taken_over), also_called(over="cut"))),
    "calls that were forgotten": (NINE, None, forgotten),
    "a clock that nobody looked at": (NINE, None, with_operations(Clock, lambda _: None)),
    # I10
    "a row with another text": ("I10 rows", False, with_row(text="other")),
    "a row with another usage": ("I10 rows", False, with_row(cost_usd=1.0)),
    "a row that is still running": ("I10 rows", False, with_row(outcome="running")),
    "no row": ("I10 rows", False, lambda run: replaced(run, rows=(run.rows or [])[1:])),
    "two rows": ("I10 rows", False, lambda run: replaced(run, rows=[*(run.rows or []), *(run.rows or [])[:1]])),
    "an acknowledgement before the commit": (
        "I10 rows",
        False,
        with_operations(Ack, lambda one: changed(invoked=ns(22.5))(one) if one.seq == END else one, "persistence"),
    ),
    "an acknowledgement of what was never committed": (
        "I10 rows",
        False,
        with_operations(
            Commit, lambda one: changed(outcome="info")(one) if f"{TENANT} {ANSWERED.turn}" in one.rows else one
        ),
    ),
    "persistence that is behind": (
        "I10 rows",
        False,
        with_rest(queues={GENERATORS: Queue(0, 0), PERSISTENCE: Queue(0, 1)}),
    ),
    "a queue that nobody asked about": ("I10 rows", None, with_rest(queues=None)),
    "a row of what is not in the log": (
        "I10 rows",
        False,
        with_log(lambda log: [one for one in log if subjects.parse(one.subject)[0] != ANSWERED]),
    ),
    "a database that nobody looked into": ("I10 rows", None, lambda run: replaced(run, rows=None)),
    # I11
    "what was seen is gone": (
        "I11 visibility",
        False,
        with_operations(Look, changed(status=404, outcome="fail", cursor=Seq(0))),
    ),
    "what was seen is less": ("I11 visibility", False, with_operations(Look, changed(cursor=Seq(4)))),
    "a cursor that was given is refused": (
        "I11 visibility",
        False,
        with_operations(
            Read, lambda one: changed(status=400, outcome="fail", frames=())(one) if one.cursor else one, "reader"
        ),
    ),
    "what was seen cannot be cancelled": (
        "I11 visibility",
        False,
        with_operations(Cancel, changed(status=404, outcome="fail")),
    ),
    "a look before the first one came back": (
        "I11 visibility",
        True,
        with_operations(Look, changed(invoked=ns(1), cursor=Seq(0))),
    ),
    "a turn that was deleted": (
        "I11 visibility",
        None,
        both(
            with_operations(Look, changed(status=404, outcome="fail", cursor=Seq(0))),
            also(Delete(tenant=TENANT, turn=ANSWERED.turn), "asker", 8),
            also(Delete(tenant=TENANT, turn=CANCELLED.turn), "asker", 8, number=1000),
        ),
    ),
    "nobody looked twice": ("I11 visibility", None, lambda run: replaced(run, operations=[])),
    # I12
    "an open file left behind": ("I12 resources", False, counted(21, 10**8)),
    "something new left behind": (
        "I12 resources",
        False,
        also(Census(subject="gateway", counts={"fds": 20, "rss_bytes": 10**8, "consumers": 1}), "census", 3600),
    ),
    "memory that grows": (
        "I12 resources",
        False,
        also(Census(subject="gateway", counts={"fds": 20, "rss_bytes": 2 * 10**8}), "census", 3600),
    ),
    "memory of a process that was started again": (
        "I12 resources",
        True,
        also(Census(subject="gateway", pid=2, counts={"fds": 20, "rss_bytes": 2 * 10**8}), "census", 3600),
    ),
    "memory that has just been taken": ("I12 resources", True, counted(20, 2 * 10**8)),
    "nobody counted twice": ("I12 resources", None, with_operations(Census, lambda one: None if one.invoked else one)),
    # I13
    "another tenant was refused": (
        "I13 isolation",
        False,
        with_operations(Ask, changed(status=429, outcome="fail", turn=None), "other"),
    ),
    "another tenant's reader was refused": (
        "I13 isolation",
        False,
        also(Read(tenant=TENANT, turn=ANSWERED.turn, status=503), "reader", 56, outcome="fail"),
    ),
    "the noisy tenant was refused": (
        "I13 isolation",
        True,
        also(Ask(tenant=Tenant("noisy"), status=429), "noisy", 56, outcome="fail"),
    ),
    "no noise": ("I13 isolation", None, with_operations(Noise, lambda _: None)),
    # I14
    "an acknowledgement before the end": (
        "I14 leases",
        False,
        with_operations(Ack, lambda one: changed(invoked=ns(21))(one) if one.consumer == GENERATORS else one),
    ),
    "an acknowledgement of what has no end": ("I14 leases", False, without(END)),
    "acknowledgements, and a clock that nobody looked at": ("I14 leases", None, with_operations(Clock, lambda _: None)),
    "nobody acknowledged": ("I14 leases", None, with_operations(Ack, lambda _: None)),
}


def test_a_sound_run_holds_every_invariant() -> None:
    """Nothing is false, and nothing that this run could show is unknown."""
    verdicts = judge(made.run())
    assert not_held(verdicts) == {}
    assert "\n".join(report(verdicts)).count("holds") == len(INVARIANTS)


def test_what_a_killed_process_left_of_its_look_at_the_log_is_no_turn() -> None:
    """A probe (PROTOCOL R68) that nobody could remove any more: it has no fence, and is owed no end."""
    run = made.run()
    probe = Logged(seq=Seq(run.log[-1].seq + 1), at=NOON, subject=subjects.probe(TurnId("probe")), payload="{}")
    assert not_held(judge(with_log(lambda log: [*log, probe])(run))) == {}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_run_broken_in_one_place_is_found_out(broken: str) -> None:
    """Each invariant says no, or unknown, to the one thing that breaks it; and yes to what only looks like it."""
    name, answer, break_it = BREAKS[broken]
    verdict = INVARIANTS[name](break_it(made.run()), Bounds())
    assert verdict.holds is answer, verdict
    assert verdict.evidence


@pytest.mark.parametrize("answer", [True, False, None])
def test_each_invariant_is_tried_with_every_answer(answer: bool | None) -> None:
    """A checker that has never said no has not been tested, nor has one that never said that it does not know."""
    tried = {name for name, said, _ in BREAKS.values() if said is answer}
    assert answer is True or tried == set(INVARIANTS)


def test_a_hedge_is_paid_for_where_generators_hedge() -> None:
    """First or not, it is one call more; and nowhere else (PROTOCOL R51)."""
    won = both(with_log(lambda log: taken_over(log, is_hedge=True)), also_called(over="aborted"))
    for hedged in (won, also_called(over="aborted")):
        run = hedged(made.run())
        assert INVARIANTS[NINE](run, Bounds(hedges=1)).holds is True
        assert INVARIANTS[NINE](run, Bounds()).holds is False
    twice = both(won, with_call(2, key=made._call_key(ANSWERED)))
    assert INVARIANTS[NINE](twice(made.run()), Bounds(hedges=1)).holds is False


def test_whatever_entry_is_lost_somebody_says_so() -> None:
    """Of the log of a run that was recorded whole, nothing can be taken away."""
    for logged in made.run().log:
        assert False in {verdict.holds for verdict in judge(without(logged.seq)(made.run())).values()}, logged


@given(logs())
def test_one_node_has_stored_nothing_invalid_and_three_may_have(log: MadeUp) -> None:
    """A fork is a violation where the fence is exact, and only counted where it is not (PROTOCOL R11)."""
    tails = [0, *(stored.seq for stored in log.stored)]
    logged = [
        Logged(
            seq=stored.seq,
            at=stored.at,
            subject=subjects.entry(ANSWERED, KINDS.get(type(stored.entry), "newer")),
            fence=tail,
            fence_subject=subjects.entries(ANSWERED),
            payload=msgspec.json.encode(stored.entry).decode() if not isinstance(stored.entry, Unreadable) else "",
        )
        for stored, tail in zip(log.stored, tails, strict=False)
    ]
    run = Run(log=logged)
    assert INVARIANTS["I1 order"](run, Bounds()).holds is (len(log.valid) == len(log.stored))
    assert INVARIANTS["I1 order"](with_rest(nodes=3)(run), Bounds()).holds is True
