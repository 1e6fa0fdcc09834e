"""Turns that wait for the turn before them (`on_busy: queue`): stored, begun after its end, with the conversation."""

from typing import Any

import pytest

from tailrace.features.queued_turns.generator import prepare_queued
from tailrace.gateway.turns.cancel import cancel
from tailrace.generators import worker
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Event, Message
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.nats import Deliveries, Delivery
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import GENERATORS
from tests.harness.generator_in_loop import read_last_request, words
from tests.harness.own_system import OwnSystem
from tests.harness.turn_builder import attempt, raw
from tests.harness.turn_writer import MESSAGE, new_writer
from tests.harness.until import until


@pytest.mark.rule("R79")
async def test_queued_turns_run_in_order_with_the_conversation_although_their_generators_stop(own: OwnSystem) -> None:
    """Only the log has them: each generator that starts takes the next one."""
    given = {"session": SessionId("s")}
    first = await own.append_request("words=80 rate=80 tag=a", **given)
    second = await own.append_request("words=80 rate=80 tag=b", parent=first.turn, is_queued=True, **given)
    third = await own.append_request("words=1 rate=0 tag=c", parent=second.turn, is_queued=True, **given)
    async with own.running_generator(grace_s=0.0):
        await own.wait_for_open_streams(1)
    assert await own.attempts(second) == []
    async with own.running_generator(grace_s=0.0):
        await own.wait_for_end(first)
        await own.wait_for_open_streams(1)
    assert await own.attempts(third) == []
    async with own.running_generator():
        ends = [await own.wait_for_end(key) for key in (first, second, third)]
    assert [turn.text for turn in ends] == [words(80, "a"), words(80, "b"), words(1, "c")]
    contents = [message["content"] for message in (await read_last_request(own.claude))["body"]["messages"]]
    assert contents == [
        "#sim words=80 rate=80 tag=a",
        words(80, "a"),
        "#sim words=80 rate=80 tag=b",
        words(80, "b"),
        "#sim words=1 rate=0 tag=c",
    ]


@pytest.mark.rule("R79")
async def test_a_queued_turn_fails_if_the_turn_before_it_is_gone(own: OwnSystem) -> None:
    """An answer without the conversation would look like one."""
    async with own.running_generator():
        turn = await own.answer("words=1", session=SessionId("s"), parent=TurnId("gone"), is_queued=True)
    assert (turn.outcome, turn.error.code if turn.error else None) == ("failed", "parent_not_found")
    assert await own.calls() == 0


async def test_a_queued_turn_fails_if_a_bug_prevents_its_start(own: OwnSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would break the generators once a second, and its readers would wait."""

    def raise_bug(*_: object) -> None:
        raise KeyError("id")

    monkeypatch.setattr("tailrace.features.queued_turns.generator.accepted_before", raise_bug)
    given = {"session": SessionId("s")}
    async with own.running_generator():
        first = await own.append_request("words=1 rate=0", **given)
        await own.wait_for_end(first)
        turn = await own.answer("words=1", parent=first.turn, is_queued=True, **given)
    assert (turn.outcome, turn.error.code if turn.error else None) == ("failed", "internal")


async def test_a_queued_turn_is_delivered_less_often_the_longer_it_waits(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each delivery reads the log, and the turn before it may run for minutes."""
    monkeypatch.setattr(worker, "NOT_YET_WAIT_S", 0.02)
    monkeypatch.setattr(worker, "NOT_YET_WAIT_S_MAX", 0.06)
    delays, release = list[float](), Delivery.release

    async def note_release(delivery: Delivery, delay_s: float = 0.0) -> None:
        delays.append(delay_s)
        await release(delivery, delay_s)

    monkeypatch.setattr(Delivery, "release", note_release)
    given = {"session": SessionId("s")}
    first = await own.append_request("words=1 wait=3600", **given)
    await own.append_request("words=1", parent=first.turn, is_queued=True, **given)
    async with own.running_generator(grace_s=0.0):
        await until(lambda: len(delays) >= 5)
    assert delays[:5] == pytest.approx([0.02, 0.04, 0.06, 0.06, 0.06])


@pytest.mark.rule("R106")
async def test_a_queued_turn_that_is_cancelled_is_acknowledged_while_the_turn_before_it_runs(own: OwnSystem) -> None:
    """The steps after an end, such as the release of reservations, do not wait for another turn."""
    given = {"session": SessionId("s")}
    first = await own.append_request("words=1 wait=3600", **given)
    second = await own.append_request("words=1", parent=first.turn, is_queued=True, **given)
    deliveries = await Deliveries.open(own.connection, GENERATORS)

    async def is_leased_alone() -> bool:
        backlog = await deliveries.backlog()
        return (backlog.waiting, backlog.leased) == (0, 1)

    async with own.running_generator(grace_s=0.0):
        await own.wait_for_open_streams(1)
        await cancel(own.log, ScopedKey.whole(second), "request")
        await until(is_leased_alone)
    assert await own.attempts(second) == []


@pytest.mark.rule("R111")
async def test_a_tool_call_without_a_result_is_left_out_before_a_queued_turn(own: OwnSystem) -> None:
    """Whether the queued message has the result of the call is known only when the call is."""
    given = {"session": SessionId("s")}
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    first = await own.append_request("words=2 rate=0 tool=look", tools=tools, **given)
    await own.append_request("words=1 rate=0", parent=first.turn, is_queued=True, **given)
    async with own.running_generator():
        await until(lambda: _has_calls(own, 2))
    contents = [message["content"] for message in (await read_last_request(own.claude))["body"]["messages"]]
    assert contents == ["#sim words=2 rate=0 tool=look", words(2), "#sim words=1 rate=0"]


async def test_a_queued_result_is_sent_with_the_container_in_which_code_waits(own: OwnSystem) -> None:
    """A client sees the call of the code before the turn has ended."""
    caller = {"type": "code_execution_20260120", "tool_id": "srvtoolu_1"}
    blocks: list[dict[str, Any]] = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution", "input": {}},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}, "caller": caller},
    ]
    first = new_writer(own.log)
    await first.store_request()
    await first.store(attempt(first.chain))
    stop = {"stop_reason": "tool_use", "container": {"id": "container_1"}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": MESSAGE}]
    for index, block in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.append({"type": "content_block_stop", "index": index})
    for event in [*events, {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}}]:
        await first.store(Event(prev=first.chain.last, attempt=first.chain.attempt, event=raw(event)))
    await first.store(build_end(await own.log.read_turn(ScopedKey.whole(first.key)), "completed", None))
    result = Message("user", [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "1"}])
    for new, container in ((result, "container_1"), (Message("user", "Hi."), None)):
        queued = new_writer(own.log)
        await queued.store_request(messages=[new], parent=first.key.turn, is_queued=True)
        prepared = await prepare_queued(own.log, queued.key, await own.log.read_turn(ScopedKey.whole(queued.key)))
        assert prepared is not None
        assert prepared.request is not None
        assert (prepared.request.options or {}).get("container") == container


async def _has_calls(own: OwnSystem, count: int) -> bool:
    return await own.calls() == count
