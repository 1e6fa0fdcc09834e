"""Frameworks in Python that need older SDKs (.venv-clients), and the command llm."""

import json
import sys
from pathlib import Path

import pytest

from tests.clients import node
from tests.clients.conftest import read_whole_turns
from tests.clients.structured_answer import ANSWERED, RHINE
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

PYTHON = CHECKOUT / ".venv-clients/bin/python"
SCRIPT = Path(__file__).parent / "python/answers.py"
SAYS_40 = "#sim words=40 rate=0"
SLOWLY = "#sim words=40 rate=200"
# In the middle of the answer.
CUT = Cut(5_000)


async def answers(url: str, framework: str, *arguments: str) -> list[str]:
    """Returns what the framework has made of each answer. `arguments`: pairs of a mode and a question."""
    assert PYTHON.exists(), "the clients in Python are not installed: run `make clients`"
    # LlamaIndex looks for a home directory.
    command = [str(PYTHON), str(SCRIPT), url, KEY, framework, *arguments]
    printed = await node.command(command, {"HOME": PYTHON.parent}, CHECKOUT)
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.proves("openai-chat", "forced tool calls and JSON mode", "instructor")
async def test_instructor_over_openais_protocol(gateway: Gateway) -> None:
    """`TOOLS` is its default, and forces a call."""
    arguments = [given for mode in ("TOOLS", "JSON", "JSON_SCHEMA") for given in (mode, ANSWERED)]
    rivers = await answers(gateway.url, "instructor-openai", *arguments)
    assert list(map(json.loads, rivers)) == [RHINE.model_dump()] * 3


@pytest.mark.proves("anthropic", "forced tool calls", "instructor")
async def test_instructor_over_anthropics_protocol(gateway: Gateway) -> None:
    (river,) = await answers(gateway.url, "instructor-anthropic", "ANTHROPIC_TOOLS", ANSWERED)
    assert json.loads(river) == RHINE.model_dump()


@pytest.mark.proves("openai-chat", "stream, structured output", "LlamaIndex")
async def test_llama_index(system: System, gateway: Gateway, new_gateway: NewGateway) -> None:
    """It accepts only OpenAI's names of models, so the operator has defined an alias."""
    named = await new_gateway(system.nats_url, model_aliases="gpt-4o=claude-sonnet-5-5")
    arguments = ["structured", ANSWERED, "stream", SAYS_40, "complete", SAYS_40]
    river, *texts = await answers(named.url, "llama-index", *arguments)
    assert json.loads(river) == RHINE.model_dump()
    assert texts == [words(40)] * 2


@pytest.mark.proves("openai-chat", "stream", "llm")
async def test_the_command_llm(gateway: Gateway, tmp_path: Path) -> None:
    assert await llm(gateway.url, tmp_path, SAYS_40) == words(40) + "\n"


async def llm(url: str, tmp_path: Path, question: str) -> str:
    model = {"model_id": "tailrace", "model_name": "claude-sonnet-5-5", "api_base": f"{url}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model | {"api_key_name": "tailrace"}]))
    (tmp_path / "keys.json").write_text(json.dumps({"tailrace": KEY}))
    command = [sys.executable, "-m", "llm", "--model", "tailrace", "--no-log", question]
    return await node.command(command, {"LLM_USER_PATH": tmp_path}, tmp_path)


@pytest.mark.proves("openai-chat", "raises after a cut, and shows no word twice", "LlamaIndex")
async def test_a_cut_is_an_error_in_llama_index(system: System, gateway: Gateway, new_gateway: NewGateway) -> None:
    """As its author has it: the one turn that was paid for is complete."""
    named = await new_gateway(system.nats_url, model_aliases="gpt-4o=claude-sonnet-5-5")
    async with Cutting(named.port, [CUT]) as proxy:
        (shown,) = await answers(proxy.url, "llama-index", "cut", SLOWLY)
    assert proxy.left == []
    await require_part_of_one_turn(gateway, shown)


@pytest.mark.proves("openai-chat", "repeated POST returns the same turn", "instructor")
async def test_instructor_repeats_a_cut_request_and_gets_the_same_turn(gateway: Gateway) -> None:
    """The cut is in the middle of the JSON body. The SDK sends the same key again."""
    async with Cutting(gateway.port, [Cut(900)]) as proxy:
        (river,) = await answers(proxy.url, "instructor-openai", "TOOLS", ANSWERED)
    assert proxy.left == []
    assert json.loads(river) == RHINE.model_dump()
    (session,) = (await gateway.client.get("/v1/sessions")).json()["data"]
    assert session["turns"] == 1


@pytest.mark.proves("openai-chat", "raises after a cut, and shows no word twice", "llm")
async def test_a_cut_is_an_error_in_the_command_llm(gateway: Gateway, tmp_path: Path) -> None:
    async with Cutting(gateway.port, [CUT]) as proxy:
        with pytest.raises(AssertionError, match="status 1") as failure:
            await llm(proxy.url, tmp_path, SLOWLY)
    assert proxy.left == []
    shown = str(failure.value).partition("said:\n")[2].partition("Error:")[0].strip()
    await require_part_of_one_turn(gateway, shown)


async def require_part_of_one_turn(gateway: Gateway, shown: str) -> None:
    assert words(40).startswith(shown)
    assert await read_whole_turns(gateway) == [words(40)]
