"""SDKs and frameworks over Tailrace's transport: cuts and killed gateways, which they do not see."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest
from anthropic import AsyncAnthropic
from anthropic.lib.streaming import AsyncMessageStream

from tailrace import AsyncResumingTransport, ResumingTransport
from tailrace.client import transport
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import new_key
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto.ids import Tenant, new_id
from tests.clients import node
from tests.clients.conftest import count_turns
from tests.clients.openai_chat import MODEL, user_message
from tests.clients.resuming import BLOCKING, CALLED, RUNS, TWO_TURNS, WITH_TOOL, Outcome, messages_stream
from tests.clients.test_python_frameworks import PYTHON
from tests.harness.cutting_proxy import Cut, Cutting, EventCutting, random_cuts
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT, Process
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway

SHORT = "#sim words=6 rate=0 thinking=1"
# Half a second.
LONG = "#sim words=40 rate=80 thinking=1"
KILLED = "shows a whole answer when its gateway is killed, over Tailrace's transport"
SEED = 76
KILLS = 20
B = "http://b:2/app"
# Of each kind of run while the gateway is killed: about as long as the kills take.
RUNS_OF_A_KIND = 32
# Some minutes on a machine that does a lot else.
DEADLINE_S = 500.0
JAVASCRIPT = ("messages.stream", "toolRunner", "chat completions", "responses")
OLDER = (
    "anthropic",
    "anthropic, blocking",
    "openai, chat",
    "openai, responses, blocking",
    "openai-agents, chat",
    "openai-agents, responses",
    "langchain-anthropic, blocking",
)
LANGCHAIN = ("langchain-anthropic", "langchain-openai")


def new_transport(name: str, gateways: list[str]) -> Any:
    return (ResumingTransport if name in BLOCKING else AsyncResumingTransport)(gateways=gateways)


@asynccontextmanager
async def cutting_proxies(port: int, count: int) -> AsyncIterator[list[EventCutting]]:
    """Proxies of which each cuts after one more event."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(EventCutting(port, events)) for events in range(1, count + 1)]


async def run_javascript(urls: str, gateways: str, runs: int, line: str, *kinds: str) -> list[dict[str, Any]]:
    arguments = (urls, KEY, gateways, runs, line, *([",".join(kinds)] if kinds else []))
    return await node.run("resuming.mjs", *arguments, deadline_s=DEADLINE_S)


async def run_sdks(
    python: Path, kinds: Sequence[str], url: str, gateways: str, runs: int, line: str
) -> list[dict[str, Any]]:
    """Returns the outcomes of the SDKs and frameworks of another Python."""
    script = Path(__file__).parent / "python/sdk_runs.py"
    command = [str(python), str(script), url, KEY, gateways, str(runs), line, *kinds]
    printed = await node.command(command, {"HOME": PYTHON.parent, "PYTHONPATH": CHECKOUT}, CHECKOUT, DEADLINE_S)
    return [json.loads(outcome) for outcome in printed.splitlines()]


@pytest.mark.parametrize("name", RUNS)
async def test_a_cut_after_each_event_is_not_seen(gateway: Gateway, name: str) -> None:
    """Also within the next event: the text is whole, each tool runs once, and each answer is paid once."""
    expected, turns = Outcome(words(6), CALLED if name in TWO_TURNS else []), 2 if name in TWO_TURNS else 1
    cuts, is_cut = 0, True
    while is_cut:
        async with EventCutting(gateway.port, cuts + 1, extra_bytes=9 * (cuts % 2)) as proxy:
            assert await RUNS[name](proxy.url, new_transport(name, []), SHORT) == expected, cuts
            is_cut = not proxy.events_left
        cuts += 1
    # Also after the last event.
    assert cuts > 7
    assert await count_turns(gateway) == cuts * turns


@pytest.mark.parametrize("kind", JAVASCRIPT)
async def test_a_cut_after_each_event_is_not_seen_in_javascript(gateway: Gateway, kind: str) -> None:
    async with cutting_proxies(gateway.port, 30) as proxies:
        outcomes = await run_javascript(",".join(proxy.url for proxy in proxies), "-", 1, SHORT, kind)
        cuts = sum(not proxy.events_left for proxy in proxies)
    calls = CALLED if kind == "toolRunner" else []
    assert outcomes == [{"kind": kind, "text": words(6), "calls": calls}] * 30
    assert cuts > 6
    assert await count_turns(gateway) == 30 * (2 if calls else 1)


async def run_everything(url: str, gateways: list[str] | None, runs: int) -> list[tuple[str, Outcome | str]]:
    """Returns the outcome, or the error, of `runs` runs of each kind, which all run at the same time.

    `gateways`: those of Tailrace's transport; None for the transport of the HTTP library.
    """
    given = "plain" if gateways is None else ",".join(gateways) or "-"

    async def run_python(name: str) -> list[tuple[str, Outcome | str]]:
        outcomes: list[tuple[str, Outcome | str]] = []
        for _ in range(runs):
            try:
                transport = new_transport(name, gateways) if gateways is not None else None
                outcomes.append((name, await RUNS[name](url, transport, LONG)))
            except Exception as error:  # noqa: BLE001  # each framework has its own
                outcomes.append((name, type(error).__name__))
        return outcomes

    async def read(language: str, running: Awaitable[list[dict[str, Any]]]) -> list[tuple[str, Outcome | str]]:
        return [
            (f"{language}, {one['kind']}", one.get("error") or Outcome(one["text"], one["calls"]))
            for one in await running
        ]

    found = await asyncio.gather(
        read("JavaScript", run_javascript(url, given, runs, LONG)),
        read("AI SDK", node.run("ai-sdk-providers.mjs", url, KEY, given, runs, LONG, deadline_s=DEADLINE_S)),
        read("httpx", run_sdks(PYTHON, OLDER, url, given, runs, LONG)),
        read("httpx2", run_sdks(Path(sys.executable), LANGCHAIN, url, given, runs, LONG)),
        *map(run_python, RUNS),
    )
    return [outcome for outcomes in found for outcome in outcomes]


async def kill_until(running: asyncio.Task[Any], gateway: Process, away_s: float) -> int:
    """Kills the gateway at random moments, and starts it again after `away_s`, until the runs end. Counts the kills."""
    moments, kills = random.Random(SEED), 0
    while not running.done():
        await asyncio.wait([running], timeout=moments.uniform(0.2, 2.0))
        await gateway.stop(SIGKILL)
        kills += 1
        await asyncio.sleep(away_s)
        await gateway.start()
    return kills


@pytest.fixture
async def killable(tmp_path: Path) -> AsyncIterator[System]:
    """A system with two gateways, without keys, which a test kills."""
    async with System(tmp_path) as system:
        await system.start(generators=1, gateways=2)
        yield system


@pytest.mark.proves("anthropic", KILLED, "anthropic (Python)")
@pytest.mark.proves("anthropic", KILLED, "@anthropic-ai/sdk")
@pytest.mark.proves("anthropic", KILLED, "pydantic-ai")
@pytest.mark.proves("openai-chat", KILLED, "openai (Python)")
@pytest.mark.proves("openai-chat", KILLED, "openai (Node)")
@pytest.mark.proves("openai-chat", KILLED, "openai-agents (Python)")
@pytest.mark.proves("openai-chat", KILLED, "pydantic-ai")
@pytest.mark.proves("anthropic", KILLED, "langchain-anthropic")
@pytest.mark.proves("anthropic", KILLED, "AI SDK's streamText")
@pytest.mark.proves("openai-chat", KILLED, "AI SDK's streamText")
@pytest.mark.proves("openai-responses", KILLED, "AI SDK's streamText")
@pytest.mark.proves("openai-chat", KILLED, "langchain-openai")
@pytest.mark.proves("openai-responses", KILLED, "openai (Python)")
@pytest.mark.proves("openai-responses", KILLED, "openai (Node)")
@pytest.mark.proves("openai-responses", KILLED, "openai-agents (Python)")
@pytest.mark.proves("openai-responses", KILLED, "pydantic-ai")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("takeover", ["another gateway", "the same gateway"])
async def test_a_killed_gateway_is_not_seen(killable: System, takeover: str) -> None:
    """At random moments: each text is whole, each tool runs once, and each answer is paid once."""
    gateway, other = killable.gateways
    gateways = [other.url] if takeover == "another gateway" else []
    running = asyncio.create_task(run_everything(gateway.url, gateways, RUNS_OF_A_KIND))
    kills = await kill_until(running, gateway, away_s=0.5 if gateways else 0)
    outcomes = await running
    turns = 0
    for kind, outcome in outcomes:
        has_tool = kind in TWO_TURNS or kind == "JavaScript, toolRunner"
        has_tool |= "openai-agents" in kind or kind.startswith("AI SDK")
        assert outcome == Outcome(words(40), CALLED if has_tool else []), kind
        turns += 2 if has_tool else 1
    assert set(Counter(kind for kind, _ in outcomes).values()) == {RUNS_OF_A_KIND}
    assert kills >= KILLS
    async with httpx2.AsyncClient(trust_env=False) as client:
        stats = (await client.get(f"{killable.claude.url}/_sim/stats")).json()
    assert (stats["calls"], stats["continuations"]) == (turns, 0)


SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}}
LOOK = {"name": "look", "parameters": SCHEMA}
TOOLS: dict[str, dict[str, Any]] = {
    "messages": {"name": "look", "input_schema": SCHEMA},
    "chat/completions": {"type": "function", "function": LOOK},
    "responses": {"type": "function", **LOOK},
}
BODIES: dict[str, dict[str, Any]] = {
    "messages": {"max_tokens": 99, "messages": [{"role": "user", "content": SHORT + WITH_TOOL}]},
    "chat/completions": {"messages": [{"role": "user", "content": SHORT + WITH_TOOL}]},
    "responses": {"input": SHORT + WITH_TOOL},
    # Not stored in the database.
    "responses?": {"input": SHORT + WITH_TOOL, "store": False, "include": ["reasoning.encrypted_content"]},
}


@pytest.mark.parametrize("path", BODIES)
async def test_the_bytes_are_those_of_an_uncut_answer(gateway: Gateway, path: str) -> None:
    """Cut at any byte. The same key gets the same turn."""
    body = {"model": MODEL, "stream": True, "tools": [TOOLS[path.removesuffix("?")]], **BODIES[path]}
    given: Any = {"json": body, "headers": {"Idempotency-Key": "k", "Authorization": f"Bearer {KEY}"}}
    uncut = (await gateway.client.post(f"/v1/{path}", **given)).content
    assert len(uncut) > 1_000
    async with httpx2.AsyncClient(transport=AsyncResumingTransport()) as client:
        for seed in range(20):
            cuts = random_cuts(seed, 5, len(uncut))
            async with (
                Cutting(gateway.port, cuts) as proxy,
                client.stream("POST", f"{proxy.url}/v1/{path}", **given) as response,
            ):
                assert b"".join([part async for part in response.aiter_raw()]) == uncut, cuts


@pytest.mark.parametrize("name", ["messages.stream", "chat completions", "responses", "pydantic-ai, chat"])
async def test_a_restart_is_the_error_that_it_is_without_the_transport(gateway: Gateway, name: str) -> None:
    """An answer that is cut within thinking begins again. The SDK has a part of the old one, and cannot discard it."""
    errors = []
    for given in (None, new_transport(name, [])):
        with pytest.raises(Exception) as raised:  # noqa: PT011  # each SDK has its own
            await RUNS[name](gateway.url, given, f"{new_id()}\n#sim words=4 thinking=20 rate=50 fault=cut@9x1")
        errors.append((type(raised.value), getattr(raised.value, "code", None)))
    assert errors[0] == errors[1]


async def test_a_key_that_is_revoked_in_mid_answer_ends_it(
    gateway: Gateway, shared_keys: KeyStore, tenant: Tenant
) -> None:
    """The gateway ends the stream, and refuses to go on: the SDK sees the cut. The turn goes on."""
    key = new_key(tenant, now=int(time.time()), scopes=SCOPES)
    await shared_keys.create(key.record)
    http = httpx2.AsyncClient(transport=AsyncResumingTransport())
    given: Any = {"model": MODEL, "max_tokens": 500, "messages": user_message("#sim words=90 rate=20")}

    async def read(stream: AsyncMessageStream) -> None:
        async for _ in stream.text_stream:
            await shared_keys.revoke(key.record.id, int(time.time()))

    async with (
        AsyncAnthropic(base_url=gateway.url, api_key=key.secret, http_client=http) as sdk,
        sdk.messages.stream(**given) as stream,
    ):
        with pytest.raises(httpx2.TransportError) as raised:
            await read(stream)
    assert "status 401" in raised.value.__notes__[-1]


async def test_a_gateway_without_its_tls_and_a_silent_connection_are_passed_over(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent connection is given up after 40 seconds, here sooner."""
    monkeypatch.setattr(transport, "SILENCE_S", 0.5)
    no_tls = f"https://127.0.0.1:{gateway.port}"
    for how in ("rst", "silence"):
        async with Cutting(gateway.port, [Cut(1_500, how)]) as proxy:
            # A word comes every 0.1 s.
            outcome = await messages_stream(
                proxy.url, AsyncResumingTransport(gateways=[no_tls]), "#sim words=20 rate=10"
            )
            assert outcome.text == words(20)
            assert (proxy.left, proxy.connections) == ([], 2)


async def test_the_fetch_in_javascript_heals_what_the_transport_heals() -> None:
    """The cases of tests/unit/test_transport.py."""
    cases = {one.pop("case"): one for one in await node.run("resuming-cases.mjs")}
    rest = "/v1/turns/t1/events?dialect=anthropic&after=5"
    urls = ["POST http://a:1/v1/messages", *(f"GET {one}{rest}" for one in (B, "http://a:1", B))]
    assert cases == {
        "goes on": {"isWhole": True, "urls": urls},
        "50 cuts with an event": {"isWhole": True},
        "50 cuts without an event": {"text": "TypeError: cut", "requests": 13},
        "revoked key": {"text": "TypeError: cut", "requests": 3},
        "restart": {"text": "TypeError: cut"},
        "clean end": {"isWhole": True},
        "iterator body": {"text": "TypeError: cut", "requests": 1, "key": None},
        "not streamed": {"text": "{}", "key": None},
        "not Tailrace": {"text": "TypeError: cut", "requests": 1},
        "keys of repetitions": {"requests": 7, "keysOfSecond": 1, "isNew": True},
        "stopped by the app": {"error": "AbortError"},
    }
