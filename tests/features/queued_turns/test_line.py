"""Messages that arrive at the same moment form one line: turns with `on_busy: queue`, and steers between them."""

import asyncio
import random
from functools import partial
from typing import Any

import msgspec
import pytest

from tailrace.features.common import line
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.turns.draft import Stored, TurnDraft
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Claim
from tests.features.steer.test_steering import STEERED, TENANT, Gateways

SESSION = "session-1"


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LOOK_EVERY_S", 0.005)


async def queue(submitter: TurnSubmitter, text: str, key: str | None = None, **given: Any) -> Stored:
    new_turn = NewTurn(message=text, on_busy="queue", **{"session": SESSION} | given)
    return await submitter.submit(TurnDraft(LOCAL, text.encode(), key, new_turn=new_turn))


def append_late(gateways: Gateways) -> None:
    """Makes each append of a request take a random time."""
    append, chance = gateways.log.append, random.Random(7)

    async def late(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        await asyncio.sleep(chance.random() * 0.01)
        return await append(key, *arguments, **given)

    gateways.log.append = late  # type: ignore[method-assign]


def parents_of(gateways: Gateways) -> list[TurnId | None]:
    requests = [stored[0].entry for stored in gateways.log.stored.values()]
    return [one.parent for one in requests if isinstance(one, Request)]


async def run_at_once(gateways: Gateways, *, steers: int, queued: int) -> list[Stored]:
    """Sends messages at the same moment, each to a gateway of its own."""
    append_late(gateways)
    sending = []
    for number in range(steers):
        gateway = gateways.new_gateway(wait_s=5)
        sending.append(gateways.steer(f"steer {number}", gateway=gateway, at="now" if number % 2 else "boundary"))
    for number in range(queued):
        gateways.new_gateway(wait_s=5)
        sending.append(queue(gateways.submitter, f"queued {number}"))
    return await asyncio.gather(*random.Random(3).sample(sending, len(sending)))


@pytest.mark.rule("R137")
@pytest.mark.parametrize(("steers", "queued"), [(0, 8), (1, 1), (4, 4)])
@pytest.mark.parametrize("is_running", [True, False], ids=["running", "idle"])
async def test_messages_at_the_same_moment_form_a_line(*, steers: int, queued: int, is_running: bool) -> None:
    """No two turns have one parent."""
    gateways = Gateways()
    if not is_running:
        await gateways.complete(STEERED)
    sent = await run_at_once(gateways, steers=steers, queued=queued)
    parents = parents_of(gateways)
    assert len(set(parents)) == len(parents) == steers + queued + 1
    # The generator adds the conversation before a turn that waits.
    assert {len(one.entry.messages) for one in sent if one.entry.is_queued} == {1}


async def test_a_parent_that_the_client_names_is_kept() -> None:
    """It is a branch by intention."""
    gateways = Gateways()
    for number in range(2):
        stored = await queue(gateways.submitter, f"queued {number}", parent=STEERED.turn)
        assert stored.entry.parent == STEERED.turn


async def test_a_repeated_message_has_one_turn_and_one_place() -> None:
    """Both POSTs are at work at the same moment."""
    gateways = Gateways()
    append_late(gateways)
    sending = []
    for _ in range(3):
        gateways.new_gateway(wait_s=5)
        sending.append(queue(gateways.submitter, "once", "key-1"))
    sent = await asyncio.gather(*sending)
    assert len({one.key for one in sent}) == 1
    other = await queue(gateways.submitter, "other", "key-2")
    assert other.entry.parent == sent[0].key.turn


async def test_results_of_tools_stay_behind_the_turn_with_the_calls() -> None:
    gateways = Gateways()
    await gateways.claims.claim(TENANT, f"steer {STEERED.turn}", Claim((await gateways.steer("x")).key.turn, "x"))
    result = MessageParam("user", [{"type": "tool_result", "tool_use_id": "toolu_0", "content": "7 m"}])
    entry = (await gateways.steer("y")).entry
    given = msgspec.structs.replace(entry, parent=STEERED.turn, messages=[result])
    own = TurnKey(TENANT, TurnId("own"))
    places = line.Line(gateways.log, gateways.claims, gateways.tombstones, gateways.deleter, 0)
    draft = TurnDraft(LOCAL, b"", new_turn=NewTurn(messages=[result], session=SESSION, on_busy="queue"))
    async with places.take_place(draft, own, given) as entry:
        assert entry == given


@pytest.mark.rule("R137")
async def test_a_turn_whose_place_was_taken_before_its_append_is_deleted_and_its_key_is_free() -> None:
    """Its gateway was paused for too long. A repetition gets the next place."""
    gateways = Gateways()
    append = gateways.log.append

    async def append_too_late(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        gateways.log.append = append  # type: ignore[method-assign]
        gateways.new_gateway(wait_s=0)
        await queue(gateways.submitter, "other")
        return await append(key, *arguments, **given)

    gateways.log.append = append_too_late  # type: ignore[method-assign]
    paused = gateways.submitter
    with pytest.raises(LogUnavailable, match="meanwhile"):
        await queue(paused, "late", "key-1")
    assert len(gateways.log.stored) == 2
    await queue(paused, "late", "key-1")
    parents = parents_of(gateways)
    assert (len(parents), len(set(parents))) == (3, 3)


@pytest.mark.rule("R137")
@pytest.mark.parametrize("is_steer", [True, False], ids=["steer", "queued"])
async def test_a_message_that_is_stored_when_the_server_fails_is_stored_once(*, is_steer: bool) -> None:
    """The server fails between the append and the claim after it. A repetition finds the turn by its key.

    Without a key, the client is told not to repeat the request.
    """
    gateways = Gateways()
    append, read = gateways.log.append, gateways.claims.read

    async def append_last(key: TurnKey, *arguments: Any, **given: Any) -> Any:
        gateways.log.append = append  # type: ignore[method-assign]
        gateways.claims.read = fail  # type: ignore[method-assign]
        return await append(key, *arguments, **given)

    async def fail(tenant: Tenant, key: str) -> Any:
        del tenant, key
        gateways.claims.read = read  # type: ignore[method-assign]
        raise LogUnavailable("no answer")

    send = gateways.steer if is_steer else partial(queue, gateways.submitter)
    for key in ("key-1", None):
        gateways.log.append = append_last  # type: ignore[method-assign]
        with pytest.raises(LogUnavailable) as failure:
            await send(f"sent with {key}", key)
        assert failure.value.may_repeat == (key is not None)
    stored = set(gateways.log.stored)
    assert (await send("sent with key-1", "key-1")).key.plain in stored
    assert set(gateways.log.stored) == stored
    assert len(stored) == 3
