"""The programs and pages of examples/: each shows its answer once over cut connections and killed processes.

An agent and a backend that are killed in the middle of an answer pay for it once.
"""

import asyncio
import os
import secrets
import shutil
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import cast

import httpx2
import msgspec
import pytest

from tailrace.deploy.local.ports import find_free
from tests.clients import node
from tests.clients.conftest import count_turns
from tests.harness.cutting_proxy import Cut, Cutting, random_cuts
from tests.harness.dropped_packets import drop_packets
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway

EXAMPLES = CHECKOUT / "examples"
# The frameworks are in the venv of the clients with older SDKs: `make clients`.
OLDER_SDKS = str(CHECKOUT / ".venv-clients/bin/python")
# The imports of a framework take seconds of CPU.
WAIT_S_MAX = 90.0
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no `curl` here")
ASK_SH = pytest.param("ask.sh", marks=needs_curl)
# Within the body of a response to a POST, and of the record of a turn.
IN_BODY = 600
# Tailrace recognises an EventSource of Safari by these headers, which a backend has to pass on.
SAFARI = {"accept": "text/event-stream", "cache-control": "no-cache", "user-agent": "AppleWebKit/605.1.15 Safari"}


async def start(url: str, folder: Path, *command: str, **own: str) -> Process:
    # Without bytecode, a framework takes twice the time to import.
    environ = os.environ | {"PYTHONPATH": str(CHECKOUT), "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": ""}
    environ |= {"TAILRACE_URL": url, "TAILRACE_KEY": KEY, **own}
    return await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environ, stdout=PIPE, stderr=PIPE, start_new_session=True
    )


async def read_printed(process: Process) -> str:
    output, complained = await asyncio.wait_for(process.communicate(), WAIT_S_MAX)
    assert process.returncode == 0, complained
    return output.decode()


def read_files(folder: Path) -> list[str]:
    return [file.read_text() for file in folder.rglob("*") if file.is_file()]


def text_of_events(lines: str) -> str:
    events = [msgspec.json.decode(line) for line in lines.splitlines()]
    assert events[-1]["outcome"] == "completed"
    return "".join(event["text"] for event in events if event["type"] == "delta")


@pytest.mark.parametrize("example", ["ask.py", ASK_SH])
async def test_an_example_prints_the_answer_once_over_cut_connections(
    gateway: Gateway, tmp_path: Path, example: str
) -> None:
    line = "#sim words=200 rate=120"
    async with Cutting(gateway.port, random_cuts(5, 4, bytes_max=1800)) as proxy:
        if example == "ask.py":
            program = await start(proxy.url, tmp_path, sys.executable, str(EXAMPLES / example), line)
            text = await read_printed(program)
        else:
            body = msgspec.json.encode({"message": line}).decode()
            text = text_of_events(
                await read_printed(await start(proxy.url, tmp_path, "sh", str(EXAMPLES / example), body))
            )
        assert proxy.left == []
    assert text == words(200)
    assert await count_turns(gateway) == 1


@needs_curl
async def test_the_script_ends_when_its_turn_is_refused_for_good(
    gateway: Gateway, system: System, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """After a cut, another gateway does not know its key."""
    other = await new_gateway(system.nats_url, api_keys=f"other:{'0' * 64}")
    async with Cutting(gateway.port, [Cut(3000)]) as proxy:
        body = '{"message": "#sim words=400 rate=100"}'
        program = await start(proxy.url, tmp_path, "sh", str(EXAMPLES / "ask.sh"), body)
        await until(lambda: proxy.connections == 2)
        proxy.to = other.port
        try:
            _, complained = await asyncio.wait_for(program.communicate(), WAIT_S_MAX)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, SIGKILL)
    assert (program.returncode, b"with status 401" in complained) == (1, True), complained


@needs_curl
async def test_the_script_reconnects_when_a_router_has_forgotten_its_connection(tmp_path: Path) -> None:
    """There is no FIN and no RST. The probes are sent each second instead of each 15 s."""
    (tmp_path / "curl").write_text(
        f"""#!/bin/sh
for argument; do
    [ "$argument" != 15 ] || argument=1
    set -- "$@" "$argument"
    shift
done
exec {shutil.which("curl")} "$@"
"""
    )
    (tmp_path / "curl").chmod(0o755)
    requests: list[bytes] = []
    forgotten: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n")
        if len(requests) == 1:
            writer.write(b'Content-Length: 12\r\n\r\n{"turn":"t"}')
        elif len(requests) == 2:
            writer.write(b'\r\ndata: {"type":"delta","text":"Hi"}\nid: 7\n\n')
            await writer.drain()
            drop_packets(cast("socket.socket", writer.get_extra_info("socket")))
            forgotten.append(writer)
            return
        else:
            writer.write(b'\r\ndata: {"type":"done"}\nid: 8\n\n')
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        path = f"{tmp_path}:{os.environ['PATH']}"
        program = await start(url, tmp_path, "sh", str(EXAMPLES / "ask.sh"), '{"message": "Hi."}', PATH=path)
        try:
            printed, _ = await asyncio.wait_for(program.communicate(), WAIT_S_MAX)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, SIGKILL)
            for writer in forgotten:
                writer.transport.abort()
    assert printed == b'{"type":"delta","text":"Hi"}\n{"type":"done"}\n'
    assert b"Last-Event-ID: 7" in requests[2]


@needs_curl
async def test_the_script_writes_its_key_to_no_file_and_leaves_none_when_it_is_interrupted(tmp_path: Path) -> None:
    command = ("sh", str(EXAMPLES / "ask.sh"), '{"message": "Hi."}')
    program = await start("http://127.0.0.1:1", tmp_path, *command, TMPDIR=str(tmp_path))
    await until(lambda: read_files(tmp_path))
    assert KEY not in "".join(read_files(tmp_path))
    os.killpg(program.pid, SIGINT)
    await asyncio.wait_for(program.communicate(), WAIT_S_MAX)
    assert read_files(tmp_path) == []


@pytest.mark.parametrize("example", ["ask.py", ASK_SH, "agents/langgraph_agent.py"])
async def test_a_program_whose_key_is_refused_ends_with_the_reason(
    gateway: Gateway, tmp_path: Path, example: str
) -> None:
    command = {
        "ask.py": [sys.executable, str(EXAMPLES / example), "Hi."],
        "ask.sh": ["sh", str(EXAMPLES / example), '{"message": "Hi."}'],
    }.get(example, [OLDER_SDKS, str(EXAMPLES / example), "run-1", "Hi."])
    program = await start(gateway.url, tmp_path, *command, TAILRACE_KEY="sk-wrong")
    try:
        _, complained = await asyncio.wait_for(program.communicate(), 40)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, SIGKILL)
    assert (program.returncode, b"The credential is missing, not valid" in complained) == (1, True), complained


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("example", "kills"),
    [("anthropic_agent.py", (0, 1)), ("langgraph_agent.py", (1,)), ("openai_agents_agent.py", (1,))],
)
async def test_an_agent_that_is_killed_in_mid_call_attaches_to_its_turn(
    gateway: Gateway, tmp_path: Path, example: str, kills: tuple[int, ...]
) -> None:
    """In its first call, and in the call after the tool. It executes the tool once, and asks the model twice in all.

    `kills`: how many calls have ended at each kill.
    """
    task = '#sim words=60 rate=30 tool=measure_depth json={"river":"Rhine"}'
    python = sys.executable if example == "anthropic_agent.py" else OLDER_SDKS
    agent = (python, str(EXAMPLES / "agents" / example), "run-1", task)
    measured = 0
    for ended in kills:
        killed = await start(gateway.url, tmp_path, *agent)
        assert killed.stderr is not None
        shown = b""
        while shown.count(b"w000009") <= ended:
            shown += await asyncio.wait_for(killed.stderr.read(1000), WAIT_S_MAX)
        assert shown.count(b"w000059") == ended, "the call ended before the kill"
        killed.send_signal(SIGKILL)
        measured += (shown + (await killed.communicate())[1]).count(b"measuring the depth of the Rhine")
    again = await start(gateway.url, tmp_path, *agent)
    answer, shown = await asyncio.wait_for(again.communicate(), WAIT_S_MAX)
    assert answer.decode() == f"{words(60)}\n", shown
    assert measured + shown.count(b"measuring the depth of the Rhine") == 1
    assert await count_turns(gateway) == 2
    if example == "anthropic_agent.py":
        # Another run is paid for.
        await read_printed(await start(gateway.url, tmp_path, *agent[:2], "run-2", task))
        assert await count_turns(gateway) == 4


def copy_of(example: str, tmp_path: Path, *modules: str) -> Path:
    """Copies an example in JavaScript, with modules of web/ and the packages that the tests have installed."""
    shutil.copy(EXAMPLES / "eventsource.html", tmp_path)
    folder = shutil.copytree(EXAMPLES / example, tmp_path / example)
    (folder / "node_modules").symlink_to(node.MODULES)
    for module in modules:
        shutil.copy(CHECKOUT / "web" / module, folder / ("src" if example == "react" else "."))
    return Path(folder)


def copy_of_backend(example: str, tmp_path: Path, port: int) -> tuple[Path, list[str]]:
    """Copies an example of a backend, whose second user is `ada-1`. Returns its folder and its command."""
    if example == "express":
        folder, command = copy_of(example, tmp_path), [str(node.NODE), "server.js"]
        server = folder / "server.js"
    else:
        folder, command = tmp_path, [OLDER_SDKS, "-m", "uvicorn", "fastapi_app:app", "--port", str(port)]
        shutil.copy(EXAMPLES / "eventsource.html", folder)
        server = Path(shutil.copy(EXAMPLES / example, folder))
    server.write_text(server.read_text().replace('"eve"', '"ada-1"'))
    return folder, command


@asynccontextmanager
async def running_server(port: int, url: str, folder: Path, *command: str, **own: str) -> AsyncIterator[Process]:
    """Starts a server, waits until it answers, and kills it and its children at the end."""
    process = await start(url, folder, *command, PORT=str(port), **own)
    try:
        async with asyncio.timeout(WAIT_S_MAX), httpx2.AsyncClient() as client:
            while True:
                assert process.returncode is None, (await process.communicate())[1]
                try:
                    await client.get(f"http://127.0.0.1:{port}/")
                    break
                except httpx2.TransportError:
                    await asyncio.sleep(0.1)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)
        await process.communicate()


class Page:
    """A page of an example in Chromium, which asks `message`."""

    def __init__(self, url: str, message: str, browser: str, file: str = "") -> None:
        self._command = (
            str(node.NODE),
            str(node.SCRIPTS / "example-page.mjs"),
            url,
            message,
            *([file] if file else []),
        )
        self._environ = os.environ | {"CHROMIUM": browser}

    async def ask(self) -> None:
        """Returns in the middle of the answer."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environ, cwd=node.SCRIPTS, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )
        assert self._process.stdout is not None
        assert await asyncio.wait_for(self._process.stdout.readline(), WAIT_S_MAX), await read_printed(self._process)

    async def read_result(self) -> tuple[str, str]:
        """Returns the text and the outcome at the end."""
        text, outcome = msgspec.json.decode(await read_printed(self._process))
        return text, outcome


async def test_the_page_with_eventsource(open_gateway: Gateway, browser: str) -> None:
    """Two responses to its POST are cut first: one in its headers, one in its body."""
    cuts = [Cut(50), Cut(IN_BODY), *random_cuts(3, count=3, bytes_max=1400, bytes_min=900)]
    async with Cutting(open_gateway.port, cuts) as proxy:
        line = "#sim words=200 rate=120"
        page = Page(f"{proxy.url}/eventsource.html", line, browser, str(EXAMPLES / "eventsource.html"))
        await page.ask()
        assert await page.read_result() == (words(200), "completed")
        assert proxy.left == []


async def test_the_page_with_use_turn_on_vites_server(gateway: Gateway, browser: str, tmp_path: Path) -> None:
    folder = copy_of("react", tmp_path, "tailrace.js", "session.js", "outbox.js", "react.js")
    # Its cache is in node_modules, which are those of all tests.
    (folder / "vite.config.js").write_text(
        (folder / "vite.config.js").read_text().replace("plugins:", 'cacheDir: "cache", plugins:')
    )
    (port,) = find_free(1)
    vite = (str(node.NODE), "node_modules/vite/bin/vite.js", "--host", "127.0.0.1", "--port", str(port), "--strictPort")
    async with (
        Cutting(gateway.port, random_cuts(3, count=3, bytes_max=1400, bytes_min=900)) as proxy,
        running_server(port, proxy.url, folder, *vite),
    ):
        page = Page(f"http://127.0.0.1:{port}/", "#sim words=200 rate=120", browser)
        await page.ask()
        assert await page.read_result() == (words(200), "completed")
        assert proxy.left == []
    assert await count_turns(gateway) == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("example", ["fastapi_app.py", "express"])
async def test_a_backend_that_is_killed_in_mid_answer_goes_on_with_it(
    gateway: Gateway, browser: str, tmp_path: Path, example: str
) -> None:
    """Only the user of the turn may read it. While Tailrace is away, status 200 lets an EventSource come back."""
    (port,) = find_free(1)
    folder, command = copy_of_backend(example, tmp_path, port)
    url = f"http://127.0.0.1:{port}"
    page = Page(url, "#sim words=300 rate=60", browser)
    async with running_server(port, gateway.url, folder, *command) as killed:
        await page.ask()
        killed.send_signal(SIGKILL)
        await killed.communicate()
    async with AsyncExitStack() as stack:
        # The record of the turn is cut in its body.
        async with Cutting(gateway.port, [Cut(IN_BODY)]) as proxy:
            await stack.enter_async_context(running_server(port, proxy.url, folder, *command))
            assert await page.read_result() == (words(300), "completed")
            [session] = (await gateway.client.get("/v1/sessions")).json()["data"]
            [turn] = (await gateway.client.get(f"/v1/sessions/{session['session']}/turns")).json()["turns"]
            client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url))
            events = f"/v1/turns/{turn['turn']}/events"
            for user, status in (
                (("ada", "lovelace"), 200),
                (("ada-1", "moneypenny"), 404),
                (("ada-1", "lovelace"), 401),
            ):
                answer = await client.get(events, auth=user)
                # Otherwise nginx would send the events when the answer has ended.
                buffering = {200: "no", 404: None, 401: None}[status]
                assert (answer.status_code, answer.headers.get("x-accel-buffering")) == (status, buffering)
            whole = await client.get(events, auth=("ada", "lovelace"))
            cursor = whole.text.partition("id: ")[2].partition("\n")[0]
            safari = {**SAFARI, "last-event-id": cursor}
            resumed = await client.get(events, auth=("ada", "lovelace"), headers=safari)
            assert resumed.text.startswith(f":\nevent: discard\nid: {cursor}\n")
            assert (await client.post("/v1/turns", json={"message": "Hi."})).status_code == 401
            # Both users choose a key. The name of one and its key read like those of the other.
            for user, key in ((("ada", "lovelace"), "1-2"), (("ada-1", "moneypenny"), "2")):
                headers = {"Idempotency-Key": key}
                posted = await client.post("/v1/turns", auth=user, json={"message": "Hi."}, headers=headers)
                assert posted.status_code == 202, posted.text
        client.auth = ("ada", "lovelace")
        assert (await client.get(events)).text == "retry: 1000\n\n"
        refused = await client.post("/v1/turns", json={"message": "Hi."}, headers={"Idempotency-Key": "again"})
        assert (refused.status_code, list(refused.json()["error"])) == (502, ["message"])
    assert await count_turns(gateway) == 3


@pytest.mark.timeout(240)
async def test_the_app_on_nextjs_shows_a_whole_answer_to_its_user_only(
    system: System, gateway: Gateway, new_gateway: NewGateway, browser: str, tmp_path: Path
) -> None:
    """`next dev`, whose connections to Tailrace are cut. Each user is a tenant."""
    secret = secrets.token_hex(32)
    settings = {"jwt_issuer": "my-app", "jwt_audience": "tailrace", "jwt_secret": secret}
    of_users = await new_gateway(system.nats_url, **settings)
    folder = copy_of("nextjs", tmp_path, "ai-sdk.js")
    # Its node_modules are a link to those of all tests, and Turbopack reads nothing outside of its root.
    (folder / "next.config.mjs").write_text('export default { turbopack: { root: "/" } };')
    (port,) = find_free(1)
    next_dev = (str(node.NODE), "node_modules/next/dist/bin/next", "dev", "--port", str(port))
    own = {"TAILRACE_JWT_SECRET": secret, "NEXT_TELEMETRY_DISABLED": "1"}
    async with (
        Cutting(of_users.port, random_cuts(3, count=2, bytes_max=6000, bytes_min=4000)) as proxy,
        running_server(port, proxy.url, folder, *next_dev, **own),
    ):
        line = "#sim words=200 rate=60"
        steps = f"http://localhost:{port}/", line
        (seen,) = await node.run("nextjs.mjs", *steps, deadline_s=150, CHROMIUM=browser)
        assert proxy.left == []
    chat = [f"user {line}", f"assistant {words(200)}"]
    assert seen == {"shown": chat, "loaded": chat, "statuses": [401, 200, 404], "outcome": "cancelled"}
