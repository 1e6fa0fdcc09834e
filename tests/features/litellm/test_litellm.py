"""The backend `litellm` in its own venv, with a provider that speaks OpenAI's protocol.

The provider is another Tailrace, or a server that fails as the request says.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import EmbeddedServer, run_embedded
from tailrace.proto.chain import START
from tailrace.proto.entries import Message
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.models import Model
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.generator_in_loop import append_request, failure_code, read_attempts, wait_for_end, words
from tests.harness.processes import CHECKOUT, Process
from tests.harness.turn_builder import request
from tests.integration.conftest import KEY, Gateway

PYTHON = CHECKOUT / ".venv-litellm/bin/python"

pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="LiteLLM is not installed: make litellm"),
    pytest.mark.timeout(120),
]


def generator(folder: Path, nats_url: str, provider: str, **environ: object) -> Process:
    """A generator in the venv with LiteLLM."""
    settings = {
        "TAILRACE_BACKENDS": "litellm:openai/claude-sonnet-5-5",
        "TAILRACE_CALL_TRIES_MAX": 1,
        "OPENAI_API_BASE": f"{provider}/v1",
        "OPENAI_API_KEY": KEY,
        # Otherwise the import fetches a list of prices from the internet.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    claude_url = str(environ.pop("claude_url", "http://127.0.0.1:9"))
    given = processes.generator_environ(nats_url, claude_url) | processes.QUICK_RETRY | settings | environ
    process = processes.Process("generators", folder, **given)
    process.command[0] = str(PYTHON)
    return process


async def test_an_answer_is_converted_to_events_of_anthropic(
    own_server: NatsServer, own_log: TurnLog, gateway: Gateway, tmp_path: Path
) -> None:
    """Text, tool calls, finish reasons, usage, and the refusal of an invalid request."""
    tools = [{"name": "look", "description": "x", "input_schema": {"type": "object", "properties": {}}}]
    async with generator(tmp_path, own_server.url, gateway.url):
        plain = await wait_for_end(own_log, await append_request(own_log, "words=30 rate=0", system="Be brief."))
        tool = await wait_for_end(
            own_log, await append_request(own_log, 'words=2 rate=0 tool=look json={"at":1}', tools=tools)
        )
        bad = await wait_for_end(own_log, await append_request(own_log, "words=x"))
    assert (plain.text, plain.outcome, plain.stop.stop_reason) == (words(30), "completed", "end_turn")
    assert plain.usage.output_tokens == 30
    assert [block.type for block in tool.blocks] == ["text", "tool_use"]
    assert (json.loads(tool.blocks[1].text), tool.stop.stop_reason) == ({"at": 1}, "tool_use")
    assert failure_code(bad) == "backend_refused_request"


def chunk(content: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(fields)}\n\n"


async def answer_with_fault(request: Request) -> Response:
    """A provider that fails after 20 words as the message says."""
    body = (await request.body()).decode()
    if "how: 429" in body:
        return JSONResponse({"error": {"message": "slow"}}, 429, headers={"retry-after": "7"})

    async def write_words() -> AsyncIterator[str]:
        for number, word in enumerate(words(20).split()):
            yield chunk(f"{' ' if number else ''}{word}")
        if "how: cut" in body:
            raise ConnectionResetError
        if "how: error" in body:
            yield 'data: {"error": {"message": "boom", "type": "server_error"}}\n\n'
        if "how: stall" in body:
            try:
                await asyncio.Event().wait()
            finally:
                request.app.state.is_disconnected.set()

    return StreamingResponse(write_words(), media_type="text/event-stream")


@pytest.fixture
def is_disconnected() -> asyncio.Event:
    """Set once a stalled call of the provider is disconnected."""
    return asyncio.Event()


@pytest.fixture
async def faulty(is_disconnected: asyncio.Event) -> AsyncIterator[str]:
    server = EmbeddedServer("127.0.0.1", 0)
    app = Starlette(routes=[Route("/v1/chat/completions", answer_with_fault, methods=["POST"])])
    app.state.is_disconnected = is_disconnected
    server.config.app = app
    async with run_embedded(server) as url:
        yield url


async def test_claude_continues_after_a_fault_of_the_provider(
    own_server: NatsServer, own_log: TurnLog, own_claude: str, faulty: str, tmp_path: Path
) -> None:
    """An end without a finish reason, a cut, an error, silence, and a 429."""
    given = {
        "TAILRACE_BACKENDS": "litellm:openai/gpt, claude",
        "TAILRACE_STALL_TIMEOUT_S": 2,
        "claude_url": own_claude,
    }
    seen: dict[str, tuple[Turn, list[tuple[str, str]]]] = {}
    async with generator(tmp_path, own_server.url, faulty, **given):
        for how in ("eof", "cut", "error", "stall", "429"):
            key = await append_request(own_log, f"words=60 rate=0\nhow: {how} {os.getpid()}")
            turn = await wait_for_end(own_log, key)
            seen[how] = (turn, [(attempt.backend, attempt.mode) for attempt in await read_attempts(own_log, key)])
    for how, (turn, attempts) in seen.items():
        mode = "fresh" if how == "429" else "continue"
        assert (turn.text, turn.outcome) == (words(60), "completed"), how
        assert attempts == [("litellm", "fresh"), ("claude", mode)], how


async def test_an_answer_that_is_closed_at_its_cost_limit_closes_the_connection_to_the_provider(
    own_server: NatsServer, own_log: TurnLog, faulty: str, is_disconnected: asyncio.Event, tmp_path: Path
) -> None:
    """An open one would be billed on."""
    async with generator(tmp_path, own_server.url, faulty, TAILRACE_STALL_TIMEOUT_S=60):
        key = await append_request(own_log, "words=60 rate=0\nhow: stall", max_cost_nano_usd=1)
        assert (await wait_for_end(own_log, key)).stop.stop_reason == "max_cost"
        async with asyncio.timeout(10):
            await is_disconnected.wait()


@pytest.mark.parametrize(
    "options",
    [{"tool_choice": {"type": "unknown"}}, {"thinking": {"type": "adaptive"}}],
    ids=["no error of openai's library", "an error without a response"],
)
async def test_a_request_that_litellm_cannot_translate_fails_with_a_code(
    own_server: NatsServer, own_log: TurnLog, faulty: str, tmp_path: Path, options: dict[str, object]
) -> None:
    """Another exception would be an interruption of the generator, and all attempts would be made."""
    given = {"TAILRACE_BACKENDS": "litellm:openai/gpt-4o"}
    tools = [{"name": "look", "description": "x", "input_schema": {"type": "object", "properties": {}}}]
    async with generator(tmp_path, own_server.url, faulty, **given):
        turn = await wait_for_end(own_log, await append_request(own_log, "words=1", options=options, tools=tools))
    assert failure_code(turn) in ("backend_failed", "backend_refused_request")


async def test_an_option_that_litellm_would_ignore_is_refused(
    own_server: NatsServer, own_log: TurnLog, faulty: str, tmp_path: Path
) -> None:
    async with generator(tmp_path, own_server.url, faulty):
        turn = await wait_for_end(own_log, await append_request(own_log, "words=1", options={"container": "x"}))
    assert failure_code(turn) == "backend_refused_request"
    assert "container" in str(turn.error)


@pytest.mark.rule("S10")
async def test_an_image_url_is_not_passed_to_litellm(
    own_server: NatsServer, own_log: TurnLog, faulty: str, tmp_path: Path
) -> None:
    """For some providers it fetches images itself, and logs their URLs."""
    picture = {"type": "image", "source": {"type": "url", "url": f"{faulty}/secret.png"}}
    in_result = {"type": "tool_result", "tool_use_id": "t", "content": [picture]}
    in_other_words = {"type": "image_url", "image_url": {"url": f"{faulty}/secret.png"}}
    given = {"TAILRACE_BACKENDS": "litellm:ollama/llava", "OLLAMA_API_BASE": faulty}
    async with generator(tmp_path, own_server.url, faulty, **given) as process:
        for block in (picture, in_result, in_other_words):
            key = TurnKey(Tenant("tenant"), TurnId(new_id()))
            await own_log.append(key, START, request(messages=[Message("user", [block])]))
            turn = await wait_for_end(own_log, key)
            assert failure_code(turn) == "backend_refused_request"
            assert "by URL" in str(turn.error)
    assert "secret.png" not in process.printed.read_text()


def test_rows_of_the_models_file_come_from_litellms_table(tmp_path: Path) -> None:
    """Limits, prices and features; a process accepts the file. An unknown model is an error that says what to do."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PYTHON), "-m", "tailrace.features.litellm.model_rows", *arguments]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)

    names = run("--list", "openai").stdout.split()
    assert {"gpt-4o", "gpt-4o-mini"} <= set(names)
    written = run("openai/gpt-4o", "gpt-4o-mini")
    path = tmp_path / "models.json"
    path.write_text(written.stdout)
    rows = msgspec.json.decode(path.read_bytes(), type=list[Model])
    assert [(row.id, row.owned_by) for row in rows] == [("gpt-4o", "openai"), ("gpt-4o-mini", "openai")]
    assert rows[0].prices is not None
    assert (rows[0].prices.input_nano_usd, rows[0].prices.output_nano_usd) == (2500, 10000)
    assert (rows[0].input_tokens_max, rows[0].supports.tools) == (128_000, True)
    long = msgspec.json.decode(run("gemini/gemini-2.5-pro").stdout, type=list[Model])[0].long_prompt
    assert long is not None
    assert (long.over_tokens, long.prices.input_nano_usd, long.prices.output_nano_usd) == (200_000, 2500, 15_000)
    assert (written.stderr, long.prices.cache_read_nano_usd) == ("", 250)
    rounded = run("amazon.nova-micro-v1:0")
    assert "cache_read_nano_usd is 8.75; it is rounded to 9" in rounded.stderr
    unknown = run("openai/gpt-0")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "has no model 'openai/gpt-0': see --list PROVIDER" in unknown.stderr
