"""`tailrace keys`: what a person types, against a NATS that runs, and what a gateway then does."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from tailrace.deploy.local.nats_server import URL_FILE, NatsServer, url
from tailrace.proto.errors import SettingsInvalid
from tests.harness.processes import CHECKOUT
from tests.harness.until import until
from tests.harness.up import LEAN, running
from tests.integration.conftest import NewGateway

WRONG_LIVES = ("", "90", "0d", "1.5d", "90 d", "d", "1y", "10000d", "90D")


class Said(NamedTuple):
    status: int
    out: str
    err: str


async def keys(*arguments: str, **environ: str) -> Said:
    """`tailrace keys …` as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tailrace", "keys", *arguments, cwd=CHECKOUT, env=environ, stdout=PIPE, stderr=PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return Said(process.returncode or 0, out.decode(), err.decode())


async def test_a_key_is_made_and_works_and_is_revoked_everywhere(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """Made by hand, it opens two gateways that ran before it; revoked, neither, and they do not open without one."""
    gateways = [await new_gateway(own_server.url, api_keys="") for _ in range(2)]
    environ = {"TAILRACE_NATS_URL": own_server.url}
    made = await keys("create", "--tenant", "acme", "--name", "web shop", **environ)
    secret = made.out.strip()
    assert made.status == 0
    assert (made.out.count("\n"), secret[:3]) == (1, "tr_")
    assert "the first key" in made.err
    assert secret not in made.err
    key_id = made.err.split()[0]

    async def statuses() -> list[int]:
        headers = {"authorization": f"Bearer {secret}"}
        return [(await gateway.client.get("/v1/blobs/none", headers=headers)).status_code for gateway in gateways]

    async def are(status: int) -> bool:
        return set(await statuses()) == {status}

    await until(lambda: are(404))
    for gateway in gateways:
        assert (await gateway.client.get("/v1/blobs/none", headers={"authorization": ""})).status_code == 401
    listed = await keys("list", **environ)
    row = next(line for line in listed.out.splitlines() if key_id in line)
    assert row.split()[:3] == [key_id, "acme", "manage,read,write"]
    assert row.split()[-4:] == ["-", "-", "web", "shop"]
    assert secret not in listed.out
    revoked = await keys("revoke", key_id, **environ)
    assert (revoked.status, revoked.out) == (0, f"{key_id} of acme is revoked\n")
    assert revoked.err == "No valid key is left, and every request needs one: run `tailrace keys create`.\n"
    again = await keys("revoke", key_id, **environ)
    assert (again.status, again.out.startswith(f"{key_id} of acme was revoked already, 20")) == (0, True)
    await until(lambda: are(401))
    # The last one is gone, and the door does not open again for that.
    for gateway in gateways:
        assert (await gateway.client.get("/v1/blobs/none", headers={"authorization": ""})).status_code == 401
    second = await keys("create", "--tenant", "acme", "--scope", "read", **environ)
    assert "the first key" not in second.err
    assert " read " in (await keys("list", **environ)).out


async def test_a_key_may_be_made_for_a_time(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """When it ends is said as it is made and in the list, and until then it opens."""
    environ = {"TAILRACE_NATS_URL": own_server.url}
    made = await keys("create", "--tenant", "acme", "--expires", "90d", **environ)
    end = datetime.now(UTC) + timedelta(days=90)
    days = {f"{day:%Y-%m-%d}" for day in (end, end - timedelta(minutes=5))}
    (said,) = [line for line in made.err.splitlines() if line.startswith("It expires at ")]
    assert said.split()[3] in days
    (row,) = [line for line in (await keys("list", **environ)).out.splitlines() if "key_" in line]
    assert f"{said.split()[3]} {said.split()[4]}" in row
    gateway = await new_gateway(own_server.url, api_keys="")
    opened = await gateway.client.get("/v1/blobs/none", headers={"authorization": f"Bearer {made.out.strip()}"})
    assert opened.status_code == 404


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["create"], 2, "required: --tenant"),
        (["create", "--tenant", "A.b"], 2, "is not a tenant"),
        (["create", "--tenant", "*"], 2, "is not a tenant"),
        (["create", "--tenant", "a", "--scope", "all"], 2, "invalid choice: 'all'"),
        (["create", "--tenant", "a", "--name", "\x1b[2J"], 2, "is not a name"),
        (["create", "--tenant", "a", "--name", "n" * 101], 2, "is not a name"),
        *((["create", "--tenant", "a", "--expires", text], 2, "is not a time such as 90d") for text in WRONG_LIVES),
        (["create", "--tenant", "a", "--limits", "burst=5"], 2, "needs `requests`"),
        (["revoke", "key_0000000000000000"], 1, "no key has the id 'key_0000000000000000'"),
        (["revoke", "*"], 1, "no key has the id '*'"),
        (["list", "--data", "nowhere"], 0, ""),
    ],
)
async def test_a_wrong_argument_is_said_in_a_sentence(
    own_server: NatsServer, arguments: list[str], status: int, sentence: str
) -> None:
    """And nothing is made or revoked; where the NATS is named, no folder is looked into."""
    said = await keys(*arguments, TAILRACE_NATS_URL=own_server.url)
    assert (said.status, sentence in said.err) == (status, True), said
    assert said.err.count("\n") == (1 if sentence else 0)


async def test_where_nobody_runs_that_is_said(tmp_path: Path) -> None:
    """No folder, no NATS, a folder of an `up` that has ended: each with what to do."""
    no_folder = await keys("list", "--data", str(tmp_path))
    assert (no_folder.status, no_folder.err.count("\n")) == (2, 1)
    assert "TAILRACE_NATS_URL" in no_folder.err
    assert "--data" in no_folder.err
    nobody = await keys("list", TAILRACE_NATS_URL="nats://secret@127.0.0.1:9")
    assert (nobody.status, nobody.err.count("\n")) == (1, 1)
    assert "no NATS server answers at 127.0.0.1:9" in nobody.err
    assert "secret" not in nobody.err


async def test_a_nats_without_the_bucket_is_said(tmp_path: Path) -> None:
    """One that an older version has set up: what to run."""
    async with NatsServer(tmp_path) as bare:
        said = await keys("create", "--tenant", "acme", TAILRACE_NATS_URL=bare.url)
    assert (said.status, said.out) == (1, "")
    assert "streams" in said.err


def test_the_nats_of_an_up_is_found_in_its_folder(tmp_path: Path) -> None:
    """As `up` has written it down, unless another is named."""
    with pytest.raises(SettingsInvalid, match="is not the data directory of a `tailrace up`"):
        url(tmp_path, {})
    (tmp_path / URL_FILE).write_text("nats://token@here")
    assert url(tmp_path, {}) == "nats://token@here"
    assert url(tmp_path, {"TAILRACE_NATS_URL": "nats://there"}) == "nats://there"


async def test_up_has_keys_and_with_one_it_may_listen_elsewhere(tmp_path: Path) -> None:
    """A laptop: where there is no key strangers may not reach it; made beside it, everybody needs one from then on."""
    with running(tmp_path, "--port", "0", "--host", "0.0.0.0") as refused:
        await until(lambda: refused.process.poll() is not None, 25)
        assert refused.process.returncode == 2
        assert "TAILRACE_HOST: 0.0.0.0 is reachable from other machines" in refused.printed.read_text()
        assert refused.said("ready") == ""
    with running(tmp_path, *LEAN) as up:
        where = await up.ready()
        async with httpx2.AsyncClient(base_url=where, trust_env=False) as client:
            assert (await client.get("/v1/blobs/none")).status_code == 404
            made = await keys("create", "--tenant", "acme", "--data", str(up.folder))
            assert made.status == 0

            async def is_closed() -> bool:
                return (await client.get("/v1/blobs/none")).status_code == 401

            await until(is_closed)
            headers = {"x-api-key": made.out.strip()}
            assert (await client.get("/v1/blobs/none", headers=headers)).status_code == 404
        stored = [path for path in up.folder.rglob("*") if path.is_file()]
        assert [path for path in stored if made.out.strip().encode() in path.read_bytes()] == []
    with running(tmp_path, *LEAN) as again:
        await again.ready()
        assert "Authorization: Bearer YOUR-KEY" in again.said("  curl ")
