"""The apps of examples/ that speak AG-UI, in Chromium: each shows its answer once over every interruption.

`js/ag-ui-apps.mjs` drives the tabs. The answer is that of the simulated Claude, and paid once.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest

from tailrace.deploy.local.ports import find_free
from tailrace.proto.ids import new_id
from tests.clients import node
from tests.clients.test_examples import copy_of, running_server
from tests.harness.cutting_proxy import Cutting
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.until import until

Json = dict[str, Any]
# Longer than the script waits for anything.
ANSWERED_S_MAX = 100.0
OFFLINE_S = 20.0
PACKAGES = {"tanstack": "@tanstack/ai-react", "copilotkit": "@copilotkit/react-core"}
APPS = "TanStack AI and CopilotKit (Chromium)"
pytestmark = pytest.mark.timeout(240)


class Tabs:
    """The tabs of a browser with an example's page, all with the same thread."""

    def __init__(self, process: Process, printed: Path) -> None:
        self._process = process
        self._printed = printed

    async def do(self, tab: int, what: str, argument: object = None) -> Json:
        """Returns what the tab shows after a command of `js/ag-ui-apps.mjs`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([tab, what, argument]).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), ANSWERED_S_MAX)
        assert line, self._printed.read_text()
        seen: Json = json.loads(line)
        assert seen.pop("failure") is None, (what, argument, seen, self._printed.read_text())
        return seen


class Stack:
    """A system, an example's development server, and a proxy between them, which can be cut."""

    def __init__(self, system: System, proxy: Cutting, tabs: Tabs, thread: str) -> None:
        self.system = system
        self.proxy = proxy
        self.tabs = tabs
        self.thread = thread
        self.do = tabs.do

    async def count_calls(self) -> int:
        """Returns how many calls the simulated Claude has answered."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            calls: int = (await client.get(f"{self.system.claude.url}/_sim/stats")).json()["calls"]
        return calls

    async def turns(self) -> list[Json]:
        found: list[Json] = (await self.system.clients[0].get(f"/v1/sessions/{self.thread}/turns")).json()["turns"]
        return found

    async def wait_for_turns(self, count: int) -> list[Json]:
        """Returns the turns of the thread when there are so many and all have ended."""

        async def find() -> list[Json]:
            found = await self.turns()
            return found if len(found) == count and all(turn["outcome"] != "running" for turn in found) else []

        return await until(find)

    async def start_again(self) -> None:
        """Kills all processes but the simulated Claude, and starts them again."""
        system = self.system
        for process in system.processes.values():
            await process.stop(SIGKILL)
        await system.servers[0].stop(SIGKILL)
        await system.servers[0].start()
        for process in system.processes.values():
            await process.start()


@pytest.fixture(params=["tanstack", "copilotkit"])
def app(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not (node.MODULES / PACKAGES[name]).is_dir():
        pytest.skip(f"{PACKAGES[name]} is not installed: run `make clients`")
    return name


@pytest.fixture
async def stack(
    app: str, browser: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    folder = copy_of(app, tmp_path)
    # Vite's cache is in node_modules, which are those of all tests.
    cache = tmp_path_factory.getbasetemp() / f"vite-{app}"
    config = folder / "vite.config.js"
    own = f'cacheDir: "{cache}", resolve: {{ alias: {{ streamdown: "{folder}/streamdown.js" }} }}, plugins:'
    config.write_text(config.read_text().replace("plugins:", own))
    # CopilotKit's renderer of Markdown brings 680 packages, and the tests need none of them (package.json, overrides).
    (folder / "streamdown.js").write_text('export { default as Streamdown } from "react-markdown";')
    (port,) = find_free(1)
    vite = (str(node.NODE), "node_modules/vite/bin/vite.js", "--host", "127.0.0.1", "--port", str(port), "--strictPort")
    thread = new_id()
    async with System(tmp_path) as system:
        await system.start()
        async with (
            Cutting(int(system.gateways[0].url.rpartition(":")[2])) as proxy,
            running_server(port, proxy.url, folder, *vite),
            open_tabs(app, f"http://127.0.0.1:{port}/?thread={thread}", browser, tmp_path / "tabs.txt") as tabs,
        ):
            yield Stack(system, proxy, tabs, thread)


@asynccontextmanager
async def open_tabs(app: str, url: str, browser: str, printed: Path) -> AsyncIterator[Tabs]:
    with printed.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(node.NODE),
            str(node.SCRIPTS / "ag-ui-apps.mjs"),
            app,
            url,
            cwd=node.SCRIPTS,
            env=os.environ | {"CHROMIUM": browser},
            stdin=PIPE,
            stdout=PIPE,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Tabs(process, printed)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)
        await process.communicate()


@pytest.mark.proves("ag-ui", "a reload, and a second tab, in mid-answer", APPS)
async def test_an_answer_is_shown_after_a_reload_and_in_a_second_tab(stack: Stack) -> None:
    """The page is loaded again in mid-answer; the other tab is opened in mid-answer, too."""
    # Long enough for three loads of a page on a busy machine.
    line, whole = "#sim words=1600 rate=40", words(1600)
    await stack.do(0, "open")
    await stack.do(0, "ask", line)
    await stack.do(0, "chars", 80)
    await stack.do(0, "reload")
    await stack.do(0, "chars", 160)
    await stack.do(1, "open")
    joined = await stack.do(1, "chars", 200)
    assert len(joined["answers"][0]) < len(whole)
    for tab in (0, 1):
        assert await stack.do(tab, "answers", [whole]) == {"users": [line], "answers": [whole], "errors": []}
    assert await stack.count_calls() == 1


@pytest.mark.proves("ag-ui", "another tab stops an answer", APPS)
async def test_an_answer_is_stopped_from_another_tab(stack: Stack) -> None:
    await stack.do(0, "open")
    await stack.do(0, "ask", "#sim words=4000 rate=40")
    await stack.do(0, "chars", 80)
    await stack.do(1, "open")
    await stack.do(1, "chars", 160)
    await stack.do(1, "stop")
    (turn,) = await stack.wait_for_turns(1)
    assert turn["outcome"] == "cancelled"
    for tab in (0, 1):
        seen = await stack.do(tab, "answers", [turn["text"]])
        assert seen["errors"] == []
    # The chat goes on.
    await stack.do(0, "ask", "#sim words=3 rate=0")
    await stack.do(0, "answers", [turn["text"], words(3)])
    assert await stack.count_calls() == 2


@pytest.mark.proves("ag-ui", "the generator is killed", APPS)
async def test_no_tab_notices_that_a_generator_is_killed(stack: Stack) -> None:
    other = await stack.system.new_generator()
    await stack.do(0, "open")
    await stack.do(0, "ask", "#sim words=300 rate=40")
    await stack.do(0, "chars", 80)
    await other.start()
    await stack.system.generators[0].stop(SIGKILL)
    assert (await stack.do(0, "answers", [words(300)]))["errors"] == []
    assert [turn["outcome"] for turn in await stack.turns()] == ["completed"]
    # The second call continues the text of the first one.
    assert await stack.count_calls() == 2


@pytest.mark.proves("ag-ui", "the gateway is killed, and 20 s without a network", APPS)
async def test_a_tab_shows_the_whole_answer_after_the_gateway_is_killed_and_20_s_without_a_network(
    stack: Stack, app: str
) -> None:
    """TanStack AI resumes by itself. CopilotKit shows the error, and its user reconnects."""
    (gateway,) = stack.system.gateways
    await stack.do(0, "open")
    await stack.do(0, "ask", "#sim words=1200 rate=40")
    await stack.do(0, "chars", 80)
    port = stack.proxy.to
    (stack.proxy.to,) = find_free(1)
    stack.proxy.cut_all()
    await gateway.stop(SIGKILL)
    if app == "copilotkit":
        await stack.do(0, "error")
    await asyncio.sleep(OFFLINE_S)
    await gateway.start()
    stack.proxy.to = port
    if app == "copilotkit":
        await stack.do(0, "click", "Reconnect")
    assert (await stack.do(0, "answers", [words(1200)]))["errors"] == []
    assert await stack.count_calls() == 1


@pytest.mark.proves("ag-ui", "a call is approved after a restart of everything", APPS)
async def test_a_call_is_approved_in_another_tab_after_a_restart_of_everything(stack: Stack) -> None:
    await stack.do(0, "open")
    line = "#sim words=2 tool=book rate=0"
    await stack.do(0, "ask", line)
    await stack.do(0, "visible", "Allow")
    await stack.start_again()
    await stack.do(1, "open")
    await stack.do(1, "click", "Allow")
    first, second = await stack.wait_for_turns(2)
    assert (first["stop_reason"], second["outcome"]) == ("tool_use", "completed")
    (result,) = [block for block in second["input"][-1]["content"] if block["type"] == "tool_result"]
    assert result["content"] == "Booked for 8 pm."
    await stack.do(0, "reload")
    for tab in (0, 1):
        seen = await stack.do(tab, "ends", second["text"])
        assert (seen["users"], seen["errors"]) == ([line], [])
    assert await stack.count_calls() == 2
    # The reloaded page continues this branch.
    await stack.do(0, "ask", "#sim words=3 rate=0")
    third = (await stack.wait_for_turns(3))[-1]
    assert third["parent"] == second["turn"]
    assert (await stack.do(0, "ends", words(3)))["errors"] == []


async def test_a_call_is_decided_in_the_tab_that_asked(stack: Stack) -> None:
    await stack.do(0, "open")
    await stack.do(0, "ask", "#sim words=2 tool=book rate=0")
    await stack.do(0, "click", "Deny")
    first, second = await stack.wait_for_turns(2)
    (result,) = second["input"][-1]["content"]
    assert "The user does not want it." in result["content"]
    await stack.do(0, "ask", "#sim words=3 rate=0")
    third = (await stack.wait_for_turns(3))[-1]
    assert [second["parent"], third["parent"]] == [first["turn"], second["turn"]]
    assert (await stack.do(0, "ends", words(3)))["errors"] == []
    assert await stack.count_calls() == 3


@pytest.mark.parametrize("app", ["tanstack"], indirect=True)
@pytest.mark.proves("ag-ui", "runs the tools of the page once, over a reload and in two tabs", "TanStack AI (Chromium)")
async def test_a_tool_of_the_page_runs_once_in_two_tabs_and_after_a_reload(stack: Stack) -> None:
    """The page is loaded again in mid-answer. One of the tabs sends the result, and both show what follows."""
    line = '#sim words=400 rate=40 tool=note json={"text":"milk"}'
    await stack.do(0, "open")
    await stack.do(0, "ask", line)
    await stack.do(0, "chars", 80)
    await stack.do(1, "open")
    await stack.do(1, "chars", 160)
    await stack.do(0, "reload")
    first, second = await stack.wait_for_turns(2)
    assert (first["stop_reason"], second["parent"], second["outcome"]) == ("tool_use", first["turn"], "completed")
    (result,) = [block for block in second["input"][-1]["content"] if block["type"] == "tool_result"]
    assert result["content"] == "The note is kept in the browser."
    for tab in (0, 1):
        await stack.do(tab, "reload")
        seen = await stack.do(tab, "ends", second["text"])
        assert (seen["users"], seen["errors"], seen["notes"]) == ([line], [], ["milk"])
    assert await stack.count_calls() == 2
