"""`tailrace restart`: a running `up` is restarted on the installed version under load."""

import asyncio
import json
import os
import re
import socket
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.cli import status
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.rolling_restart import Request, restart
from tailrace.deploy.local.status_file import FILE, Restart, UpStatus
from tailrace.proto.ids import BEFORE_FIRST, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tests.harness.held_ports import find_first
from tests.harness.prometheus import Prometheus, needs_prometheus
from tests.harness.readers import build_reader, read, read_history
from tests.harness.until import until
from tests.harness.up import CHECKOUT, LEAN, Up, running
from tests.promises import ReaderConnection, judge, no_gap, no_repeat, one_end

# Longer than the start of the first processes: each generator is restarted while they run.
RUNNING = "#sim words=320 rate=40"
# They run until they are cancelled: each gateway is restarted while they run.
ENDLESS = "#sim words=30000 rate=40"
TURNS = 3
# From TAILRACE_METRICS_PORT, that of persistence, to those of two gateways and three generators.
METRICS = (1, 2, 101, 102, 103)
# Prometheus applies what it has discovered every five seconds.
DISCOVERED_S_MAX = 30.0


async def read_to_end(client: httpx2.AsyncClient, turn: str) -> list[ReaderConnection]:
    """The connections of a reader that resumes until the turn ends. It also connects again after an error."""
    connections: list[ReaderConnection] = []
    while not connections or connections[-1].over != "ended":
        cursor = next((one.frames[-1].seq for one in reversed(connections) if one.frames), BEFORE_FIRST)
        # A connection that has sent its request too late is closed without a response.
        with suppress(httpx2.NetworkError, httpx2.RemoteProtocolError):
            connections.append(await read(client, turn, cursor))
    return connections


async def start_restart(up: Up, *options: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "tailrace", "restart", "--json", "--data", str(up.folder), *options]
    return await asyncio.create_subprocess_exec(*command, cwd=CHECKOUT, env=dict(os.environ), stdout=-1, stderr=-2)


async def refuses_a_newer_database(up: Up) -> None:
    """As if an older version had been installed. No process is stopped."""
    before = up.tree()
    with closing(sqlite3.connect(up.folder / "tailrace.db")) as database:
        database.execute("PRAGMA user_version = 999")
    process = await start_restart(up)
    printed, _ = await process.communicate()
    assert (process.returncode, b"has schema version 999" in printed) == (1, True), printed
    assert up.tree() == before


@pytest.mark.rule("R100")
@pytest.mark.timeout(180)
async def test_no_request_is_refused_and_no_model_call_is_repeated(tmp_path: Path) -> None:
    """Turns run on while each process is restarted; readers resume. A database of a newer version is refused."""
    with running(tmp_path, *LEAN) as up:
        url = await up.ready()
        before = up.pids()
        statuses: list[int] = []
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            turns: list[str] = []
            readers: list[asyncio.Task[list[ReaderConnection]]] = []

            async def begin(message: str) -> None:
                for _ in range(TURNS):
                    turns.append((await client.post("/v1/turns", json={"message": message})).json()["turn"])
                    readers.append(asyncio.create_task(read_to_end(client, turns[-1])))

            async def post() -> None:
                """Continues a conversation, which gateways read from persistence."""
                body = {"message": f"{len(statuses)}\n#sim words=2", "parent": parent}
                statuses.append((await client.post("/v1/turns", json=body)).status_code)

            parent = (await client.post("/v1/turns", json={"message": "#sim words=2"})).json()["turn"]
            await read_to_end(client, parent)
            await begin(RUNNING)
            restarting = []
            last = b""

            async def follow(printed: asyncio.StreamReader) -> None:
                nonlocal last
                async for last in printed:
                    restarting.extend(re.findall(r"restarting (\S+) \(it", last.decode()))
                    if restarting[-1:] == ["generator-spare"] and len(turns) == TURNS:
                        await begin(ENDLESS)

            process = await start_restart(up)
            assert process.stdout is not None
            following = asyncio.create_task(follow(process.stdout))
            while not following.done():
                await post()
                # Fewer POSTs while a generator restarts: it takes seconds and receives no POST.
                is_generator = bool(restarting) and restarting[-1].startswith("generator")
                await asyncio.sleep(0.5 if is_generator else 0.05)
            await following
            assert await process.wait() == 0
            assert restarting == ["persistence", "generator-1", "generator-spare", "gateway-1", "gateway-spare"]
            assert json.loads(last)["restarted"] == restarting
            for turn in turns[TURNS:]:
                assert (await client.post(f"/v1/turns/{turn}/cancel")).json()["outcome"] == "cancelled"
            connections = await asyncio.gather(*readers)
            assert all(len(of_reader) > 1 for of_reader in connections[TURNS:]), "no gateway was restarted meanwhile"
            claude = next(line for line in up.lines if line.strip().startswith("simulated-claude")).split()[-1]
            calls = (await client.get(f"{claude}/_sim/stats")).json()
        assert set(statuses) == {202}
        again = dict(re.findall(r"(\S+) runs again, pid ([0-9]+)", up.text))
        assert set(again) == {"persistence", "generator-1", "gateway-1"}
        assert not {int(pid) for pid in again.values()} & set(before.values())
        assert calls["calls"] == len([parent, *turns, *statuses])
        await refuses_a_newer_database(up)
        connection = await Connection.open((up.folder / "nats.url").read_text(), "test")
        try:
            log = TurnLog(connection)
            for number, turn in enumerate(turns):
                key = TurnKey(Tenant("local"), TurnId(turn))
                history = await read_history(log, key, build_reader(str(number), key, *connections[number]))
                verdict = judge(history, (no_gap, no_repeat, one_end))
                assert verdict.is_green, verdict.evidence
        finally:
            await connection.close()


async def test_a_process_that_has_the_pid_of_an_earlier_up_is_not_signalled(tmp_path: Path) -> None:
    """The status file of a killed `up` stays, and its pid may be reused. SIGUSR1 would end the process."""
    sleeping = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        status = UpStatus("0.1.0", sleeping.pid, "http://127.0.0.1:1", [], [], Restart())
        write_private(tmp_path / FILE, msgspec.json.encode(status).decode())
        with pytest.raises(UpRefused, match="no `up` runs in"):
            restart(tmp_path, print)
        assert sleeping.returncode is None
    finally:
        sleeping.terminate()
        assert await sleeping.wait() == -SIGTERM


class Scaled:
    """An `up` whose numbers of processes change while a turn runs, which it must not disturb."""

    def __init__(self, up: Up) -> None:
        self.up = up

    async def restart(self, *options: str) -> dict[str, Any]:
        """Runs `tailrace restart` and returns what it prints as JSON."""
        process = await start_restart(self.up, *options)
        printed, _ = await process.communicate()
        assert process.returncode == 0, printed
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    async def refuse(self, *options: str) -> tuple[int | None, str]:
        """Runs a `tailrace restart` that fails, and changes no process. Returns its status and its last line."""
        before = self.pids()
        process = await start_restart(self.up, *options)
        printed, _ = await process.communicate()
        assert self.pids() == before
        return process.returncode, printed.decode().splitlines()[-1]

    def pids(self) -> dict[str, int | None]:
        """Returns the pids of the services by name, from the status file."""
        status = msgspec.json.decode((self.up.folder / FILE).read_bytes(), type=UpStatus)
        return {one.name: one.pid for one in status.processes if not one.name.startswith(("nats", "simulated"))}


@pytest.mark.rule("R100")
@pytest.mark.timeout(240)
async def test_numbers_change_and_the_other_processes_are_left_alone(tmp_path: Path) -> None:
    """One generator and gateway become three and two, and one again. A reader is connected and its turn runs on."""
    with running(tmp_path, *LEAN) as up:
        url, scaled = await up.ready(), Scaled(up)
        before = scaled.pids()
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            turn = (await client.post("/v1/turns", json={"message": ENDLESS})).json()["turn"]
            reader = asyncio.create_task(read_to_end(client, turn))
            more = await scaled.restart("--generators", "3", "--gateways", "2")
            assert (more["started"], more["restarted"], more["stopped"]) == (
                ["generator-2", "generator-3", "gateway-2"],
                [],
                [],
            )
            assert scaled.pids().items() > before.items()
            assert len(scaled.pids()) == 6
            same = await scaled.restart("--generators", "3")
            assert (same["started"], same["restarted"], same["stopped"]) == ([], [], [])
            fewer = await scaled.restart("--generators", "1", "--gateways", "1")
            # Its only generator at the start still runs the turn, so nothing waited for its end.
            assert (fewer["started"], fewer["restarted"]) == ([], [])
            assert sorted(fewer["stopped"]) == ["gateway-2", "generator-2", "generator-3"]
            assert scaled.pids() == before
            assert (await client.post(f"/v1/turns/{turn}/cancel")).json()["outcome"] == "cancelled"
            assert [one.over for one in await reader] == ["ended"], "the reader had to connect again"
            await scaled.restart("--generators", "2")
        assert (await scaled.restart())["restarted"][:3] == ["persistence", "generator-1", "generator-2"]
        assert set(scaled.pids()) == {*before, "generator-2"}
        assert (await status.fetch(up.folder, {})).problems == []


@pytest.mark.timeout(240)
async def test_a_new_process_that_does_not_start_changes_no_number(tmp_path: Path, stack: ExitStack) -> None:
    """The processes that run are left alone, and the command says what failed and what to do."""
    models = tmp_path / "models.json"
    models.write_text("[]")
    first = find_first(METRICS, stack)
    with running(tmp_path, *LEAN, TAILRACE_MODELS_FILE=str(models), TAILRACE_METRICS_PORT=str(first)) as up:
        await up.ready()
        scaled = Scaled(up)
        status, says = await scaled.refuse("--generators", "0")
        assert (status, "'0' is not a count from 1 to 64" in says) == (2, True)
        with socket.create_server(("127.0.0.1", first + 2)):
            status, says = await scaled.refuse("--gateways", "2")
            assert status == 1
            assert f"TAILRACE_METRICS_PORT={first}: " in says
            assert f"{first + 2} is not free: stop the program that uses it" in says
            assert "No number of processes has changed" in says
        models.write_text("{}")
        for option, name in (("--generators", "generator-2"), ("--gateways", "gateway-2")):
            status, says = await scaled.refuse(option, "2")
            assert status == 1
            assert f"{name} does not start: " in says
            assert f"TAILRACE_MODELS_FILE: {models} is not a JSON list of models" in says
            assert "those that ran before continue: correct the cause and run the command again" in says
        models.write_text("[]")
        assert (await scaled.restart("--gateways", "2"))["started"] == ["gateway-2"]
        # It is started again like the others.
        pid = scaled.pids()["gateway-2"]
        assert pid is not None
        os.kill(pid, SIGKILL)
        await until(lambda: "gateway-2 runs again" in up.text, 20)


async def test_numbers_do_not_change_while_another_version_is_installed(tmp_path: Path) -> None:
    """A new gateway might write requests that the older generators do not know."""
    with running(tmp_path, *LEAN) as up:
        await up.ready()
        scaled = Scaled(up)
        before = scaled.pids()
        with pytest.raises(UpRefused, match=r"version 99\.0 is installed, .* run `tailrace restart` first"):
            await asyncio.to_thread(restart, up.folder, lambda *_: None, Request(generators=2, version="99.0"))
        assert scaled.pids() == before


@needs_prometheus
@pytest.mark.timeout(240)
async def test_prometheus_discovers_the_processes_that_run(tmp_path: Path, stack: ExitStack) -> None:
    """After a change of numbers, it scrapes the new ones, and no alert fires for those that have left."""

    async def is_scraped(expected: Mapping[str, int]) -> bool:
        found = await prometheus.query('count by (part) (up{job="tailrace"})')
        return {part: count for (part,), count in found.items()} == expected

    async def is_quiet() -> bool:
        """Whether all answer. The alert is held back for a second here, and for a minute in practice."""
        return (
            not await prometheus.query('up{job="tailrace"} == 0')
            and "ProcessDown page" not in await prometheus.firing()
        )

    first = find_first(METRICS, stack)
    configured = (CHECKOUT / "deploy/monitoring/prometheus.yml").read_text()
    discovery = re.findall(r'url: "(\S+)"', configured)[0].replace("9100", str(first))
    with running(tmp_path, *LEAN, TAILRACE_METRICS_PORT=str(first)) as up:
        await up.ready()
        async with Prometheus(tmp_path, {}, discovery) as prometheus:
            for generators, gateways in ((1, 1), (3, 2), (1, 1)):
                await Scaled(up).restart("--generators", str(generators), "--gateways", str(gateways))
                expected = {"persistence": 1, "generators": generators, "gateway": gateways}
                await until(partial(is_scraped, expected), DISCOVERED_S_MAX)
                await until(is_quiet, DISCOVERED_S_MAX)
