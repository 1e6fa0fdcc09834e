"""/v1/responses with OpenAI's JavaScript SDK."""

import asyncio
import socket
from signal import SIGKILL
from typing import Any

import pytest

from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.clients import node
from tests.clients.conftest import Takeover, told
from tests.harness import processes
from tests.harness.cutting_proxy import Cutting, seeded
from tests.harness.generator_in_loop import stats, words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys, forget

NODE = "openai (Node)"
DIALECT = "openai-responses"


@pytest.mark.proves(DIALECT, "answer as one JSON body", NODE)
@pytest.mark.proves(DIALECT, "stream", NODE)
@pytest.mark.proves(DIALECT, "tools", NODE)
@pytest.mark.proves(DIALECT, "thinking", NODE)
@pytest.mark.proves(DIALECT, "errors before the first event", NODE)
@pytest.mark.proves(DIALECT, "resumes after cuts", NODE)
@pytest.mark.proves(DIALECT, "resumes with the SDK's accumulator", NODE)
@pytest.mark.proves(DIALECT, "background", NODE)
@pytest.mark.proves(DIALECT, "cancel", NODE)
async def test_openais_sdk_for_javascript(gateway: Gateway) -> None:
    """One process asks in every way: whole, streamed, with a tool, for an error, through cuts, in the background."""
    often, once = (seeded(5, count, bytes_min=2800, bytes_max=4500) for count in (4, 1))
    async with Cutting(gateway.port, often) as proxy, Cutting(gateway.port, once) as other:
        whole, streamed, tools, refused, resumed, cut, accumulated, cancelled = await node.run(
            "openai-responses.mjs", KEY, gateway.url, proxy.url, other.url
        )
        assert proxy.left == other.left == []
    shown_texts = ((whole, words(5)), (streamed, words(5)), (resumed, words(120)), (accumulated, words(120)))
    for shown, text in shown_texts:
        turn = shown.pop("id").removeprefix("resp_")
        assert shown.pop("text") == text == await told(gateway, turn)
    assert (whole, streamed) == ({"usage": 5}, {"end": "response.completed"})
    assert tools == {
        "items": ["reasoning", "message", "function_call"],
        "arguments": '{"query":"the sky"}',
        "isStreamed": True,
        "text": words(2),
    }
    assert refused == {"error": "InternalServerError", "status": 529, "code": "backend_overloaded"}
    assert resumed == {"isNumbered": True, "cuts": 4}
    assert "Error" in cut["cut"]
    assert accumulated == {"isNumbered": True, "final": words(120)}
    assert cancelled == {"status": "cancelled", "end": "response.incomplete", "told": "cancelled"}


async def lasting(url: str, how: str, what: str) -> dict[str, Any]:
    (printed,) = await node.run("openai-responses-lasting.mjs", KEY, url, how, what)
    return printed


@pytest.mark.proves(DIALECT, "resumes when its gateway is killed", NODE)
async def test_stream_continues_after_its_gateway_was_killed(
    system: System, gateway: Gateway, tenant: Tenant, claude: str
) -> None:
    """kill -9, and another at its address: the SDK finds it by itself, and the next event is the next one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = (await stats(claude))["output_tokens"]

    async def has_said_some() -> bool:
        return (await stats(claude))["output_tokens"] >= before + 20

    settings = {"TAILRACE_PORT": port, "TAILRACE_API_KEYS": api_keys(tenant)}
    async with processes.gateway(system.folder, system.nats_url, **settings) as mortal:
        asking = asyncio.create_task(lasting(mortal.url, "ask", "#sim words=120 rate=50"))
        await until(has_said_some)
        await mortal.stop(SIGKILL)
        await mortal.start()
        shown = await asking
    turn = shown.pop("id").removeprefix("resp_")
    assert shown.pop("text") == words(120) == await told(gateway, turn)
    assert (shown.pop("breaks") >= 1, shown) == (True, {"isNumbered": True})


@pytest.mark.proves(DIALECT, "generator killed during the answer", NODE)
async def test_killed_generator_is_hidden(takeover: Takeover) -> None:
    """The stream that it has goes on where it was."""
    asking = asyncio.create_task(lasting(takeover.gateway.url, "ask", "#sim words=40 rate=100"))
    async with takeover.killed_after(15):
        shown = await asking
    turn = shown.pop("id").removeprefix("resp_")
    assert shown == {"text": words(40), "isNumbered": True, "breaks": 0}
    assert await told(takeover.gateway, turn) == words(40)


@pytest.mark.proves(DIALECT, "read after the log has dropped the turn", NODE)
async def test_response_is_read_after_the_log_has_dropped_it(
    system: System, gateway: Gateway, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Looked up and accumulated, it is all there; to who has seen some of it, nothing is said twice."""
    shown = await lasting(gateway.url, "ask", "#sim words=9 rate=0 thinking=2")
    turn = shown["id"].removeprefix("resp_")
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    # Another gateway, for the first may have the turn in memory yet.
    kept = await lasting((await new_gateway(system.nats_url)).url, "look", shown["id"])
    assert kept["texts"] == [words(9)] * 3
    assert kept["items"] == [[f"rs_{turn}_0", f"msg_{turn}_1"]] * 3
    assert kept["status"] == "completed"
    assert kept["rest"] == {"first": 7, "isNumbered": True, "text": "", "end": "response.completed"}
