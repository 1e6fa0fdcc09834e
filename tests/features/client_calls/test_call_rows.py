"""Parked turns and decisions in both databases: in any order of the log, with two decisions at once, and deleted."""

import asyncio
from typing import Any

import pytest

from tailrace.features.client_calls.persistence import CallQueries
from tailrace.features.client_calls.records import (
    DecideCall,
    Decision,
    GetContinuation,
    ListCalls,
    ListDecided,
    ListParked,
    SessionCalls,
)
from tailrace.persistence.queries import Queries
from tailrace.persistence.rows import TurnRow
from tailrace.persistence.store import Store
from tailrace.proto import events
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, TurnId, child_id, new_id
from tailrace.proto.resources import DeleteResource
from tests.harness.stored_turns import OURS, THEIRS, content_of, key, running_row
from tests.harness.turn_builder import Handwritten, answer_block, opening_events

BLUE = Decision(result="blue")


def calling_row(store: Store, turn: str, *, calls: int = 2, step: int = 2, **given: Any) -> TurnRow:
    """The row of a turn that has ended with calls `toolu_1`, `toolu_2`…"""
    log = Handwritten(step)
    log.store_request(**{"session": SessionId("session-1"), **given})
    log.store_attempt()
    log.store_events(*opening_events(), events.BlockStop(0))
    for index in range(1, calls + 1):
        log.store_events(*answer_block(index, "tool_use", '{"at": 1}'))
    usage = events.UsageSoFar(output_tokens=1)
    log.store_events(events.MessageDelta(events.StopReason("tool_use" if calls else "end_turn"), usage))
    log.end()
    return store.build_row(key(turn), log.turn)


def queries_of(store: Store) -> CallQueries:
    return CallQueries(store, Queries(store, 60))


async def decide(store: Store, call: str, decision: Decision = BLUE, **given: Any) -> SessionCalls:
    return await queries_of(store).decide(OURS, DecideCall("session-1", call, decision, **given))


async def parked(store: Store, **query: Any) -> list[str]:
    return [one.session for one in (await queries_of(store).parked(OURS, ListParked(**query))).sessions]


async def decided(store: Store) -> list[str]:
    return [one.turn for one in (await queries_of(store).decided(THEIRS, ListDecided())).turns]


async def code_of(answer: Any) -> str:
    with pytest.raises(Refused) as refused:
        await answer
    return refused.value.code


async def test_a_turn_is_decided_when_each_of_its_calls_is(store: Store) -> None:
    """The results are in the order of the calls. A repeated decision changes nothing, another one is refused."""
    await store.record([calling_row(store, "turn-1", user="ann", system="Be brief.")])
    assert await parked(store) == await parked(store, user="ann") == ["session-1"]
    assert await parked(store, user="bob") == await parked(store, min_age_s=10**9) == []
    assert (await decide(store, "toolu_2", Decision(reason="too late"), by="key-1")).undecided == ["toolu_1"]
    assert await decided(store) == []
    assert await code_of(queries_of(store).continuation(OURS, GetContinuation("session-1"))) == "call_not_found"
    for _ in range(2):
        assert (await decide(store, "toolu_1", by="key-2")).undecided == []
        assert await decided(store) == ["turn-1"]
    assert await code_of(decide(store, "toolu_1", Decision(result="red"))) == "call_decided"
    assert await code_of(decide(store, "toolu_1", Decision())) == "call_decided"
    found = await queries_of(store).continuation(OURS, GetContinuation("session-1"))
    assert (found.turn, found.by, found.request.system, found.request.messages) == ("turn-1", "key-2", "Be brief.", [])
    denied = {"content": "the user denied this tool call: too late", "is_error": True}
    assert found.results == [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "blue"},
        {"type": "tool_result", "tool_use_id": "toolu_2", **denied},
    ]


async def test_unknown_calls_sessions_and_users_are_refused(store: Store) -> None:
    await store.record([calling_row(store, "turn-1", user="ann"), running_row("turn-2", session="session-2")])
    assert await code_of(decide(store, "toolu_9")) == "call_not_found"
    assert await code_of(decide(store, "toolu_1", turn="turn-2")) == "call_not_found"
    assert await code_of(decide(store, "toolu_1", user="bob")) == "call_not_found"
    asked = DecideCall("session-1", "toolu_1", BLUE)
    assert await code_of(queries_of(store).decide(THEIRS, asked)) == "session_not_found"
    assert await code_of(queries_of(store).calls(THEIRS, ListCalls("session-1"))) == "session_not_found"
    assert await code_of(queries_of(store).calls(OURS, ListCalls("session-1", "turn-2"))) == "call_not_found"
    assert (await decide(store, "toolu_1", user="ann", turn="turn-1")).undecided == ["toolu_2"]


async def test_of_two_different_decisions_at_the_same_moment_one_is_kept(store: Store) -> None:
    await store.record([calling_row(store, "turn-1", calls=1)])
    decisions = [Decision(result=f"result {number}") for number in range(8)]
    found = await asyncio.gather(*(decide(store, "toolu_1", one) for one in decisions), return_exceptions=True)
    kept = [one for one in found if isinstance(one, SessionCalls)]
    assert [one.code for one in found if isinstance(one, Refused)] == ["call_decided"] * 7
    assert kept[0].calls[0].decision in decisions


async def test_two_last_decisions_at_the_same_moment_complete_the_turn(store: Store) -> None:
    await store.record([calling_row(store, "turn-1", calls=20)])
    found = await asyncio.gather(*(decide(store, f"toolu_{number}") for number in range(1, 21)))
    assert any(one.undecided == [] for one in found)
    assert await decided(store) == ["turn-1"]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_newer_turn_ends_the_wait(store: Store, is_late: bool) -> None:
    """Also if it is recorded before the end of the turn with the calls. A repeated decision is still answered."""
    calling, newer = calling_row(store, "turn-1", calls=1), store.build_row
    log = Handwritten(500)
    log.store_request(session=SessionId("session-1"), parent=TurnId("turn-1"))
    following = newer(key("turn-2"), log.turn)
    if is_late:
        await store.record([following])
        await store.record([calling])
        assert await code_of(decide(store, "toolu_1")) == "call_not_found"
    else:
        await store.record([calling])
        await decide(store, "toolu_1")
        await store.record([following])
        assert (await decide(store, "toolu_1")).next == "turn-2"
        assert await code_of(decide(store, "toolu_1", Decision())) == "call_decided"
        assert (await queries_of(store).calls(OURS, ListCalls("session-1", "turn-1"))).undecided == []
    assert await parked(store) == await decided(store) == []
    assert await queries_of(store).calls(OURS, ListCalls("session-1")) == SessionCalls(session=SessionId("session-1"))
    assert [row for row in await content_of(store) if "undecided" in row] == []


async def test_a_turn_that_is_recorded_again_keeps_its_decisions(store: Store) -> None:
    """After a kill of persistence, and after a restart of the whole log."""
    row = calling_row(store, "turn-1")
    await store.record([row])
    await decide(store, "toolu_1")
    before = await content_of(store)
    await store.record([row])
    assert await content_of(store) == before
    assert (await decide(store, "toolu_2")).undecided == []
    assert await decided(store) == ["turn-1"]


async def test_a_forced_tool_is_not_forced_again(store: Store) -> None:
    options = {"tool_choice": {"type": "tool", "name": "look"}, "temperature": 1}
    await store.record([calling_row(store, "turn-1", calls=1, options=options)])
    await decide(store, "toolu_1")
    found = await queries_of(store).continuation(OURS, GetContinuation("session-1"))
    assert found.request.options == {"temperature": 1}


async def test_turns_of_batches_without_calls_and_of_clients_with_an_own_history_do_not_wait(store: Store) -> None:
    batch = TurnId(new_id())
    row = calling_row(store, "turn-1", calls=0)
    log = Handwritten(3)
    log.store_request(session=SessionId("session-2"), parent=batch)
    log.store_attempt()
    log.store_events(*opening_events(), events.BlockStop(0), *answer_block(1, "tool_use", "{}"))
    log.store_events(events.MessageDelta(events.StopReason("tool_use"), events.UsageSoFar(output_tokens=1)))
    log.end()
    own = [Message("user", "And?"), Message("assistant", "Well."), Message("user", "Go on.")]
    stateless = calling_row(store, "turn-3", session=SessionId("session-3"), messages=own)
    await store.record([row, store.build_row(key(child_id(batch, 0)), log.turn), stateless])
    assert await parked(store) == []


@pytest.mark.parametrize("kind", ["turn", "session", "user", "tenant"])
async def test_a_deletion_leaves_nothing_of_the_calls(store: Store, kind: Any) -> None:
    await store.record([calling_row(store, "turn-1", user="ann")])
    await decide(store, "toolu_1", Decision(result="secret"))
    name = {"turn": "turn-1", "session": "session-1", "user": "ann", "tenant": OURS}[kind]
    await store.delete(OURS, DeleteResource(kind, name, (TurnId("turn-1"),)))
    assert [row for row in await content_of(store) if "undecided" in row or "decision" in row] == []


async def test_pages_of_parked_sessions_have_each_once(store: Store) -> None:
    rows = [
        calling_row(store, f"turn-{number}", calls=1, step=number, session=SessionId(f"session-{number}"), user=user)
        for number, user in enumerate(("ann", "bob", "ann", "ann", "bob"), 1)
    ]
    await store.record(rows)
    for user, expected in ((None, [5, 4, 3, 2, 1]), ("ann", [4, 3, 1])):
        found: list[str] = []
        after: str | None = None
        while True:
            page = await queries_of(store).parked(OURS, ListParked(after, 2, user))
            found += [one.session for one in page.sessions]
            if (after := page.next) is None:
                break
        assert found == [f"session-{number}" for number in expected]
