"""`tailrace up` as a person uses it: the whole system, its one line of output that counts, and its end."""

import json
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from subprocess import run
from urllib.parse import urlsplit

import httpx2
import pytest
from standardwebhooks import Webhook

from proto.accounts import RIGHTS
from tests.receiving import Receiver
from tests.until import until
from tests.up import CHECKOUT, START_S_MAX, STOP_S_MAX, Up, is_alive, refused, running

KEY = "sk-ant-canary-of-the-real-key"
# What a part that hangs has before it is killed (deploy/supervisor.py).
GRACE_S = 8.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One system for the tests that leave it as it was."""
    with running(tmp_path_factory.mktemp("up"), "--port", "0", "--gateways", "2") as up:
        yield up


async def test_it_says_ready_last_and_before_it_what_runs_where(up: Up) -> None:
    """A script waits for one line, and a person finds each process above it."""
    url = await up.ready()
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", url)
    names = ["nats-server", "persistence", "simulated-claude", "generator-1", "generator-2", "gateway-1", "gateway-2"]
    assert list(up.pids()) == names
    assert sorted(up.pids().values()) == sorted(up.tree())
    assert up.said("up ").endswith("| ANTHROPIC_API_KEY is not set: a simulated Claude answers, and costs nothing")


async def test_the_line_to_try_answers(up: Up) -> None:
    """Whoever copies the curl line sees an answer arrive, to its end."""
    url = await up.ready()
    words = shlex.split(up.said("  curl "))
    assert words[:3] == ["curl", "-N", f"{url}/v1/turns"]
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    address = urlsplit(words[2])
    connection = HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.request("POST", address.path, words[words.index("-d") + 1], headers)
        answer = connection.getresponse()
        heard = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
    finally:
        connection.close()
    assert answer.status == 200
    assert any(event["type"] == "delta" for event in heard)
    assert heard[-1]["type"] == "done"


def webhook_secret(environ: dict[str, str]) -> str:
    command = [sys.executable, "-m", "deploy", "webhook-secret"]
    return run(
        command, cwd=CHECKOUT, env=os.environ | environ, capture_output=True, text=True, check=True
    ).stdout.strip()


async def test_a_turn_is_told_to_its_webhook(tmp_path: Path) -> None:
    """With a key, `up` signs and sends; what `webhook-secret` shows is what a receiver checks it with."""
    environ = {"TAILRACE_WEBHOOK_KEY": "k" * 32, "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1"}
    async with Receiver() as receiver:
        with running(tmp_path, "--port", "0", **environ) as up:
            async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False) as client:
                body = {"message": "#sim words=5 rate=0", "webhook": receiver.url}
                turn = (await client.post("/v1/turns", json=body)).json()["turn"]
                (got,) = await until(lambda: receiver.got)
                told = (await client.get(f"/v1/turns/{turn}")).json()
    assert Webhook(webhook_secret(environ)).verify(got.body, dict(got.headers))["data"] == told
    assert told["text"] == "w000000 w000001 w000002 w000003 w000004"


async def test_a_second_one_on_the_same_folder_is_refused(up: Up) -> None:
    """One sentence, with the pid of the first and what to do; nothing is started, so that it is soon said."""
    await up.ready()
    before = up.tree()
    status, sentence = refused("--port", "0", "--data", str(up.folder))
    assert (status, sentence.count("\n")) == (1, 1)
    assert f"in use by another `tailrace up` (pid {up.process.pid})" in sentence
    assert "--data" in sentence
    assert up.tree() == before


async def test_a_second_one_on_the_same_port_is_refused(up: Up, tmp_path: Path) -> None:
    """The port is taken before anything starts, so the refusal comes before anything was started."""
    port = (await up.ready()).rpartition(":")[2]
    status, sentence = refused("--port", port, "--data", str(tmp_path / "other"))
    assert (status, sentence.count("\n")) == (1, 1)
    assert f"port {port} on 127.0.0.1 is taken" in sentence
    assert "--port" in sentence
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["lock"]


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A file in the place of the folder is said, not shown as a traceback."""
    (tmp_path / "data").write_text("")
    status, sentence = refused("--port", "0", "--data", str(tmp_path / "data"))
    assert (status, sentence.count("\n")) == (1, 1)
    assert "choose another with --data" in sentence


async def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    """The system's own word for it, and the option to look at."""
    where = ("--host", "192.0.2.1", "--data", str(tmp_path / "data"))
    status, sentence = refused(*where, TAILRACE_ALLOW_ANONYMOUS="true")
    assert (status, sentence.count("\n")) == (1, 1)
    assert "cannot listen on 192.0.2.1 port 8000" in sentence


def test_a_wrong_setting_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """Whoever mistypes a name reads one sentence, and finds nothing half-started: not even the folder."""
    status, sentence = refused("--port", "0", "--data", str(tmp_path / "data"), TAILRACE_GRACE="3")
    assert (status, sentence.count("\n")) == (2, 1)
    assert "TAILRACE_GRACE: there is no such setting (did you mean TAILRACE_GRACE_S?)" in sentence
    assert list(tmp_path.iterdir()) == []


async def test_what_it_keeps_is_for_its_owner_only(up: Up) -> None:
    """Answers, and the token that opens the log, are nobody else's business."""
    await up.ready()
    assert up.folder.stat().st_mode & 0o777 == 0o700
    shared = [path for path in up.folder.rglob("*") if path.stat().st_mode & 0o077]
    assert shared == []


async def test_no_secret_is_printed_or_an_argument(tmp_path: Path) -> None:
    """What stands in an argument can be read by every user of the machine, what is printed by whoever gets the log."""
    nobody = f"http://127.0.0.1:{closed_port()}"
    environ = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": nobody, "TAILRACE_API_KEYS": f"acme:{'0' * 64}"}
    with running(tmp_path, "--port", "0", **environ) as up:
        await up.ready()
        passwords = re.findall('password: "(.*?)"', (up.folder / "nats.conf").read_text())
        assert len(passwords) == len(RIGHTS)
        shown = [*up.lines, *map(arguments, [up.process.pid, *up.tree()])]
        assert [text for text in shown if any(secret in text for secret in (KEY, *passwords))] == []
        assert "simulated-claude" not in up.pids()
        assert "'Authorization: Bearer YOUR-KEY'" in up.said("  curl ")
        assert f"the real Claude answers, at {nobody}, and costs money" in up.said("up ")


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_a_generator_that_is_killed_is_replaced_and_said_so(tmp_path: Path) -> None:
    """kill -9 of one part is two lines and a tenth of a second; the others do not notice."""
    with running(tmp_path, "--port", "0") as up:
        await up.ready()
        others = set(up.tree()) - {up.pids()["generator-1"]}
        os.kill(up.pids()["generator-1"], signal.SIGKILL)
        await until(lambda: [line for line in up.lines if "generator-1 was killed by SIGKILL; next start" in line])
        [line] = await until(lambda: [line for line in up.lines if "generator-1 runs again, pid " in line])
        assert set(up.tree()) == {*others, int(line.rpartition(" ")[2])}


async def test_nobody_is_turned_away_while_a_gateway_restarts(tmp_path: Path) -> None:
    """`up` holds the socket: who connects between two lives of the only gateway waits for the second."""
    with running(tmp_path, "--port", "0") as up:
        address = urlsplit(await up.ready())
        os.kill(up.pids()["gateway-1"], signal.SIGKILL)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=START_S_MAX)
        try:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
        finally:
            connection.close()
        await until(lambda: [line for line in up.lines if "gateway-1 was killed by SIGKILL" in line])


async def test_who_comes_back_while_it_stops_is_refused_at_once(tmp_path: Path) -> None:
    """A client must not hang in the queue of a socket that nobody serves any more, while a generator takes its time."""
    with running(tmp_path, "--port", "0") as up:
        address = urlsplit(await up.ready())
        os.kill(up.pids()["generator-1"], signal.SIGSTOP)
        up.process.send_signal(signal.SIGTERM)
        await until(lambda: [line for line in up.lines if line.endswith("gateway-1 stopped")])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address.hostname), address.port))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_all_of_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C is no accident: status 0, no process left, and those stop first who need the others."""
    with running(tmp_path, "--port", "0") as up:
        await up.ready()
        pids = up.tree()
        up.process.send_signal(number)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert [pid for pid in pids if is_alive(pid)] == []
        stopped = re.findall(r"^up +\| ([a-z-]+)[0-9]* stopped$", "\n".join(up.lines), re.MULTILINE)
        assert stopped == ["gateway-", "generator-", "generator-", "simulated-claude", "persistence", "nats-server"]


async def test_a_second_ctrl_c_stops_it_at_once(tmp_path: Path) -> None:
    """A part that hangs would have its whole grace; a person in a hurry does not wait for that."""
    with running(tmp_path, "--port", "0") as up:
        await up.ready()
        pids = up.tree()
        os.kill(up.pids()["generator-1"], signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        await until(lambda: [line for line in up.lines if line.endswith("gateway-1 stopped")])
        started_s = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert time.monotonic() - started_s < GRACE_S
        assert [pid for pid in pids if is_alive(pid)] == []


# Python runs it in every process: here the second generator takes its time before it begins.
LATE = """
import os, sys, time
if "generators" in sys.orig_argv and os.environ["TAILRACE_GENERATOR"] == "generator-2":
    time.sleep(3)
    open(os.environ["BEGUN"], "w").close()
"""


async def test_it_is_ready_when_every_process_is(tmp_path: Path) -> None:
    """Who kills a generator to see what happens needs the other one; a gateway is content with any."""
    (tmp_path / "sitecustomize.py").write_text(LATE)
    begun = tmp_path / "begun"
    with running(tmp_path, "--port", "0", PYTHONPATH=str(tmp_path), BEGUN=str(begun)) as up:
        await up.ready()
        assert begun.exists()
        metrics = re.findall(r"metrics (http://127\.0\.0\.1:[0-9]+/metrics)$", up.text, re.MULTILINE)
        async with httpx2.AsyncClient(trust_env=False) as client:
            told = [(await client.get(url)).text for url in metrics]
    assert ["\ntailrace_ready 1.0\n" in text for text in told] == [True] * 4


# Python runs it in every process: here persistence finds wrong what `up` let pass.
PICKY = """
import os, sys
if "persistence" in sys.orig_argv:
    os.write(2, b"persistence: TAILRACE_DATABASE: not here\\n")
    os._exit(2)
"""


async def test_a_setting_that_only_a_part_finds_wrong_ends_it_soon(tmp_path: Path) -> None:
    """The part says what is wrong, `up` says which part that was, and all of it is gone: status 1."""
    (tmp_path / "sitecustomize.py").write_text(PICKY)
    with running(tmp_path, "--port", "0", PYTHONPATH=str(tmp_path)) as up:
        assert up.process.wait(timeout=STOP_S_MAX) == 1
        assert [line for line in up.lines if "TAILRACE_DATABASE: not here" in line]
        assert up.lines[-1] == "tailrace: a setting of persistence is wrong: see its lines above"


async def test_it_can_be_stopped_before_it_is_ready(tmp_path: Path) -> None:
    """Ctrl-C right after the start is as good as any other."""
    with running(tmp_path, "--port", "0") as up:
        await until(lambda: up.said("nats-server"), START_S_MAX)
        pids = up.tree()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert [pid for pid in pids if is_alive(pid)] == []


async def test_no_process_outlives_one_that_was_killed(tmp_path: Path) -> None:
    """kill -9 of `up` leaves nothing that would hold the folder, and the next start works."""
    with running(tmp_path, "--port", "0") as up:
        await up.ready()
        pids = up.tree()
        assert pids
        up.process.kill()
        await until(lambda: not any(map(is_alive, pids)))
    with running(tmp_path, "--port", "0") as again:
        await again.ready()
