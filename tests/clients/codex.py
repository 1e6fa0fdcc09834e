"""Codex, unmodified, whose WebSocket is cut after each event of an answer: `python -m tests.clients.codex`.

Installs Codex from npm in a temporary folder (420 MB), so it is no part of the test run, and starts the whole system.
Each run of Codex has one fault: its WebSocket is cut after the K-th event that it receives, or the gateway is killed
then. Prints a row for each run. Fails if an answer is not whole, was paid for twice, or ran its command twice.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count, product
from pathlib import Path
from signal import SIGKILL
from typing import Any, Literal, NamedTuple, Self, get_args

import httpx2

from tests.clients.node import NODE, NPM
from tests.harness.cutting_proxy import are_closed, pump
from tests.harness.generator_in_loop import words
from tests.harness.proxy import reset
from tests.harness.stop_server import stop
from tests.harness.system import System

VERSION = "0.171.0"
MODEL = "claude-sonnet-5-5"
RUN_S_MAX = 120.0
# npm and Codex look for their own Node on the path.
PATH = f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"
FRAME_BYTES_MAX = 2**25
BYTES_AT_ONCE = 2**16
EVENT_END = b"\n\n"
# RFC 6455, 5.2: a text frame that is the whole message.
TEXT_FRAME = 0x81
# `plugins` would be downloaded from GitHub. The other settings are those of docs/PROGRAMS.md.
CONFIG = """
model = "{model}"
model_provider = "tailrace"
web_search = "live"
check_for_update_on_startup = false
sandbox_mode = "danger-full-access"

[analytics]
enabled = false

[features]
plugins = false

[agents]
enabled = false

[model_providers.tailrace]
name = "Tailrace"
base_url = "{url}/v1"
env_key = "TAILRACE_KEY"
wire_api = "responses"
supports_websockets = {sockets}
http_headers = {headers}
"""
KEY_AUTO = '{ "Idempotency-Key" = "auto" }'

Fault = Literal["cut", "cut thrice", "kill"]
"""`cut thrice`: the first three sockets are cut after so many events each; `kill`: the gateway gets SIGKILL."""
CUTS = {"cut": 1, "cut thrice": 3, "kill": 1}


class Case(NamedTuple):
    """A question, and what Codex does with the answer."""

    line: str
    words: int
    messages: int = 1
    """The answers of the model, each with the same text."""
    commands: int = 0
    """How often Codex runs the command of the answer."""
    searches: int = 0
    """The searches in the answer, whose text they divide."""


# The answer to the result of a command is thinking and text without a call.
CASES = {
    "text": Case("words=8", 8),
    "search": Case("words=6 server=web_search*2", 6, searches=2),
    "tool": Case('thinking=2 words=3 tool=exec_command json={"cmd":"echo ran >> ran.txt"}', 3, messages=2, commands=1),
}


class CodexRun(NamedTuple):
    """What one run of Codex has done."""

    case: str
    fault: Fault | Literal["none"]
    """`none`: the answer has fewer events."""
    after: int
    """The number of events that Codex had received before the fault."""
    event: str
    """The last of them."""
    sockets: int
    requests: int
    """`response.create` with an answer of the model, and POSTs."""
    posts: int
    calls: int
    """Calls of the model."""
    paid_twice: int
    """Calls whose conversation had an earlier one."""
    commands: int
    status: int
    is_whole: bool
    """Whether Codex has shown each message and search once, whole, and without an error of its turn."""

    @property
    def is_good(self) -> bool:
        expected = CASES[self.case]
        return (
            self.is_whole
            and (self.status, self.paid_twice) == (0, 0)
            and (self.calls, self.commands) == (expected.messages, expected.commands)
        )

    @property
    def row(self) -> str:
        whole = "yes" if self.is_whole and self.status == 0 else f"no, status {self.status}"
        numbers = (self.sockets, self.requests, self.posts, self.calls, self.paid_twice, self.commands)
        return (
            f"| {self.case} | {self.fault} | {self.after} | {self.event} | {whole} | {' | '.join(map(str, numbers))} |"
        )


HEAD = (
    "| answer | fault | after | event | whole | sockets | requests | POSTs | model calls | paid twice | commands |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


class Frame(NamedTuple):
    """A frame of a WebSocket."""

    head: int
    payload: bytes
    raw: bytes


async def read_frame(reader: StreamReader) -> Frame:
    raw = head = await reader.readexactly(2)
    size, mask = head[1] & 127, b""
    if size >= 126:
        raw += (more := await reader.readexactly(2 if size == 126 else 8))
        size = int.from_bytes(more)
    if head[1] & 128:
        raw += (mask := await reader.readexactly(4))
    raw += (body := await reader.readexactly(size))
    if mask:
        key = (mask * (size // 4 + 1))[:size]
        return Frame(head[0], (int.from_bytes(body) ^ int.from_bytes(key)).to_bytes(size), raw)
    return Frame(head[0], body, raw)


class SocketProxy:
    """Forwards connections to the port `to`, and counts what passes. `fault` is called after the event `after`.

    If `fault` returns True, the connection is reset then.
    """

    def __init__(self, to: int, after: int, fault: Callable[[], Awaitable[bool]], *, repeats: int = 1) -> None:
        self.to = to
        self.sockets = 0
        self.creates = 0
        self.posts = 0
        self.event = ""
        """The event after which the fault came first."""
        self.log: list[str] = []
        self._after = after
        self._fault = fault
        self._repeats = repeats
        self._received = 0
        self._forwarding: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=FRAME_BYTES_MAX)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._server)
        forwarding = list(self._forwarding)
        for task in forwarding:
            task.cancel()
        await asyncio.gather(*forwarding, return_exceptions=True)

    def _accept(self, reader: StreamReader, client: StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, client))
        self._forwarding.add(task)
        task.add_done_callback(self._forwarding.discard)

    async def _forward(self, reader: StreamReader, client: StreamWriter) -> None:
        try:
            back, server = await asyncio.open_connection("127.0.0.1", self.to, limit=FRAME_BYTES_MAX)
        except OSError:
            reset(client)
            return
        ways: set[asyncio.Task[None]] = set()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.log.append(f"> {head.split(b' HTTP', 1)[0].decode()}")
            self.posts += head.startswith(b"POST /v1/responses ")
            server.write(head)
            if b"upgrade: websocket" in head.lower():
                self.sockets += 1
                client.write(await back.readuntil(b"\r\n\r\n"))
                ways = {
                    asyncio.create_task(self._requests(reader, server)),
                    asyncio.create_task(self._events(back, client)),
                }
            else:
                ways = {asyncio.create_task(pump(reader, server)), asyncio.create_task(self._sse_events(back, client))}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for way in ways:
                way.cancel()
            reset(server)
            reset(client)
            await asyncio.gather(*ways, return_exceptions=True)
            await are_closed(server, client)

    async def _requests(self, reader: StreamReader, server: StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(reader)
                if frame.head == TEXT_FRAME:
                    self._note_request(json.loads(frame.payload))
                server.write(frame.raw)
                await server.drain()

    def _note_request(self, message: dict[str, Any]) -> None:
        is_answered = message["type"] == "response.create" and message.get("generate") is not False
        self.creates += is_answered
        items = [item.get("type") for item in message.get("input", [])]
        previous = message.get("previous_response_id")
        self.log.append(f"> {message['type']} is_answered={is_answered} previous={previous} input={items}")

    async def _events(self, back: StreamReader, client: StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(back)
                client.write(frame.raw)
                await client.drain()
                if frame.head == TEXT_FRAME and await self._note_event(json.loads(frame.payload)):
                    return

    async def _sse_events(self, back: StreamReader, client: StreamWriter) -> None:
        """Forwards the responses of a connection. Each event ends with an empty line."""
        held, sent = b"", 0
        with suppress(OSError):
            while received := await back.read(BYTES_AT_ONCE):
                held += received
                while (end := held.find(EVENT_END)) >= 0:
                    part, held = held[: end + len(EVENT_END)], held[end + len(EVENT_END) :]
                    client.write(part[sent:])
                    sent = 0
                    await client.drain()
                    _, is_event, data = part.partition(b"\ndata: ")
                    if is_event and await self._note_event(json.loads(data)):
                        return
                # The end of a chunked response has no empty line of an event.
                client.write(held[sent:])
                sent = len(held)
                await client.drain()

    async def _note_event(self, event: dict[str, Any]) -> bool:
        """Returns whether the connection is to be reset."""
        self._received += 1
        self.log.append(f"< {event['type']} {event.get('sequence_number')} {event.get('error', '')}")
        if self._repeats == 0 or self._received != self._after:
            return False
        self._repeats -= 1
        self._received = 0
        self.event = self.event or event["type"]
        self.log.append("-- fault")
        return await self._fault()


def _are_whole(texts: list[str], text: str, case: Case) -> bool:
    return ["".join(texts)] == [text] if case.searches else texts == [text] * case.messages


def _searches(items: list[dict[str, Any]], stats: dict[str, Any]) -> tuple[int, list[int]]:
    """Returns how many searches Codex has shown, and how often the simulated Claude has executed each search."""
    shown = sum(item["type"] == "web_search" for item in items)
    return shown, [len(results) for results in stats["executions"].values()]


class Bench:
    """The running system, and an installed Codex."""

    def __init__(
        self, codex: Path, folder: Path, system: System, *, has_key: bool, has_sockets: bool, is_verbose: bool
    ) -> None:
        self._codex = codex
        self._folder = folder
        self._system = system
        self._headers = KEY_AUTO if has_key else "{}"
        self._sockets = "true" if has_sockets else "false"
        self._is_verbose = is_verbose
        self._runs = 0
        self._claude = httpx2.AsyncClient(base_url=system.claude.url, trust_env=False)

    async def run(self, name: str, fault: Fault, after: int) -> CodexRun:
        """Asks a question that no earlier run has asked."""
        case, gateway = CASES[name], self._system.gateways[0]
        self._runs += 1
        tag = f"r{self._runs}x"
        await self._claude.post("/_sim/reset")

        async def strike() -> bool:
            if fault == "kill":
                gateway.signal(SIGKILL)
                proxy.to = port_of(self._system.gateways[1].url)
            else:
                # A reset drops what Codex has not read yet.
                await asyncio.sleep(0.1)
            return fault != "kill"

        proxy = SocketProxy(port_of(gateway.url), after, strike, repeats=CUTS[fault])
        async with proxy:
            printed, status, commands = await self._ask(f"#sim {case.line} rate=20 tag={tag}", proxy.port)
        if fault == "kill":
            await gateway.stop()
            await gateway.start()
        stats = (await self._claude.get("/_sim/stats")).json()
        items = [line["item"] for line in printed if line["type"] == "item.completed"]
        texts = [item["text"] for item in items if item["type"] == "agent_message"]
        text = words(case.words).replace("w", tag)
        if self._is_verbose:
            print(*proxy.log, *map(json.dumps, printed), sep="\n")
        return CodexRun(
            name,
            fault if proxy.event else "none",
            after,
            proxy.event,
            proxy.sockets,
            proxy.creates + proxy.posts,
            proxy.posts,
            stats["calls"],
            sum(calls - 1 for calls in stats["turns"].values()),
            commands,
            status,
            _are_whole(texts, text, case) and _searches(items, stats) == (case.searches, [1] * case.searches),
        )

    async def _ask(self, question: str, port: int) -> tuple[list[dict[str, Any]], int, int]:
        """Returns the lines that Codex has printed, its exit status, and how often it has run the command."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            config = CONFIG.format(
                model=MODEL, url=f"http://127.0.0.1:{port}", headers=self._headers, sockets=self._sockets
            )
            home, work = make_folders(Path(name), config)
            process = await asyncio.create_subprocess_exec(
                self._codex,
                *("exec", "--json", "--skip-git-repo-check", question),
                cwd=work,
                env={
                    "PATH": PATH,
                    "HOME": str(home),
                    "CODEX_HOME": str(home),
                    "TAILRACE_KEY": "none",
                    "NO_PROXY": "127.0.0.1",
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=FRAME_BYTES_MAX,
            )
            try:
                async with asyncio.timeout(RUN_S_MAX):
                    printed, _ = await process.communicate()
            except TimeoutError:
                process.kill()
                printed, _ = await process.communicate()
            ran = work / "ran.txt"
            commands = len(ran.read_text().splitlines()) if ran.exists() else 0
        return [json.loads(line) for line in printed.splitlines()], process.returncode or 0, commands


def make_folders(folder: Path, config: str) -> tuple[Path, Path]:
    """Returns Codex's home, with its configuration, and a folder to work in."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    (home / "config.toml").write_text(config)
    return home, work


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def install(folder: Path) -> Path:
    """Returns the program, installed with the npm of the tests and the settings of the user."""
    package = f"@openai/codex@{VERSION}"
    argv: list[str | Path] = [NODE, NPM, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, package]
    subprocess.run(argv, env=os.environ | {"PATH": PATH}, check=True)
    return folder / "node_modules/.bin/codex"


@asynccontextmanager
async def running_bench(args: argparse.Namespace) -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codex = args.codex or await asyncio.to_thread(install, folder)
        async with System(folder, settings={"gateway": {"TAILRACE_MAX_TOKENS": 32000}}) as system:
            await system.start(gateways=2)
            yield Bench(
                codex,
                folder,
                system,
                has_key=not args.without_key,
                has_sockets=not args.http,
                is_verbose=args.verbose,
            )


async def main(args: argparse.Namespace) -> int:
    bad = 0
    async with running_bench(args) as bench:

        async def run(name: str, fault: Fault, after: int) -> CodexRun:
            nonlocal bad
            done = await bench.run(name, fault, after)
            bad += not done.is_good
            print(done.row + ("" if done.is_good else " **bad**"), flush=True)
            return done

        print(HEAD)
        for name, fault in product(args.case or CASES, args.fault or get_args(Fault)):
            for after in count(args.after or 1):
                done = await run(name, fault, after)
                if done.fault == "none" or args.after is not None:
                    break
    print(f"\n{bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codex", type=Path, help="an installed program, instead of a new one")
    parser.add_argument("--case", action="append", choices=[*CASES], help="only this answer")
    parser.add_argument("--fault", action="append", choices=get_args(Fault), help="only this fault")
    parser.add_argument("--after", type=int, help="only after this event, instead of after each")
    parser.add_argument("--without-key", action="store_true", help="without the header `Idempotency-Key: auto`")
    parser.add_argument("--http", action="store_true", help="without WebSockets: a POST for each request")
    parser.add_argument("--verbose", action="store_true", help="also print what Codex has sent, received and shown")
    sys.exit(asyncio.run(main(parser.parse_args())))
