"""`tailrace up`: one command that starts the whole system, restarts its processes, and stops them in order."""

import asyncio
import hashlib
import io
import json
import os
import re
import select
import shlex
import signal
import socket
import sqlite3
import sys
import termios
import time
from asyncio import TaskGroup
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from subprocess import PIPE, Popen, run
from urllib.parse import urlsplit

import httpx2
import pytest
from standardwebhooks import Webhook

from tailrace import Client
from tailrace.deploy.cli import doctor
from tailrace.deploy.cli import status as cli_status
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.migrate_log import server_specs
from tailrace.deploy.local.nats_server import go_runtime
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.supervisor import Supervisor
from tailrace.deploy.local.up import handle_signals, start_nats
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.proto.runtime import settings
from tailrace.proto.version import VERSION
from tests.harness import jwts, processes
from tests.harness.disk import disk_without_permissions, needs_ntfs
from tests.harness.forks import run_command
from tests.harness.until import until
from tests.harness.up import CHECKOUT, LEAN, START_S_MAX, STOP_S_MAX, Up, is_alive, run_refused_up, running
from tests.harness.webhook_receiver import Receiver

KEY = "sk-ant-canary-of-the-real-key"
# How long a process that hangs may take before it is killed (deploy/local/supervisor.py).
GRACE_S = 8.0

# Python runs sitecustomize.py in every process. Here the second generator starts late.
LATE_GENERATOR = """
import os, sys, time
if "tailrace.generators" in sys.orig_argv and os.environ["TAILRACE_GENERATOR"] == "generator-2":
    time.sleep(1.5)
    open(os.environ["BEGUN"], "w").close()
"""
# Here persistence refuses a setting that `up` has accepted.
STRICT_PERSISTENCE = """
import os, sys
if "tailrace.persistence" in sys.orig_argv:
    os.write(2, b"persistence: TAILRACE_DATABASE: not here\\n")
    os._exit(2)
"""


def assert_on_a_terminal(command: list[str], folder: Path, environ: dict[str, str], turn: str) -> None:
    """The screen is overwritten in place, in as many lines as the terminal has, and Ctrl-C gives back the old one."""
    terminal, its = os.openpty()
    termios.tcsetwinsize(its, (40, 120))
    watching = Popen(command, cwd=folder, env=environ, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    try:
        while not (second := re.search(rb"\x1b\[H.*\x1b\[J\x1b\[H(.*)\x1b\[J", shown, re.DOTALL)):
            assert select.select([terminal], [], [], 30)[0], shown
            shown += os.read(terminal, 10_000)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 128 + signal.SIGINT
        shown += os.read(terminal, 10_000)
    finally:
        watching.kill()
        watching.wait()
        os.close(terminal)
    lines = second[1].decode().split("\x1b[K\r\n")
    [row] = [line for line in lines if turn in line]
    assert len(lines) < 40
    assert re.search(r"1 running, [1-9][0-9]* tokens a second", second[1].decode())
    assert int(row.split()[3]) > 0
    assert max(map(len, lines)) <= 120
    assert (shown.startswith(b"\x1b[?1049h"), b"\x1b[?1049l" in shown) == (True, True)


def assert_watched(up: Up, url: str, folder: Path) -> None:
    """`tailrace top` in another folder finds it: once into a pipe, as lines of JSON, and on a terminal until Ctrl-C.

    Each second sample has a rate.
    """
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("TAILRACE_")}
    own = {"PYTHONPATH": str(CHECKOUT), "NO_PROXY": "127.0.0.1", "XDG_DATA_HOME": str(folder)}
    environ = inherited | own | {"XDG_STATE_HOME": str(up.folder.with_name("state"))}
    command = [sys.executable, "-P", "-m", "tailrace", "top"]
    with httpx2.Client(trust_env=False) as http, Client(url, http=http).ask("#sim words=4000 rate=50") as answer:
        shown = run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True, timeout=30).stdout
        assert f"`up` {VERSION} at {url}" in shown
        assert "gateway-2" in shown
        assert answer.turn in shown
        watching = Popen([*command, "--json"], cwd=folder, env=environ, stdout=PIPE, text=True)
        try:
            assert watching.stdout is not None
            first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
        finally:
            watching.kill()
            watching.communicate()
        assert_on_a_terminal(command, folder, environ, answer.turn)
        answer.cancel()
    assert (first["tokens_s"], second["running"]) == (None, 1)
    assert second["tokens_s"] > 0


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def environ_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A system with two gateways."""
    folder = tmp_path / "up"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LATE_GENERATOR)
    environ = {"PYTHONPATH": str(folder), "BEGUN": str(folder / "begun"), "GOMEMLIMIT": "1GiB"}
    with running(folder, "--port", "0", "--gateways", "2", is_real=True, **environ) as up:
        yield up


@pytest.mark.rule("F30")
@pytest.mark.rule("S16")
@pytest.mark.timeout(120)
async def test_ready_is_printed_when_every_process_is_ready(up: Up, tmp_path: Path) -> None:
    """A script waits for one line, and a person finds each process above it; the printed curl command works.

    Only this machine and this user can reach it; a second `up` on the same directory or port is refused. A signal stops
    the processes in order: clients before servers.
    """
    url = await up.ready()
    assert up.folder.with_name("begun").exists()
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", url)
    names = ["nats-server", "persistence", "simulated-claude", "generator-1", "generator-2", "gateway-1", "gateway-2"]
    assert list(up.pids()) == names
    assert sorted(up.pids().values()) == sorted(up.tree())
    server_environ = environ_of(up.pids()["nats-server"]).split("\0")
    assert "GOMEMLIMIT=1GiB" in server_environ
    assert f"GOMAXPROCS={go_runtime(os.environ)['GOMAXPROCS']}" in server_environ
    assert "simulated Claude, free of charge" in up.find_line("  Model:")

    words = shlex.split(up.find_line("  curl "))
    assert words[:3] == ["curl", "-N", f"{url}/v1/turns"]
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    found = up.listening()
    assert {address.rpartition(":")[0] for of_process in found.values() for address in of_process} == {"127.0.0.1"}
    # nats-server has a port for monitoring; the gateways share one, and have one each for metrics.
    counts = {name: len(of_process) for name, of_process in found.items()}
    assert counts == {name: 2 if name.startswith(("nats", "gateway")) else 1 for name in ("up", *up.pids())}
    async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        answer = await client.post(words[2], content=words[words.index("-d") + 1], headers=headers)
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert answer.status_code == 200
        assert any(event["type"] == "delta" for event in events)
        assert events[-1]["type"] == "done"
        metrics = re.findall(r"metrics (http://127\.0\.0\.1:[0-9]+/metrics)$", up.text, re.MULTILINE)
        texts = [(await client.get(address)).text for address in metrics]
        assert ["\ntailrace_ready 1.0\n" in text for text in texts] == [True] * 5
        for path in ("/", "/v1/sessions", "/metrics"):
            answer = await client.get(path, headers={"host": "rebound.example"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_refused")
    shown = await cli_status.fetch(up.folder, {})
    assert shown.nats is not None
    assert (shown.ok, shown.problems, shown.nats.generators, shown.nats.unrecorded) == (True, [], 2, 0)
    assert [(one.name, one.pid) for one in shown.processes] == list(up.pids().items())
    findings = await doctor.examine(Options(data_dir=up.folder), {})
    assert [one for one in findings if one.level != "ok" and one.name != "File limit"] == []
    assert up.folder.stat().st_mode & 0o777 == 0o700
    assert [path for path in up.folder.rglob("*") if path.stat().st_mode & 0o077] == []

    before, other, port = up.tree(), tmp_path / "other", url.rpartition(":")[2]
    status, message = run_refused_up("--port", "0", "--data", str(up.folder))
    assert (status, message.count("\n"), "--data" in message) == (1, 1, True)
    assert f"in use by `tailrace up` (pid {up.process.pid})" in message
    status, message = run_refused_up("--port", port, "--data", str(other))
    assert (status, message.count("\n"), "--port" in message) == (1, 1, True)
    assert f"port {port} on 127.0.0.1 is in use" in message
    assert sorted(path.name for path in other.iterdir()) == ["lock"]
    assert up.tree() == before
    await asyncio.to_thread(assert_watched, up, url, tmp_path)

    up.process.send_signal(signal.SIGHUP)
    assert up.process.wait(timeout=STOP_S_MAX) == 0
    assert [pid for pid in before if is_alive(pid)] == []
    stopped = re.findall(r"^up +\| ([a-z-]+)[0-9]* stopped$", up.text, re.MULTILINE)
    pairs = ["gateway-", "gateway-", "generator-", "generator-"]
    assert stopped == [*pairs, "simulated-claude", "persistence", "nats-server"]


@pytest.mark.parametrize(
    ("options", "environ", "status", "message"),
    [
        (("--port", "0", "--data", "file"), {}, 1, "choose another with --data"),
        (("--port", "0", "--data", "newer"), {}, 1, "has schema version 999"),
        (
            ("--host", "192.0.2.1", "--data", "data"),
            {"TAILRACE_ALLOW_ANONYMOUS": "true"},
            1,
            "cannot listen on 192.0.2.1 port 8000",
        ),
        (
            ("--port", "0", "--data", "data"),
            {"TAILRACE_GRACE": "3"},
            2,
            "TAILRACE_GRACE is not a setting (did you mean TAILRACE_GRACE_S?)",
        ),
    ],
)
def test_a_start_that_cannot_succeed_is_refused_in_one_line(
    tmp_path: Path, options: tuple[str, ...], environ: dict[str, str], status: int, message: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "newer").mkdir()
    with closing(sqlite3.connect(tmp_path / "newer/tailrace.db")) as database:
        database.execute("PRAGMA user_version = 999")
    found = run_refused_up(*options[:-1], str(tmp_path / options[-1]), **environ)
    assert (found[0], found[1].count("\n")) == (status, 1)
    assert message in found[1]
    assert status == 1 or not (tmp_path / "data").exists()
    assert {path.name for path in (tmp_path / "newer").iterdir()} <= {"lock", "tailrace.db"}


async def test_a_setting_that_only_a_process_refuses_ends_up(tmp_path: Path) -> None:
    """The process prints what is wrong, and `up` prints which process it was: status 1."""
    (tmp_path / "sitecustomize.py").write_text(STRICT_PERSISTENCE)
    with running(tmp_path, *LEAN, is_real=True, PYTHONPATH=str(tmp_path)) as up:
        assert up.process.wait(timeout=START_S_MAX) == 1
        assert [line for line in up.lines if "TAILRACE_DATABASE: not here" in line]
        assert up.lines[-1] == "tailrace: persistence reports an invalid setting: see its lines above"


async def test_killed_processes_are_replaced_and_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """A client that connects while the only gateway restarts waits, because `up` holds the socket.

    While `up` stops, connections are refused: no process would accept them. A webhook is sent and signed. The metrics
    have an address of their own.
    """
    environ = {"TAILRACE_WEBHOOK_KEY": "k" * 32, "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1"}
    environ |= {"TAILRACE_METRICS_HOST": "127.0.0.2"}
    with running(tmp_path, *LEAN, is_real=False, **environ) as up:
        url = await up.ready()
        address = urlsplit(url)
        async with Receiver() as receiver, httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            body = {"message": "#sim words=5 rate=0", "webhook": receiver.url}
            turn = (await client.post("/v1/turns", json=body)).json()["turn"]
            (webhook,) = await until(lambda: receiver.received)
            record = (await client.get(f"/v1/turns/{turn}")).json()
        secret = (await run_command("webhook-secret", **os.environ | environ)).out.strip()
        assert Webhook(secret).verify(webhook.body, dict(webhook.headers))["data"] == record
        assert record["text"] == "w000000 w000001 w000002 w000003 w000004"

        others = set(up.tree()) - {up.pids()["generator-1"]}
        os.kill(up.pids()["generator-1"], signal.SIGKILL)
        await until(lambda: [line for line in up.lines if "generator-1 was killed by SIGKILL; next start" in line])
        [line] = await until(lambda: [line for line in up.lines if "generator-1 runs again, pid " in line])
        generator = int(line.rpartition(" ")[2])
        assert set(up.tree()) == {*others, generator}

        os.kill(up.pids()["gateway-1"], signal.SIGKILL)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=START_S_MAX)
        try:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
        finally:
            connection.close()
        await until(lambda: [line for line in up.lines if "gateway-1 was killed by SIGKILL" in line])

        # Ends like a panic of Go: with a stack trace and status 2.
        os.kill(up.pids()["nats-server"], signal.SIGQUIT)
        await until(lambda: [line for line in up.lines if "nats-server exited with status 2; next start" in line])
        await until(lambda: [line for line in up.lines if "nats-server runs again, pid " in line])

        pids = up.tree()
        os.kill(generator, signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        await until(lambda: [line for line in up.lines if line.endswith("gateway-1 stopped")])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address.hostname), address.port))
        started_s = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert time.monotonic() - started_s < GRACE_S
        assert [pid for pid in pids if is_alive(pid)] == []


async def test_up_can_be_stopped_before_it_is_ready(tmp_path: Path) -> None:
    with running(tmp_path, *LEAN) as up:
        await until(lambda: up.find_line("nats-server"), START_S_MAX)
        pids = up.tree()
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert [pid for pid in pids if is_alive(pid)] == []


@pytest.mark.parametrize(
    ("program", "is_started"), [("sleep 3 && exec", True), ("exit 1;", False)], ids=["late", "ended"]
)
async def test_up_waits_for_a_nats_server_that_reads_a_large_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, is_started: bool
) -> None:
    """It does not wait for one that ends."""
    real = nats_server.command
    monkeypatch.setattr(nats_server, "command", lambda spec: ("/bin/sh", "-c", f'{program} "$@"', program, *real(spec)))
    # On a busy machine, the start of a shell takes more than 0.3 s.
    monkeypatch.setattr("tailrace.deploy.local.up.NATS_S_MAX", 2.0)
    monkeypatch.setattr("tailrace.deploy.local.supervisor.DELAY_S_MIN", 60.0)
    options, out = Options(data_dir=tmp_path), io.StringIO()
    async with TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Console(out, width=4, coloured=False))
        try:
            if is_started:
                await start_nats(options, {}, server_specs(options, tmp_path), supervisor)
            else:
                with pytest.raises(UpRefused, match=r"nats-server did not start within 2 s: see .*/nats\.log$"):
                    await start_nats(options, {}, server_specs(options, tmp_path), supervisor)
        finally:
            await supervisor.stop()
    assert ("nats-server still reads its log" in out.getvalue()) == is_started
    assert "ignores permissions" not in out.getvalue()


@needs_ntfs
async def test_a_data_directory_that_other_users_can_read_is_reported(tmp_path: Path) -> None:
    """Its file system ignores the modes of the files, as that of Windows does in WSL."""
    out = io.StringIO()
    (there := tmp_path / "data").mkdir()
    with disk_without_permissions(tmp_path, there):
        options = Options(data_dir=there)
        async with TaskGroup() as tasks:
            supervisor = Supervisor(tasks, Console(out, width=4, coloured=False))
            try:
                await start_nats(options, {}, server_specs(options, there), supervisor)
            finally:
                await supervisor.stop()
    assert f"the file system of {there} ignores permissions" in out.getvalue()


async def test_a_closed_terminal_does_not_stop_an_up_that_nohup_has_started() -> None:
    out = io.StringIO()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        async with TaskGroup() as tasks:
            stop_requested = handle_signals(Supervisor(tasks, Console(out, width=4, coloured=False)))
            for number in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
            await asyncio.wait_for(stop_requested.wait(), 10)
    finally:
        for number, handler in before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)
    assert "up   | SIGTERM: stopping all processes" in out.getvalue()
    assert "SIGHUP" not in out.getvalue()


OF_TRACES_AND_PROXY = {
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary-of-traces",
    "HTTPS_PROXY": "http://ops:canary-of-the-proxy@127.0.0.1:9",
}
# By the role that may have them. The simulated Claude, which needs no key, also runs with a login of Claude Code.
SECRETS = {
    "gateway": {
        "TAILRACE_API_KEYS": f"acme:{'5' * 64}",
        **{f"TAILRACE_{name.upper()}": str(value) for name, value in jwts.settings().items()},
    },
    "generators": {"AWS_SECRET_ACCESS_KEY": "canary-of-aws", "OPENAI_API_KEY": "canary-of-another-provider"},
    "persistence": {"TAILRACE_WEBHOOK_KEY": "canary-of-webhooks-canary-of-webhooks"},
    "": {"CLAUDE_CODE_OAUTH_TOKEN": "canary-of-the-login", "TAILRACE_KEY": "canary-of-a-client"},
}


@pytest.mark.rule("S2")
async def test_each_process_has_only_the_settings_and_secrets_of_its_role(tmp_path: Path) -> None:
    """As the kernel shows the environment of each process, with every kind of secret set."""
    environ = {name: value for of_role in SECRETS.values() for name, value in of_role.items()} | OF_TRACES_AND_PROXY
    with running(tmp_path, *LEAN, is_real=True, **environ, OTEL_SDK_DISABLED="true") as up:
        await up.ready()
        found = {name: environ_of(pid) for name, pid in up.pids().items()}
        assert sorted(up.pids().values()) == sorted(up.tree())
        passwords = json.loads((up.folder / "nats.conf").read_text())["accounts"]
    for password in (user for account in passwords.values() for user in account["users"]):
        environ[f"password of {password['user']}"] = password["password"]
    held = {name: {secret for secret, value in environ.items() if value in text} for name, text in found.items()}
    of_all = {*OF_TRACES_AND_PROXY}
    assert held == {
        "nats-server": set(),
        "persistence": {*SECRETS["persistence"], "password of persistence", *of_all},
        "simulated-claude": set(),
        "generator-1": {*SECRETS["generators"], "password of generators", *of_all},
        "gateway-1": {*SECRETS["gateway"], "password of gateway", *of_all},
    }
    kinds = {"persistence": "persistence", "generator-1": "generators", "gateway-1": "gateway"}
    for name, text in found.items():
        own = (
            {settings.env_name(field) for field in dict(SERVICES)[kinds[name]].__struct_fields__}
            if name in kinds
            else set()
        )
        names = {line.partition("=")[0] for line in text.split("\0")}
        assert {one for one in names if one.startswith("TAILRACE_")} <= own, name


# Confidential texts of one turn. The answer's is the tag of its words.
CANARIES = {
    "prompt": "canary-in-a-prompt",
    "system prompt": "canary-in-a-system-prompt",
    "answer": "canary-in-an-answer",
    "metadata": "canary-in-metadata",
    "title": "canary-in-a-title",
    "idempotency key": "canary-idempotency-key",
}
# A call that fails and an answer that breaks off log the most.
FAULTS = "words=20 rate=0 fault=429x1 fault=cut@9x2 retry_after=0"
MONITORED = (
    *("varz", "connz?auth=1&subs=detail&state=any", "subsz?subs=1", "routez?subs=1", "gatewayz", "leafz?subs=1"),
    *("jsz?accounts=1&streams=1&consumers=1&config=1", "accountz", "accstatz", "healthz", "expvarz", "ipqueuesz"),
)


@pytest.mark.rule("F30")
@pytest.mark.rule("S3")
@pytest.mark.rule("S4")
async def test_a_system_at_work_shows_no_secret_and_no_process_survives_a_kill(tmp_path: Path) -> None:
    """Not in log lines, arguments, metrics, error responses, URLs, nor in the monitoring of nats-server (S3, S4).

    kill -9 of `up` leaves no process that holds the directory.
    """
    key = "a-key-that-is-a-canary"
    environ = {
        "ANTHROPIC_API_KEY": KEY,
        "TAILRACE_API_KEYS": f"acme:{hashlib.sha256(key.encode()).hexdigest()}",
        "TAILRACE_LOG_LEVEL": "debug",
        **{f"TAILRACE_{name.upper()}": str(value) for name, value in jwts.settings().items()},
    }
    jwt = jwts.token().decode()
    shown: dict[str, str] = {}
    async with processes.simulated_claude(tmp_path) as claude:
        with running(tmp_path, *LEAN, is_real=True, ANTHROPIC_BASE_URL=claude.url, **environ) as up:
            url = await up.ready()
            async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
                secrets = CANARIES | await run_turn(client, {"x-api-key": key}, shown)
                secrets |= await log_in(client, {"x-api-key": key})
                await run_turn(client, {"authorization": f"Bearer {jwt}"}, shown)
                shown |= await refusals(client, key, jwt)
                monitored = re.findall(r"(http://127\.0\.0\.1:[0-9]+)(?:/metrics)?", up.text)
                for address in set(monitored):
                    for path in ("metrics", *MONITORED):
                        shown[f"{address}/{path}"] = (await client.get(f"{address}/{path}")).text
            passwords = re.findall('"password": "(.*?)"', (up.folder / "nats.conf").read_text())
            shown |= {f"arguments of {pid}": arguments(pid) for pid in (up.process.pid, *up.tree())}
            shown["printed"] = up.text + (up.folder / "nats.log").read_text()
            assert "simulated-claude" not in up.pids()
            assert "'Authorization: Bearer YOUR-KEY'" in up.find_line("  curl ")
            assert f"Claude at {claude.url}, because ANTHROPIC_API_KEY is set: each turn costs money" in up.find_line(
                "  Model:"
            )
            pids = up.tree()
            up.process.kill()
            await until(lambda: not any(map(is_alive, pids)))
    assert len(set(passwords)) == len(RIGHTS)
    assert all(re.fullmatch("[0-9a-f]{32}", password) for password in passwords)
    # The searched texts contain what they should.
    assert any('"subscriptions_list' in text for text in shown.values())
    assert any("tailrace_persistence_" in text for text in shown.values())
    secrets |= {"key": key, "JWT": jwt, "JWT's secret": jwts.SECRET, "Claude's key": KEY}
    secrets |= {f"password {number}": password for number, password in enumerate(passwords)}
    assert [(what, where) for what, secret in secrets.items() for where in shown if secret in shown[where]] == []


async def run_turn(client: httpx2.AsyncClient, credential: dict[str, str], shown: dict[str, str]) -> dict[str, str]:
    """Runs a turn with retries, a session and a ticket; returns the ticket, and adds the URLs to `shown`."""
    session = {"title": CANARIES["title"], "system_prompt": CANARIES["system prompt"]}
    made = (await client.post("/v1/sessions", json=session, headers=credential)).json()
    body = {
        "message": f"{CANARIES['prompt']}\n#sim tag={CANARIES['answer']} {FAULTS}",
        "session": made["id"],
        "metadata": {CANARIES["metadata"]: CANARIES["metadata"]},
    }
    response = await client.post(
        "/v1/turns", json=body, headers=credential | {"idempotency-key": CANARIES["idempotency key"]}
    )
    assert response.status_code == 202, response.text
    links = response.json()["links"]
    answer = await client.get(links["events"], headers=credential)
    assert CANARIES["answer"] in answer.text
    ticket = (await client.post(f"{links['self']}/tickets", json={}, headers=credential)).json()["events"]
    assert CANARIES["answer"] in (await client.get(ticket)).text
    shown[f"addresses of {made['id']}"] = str([links, dict(response.headers), dict(answer.headers)])
    return {f"ticket of {made['id']}": ticket.rpartition("=")[2]}


async def log_in(client: httpx2.AsyncClient, credential: dict[str, str]) -> dict[str, str]:
    """Logs in, refreshes and logs out; returns the tokens. An old refresh token is refused."""
    secrets: dict[str, str] = {}
    path, headers = "/v1/login", credential
    for number in range(3):
        answer = await client.post(path, headers=headers)
        cookie = answer.headers["set-cookie"].partition(";")[0]
        path, headers = "/v1/login/refresh", {"cookie": cookie}
        secrets |= {f"access token {number}": answer.json()["access_token"]}
        secrets |= {f"refresh token {number}": cookie.partition("=")[2]}
    old = {"cookie": f"{cookie.partition('=')[0]}={secrets['refresh token 0']}"}
    assert (await client.post(path, headers=old)).status_code == 401
    assert (await client.post("/v1/logout", headers=headers)).status_code == 204
    return secrets


async def refusals(client: httpx2.AsyncClient, key: str, jwt: str) -> dict[str, str]:
    """Returns responses to wrong credentials and to requests that contain secrets."""
    body = {"message": CANARIES["prompt"], CANARIES["metadata"]: CANARIES["answer"]}
    response = [
        ("POST", "/v1/turns", {"x-api-key": key + "x"}, body),
        ("POST", "/v1/turns", {"authorization": f"Bearer {jwt}x"}, body),
        ("POST", "/v1/turns", {"x-api-key": key, "authorization": f"Bearer {jwt}"}, body),
        ("GET", f"/v1/turns/{CANARIES['prompt']}", {"x-api-key": key}, None),
        ("GET", f"/{CANARIES['prompt']}?key={key}&token={jwt}", {}, None),
        ("POST", "/v1/turns", {"x-api-key": key, "content-type": "text/plain"}, body),
    ]
    answers = {
        f"refusal {number}": await client.request(method, path, headers=headers, json=json)
        for number, (method, path, headers, json) in enumerate(response)
    }
    assert all(answer.status_code >= 400 for answer in answers.values())
    return {what: answer.text + str(dict(answer.headers)) for what, answer in answers.items()}
