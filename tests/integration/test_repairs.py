"""Faults of the system's surroundings that `up` outlives, and deletions in NATS that are reported and repaired."""

import asyncio
import io
import os
import re
import shutil
import socket
import sys
from asyncio import TaskGroup
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

import httpx2
import pytest

from tailrace.deploy.local import ports, readiness, watch
from tailrace.deploy.local.check_environment import find_mistyped
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.data_dir import FIRST_KEY, URL_FILE
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.readiness import HealthCheck, Response
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tailrace.deploy.local.watch import Liveness, SetupRepair, is_working
from tailrace.proto.chain import START
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Deliveries, TurnLog
from tailrace.proto.nats.setup_state import read_setup_state
from tailrace.proto.nats.stream_configs import CONSUMERS, EVERY_STREAM
from tailrace.proto.subjects import GENERATORS, KEYS_STREAM, PERSISTENCE, STREAM
from tests.harness import processes
from tests.harness.disk import MIB, needs_mount, small_disk
from tests.harness.forks import run_command
from tests.harness.generator_in_loop import words
from tests.harness.turn_builder import request
from tests.harness.until import until
from tests.harness.up import LEAN, STOP_S_MAX, Up, run_refused_up, running

# Answers one request and then reads no other, as a process whose event loop is blocked.
ANSWERS = """
import signal, socket, sys, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(60))
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    connection.recv(1000)
    try:
        connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    except OSError:
        pass  # The watch has waited long enough.
    connection.close()
"""


@pytest.mark.timeout(120)
async def test_up_recreates_deleted_parts_of_nats_and_a_truncated_database_and_waits_for_its_directory(
    tmp_path: Path,
) -> None:
    """Turns complete after each fault, and the turns of before are still there unless both copies are gone."""
    with running(tmp_path, *LEAN) as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=30) as client:

            async def completed_turn() -> str:
                """Returns the id of a new turn that was answered; empty if the POST was refused."""
                body = {"message": "#sim words=5 rate=0"}
                headers = {"accept": "text/event-stream", "idempotency-key": new_id()}
                answer = await client.post("/v1/turns?dialect=text", json=body, headers=headers)
                assert answer.text == words(5) or answer.status_code == 503
                return answer.headers["tailrace-turn"] if answer.status_code == 200 else ""

            async def is_recorded(turn: str) -> bool:
                listed = await client.get("/v1/sessions?limit=1")
                found = await client.get(f"/v1/turns/{turn}")
                return listed.status_code == 200 and found.json().get("text") == words(5)

            first = await completed_turn()
            await until(lambda: is_recorded(first), 20)
            admin = await Connection.open((up.folder / "nats.url").read_text().strip(), "test")
            try:
                for durable in (GENERATORS, PERSISTENCE):
                    await admin.jetstream.delete_consumer(STREAM, durable)
                await admin.jetstream.delete_stream("KV_CLAIMS")
                await until(lambda: "creating it again" in up.text, 20)
            finally:
                await admin.close()
            await until(lambda: is_recorded(first), 20)
            assert await completed_turn()

            running_turn = (await client.post("/v1/turns", json={"message": "#sim words=600 rate=20"})).json()["turn"]
            events = f"/v1/turns/{running_turn}/events"

            async def is_listed() -> bool:
                listed = await client.get("/v1/turns?limit=1")
                return [one["turn"] for one in listed.json()["data"]] == [running_turn]

            received = b""
            with suppress(httpx2.RemoteProtocolError):
                async with client.stream("GET", events) as response:
                    async for piece in response.aiter_raw():
                        is_first_delta = b'"delta"' in piece and b'"delta"' not in received
                        received += piece
                        if is_first_delta:
                            # A turn that is in neither log nor database is unknown.
                            await until(is_listed, 20)
                            await purge_log(up.folder)
            cursor = re.findall(rb"^id: (\d+)$", received, re.MULTILINE)[-1].decode()

            async def is_failure_streamed() -> bool:
                again = await client.get(events, headers={"last-event-id": cursor})
                return again.status_code == 200 and LOST_FAILURE.message in again.text

            await until(is_failure_streamed, 20)

            away = up.folder.with_name("away")
            up.folder.rename(away)
            await until(lambda: "Waiting for it; the processes continue" in up.text, 20)
            away.rename(up.folder)
            # The first write into a directory that is away makes nats-server stop storing, until `up` restarts it.
            last = await until(completed_turn, 30)
            await until(lambda: is_recorded(last), 20)

            os.truncate(up.folder / "tailrace.db", 0)
            # The size of the file shows it, or a query that finds a page missing, whichever comes first.
            await until(lambda: "The next start makes a new database from the log" in up.text, 20)
            # The new database has what the log has: not the first turn, which was purged from it.
            await until(lambda: is_recorded(last), 20)
        assert up.process.poll() is None


@pytest.mark.timeout(180)
async def test_requests_need_a_key_after_the_loss_of_all_keys_and_restarts(tmp_path: Path) -> None:
    """Until a new key is created: the data directory remembers the first key. Without its file, all is as new."""

    def ask(client: httpx2.AsyncClient, key: str = "") -> Awaitable[httpx2.Response]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return client.post("/v1/turns", json={"message": "#sim words=3"}, headers=headers)

    async def has_status(client: httpx2.AsyncClient, status: int, key: str = "") -> bool:
        return (await ask(client, key)).status_code == status

    async def create_key(up: Up) -> str:
        # Not only `--data` must close the gateway.
        made = await run_command("keys", "create", "--tenant", "acme", TAILRACE_NATS_URL=nats_url(up))
        return made.out.strip()

    async def lose_keys_and_kill_the_gateway(up: Up) -> None:
        repairs = up.text.count("creating it again")
        admin = await Connection.open(nats_url(up), "test")
        await admin.jetstream.delete_stream(KEYS_STREAM)
        await admin.close()
        await until(lambda: up.text.count("creating it again") > repairs)
        again = re.findall(r"gateway-1 runs again, pid (\d+)", up.text)
        os.kill(int(again[-1]) if again else up.pids()["gateway-1"], SIGKILL)
        await until(lambda: len(re.findall(r"gateway-1 runs again, pid \d+", up.text)) > len(again))

    with running(tmp_path, *LEAN) as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=30) as client:
            assert await has_status(client, 202)
            lost = await create_key(up)
            await until(lambda: has_status(client, 401))
            await lose_keys_and_kill_the_gateway(up)
            refused = await ask(client)
            assert (refused.status_code, "`tailrace keys create`" in refused.text) == (401, True)
            assert "every request needs a credential, and no API key exists" in up.text
        up.process.send_signal(SIGTERM)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
    with running(tmp_path, *LEAN) as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=30) as client:
            assert "Authorization: Bearer YOUR-KEY" in up.find_line("  curl ")
            assert await has_status(client, 401)
            key = await create_key(up)
            await until(lambda: has_status(client, 202, key))
            assert await has_status(client, 401, lost)
            (up.folder / FIRST_KEY).unlink()
            await lose_keys_and_kill_the_gateway(up)
            assert await has_status(client, 202)


def nats_url(up: Up) -> str:
    return (up.folder / URL_FILE).read_text().strip()


async def purge_log(data: Path) -> None:
    admin = await Connection.open((data / "nats.url").read_text().strip(), "test")
    try:
        await admin.jetstream.purge_stream(STREAM)
    finally:
        await admin.close()


async def test_a_missing_consumer_is_reported_by_readyz_and_by_a_metric(
    own_server: NatsServer, own_connection: Connection, tmp_path: Path
) -> None:
    """Without `up` only the operator may create it: the processes report it and name the command."""
    [port] = ports.find_free(1)
    gateway = processes.gateway(tmp_path, own_server.url, TAILRACE_METRICS_PORT=port)
    async with gateway, httpx2.AsyncClient(trust_env=False) as client:
        await own_connection.jetstream.delete_consumer(STREAM, GENERATORS)

        async def detail() -> str:
            return str((await client.get(f"{gateway.url}/readyz")).json()["nats"]["detail"])

        await until(detail, 20)
        assert await detail() == "NATS lacks the consumer generators: run `tailrace streams`"
        assert "\ntailrace_nats_missing 1.0\n" in (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        assert gateway.find_lines("NATS lacks what Tailrace needs: run `tailrace streams`")


async def test_each_deleted_part_of_the_setup_is_made_again(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant
) -> None:
    """A new consumer starts after the acknowledged entries; a new log continues the sequences of the old one."""
    console = Console(io.StringIO(), width=4, coloured=False)
    repair = SetupRepair(own_server.url, console, [own_server.spec])
    keys = [TurnKey(tenant, TurnId(new_id())) for _ in range(3)]
    for key in keys:
        await own_log.append(key, START, request())
    [delivery] = await (await Deliveries.open(own_connection, GENERATORS)).next()
    await delivery.ack()
    await until(lambda: has_floor(own_connection))
    try:
        await repair.check()
        for durable in CONSUMERS:
            await own_connection.jetstream.delete_consumer(STREAM, durable)
        await repair.check()
        delivered = await (await Deliveries.open(own_connection, GENERATORS)).next(3)
        assert [one.key for one in delivered] == keys[1:]

        last = (await own_connection.jetstream.stream_info(STREAM)).state.last_seq
        for name in EVERY_STREAM:
            await own_connection.jetstream.delete_stream(name)
        assert len((await read_setup_state(own_connection)).missing) == len(EVERY_STREAM) + len(CONSUMERS)
        await repair.check()
        assert (await read_setup_state(own_connection)).missing == []
        assert (await own_log.append(keys[0], START, request())).last > last
    finally:
        await repair.close()


async def has_floor(connection: Connection) -> bool:
    floor = (await connection.jetstream.consumer_info(STREAM, GENERATORS)).ack_floor
    return floor is not None and floor.stream_seq > 0


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "blocked"])
async def test_a_process_that_stops_answering_is_killed_and_started_again(
    monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    monkeypatch.setattr(watch, "SILENT_S_MAX", 0.5)
    monkeypatch.setattr("tailrace.deploy.local.readiness.RESPONSE_S_MAX", 0.2)
    [port] = ports.find_free(1)
    out = io.StringIO()
    async with TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Console(out, width=4, coloured=False))
        supervisor.start(ProcessSpec("a", "a", (sys.executable, "-c", ANSWERS, str(port)), {}, grace_s=0.1))
        watched = Liveness({"a": HealthCheck(port, "/")}, supervisor)

        async def is_replaced() -> bool:
            await watched.restart_hanging()
            return supervisor.children["a"].pid not in (None, first)

        first = await until(lambda: supervisor.children["a"].pid)
        assert first is not None
        await wait_answered(watched, monkeypatch)
        os.kill(first, SIGSTOP if is_stopped else SIGUSR1)
        await until(is_replaced, 20)
        await supervisor.stop()
    assert f"a has not answered for 0.5 s; killing it, pid {first}" in out.getvalue()


async def test_a_spare_that_stops_answering_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tailrace restart` starts it after `up`, and waits until it has ended."""
    monkeypatch.setattr(watch, "SILENT_S_MAX", 0.5)
    monkeypatch.setattr("tailrace.deploy.local.readiness.RESPONSE_S_MAX", 0.2)
    [port] = ports.find_free(1)
    command = (sys.executable, "-c", ANSWERS, str(port))
    async with TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Console(io.StringIO(), width=4, coloured=False))
        watched = Liveness({}, supervisor)
        supervisor.start(ProcessSpec("a", "a", command, {}, readiness=HealthCheck(port, "/"), is_spare=True))
        await wait_answered(watched, monkeypatch)
        os.kill(supervisor.children["a"].pid or 0, SIGSTOP)
        retiring = asyncio.create_task(supervisor.retire("a", 60))

        async def is_retired() -> bool:
            await watched.restart_hanging()
            return retiring.done()

        await until(is_retired, 20)
        assert "a" not in supervisor.children
        await supervisor.stop()


async def test_a_process_that_hangs_does_not_delay_the_check_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.deploy.local.readiness.RESPONSE_S_MAX", 1.0)
    async with TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Console(io.StringIO(), width=4, coloured=False))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            checks = dict.fromkeys("abcd", HealthCheck(silent.getsockname()[1], "/"))
            for name in checks:
                supervisor.start(ProcessSpec(name, name, ("sleep", "60"), os.environ))
            await until(lambda: all(supervisor.children[name].pid for name in checks))
            async with asyncio.timeout(3.0):
                await Liveness(checks, supervisor).restart_hanging()
        await supervisor.stop()


async def wait_answered(watched: Liveness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits until the watch has received an answer in time: only then it judges the process."""
    answers: list[bool] = []

    async def ask(check: HealthCheck) -> Response:
        response = await readiness.ask(check)
        answers.append(response.status == 200)
        return response

    async def has_answered() -> bool:
        await watched.restart_hanging()
        return any(answers)

    with monkeypatch.context() as patched:
        patched.setattr(watch, "ask", ask)
        await until(has_answered)


def test_a_service_works_if_its_event_loop_ran_shortly_before() -> None:
    """The metrics come from a thread, which also answers while the event loop is blocked."""
    body = "tailrace_ready 1.0\ntailrace_event_loop_seconds 1000.5\n"
    assert is_working(Response(200, body), 1005.0)
    assert not is_working(Response(200, body), 1030.0)
    assert is_working(Response(200, "ok"), 1030.0)
    assert not is_working(Response(0, ""), 1.0)


@needs_mount
@pytest.mark.rule("F16")
@pytest.mark.timeout(120)
async def test_new_turns_are_refused_before_the_disk_is_full_and_running_ones_complete(tmp_path: Path) -> None:
    """The disk is filled by another program, which nats-server's own limit does not count."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with small_disk(data, 256 * MIB), running(tmp_path, *LEAN) as up:
        async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False, timeout=30) as client:

            async def post(text: str) -> httpx2.Response:
                return await client.post("/v1/turns", json={"message": text})

            async def code() -> str:
                answer = await post("#sim words=1 rate=0")
                return str(answer.json().get("error", {}).get("code", ""))

            async def is_accepted() -> bool:
                return not await code()

            turn = (await post("#sim words=80 rate=20")).json()["turn"]
            # Leaves 8 MiB: less than the reserve of 5 %, and enough for what was written but not allocated yet.
            (data / "other").write_bytes(bytes(shutil.disk_usage(data).free - 8 * MIB))
            assert await until(code, 10) == "log_full"
            detail = (await client.get("/readyz")).json()["log"]["detail"]
            assert detail.endswith("are kept for running turns")
            assert (await client.get(f"/v1/turns/{turn}/events?dialect=text")).text == words(80)
            (data / "other").unlink()
            await until(is_accepted, 10)


@needs_mount
def test_a_full_disk_at_the_start_is_one_sentence(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    with small_disk(data, 16 * MIB):
        fill = data / "junk"
        with fill.open("wb", buffering=0) as junk:
            try:
                while True:
                    junk.write(b"x" * 4096)
            except OSError:
                pass
        status, error = run_refused_up("--data", str(data), "--port", "0")
    assert status == 1
    assert "No space left on device" in error
    assert len(error.splitlines()) == 1


def test_a_mistyped_variable_of_the_model_gets_a_warning() -> None:
    environ = dict.fromkeys(
        ["ANTHROPIC_APIKEY", "ANTHROPIC_API_KEY", "ANTHROPIC_MODEL", "PATH", "ANTROPIC_API_KEY"], "x"
    )
    assert find_mistyped(environ) == [
        "ANTHROPIC_APIKEY is set but has no meaning: did you mean ANTHROPIC_API_KEY?",
        "ANTROPIC_API_KEY is set but has no meaning: did you mean ANTHROPIC_API_KEY?",
    ]
