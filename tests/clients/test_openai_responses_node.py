"""/v1/responses with OpenAI's JavaScript SDK."""

import asyncio
from signal import SIGKILL
from typing import Any

import pytest

from tailrace.deploy.local import ports
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.harness import processes
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import read_stats, words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys, forget

NODE = "openai (Node)"
DIALECT = "openai-responses"


@pytest.mark.proves(DIALECT, "answer as one JSON body", NODE)
@pytest.mark.proves(DIALECT, "tools", NODE)
@pytest.mark.proves(DIALECT, "thinking", NODE)
@pytest.mark.proves(DIALECT, "errors before the first event", NODE)
@pytest.mark.proves(DIALECT, "resumes with the SDK's accumulator", NODE)
@pytest.mark.proves(DIALECT, "background", NODE)
@pytest.mark.proves(DIALECT, "cancel", NODE)
async def test_the_sdk_for_javascript_reads_answers_tools_and_errors(gateway: Gateway) -> None:
    """In one process: a JSON body, a stream, a tool, an error, a cut accumulator, a cancelled background response."""
    async with Cutting(gateway.port, random_cuts(5, 1, bytes_min=2800, bytes_max=4500)) as proxy:
        whole, streamed, tools, refused, cut, accumulated, cancelled = await node.run(
            "openai-responses.mjs", KEY, gateway.url, proxy.url
        )
        assert proxy.left == []
    for shown, text in ((whole, words(5)), (streamed, words(5)), (accumulated, words(120))):
        turn = shown.pop("id").removeprefix("resp_")
        assert shown.pop("text") == text == await read_stored_text(gateway, turn)
    assert (whole, streamed) == ({"usage": 5}, {"end": "response.completed"})
    assert tools == {
        "items": ["reasoning", "message", "function_call"],
        "arguments": '{"query":"the sky"}',
        "isStreamed": True,
        "text": words(2),
    }
    assert refused == {"error": "InternalServerError", "status": 529, "code": "backend_overloaded"}
    assert "Error" in cut["cut"]
    assert accumulated == {"isNumbered": True, "final": words(120)}
    assert cancelled == {"status": "cancelled", "end": "response.incomplete", "told": "cancelled"}


async def resume(url: str, how: str, what: str) -> dict[str, Any]:
    (printed,) = await node.run("openai-responses-resume.mjs", KEY, url, how, what)
    return printed


@pytest.mark.proves(DIALECT, "resumes when its gateway is killed", NODE)
async def test_stream_continues_after_its_gateway_was_killed(
    system: System, gateway: Gateway, tenant: Tenant, claude: str
) -> None:
    """The gateway starts again at its address; the SDK reconnects and resumes."""
    (port,) = ports.find_free(1)
    before = (await read_stats(claude))["output_tokens"]

    async def has_output() -> bool:
        return (await read_stats(claude))["output_tokens"] >= before + 20

    settings = {"TAILRACE_PORT": port, "TAILRACE_API_KEYS": api_keys(tenant)}
    async with processes.gateway(system.folder, system.nats_url, **settings) as killed:
        asking = asyncio.create_task(resume(killed.url, "ask", "#sim words=120 rate=50"))
        await until(has_output)
        await killed.stop(SIGKILL)
        await killed.start()
        shown = await asking
    turn = shown.pop("id").removeprefix("resp_")
    assert shown.pop("text") == words(120) == await read_stored_text(gateway, turn)
    assert (shown.pop("breaks") >= 1, shown) == (True, {"isNumbered": True})


@pytest.mark.proves(DIALECT, "read after the log has dropped the turn", NODE)
async def test_response_is_read_after_the_log_has_dropped_it(
    system: System, gateway: Gateway, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Retrieved, accumulated, and resumed after seven events."""
    shown = await resume(gateway.url, "ask", "#sim words=9 rate=0 thinking=2")
    turn = shown["id"].removeprefix("resp_")
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    # The first gateway may have the turn in memory.
    kept = await resume((await new_gateway(system.nats_url)).url, "look", shown["id"])
    assert kept["texts"] == [words(9)] * 3
    assert kept["items"] == [[f"rs_{turn}_0", f"msg_{turn}_1"]] * 3
    assert kept["status"] == "completed"
    assert kept["rest"] == {"first": 7, "isNumbered": True, "text": "", "end": "response.completed"}
