"""A generator that takes steps where the product's awaits: it carries a turn by the same plan, fold, outbox and append.

What is its own here is the order in which generators/attempt.py and generators/worker.py do it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from tailrace.generators.attempt import stored
from tailrace.generators.budget import closing
from tailrace.generators.continuation import Continuation, map_continuation
from tailrace.generators.delta_buffer import DeltaBuffer, Outgoing
from tailrace.generators.failover import BackendOrders, Source
from tailrace.generators.hedging import is_due, is_first
from tailrace.generators.plan import (
    Acknowledge,
    CheckSchema,
    Complete,
    CutOff,
    Fail,
    LeaveToBatch,
    MakeAttempt,
    hedge,
    plan,
    plan_after_check,
)
from tailrace.proto.chain import Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Attempt, End, Entry, Event, Failure, Outcome, Stored
from tailrace.proto.errors import BackendError, FenceLost, LogError, LogFull, TurnUnknown
from tailrace.proto.fold import Turn, fold
from tailrace.proto.ids import Seq
from tailrace.proto.nats import step
from tailrace.proto.nats.append import append
from tailrace.proto.nats.replay import folded_now, folded_upto
from tailrace.proto.nats.step import Steps
from tailrace.proto.nats.turn_log import APPEND_TIMEOUT_S
from tailrace.proto.subjects import TurnKey
from tests.schedules import answers
from tests.schedules.process import Process
from tests.schedules.stream import Stream

ATTEMPTS_MAX = 4
FULL_WAIT_S = 1.0
HEDGE_AFTER_S = 0.2
ORDERS = BackendOrders((Source("claude"), Source("bedrock")))
# What a model's stream breaks off with; the last one is final for a turn that nobody has begun to answer.
BREAKS = ("backend_unreachable", "backend_overloaded", "backend_broken", "backend_refused_request")


class Broken(Exception):
    """What nobody has thought of: the turn has broken its generator, which lives on."""


class Raced(NamedTuple):
    """A call beside which another is made: who has a token first has the turn."""

    late: Seq
    """The attempt of whoever was first to call."""
    attempt: int
    """That of the call here."""


class Worker(Process):
    """One generator: it carries a turn while it holds a delivery, and says afterwards whether to acknowledge."""

    def __init__(self, stream: Stream, key: TurnKey, script: answers.Script, name: str) -> None:
        super().__init__(stream, name)
        self.key = key
        self.script = script
        self.calls = 0
        self.hedges = 0
        """Of these calls, those that were made beside another's."""
        self.ask_for_hedge: Callable[[Worker, Seq], None] = _nobody
        """Told that the attempt at that sequence has no token yet, and whose it is."""
        self.acknowledged: list[Chain] = []
        """Of each append that was told to stand, the chain with it."""
        self._is_attempting = False
        self._raced: Raced | None = None

    def is_born_again(self) -> None:
        """No two processes ever share a name."""
        self.name += "'"
        self._is_attempting = False
        self._raced = None
        self.frozen_until_s = 0.0

    def hear(self, heard: Stored) -> None:
        """Stops the attempt when somebody else ends the turn, also while the model is silent; or has won the race."""
        if not self._is_attempting or not self.is_busy or self.is_frozen:
            return
        if isinstance(heard.entry, End):
            self._stop("ended by somebody else")
        elif self._raced is not None and heard.entry.prev == self._raced.late:
            if not is_first(heard.entry, self._raced.attempt, self.name):
                self._stop("another call was first")
            self._raced = None

    def _stop(self, why: str) -> None:
        self._is_attempting = False
        self.raise_in(FenceLost(why))

    def work(self, late: Seq | None = None) -> Steps[bool]:
        """Carries the turn; whether its delivery is to be acknowledged (PROTOCOL R17).

        With `late`: makes a call beside that of the attempt there, and carries the turn if it has a token first.
        """
        try:
            turn = yield from self._carry() if late is None else self._hedge(late)
        except FenceLost:
            return (yield from self._was_ended())
        except TurnUnknown:
            return True
        except (LogError, Broken):
            return False
        finally:
            self._is_attempting = False
            self._raced = None
        return turn.end is not None

    def _was_ended(self) -> Steps[bool]:
        try:
            turn = yield from folded_now(self.key, now=self.world.now)
        except LogError:
            return False
        return turn.end is not None

    def _carry(self) -> Steps[Turn]:
        turn = yield from folded_now(self.key, now=self.world.now)
        return (yield from self._to_the_end(turn))

    def _hedge(self, late: Seq) -> Steps[Turn]:
        turn = yield from folded_upto(self.key, late, now=self.world.now)
        if turn.chain != Chain(late, turn.attempt):
            raise FenceLost("it is not waited for any more")
        return (yield from self._to_the_end(turn, first=hedge(turn)))

    def _to_the_end(self, turn: Turn, first: MakeAttempt | None = None) -> Steps[Turn]:
        assert turn.request is not None
        rota = ORDERS.of(turn.request.model, turn.backend)
        while True:
            next_, first = first or self._next(turn), None
            match next_:
                case Acknowledge():
                    return turn
                case Complete(schema_valid):
                    return (yield from self._end(turn, "completed", schema_valid=schema_valid))
                case CutOff():
                    outbox = DeltaBuffer()
                    for event in closing(turn):
                        outbox.put(event)
                    turn = yield from self._write(turn, outbox, iter(()), None)
                case Fail(failure):
                    return (yield from self._end(turn, "failed", failure))
                case MakeAttempt() as go:
                    turn, broken = yield from self._attempt(turn, go, rota.now)
                    if turn.attempt < go.attempt:
                        # A hedge that came to nothing.
                        return turn
                    if broken is None:
                        continue
                    after = rota.after(broken, has_begun=turn.message is not None)
                    if after is None:
                        return (yield from self._end(turn, "failed", Failure(broken.code, broken.message)))
                    rota = after

    def _next(self, turn: Turn) -> Acknowledge | Complete | CutOff | Fail | MakeAttempt:
        next_ = plan(turn, ATTEMPTS_MAX)
        if isinstance(next_, CheckSchema):
            return plan_after_check(turn, answers.misfit(self.script, turn), ATTEMPTS_MAX)
        # None of these turns is in a batch of another's.
        assert not isinstance(next_, LeaveToBatch)
        return next_

    def _attempt(self, turn: Turn, go: MakeAttempt, source: Source) -> Steps[tuple[Turn, BackendError | None]]:
        request = turn.request
        assert request is not None
        taken = Attempt(
            prev=turn.chain.last,
            attempt=go.attempt,
            generator=self.name,
            backend=source.backend,
            mode=go.mode,
            misfit=go.misfit,
            is_hedge=go.is_hedge,
        )
        if not go.is_hedge:
            chain = yield from self._append(turn.chain, taken)
            turn = fold([stored(chain, turn, taken)], turn)
        is_raced = self.stream.faults.is_hedged and (go.is_hedge or is_due(go, source))
        continuation = map_continuation(request, turn) if go.mode == "continue" else None
        said = answers.call(self.script, turn, go.mode)
        self.calls += 1
        self.hedges += go.is_hedge
        self.world.tell(self.name, f"calls the model, {go.mode}{', beside another' if go.is_hedge else ''}")
        if not self.stream.is_kind and self.calls in self.stream.faults.breaks:
            self.stream.done.append("broken generator")
            raise Broken
        broken = None
        if not self.stream.is_kind and self.world.chance() < self.stream.faults.broken:
            said = said[: self.world.below(len(said))]
            broken = BackendError(BREAKS[self.world.below(len(BREAKS))], "the model's stream broke off")
        self._is_attempting = True
        if is_raced:
            yield from self._wait_for_token(turn.chain.last, go)
        hedge_ = taken if go.is_hedge else None
        turn = yield from self._write(
            turn, DeltaBuffer(is_held=is_raced), iter(said), continuation, hedge_, is_held=is_raced
        )
        self._is_attempting = False
        self._raced = None
        return turn, broken

    def _wait_for_token(self, late: Seq, go: MakeAttempt) -> Steps[None]:
        """As long as the model takes to begin; after a while another is asked to make the call, too."""
        world = self.world
        wait_s = world.chance() * 3 * HEDGE_AFTER_S
        self._raced = Raced(late, go.attempt)
        if not go.is_hedge:
            if wait_s > HEDGE_AFTER_S:
                yield step.Pause(HEDGE_AFTER_S)
                self.ask_for_hedge(self, late)
            wait_s -= HEDGE_AFTER_S
        if wait_s > 0:
            yield step.Pause(wait_s)

    def _write(
        self,
        turn: Turn,
        outbox: DeltaBuffer,
        said: Iterator[bytes],
        continuation: Continuation | None,
        hedge: Attempt | None = None,
        *,
        is_held: bool = False,
    ) -> Steps[Turn]:
        """Appends what is put into the outbox; the model says more while an append is in flight, or less.

        A `hedge` is stored before its first token, and without one not at all.
        """
        written: list[Stored] = []
        chain = turn.chain
        faults, world = self.stream.faults, self.world
        is_said = False
        while True:
            if faults.slow_s:
                yield step.Pause(faults.slow_s * world.chance())
            more = 1 + int(world.chance() * 3)
            while not is_said and (more > 0 or (is_held and not outbox.begun.is_set())):
                raw = next(said, None)
                if raw is None:
                    is_said = True
                    outbox.close()
                    break
                placed = [Outgoing(msgspec.Raw(raw))] if continuation is None else continuation.place(raw)
                for event, is_hidden, left_out in placed:
                    outbox.put(event, is_hidden=is_hidden, left_out=left_out)
                    more -= 1
            event_ = _taken(outbox)
            if event_ is None:
                return fold(written, turn)
            if hedge is not None:
                if not outbox.begun.is_set():
                    return turn
                chain = yield from self._take(chain, hedge)
                written.append(stored(chain, turn, hedge))
                hedge = None
            raw, is_hidden, left_out = event_
            entry = Event(prev=chain.last, attempt=chain.attempt, event=raw, is_hidden=is_hidden, left_out=left_out)
            chain = yield from self._append(chain, entry)
            written.append(stored(chain, turn, entry))

    def _take(self, chain: Chain, hedge: Attempt) -> Steps[Chain]:
        """The turn, from the late attempt that `chain` ends with."""
        return (yield from self._append(chain, hedge))

    def _end(
        self, turn: Turn, outcome: Outcome, error: Failure | None = None, *, schema_valid: bool | None = None
    ) -> Steps[Turn]:
        end = build_end(turn, outcome, error, schema_valid=schema_valid)
        chain = yield from self._append(turn.chain, end)
        return fold([stored(chain, turn, end)], turn)

    def _append(self, chain: Chain, entry: Entry) -> Steps[Chain]:
        while True:
            try:
                with_it = yield from append(self.key, chain, entry, now=self.world.now, timeout_s=APPEND_TIMEOUT_S)
            except LogFull:
                yield step.Pause(FULL_WAIT_S)
            else:
                self.acknowledged.append(with_it)
                return with_it


def _taken(outbox: DeltaBuffer) -> Outgoing | None:
    """What the outbox gives at once: it has something, or is closed."""
    try:
        outbox.take().send(None)
    except StopIteration as there:
        taken: Outgoing | None = there.value
        return taken
    raise AssertionError("the outbox had nothing and was not closed")


def _nobody(*_: object) -> None:
    pass
