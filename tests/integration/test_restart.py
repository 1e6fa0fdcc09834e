"""`tailrace restart`: a running `up` is restarted on the installed version under load."""

import asyncio
import json
import os
import re
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from signal import SIGTERM

import httpx2
import msgspec
import pytest

from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.rolling_restart import restart
from tailrace.deploy.local.status_file import FILE, Restart, UpStatus
from tailrace.proto.ids import BEFORE_FIRST, Tenant, TurnId
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.readers import build_reader, read, read_history
from tests.harness.up import CHECKOUT, LEAN, Up, running
from tests.promises import ReaderConnection, judge, no_gap, no_repeat, one_end

# Longer than the start of the first processes: each generator is restarted while they run.
RUNNING = "#sim words=320 rate=40"
# They run until they are cancelled: each gateway is restarted while they run.
ENDLESS = "#sim words=30000 rate=40"
TURNS = 3


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


@pytest.mark.timeout(180)
async def test_the_number_of_generators_changes_while_readers_are_served(tmp_path: Path) -> None:
    """From one to two and back. A restart without options keeps the number. Invalid numbers change nothing."""

    def generators(up: Up) -> list[str]:
        status = msgspec.json.decode((up.folder / FILE).read_bytes(), type=UpStatus)
        return [one.name for one in status.processes if one.name.startswith("generator-")]

    async def restart_with(up: Up, *options: str) -> dict[str, object]:
        process = await start_restart(up, *options)
        printed, _ = await process.communicate()
        assert process.returncode == 0, printed
        found: dict[str, object] = json.loads(printed.splitlines()[-1])
        return found

    with running(tmp_path, *LEAN) as up:
        url = await up.ready()
        refused = await start_restart(up, "--generators", "0")
        printed, _ = await refused.communicate()
        assert (refused.returncode, b"'0' is not a count from 1 to 64" in printed) == (2, True), printed
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            turn = (await client.post("/v1/turns", json={"message": RUNNING})).json()["turn"]
            reader = asyncio.create_task(read_to_end(client, turn))
            assert (await restart_with(up, "--generators", "2"))["started"] == ["generator-2"]
            assert generators(up) == ["generator-1", "generator-2"]
            await restart_with(up)
            assert generators(up) == ["generator-1", "generator-2"]
            assert (await restart_with(up, "--generators", "1"))["stopped"] == ["generator-2"]
            assert generators(up) == ["generator-1"]
            connections = await reader
        assert connections[-1].over == "ended"
