"""OpenAI's built-in tools with four stock clients, and a fault after each event.

`python -m tests.clients.builtin_tools` starts the whole system. Each answer has a search, a run of code and a call of
an MCP server. After `cut` (the connection of the POST) and `gateway` (SIGKILL), the SDKs resume the stream, and the
Agents SDKs repeat their run with `Idempotency-Key: auto`. With `generator`, the generator is killed after the event of
a seed. Prints a row for each fault and client. Fails if an answer is not whole or differs from that without a fault, if
a stored result was made again, or if a call of the model was paid for twice.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from signal import SIGKILL
from typing import Any, Literal, get_args

import httpx2
import openai

from tailrace.proto.server_tools import is_real_result
from tests.clients.codex import SocketProxy, port_of
from tests.clients.node import NODE, SCRIPTS
from tests.clients.test_python_frameworks import PYTHON
from tests.harness.generator_in_loop import shorten_lease, words
from tests.harness.system import System
from tests.harness.until import until

KEY = "none"
WORDS = 8
ANSWER_S_MAX = 60.0
# Its generators run alone, so a short lease takes no turn away.
LEASE_S = 1.0
EVENTS_MAX = 50
TRIES_MAX = 20
SEEDS = 100
MODEL = "claude-haiku-5-5"
MCP: Any = {
    "type": "mcp",
    "server_label": "simulated",
    "server_url": "https://mcp.example/mcp",
    "require_approval": "never",
}
TOOLS: list[Any] = [{"type": "web_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}, MCP]
CALLS = 3
SEARCH_USD = 0.01
# These differ from run to run. The Agents SDK in JavaScript has the rest of an item in `providerData`.
IDS = ("id", "container_id", "providerData")

Fault = Literal["cut", "gateway", "generator"]
Answer = dict[str, Any]


class PythonSdk:
    """OpenAI's SDK, which resumes the stream after its last event."""

    name = "openai (Python)"

    async def ask(self, url: str, question: str) -> Answer | None:
        items: list[Any] = []
        whole: Any = None
        name, seen, headers = "", -1, {"Idempotency-Key": "auto"}
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, default_headers=headers) as sdk:
            for _ in range(TRIES_MAX):
                stream: Any
                try:
                    if name:
                        stream = await sdk.responses.retrieve(name, stream=True, starting_after=seen)
                    else:
                        stream = await sdk.responses.create(model=MODEL, input=question, tools=TOOLS, stream=True)
                    async for event in stream:
                        seen = event.sequence_number
                        name = name or event.response.id
                        if event.type == "response.output_item.done":
                            items.append(event.item)
                        if event.type == "response.completed":
                            whole = event.response
                except (openai.APIConnectionError, httpx2.TransportError):
                    pass
                if whole is not None:
                    assert whole.output == items
                    return {"id": name, "items": list(map(_readable, items)), "text": whole.output_text}
        return None


def _readable(item: Any) -> Any:
    return "".join(part.text for part in item.content) if item.type == "message" else item.to_dict()


class Worker:
    """A client in another program, which answers a line of stdin with a line."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self._process = process

    async def ask(self, url: str, question: str) -> Answer | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"url": url, "question": question}).encode() + b"\n")
        answer: Answer | None = json.loads(await self._process.stdout.readline())
        return answer


Client = PythonSdk | Worker


@asynccontextmanager
async def running_clients() -> AsyncIterator[list[Client]]:
    node, hosted = str(NODE), str(SCRIPTS / "hosted-tools.mjs")
    programs = {
        "openai (Node)": (node, hosted, KEY, "sdk"),
        "openai-agents (Python)": (str(PYTHON), str(SCRIPTS.parent / "python/hosted_tools.py"), KEY),
        "@openai/agents": (node, hosted, KEY, "agents"),
    }
    # Their warnings about each fault are no part of the result.
    processes = [
        await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=2**24)
        for argv in programs.values()
    ]
    try:
        yield [PythonSdk(), *map(Worker, programs, processes)]
    finally:
        for process in processes:
            process.kill()
            await process.wait()


def comparable(items: list[Any], tag: str) -> list[Any]:
    """Returns the items without ids, and without calls whose result was lost with a generator.

    A message that such a call has divided is one.
    """
    found: list[Any] = []
    for item in items:
        if isinstance(item, str) and found and isinstance(found[-1], str):
            found[-1] += item.replace(tag, "w")
        elif isinstance(item, str):
            found.append(item.replace(tag, "w"))
        elif not is_failed(item):
            shown = {**item, **item.get("providerData", {})}
            found.append({name: value for name, value in shown.items() if name not in IDS})
    return found


def is_failed(item: Any) -> bool:
    """In JavaScript, the Agents SDK shows each call of an MCP server as completed, beside the item."""
    return isinstance(item, dict) and "failed" in (item.get("status"), item.get("providerData", {}).get("status"))


class Bench:
    """The running system and clients. All clients ask at once."""

    def __init__(self, system: System, clients: list[Client], claude: httpx2.AsyncClient) -> None:
        self._system = system
        self._clients = clients
        self._claude = claude
        self._runs = 0
        self._whole: dict[str, list[Any]] = {}

    async def run(self, fault: Fault, after: int, asker: int | None = None) -> dict[str, tuple[bool, str, int]]:
        """Returns whether each client's answer was good, after which event its fault came, and its failed calls.

        `asker`: the client whose event counts; by default each client's own, and the first one for a gateway.
        """
        self._runs += 1
        gateway, (generator,) = self._system.gateways[0], self._system.generators
        await self._claude.post("/_sim/reset")
        proxies: list[SocketProxy] = []
        is_struck = False

        async def strike() -> bool:
            nonlocal is_struck
            if fault != "cut" and not is_struck:
                is_struck = True
                if fault == "gateway":
                    gateway.signal(SIGKILL)
                    for proxy in proxies:
                        proxy.to = port_of(self._system.gateways[1].url)
                else:
                    generator.signal(SIGKILL)
            if fault == "cut":
                # A reset drops what the client has not read yet.
                await asyncio.sleep(0.05)
            return fault == "cut"

        async with AsyncExitStack() as stack:
            for number in range(len(self._clients)):
                counts = after if asker in (None, number) else 0
                proxies.append(await stack.enter_async_context(SocketProxy(port_of(gateway.url), counts, strike)))
            tags = [f"r{self._runs}c{number}x" for number in range(len(self._clients))]
            asking = [
                asyncio.create_task(client.ask(f"http://127.0.0.1:{proxy.port}", question(tag)))
                for client, proxy, tag in zip(self._clients, proxies, tags, strict=True)
            ]
            restarting = asyncio.create_task(self._restart(fault, asking))
            async with asyncio.timeout(ANSWER_S_MAX):
                answers = await asyncio.gather(*asking)
            await restarting
        stats = (await self._claude.get("/_sim/stats")).json()
        rows: dict[str, tuple[bool, str, int]] = {}
        stored: set[str] = set()
        for client, proxy, tag, answer in zip(self._clients, proxies, tags, answers, strict=True):
            is_good = answer is not None and answer["text"] == words(WORDS, tag)
            if answer is not None:
                whole = self._whole.setdefault(client.name, comparable(answer["items"], tag))
                is_good = is_good and comparable(answer["items"], tag) == whole
                turn = answer["id"].removeprefix("resp_")
                record = (await self._system.clients[1].get(f"/v1/turns/{turn}")).json()
                # One search, and a few tokens.
                is_good = is_good and round(record["cost_usd"], 3) == SEARCH_USD
                stored |= {block["tool_use_id"] for block in record["content"] if is_real_result(block)}
            failed = 0 if answer is None else sum(map(is_failed, answer["items"]))
            rows[client.name] = (is_good, proxy.event, failed)
        executions: list[list[str]] = [*stats["executions"].values()]
        # The last result of each call is the stored one.
        are_once = sorted(results[-1] for results in executions) == sorted(stored)
        if fault != "generator":
            are_once = are_once and all(len(results) == 1 for results in executions)
            are_once = are_once and all(calls == 1 for calls in stats["turns"].values())
        if not are_once or len(executions) != CALLS * len(self._clients):
            print(f"{fault} {after}: made again: {stats['executions']} {stats['turns']}", flush=True)
            return {name: (False, event, failed) for name, (_, event, failed) in rows.items()}
        return rows

    async def _restart(self, fault: Fault, asking: list[asyncio.Task[Answer | None]]) -> None:
        """Starts the killed process again: a generator at once, a gateway when all clients have their answers."""
        killed = self._system.generators[0] if fault == "generator" else self._system.gateways[0]

        async def is_over() -> bool:
            return (killed.is_gone and fault != "gateway") or all(task.done() for task in asking)

        await until(is_over, ANSWER_S_MAX)
        if killed.is_gone:
            await killed.stop()
            await killed.start()


def question(tag: str) -> str:
    return f"#sim words={WORDS} rate=40 server=web_search,bash_code_execution,mcp tag={tag}"


async def main(args: argparse.Namespace) -> int:
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        async with System(Path(name)) as system, running_clients() as clients, AsyncExitStack() as stack:
            await shorten_lease(system.connection, LEASE_S)
            await system.start(gateways=2)
            claude = await stack.enter_async_context(httpx2.AsyncClient(base_url=system.claude.url, trust_env=False))
            bench = Bench(system, clients, claude)
            rows = await bench.run("cut", 0)
            assert all(is_good for is_good, _, _ in rows.values()), rows
            for fault in args.fault or get_args(Fault):
                good, runs, failed = Counter[str](), Counter[str](), Counter[str]()
                for number in count(1) if fault != "generator" else range(args.seeds):
                    chance = random.Random(number)
                    place = (
                        (number, None) if fault != "generator" else (chance.randint(1, EVENTS_MAX), chance.randrange(4))
                    )
                    rows = await bench.run(fault, *place)
                    struck = [name for name, (_, event, _) in rows.items() if event]
                    if fault != "generator" and not struck:
                        break
                    for client, (is_good, _, lost) in rows.items():
                        if fault != "cut" or client in struck:
                            runs[client] += 1
                            good[client] += is_good
                            failed[client] += lost
                            if not is_good:
                                print(f"{fault} {place} {client}: bad", flush=True)
                for client, made in runs.items():
                    bad += made - good[client]
                    print(f"| {client} | {fault} | {made} | {good[client]} | {failed[client]} |", flush=True)
    print(f"\n{bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", action="append", choices=get_args(Fault), help="only this fault")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how often a generator is killed")
    sys.exit(asyncio.run(main(parser.parse_args())))
