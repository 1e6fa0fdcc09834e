"""The timeline of a turn says who or what has ended it, and why a later attempt was made."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tailrace.features.timeline.timeline import Timeline, build
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Event
from tailrace.proto.ids import TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.own_system import OwnSystem
from tests.harness.readers import read
from tests.harness.until import until
from tests.integration.conftest import Gateway

LONG = "#sim words=2000 rate=50"


async def post(gateway: Gateway, **body: object) -> dict[str, Any]:
    answer = await gateway.client.post("/v1/turns", json={"message": LONG, **body})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def cancel_turn(gateway: Gateway, turn: dict[str, Any]) -> None:
    await gateway.client.post(f"/v1/turns/{turn['turn']}/cancel")


async def cancel_response(gateway: Gateway, turn: dict[str, Any]) -> None:
    await gateway.client.post(f"/v1/responses/resp_{turn['turn']}/cancel")


async def cancel_session(gateway: Gateway, turn: dict[str, Any]) -> None:
    async def has_cancelled() -> bool:
        answer = await gateway.client.post(f"/v1/sessions/{turn['session']}/cancel")
        return turn["turn"] in answer.json().get("cancelled", ())

    # Persistence, which lists the running turns, records the request a moment after the POST.
    await until(has_cancelled)


async def interrupt(gateway: Gateway, turn: dict[str, Any]) -> None:
    async def is_recorded() -> bool:
        return (await gateway.client.get(f"/v1/sessions/{turn['session']}")).status_code == 200

    await until(is_recorded)
    await post(gateway, message="#sim words=3", session=turn["session"], on_busy="interrupt")


async def steer(gateway: Gateway, turn: dict[str, Any]) -> None:
    await gateway.client.post(f"/v1/turns/{turn['turn']}/steer", json={"message": "#sim words=3"})


async def disconnect(gateway: Gateway, turn: dict[str, Any]) -> None:
    await read(gateway.client, turn["turn"], most=3)


@pytest.mark.rule("R22")
@pytest.mark.parametrize(
    ("stop", "cause", "is_client"),
    [
        (cancel_turn, "request", True),
        (cancel_response, "request", True),
        (cancel_session, "session", True),
        (interrupt, "on_busy", True),
        (steer, "steer", True),
        (disconnect, "on_disconnect", False),
    ],
)
async def test_a_cancelled_turn_says_why_and_by_which_credential(
    gateway: Gateway, stop: Callable[[Gateway, dict[str, Any]], Awaitable[None]], cause: str, is_client: bool
) -> None:
    """The credential is that of the client whose request cancels it."""
    turn = await post(gateway, session=new_id(), create_session=True, on_disconnect="cancel")
    await stop(gateway, turn)

    async def ended() -> dict[str, Any]:
        return dict((await gateway.client.get(f"/v1/turns/{turn['turn']}/timeline")).json())

    async def has_ended() -> bool:
        return (await ended())["end"] is not None

    await until(has_ended)
    found = await ended()
    assert (found["end"]["outcome"], found["end"]["cause"]) == ("cancelled", cause)
    assert (found["end"]["by"] is not None) == is_client
    last = next(step["text"] for step in found["steps"] if step["text"].startswith("Cancelled"))
    assert last.startswith(f"Cancelled ({cause}): ")
    assert (f"with the credential {found['end']['by']}" in last) == is_client
    following = found["end"]["successor"]
    assert (following is not None) == (cause == "steer")
    assert (f"; turn {following} answers it" in last) == (cause == "steer")


async def timeline(own: OwnSystem, key: TurnKey) -> Timeline:
    return build(key, await own.log.read_entries(ScopedKey.whole(key)), [])


@pytest.mark.rule("R73")
async def test_a_generator_that_is_stopped_hands_its_turn_over(own: OwnSystem) -> None:
    """Also when its attempt has stored a part of the answer."""
    async with own.running_generator(grace_s=0.1, concurrency=1) as stop:
        key = await own.append_request("words=80 rate=80")
        await own.wait_for_open_streams(1)
        await until(lambda: has_text(own, key))
        async with own.running_generator():
            stop.set()
            await own.wait_for_end(key)
    found = await timeline(own, key)
    first, second = found.attempts
    assert (first.is_handed_over, second.mode, second.cause) == (True, "continue", "handover")


@pytest.mark.rule("R73")
async def test_a_generator_that_is_stopped_during_an_append_hands_its_turn_over(
    own: OwnSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is stored, and the generator does not know it: the mark follows it all the same."""
    held = asyncio.Event()

    class HeldLog(TurnLog):
        """The append of the third delta is stored, and does not return."""

        deltas = 0

        def publish_soon(self, *_: Any) -> bool:
            """Sends each event by `append`."""
            return False

        async def append(self, key: TurnKey, chain: Chain, entry: Entry, **named: Any) -> Chain:
            after = await super().append(key, chain, entry, **named)
            if isinstance(entry, Event) and b"content_block_delta" in bytes(entry.event):
                self.deltas += 1
                if self.deltas == 3:
                    held.set()
                    await asyncio.sleep(3600)
            return after

    with monkeypatch.context() as patched:
        patched.setattr("tailrace.generators.serve.TurnLog", HeldLog)
        async with own.running_generator(grace_s=0.1, concurrency=1) as stop:
            key = await own.append_request("words=80 rate=80")
            await held.wait()
            patched.undo()
            async with own.running_generator():
                stop.set()
                await own.wait_for_end(key)
    found = await timeline(own, key)
    first, second = found.attempts
    assert (first.is_handed_over, second.mode, second.cause) == (True, "continue", "handover")


async def has_text(own: OwnSystem, key: TurnKey) -> bool:
    return bool((await own.log.read_turn(ScopedKey.whole(key))).text)


async def test_an_attempt_after_a_call_that_broke_off_has_the_code(own: OwnSystem) -> None:
    """A failed turn has the sentence of the error, too."""
    async with own.running_generator():
        broken = await own.append_request("words=40 rate=0 fault=cut@17")
        refused = await own.append_request("bad")
        await own.wait_for_end(broken)
        await own.wait_for_end(refused)
    found = await timeline(own, broken)
    assert [one.cause for one in found.attempts] == [None, "backend_broken"]
    end = (await timeline(own, refused)).end
    assert end is not None
    assert (end.code, bool(end.message)) == ("backend_refused_request", True)
