"""Claude Code's CLI against POST /v1/messages: interruptions are hidden, and repeated requests cost nothing."""

import asyncio
import json
from pathlib import Path
from signal import SIGKILL
from typing import NamedTuple

import msgspec
import pytest

from tailrace.deploy.local import ports
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.clients import node
from tests.clients.conftest import Takeover, read_stored_text
from tests.harness import processes
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.generator_in_loop import read_last_request, read_stats, words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, api_keys, on_shared_loop

BINARY = node.MODULES / "@anthropic-ai/claude-code-linux-x64/claude"
TEXT = words(40)
LINE = "#sim words=40 rate=200"
# Its first requests have shorter responses, so that only its stream is cut.
HELLO_BYTES_MAX = 1200


class Run(NamedTuple):
    """The result of `claude -p`: its last message, the number of API errors, and the turns of its requests."""

    result: str
    retries: int
    turns: list[str]
    session: str


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home and working folder for Claude Code."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


async def claude_p(url: str, home: Path, prompt: str, *args: str) -> Run:
    """Sends one prompt; parses the JSON lines of its events."""
    argv = [str(BINARY), "-p", prompt, "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
    environ = {"HOME": home, "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY}
    lines = [msgspec.json.decode(line) for line in (await node.command([*argv, *args], environ, home)).splitlines()]
    events = [line["event"] for line in lines if line["type"] == "stream_event"]
    result = lines[-1]
    assert (result["type"], result["is_error"]) == ("result", False), result
    return Run(
        result["result"],
        sum(line.get("subtype") == "api_retry" for line in lines),
        [event["message"]["id"].removeprefix("msg_") for event in events if event["type"] == "message_start"],
        f"claude-code:{result['session_id']}",
    )


async def calls(claude: str) -> int:
    return (await read_stats(claude))["calls"]


@pytest.mark.proves("anthropic", "hides interruptions of the model call", "Claude Code")
async def test_interruption_of_the_model_call_is_hidden(gateway: Gateway, claude: str, home: Path) -> None:
    """It receives one message without a gap, and sends one request."""
    before = await calls(claude)
    run = await claude_p(gateway.url, home, f"{LINE} fault=cut@20x1")
    assert (run.result, run.retries, len(run.turns)) == (TEXT, 0, 1)
    assert await read_stored_text(gateway, run.turns[0]) == TEXT
    assert await calls(claude) - before == 2


@pytest.mark.proves("anthropic", "resumes after cuts", "Claude Code")
async def test_repeated_request_after_a_cut_gets_the_same_turn(gateway: Gateway, claude: str, home: Path) -> None:
    before = await calls(claude)
    text = words(600)
    # Each response has the whole text, so both cuts happen even if a busy generator joins all deltas.
    async with Cutting(gateway.port, random_cuts(3, 2, bytes_max=len(text), bytes_min=HELLO_BYTES_MAX)) as proxy:
        run = await claude_p(proxy.url, home, "#sim words=600 rate=600")
        assert proxy.left == []
    assert (run.result, run.retries, set(run.turns)) == (text, 2, set(run.turns[:1]))
    assert await read_stored_text(gateway, run.turns[0]) == text
    assert await calls(claude) - before == 1


async def test_restarted_answer_is_streamed_from_its_start(gateway: Gateway, claude: str, home: Path) -> None:
    """An answer cut within thinking restarts: the connection breaks, and the repeated request receives the new
    answer.
    """
    before = await calls(claude)
    # So slowly that its first events are sent before the cut.
    run = await claude_p(gateway.url, home, "#sim words=40 rate=10 thinking=9 fault=cut@5x1")
    assert (run.result, run.retries, len(run.turns), len(set(run.turns))) == (TEXT, 1, 2, 1)
    assert await read_stored_text(gateway, run.turns[0]) == TEXT
    assert await calls(claude) - before == 2


async def test_request_after_a_failed_turn_is_a_new_turn(gateway: Gateway, claude: str, home: Path) -> None:
    """The turn fails before its first word, with the error of the API. The user is the same in each session."""
    run = await claude_p(gateway.url, home, f"{LINE} fault=529x5")
    assert (run.result, run.retries, len(run.turns)) == (TEXT, 1, 1)
    page = (await gateway.client.get(f"/v1/sessions/{run.session}/turns")).json()
    assert [turn["outcome"] for turn in page["turns"]] == ["failed", "completed"]
    assert [list(msgspec.json.decode(turn["user"])) for turn in page["turns"]] == [["device_id", "account_uuid"]] * 2


@on_shared_loop
@pytest.mark.proves("anthropic", "generator killed during the answer", "Claude Code")
async def test_killed_generator_is_hidden(takeover: Takeover, home: Path) -> None:
    running = asyncio.create_task(claude_p(takeover.gateway.url, home, LINE))
    async with takeover.run_and_kill_after(20):
        run = await running
    assert (run.result, run.retries, len(run.turns)) == (TEXT, 0, 1)
    assert await read_stored_text(takeover.gateway, run.turns[0]) == TEXT


@pytest.mark.proves("anthropic", "resumes when its gateway is killed", "Claude Code")
async def test_next_gateway_has_the_turn_of_a_killed_one(
    system: System, gateway: Gateway, tenant: Tenant, claude: str, home: Path
) -> None:
    """It repeats its request at the new gateway; there is one call of the model."""
    (port,) = ports.find_free(1)
    before = await read_stats(claude)

    async def has_output() -> bool:
        return (await read_stats(claude))["output_tokens"] >= before["output_tokens"] + 10

    settings = {"TAILRACE_PORT": port, "TAILRACE_API_KEYS": api_keys(tenant)}
    async with processes.gateway(system.folder, system.nats_url, **settings) as killed:
        running = asyncio.create_task(claude_p(killed.url, home, "#sim words=40 rate=40"))
        await until(has_output, 20)
        await killed.stop(SIGKILL)
        await killed.start()
        run = await running
    assert (run.result, len(run.turns), len(set(run.turns))) == (TEXT, 2, 1)
    assert await read_stored_text(gateway, run.turns[0]) == TEXT
    assert await calls(claude) - before["calls"] == 1


@pytest.mark.proves("anthropic", "tools", "Claude Code")
@pytest.mark.proves("anthropic", "read from the history", "Claude Code")
async def test_session_with_a_tool_is_one_conversation(
    gateway: Gateway, claude: str, home: Path, tenant: Tenant, system_log: TurnLog
) -> None:
    """The second question continues the first, and adds only the tool result."""
    tool = json.dumps({"command": "echo tail && echo race", "description": "two words"}, separators=(",", ":"))
    run = await claude_p(gateway.url, home, f"{LINE} tool=Bash json={tool}", "--allowedTools", "Bash(echo:*)")
    assert (run.result, len(run.turns)) == (TEXT, 2)
    first, second = (await gateway.client.get(f"/v1/sessions/{run.session}/turns")).json()["turns"]
    assert [first["turn"], second["turn"]] == run.turns
    assert (first["stop_reason"], second["parent"]) == ("tool_use", first["turn"])
    (result,) = second["input"]
    assert result["content"][0]["content"] == "tail\nrace"
    # The model receives the messages of the request: those of the session have old cache marks.
    request = (await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, TurnId(second["turn"]))))).request
    assert request is not None
    model_request = (await read_last_request(claude))["body"]
    assert model_request["messages"] == msgspec.to_builtins(request.messages)
    assert json.dumps(model_request).count('"cache_control"') <= 4
    assert (request.history, request.on_disconnect, len(model_request["tools"]) > 5) == (3, "grace:60", True)
    assert "claude-code-20250219" in (request.betas or [])
