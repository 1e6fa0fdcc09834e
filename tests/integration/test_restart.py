"""`tailrace restart`: a running `up` is restarted on the installed version under load."""

import asyncio
import os
import re
import sys
from datetime import UTC, datetime
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
from tests.harness.readers import history, read, reader
from tests.harness.up import CHECKOUT, running
from tests.promises import Connected, judge, no_gap, no_repeat, one_end

# Longer than the start of all processes: each is restarted while they run.
RUNNING = "#sim words=600 rate=40"
TURNS = 6


async def read_to_end(client: httpx2.AsyncClient, turn: str) -> list[Connected]:
    """The connections of a reader that resumes until the turn ends."""
    connections: list[Connected] = []
    while not connections or connections[-1].over != "ended":
        cursor = next((one.frames[-1].seq for one in reversed(connections) if one.frames), BEFORE_FIRST)
        connections.append(await read(client, turn, cursor))
    return connections


@pytest.mark.rule("R100")
@pytest.mark.timeout(180)
async def test_no_request_is_refused_and_no_model_call_is_repeated(tmp_path: Path) -> None:
    """Turns run on while each process is restarted; readers resume."""
    with running(tmp_path, "--port", "0") as up:
        url = await up.ready()
        before = up.pids()
        statuses: list[int] = []
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            turns = [(await client.post("/v1/turns", json={"message": RUNNING})).json()["turn"] for _ in range(TURNS)]
            readers = [asyncio.create_task(read_to_end(client, turn)) for turn in turns]

            async def post() -> None:
                """Continues a conversation, which gateways read from persistence."""
                body = {"message": f"{len(statuses)}\n#sim words=2", "parent": parent}
                statuses.append((await client.post("/v1/turns", json=body)).status_code)

            parent = (await client.post("/v1/turns", json={"message": "#sim words=2"})).json()["turn"]
            await read_to_end(client, parent)
            command = [sys.executable, "-m", "tailrace", "restart", "--data", str(up.folder)]
            process = await asyncio.create_subprocess_exec(*command, cwd=CHECKOUT, env=os.environ, stdout=-1, stderr=-1)
            restarting = asyncio.create_task(process.communicate())
            while not restarting.done():
                await post()
                await asyncio.sleep(0.02)
            printed, errors = await restarting
            assert (process.returncode, errors) == (0, b"")
            assert re.findall(r"restarting (\S+)", printed.decode()) == [
                "persistence",
                "generator-1",
                "generator-2",
                "generator-spare",
                "gateway-1",
                "gateway-spare",
            ]
            connections = await asyncio.gather(*readers)
            claude = next(line for line in up.lines if line.strip().startswith("simulated-claude")).split()[-1]
            calls = (await client.get(f"{claude}/_sim/stats")).json()
        assert set(statuses) == {202}
        again = dict(re.findall(r"(\S+) runs again, pid ([0-9]+)", up.text))
        assert set(again) == {"persistence", "generator-1", "generator-2", "gateway-1"}
        assert not {int(pid) for pid in again.values()} & set(before.values())
        assert calls["calls"] == len([parent, *turns, *statuses])
        connection = await Connection.open((up.folder / "nats.url").read_text(), "test")
        try:
            log = TurnLog(connection)
            for number, turn in enumerate(turns):
                key = TurnKey(Tenant("local"), TurnId(turn))
                told = await history(log, key, reader(str(number), key, *connections[number]))
                verdict = judge(told, (no_gap, no_repeat, one_end))
                assert verdict.is_green, verdict.evidence
        finally:
            await connection.close()


async def test_a_process_that_has_the_pid_of_an_earlier_up_is_not_signalled(tmp_path: Path) -> None:
    """The status file of a killed `up` stays, and its pid may be reused. SIGUSR1 would end the process."""
    sleeping = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        status = UpStatus("0.1.0", sleeping.pid, "http://127.0.0.1:1", datetime.now(UTC), [], [], Restart())
        write_private(tmp_path / FILE, msgspec.json.encode(status).decode())
        with pytest.raises(UpRefused, match="no `up` runs in"):
            restart(tmp_path, print)
        assert sleeping.returncode is None
    finally:
        sleeping.terminate()
        assert await sleeping.wait() == -SIGTERM
