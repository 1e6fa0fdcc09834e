"""Invariants of the responses that clients received. Pure functions."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from math import inf

import msgspec

from tailrace.gateway.turns.idempotency_key import AUTO
from tailrace.proto.ids import Seq, Tenant, TurnKey
from tests import promises
from tests.checker import expected_answer
from tests.checker.history import Cancel, Delete, Get, GetBatch, Overload, Post, Read, Results, Steer
from tests.checker.run import Run
from tests.checker.verdicts import Bounds, combine, unknown, violation
from tests.promises import Reader, Verdict

Request = Post | Steer | Read | Get | Cancel | GetBatch | Results
INTERNAL = 500
NOT_FOUND = 404
TOO_MANY = 429
KEY_REUSED = 422


def readers(run: Run, _: Bounds) -> Verdict:
    """I6: a reader receives the valid entries after its cursor, in order, with their bytes, once (promises 1, 2, 4)."""
    every = [(key, reader) for key, some in run.readers.items() if key not in run.deleted_turns for reader in some]
    return combine(len(every), "readers", (bad for key, reader in every for bad in _reader_problems(run, key, reader)))


def _reader_problems(run: Run, key: TurnKey, reader: Reader) -> Iterator[Verdict]:
    turn = run.turns.get(key)
    if turn is None:
        yield unknown(f"{reader.name} read {key.turn}, which is not in the log")
        return
    valid = {stored.seq for stored in turn.valid}
    for frame in reader.frames:
        if frame.seq not in valid:
            position = run.positions.get(frame.seq)
            if position is None:
                yield violation(f"{reader.name} received {frame.seq} of {key.turn}, which is not in the log")
            else:
                why = "which is not valid" if position.key == key else f"which belongs to {position.key.turn}"
                yield violation(f"{reader.name} received {frame.seq} of {key.turn}, {why}", position.message)
            return
    one = msgspec.structs.replace(run.history(key), readers=(reader,))
    story = promises.compare_reader(one, reader, run.folds[key])
    yield promises.worst([promises.no_repeat(one), promises.no_gap(one), story])


def idempotency(run: Run, _: Bounds) -> Verdict:
    """I7: one idempotency key is one turn with one body; another body is refused; another key is another turn.

    This includes POSTs without a response: the log has no more turns with one question than keys were sent with it.
    """
    posts = [post for post in run.of(Post) if post.idempotency_key != AUTO and post.returned is not None]
    keyed = [post for post in posts if post.idempotency_key is not None]
    return combine(len(keyed), "POSTs with a key", chain(_key_problems(posts), _duplicate_turns(run)))


def _duplicate_turns(run: Run) -> Iterator[Verdict]:
    posts: dict[tuple[Tenant | None, str], list[Post]] = defaultdict(list)
    for post in run.of(Post):
        if post.outcome != "fail":
            posts[post.tenant, post.question].append(post)
    turns: dict[tuple[Tenant | None, str], list[TurnKey]] = defaultdict(list)
    for key, turn in run.folds.items():
        if turn.request is not None:
            turns[key.tenant, expected_answer.question_of(turn.request)].append(key)
    for question, some in posts.items():
        keys = {post.idempotency_key for post in some}
        # Without a key each POST is a turn, and with `auto` a POST without a response may be one.
        if not keys & {None, AUTO} and len(turns[question]) > len(keys):
            names = ", ".join(key.turn for key in turns[question])
            yield violation(f"{len(keys)} keys made {len(turns[question])} turns: {names}", *some[:2])


def _key_problems(posts: Sequence[Post]) -> Iterator[Verdict]:
    first_with_key: dict[tuple[Tenant | None, str], Post] = {}
    first_of_turn: dict[TurnKey, Post] = {}
    for post in posts:
        if post.outcome != "ok" or post.key is None:
            continue
        other = first_of_turn.setdefault(post.key, post)
        if other is not post and (post.idempotency_key is None or other.idempotency_key != post.idempotency_key):
            yield violation(f"two independent POSTs were answered with {post.turn}", other, post)
        if post.idempotency_key is not None:
            first = first_with_key.setdefault((post.tenant, post.idempotency_key), post)
            if first.turn != post.turn:
                yield violation(f"one key, two turns: {first.turn} and {post.turn}", first, post)
            if first.body_sha256 != post.body_sha256:
                yield violation(f"a different body was accepted for {post.turn}", first, post)
    for post in posts:
        if post.status == KEY_REUSED and post.idempotency_key is not None:
            first_post = first_with_key.get((post.tenant, post.idempotency_key))
            if first_post is not None and first_post.body_sha256 == post.body_sha256:
                yield violation("the same body was refused as a different one", first_post, post)


def steers(run: Run, _: Bounds) -> Verdict:
    """I20: an accepted message is in the conversation once, after the steered turn, and one turn follows each turn.

    The `end` of a steered turn names the turn that follows it (PROTOCOL R137).
    """
    accepted = [one for one in run.of(Steer) if one.outcome == "ok" and one.key not in run.deleted_turns]
    return combine(len(accepted), "steers", _steer_problems(run, accepted))


def _steer_problems(run: Run, accepted: Sequence[Steer]) -> Iterator[Verdict]:
    said: dict[tuple[Tenant, str], list[TurnKey]] = defaultdict(list)
    following: dict[TurnKey, list[TurnKey]] = defaultdict(list)
    for key, turn in run.folds.items():
        if turn.request is not None:
            said[key.tenant, expected_answer.question_of(turn.request)].append(key)
            if turn.request.is_queued and turn.request.parent is not None:
                following[key._replace(turn=turn.request.parent)].append(key)
    for steer in accepted:
        found = said[steer.tenant, steer.question] if steer.tenant is not None else []
        if found != [steer.key]:
            names = ", ".join(key.turn for key in found) or "no turn"
            yield violation(f"{steer.question!r} was accepted as {steer.turn}, and {names} has it", steer)
        elif steer.steered not in run.turns_before(found[0]):
            yield violation(f"{steer.turn} does not follow {steer.steered}, which it steers", steer)
    steers = {steer.key for steer in accepted}
    for key, after in following.items():
        if len(after) > 1 and not steers.isdisjoint(after):
            yield violation(f"several turns follow {key.turn}: {', '.join(one.turn for one in after)}")
    for key, turn in run.folds.items():
        if (end := turn.end) is None or end.successor is None:
            continue
        if key._replace(turn=end.successor) not in following[key]:
            yield violation(f"readers of {key.turn} go on into {end.successor}, which does not follow it", end)


def visibility(run: Run, _: Bounds) -> Verdict:
    """I11: what a client has seen of a turn stays visible to it at every gateway, and that it exists to all clients."""
    requests = [
        one for one in run.operations if isinstance(one, Request) and one.key and one.key not in run.deleted_turns
    ]
    sessions: dict[tuple[str, TurnKey], list[Request]] = defaultdict(list)
    for request in requests:
        if request.key is not None:
            sessions[request.process, request.key].append(request)
    several = [session for session in sessions.values() if len(session) > 1]
    problems = chain(_missing_turns(requests), *map(_visibility_problems, several))
    return combine(len(several), "clients with several requests", problems)


def _missing_turns(requests: Sequence[Request]) -> Iterator[Verdict]:
    """Yields requests of any client that did not find a turn which an earlier response had shown."""
    shown: dict[TurnKey | None, Request] = {}
    for request in sorted(requests, key=lambda one: one.returned or inf):
        if _last_seen(request) >= 0:
            shown.setdefault(request.key, request)
    for request in requests:
        first = shown.get(request.key)
        if request.status == NOT_FOUND and first is not None and (first.returned or inf) <= request.invoked:
            yield violation(f"{request.process} did not find {request.turn}, which exists", first, request)


def _visibility_problems(session: Sequence[Request]) -> Iterator[Verdict]:
    """Yields the problems of one client with one turn; `session` is in the order of `invoked`."""
    by_return = sorted((one for one in session if one.returned is not None), key=lambda one: one.returned or 0)
    position, seen, seen_in = 0, Seq(-1), None
    for operation in session:
        while position < len(by_return) and (by_return[position].returned or 0) <= operation.invoked:
            if (reached := _last_seen(by_return[position])) > seen:
                seen, seen_in = reached, by_return[position]
            position += 1
        if seen_in is None:
            continue
        name, turn = operation.process, operation.turn
        if isinstance(operation, Get) and operation.outcome == "ok" and operation.cursor < seen:
            yield violation(f"{name} had seen {seen} of {turn}, and then {operation.cursor}", seen_in, operation)
        elif isinstance(operation, Read) and operation.status == 400 and 0 < operation.cursor <= seen:
            yield violation(f"{name} was refused a cursor that it had received", seen_in, operation)


def _last_seen(operation: Request) -> Seq:
    """The last entry that the operation has shown; 0 if only that the turn exists, -1 if nothing."""
    if operation.outcome != "ok":
        return operation.frames[-1].seq if isinstance(operation, Read) and operation.frames else Seq(-1)
    match operation:
        case Read(frames=frames):
            return frames[-1].seq if frames else Seq(0)
        case Get(cursor=cursor):
            return cursor
        case _:
            return Seq(0)


def isolation(run: Run, bounds: Bounds) -> Verdict:
    """I13: while one tenant exceeds its limits and is refused, the requests of other tenants succeed."""
    refused = [post for post in run.of(Post) if post.status == TOO_MANY]
    overloads = [one for one in run.of(Overload) if any(_is_during(post, one, one.tenant) for post in refused)]
    others = [
        one
        for one in run.operations
        if isinstance(one, Request)
        and any(one.tenant != overload.tenant and _is_during(one, overload, one.tenant) for overload in overloads)
    ]
    failed = [
        one for one in others if one.outcome != "ok" and (one.status in (None, TOO_MANY) or (one.status or 0) >= 500)
    ]
    problems = []
    if len(failed) > (1 - bounds.success) * len(others):
        problems.append(violation(f"{len(failed)} of {len(others)} requests of other tenants failed", *failed[:2]))
    return combine(len(others), "requests beside an overload", problems)


def _is_during(one: Request, overload: Overload, tenant: Tenant | None) -> bool:
    return one.tenant == tenant and overload.invoked <= one.invoked <= (overload.returned or one.invoked)


def errors(run: Run, _: Bounds) -> Verdict:
    """I15: no request fails with an unexpected error of the gateway."""
    answered = [one for one in run.operations if isinstance(one, Request | Delete) and one.status is not None]
    problems = (violation(f"{one.process} received 500", one) for one in answered if one.status == INTERNAL)
    return combine(len(answered), "responses", problems)
