"""Steering through all processes: the reader of the steered turn gets both answers, whatever gateway is killed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.local import ports
from tailrace.proto.nats.users import GATEWAY
from tests.harness.generator_in_loop import words
from tests.harness.processes import ForkedProcess, as_user
from tests.harness.system import System
from tests.harness.until import until

LONG = "#sim words=2000 rate=40 tag=a"
SHORT = "#sim words=5 rate=0 tag=b"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[System]:
    async with System(tmp_path) as system:
        await system.start(gateways=2)
        yield system


class Reader:
    """The events of a stream of the dialect `tailrace`, with their ids."""

    def __init__(self, client: httpx2.AsyncClient, turn: str, cursor: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.task = asyncio.create_task(self._read(client, turn, cursor))

    async def _read(self, client: httpx2.AsyncClient, turn: str, cursor: int) -> None:
        headers = {"last-event-id": str(cursor)} if cursor else {}
        async with client.stream("GET", f"/v1/turns/{turn}/events", headers=headers) as response:
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    self.ids.append(int(line[4:]))
                if line.startswith("data: "):
                    self.events.append(msgspec.json.decode(line[6:]))

    def has(self, kind: str) -> bool:
        return any(event["type"] == kind for event in self.events)

    def text_after(self, kind: str) -> str:
        index = next(index for index, event in enumerate(self.events) if event["type"] == kind)
        return "".join(event["text"] for event in self.events[index:] if event["type"] == "delta")


async def begin(client: httpx2.AsyncClient) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.post("/v1/turns", json={"message": LONG})).json()
    return answer


@pytest.mark.rule("R137")
@pytest.mark.rule("R138")
async def test_a_steer_whose_gateway_is_killed_between_store_and_cancel_is_answered_once(
    running: System, tmp_path: Path
) -> None:
    """The repeated request at another gateway ends the turn, and a cursor of either turn resumes at any gateway."""
    first, second = running.clients
    accepted = await begin(first)
    turn, path = accepted["turn"], f"/v1/turns/{accepted['turn']}/steer"
    reader = Reader(first, turn)
    await until(lambda: reader.has("delta"))
    steer: dict[str, Any] = {"json": {"message": SHORT}, "headers": {"idempotency-key": "key-1"}}
    [port] = ports.find_free(1)
    environ = {"TAILRACE_NATS_URL": as_user(running.nats_url, GATEWAY), "TAILRACE_PORT": port}
    async with ForkedProcess("tests.harness.killable_gateway", tmp_path, "after_append", **environ) as killed:
        async with httpx2.AsyncClient(base_url=killed.url, trust_env=False) as dying:
            with pytest.raises(httpx2.TransportError):
                await dying.post(path, **steer)
        await until(lambda: killed.is_gone)
    assert (await first.get(f"/v1/turns/{turn}")).json()["outcome"] == "running"
    answers = [(await client.post(path, **steer)) for client in (second, first)]
    assert [answer.status_code for answer in answers] == [202, 202]
    [successor] = {answer.json()["turn"] for answer in answers}
    await reader.task
    steered = next(event for event in reader.events if event["type"] == "steered")
    assert steered["turn"] == successor
    assert reader.text_after("steered") == words(5, "b")
    assert reader.events[-1]["type"] == "done"
    assert reader.ids == sorted(set(reader.ids))
    before = (await first.get(f"/v1/turns/{turn}")).json()
    assert (before["outcome"], reader.text_after("start").startswith(before["text"])) == ("cancelled", True)
    turns = (await first.get(f"/v1/sessions/{accepted['session']}/turns")).json()["turns"]
    assert [one["turn"] for one in turns] == [turn, successor]
    # Some cursors of each turn, with the path of each turn.
    for index in (0, len(reader.ids) // 2, *range(-8, 0)):
        for path_turn in (turn, successor):
            again = Reader(second, path_turn, reader.ids[index])
            await again.task
            assert again.ids == reader.ids[index:][1:], (index, path_turn)


async def test_who_may_steer_a_turn(running: System) -> None:
    """A ticket to read a turn does not steer it, and an unknown turn is not found."""
    first, _ = running.clients
    accepted = await begin(first)
    path = f"/v1/turns/{accepted['turn']}"
    ticket = (await first.post(f"{path}/tickets", json={"is_shared": True})).json()["ticket"]
    with_ticket = await first.post(f"{path}/steer", params={"ticket": ticket}, json={"message": SHORT})
    unknown = await first.post("/v1/turns/unknown/steer", json={"message": SHORT})
    result = [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "42"}]
    of_tool = await first.post(f"{path}/steer", json={"message": result})
    assert (with_ticket.status_code, unknown.status_code, of_tool.status_code) == (400, 404, 400)
    assert (await first.get(path)).json()["outcome"] == "running"
    await first.post(f"{path}/cancel")
    late = (await first.post(f"{path}/steer", json={"message": SHORT})).json()
    assert late["steered"] is None
    async with asyncio.timeout(20):
        await Reader(first, late["turn"]).task
    assert (await first.get(late["links"]["self"])).json()["parent"] == accepted["turn"]
