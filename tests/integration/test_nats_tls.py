"""TLS to a real nats-server that asks for a certificate of ours, too; and what is not let pass for it."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tailrace.deploy.local import nats_server
from tailrace.deploy.local.nats_server import NatsServer, config
from tailrace.proto.errors import LogUnavailable, SettingsInvalid
from tailrace.proto.nats import Connection, check, streams
from tailrace.proto.nats.permissions import ADMIN, GATEWAY
from tests.harness import processes
from tests.harness.freeze import freeze
from tests.harness.until import until

EC = "ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


class Certificates(NamedTuple):
    """An authority's, and one that it has signed for 127.0.0.1, server and client alike."""

    ca: Path
    cert: Path
    key: Path


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def certificates(folder: Path) -> Certificates:
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl(folder, f"req -x509 -newkey {EC} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem")
    openssl(folder, f"req -newkey {EC} -subj /CN=nats -keyout key.pem -out asked.pem")
    openssl(
        folder, "x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem"
    )
    return Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


@pytest.fixture
def ours(tmp_path: Path) -> Certificates:
    return certificates(tmp_path / "ours")


@pytest_asyncio.fixture
async def server(tmp_path: Path, ours: Certificates, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    """A server with users, which speaks TLS alone, and with nobody whose certificate it does not know."""
    block = f'tls {{ cert_file: "{ours.cert}", key_file: "{ours.key}", ca_file: "{ours.ca}", verify: true }}\n'
    monkeypatch.setattr(nats_server, "config", lambda site: config(site) + block)
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 1.0)
    async with NatsServer(tmp_path) as server:
        yield server


def url(server: NatsServer, user: str, certificates: Certificates | None, *, with_cert: bool = True) -> str:
    found = server.spec.url(user).replace("nats://", "tls://")
    if certificates is None:
        return found
    ca, cert, key = certificates
    return f"{found}?ca={ca}&cert={cert}&key={key}" if with_cert else f"{found}?ca={ca}"


async def test_a_process_and_the_commands_speak_tls(tmp_path: Path, server: NatsServer, ours: Certificates) -> None:
    """The streams are made, and a gateway begins, with a certificate of its own, on uvloop."""
    connection = await Connection.open(url(server, ADMIN, ours), "test")
    await streams.apply(connection, bytes_max=nats_server.GIB // 4)
    async with processes.gateway(tmp_path, url(server, GATEWAY, ours)) as gateway:
        assert gateway.url
    await check(connection)
    await connection.close()


async def test_who_is_not_trusted_is_said_so(tmp_path: Path, server: NatsServer, ours: Certificates) -> None:
    """A server of another authority's, and we without a certificate; the password is not in the sentence."""
    others = certificates(tmp_path / "others")
    for wrong in (
        url(server, ADMIN, None),
        url(server, ADMIN, others),
        url(server, ADMIN, ours, with_cert=False),
        url(server, ADMIN, others._replace(ca=ours.ca)),
    ):
        with pytest.raises(LogUnavailable) as refused:
            await Connection.open(wrong, "test")
        assert server.spec.passwords[ADMIN] not in str(refused.value)
        assert "/others" not in str(refused.value)
    with pytest.raises(LogUnavailable, match="TLS to NATS at"):
        await Connection.open(url(server, ADMIN, None), "test")


async def test_no_password_is_sent_to_who_says_that_there_is_no_tls(
    ours: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stands between could otherwise have it by one word."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 1.0)
    heard = bytearray()

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n')
        heard.extend(await reader.read(4096))
        writer.close()

    async with await asyncio.start_server(pose, "127.0.0.1", 0) as posing:
        at = posing.sockets[0].getsockname()[1]
        with pytest.raises(LogUnavailable, match="the server has no TLS"):
            await Connection.open(f"tls://gateway:secret@127.0.0.1:{at}?ca={ours.ca}", "test")
    assert heard == b""


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("ca=/nowhere", "cannot be used"),
        ("ca={names}", "cannot be used"),
        ("cert={cert}", "given together"),
        ("cert={cert}&key={ca}", "cannot be used"),
        ("verify=no", "the parameter verify is unknown"),
    ],
)
async def test_files_that_cannot_be_used_are_refused_at_once(ours: Certificates, query: str, sentence: str) -> None:
    """Before anything is tried, and none is a reason to do without."""
    names = ours.ca.parent / "names"
    with pytest.raises(SettingsInvalid, match=f"^TAILRACE_NATS_URL: .*{sentence}") as refused:
        await Connection.open(f"tls://gateway:secret@127.0.0.1:1?{query.format(names=names, **ours._asdict())}", "test")
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingsInvalid, match="begins with tls://"):
        await Connection.open(f"nats://gateway:secret@127.0.0.1:1?ca={ours.ca}", "test")


@pytest.mark.rule("F9")
async def test_nobody_waits_for_a_frozen_servers_goodbye(
    tmp_path: Path, server: NatsServer, ours: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F9: TLS is closed by both sides, and Python waits for the other for 30 s."""
    monkeypatch.setattr("tailrace.proto.nats.connection.PING_INTERVAL_S", 0.1)
    (tmp_path / "other").mkdir()
    other = NatsServer(tmp_path / "other")
    connection = await Connection.open(",".join(url(one, ADMIN, ours) for one in (server, other)), "test")
    async with other:
        freeze(server)
        await until(lambda: connection.client.stats["reconnects"] == 1, 5)
        await connection.close()
