"""The programs of examples/: each reads its answer once over cut connections, and pays once although it is killed."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from signal import SIGKILL

import msgspec
import pytest

from tests.harness.cutting_proxy import Cutting, seeded
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.integration.conftest import KEY, Gateway

EXAMPLES = CHECKOUT / "examples"
# The frameworks are in the venv of the clients with older SDKs: `make clients`.
OLDER_SDKS = str(CHECKOUT / ".venv-clients/bin/python")
# The imports of a framework take seconds of CPU.
WAIT_S_MAX = 90.0


async def start(url: str, folder: Path, *command: str) -> Process:
    environ = os.environ | {"PYTHONPATH": str(CHECKOUT), "NO_PROXY": "127.0.0.1"}
    environ |= {"TAILRACE_URL": url, "TAILRACE_KEY": KEY}
    return await asyncio.create_subprocess_exec(*command, cwd=folder, env=environ, stdout=PIPE, stderr=PIPE)


async def printed(process: Process) -> str:
    output, complained = await asyncio.wait_for(process.communicate(), WAIT_S_MAX)
    assert process.returncode == 0, complained
    return output.decode()


def text_of_events(lines: str) -> str:
    events = [msgspec.json.decode(line) for line in lines.splitlines()]
    assert events[-1]["outcome"] == "completed"
    return "".join(event["text"] for event in events if event["type"] == "delta")


async def turns_paid(gateway: Gateway) -> int:
    [usage] = (await gateway.client.get("/v1/usage")).json()["data"]
    turns: int = usage["turns"]
    return turns


@pytest.mark.parametrize("example", ["ask.py", "ask.sh"])
async def test_an_example_prints_the_answer_once_over_cut_connections(
    gateway: Gateway, tmp_path: Path, example: str
) -> None:
    line = "#sim words=200 rate=120"
    async with Cutting(gateway.port, seeded(5, 4, bytes_max=1800)) as proxy:
        if example == "ask.py":
            program = await start(proxy.url, tmp_path, sys.executable, str(EXAMPLES / example), line)
            text = await printed(program)
        else:
            body = msgspec.json.encode({"message": line}).decode()
            text = text_of_events(await printed(await start(proxy.url, tmp_path, "sh", str(EXAMPLES / example), body)))
        assert proxy.left == []
    assert text == words(200)
    assert await turns_paid(gateway) == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("example", "calls_before_kill"),
    [("anthropic_agent.py", 0), ("anthropic_agent.py", 1), ("langgraph_agent.py", 1), ("openai_agents_agent.py", 1)],
)
async def test_an_agent_that_is_killed_in_mid_call_attaches_to_its_turn(
    gateway: Gateway, tmp_path: Path, example: str, calls_before_kill: int
) -> None:
    """In its first call, or in the call after the tool. It executes the tool once, and asks the model twice in all."""
    task = '#sim words=60 rate=30 tool=measure_depth json={"river":"Rhine"}'
    python = sys.executable if example == "anthropic_agent.py" else OLDER_SDKS
    agent = (python, str(EXAMPLES / "agents" / example), "run-1", task)
    killed = await start(gateway.url, tmp_path, *agent)
    assert killed.stderr is not None
    shown = b""
    while shown.count(b"w000009") <= calls_before_kill:
        shown += await asyncio.wait_for(killed.stderr.read(1000), WAIT_S_MAX)
    assert shown.count(b"w000059") == calls_before_kill, "the call ended before the kill"
    killed.send_signal(SIGKILL)
    shown += (await killed.communicate())[1]
    again = await start(gateway.url, tmp_path, *agent)
    answer, shown_again = await asyncio.wait_for(again.communicate(), WAIT_S_MAX)
    assert answer.decode() == f"{words(60)}\n", shown_again
    assert (shown + shown_again).count(b"measuring the depth of the Rhine") == 1
    assert await turns_paid(gateway) == 2
    if example == "anthropic_agent.py":
        # Another run is paid for.
        await printed(await start(gateway.url, tmp_path, *agent[:2], "run-2", task))
        assert await turns_paid(gateway) == 4
