"""docs/NATS.md: its commands set up three nats-servers with TLS, and Tailrace's processes answer a turn on them."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from nats.js import JetStreamContext

from tailrace.deploy.cli.main import main
from tailrace.deploy.local import ports
from tailrace.deploy.local.nats_server import GIB
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.proto.nats import Connection
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.subjects import STREAM
from tests.harness.generator_in_loop import words
from tests.harness.held_ports import find_first
from tests.harness.processes import CHECKOUT
from tests.harness.until import until

START_S_MAX = 60.0
PAGE = (CHECKOUT / "docs/NATS.md").read_text()


def blocks(page: str = PAGE) -> list[str]:
    """The commands of the steps of a page, in their order."""
    return [re.sub(r"(?m)^ +", "", block) for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]


class Shell:
    """Runs commands of the page, with this test's addresses and folders."""

    def __init__(self, folder: Path, replaced: dict[str, str], stack: ExitStack) -> None:
        self._folder, self._replaced, self._stack = folder, replaced, stack

    def text(self, block: str) -> str:
        for name, value in self._replaced.items():
            block = block.replace(name, value)
        return block

    def run(self, block: str, status: int = 0) -> str:
        """Returns the output of commands that end with `status`."""
        command = ["bash", "-euc", self.text(block)]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == status, f"{block}: {done.stderr}"
        return done.stdout or done.stderr

    def start(self, block: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec {self.text(block).strip()}"], cwd=self._folder, stdout=log, stderr=log
            )
        self._stack.callback(process.wait, 20)
        self._stack.callback(process.kill)
        return process


@pytest.mark.timeout(300)
async def test_the_ten_steps_set_up_three_servers_with_tls(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns are answered, also while one of the servers is dead."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    # The ports for other servers and for monitoring are 2000 and 4000 above those for clients.
    first_ports = [find_first((2000, 4000), stack) for _ in range(3)]
    one, two, three = (f"127.0.0.1:{port}" for port in first_ports)
    (gateway_port,) = ports.find_free(1)
    gateway = f"http://127.0.0.1:{gateway_port}"
    async with run_simulated_claude() as claude:
        shell = Shell(
            tmp_path,
            {
                "DNS:nats-1.internal,DNS:nats-2.internal,DNS:nats-3.internal": "IP:127.0.0.1",
                "nats-1.internal": one,
                "nats-2.internal": two,
                "nats-3.internal": three,
                "/etc/tailrace/tls": str(tmp_path / "tls"),
                "--gib 10": "--gib 1",
                "/var/lib/tailrace": str(tmp_path),
                "ANTHROPIC_API_KEY=…": f"ANTHROPIC_API_KEY=simulated ANTHROPIC_BASE_URL={claude}",
                "python -m tailrace.gateway": f"TAILRACE_PORT={gateway_port} python -m tailrace.gateway",
                "http://127.0.0.1:8000": gateway,
            },
            stack,
        )
        certificates, configure, serve, check, create, persistence, generators, gateways, ready = blocks()
        shell.run(certificates)
        shell.run(configure)
        servers = []
        for number in (1, 2, 3):
            # Each machine has a store of its own at /var/lib/nats.
            path = tmp_path / f"nats/nats-{number}.conf"
            path.write_text(path.read_text().replace("/var/lib/nats", str(tmp_path / f"store-{number}")))
            servers.append(shell.start(serve.replace("nats-1.conf", path.name)))
        monitoring = [int(address.rpartition(":")[2]) + 4000 for address in (one, two, three)]
        async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:

            async def answers(url: str) -> bool:
                try:
                    return (await client.get(url)).status_code == 200
                except httpx2.TransportError:
                    return False

            for port in monitoring:
                await until(lambda port=port: answers(f"http://127.0.0.1:{port}/healthz"), START_S_MAX, 0.1)  # type: ignore[misc]
                shell.run(check.replace("8222", str(port)))
            shell.run(create)
            for block in (persistence, generators, gateways):
                shell.start(block)
            await until(lambda: answers(f"{gateway}/readyz"), START_S_MAX, 0.1)
            shell.run(ready)

            async def ask() -> bool:
                body = {"message": "Hi.\n#sim words=3"}
                answer = await client.post(f"{gateway}/v1/turns", json=body, headers={"accept": "text/event-stream"})
                return "w000002" in answer.text

            assert await ask()
            servers[0].kill()
            await until(ask, START_S_MAX, 0.1)


MOVED_PAGE = (CHECKOUT / "docs/ONE_TO_THREE.md").read_text()
ENVIRONMENTS = {
    "persistence": "TAILRACE_DATABASE=/var/lib/tailrace.db",
    "generators": "ANTHROPIC_API_KEY=…",
    "gateway": "",
}


@pytest.mark.timeout(300)
async def test_the_page_moves_the_log_of_one_server_to_three(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, limits, the audit log, an ended and a running turn, and the cursor of its reader are the same."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    addresses = [f"127.0.0.1:{find_first((2000, 4000), stack)}" for _ in range(3)]
    (port,) = ports.find_free(1)
    async with (
        run_simulated_claude() as claude,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        replaced = {f"nats-{number}.internal": address for number, address in enumerate(addresses, 1)}
        shell = Shell(
            tmp_path,
            replaced
            | {
                "--gib 10": "--gib 12",
                "/var/lib/": f"{tmp_path}/",
                "ANTHROPIC_API_KEY=…": f"ANTHROPIC_API_KEY=simulated ANTHROPIC_BASE_URL={claude}",
                "python -m tailrace.gateway": f"TAILRACE_PORT={port} python -m tailrace.gateway",
            },
            stack,
        )

        def start_processes(folder: str) -> list[subprocess.Popen[bytes]]:
            return [
                shell.start(f"env $(cat {folder}/{name}.env) {given} python -m tailrace.{name}")
                for name, given in ENVIRONMENTS.items()
            ]

        async def is_ready() -> bool:
            with suppress(httpx2.TransportError):
                return (await client.get("/readyz")).status_code == 200
            return False

        async def is_healthy(address: str) -> bool:
            host, _, number = address.partition(":")
            with suppress(httpx2.TransportError):
                return (await client.get(f"http://{host}:{int(number) + 4000}/healthz")).status_code == 200
            return False

        def stop(started: list[subprocess.Popen[bytes]]) -> None:
            for process in started:
                process.terminate()
            for process in started:
                assert process.wait(60) in (0, 1)

        shell.run("tailrace nats-config nats --store /var/lib/nats --gib 10 --server nats-1.internal")
        one = shell.start("nats-server -c nats/nats-1.conf")
        await until(lambda: is_healthy(addresses[0]), START_S_MAX, 0.1)
        admin = "env $(cat nats/admin.env) tailrace"
        shell.run(f"{admin} streams --new --gib 10")
        key = shell.run(f"{admin} keys create --tenant acme").split()[0]
        operator = shell.run(f"{admin} keys create --tenant acme --scope admin").split()[0]
        client.headers["authorization"] = f"Bearer {key}"
        url = (tmp_path / "nats/admin.env").read_text().strip().partition("=")[2]
        async with jetstream_of(url) as jetstream:
            # More than a log that Tailrace creates has.
            await jetstream.update_stream((await jetstream.stream_info(STREAM)).config.evolve(max_bytes=9 * GIB))
        started = start_processes("nats")
        await until(is_ready, START_S_MAX, 0.1)
        as_operator = {"authorization": f"Bearer {operator}"}
        limits = f"tailrace limits acme --url http://127.0.0.1:{port} --key {operator}"
        shell.run(f"{limits} --set requests=77")
        audit = (await client.get("/v1/admin/audit", headers=as_operator)).json()["data"]
        assert audit

        async def post(message: str) -> str:
            return str((await client.post("/v1/turns", json={"message": message})).raise_for_status().json()["turn"])

        async def read(turn: str, cursor: str = "") -> httpx2.Response:
            headers = {"last-event-id": cursor} if cursor else {}
            return await client.get(f"/v1/turns/{turn}/events", headers=headers)

        copy, configure, move, serve, check = blocks(MOVED_PAGE)
        await post("#sim words=40 rate=10")
        # The first step was forgotten.
        assert "has changed meanwhile" in shell.run(copy, status=1)
        assert not (tmp_path / "moved").exists()
        ended = await read(ended_turn := await post("#sim words=5 rate=0"))
        running_turn = await post("#sim words=400 rate=40")
        received = b""
        async with client.stream("GET", f"/v1/turns/{running_turn}/events") as response:
            async for piece in response.aiter_raw():
                received += piece
                if received.count(b"\nid: ") + received.startswith(b"id: ") > 20 and received.endswith(b"\n\n"):
                    break
        stop([*reversed(started), one])

        # The store of a single server would be deleted.
        wrong = configure.replace("/nats-three", "/nats", 1).replace("nats-config nats-three", "nats-config wrong")
        assert "a cluster deletes" in shell.run(wrong, status=1)
        shell.run(copy)
        shell.run(configure)
        servers = []
        for number in (1, 2, 3):
            # On machines of their own, all have the same path.
            store = f"/var/lib/nats-three-{number}"
            # A volume may be mounted there.
            (tmp_path / f"nats-three-{number}").mkdir()
            shell.run(move.replace("nats-1", f"nats-{number}").replace("/var/lib/nats-three", store))
            path = tmp_path / f"nats-three/nats-{number}.conf"
            path.write_text(path.read_text().replace(f"{tmp_path}/nats-three", f"{tmp_path}/nats-three-{number}"))
            servers.append(shell.start(serve.replace("nats-1.conf", path.name)))
        for address in addresses:
            await until(lambda address=address: is_healthy(address), START_S_MAX, 0.1)  # type: ignore[misc]
        checked = shell.run(check)
        assert checked.startswith("0 streams, buckets and consumers created"), checked
        assert checked.count(" acme ") == 2, checked
        url = (tmp_path / "nats-three/admin.env").read_text().strip().partition("=")[2]
        async with jetstream_of(url) as jetstream:
            log = (await jetstream.stream_info(STREAM)).config
        assert (log.num_replicas, log.max_bytes) == (3, 9 * GIB)
        started = start_processes("nats-three")
        await until(is_ready, START_S_MAX, 0.1)

        assert (await client.get("/v1/turns", headers={"authorization": ""})).status_code == 401
        # The first line is a random time before a reconnect.
        assert (await read(ended_turn)).text.partition("\n")[2] == ended.text.partition("\n")[2]
        cursor = re.findall(rb"^id: (\S+)$", received, re.MULTILINE)[-1].decode()
        whole = received.decode() + (await read(running_turn, cursor)).text
        assert text_of(whole) == words(400)
        assert "77" in shell.run(limits)
        assert (await client.get("/v1/admin/audit", headers=as_operator)).json()["data"] == audit
        # The copies are whole: any one server may fail.
        servers[0].kill()

        async def is_answered() -> bool:
            answer = await client.post(
                "/v1/turns?dialect=text",
                json={"message": "#sim words=3 rate=0"},
                headers={"accept": "text/event-stream"},
            )
            return "w000002" in answer.text

        await until(is_answered, START_S_MAX, 0.1)


@asynccontextmanager
async def jetstream_of(url: str) -> AsyncIterator[JetStreamContext]:
    connection = await Connection.open(url, "test", ADMIN)
    try:
        yield connection.jetstream
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        ([], "has no log of a single nats-server"),
        # The store of a cluster is copied with its servers.
        (["TAILRACE/streams/TURNS", "$SYS/_js_/_meta_"], "has no log of a single nats-server"),
        (["TAILRACE/streams/TURNS"], "(File exists): name a new folder"),
    ],
)
def test_a_store_that_is_not_of_one_server_and_an_existing_folder_are_refused(
    folders: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in folders:
        (tmp_path / "store/jetstream" / name).mkdir(parents=True)
    (tmp_path / "moved").mkdir()
    assert main(["copy-log", str(tmp_path / "store"), str(tmp_path / "moved")]) == 1
    assert sentence in capsys.readouterr().err
    assert (tmp_path / "moved").is_dir()


def text_of(stream: str) -> str:
    """Returns the text of a stream's deltas; a turn that was continued has no reset."""
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    assert [one["type"] for one in events if one["type"] in ("reset", "error")] == []
    return "".join(one["text"] for one in events if one["type"] == "delta")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--server", "a", "--server", "b"], "name one server, or three different ones"),
        (["--server", "a", "--server", "a", "--server", "b"], "name one server, or three different ones"),
        (["--server", "a b"], "'a b' is not HOST or HOST:PORT"),
        (["--server", "a:61536"], "'a:61536' is not HOST or HOST:PORT, with a port up to 61535"),
        (["--server", "user@a"], "'user@a' is not HOST or HOST:PORT"),
        (["--server", "a", "--tls", "tls"], "'tls' is not an absolute path"),
        (["--server", "a", "--store", "nats"], "'nats' is not an absolute path"),
        (["--server", "a"], "(File exists): name a new folder"),
    ],
)
def test_wrong_arguments_are_refused_before_a_file_is_written(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path if "exists" in sentence else tmp_path / "new"
    with suppress(SystemExit):  # of the argument parser
        assert main(["nats-config", str(folder), *arguments]) in (1, 2)
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("server", "tls", "listen", "is_warned"),
    [
        ("127.0.0.1:4000", [], "127.0.0.1:4000", False),
        ("[::1]", [], "[::1]:4222", False),
        ("localhost", [], "localhost:4222", False),
        ("nats.internal", [], "0.0.0.0:4222", True),
        ("nats.internal", ["--tls", "/tls"], "0.0.0.0:4222", False),
    ],
)
def test_a_server_on_loopback_listens_there_and_others_without_tls_are_warned_of(
    server: str, tls: list[str], listen: str, is_warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nats-config", str(tmp_path / "new"), "--server", server, *tls]) == 0
    assert json.loads((tmp_path / "new/nats-1.conf").read_text())["listen"] == listen
    assert ("plain text" in capsys.readouterr().err) == is_warned


def test_the_configuration_is_private_and_has_no_password_of_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert main(["nats-config", str(folder), "--server", "nats.internal:4000"]) == 0
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert set(texts) == {"nats-1.conf", "admin.env", "gateway.env", "generators.env", "persistence.env"}
    passwords = re.findall(r"\bp[0-9a-f]{48}\b", "".join(texts[name] for name in texts if name.endswith(".env")))
    assert len(set(passwords)) == 4
    assert all(password in texts["nats-1.conf"] for password in passwords)
    assert re.fullmatch(r"TAILRACE_NATS_URL=nats://gateway:p[0-9a-f]{48}@nats.internal:4000\n", texts["gateway.env"])
