"""The demo of `tailrace up`: the requests that may list and kill its processes, and those that are refused."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from io import StringIO
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tailrace.deploy.local.console import Console
from tailrace.deploy.local.demo import Demo, serve_demo
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tailrace.deploy.local.up import start_demo
from tailrace.features.page.demo import PATH, demo_middleware
from tests.harness.until import until

URL = "http://127.0.0.1:8000"
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
REFUSED = [
    ({"tailrace-demo": ""}, 401),
    ({"tailrace-demo": "x" * 32}, 401),
    ({"tailrace-demo": "ä"}, 401),
    # A name that an attacker has pointed at this address, and one under which a proxy serves the gateway.
    ({"host": "evil.example:8000", "origin": "http://evil.example:8000"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"host": "10.0.0.5:8000"}, 403),
    ({"host": "[::1"}, 403),
    # A page of another origin, a sandboxed page, another port of this machine, and a program that is no browser.
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1:9000"}, 403),
    ({"origin": ""}, 403),
    ({"x-forwarded-for": "127.0.0.1"}, 403),
    ({"forwarded": "for=127.0.0.1"}, 403),
    ({"via": "1.1 proxy"}, 403),
]


class Parts:
    def __init__(self, supervisor: Supervisor, demo: Demo) -> None:
        self.supervisor, self.demo = supervisor, demo
        self.app = Starlette(
            routes=[Route("/", lambda _: PlainTextResponse(""))], middleware=demo_middleware(str(demo.path))
        )

    async def send(
        self, method: str, process: str, headers: dict[str, str], address: str = "127.0.0.1", pid: str | None = None
    ) -> httpx2.Response:
        if pid is None:
            pid = str(self.supervisor.children[process].pid if process in self.supervisor.children else 1)
        given = {"tailrace-demo": self.demo.token, "origin": URL} | headers
        raw = [(name.encode(), value.encode()) for name, value in given.items() if value]
        transport = httpx2.ASGITransport(self.app, client=(address, 5))
        async with httpx2.AsyncClient(transport=transport, base_url=URL) as client:
            return await client.request(method, PATH, params={"process": process, "pid": pid}, headers=raw)


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Console(StringIO(), width=1, coloured=False))
        for name, role in (("generator-1", "generators"), ("nats-server", "nats-server")):
            supervisor.start(ProcessSpec(name=name, role=role, command=SLEEP, environ={}))
        await until(lambda: all(child.pid for child in supervisor.children.values()))
        async with serve_demo(supervisor) as demo:
            yield Parts(supervisor, demo)
        await supervisor.stop()


@pytest.mark.rule("S16")
async def test_only_the_page_of_this_machine_that_has_the_token_lists_and_kills(parts: Parts) -> None:
    """Other users have no token, and pages of other origins, rebound names and proxies are refused with one."""
    pid = parts.supervisor.children["generator-1"].pid
    for headers, status in REFUSED:
        assert (await parts.send("POST", "generator-1", headers)).status_code == status, headers
    assert (await parts.send("POST", "generator-1", {}, address="192.0.2.1")).status_code == 403
    for process in ("nats-server", "up", "../x"):
        assert (await parts.send("POST", process, {})).status_code == 400
    for wrong in ("", "x", "-1", "9" * 5000):
        assert (await parts.send("POST", "generator-1", {}, pid=wrong)).status_code == 400
    assert (await parts.send("DELETE", "generator-1", {})).status_code == 405
    assert (await parts.send("GET", "generator-1", {"tailrace-demo": "x"})).status_code == 401
    assert (await parts.send("GET", "generator-1", {"host": "evil.example"})).status_code == 403
    listed = (await parts.send("GET", "generator-1", {})).json()
    assert listed[0] == {"name": "generator-1", "role": "generators", "pid": pid}

    assert (await parts.send("POST", "generator-1", {})).status_code == 200
    await until(lambda: parts.supervisor.children["generator-1"].pid not in (None, pid))


async def test_without_tailrace_up_there_is_no_demo() -> None:
    assert demo_middleware("") == []


@pytest.mark.parametrize("folder", ["x" * 100, "missing"], ids=["long", "missing"])
async def test_up_starts_without_the_demo_if_its_socket_cannot_be_made(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket has 107 bytes at most."""
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    output = StringIO()
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        assert await start_demo(Supervisor(tasks, Console(output, width=1, coloured=False)), stack) is None
    assert "the page has no demo: its socket cannot be made (" in output.getvalue()
