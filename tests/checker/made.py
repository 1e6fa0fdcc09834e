"""A sound run, made by hand: two turns, one answered and one cancelled, and everything that anybody saw of them."""

from datetime import timedelta
from typing import Any

import msgspec

from tailrace.deploy.simulated_claude.account import AccountReport, Call
from tailrace.proto import entries, subjects
from tailrace.proto.entries import Message, Stored
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, TurnKey
from tests.checker import oracle
from tests.checker.history import (
    Ack,
    Append,
    Ask,
    Cancel,
    Census,
    Clock,
    Commit,
    Done,
    Look,
    Noise,
    Operation,
    Outcome,
    Read,
    digest,
)
from tests.checker.run import EPOCH, NS_PER_S, Logged, Queue, Rest, Row, Run
from tests.harness import readers
from tests.harness.generator_in_loop import words
from tests.harness.turn_builder import NOON, Handwritten, closing, opening, request

TENANT = Tenant("local")
ANSWERED = TurnKey(TENANT, TurnId("answered"))
CANCELLED = TurnKey(TENANT, TurnId("cancelled"))
QUESTIONS = {ANSWERED: "#sim words=4 tag=a", CANCELLED: "#sim words=9 tag=c"}


def run() -> Run:
    """Sequences are seconds since noon, by both clocks: entry 7 was stored at 7 s."""
    answered, cancelled = _answered(), _cancelled()
    log = _log({ANSWERED: answered, CANCELLED: cancelled})
    rows = [
        Row(TENANT, record_from_fold(key, fold(stored)))
        for key, stored in ((ANSWERED, answered), (CANCELLED, cancelled))
    ]
    return Run(operations=_operations(log, answered), log=log, rows=rows, rest=_rest(log))


def _answered() -> list[Stored]:
    """Every second sequence from 2 on."""
    log = Handwritten(step=2)
    log.ask(messages=[Message("user", QUESTIONS[ANSWERED])])
    log.take()
    log.hear(*opening())
    log.say(*_pieces("a", 4))
    log.hear(*closing(4))
    log.end()
    return log.stored


def _cancelled() -> list[Stored]:
    """Every second one from 21 on, between those of the other."""
    log = Handwritten(step=2)
    before = Stored(Seq(19), NOON, entries.Unreadable())
    log.stored.append(before)
    log.ask(messages=[Message("user", QUESTIONS[CANCELLED])])
    log.take()
    log.hear(*opening())
    log.say(*_pieces("c", 9)[:3])
    log.end("cancelled")
    log.stored.remove(before)
    return log.stored


def _pieces(tag: str, count: int) -> list[str]:
    return [f"{' ' if number else ''}{word}" for number, word in enumerate(words(count, tag).split())]


def _log(turns: dict[TurnKey, list[Stored]]) -> list[Logged]:
    log = [
        Logged(
            seq=stored.seq,
            at=NOON + timedelta(seconds=stored.seq),
            subject=subjects.entry(key, entries.kind_of(stored.entry)),
            fence=getattr(stored.entry, "prev", 0),
            fence_subject=subjects.entries(key),
            payload=entries.encode(stored.entry).decode(),
        )
        for key, some in turns.items()
        for stored in some
    ]
    return sorted(log, key=lambda one: one.seq)


def _rest(log: list[Logged]) -> Rest:
    calls = [
        Call(1, _call_key(ANSWERED), QUESTIONS[ANSWERED], 0, ns(5), ns(19), "whole", 4),
        Call(2, _call_key(CANCELLED), QUESTIONS[CANCELLED], 0, ns(24), ns(36), "aborted", 3),
    ]
    queues = {GENERATORS: Queue(0, 0), PERSISTENCE: Queue(0, 0)}
    return Rest(account=AccountReport(calls, 0), queues=queues, collected=ns(log[-1].seq + 100))


def _call_key(key: TurnKey) -> str:
    return oracle.call_key(request(messages=[Message("user", QUESTIONS[key])])) or ""


def _operations(log: list[Logged], answered: list[Stored]) -> list[Operation]:
    shown = readers.rendered(ANSWERED, answered)
    end, last = answered[-1].seq, log[-1].seq
    made: list[Operation] = [
        _done("clock", 0, 0, Clock(wall=(NOON - EPOCH) // timedelta(microseconds=1) * 1000)),
        _census(0),
        _asked("asker", 1, ANSWERED, "key"),
        _asked("asker", 3, ANSWERED, "key"),
        _done("asker", 4, 4.5, Ask(tenant=TENANT, idempotency_key="key", body_sha256="other", status=422), "fail"),
        _asked("asker", 20, CANCELLED, None),
        _read("reader", 6, ANSWERED, Read(frames=shown[:3], over="cut")),
        _done("reader", 9, 9.5, _of(ANSWERED, Look(cursor=shown[2].seq, status=200))),
        _read("reader", 12, ANSWERED, Read(cursor=shown[2].seq, frames=shown[3:], over="ended")),
        _read("listener", 12, ANSWERED, Read(dialect="text", text=words(4, "a"), over="ended")),
        _done("asker", 34.5, 35.5, _of(CANCELLED, Cancel(status=200))),
        _done("noisy", 50, 60, Noise(tenant=Tenant("noisy"))),
        _asked("other", 55, ANSWERED, "key"),
        *_appends(log),
        *_recorded(end, ANSWERED),
        *_recorded(last, CANCELLED),
        _census(last + 50),
    ]
    numbered = [msgspec.structs.replace(one, number=number) for number, one in enumerate(made)]
    return sorted(numbered, key=lambda one: one.invoked)


def _appends(log: list[Logged]) -> list[Operation]:
    """By the gateway what it appends, by a generator the rest."""
    made: list[Operation] = []
    for one in log:
        key, kind = subjects.parse(one.subject)
        is_gateways = kind == "request" or (kind == "end" and key == CANCELLED)
        append = Append(kind=kind, prev=Seq(one.fence or 0), sha256=digest(one.bytes), seq=one.seq)
        made.append(_done("gateway" if is_gateways else "g1", one.seq - 0.1, one.seq + 0.1, _of(key, append)))
    return made


def _recorded(end: Seq, key: TurnKey) -> list[Operation]:
    """Committed a second after its end, and acknowledged by both after that."""
    request_seq = Seq(2 if key == ANSWERED else 21)
    return [
        _done("persistence", end + 1, end + 1.1, Commit(rows={f"{key.tenant} {key.turn}": end})),
        _done("persistence", end + 1.2, end + 1.3, _of(key, Ack(consumer=PERSISTENCE, seq=request_seq))),
        _done("persistence", end + 1.4, end + 1.5, _of(key, Ack(consumer=PERSISTENCE, seq=end))),
        _done("g1", end + 0.3, end + 0.4, _of(key, Ack(consumer=GENERATORS, seq=request_seq))),
    ]


def _census(at: float) -> Any:
    return _done("census", at, at, Census(subject="gateway", counts={"fds": 20, "rss_bytes": 10**8}))


def _asked(process: str, at: float, key: TurnKey, idempotency_key: str | None) -> Any:
    ask = Ask(question=QUESTIONS[key], body_sha256="body", idempotency_key=idempotency_key, status=202)
    return _done(process, at, at + 1.5, _of(key, ask))


def _read(process: str, at: float, key: TurnKey, read: Read) -> Any:
    return _done(process, at, at + 2, _of(key, msgspec.structs.replace(read, status=200)))


def _of(key: TurnKey, operation: Any) -> Any:
    return msgspec.structs.replace(operation, tenant=key.tenant, turn=key.turn)


def _done(process: str, invoked_s: float, returned_s: float, operation: Any, outcome: Outcome = "ok") -> Any:
    assert isinstance(operation, Done)
    return msgspec.structs.replace(
        operation, process=process, invoked=ns(invoked_s), returned=ns(returned_s), outcome=outcome
    )


def ns(at_s: float) -> int:
    return int(at_s * NS_PER_S)
