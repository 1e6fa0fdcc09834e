"""`tailrace up --cluster`: three nats-servers with three copies of everything, and what a person does with them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM

import httpx2
import pytest
import pytest_asyncio

from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import TurnId
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.permissions import RIGHTS
from tailrace.proto.nats.streams import EVERY_STREAM, consumers
from tailrace.proto.subjects import STREAM, TurnKey
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.harness.up import CHECKOUT, LEAN, STOP_S_MAX, Up, is_alive, running

NAMES = nats_cluster.names()
# Two clusters that have to find their leaders, one after the other.
MOVE_S_MAX = 120.0
# Three servers look for a leader of each stream, one after the other, and two cores are shared.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One system for the tests that leave it as good as it was."""
    with running(tmp_path_factory.mktemp("up"), "--port", "0", "--cluster", "--gateways", "2") as up:
        yield up


@pytest_asyncio.fixture
async def connection(up: Up) -> AsyncIterator[Connection]:
    await up.ready()
    connection = await Connection.open(nats_server.url(up.folder, {}), "test")
    yield connection
    await connection.close()


async def restart(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tailrace", "restart-node", name, "--data", str(folder)]
    return await asyncio.to_thread(
        subprocess.run, command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=90
    )


async def events(client: httpx2.AsyncClient, path: str) -> str:
    """Without the first line, which draws how soon to come back."""
    return (await client.get(path)).text.partition("\n")[2]


async def attempt_of(connection: Connection, turn: str) -> int:
    return (await TurnLog(connection).turn(TurnKey(LOCAL.tenant, TurnId(turn)))).attempt


def pids(up: Up) -> dict[str, int]:
    """Of the servers that run now."""
    again = re.findall(r"^up +\| (nats-[0-9]) runs again, pid ([0-9]+)$", up.text, re.MULTILINE)
    found = up.pids() | {name: int(pid) for name, pid in again}
    return {name: found[name] for name in NAMES}


def of_process(pid: int, what: str) -> str:
    return Path(f"/proc/{pid}/{what}").read_text()


def hosts(nats_url: str) -> set[str]:
    return {address.rpartition("@")[2] for address in nats_url.split(",")}


async def test_three_servers_run_and_the_screen_says_so(up: Up) -> None:
    """Each in the table with its pid and its address, and what they are there for in one sentence."""
    await up.ready()
    assert list(up.pids()) == [
        *NAMES, "persistence", "simulated-claude", "generator-1", "generator-2", "gateway-1", "gateway-2",
    ]  # fmt: skip
    assert sorted(up.pids().values()) == sorted(up.tree())
    said = "3 nats-servers have a copy of the log each; any one of them may fail"
    assert [line for line in up.lines if line.startswith("up ") and line.endswith(f"| {said}")]


async def test_what_three_servers_say_when_they_start_is_in_their_files(up: Up) -> None:
    """On the screen one line of each, and none of those that look like trouble, and are none."""
    await up.ready()
    started = up.text.partition("\nready http")[0]
    told = re.findall(r"^(nats-[0-9]) .*\[INF\](.*)$", started, re.MULTILINE)
    assert sorted(told) == [(name, " Server is ready") for name in NAMES]
    assert "connection refused" not in started
    for name in NAMES:
        assert "Starting nats-server\n" in (up.folder / "cluster" / name / "nats.log").read_text()


async def test_everything_that_is_stored_has_three_copies(up: Up, connection: Connection) -> None:
    """Every stream, bucket and consumer that there is; none was forgotten with one."""
    found = {info.config.name: info for info in await connection.jetstream.streams_info()}
    assert set(found) == set(EVERY_STREAM)
    assert {info.config.num_replicas for info in found.values()} == {3}
    for name in EVERY_STREAM:
        cluster = (await connection.jetstream.stream_info(name)).cluster
        assert cluster is not None
        assert {cluster.leader, *(copy.name for copy in cluster.replicas or [])} == set(NAMES)
    for consumer in consumers():
        group = (await connection.jetstream.consumer_info(STREAM, str(consumer.durable_name))).cluster
        assert group is not None
        assert len(group.replicas or []) == 2


async def test_acknowledged_means_on_the_disk_of_each(up: Up) -> None:
    """Three that lose power together are as one (ADR 9)."""
    await up.ready()
    texts = [(up.folder / "cluster" / name / "nats.conf").read_text() for name in NAMES]
    assert [text.count('"sync_interval": "always"') for text in texts] == [1, 1, 1]


async def test_every_process_knows_all_three(up: Up) -> None:
    """Whichever dies, each has two more to go to."""
    await up.ready()
    addresses = hosts(nats_server.url(up.folder, {}))
    assert len(addresses) == 3
    for name, pid in up.pids().items():
        told = [line for line in of_process(pid, "environ").split("\0") if line.startswith("TAILRACE_NATS_URL=")]
        if name not in (*NAMES, "simulated-claude"):
            assert hosts(told[0].partition("=")[2]) == addresses, name


async def test_only_who_knows_the_password_is_let_in_among_them(up: Up) -> None:
    """A server without it could ask for all that is stored: it is random, for the owner only, and printed nowhere."""
    await up.ready()
    texts = [(up.folder / "cluster" / name / "nats.conf").read_text() for name in NAMES]
    found = {secret for text in texts for secret in re.findall('"password": "(.*?)"', text)}
    assert [len(secret) for secret in found] == [32] * (len(RIGHTS) + 1)
    shown = [up.text, *(of_process(pid, "cmdline") for pid in [up.process.pid, *up.tree()])]
    assert [text for text in shown if any(secret in text for secret in found)] == []
    assert [path for path in up.folder.rglob("*") if path.stat().st_mode & 0o077] == []
    assert all(json.loads(text)["cluster"]["listen"].startswith("127.0.0.1:") for text in texts)


@pytest.mark.rule("F7")
async def test_a_server_that_is_killed_is_replaced_and_the_answer_goes_on(up: Up, connection: Connection) -> None:
    """kill -9 of who leads the log, in mid-answer: the reader sees a pause and no gap, and all three are back."""
    async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=40) as client:
        asked = (await client.post("/v1/turns", json={"message": "#sim words=60 rate=20 tag=k"})).json()
        reading = client.stream("GET", f"/v1/turns/{asked['turn']}/events?dialect=text")
        async with reading as response:
            pieces = response.aiter_text()
            told = await anext(pieces)
            leader = (await connection.jetstream.stream_info(STREAM)).cluster
            assert leader is not None
            os.kill(pids(up)[str(leader.leader)], SIGKILL)
            told += "".join([piece async for piece in pieces])
        assert told == words(60, "k")
        await until(lambda: f"{leader.leader} runs again" in up.text)
        assert (await client.get(f"/v1/turns/{asked['turn']}")).json()["outcome"] == "completed"
    assert len(set(pids(up).values())) == 3


async def test_each_is_restarted_in_order_and_nobody_waits_for_a_leader(up: Up, connection: Connection) -> None:
    """A rolling upgrade while an answer runs: each hands over first, so that no append waits for an election."""
    async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=40) as client:
        asked = (await client.post("/v1/turns", json={"message": "#sim words=1200 rate=20 tag=r"})).json()
        path = f"/v1/turns/{asked['turn']}"
        before = pids(up)
        for name in NAMES:
            done = await restart(up.folder, name)
            assert (done.returncode, done.stderr) == (0, ""), done
            assert done.stdout == f"{name} runs again and has caught up\n"
        assert not set(before.values()) & set(pids(up).values())
        assert (await client.get(path)).json()["outcome"] == "running"
        assert await attempt_of(connection, asked["turn"]) == 1, "it was taken over: somebody was without the log"
        assert (await client.post(f"{path}/cancel")).json()["outcome"] == "cancelled"


async def test_a_server_that_the_others_need_is_not_restarted(up: Up) -> None:
    """While one is frozen another is refused, with its name: one of three can store nothing."""
    await up.ready()
    before = pids(up)
    os.kill(before["nats-3"], SIGSTOP)
    try:
        done = await restart(up.folder, "nats-1")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "nats-3 does not answer: if nats-1 stopped as well, nothing could be stored" in done.stderr
    finally:
        os.kill(before["nats-3"], SIGKILL)  # `up` starts it again
    assert is_alive(before["nats-1"])


async def test_it_stops_in_order_and_comes_back_with_all_it_had(tmp_path: Path) -> None:
    """The three last and together, status 0, no process left; and what was answered before is there after."""
    with running(tmp_path, "--port", "0", "--cluster") as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=20) as client:
            asked = (await client.post("/v1/turns", json={"message": "#sim words=9 rate=0"})).json()
            path = f"/v1/turns/{asked['turn']}"
            whole = (await client.get(f"{path}/events?dialect=text")).text
        running_pids = up.tree()
        up.process.send_signal(SIGTERM)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert [pid for pid in running_pids if is_alive(pid)] == []
        stopped = re.findall(r"^up +\| ([a-z-]+)[0-9]* stopped$", up.text, re.MULTILINE)
        assert stopped == ["gateway-", "generator-", "generator-", "simulated-claude", "persistence", *["nats-"] * 3]
    with running(tmp_path, *LEAN, "--cluster") as again:
        async with httpx2.AsyncClient(base_url=await again.ready(), trust_env=False, timeout=20) as client:
            assert (await client.get(f"{path}/events?dialect=text")).text == whole == words(9)


@pytest.mark.timeout(400)
async def test_a_log_is_moved_to_three_servers_and_back(tmp_path: Path) -> None:
    """What one server stored three have, under the same ids, and what they add to it one has again; keys too."""
    told: dict[str, str] = {}
    for arguments in ((), ("--cluster",), ()):
        with running(tmp_path, *LEAN, *arguments) as up:
            async with httpx2.AsyncClient(base_url=await up.ready(MOVE_S_MAX), trust_env=False, timeout=20) as client:
                for path, whole in told.items():
                    assert await events(client, path) == whole
                asked = (await client.post("/v1/turns", json={"message": "#sim words=9 rate=0"})).json()
                path = f"/v1/turns/{asked['turn']}/events"
                told[path] = await events(client, path)
            connection = await Connection.open(nats_server.url(up.folder, {}), "test")
            found = {info.config.num_replicas for info in await connection.jetstream.streams_info()}
            await connection.close()
            assert found == {3 if arguments else 1}
            moved = [line for line in up.lines if "| copying the log to " in line]
            assert len(moved) == (len(told) > 1)
            up.process.send_signal(SIGTERM)
            assert up.process.wait(timeout=STOP_S_MAX) == 0
    kept = sorted(path.name for path in up.folder.iterdir() if path.is_dir())
    assert kept == ["cluster.before", "nats", "nats.before"]


@pytest.mark.timeout(400)
async def test_a_move_that_was_stopped_is_made_anew(tmp_path: Path) -> None:
    """kill -9 in the middle: the log is where it was, and the half copy is nowhere that a log is looked for."""
    with running(tmp_path, *LEAN) as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=20) as client:
            asked = (await client.post("/v1/turns", json={"message": "#sim words=9 rate=0"})).json()
            whole = await events(client, f"/v1/turns/{asked['turn']}/events")
        up.process.send_signal(SIGTERM)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
    with running(tmp_path, *LEAN, "--cluster") as broken:
        await until((up.folder / "moving" / "cluster" / NAMES[-1] / "nats").exists, 20)
        broken.process.kill()
    with running(tmp_path, *LEAN, "--cluster") as again:
        async with httpx2.AsyncClient(base_url=await again.ready(MOVE_S_MAX), trust_env=False, timeout=20) as client:
            assert await events(client, f"/v1/turns/{asked['turn']}/events") == whole
    assert not (up.folder / "moving").exists()


async def test_without_a_cluster_there_is_no_node_to_restart(tmp_path: Path) -> None:
    """One sentence that says what would have to be."""
    (tmp_path / nats_server.URL_FILE).write_text("nats://t@127.0.0.1:9")
    done = await restart(tmp_path, "nats-1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "start it with --cluster" in done.stderr
