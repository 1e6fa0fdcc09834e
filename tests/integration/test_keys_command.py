"""`tailrace keys` as a process: create, list, revoke, errors, and the gateways that then accept or refuse a key."""

import asyncio
import re
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tailrace.deploy.cli.main import main
from tailrace.deploy.local.nats_server import NatsServer
from tests.harness.forks import CommandResult, run_command
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import CHECKOUT
from tests.harness.until import until
from tests.integration.conftest import NewGateway

# 404 with a valid key.
PATH = "/v1/blobs/none"


async def keys(*arguments: str, nats_url: str = "") -> CommandResult:
    return await run_command("keys", *arguments, **({"TAILRACE_NATS_URL": nats_url} if nats_url else {}))


async def test_a_created_key_works_at_every_gateway_until_it_is_revoked(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """Without a valid key the gateways stay closed once a key existed."""
    nats_url = own_server.url
    gateways = [await new_gateway(nats_url, api_keys="") for _ in range(2)]
    made = await keys("create", "--tenant", "acme", "--name", "web shop", nats_url=nats_url)
    secret, key_id = made.out.strip(), made.err.split()[0]
    assert (made.status, made.out.count("\n"), secret[:3]) == (0, 1, "tr_")
    assert "the first key" in made.err
    assert secret not in made.err

    async def has_status(status: int, secret: str = secret) -> bool:
        headers = {"authorization": f"Bearer {secret}" if secret else ""}
        return {(await gateway.client.get(PATH, headers=headers)).status_code for gateway in gateways} == {status}

    await until(lambda: has_status(404))
    assert await has_status(401, "")
    listed = await keys("list", nats_url=nats_url)
    row = next(line for line in listed.out.splitlines() if key_id in line)
    assert row.split()[:3] == [key_id, "acme", "manage,read,write"]
    assert row.split()[-6:] == ["-", "-", "-", "-", "web", "shop"]
    assert secret not in listed.out
    revoked = await keys("revoke", key_id, nats_url=nats_url)
    assert (revoked.status, revoked.out) == (0, f"{key_id} of acme is revoked\n")
    assert revoked.err == "No valid key is left, and every request needs one: run `tailrace keys create`.\n"
    again = await keys("revoke", key_id, nats_url=nats_url)
    assert (again.status, again.out.startswith(f"{key_id} of acme was revoked already, 20")) == (0, True)
    await until(lambda: has_status(401))
    assert await has_status(401, "")
    arguments = ("create", "--tenant", "acme", "--scope", "read", "--expires", "90d", "--json")
    second = await keys(*arguments, nats_url=nats_url)
    shown = msgspec.json.decode(second.out)
    assert (shown["scopes"], shown["key"][:3], "sha256" in shown) == (["read"], "tr_", False)
    assert "the first key" not in second.err
    end = datetime.now(UTC) + timedelta(days=90)
    (line,) = [line for line in second.err.splitlines() if line.startswith("It expires at ")]
    _, _, _, day, time, *_ = line.split()
    assert day in {f"{at:%Y-%m-%d}" for at in (end, end - timedelta(minutes=5))}
    (row,) = [line for line in (await keys("list", nats_url=nats_url)).out.splitlines() if f"{day} {time}" in line]
    assert " read " in row
    records = msgspec.json.decode((await keys("list", "--json", nats_url=nats_url)).out)
    assert sorted(one.get("name", "") for one in records) == ["", "web shop"]
    assert not any("sha256" in one for one in records)
    await until(lambda: has_status(404, shown["key"]))


@pytest.mark.timeout(200)
async def test_each_command_of_the_key_with_a_budget_works(
    own: OwnSystem, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """The commands of docs/LIMITS.md, in order. The budget of the last key is too small for a turn."""
    page = (Path(CHECKOUT) / "docs/LIMITS.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    async with own.running_generator(), Persistence(own.server.url, tmp_path / "tailrace.db"):
        gateway = await new_gateway(own.server.url, api_keys="")
        environ = {"TAILRACE_NATS_URL": own.server.url, "TAILRACE_URL": gateway.url, "PYTHONPATH": str(CHECKOUT)}
        environ |= {"XDG_STATE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        script = f'set -eu\ntailrace() {{ {sys.executable} -P -m tailrace "$@" < /dev/null; }}\n' + "\n".join(blocks)
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", script, cwd=tmp_path, env=environ, stdout=PIPE, stderr=PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 170)
    assert process.returncode == 0, err.decode()
    assert "## What is a tailrace?" in out.decode()
    assert "usd_month=50" in out.decode()
    assert re.search(r"^ +key_\w+ \S[^\n]* +1 +4 +103 ", out.decode(), re.MULTILINE)
    assert out.decode().endswith("refused\n")
    assert "budget" in err.decode().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["create"], 2, "required: --tenant"),
        (["create", "--tenant", "A.b"], 2, "is not a tenant"),
        (["create", "--tenant", "*"], 2, "is not a tenant"),
        (["create", "--tenant", "a", "--scope", "all"], 2, "invalid choice: 'all'"),
        (["create", "--tenant", "a", "--name", "\x1b[2J"], 2, "is not a name"),
        (["create", "--tenant", "a", "--name", "n" * 101], 2, "is not a name"),
        *(
            (["create", "--tenant", "a", "--expires", text], 2, "is not a time such as 90d")
            for text in ("", "90", "0d", "1.5d", "90 d", "1y", "10000d")
        ),
        (["create", "--tenant", "a", "--limits", "burst=5"], 2, "needs `requests`"),
        (["revoke", "key_0000000000000000"], 1, "no key has the id 'key_0000000000000000'"),
        (["revoke", "*"], 1, "no key has the id '*'"),
        # With the URL of a server, no data directory is read.
        (["list", "--data", "nowhere"], 0, ""),
    ],
)
def test_an_invalid_argument_is_one_line(
    nats_url: str,
    arguments: list[str],
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TAILRACE_NATS_URL", nats_url)
    try:
        ended_with = main(["keys", *arguments])
    except SystemExit as end:
        ended_with = int(end.code or 0)
    printed = capsys.readouterr().err
    assert (ended_with, message in printed) == (status, True), printed
    assert printed.count("\n") == (1 if message else 0)


async def test_the_error_says_how_to_reach_a_server_with_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No data directory, no server, and a server that an older version has set up."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.5)

    async def keys(*arguments: str, nats_url: str = "") -> tuple[int, str]:
        monkeypatch.setenv("TAILRACE_NATS_URL", nats_url)
        status = await asyncio.to_thread(main, ["keys", *arguments])
        return status, capsys.readouterr().err

    status, error = await keys("list", "--data", str(tmp_path))
    assert (status, error.count("\n")) == (2, 1)
    assert "TAILRACE_NATS_URL" in error
    assert "--data" in error
    status, error = await keys("list", nats_url="nats://secret@127.0.0.1:9")
    assert (status, error.count("\n")) == (1, 1)
    assert "no NATS server answers at 127.0.0.1:9" in error
    assert "secret" not in error
    async with NatsServer(tmp_path) as bare:
        status, error = await keys("create", "--tenant", "acme", nats_url=bare.url)
    assert (status, "streams" in error) == (1, True)
