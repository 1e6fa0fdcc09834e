"""Finds the turns of runs and threads, and what their clients read of them."""

import asyncio

from starlette.responses import Response

from tailrace.gateway.history_client import HistoryClient, close_record
from tailrace.gateway.http import sse
from tailrace.gateway.streaming.dialect import SOME_EVENTS, Dialect
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.gateway.streaming.response import Start
from tailrace.gateway.turns.idempotency_key import IDEMPOTENCY_KEY
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.proto.errors import Refused, TurnUnknown, not_found
from tailrace.proto.ids import Seq, TurnId, is_token
from tailrace.proto.nats import BlobStore, Claims, TurnLog
from tailrace.proto.ownership import Scope, ScopedKey, owned_key
from tailrace.proto.records import ListTurns, TurnRecord, record_from_fold
from tailrace.protocols.ag_ui.blocks import Answer
from tailrace.protocols.ag_ui.events import Json
from tailrace.protocols.ag_ui.messages import add_events, build_messages, build_page
from tailrace.protocols.ag_ui.stream import RUN, RunState, make_dialect, record_events, result_events, run_of
from tailrace.protocols.common.newest_branch import Branch, newest_branch

# After a restart, the database is behind the log for some seconds, and TanStack AI loads a thread only once.
BEHIND_S_MAX = 15.0
BEHIND_WAIT_S = 0.5


class Thread:
    """The newest branch of a thread, oldest turn first."""

    def __init__(self, branch: Branch) -> None:
        self.past = [close_record(turn) for turn in branch.turns[:-1]]
        self.newest = branch.turns[-1] if branch.turns else None
        self.decided = tuple(result_events(self.newest.turn, branch.decided)) if self.newest is not None else ()

    def page(self, run: str, *, is_active: bool = False) -> Json:
        """Returns the thread as a client of TanStack AI loads it. It streams the run that is active: `run`.

        `is_active`: whether it streams the newest run also after its end, to run its tools.
        """
        messages: list[Json] = []
        events: list[Json] = []
        for turn in [*self.past, *([self.newest] if self.newest is not None else [])]:
            messages += build_messages(turn.input, turn.turn)
            # A client streams the answer of a running turn.
            is_running = turn.outcome == "running" or (is_active and turn is self.newest)
            decided = self.decided if turn is self.newest else ()
            state = RunState(turn.turn, Answer(turn.turn), decided=decided)
            events = [] if is_running else record_events(state, turn)
            add_events(messages, events)
        active = {"runId": run} if self.newest is not None and not events else None
        pending = events[-1].get("outcome", {}).get("interrupts") if events else None
        waiting = {"runId": run, "pending": pending} if pending else None
        return {"messages": build_page(messages), "activeRun": active, "interrupts": waiting}

    def dialect(self, *, is_1: bool, has_reasoning: bool) -> Dialect:
        """Returns the dialect that renders the newest turn behind all others. It drops the messages of the client.

        HttpAgent keeps its reasoning messages unless the snapshot has one: `has_reasoning`.
        """
        shown: list[Json] = []
        for turn in self.past:
            shown += record_events(RunState(turn.turn, Answer(turn.turn), is_1, ()), turn)
        reset = ({"id": "reasoning", "role": "reasoning", "content": ""},) if has_reasoning else ()
        variant = " ".join(["thread", str(has_reasoning), *(one["toolCallId"] for one in self.decided)])
        return make_dialect(variant, is_1=is_1, reset=reset, before=tuple(shown), decided=self.decided)


async def name_run(claims: Claims, scope: Scope, turn: TurnRecord) -> str:
    """Returns the id by which `find_run` finds a turn: a turn that decisions have started has the metadata of the turn
    before. Raises LogUnavailable."""
    run = run_of(turn.turn, turn.metadata)
    claim = await claims.find(scope.tenant, owned_key(scope, run))
    return run if claim is not None and claim.turn == turn.turn else turn.turn


async def read_thread(
    streams: StreamContext, steps: OptionalSteps, blob_store: BlobStore, scope: Scope, thread: str
) -> Thread:
    """Returns the newest branch of a thread; an unknown thread has no turns yet. Waits for the database.

    Raises Refused if it is too large, or the database does not answer.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BEHIND_S_MAX
    while True:
        try:
            return Thread(await newest_branch(streams, steps, blob_store, scope, thread))
        except Refused as refused:
            if refused.code == "session_not_found":
                return Thread(Branch([], []))
            if refused.code != "persistence_unavailable" or loop.time() > deadline:
                raise
        await asyncio.sleep(BEHIND_WAIT_S)


async def connect(thread: Thread, scope: Scope, *, is_1: bool, has_reasoning: bool) -> Start | None:
    """Returns the start of a stream of the whole thread; None if it has no turns."""
    if thread.newest is None:
        return None
    # In a thread: long conversations take a while.
    dialect = await asyncio.to_thread(thread.dialect, is_1=is_1, has_reasoning=has_reasoning)
    return Start(ScopedKey(scope, thread.newest.turn), dialect=dialect)


async def find_run(log: TurnLog, claims: Claims, history: HistoryClient, scope: Scope, run: str) -> ScopedKey:
    """Returns the turn of a run, whose id may also be that of the turn. Raises Refused, LogUnavailable."""
    if IDEMPOTENCY_KEY.fullmatch(run) is None:
        raise not_found("turn")
    if (claim := await claims.find(scope.tenant, owned_key(scope, run))) is not None:
        return ScopedKey(scope, claim.turn)
    key = ScopedKey(scope, TurnId(run))
    if is_token(run) and await log.has_turn(key):
        return key
    # The claim is kept for a day.
    if found := (await history.query(scope, ListTurns(labels={f"metadata.{RUN}": run}, limit=1))).turns:
        return ScopedKey(scope, found[0].turn)
    raise not_found("turn")


async def end_again(log: TurnLog, key: ScopedKey, cursor: Seq, part: int, dialect: Dialect) -> Response | None:
    """Returns a response with the last event of a run to a client that has received it; None if it has not.

    If a connection breaks after this event, TanStack AI resumes, and takes an empty response for an error. It drops
    an event with a known id. Raises LogUnavailable.
    """
    if (seq := log.restores.find(cursor)) is None or 0 < part < SOME_EVENTS:
        return None
    try:
        turn = await log.read_turn(key)
        # The run may have gone on in a turn that steered it.
        while turn.chain.last < seq and turn.end is not None and turn.end.successor is not None:
            key = ScopedKey(key.scope, turn.end.successor)
            turn = await log.read_turn(key)
    except TurnUnknown:
        return None
    if turn.end is None or turn.chain.last != seq or turn.end.successor is not None:
        return None
    last = dialect.render_record(record_from_fold(key.plain, turn), 0).events[-1]
    event = last._replace(leading_id=b"%d-%d" % (cursor, max(part, SOME_EVENTS)))
    return Response(sse.encode((event,)), headers={"content-type": sse.MEDIA_TYPE, **sse.HEADERS})
