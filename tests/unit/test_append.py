"""What an append does next after each answer, without a server; what a server does is tried in tests/integration."""

from collections.abc import Iterator

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, Stored
from tailrace.proto.errors import FenceLost
from tailrace.proto.ids import Seq, Tenant, TurnId, new_id
from tailrace.proto.nats.append import append
from tailrace.proto.nats.step import Confirm, Page, Pause, Publish, Read, Step, Steps, Unclear
from tailrace.proto.subjects import TurnKey
from tests.handwritten import NOON, says

KEY = TurnKey(Tenant("t"), TurnId(new_id()))
CHAIN = Chain(7, 1)  # type: ignore[arg-type]
ENTRY = says(CHAIN, "a")


def begun() -> Steps[Chain]:
    return append(KEY, CHAIN, ENTRY, now=lambda: 0.0, timeout_s=30)


def after(unclear: Unclear) -> Iterator[Step]:
    """The steps after a Publish with that outcome, when nothing is stored behind it, up to the next Publish."""
    steps = begun()
    step = next(steps)
    assert isinstance(step, Publish)
    step = steps.throw(unclear)
    while not isinstance(step, Publish):
        yield step
        step = steps.send(Page([], is_last=True) if isinstance(step, Read) else isinstance(step, Confirm))


def test_a_refusal_without_a_rival_asks_the_leader_whether_the_turn_is_there() -> None:
    """What was purged is refused for ever, and nothing that is stored would say so."""
    kinds = [type(step) for step in after(Unclear("10071"))]
    assert kinds == [Read, Confirm, Pause]


def test_no_answer_is_followed_by_the_next_try_and_by_no_question_to_the_leader() -> None:
    """Who asks a leader that is not there waits two seconds for it, in which another may have begun to lead."""
    kinds = [type(step) for step in after(Unclear("nobody answers", is_answered=False))]
    assert kinds == [Read, Pause]


def test_who_waits_for_a_leader_asks_less_and_less_and_at_least_twice_a_second() -> None:
    """A thousand turns that ask twenty times a second for minutes would keep the servers from finding one."""
    steps, waits = begun(), list[float]()
    step = next(steps)
    while len(waits) < 6:
        match step:
            case Publish():
                step = steps.throw(Unclear(is_answered=False))
            case Read():
                step = steps.send(Page([], is_last=True))
            case Pause(wait_s):
                waits.append(wait_s)
                step = steps.send(None)
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


@pytest.mark.rule("R13")
@pytest.mark.parametrize("is_last", [True, False])
def test_an_attempt_that_something_follows_is_an_earlier_one_of_the_same_process(*, is_last: bool) -> None:
    """Whoever is given a turn once more, and reads of it what is seconds old, would pay for its answer once more."""
    taken = Attempt(prev=CHAIN.last, attempt=2, generator="g-1", backend="anthropic", mode="fresh")
    steps = append(KEY, CHAIN, taken, now=lambda: 0.0, timeout_s=30)
    next(steps)
    assert steps.throw(Unclear("10071")) == Read(CHAIN.last)
    there, next_ = Stored(Seq(8), NOON, taken), Stored(Seq(9), NOON, says(Chain(Seq(8), 2), "a"))
    with pytest.raises(FenceLost):
        steps.send(Page([there, next_] if is_last else [there], is_last))


@pytest.mark.rule("R13")
def test_an_attempt_that_is_the_same_whoever_writes_it_stands() -> None:
    """The answers of a message batch are written once more by whoever takes it over, from the first entry on."""
    taken = Attempt(prev=CHAIN.last, attempt=2, generator="msgbatch_1", backend=MESSAGE_BATCHES, mode="fresh")
    steps = append(KEY, CHAIN, taken, now=lambda: 0.0, timeout_s=30)
    next(steps)
    assert steps.throw(Unclear("10071")) == Read(CHAIN.last)
    there, next_ = Stored(Seq(8), NOON, taken), Stored(Seq(9), NOON, says(Chain(Seq(8), 2), "a"))
    with pytest.raises(StopIteration) as stands:
        steps.send(Page([there, next_], is_last=True))
    assert stands.value.value == Chain(Seq(8), 2)
