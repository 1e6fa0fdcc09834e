"""`tailrace up --cluster`: three nats-servers with three copies of everything; kills, restarts, moves of the log."""

import asyncio
import json
import os
import re
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM

import httpx2
import pytest

from tailrace.deploy.cli.status import fetch
from tailrace.deploy.local import data_dir, nats_cluster, nats_server
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.stream_configs import EVERY_STREAM, consumers
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import STREAM
from tests.harness.forks import CommandResult, run_to_end
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.harness.up import LEAN, STOP_S_MAX, Up, is_alive, running

NAMES = nats_cluster.names()
# Two clusters elect their leaders, one after the other.
MOVE_S_MAX = 120.0
RESTART_S_MAX = 90.0


async def restart(folder: Path, name: str) -> CommandResult:
    arguments = ["restart-node", name, "--json", "--data", str(folder)]
    return await asyncio.to_thread(run_to_end, "tailrace", arguments, os.environ, RESTART_S_MAX)


async def events(client: httpx2.AsyncClient, path: str) -> str:
    """Returns the stream without its first line, which has a random reconnect time."""
    return (await client.get(path)).text.partition("\n")[2]


async def attempt_of(connection: Connection, turn: str) -> int:
    return (await TurnLog(connection).read_turn(ScopedKey.whole(TurnKey(LOCAL.access.tenant, TurnId(turn))))).attempt


def pids(up: Up) -> dict[str, int]:
    """Returns the pids of the current servers."""
    again = re.findall(r"^up +\| (nats-[0-9]) runs again, pid ([0-9]+)$", up.text, re.MULTILINE)
    found = up.pids() | {name: int(pid) for name, pid in again}
    return {name: found[name] for name in NAMES}


def of_process(pid: int, what: str) -> str:
    return Path(f"/proc/{pid}/{what}").read_text()


def hosts(nats_url: str) -> set[str]:
    return {address.rpartition("@")[2] for address in nats_url.split(",")}


def open_client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, trust_env=False, timeout=40)


async def post(client: httpx2.AsyncClient, line: str) -> str:
    """Posts a turn; returns its path."""
    return f"/v1/turns/{(await client.post('/v1/turns', json={'message': f'#sim {line}'})).json()['turn']}"


def check_started(up: Up) -> None:
    """The output and the files of a started cluster: one line per server, random passwords, synced writes."""
    assert list(up.pids()) == [
        *NAMES, "persistence", "simulated-claude", "generator-1", "generator-2", "gateway-1", "gateway-2",
    ]  # fmt: skip
    assert sorted(up.pids().values()) == sorted(up.tree())
    purpose = "3 nats-servers have a copy of the log each; any one of them may fail"
    assert [line for line in up.lines if line.startswith("up ") and line.endswith(f"| {purpose}")]
    started = up.text.partition("\nready http")[0]
    shown = re.findall(r"^(nats-[0-9]) .*\[INF\](.*)$", started, re.MULTILINE)
    assert sorted(shown) == [(name, " Server is ready") for name in NAMES]
    assert "connection refused" not in started

    folders = [up.folder / "cluster" / name for name in NAMES]
    configs = [(folder / "nats.conf").read_text() for folder in folders]
    assert all("Starting nats-server\n" in (folder / "nats.log").read_text() for folder in folders)
    # Three servers that lose power together are as one (ADR 9).
    assert [config.count('"sync_interval": "always"') for config in configs] == [1, 1, 1]
    assert all(json.loads(config)["cluster"]["listen"].startswith("127.0.0.1:") for config in configs)
    passwords = {password for config in configs for password in re.findall('"password": "(.*?)"', config)}
    assert [len(password) for password in passwords] == [32] * (len(RIGHTS) + 1)
    spawned = up.read_spawned()
    texts = [up.text, *(of_process(pid, "cmdline") for pid in up.tree()), *(" ".join(one) for _, one, _ in spawned)]
    assert [text for text in texts if any(password in text for password in passwords)] == []
    assert [path for path in up.folder.rglob("*") if path.stat().st_mode & 0o077] == []

    addresses = hosts(nats_server.url(up.folder, {}))
    assert len(addresses) == 3
    connected = [environ["TAILRACE_NATS_URL"] for _, _, environ in spawned if "TAILRACE_NATS_URL" in environ]
    assert [hosts(url) == addresses for url in connected] == [True] * 5


async def assert_three_copies(connection: Connection) -> None:
    """Every stream, bucket and consumer has three copies."""
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


async def assert_survives_a_kill(up: Up, client: httpx2.AsyncClient, connection: Connection) -> None:
    """kill -9 of the leader of the log during an answer: the reader sees a pause and no gap; the server is replaced."""
    nats = (await fetch(up.folder, {})).nats
    shown = nats.leader if nats is not None else ""
    await until(lambda: f"| {shown} leads the log\n" in up.text)
    path = await post(client, "words=60 rate=20 tag=k")
    async with client.stream("GET", f"{path}/events?dialect=text") as response:
        pieces = response.aiter_text()
        text = await anext(pieces)
        leader = (await connection.jetstream.stream_info(STREAM)).cluster
        assert leader is not None
        assert leader.leader == shown
        os.kill(pids(up)[str(leader.leader)], SIGKILL)
        text += "".join([piece async for piece in pieces])
    assert text == words(60, "k")
    await until(lambda: f"{leader.leader} runs again" in up.text)
    assert (await client.get(path)).json()["outcome"] == "completed"
    assert len(set(pids(up).values())) == 3


async def assert_rolling_restart(up: Up, client: httpx2.AsyncClient, connection: Connection) -> None:
    """Each server hands over its leaders first, so that the generator of a running turn never waits for an election."""
    path = await post(client, "words=1200 rate=20 tag=r")
    before = pids(up)
    for name in NAMES:
        done = await restart(up.folder, name)
        assert (done.status, done.err) == (0, ""), done
        assert done.out == f'{{"node":"{name}"}}\n'
    assert not set(before.values()) & set(pids(up).values())
    assert (await client.get(path)).json()["outcome"] == "running"
    assert await attempt_of(connection, path.rpartition("/")[2]) == 1, "another generator took the turn over"
    assert (await client.post(f"{path}/cancel")).json()["outcome"] == "cancelled"


async def assert_restart_refused(up: Up) -> None:
    """While one server is frozen the restart of another is refused: the last one alone can store nothing."""
    before = pids(up)
    os.kill(before["nats-3"], SIGSTOP)
    try:
        done = await restart(up.folder, "nats-1")
        assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
        assert "nats-3 does not answer: if nats-1 stopped as well, nothing could be stored" in done.err
    finally:
        os.kill(before["nats-3"], SIGKILL)  # `up` starts it again
    assert is_alive(before["nats-1"])


@pytest.mark.rule("F7")
@pytest.mark.timeout(400)
async def test_a_cluster_survives_kills_restarts_and_a_stop(tmp_path: Path) -> None:
    """From its start to its stop in order, and the next start, which moves the log to one server, with every turn."""
    with running(tmp_path, "--port", "0", "--cluster", "--gateways", "2") as up:
        async with open_client(await up.ready()) as client:
            check_started(up)
            connection = await Connection.open(nats_server.url(up.folder, {}), "test")
            await assert_three_copies(connection)
            await assert_survives_a_kill(up, client, connection)
            await assert_rolling_restart(up, client, connection)
            path = f"{await post(client, 'words=9 rate=0')}/events?dialect=text"
            assert (await client.get(path)).text == words(9)
            await connection.close()
            await assert_restart_refused(up)
            await until(lambda: "nats-3 runs again" in up.text.rpartition("nats-3 was killed")[2])
        running_pids = up.tree()
        up.process.send_signal(SIGTERM)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert [pid for pid in running_pids if is_alive(pid)] == []
        stopped = re.findall(r"^up +\| ([a-z-]+)[0-9]* stopped$", up.text, re.MULTILINE)
        gateways, generators, servers = ["gateway-"] * 2, ["generator-"] * 2, ["nats-"] * 3
        assert stopped[-9:] == [*gateways, *generators, "simulated-claude", "persistence", *servers]
    with running(tmp_path, *LEAN) as alone:
        async with open_client(await alone.ready(MOVE_S_MAX)) as client:
            assert (await client.get(path)).text == words(9)
        assert alone.text.count("| copying the log to ") == 1
    assert sorted(one.name for one in alone.folder.iterdir() if one.is_dir()) == ["cluster.before", "nats"]


@pytest.mark.timeout(400)
async def test_a_log_is_moved_to_three_servers(tmp_path: Path) -> None:
    """With all turns and ids. A move that is killed in the middle leaves the log where it was, and is repeated."""
    streams: dict[str, str] = {}
    for number, options in enumerate(((), ("--cluster",))):
        if number == 1:
            with running(tmp_path, *LEAN, *options) as killed:
                await until((killed.folder / "moving" / "cluster" / NAMES[-1] / "nats").exists, 20)
                killed.process.kill()
        with running(tmp_path, *LEAN, *options) as up:
            async with open_client(await up.ready(MOVE_S_MAX)) as client:
                for path, whole in streams.items():
                    assert await events(client, path) == whole
                path = f"{await post(client, 'words=9 rate=0')}/events"
                streams[path] = await events(client, path)
            connection = await Connection.open(nats_server.url(up.folder, {}), "test")
            found = {info.config.num_replicas for info in await connection.jetstream.streams_info()}
            await connection.close()
            assert found == {3 if options else 1}
            moved = [line for line in up.lines if "| copying the log to " in line]
            assert len(moved) == (number > 0)
            up.process.send_signal(SIGTERM)
            assert up.process.wait(timeout=STOP_S_MAX) == 0
    kept = sorted(path.name for path in up.folder.iterdir() if path.is_dir())
    assert kept == ["cluster", "nats.before"]


async def test_without_a_cluster_there_is_no_server_to_restart(tmp_path: Path) -> None:
    """The message names the option."""
    (tmp_path / data_dir.URL_FILE).write_text("nats://t@127.0.0.1:9")
    done = await restart(tmp_path, "nats-1")
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert "start it with --cluster" in done.err
