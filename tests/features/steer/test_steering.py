"""Steering with a log, claims and a history in memory: one successor, one order, repeated and refused requests."""

import asyncio
import hashlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest

from tailrace.features.common import line
from tailrace.features.common.line import Line
from tailrace.features.queued_turns.gateway import check_queue
from tailrace.features.queued_turns.generator import prepare_queued
from tailrace.features.steer import endings, steering
from tailrace.features.steer.endings import Endings
from tailrace.features.steer.service import At, steered_turn
from tailrace.features.steer.steering import Steering
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.draft import Stored, TurnDraft
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.repeats import IN_A_ROW_MAX
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto import events
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Batch, CancelCause, End, Request
from tailrace.proto.errors import LogUnavailable, Refused, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.model_records import CancelTurn
from tailrace.proto.nats import Claim
from tailrace.proto.nats.idempotency import StoredClaim
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.testing import MemoryClaims, MemoryLog, MemoryTombstones
from tests.harness.memory_history import MemoryHistory, NoBlobs, NoParentCheck
from tests.harness.service_builders import UNUSED, build_turn_submitter
from tests.harness.turn_builder import attempt, block_events, event, opening_events, request, text_delta
from tests.harness.until import until

TENANT = LOCAL.access.tenant
STEERED = TurnKey(TENANT, TurnId("turn-1"))


class Gateways:
    """The state that gateways share, and one of them."""

    def __init__(self, **given: Any) -> None:
        self.log, self.claims, self.tombstones = MemoryLog(), MemoryClaims(), MemoryTombstones()
        self.deleter: Any = SimpleNamespace(delete=self.delete)
        if given.get("is_stored", True):
            self.log.store(STEERED, request(**{name: value for name, value in given.items() if name != "is_stored"}))
        self.steering = self.new_gateway()

    def new_gateway(self, wait_s: float = 0.02) -> Steering:
        read = self.log.read_turn
        history: Any = MemoryHistory(TENANT, lambda: self.log.stored, lambda key: read(ScopedKey.whole(key)))
        places = Line(self.log, self.claims, self.tombstones, self.deleter, wait_s)
        self.submitter = build_turn_submitter(
            self.log,
            self.claims,
            self.tombstones,
            steps=OptionalSteps(
                check_queue=check_queue,
                check_max_cost=lambda _: None,
                take_place=places.take_place,
            ),
            history=history,
            parents=NoParentCheck(),
            blobs=NoBlobs(),
        )
        return Steering(self.log, self.claims, places, UNUSED, history, self.submitter, Endings())

    async def steer(
        self,
        content: str | list[dict[str, Any]],
        key: str | None = None,
        *,
        turn: TurnId = STEERED.turn,
        at: At = "now",
        principal: Principal = LOCAL,
        gateway: Steering | None = None,
    ) -> Stored:
        new_turn = NewTurn(messages=[MessageParam("user", content)])
        draft = TurnDraft(principal, str(content).encode(), key, new_turn=new_turn)
        return await (gateway or self.steering).steer(
            draft, ScopedKey.whole(TurnKey(principal.access.tenant, turn)), at
        )

    async def delete(self, scope: Scope, _: str, turn: str) -> int:
        """Deletes a turn as the gateway's Deleter does."""
        key = TurnKey(scope.tenant, TurnId(turn))
        self.log.turn_of(key).clear()
        await self.tombstones.put([key])
        return 1

    async def turn(self, turn: TurnId | None) -> Turn:
        assert turn is not None
        return await self.log.read_turn(ScopedKey.whole(TurnKey(TENANT, turn)))

    async def conversation(self, stored: Stored) -> list[Any]:
        """Returns what the model gets for a queued turn, as each generator reads it from the log."""
        prepared = await prepare_queued(self.log, stored.key.plain, await self.turn(stored.key.turn))
        assert prepared is not None
        assert prepared.request is not None
        return [message.content for message in prepared.request.messages]

    async def complete(self, key: TurnKey) -> None:
        turn = await self.log.read_turn(ScopedKey.whole(key))
        await self.log.append(key, turn.chain, build_end(turn, "completed"))

    async def has_ended(self, turn: TurnId) -> bool:
        return (await self.turn(turn)).end is not None

    async def chain(self) -> list[TurnId]:
        """Returns the turns from the steered one on, as the ends name their successors."""
        turns = [STEERED.turn]
        while (end := (await self.turn(turns[-1])).end) is not None and end.successor is not None:
            turns.append(end.successor)
        return turns


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LOOK_EVERY_S", 0.005)


@pytest.mark.rule("R137")
async def test_a_steer_stores_its_turn_and_ends_the_running_one_which_names_it() -> None:
    gateways = Gateways(tools=[{"name": "look"}], user="mia", max_cost_nano_usd=2_000_000_000)
    stored = await gateways.steer("no, shorter")
    assert (stored.entry.parent, stored.entry.is_queued) == (STEERED.turn, True)
    assert [message.content for message in stored.entry.messages] == ["no, shorter"]
    kept = (stored.entry.tools, stored.entry.user, stored.entry.max_cost_nano_usd, stored.entry.session)
    assert kept == ([{"name": "look"}], "mia", 2_000_000_000, "session-1")
    end = (await gateways.turn(STEERED.turn)).end
    assert end is not None
    assert (end.outcome, end.cause, end.by, end.successor) == ("cancelled", "steer", LOCAL.key, stored.key.turn)


async def test_a_forced_tool_choice_is_kept() -> None:
    """The model makes the call again, with the message: the call of the steered turn has no result."""
    options = {"tool_choice": {"type": "tool", "name": "look"}}
    gateways = Gateways(tools=[{"name": "look"}], options=options)
    assert (await gateways.steer("in kilometres")).entry.options == options


@pytest.mark.rule("R137")
async def test_an_older_generator_that_drops_the_successor_ends_the_turn_and_the_message_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """During an upgrade. Readers of the first turn get its end, as readers of an older gateway do."""

    async def cancel_as_before(log: MemoryLog, key: ScopedKey, cause: CancelCause, by: str | None, _: TurnId) -> Turn:
        return await cancel(log, key, cause, by)

    gateways = Gateways()
    with monkeypatch.context() as patch:
        patch.setattr(steering, "cancel", cancel_as_before)
        stored = await gateways.steer("shorter", "key-1")
    assert await gateways.chain() == [STEERED.turn]
    assert await gateways.conversation(stored) == ["Why is the sky blue?", "shorter"]
    assert (await gateways.steer("shorter", "key-1")).key == stored.key
    later = await gateways.steer("no, longer")
    assert await gateways.conversation(later) == ["Why is the sky blue?", "shorter", "no, longer"]


def test_an_older_version_reads_an_end_and_a_cancellation_with_a_successor() -> None:
    end = msgspec.json.encode(build_end(EMPTY_TURN, "cancelled", cause="steer", successor=STEERED.turn))
    query = msgspec.json.encode(CancelTurn(STEERED.turn, "steer", "me", STEERED.turn))
    for known, encoded in ((End, end), (CancelTurn, query)):
        fields = [(one.name, one.type, None) for one in msgspec.structs.fields(known) if one.name != "successor"]
        older: Any = msgspec.json.decode(encoded, type=msgspec.defstruct("Older", fields, kw_only=True))
        assert older.cause == "steer"
        assert b"successor" in encoded


@pytest.mark.rule("R137")
async def test_at_the_boundary_the_running_turn_ends_after_its_content_block() -> None:
    gateways = Gateways()
    log = gateways.log
    stored = await gateways.steer("then that", at="boundary")
    assert steered_turn(stored) == STEERED.turn

    async def add(*added: Any) -> Turn:
        for make in added:
            log.store(STEERED, make((await gateways.turn(STEERED.turn)).chain))
        for _ in range(50):
            await asyncio.sleep(0)
        return await gateways.turn(STEERED.turn)

    opening = [partial(event, what=one) for one in opening_events()]
    assert (await add(attempt, *opening, partial(text_delta, text="one"))).end is None
    ended = await add(partial(event, what=events.BlockStop(0)))
    assert ended.end is not None
    assert (ended.text, ended.end.cause, ended.end.successor) == ("one", "steer", stored.key.turn)


async def test_a_boundary_after_which_the_next_block_has_begun_is_passed_by() -> None:
    """The hint is late. A cut within the next block would leave a half of it."""
    gateways = Gateways()
    chain = (await gateways.turn(STEERED.turn)).chain
    gateways.log.store(STEERED, attempt(chain))
    for what in (*block_events(0, {"type": "text", "text": ""}), events.BlockStart(1, {"type": "text", "text": ""})):
        gateways.log.store(STEERED, event((await gateways.turn(STEERED.turn)).chain, what))
    stored = await gateways.steer("then that", at="boundary")
    for _ in range(50):
        await asyncio.sleep(0)
    assert (await gateways.turn(STEERED.turn)).end is None
    gateways.log.store(STEERED, event((await gateways.turn(STEERED.turn)).chain, events.BlockStop(1)))
    await until(lambda: gateways.has_ended(STEERED.turn))
    assert await gateways.chain() == [STEERED.turn, stored.key.turn]


@pytest.mark.rule("R137")
async def test_at_the_boundary_turns_that_wait_end_too_and_the_running_one_after_its_block() -> None:
    """The message follows the queued turn, and must not wait until the whole answer before that has ended."""
    gateways = Gateways()
    log = gateways.log
    queued = await gateways.submitter.submit(
        TurnDraft(LOCAL, b"queued", new_turn=NewTurn(message="queued", session="session-1", on_busy="queue"))
    )
    log.store(STEERED, attempt((await gateways.turn(STEERED.turn)).chain))
    for what in opening_events():
        log.store(STEERED, event((await gateways.turn(STEERED.turn)).chain, what))
    stored = await gateways.steer("shorter", at="boundary")
    await until(lambda: gateways.has_ended(queued.key.turn))
    assert not await gateways.has_ended(STEERED.turn)
    log.store(STEERED, event((await gateways.turn(STEERED.turn)).chain, events.BlockStop(0)))
    await until(lambda: gateways.has_ended(STEERED.turn))
    assert await gateways.chain() == [STEERED.turn, queued.key.turn, stored.key.turn]


@pytest.mark.rule("R137")
async def test_two_steers_at_the_same_moment_are_answered_one_after_the_other() -> None:
    """At two gateways, in whatever order: each turn has one successor, and no message is lost."""
    gateways = Gateways()
    both = await asyncio.gather(
        *(gateways.steer(f"message {number}", gateway=gateways.new_gateway()) for number in range(5))
    )
    chain = await gateways.chain()
    assert sorted(chain[1:]) == sorted(stored.key.turn for stored in both)
    assert [(await gateways.turn(turn)).request.parent for turn in chain[1:]] == chain[:-1]  # type: ignore[union-attr]
    assert (await gateways.turn(chain[-1])).end is None


@pytest.mark.parametrize("key", ["key-1", "auto"])
async def test_a_repeated_steer_gets_the_same_turn_also_after_others(key: str) -> None:
    gateways = Gateways()
    first = await gateways.steer("shorter", key)
    await gateways.steer("longer", "key-2")
    assert (await gateways.steer("shorter", key, gateway=gateways.new_gateway())).key == first.key
    assert len(gateways.log.stored) == 3


@pytest.mark.rule("R138")
async def test_a_post_with_a_cursor_of_a_successor_resumes_its_own_turn() -> None:
    """A client that repeats its POST after a cut has only the ids that it received. The stream finds the place."""
    gateways = Gateways(body_sha256=hashlib.sha256(b"question").hexdigest())
    for text in ("shorter", "longer"):
        stored = await gateways.steer(text)
        draft = TurnDraft(
            LOCAL,
            b"question",
            cursor=gateways.log.stored[stored.key.plain][0].seq,
            new_turn=NewTurn(message="question"),
        )
        assert (await gateways.submitter.submit(draft)).key.plain == STEERED
        with pytest.raises(Refused, match="another body"):
            await gateways.submitter.submit(replace(draft, raw=b"other"))


@pytest.mark.rule("R137")
async def test_a_steer_of_an_ended_turn_and_one_of_the_running_turn_are_both_in_the_conversation() -> None:
    """They come at the same moment, to two gateways. A repetition gets the same turn."""
    gateways = Gateways()
    await gateways.complete(STEERED)
    running = await gateways.submitter.submit(
        TurnDraft(LOCAL, b"running", new_turn=NewTurn(message="running", session="session-1"))
    )
    append = gateways.log.append

    async def append_late(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        await asyncio.sleep(0.01)
        return await append(key, *arguments, **given)

    gateways.log.append = append_late  # type: ignore[method-assign]
    late, other = await asyncio.gather(
        gateways.steer("late", "key-1", gateway=gateways.new_gateway()),
        gateways.steer("other", turn=running.key.turn, gateway=gateways.new_gateway()),
    )
    first, second = sorted((late, other), key=lambda one: one.entry.parent != running.key.turn)
    assert (first.entry.parent, second.entry.parent) == (running.key.turn, first.key.turn)
    assert (await gateways.steer("late", "key-1")).key == late.key


async def test_without_a_key_the_same_text_is_two_messages() -> None:
    gateways = Gateways()
    turns = {(await gateways.steer("go on")).key for _ in range(2)}
    assert len(turns) == 2


async def test_a_key_is_refused_for_another_body_or_turn() -> None:
    gateways = Gateways()
    stored = await gateways.steer("shorter", "key-1")
    for text, turn in (("longer", STEERED.turn), ("shorter", stored.key.turn)):
        with pytest.raises(Refused, match="Idempotency-Key") as refused:
            await gateways.steer(text, "key-1", turn=turn)
        assert refused.value.code == "idempotency_key_reused"
    assert len(gateways.log.stored) == 2


@pytest.mark.rule("R137")
async def test_after_a_death_between_store_and_cancel_a_repetition_ends_the_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a repetition the turn goes on to its end, and the message follows it: only later."""
    gateways = Gateways()
    with monkeypatch.context() as patch:
        patch.setattr(Steering, "_end_turns_before", AsyncMock(side_effect=asyncio.CancelledError))
        with pytest.raises(asyncio.CancelledError):
            await gateways.steer("shorter", "key-1")
    assert (await gateways.turn(STEERED.turn)).end is None
    assert len(gateways.log.stored) == 2
    stored = await gateways.steer("shorter", "key-1", gateway=gateways.new_gateway())
    assert await gateways.chain() == [STEERED.turn, stored.key.turn]
    assert len(gateways.log.stored) == 2


async def test_a_later_steer_ends_the_turns_that_a_dead_gateway_has_left_running() -> None:
    gateways = Gateways()
    waiting = await gateways.steer("first", at="boundary")
    stored = await gateways.steer("second")
    assert await gateways.chain() == [STEERED.turn, waiting.key.turn, stored.key.turn]


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_steer_follows_the_turns_that_wait_already(*, is_cancelled: bool) -> None:
    """Their messages stay in the conversation before it, also that of a cancelled one."""
    gateways = Gateways()
    queued = await gateways.submitter.submit(
        TurnDraft(LOCAL, b"queued", new_turn=NewTurn(message="queued", session="session-1", on_busy="queue"))
    )
    assert queued.entry.parent == STEERED.turn
    if is_cancelled:
        await cancel(gateways.log, queued.key, "request")
    stored = await gateways.steer("shorter")
    assert stored.entry.parent == queued.key.turn
    between = [] if is_cancelled else [queued.key.turn]
    assert await gateways.chain() == [STEERED.turn, *between, stored.key.turn]


@pytest.mark.rule("R137")
async def test_a_claim_whose_turn_is_never_stored_is_replaced() -> None:
    """Its gateway died between the claim and the append, and its client does not repeat the request."""
    gateways = Gateways()
    await gateways.claims.claim(TENANT, f"steer {STEERED.turn}", Claim(TurnId("lost"), "other"))
    stored = await gateways.steer("shorter")
    assert await gateways.chain() == [STEERED.turn, stored.key.turn]


@pytest.mark.rule("R137")
async def test_a_claim_is_not_replaced_while_its_request_is_repeated() -> None:
    """The first gateway died before the append, and the append of the second one takes a while."""
    gateways = Gateways()
    patient = gateways.new_gateway(wait_s=0.4)
    append = gateways.log.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateways.log, "append", AsyncMock(side_effect=asyncio.CancelledError))
        with pytest.raises(asyncio.CancelledError):
            await gateways.steer("first", "key-1")

    async def append_late(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        if isinstance(arguments[1], Request):
            await asyncio.sleep(0.3)
        return await append(key, *arguments, **given)

    other = asyncio.create_task(gateways.steer("other", gateway=patient))
    await asyncio.sleep(0.25)
    gateways.log.append = append_late  # type: ignore[method-assign]
    first = await gateways.steer("first", "key-1")
    assert await gateways.chain() == [STEERED.turn, first.key.turn]
    assert (await other).entry.parent == first.key.turn


@pytest.mark.rule("R137")
async def test_a_turn_that_is_stored_after_its_claim_was_replaced_is_deleted() -> None:
    """Its gateway was paused. The client is told to repeat its request, which the other message precedes."""
    gateways = Gateways()
    store = gateways.log.append

    async def replace_claim_and_append(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        name = f"steer {STEERED.turn}"
        if isinstance(arguments[1], Request):
            await gateways.claims.put(TENANT, name, Claim(TurnId("other"), "other"))
        return await store(key, *arguments, **given)

    gateways.log.append = replace_claim_and_append  # type: ignore[method-assign]
    with pytest.raises(LogUnavailable, match="meanwhile"):
        await gateways.steer("shorter")
    # Otherwise it would be a branch beside the other message.
    assert [*gateways.log.stored] == [STEERED]
    assert (await gateways.turn(STEERED.turn)).end is None


@pytest.mark.rule("R137")
@pytest.mark.parametrize("is_claimed_again", [False, True])
async def test_a_removed_claim_is_noticed_before_the_next_one_and_by_a_late_read(*, is_claimed_again: bool) -> None:
    """Otherwise the turns of both steers would follow the same turn."""
    gateways = Gateways()
    name, store, read = f"steer {STEERED.turn}", gateways.log.append, gateways.claims.read
    old: list[StoredClaim] = []

    async def remove_claim_and_append(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        if isinstance(arguments[1], Request):
            old.append(gateways.claims.stored.pop((TENANT, name)))
            if is_claimed_again:
                await gateways.claims.put(TENANT, name, Claim(TurnId("other"), "other"))
        return await store(key, *arguments, **given)

    async def read_late(tenant: Tenant, key: str) -> StoredClaim | None:
        return old.pop() if old and is_claimed_again else await read(tenant, key)

    gateways.log.append = remove_claim_and_append  # type: ignore[method-assign]
    gateways.claims.read = read_late  # type: ignore[method-assign]
    if is_claimed_again:
        with pytest.raises(LogUnavailable, match="meanwhile"):
            await gateways.steer("shorter")
        assert (await gateways.turn(STEERED.turn)).end is None
    else:
        stored = await gateways.steer("shorter")
        assert gateways.claims.stored[TENANT, name].claim.turn == stored.key.turn


async def test_a_steer_of_a_deleted_steer_takes_its_place() -> None:
    gateways = Gateways()
    deleted = await gateways.steer("shorter", at="boundary")
    await gateways.log.purge(deleted.key.plain)
    await gateways.tombstones.put([deleted.key.plain])
    stored = await gateways.steer("longer")
    assert await gateways.chain() == [STEERED.turn, stored.key.turn]


@pytest.mark.rule("R137")
async def test_the_message_is_the_next_turn_if_the_turn_has_ended() -> None:
    gateways = Gateways()
    await cancel(gateways.log, ScopedKey.whole(STEERED), "request")
    stored = await gateways.steer("and now?")
    assert (stored.entry.parent, stored.entry.is_queued, steered_turn(stored)) == (STEERED.turn, False, None)
    assert [message.content for message in stored.entry.messages] == ["Why is the sky blue?", "and now?"]
    assert await gateways.chain() == [STEERED.turn]


async def test_the_message_belongs_to_the_user_and_project_of_a_turn_that_has_left_the_log() -> None:
    """Otherwise the JWT of this user could not read the answer, and Claude Code would work in another folder."""
    gateways = Gateways(user="mia", project="rivers", metadata={"app": "map"})
    await gateways.complete(STEERED)
    gateways.log.read_turn = AsyncMock(side_effect=TurnUnknown("gone"))  # type: ignore[method-assign]
    stored = await gateways.steer("and now?")
    assert (stored.entry.user, stored.entry.project, stored.entry.metadata) == ("mia", "rivers", {"app": "map"})


async def test_steer_and_cancel_at_the_same_moment_leave_one_end_and_one_next_turn() -> None:
    gateways = Gateways()
    stored, _ = await asyncio.gather(
        gateways.steer("shorter"), cancel(gateways.log, ScopedKey.whole(STEERED), "request")
    )
    assert (await gateways.turn(STEERED.turn)).outcome == "cancelled"
    assert stored.entry.parent == STEERED.turn
    assert (await gateways.turn(stored.key.turn)).end is None


@pytest.mark.rule("R137")
@pytest.mark.parametrize("names_the_newest", [False, True])
async def test_messages_in_a_row_are_limited_until_an_answer_is_complete(*, names_the_newest: bool) -> None:
    """So 10,000 steers of a session cost a bounded number of reads each, here and in the generator."""
    gateways = Gateways()
    stored = [await gateways.steer("message 0")]
    for number in range(1, IN_A_ROW_MAX):
        turn = stored[-1].key.turn if names_the_newest else STEERED.turn
        stored.append(await gateways.steer(f"message {number}", "last" if number == 63 else None, turn=turn))
    newest, before = stored[-1].key, dict(gateways.log.stored)
    for turn in (STEERED.turn, newest.turn):
        with pytest.raises(Refused, match="in a row") as refused:
            await gateways.steer("one more", turn=turn)
        assert refused.value.code == "session_busy"
    assert gateways.log.stored == before
    # A repetition of an accepted one is not one more.
    assert (
        await gateways.steer("message 63", "last", turn=stored[-2].key.turn if names_the_newest else STEERED.turn)
    ).key == newest
    await gateways.complete(newest.plain)
    following = await gateways.steer("one more", turn=newest.turn)
    assert (following.entry.parent, following.entry.is_queued) == (newest.turn, False)
    assert await gateways.chain() == [STEERED.turn, *(one.key.turn for one in stored)]
    with pytest.raises(Refused, match=f"steer {following.key.turn}"):
        await gateways.steer("and one")
    assert (await gateways.steer("and one", turn=following.key.turn)).entry.parent == following.key.turn


@pytest.mark.parametrize(
    ("given", "principal", "code"),
    [
        ({"is_stored": False}, LOCAL, "turn_not_found"),
        ({}, LOCAL._replace(access=Scope(Tenant("bob"), WHOLE)), "turn_not_found"),
        ({"user": "mia"}, LOCAL._replace(user="ben"), "turn_not_found"),
        ({"batch": Batch("0" * 64, 1, 1, 1)}, LOCAL, "turn_not_found"),
        ({"store": False}, LOCAL, "request_invalid"),
    ],
)
async def test_a_refused_steer_stores_nothing(given: dict[str, Any], principal: Principal, code: str) -> None:
    gateways = Gateways(**given)
    before = dict(gateways.log.stored)
    with pytest.raises(Refused) as refused:
        await gateways.steer("shorter", principal=principal)
    assert refused.value.code == code
    assert gateways.log.stored == before


async def test_a_result_of_a_tool_is_no_message_of_a_steer() -> None:
    """The answer that runs may still write its call."""
    gateways = Gateways()
    with pytest.raises(Refused, match="tool_result"):
        await gateways.steer([{"type": "tool_result", "tool_use_id": "toolu_1", "content": "42"}])
    assert list(gateways.log.stored) == [STEERED]


@pytest.mark.parametrize("at", ["now", "boundary"])
async def test_a_steer_is_accepted_although_the_log_fails_before_the_end_which_follows(
    monkeypatch: pytest.MonkeyPatch, at: At
) -> None:
    """Without a further request: the answer that runs would go on until its own end."""
    monkeypatch.setattr(endings, "AGAIN_S", 0.01)
    gateways = Gateways()
    log = gateways.log
    log.store(STEERED, attempt((await gateways.turn(STEERED.turn)).chain))
    for what in block_events(0, {"type": "text", "text": ""}):
        log.store(STEERED, event((await gateways.turn(STEERED.turn)).chain, what))
    append, fails = log.append, 2

    async def fail_first_ends(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        nonlocal fails
        if isinstance(arguments[1], End) and fails:
            fails -= 1
            raise LogUnavailable("no answer")
        return await append(key, *arguments, **given)

    log.append = fail_first_ends  # type: ignore[method-assign]
    stored = await gateways.steer("shorter", "key-1", at=at)
    await until(lambda: gateways.has_ended(STEERED.turn))
    assert await gateways.chain() == [STEERED.turn, stored.key.turn]
    assert fails == 0
