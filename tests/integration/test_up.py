"""`tailrace up` as a person uses it: the whole system, its one line of output that counts, and its end."""

import hashlib
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

from tailrace.proto.nats.permissions import RIGHTS
from tests.harness import jwts, processes
from tests.harness.until import until
from tests.harness.up import CHECKOUT, LEAN, START_S_MAX, STOP_S_MAX, Up, is_alive, refused, running
from tests.harness.webhook_receiver import Receiver

KEY = "sk-ant-canary-of-the-real-key"
# What a part that hangs has before it is killed (deploy/local/supervisor.py).
GRACE_S = 8.0


# Python runs it in every process: here the second generator takes its time before it begins.
LATE = """
import os, sys, time
if "tailrace.generators" in sys.orig_argv and os.environ["TAILRACE_GENERATOR"] == "generator-2":
    time.sleep(1.5)
    open(os.environ["BEGUN"], "w").close()
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One system for the tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "sitecustomize.py").write_text(LATE)
    environ = {"PYTHONPATH": str(folder), "BEGUN": str(folder / "begun")}
    with running(folder, "--port", "0", "--gateways", "2", **environ) as up:
        yield up


async def test_it_is_ready_when_every_process_is(up: Up) -> None:
    """Who kills a generator to see what happens needs the other one; a gateway is content with any."""
    await up.ready()
    assert up.folder.with_name("begun").exists()
    metrics = re.findall(r"metrics (http://127\.0\.0\.1:[0-9]+/metrics)$", up.text, re.MULTILINE)
    async with httpx2.AsyncClient(trust_env=False) as client:
        told = [(await client.get(url)).text for url in metrics]
    assert ["\ntailrace_ready 1.0\n" in text for text in told] == [True] * 5


async def test_it_says_ready_last_and_before_it_what_runs_where(up: Up) -> None:
    """A script waits for one line, and a person finds each process above it."""
    url = await up.ready()
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", url)
    names = ["nats-server", "persistence", "simulated-claude", "generator-1", "generator-2", "gateway-1", "gateway-2"]
    assert list(up.pids()) == names
    assert sorted(up.pids().values()) == sorted(up.tree())
    assert up.said("up ").endswith("| ANTHROPIC_API_KEY is not set: a simulated Claude answers, free of charge")


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
    command = [sys.executable, "-m", "tailrace", "webhook-secret"]
    return run(
        command, cwd=CHECKOUT, env=os.environ | environ, capture_output=True, text=True, check=True
    ).stdout.strip()


async def test_a_turn_is_told_to_its_webhook(tmp_path: Path) -> None:
    """With a key, `up` signs and sends; what `webhook-secret` shows is what a receiver checks it with."""
    environ = {"TAILRACE_WEBHOOK_KEY": "k" * 32, "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1"}
    async with Receiver() as receiver:
        with running(tmp_path, *LEAN, **environ) as up:
            async with httpx2.AsyncClient(base_url=await up.ready(), trust_env=False) as client:
                body = {"message": "#sim words=5 rate=0", "webhook": receiver.url}
                turn = (await client.post("/v1/turns", json=body)).json()["turn"]
                (got,) = await until(lambda: receiver.got)
                told = (await client.get(f"/v1/turns/{turn}")).json()
    assert Webhook(webhook_secret(environ)).verify(got.body, dict(got.headers))["data"] == told
    assert told["text"] == "w000000 w000001 w000002 w000003 w000004"


@pytest.mark.rule("F30")
async def test_a_second_one_on_the_same_folder_is_refused(up: Up) -> None:
    """One sentence, with the pid of the first and what to do; nothing is started, so that it is soon said."""
    await up.ready()
    before = up.tree()
    status, sentence = refused("--port", "0", "--data", str(up.folder))
    assert (status, sentence.count("\n")) == (1, 1)
    assert f"in use by another `tailrace up` (pid {up.process.pid})" in sentence
    assert "--data" in sentence
    assert up.tree() == before


@pytest.mark.rule("F30")
async def test_a_second_one_on_the_same_port_is_refused(up: Up, tmp_path: Path) -> None:
    """The port is taken before anything starts, so the refusal comes before anything was started."""
    port = (await up.ready()).rpartition(":")[2]
    status, sentence = refused("--port", port, "--data", str(tmp_path / "other"))
    assert (status, sentence.count("\n")) == (1, 1)
    assert f"port {port} on 127.0.0.1 is in use" in sentence
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
    assert "TAILRACE_GRACE is not a setting (did you mean TAILRACE_GRACE_S?)" in sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rule("S16")
async def test_what_it_keeps_is_for_its_owner_only(up: Up) -> None:
    """Answers, and the token that opens the log, are nobody else's business."""
    await up.ready()
    assert up.folder.stat().st_mode & 0o777 == 0o700
    shared = [path for path in up.folder.rglob("*") if path.stat().st_mode & 0o077]
    assert shared == []


@pytest.mark.rule("S16")
async def test_only_this_machine_reaches_it(up: Up) -> None:
    """FAULTS S16: every socket of every part is on loopback, and who asks by a stranger's name is sent away."""
    url = await up.ready()
    found = up.listening()
    assert {address.rpartition(":")[0] for of_part in found.values() for address in of_part} == {"127.0.0.1"}
    # nats-server's own and its monitoring; the gateways share one, and have one each for metrics.
    counts = {name: len(of_part) for name, of_part in found.items()}
    assert counts == {name: 2 if name.startswith(("nats", "gateway")) else 1 for name in ("up", *up.pids())}
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        for path in ("/", "/v1/sessions", "/metrics"):
            answer = await client.get(path, headers={"host": "rebound.example"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_refused")


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


async def test_a_generator_that_is_killed_is_replaced_and_said_so(tmp_path: Path) -> None:
    """kill -9 of one part is two lines and a tenth of a second; the others do not notice."""
    with running(tmp_path, *LEAN) as up:
        await up.ready()
        others = set(up.tree()) - {up.pids()["generator-1"]}
        os.kill(up.pids()["generator-1"], signal.SIGKILL)
        await until(lambda: [line for line in up.lines if "generator-1 was killed by SIGKILL; next start" in line])
        [line] = await until(lambda: [line for line in up.lines if "generator-1 runs again, pid " in line])
        assert set(up.tree()) == {*others, int(line.rpartition(" ")[2])}


async def test_nobody_is_turned_away_while_a_gateway_restarts(tmp_path: Path) -> None:
    """`up` holds the socket: who connects between two lives of the only gateway waits for the second."""
    with running(tmp_path, *LEAN) as up:
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
    with running(tmp_path, *LEAN) as up:
        address = urlsplit(await up.ready())
        os.kill(up.pids()["generator-1"], signal.SIGSTOP)
        up.process.send_signal(signal.SIGTERM)
        await until(lambda: [line for line in up.lines if line.endswith("gateway-1 stopped")])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address.hostname), address.port))


@pytest.mark.rule("F30")
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
    with running(tmp_path, *LEAN) as up:
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


# Python runs it in every process: here persistence finds wrong what `up` let pass.
PICKY = """
import os, sys
if "tailrace.persistence" in sys.orig_argv:
    os.write(2, b"persistence: TAILRACE_DATABASE: not here\\n")
    os._exit(2)
"""


async def test_a_setting_that_only_a_part_finds_wrong_ends_it_soon(tmp_path: Path) -> None:
    """The part says what is wrong, `up` says which part that was, and all of it is gone: status 1."""
    (tmp_path / "sitecustomize.py").write_text(PICKY)
    with running(tmp_path, *LEAN, PYTHONPATH=str(tmp_path)) as up:
        assert up.process.wait(timeout=STOP_S_MAX) == 1
        assert [line for line in up.lines if "TAILRACE_DATABASE: not here" in line]
        assert up.lines[-1] == "tailrace: persistence reports an invalid setting: see its lines above"


async def test_it_can_be_stopped_before_it_is_ready(tmp_path: Path) -> None:
    """Ctrl-C right after the start is as good as any other."""
    with running(tmp_path, *LEAN) as up:
        await until(lambda: up.said("nats-server"), START_S_MAX)
        pids = up.tree()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(timeout=STOP_S_MAX) == 0
        assert [pid for pid in pids if is_alive(pid)] == []


@pytest.mark.rule("F30")
async def test_no_process_outlives_one_that_was_killed(tmp_path: Path) -> None:
    """kill -9 of `up` leaves nothing that would hold the folder, and the next start works."""
    with running(tmp_path, *LEAN) as up:
        await up.ready()
        pids = up.tree()
        assert pids
        up.process.kill()
        await until(lambda: not any(map(is_alive, pids)))
    with running(tmp_path, *LEAN) as again:
        await again.ready()


# What others are told at their cost, or in confidence. The answer's is the tag of its words.
SAID = {
    "prompt": "canary-in-a-prompt",
    "system prompt": "canary-in-a-system-prompt",
    "answer": "canary-in-an-answer",
    "metadata": "canary-in-metadata",
    "title": "canary-in-a-title",
    "idempotency key": "canary-idempotency-key",
}
# The lines of a rainy day are the talkative ones.
HARD_WAY = "words=20 rate=0 fault=429x1 fault=cut@9x2 retry_after=0"
MONITORED = (
    *("varz", "connz?auth=1&subs=detail&state=any", "subsz?subs=1", "routez?subs=1", "gatewayz", "leafz?subs=1"),
    *("jsz?accounts=1&streams=1&consumers=1&config=1", "accountz", "accstatz", "healthz", "expvarz", "ipqueuesz"),
)


@pytest.mark.rule("S3")
async def test_no_secret_is_shown_by_a_whole_system_at_work(tmp_path: Path) -> None:
    """FAULTS S3: in no line, no argument, no metric, no refusal, no URL, and not where nats-server is monitored."""
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
        with running(tmp_path, "--port", "0", ANTHROPIC_BASE_URL=claude.url, **environ) as up:
            url = await up.ready()
            async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
                secrets = SAID | await at_work(client, {"x-api-key": key}, shown)
                await at_work(client, {"authorization": f"Bearer {jwt}"}, shown)
                shown |= await refusals(client, key, jwt)
                monitored = re.findall(r"(http://127\.0\.0\.1:[0-9]+)(?:/metrics)?", up.text)
                for address in set(monitored):
                    for path in ("metrics", *MONITORED):
                        shown[f"{address}/{path}"] = (await client.get(f"{address}/{path}")).text
            passwords = re.findall('"password": "(.*?)"', (up.folder / "nats.conf").read_text())
            shown |= {f"arguments of {pid}": arguments(pid) for pid in (up.process.pid, *up.tree())}
            shown["printed"] = up.text + (up.folder / "nats.log").read_text()
            assert "simulated-claude" not in up.pids()
            assert "'Authorization: Bearer YOUR-KEY'" in up.said("  curl ")
            assert f"Claude at {claude.url} answers, and each turn costs money" in up.said("up ")
    assert len(set(passwords)) == len(RIGHTS)
    assert all(re.fullmatch("[0-9a-f]{32}", password) for password in passwords)
    # What is looked through is what there is.
    assert any('"subscriptions_list' in text for text in shown.values())
    assert any("tailrace_persistence_" in text for text in shown.values())
    secrets |= {"key": key, "JWT": jwt, "JWT's secret": jwts.SECRET, "Claude's key": KEY}
    secrets |= {f"password {number}": password for number, password in enumerate(passwords)}
    assert [(what, where) for what, secret in secrets.items() for where in shown if secret in shown[where]] == []


async def at_work(client: httpx2.AsyncClient, credential: dict[str, str], shown: dict[str, str]) -> dict[str, str]:
    """A turn that has a hard way, its ticket and its session; the secrets that came of it. `shown`: addresses."""
    session = {"title": SAID["title"], "system_prompt": SAID["system prompt"]}
    made = (await client.post("/v1/sessions", json=session, headers=credential)).json()
    body = {
        "message": f"{SAID['prompt']}\n#sim tag={SAID['answer']} {HARD_WAY}",
        "session": made["id"],
        "metadata": {SAID["metadata"]: SAID["metadata"]},
    }
    asked = await client.post("/v1/turns", json=body, headers=credential | {"idempotency-key": SAID["idempotency key"]})
    assert asked.status_code == 202, asked.text
    links = asked.json()["links"]
    answer = await client.get(links["events"], headers=credential)
    assert SAID["answer"] in answer.text
    ticket = (await client.post(f"{links['self']}/tickets", json={}, headers=credential)).json()["events"]
    assert SAID["answer"] in (await client.get(ticket)).text
    shown[f"addresses of {made['id']}"] = str([links, dict(asked.headers), dict(answer.headers)])
    return {f"ticket of {made['id']}": ticket.rpartition("=")[2]}


async def refusals(client: httpx2.AsyncClient, key: str, jwt: str) -> dict[str, str]:
    """What is answered to who has nearly the right thing, or says too much."""
    body = {"message": SAID["prompt"], SAID["metadata"]: SAID["answer"]}
    asked = [
        ("POST", "/v1/turns", {"x-api-key": key + "x"}, body),
        ("POST", "/v1/turns", {"authorization": f"Bearer {jwt}x"}, body),
        ("POST", "/v1/turns", {"x-api-key": key, "authorization": f"Bearer {jwt}"}, body),
        ("GET", f"/v1/turns/{SAID['prompt']}", {"x-api-key": key}, None),
        ("GET", f"/{SAID['prompt']}?key={key}&token={jwt}", {}, None),
        ("POST", "/v1/turns", {"x-api-key": key, "content-type": "text/plain"}, body),
    ]
    answers = {
        f"refusal {number}": await client.request(method, path, headers=headers, json=json)
        for number, (method, path, headers, json) in enumerate(asked)
    }
    assert all(answer.status_code >= 400 for answer in answers.values())
    return {what: answer.text + str(dict(answer.headers)) for what, answer in answers.items()}
