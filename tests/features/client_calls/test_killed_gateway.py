"""A gateway that is killed between the last decision and the next turn: the turn starts once all the same."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tailrace.deploy.local import ports
from tailrace.proto.nats.users import GATEWAY
from tests.harness.processes import ForkedProcess, as_user
from tests.harness.system import System
from tests.harness.until import until

TURN = {"message": "#sim words=2 rate=0 tool=look", "tools": [{"name": "look", "input_schema": {"type": "object"}}]}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[System]:
    async with System(tmp_path) as system:
        await system.start()
        yield system


async def park(client: httpx2.AsyncClient) -> tuple[str, str]:
    """Returns the session and the path of the call of a turn that has ended with one."""
    accepted = (await client.post("/v1/turns", json=TURN)).json()
    await client.get(accepted["links"]["events"])
    calls = (await client.get(f"/v1/sessions/{accepted['session']}/calls")).json()
    return accepted["session"], f"/v1/sessions/{accepted['session']}/calls/{calls['calls'][0]['call']}"


async def follow_ups(client: httpx2.AsyncClient, session: str) -> list[str]:
    """Returns the turns of a session after the first one."""
    return [one["turn"] for one in (await client.get(f"/v1/sessions/{session}/turns")).json()["turns"][1:]]


@pytest.mark.rule("R136")
@pytest.mark.parametrize("when", ["before_claim", "before_append", "after_append"])
async def test_a_decided_turn_goes_on_once_after_a_kill(running: System, tmp_path: Path, when: str) -> None:
    """By the repeated request at another gateway, or by the next gateway that starts."""
    [client], repeated = running.clients, {"result": "blue"}
    (repeated_session, repeated_call), (found_session, found_call) = await park(client), await park(client)
    for call in (repeated_call, found_call):
        [port] = ports.find_free(1)
        environ = {"TAILRACE_NATS_URL": as_user(running.nats_url, GATEWAY), "TAILRACE_PORT": port}
        async with ForkedProcess("tests.harness.killable_gateway", tmp_path, when, **environ) as killed:
            async with httpx2.AsyncClient(base_url=killed.url, trust_env=False) as dying:
                with pytest.raises(httpx2.TransportError):
                    await dying.post(call, json=repeated)
            await until(lambda: killed.is_gone)
    answers = await asyncio.gather(*(client.post(repeated_call, json=repeated) for _ in range(4)))
    [following] = {answer.json()["next"] for answer in answers}
    assert following is not None
    await running.gateways[0].stop()
    await running.gateways[0].start()
    await until(lambda: follow_ups(client, found_session))
    await running.wait_until_settled()
    assert await follow_ups(client, repeated_session) == [following]
    assert len(await follow_ups(client, found_session)) == 1
