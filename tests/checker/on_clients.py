"""Invariants of what clients were told. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

import msgspec

from tailrace.gateway.turns.auto_idempotency import AUTO
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.subjects import TurnKey
from tests import promises
from tests.checker import oracle
from tests.checker.bounds import Bounds
from tests.checker.history import Ask, Cancel, Done, Look, Noise, Read
from tests.checker.run import Run
from tests.checker.verdict import broken, unknown, verdict
from tests.promises import Reader, Verdict

TOO_MANY = 429
KEY_REUSED = 422


def readers(run: Run, _: Bounds) -> Verdict:
    """I6: a reader is given the valid entries after its cursor, in order, byte for byte, once (promises 1, 2, 4)."""
    every = [(key, reader) for key, some in run.readers.items() if key not in run.deleted for reader in some]
    return verdict(len(every), "readers", (bad for key, reader in every for bad in _misread(run, key, reader)))


def _misread(run: Run, key: TurnKey, reader: Reader) -> Iterator[Verdict]:
    entered = run.turns.get(key)
    if entered is None:
        yield unknown(f"{reader.name} read {key.turn}, of which the log has nothing")
        return
    due = {stored.seq for stored in entered.valid}
    for frame in reader.frames:
        if frame.seq not in due:
            place = run.places.get(frame.seq)
            if place is None:
                yield broken(f"{reader.name} was given {frame.seq} of {key.turn}, where nothing stands")
            else:
                why = "which is not valid" if place.key == key else f"which is of {place.key.turn}"
                yield broken(f"{reader.name} was given {frame.seq} of {key.turn}, {why}", place.logged)
            return
    one = msgspec.structs.replace(run.history(key), readers=(reader,))
    told = promises.same_told(one, reader, run.folds[key])
    for kept in (promises.no_repeat(one), promises.no_gap(one), told):
        if kept.holds is not True:
            yield kept
            return


def idempotency(run: Run, _: Bounds) -> Verdict:
    """I7: one key is one turn, asked with one body; another body is refused; what has other keys is another turn.

    Also of what was never answered: the log has no more turns that ask the same than there were keys to ask it.
    """
    asks = [ask for ask in run.of(Ask) if ask.idempotency_key != AUTO and ask.returned is not None]
    keyed = [ask for ask in asks if ask.idempotency_key is not None]
    return verdict(len(keyed), "POSTs with a key", chain(_mistaken(asks), _asked_twice(run)))


def _asked_twice(run: Run) -> Iterator[Verdict]:
    asks: dict[tuple[Tenant | None, str], list[Ask]] = defaultdict(list)
    for ask in run.of(Ask):
        if ask.outcome != "fail":
            asks[ask.tenant, ask.question].append(ask)
    turns: dict[tuple[Tenant | None, str], list[TurnKey]] = defaultdict(list)
    for key, turn in run.folds.items():
        if turn.request is not None:
            turns[key.tenant, oracle.question_of(turn.request)].append(key)
    for what, some in asks.items():
        keys = {ask.idempotency_key for ask in some}
        # Without a key each POST is a turn, and `auto` is as many as come to nothing.
        if not keys & {None, AUTO} and len(turns[what]) > len(keys):
            names = ", ".join(key.turn for key in turns[what])
            yield broken(f"{len(keys)} keys, and in the log {len(turns[what])} turns: {names}", *some[:2])


def _mistaken(asks: Sequence[Ask]) -> Iterator[Verdict]:
    first_of: dict[tuple[Tenant | None, str], Ask] = {}
    asked_by: dict[TurnKey, Ask] = {}
    for ask in asks:
        if ask.outcome != "ok" or ask.key is None:
            continue
        other = asked_by.setdefault(ask.key, ask)
        if other is not ask and (ask.idempotency_key is None or other.idempotency_key != ask.idempotency_key):
            yield broken(f"{ask.turn} was given to two who asked apart", other, ask)
        if ask.idempotency_key is not None:
            first = first_of.setdefault((ask.tenant, ask.idempotency_key), ask)
            if first.turn != ask.turn:
                yield broken(f"one key, two turns: {first.turn} and {ask.turn}", first, ask)
            if first.body_sha256 != ask.body_sha256:
                yield broken(f"another body was taken for the turn {ask.turn}", first, ask)
    for ask in asks:
        if ask.status == KEY_REUSED and ask.idempotency_key is not None:
            first_ask = first_of.get((ask.tenant, ask.idempotency_key))
            if first_ask is not None and first_ask.body_sha256 == ask.body_sha256:
                yield broken("the same body was refused as another one", first_ask, ask)


def visibility(run: Run, _: Bounds) -> Verdict:
    """I11: what a client has seen of a turn does not go away again, whichever gateway it asks next."""
    sessions: dict[tuple[str, TurnKey], list[Done]] = defaultdict(list)
    for operation in run.operations:
        is_look = isinstance(operation, Ask | Read | Look | Cancel)
        if is_look and operation.key is not None and operation.key not in run.deleted:
            sessions[operation.process, operation.key].append(operation)
    several = [session for session in sessions.values() if len(session) > 1]
    return verdict(len(several), "clients that looked twice", (bad for one in several for bad in _unseen(one)))


def _unseen(session: Sequence[Done]) -> Iterator[Verdict]:
    """Of operations of one client on one turn, by when they were invoked."""
    by_return = sorted((one for one in session if one.returned is not None), key=lambda one: one.returned or 0)
    position, seen, at = 0, Seq(-1), None
    for operation in session:
        while position < len(by_return) and (by_return[position].returned or 0) <= operation.invoked:
            if (reached := _seen(by_return[position])) > seen:
                seen, at = reached, by_return[position]
            position += 1
        if at is None or not isinstance(operation, Look | Read | Cancel):
            continue
        if operation.status == 404:
            yield broken(f"{operation.process} had seen {operation.turn}, and then it was not there", at, operation)
        elif isinstance(operation, Look) and operation.outcome == "ok" and operation.cursor < seen:
            yield broken(
                f"{operation.process} had seen {seen} of {operation.turn}, and then {operation.cursor}", at, operation
            )
        elif isinstance(operation, Read) and operation.status == 400 and 0 < operation.cursor <= seen:
            yield broken(f"{operation.process} was refused the cursor that it was given", at, operation)


def _seen(operation: Done) -> Seq:
    """How far a client has seen a turn by this; 0: that it is there, -1: nothing."""
    if operation.outcome != "ok":
        return operation.frames[-1].seq if isinstance(operation, Read) and operation.frames else Seq(-1)
    match operation:
        case Read(frames=frames):
            return frames[-1].seq if frames else Seq(0)
        case Look(cursor=cursor):
            return cursor
        case _:
            return Seq(0)


def isolation(run: Run, bounds: Bounds) -> Verdict:
    """I13: while one tenant asks for more than it may, the others are answered as ever, whatever they ask."""
    noises = run.of(Noise)
    others = [
        one
        for one in run.operations
        if isinstance(one, Ask | Read | Look | Cancel)
        and any(
            one.tenant != noise.tenant and noise.invoked <= one.invoked <= (noise.returned or one.invoked)
            for noise in noises
        )
    ]
    bad = [
        one for one in others if one.outcome != "ok" and (one.status in (None, TOO_MANY) or (one.status or 0) >= 500)
    ]
    problems = []
    if len(bad) > (1 - bounds.success) * len(others):
        problems.append(broken(f"{len(bad)} of {len(others)} requests of others were not taken", *bad[:2]))
    return verdict(len(others), "requests beside a noisy tenant", problems)
