"""OpenAI's SDK and its Agents SDK in JavaScript, besides what the client matrix tests."""

import asyncio
from pathlib import Path
from signal import SIGKILL

import pytest

from tailrace.deploy.local import ports
from tailrace.proto.ids import Tenant
from tests.clients import node
from tests.clients.conftest import read_stored_text, read_whole_turns
from tests.clients.test_javascript_blocks import PROGRAMS
from tests.harness import processes
from tests.harness.cutting_proxy import Cut, Cutting, random_cuts
from tests.harness.generator_in_loop import read_stats, words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, api_keys

NODE = "openai (Node)"
EXAMPLE = Path(__file__).parents[2] / "examples/openai_resume.mjs"
AGENTS = "@openai/agents"
REFUSED = {"error": "InternalServerError", "status": 529, "code": "backend_overloaded"}


@pytest.mark.proves("openai-chat", "answer as one JSON body", NODE)
@pytest.mark.proves("openai-chat", "tools", NODE)
@pytest.mark.proves("openai-chat", "errors before the first event", NODE)
@pytest.mark.proves("openai-chat", "errors during the stream", NODE)
async def test_chat_completions(gateway: Gateway) -> None:
    """In one process: a JSON body, a stream with usage, a tool that the SDK runs, both kinds of errors."""
    whole, streamed, tools, refused, failed = await node.run("openai-chat.mjs", KEY, gateway.url)
    for shown in (whole, streamed):
        turn = shown.pop("id").removeprefix("chatcmpl-")
        assert shown.pop("text") == words(5) == await read_stored_text(gateway, turn)
    assert (whole, streamed) == ({"usage": 5}, {"usage": 5})
    assert tools == {"text": words(2), "ran": ["the sky"], "roles": ["user", "assistant", "tool", "assistant"]}
    assert refused == REFUSED
    assert failed == {"error": "APIError", "code": "interrupted", "text": words(5)}


async def test_the_example_resumes_and_raises_the_error_of_a_failed_answer(gateway: Gateway) -> None:
    """It took a part of an answer that had failed for all of it."""
    example = EXAMPLE.read_text()

    async def run(url: str, question: str) -> str:
        code = example.replace("http://localhost:8000", url).replace("my-secret-key", KEY)
        code = code.replace("Name a river.", question).replace("stream: true }", 'stream: true, on_interrupt: "fail" }')
        return await node.command([str(node.NODE), "--input-type=module", "-e", code], {}, node.SCRIPTS)

    async with Cutting(gateway.port, [Cut(1500), Cut(2500, "fin")]) as proxy:
        assert (await run(proxy.url, "#sim words=40 rate=100")).strip() == words(40)
    assert proxy.left == []
    with pytest.raises(AssertionError, match=r"(?s)status 1; .*APIError: the answer broke off"):
        await run(gateway.url, "#sim words=9 rate=0 fault=error@5")


@pytest.mark.proves("openai-responses", "answer as one JSON body", NODE)
@pytest.mark.proves("openai-responses", "tools", NODE)
@pytest.mark.proves("openai-responses", "thinking", NODE)
@pytest.mark.proves("openai-responses", "errors before the first event", NODE)
@pytest.mark.proves("openai-responses", "resumes with the SDK's accumulator", NODE)
@pytest.mark.proves("openai-responses", "background", NODE)
@pytest.mark.proves("openai-responses", "cancel", NODE)
async def test_responses(gateway: Gateway) -> None:
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
    assert refused == REFUSED
    assert "Error" in cut["cut"]
    assert accumulated == {"isNumbered": True, "final": words(120)}
    assert cancelled == {"status": "cancelled", "end": "response.incomplete", "status_of_end": "cancelled"}


@pytest.mark.proves("openai-responses", "resumes when its gateway is killed", NODE)
async def test_a_response_continues_after_its_gateway_was_killed(
    system: System, gateway: Gateway, tenant: Tenant, claude: str
) -> None:
    """The gateway starts again at its address; the SDK reconnects and resumes."""
    (port,) = ports.find_free(1)
    before = (await read_stats(claude))["output_tokens"]

    async def has_output() -> bool:
        return (await read_stats(claude))["output_tokens"] >= before + 20

    settings = {"TAILRACE_PORT": port, "TAILRACE_API_KEYS": api_keys(tenant)}
    async with processes.gateway(system.folder, system.nats_url, **settings) as killed:
        line = "#sim words=120 rate=50"
        asking = asyncio.create_task(node.run("openai-responses-resume.mjs", KEY, killed.url, line))
        await until(has_output)
        await killed.stop(SIGKILL)
        await killed.start()
        (shown,) = await asking
    turn = shown.pop("id").removeprefix("resp_")
    assert shown.pop("text") == words(120) == await read_stored_text(gateway, turn)
    assert shown == {"isNumbered": True}


async def test_the_socket_example_continues_after_cuts(gateway: Gateway) -> None:
    """One handshake fails, and two connections are lost. For the SDK's loop, that is an end like any other."""
    (code,) = [code for _, code in PROGRAMS if "ResponsesWS" in code]
    async with Cutting(gateway.port, [Cut(0), Cut(2500), Cut(3500, "fin")]) as proxy:
        code = code.replace("http://localhost:8000", proxy.url).replace("my-secret-key", KEY)
        code = code.replace("Why is the sky blue?", "#sim words=60 rate=100")
        shown = await node.command([str(node.NODE), "--input-type=module", "-e", code], {}, node.SCRIPTS)
    assert proxy.left == []
    assert shown == words(60)
    assert await read_whole_turns(gateway) == [words(60)]


@pytest.mark.proves("openai-chat", "stream with tools", AGENTS)
@pytest.mark.proves("openai-responses", "stream with tools", AGENTS)
@pytest.mark.proves("openai-chat", "raises after a cut, and shows no word twice", AGENTS)
@pytest.mark.proves("openai-responses", "raises after a cut, and shows no word twice", AGENTS)
async def test_the_agents_sdk_over_both_protocols(gateway: Gateway) -> None:
    """It calls a tool between two answers, and sends back messages with fields of its own. It does not continue a
    stream that is cut: it raises, and the turn goes on.
    """
    async with Cutting(gateway.port, [Cut(5_000), Cut(5_000)]) as proxy:
        *runs, chat, responses = await node.run("openai-agents.mjs", KEY, gateway.url, proxy.url)
        assert proxy.left == []
    assert runs == [{"texts": [[words(2) * 2, words(2)], [words(40)] * 2], "ran": ["the sky"]}] * 2
    for cut in (chat, responses):
        assert "error" in cut, cut
        assert words(40).startswith(cut["text"])
    # A conversation is three calls of the model, and an answer that was cut is one.
    assert sorted(await read_whole_turns(gateway)) == sorted([words(2)] * 4 + [words(40)] * 4)


@pytest.mark.proves("openai-chat", "its own options, tools, usage", "@openrouter/ai-sdk-provider")
async def test_openrouters_provider_with_its_own_options(gateway: Gateway) -> None:
    """A header names the fields without effect. Without `usage.include` the provider requests no usage."""
    plain, counted, thinking, routed, tools = await node.run("openrouter.mjs", KEY, gateway.url)
    for shown in (plain, counted, thinking, routed):
        assert (shown["text"], shown["errors"]) == (words(5), [])
    assert "outputTokens" not in plain
    assert [one["outputTokens"] > 0 for one in (counted, thinking, routed, tools)] == [True] * 4
    assert [one["ignored"] for one in (plain, counted, thinking, tools)] == [[None], [None], [None], [None, None]]
    (ignored,) = routed["ignored"]
    assert sorted(ignored.split(", ")) == [
        "echo",
        "include_reasoning",
        "min_p",
        "models",
        "provider",
        "reasoning.exclude",
        "repetition_penalty",
        "top_a",
        "top_k",
        "transforms",
    ]
    assert (tools["text"], tools["errors"]) == (words(2), [])
