"""The next action for every shape of a turn's log."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.continuation import Continuation, prepare_call
from tailrace.generators.hedging import plan_hedge
from tailrace.generators.plan import (
    Acknowledge,
    CheckSchema,
    Complete,
    Fail,
    Leave,
    MakeAttempt,
    can_continue,
    plan,
    plan_after_check,
)
from tailrace.proto import events
from tailrace.proto.entries import Failure, Mode, OnInterrupt, Outcome
from tailrace.proto.events import (
    BlockDelta,
    BlockStart,
    BlockStop,
    InputJsonDelta,
    MessageHead,
    MessageStart,
    TextDelta,
)
from tailrace.proto.fold import Turn, fold
from tailrace.proto.schema import with_schema
from tests.harness.strategies import MadeUp, logs
from tests.harness.turn_builder import Handwritten, attempt

POLICIES: tuple[OnInterrupt, ...] = ("continue", "restart", "fail")
START = MessageStart(MessageHead("msg_1"))
SCHEMA = {"type": "string"}
STOPPED = events.MessageDelta(events.StopReason("end_turn"))


def opened(type_: str, index: int = 0) -> list[events.Event]:
    delta = InputJsonDelta('{"a') if type_ == "tool_use" else TextDelta("some")
    return [BlockStart(index, {"type": type_}), BlockDelta(index, delta)]


def closed(type_: str, index: int = 0) -> list[events.Event]:
    return [*opened(type_, index), BlockStop(index)]


def begun(heard: Sequence[events.Event], on_interrupt: OnInterrupt = "continue", attempts: int = 1) -> Handwritten:
    """A turn whose last attempt has heard this much."""
    log = Handwritten()
    log.ask(on_interrupt=on_interrupt)
    for _ in range(attempts):
        log.take()
    log.hear(*heard)
    return log


@pytest.mark.parametrize("policy", POLICIES)
def test_a_turn_without_a_message_starts_fresh(policy: OnInterrupt) -> None:
    """Nothing can be continued or taken back, whether or not a generator died."""
    assert [plan(begun([], policy, n).turn, 5) for n in range(3)] == [MakeAttempt(n, "fresh") for n in (1, 2, 3)]


@pytest.mark.parametrize("policy", POLICIES)
def test_an_opening_alone_is_continued_with_any_policy(policy: OnInterrupt) -> None:
    """Readers have seen a message start without text, so continuing takes nothing back."""
    assert plan(begun([START], policy).turn, 5) == MakeAttempt(2, "continue")


@pytest.mark.parametrize(
    "heard",
    [
        opened("text"),
        closed("text"),
        [*closed("text"), *opened("text", 1)],
        closed("thinking"),
        closed("redacted_thinking"),
        [*closed("thinking"), *opened("text", 1)],
        [BlockStart(0, {"type": "text"})],
    ],
)
def test_text_and_complete_thinking_are_continued(heard: list[events.Event]) -> None:
    """A model can continue text in the middle of a word."""
    assert plan(begun([START, *heard]).turn, 5) == MakeAttempt(2, "continue")


@pytest.mark.parametrize(
    "heard",
    [
        opened("thinking"),
        opened("tool_use"),
        closed("tool_use"),
        [*closed("text"), *opened("tool_use", 1)],
        [*closed("text"), *closed("tool_use", 1), *opened("text", 2)],
        [*opened("text"), *opened("text", 1)],
        closed("newer"),
    ],
)
def test_blocks_that_cannot_be_continued_restart_the_answer(heard: list[events.Event]) -> None:
    """Half a thought, half a tool call, a complete one without its result, and unknown blocks."""
    assert plan(begun([START, *heard]).turn, 5) == MakeAttempt(2, "restart")


@pytest.mark.rule("R19")
@pytest.mark.parametrize("heard", [opened("text"), opened("tool_use"), closed("thinking")])
def test_on_interrupt_restart_and_fail_are_obeyed(heard: list[events.Event]) -> None:
    """`restart` also takes back text that could be continued; `fail` keeps it and ends the turn."""
    assert plan(begun([START, *heard], "restart").turn, 5) == MakeAttempt(2, "restart")
    failed = plan(begun([START, *heard], "fail").turn, 5)
    assert isinstance(failed, Fail)
    assert failed.failure.code == "interrupted"


@pytest.mark.parametrize("heard", [[], [START], [START, *opened("text")], [START, *opened("tool_use")]])
@pytest.mark.parametrize("policy", ["continue", "restart"])
def test_attempts_are_limited(heard: list[events.Event], policy: OnInterrupt) -> None:
    """A turn that breaks every generator ends after `attempts_max` attempts."""
    assert isinstance(plan(begun(heard, policy, attempts=2).turn, 3), MakeAttempt)
    failed = plan(begun(heard, policy, attempts=3).turn, 3)
    assert isinstance(failed, Fail)
    assert failed.failure.code == "attempts_exhausted"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("type_", ["text", "thinking", "tool_use"])
def test_a_complete_answer_only_needs_its_end(policy: OnInterrupt, type_: str) -> None:
    """After a kill between the last event and the end: no call, also without attempts left."""
    log = begun([START, *closed(type_), STOPPED], policy)
    assert [plan(log.turn, attempts_max) for attempts_max in (1, 5)] == [Complete(), Complete()]


def shaped(heard: Sequence[events.Event], attempts: int = 1, misfit: str | None = None) -> Turn:
    """A turn whose answer is to fit a schema, and which has heard this much since it was told of its `misfit`."""
    log = Handwritten()
    log.ask(options=with_schema(None, SCHEMA))
    for _ in range(attempts):
        log.take()
    if misfit is not None:
        log.store(msgspec.structs.replace(attempt(log.chain, "restart"), misfit=misfit))
    log.hear(*heard)
    return log.turn


@pytest.mark.rule("R60")
def test_an_answer_with_a_schema_is_checked_and_corrected_once() -> None:
    """A generator that takes over counts the corrections in the log."""
    first = shaped([START, *closed("text"), STOPPED])
    assert plan(first, 5) == CheckSchema(SCHEMA)
    assert plan_after_check(first, None, 5) == Complete(schema_valid=True)
    assert plan_after_check(first, "no", 5) == MakeAttempt(2, "restart", "no")
    assert plan_after_check(first, "no", 1) == Complete(schema_valid=False)
    second = shaped([START, *closed("text"), STOPPED], misfit="no")
    assert plan(second, 5) == CheckSchema(SCHEMA)
    assert plan_after_check(second, "no again", 5) == Complete(schema_valid=False)


@pytest.mark.parametrize("stop_reason", ["max_tokens", "refusal", "newer"])
def test_an_answer_cut_by_a_limit_is_not_corrected(stop_reason: str) -> None:
    """It is checked all the same."""
    stopped = events.MessageDelta(events.StopReason(stop_reason))
    turn = shaped([START, *closed("text"), stopped])
    assert plan(turn, 5) == CheckSchema(SCHEMA)
    assert plan_after_check(turn, "no", 5) == Complete(schema_valid=False)


@pytest.mark.parametrize("stop_reason", ["tool_use", "pause_turn"])
def test_an_unfinished_answer_is_not_checked(stop_reason: str) -> None:
    """A tool result comes first."""
    turn = shaped([START, *closed("text"), events.MessageDelta(events.StopReason(stop_reason))])
    assert plan(turn, 5) == Complete()


@pytest.mark.parametrize("misfit", [None, "no"])
def test_json_is_restarted_and_not_continued(misfit: str | None) -> None:
    """Without any block, continuing takes nothing back."""
    attempts = 2 if misfit is None else 3
    assert plan(shaped([START, *opened("text")], misfit=misfit), 5) == MakeAttempt(attempts, "restart")
    assert plan(shaped([START], misfit=misfit), 5) == MakeAttempt(attempts, "continue")
    assert plan(shaped([], misfit=misfit), 5) == MakeAttempt(attempts, "fresh")


@pytest.mark.parametrize("mode", ["fresh", "continue", "restart"])
def test_every_attempt_after_a_misfit_gets_the_correction_prompt(mode: Mode) -> None:
    """The request, the rejected answer and the reason, in any generator."""
    log = Handwritten()
    log.ask(options=with_schema(None, SCHEMA))
    log.take()
    log.hear(START, *closed("text"), STOPPED)
    log.store(msgspec.structs.replace(attempt(log.chain, "restart"), misfit="no"))
    log.hear(START)
    assert log.turn.request is not None
    call, _ = prepare_call(log.turn, mode)
    question, said, why = call.messages
    assert (question.role, said.role, said.content, why.role) == ("user", "assistant", "some", "user")
    assert "no" in str(why.content)


@pytest.mark.parametrize("outcome", ["completed", "cancelled", "failed"])
@pytest.mark.parametrize("heard", [[], [START, *opened("text")], [START, *closed("text"), STOPPED]])
def test_an_ended_turn_is_acknowledged(heard: list[events.Event], outcome: Outcome) -> None:
    """With any outcome and any writer of the end."""
    log = begun(heard, attempts=5)
    log.end(outcome)
    assert plan(log.turn, 5) == Acknowledge()


@pytest.mark.rule("R19")
@given(made_up=logs(), attempts_max=st.integers(1, 4), policy=st.sampled_from(POLICIES))
def test_every_prefix_of_every_log_has_a_next_action(made_up: MadeUp, attempts_max: int, policy: OnInterrupt) -> None:
    """No exception, never an attempt too many, and `continue` only after what can be continued."""
    for length in range(1, len(made_up.stored) + 1):
        turn = fold(made_up.stored[:length])
        assert turn.request is not None
        turn = msgspec.structs.replace(turn, request=msgspec.structs.replace(turn.request, on_interrupt=policy))
        check(turn, attempts_max)


def check(turn: Turn, attempts_max: int) -> None:
    go = plan(turn, attempts_max)
    assert isinstance(go, Acknowledge) == (turn.end is not None)
    if not isinstance(go, MakeAttempt):
        return
    assert turn.request is not None
    assert go.attempt == turn.attempt + 1 <= attempts_max + turn.hedges
    _, continuation = prepare_call(turn, go.mode)
    assert isinstance(continuation, Continuation) == (go.mode == "continue")
    if go.mode == "continue":
        assert turn.message is not None
        assert can_continue(turn.blocks)
        assert turn.request.on_interrupt == "continue" or not turn.blocks


def test_a_turn_of_a_message_batch_is_left_to_the_batch() -> None:
    """Once it has its end it is acknowledged."""
    handed = Handwritten()
    handed.ask(via="message_batches")
    assert plan(handed.turn, 5) == Leave()
    handed.end("cancelled")
    assert plan(handed.turn, 5) == Acknowledge()


@pytest.mark.rule("R51")
def test_a_hedge_is_the_next_attempt_and_does_not_count() -> None:
    """A turn with a late first token gets as many attempts as any other."""
    log = begun([])
    go = plan_hedge(log.turn)
    assert go == MakeAttempt(2, "fresh", is_second=True)
    log.store(msgspec.structs.replace(attempt(log.chain), is_hedge=True))
    log.hear(START, *opened("text"))
    assert log.turn.hedges == 1
    assert plan(log.turn, 2) == MakeAttempt(3, "continue")
    assert isinstance(plan(log.turn, 1), Fail)
    log.take("continue")
    assert plan(log.turn, 2) == Fail(Failure("attempts_exhausted", "the answer broke off 2 times, the most allowed"))


def test_a_misfit_after_a_hedge_is_corrected() -> None:
    """One of two allowed attempts was used."""
    log = begun([])
    log.store(msgspec.structs.replace(attempt(log.chain), is_hedge=True))
    log.hear(START, *closed("text"), STOPPED)
    assert plan_after_check(log.turn, "too long", 2) == MakeAttempt(3, "restart", "too long")
    assert plan_after_check(log.turn, "too long", 1) == Complete(schema_valid=False)
