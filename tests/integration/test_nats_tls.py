"""TLS to a nats-server that requires client certificates, and connections that are refused."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import structlog.testing
import uvloop
from prometheus_client import REGISTRY

from tailrace.deploy.cli import doctor
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.nats_server import NatsServer, config
from tailrace.deploy.local.options import Options
from tailrace.deploy.nats import setup
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.log.health import LogHealth
from tailrace.gateway.resources.health import HealthChecks
from tailrace.proto.errors import LogUnavailable, SettingsInvalid
from tailrace.proto.nats import Connection, Rpc, certificates, check
from tailrace.proto.nats.connection import RENEW, parse_servers
from tailrace.proto.nats.users import ADMIN, GATEWAY
from tailrace.proto.runtime.flag import Flag
from tests.harness import processes
from tests.harness.freeze import freeze
from tests.harness.until import until

DAY_S = 86_400
EC = "ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


class Certificates(NamedTuple):
    """The certificate of an authority, and one that it has signed for 127.0.0.1, for server and client."""

    ca: Path
    cert: Path
    key: Path


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> Certificates:
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid")
    # Python 3.13 accepts only an authority with these extensions.
    usage = "-addext keyUsage=critical,keyCertSign,cRLSign"
    openssl(folder, f"req -x509 -newkey {EC} -days 2 -subj /CN=authority {usage} -keyout ca.key -out ca.pem")
    openssl(folder, f"req -newkey {EC} -subj /CN=nats -keyout key.pem -out asked.pem")
    openssl(
        folder, "x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem"
    )
    return Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


@pytest.fixture
def ours(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "ours")


@pytest_asyncio.fixture
async def server(tmp_path: Path, ours: Certificates, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    """A server with users that accepts only TLS with a client certificate of `ours`."""
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


async def test_processes_and_commands_connect_with_tls(tmp_path: Path, server: NatsServer, ours: Certificates) -> None:
    """The command creates the streams, and a gateway starts, with uvloop."""
    connection = await Connection.open(url(server, ADMIN, ours), "test")
    await setup.apply(connection, bytes_max=nats_server.GIB // 4)
    async with processes.gateway(tmp_path, url(server, GATEWAY, ours)) as gateway:
        assert gateway.url
    await check(connection)
    await connection.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_end_of_a_connection_with_tls_logs_no_warning_of_the_event_loop(
    tmp_path: Path,
    ours: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    block = f'tls {{ cert_file: "{ours.cert}", key_file: "{ours.key}", ca_file: "{ours.ca}", verify: true }}\n'
    monkeypatch.setattr(nats_server, "config", lambda site: config(site) + block)

    async def connect_until_the_server_stops() -> None:
        async with NatsServer(tmp_path) as server:
            connection = await Connection.open(url(server, ADMIN, ours), "test")
            await server.stop(SIGTERM)
            await until(lambda: not connection.is_up)
            await connection.close()

    run(connect_until_the_server_stops())
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_an_untrusted_server_or_client_is_refused(
    tmp_path: Path, server: NatsServer, ours: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another authority, and a client without a certificate; the message does not contain the password."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.4)
    others = make_certificates(tmp_path / "others")
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


async def test_a_server_certificate_that_is_not_valid_any_more_is_logged_once(
    tmp_path: Path, server: NatsServer, ours: Certificates
) -> None:
    """The connection is retried four times a second, and works again with a valid certificate."""
    others = make_certificates(tmp_path / "others")
    connection = await Connection.open(url(server, ADMIN, ours), "test")
    valid = [path.read_bytes() for path in ours]
    with structlog.testing.capture_logs() as lines:
        await server.stop(SIGKILL)
        for path, other in zip(ours, others, strict=True):
            path.write_bytes(other.read_bytes())
        await server.start()
        await until(lambda: server.log.read_text().count("TLS handshake error") > 3)
        errors = [line["error"] for line in lines if line["event"] == "TLS to nats fails"]
        await server.stop(SIGKILL)
        for path, content in zip(ours, valid, strict=True):
            path.write_bytes(content)
        await server.start()
        await until(lambda: connection.is_up)
    assert len(errors) == 1
    assert "certificate verify failed" in errors[0]
    await connection.close()


async def test_no_password_is_sent_to_a_server_without_tls(ours: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker in between could otherwise switch TLS off and read it."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 1.0)
    received = bytearray()

    async def impersonate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n')
        received.extend(await reader.read(4096))
        writer.close()

    async with await asyncio.start_server(impersonate, "127.0.0.1", 0) as server:
        at = server.sockets[0].getsockname()[1]
        with pytest.raises(LogUnavailable, match="the server has no TLS"):
            await Connection.open(f"tls://gateway:secret@127.0.0.1:{at}?ca={ours.ca}", "test")
    assert received == b""


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("ca=/nowhere", "ca=/nowhere cannot be read: No such file"),
        ("ca={ca}&cert={cert}&key=/nowhere", "key=/nowhere cannot be read: No such file"),
        ("ca={names}", "ca cannot be used"),
        ("cert={cert}", "given together"),
        ("cert={cert}&key={ca}", "cert and key cannot be used"),
        ("verify=no", "the parameter verify is unknown"),
    ],
)
async def test_invalid_certificate_files_and_parameters_are_refused(
    ours: Certificates, query: str, sentence: str
) -> None:
    """Before a connection is opened; the process never continues without TLS."""
    names = ours.ca.parent / "names"
    with pytest.raises(SettingsInvalid, match=f"^TAILRACE_NATS_URL: .*{sentence}") as refused:
        await Connection.open(f"tls://gateway:secret@127.0.0.1:1?{query.format(names=names, **ours._asdict())}", "test")
    assert "secret" not in str(refused.value)
    with pytest.raises(SettingsInvalid, match="begins with tls://"):
        await Connection.open(f"nats://gateway:secret@127.0.0.1:1?ca={ours.ca}", "test")


@pytest.mark.rule("F9")
async def test_a_reconnect_does_not_wait_for_a_frozen_server(
    tmp_path: Path, server: NatsServer, ours: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides close TLS, and Python waits 30 s for the other one (fault F9)."""
    monkeypatch.setattr("tailrace.proto.nats.connection.PING_INTERVAL_S", 0.1)
    (tmp_path / "other").mkdir()
    other = NatsServer(tmp_path / "other")
    connection = await Connection.open(",".join(url(one, ADMIN, ours) for one in (server, other)), "test")
    async with other:
        freeze(server)
        await until(lambda: connection.client.stats["reconnects"] == 1)
        await connection.close()


def renew(certificates: Certificates, days: int) -> None:
    """Signs the server's key again. With -1 days, the certificate has ended."""
    folder = certificates.ca.parent
    openssl(
        folder,
        f"x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile names -out cert.pem",
    )


async def test_the_end_of_a_certificate_is_measured_and_a_reload_renews_it(
    tmp_path: Path, server: NatsServer, ours: Certificates
) -> None:
    """As RUNBOOK, Renew certificates: the connection that is open shows the old one, and lives on."""
    where = url(server, ADMIN, ours)
    addresses = parse_servers(where)
    # Only what the server presents: a client without files.
    presented = parse_servers(url(server, ADMIN, None))
    connection = await Connection.open(where, "test")
    await setup.apply(connection, bytes_max=nats_server.GIB // 4)

    async def days_left(addresses: Sequence[str] = presented) -> int:
        expiry = await certificates.read_expiry(addresses)
        assert expiry is not None
        return (expiry - datetime.now(UTC)).days

    assert await days_left() == await days_left(addresses) == 1
    findings = await doctor.examine(Options(data_dir=tmp_path), {"TAILRACE_NATS_URL": where})
    found = next(one for one in findings if one.name == "Certificate")
    assert (found.level, found.action) == ("warning", RENEW)
    assert "ends in 1 days" in found.detail

    watching = asyncio.create_task(certificates.watch(where))
    await until(
        lambda: (
            0
            < (REGISTRY.get_sample_value("tailrace_nats_certificate_expiry_timestamp_seconds") or 0) - time.time()
            < 2 * DAY_S
        )
    )
    watching.cancel()

    renew(ours, 100)
    server.signal(SIGHUP)

    async def is_renewed() -> bool:
        return await days_left() == 99

    await until(is_renewed)
    assert connection.disconnects == 0
    await connection.close()


async def test_a_certificate_that_has_ended_is_named_with_its_cure(
    tmp_path: Path, server: NatsServer, ours: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew(ours, -1)
    server.signal(SIGHUP)
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 1.0)

    async def is_ended() -> bool:
        expiry = await certificates.read_expiry(parse_servers(url(server, ADMIN, None)))
        return expiry is not None and expiry < datetime.now(UTC)

    await until(is_ended)
    with pytest.raises(LogUnavailable, match=f"certificate has expired.*{RENEW}"):
        await Connection.open(url(server, ADMIN, ours, with_cert=False), "test")
    environ = {"TAILRACE_NATS_URL": url(server, ADMIN, ours)}
    findings = await doctor.examine(Options(data_dir=tmp_path), environ)
    found = next(one for one in findings if one.name == "Certificate")
    assert (found.level, found.action) == ("error", RENEW)
    assert "ended 1 days ago" in found.detail


async def test_readyz_names_an_ended_certificate_as_the_cause(server: NatsServer, ours: Certificates) -> None:
    """The connection lives on until nats-server is restarted, perhaps months later."""
    connection = await Connection.open(url(server, ADMIN, ours), "test")
    checks = HealthChecks(
        connection, Rpc(connection), LogHealth(connection), LogFullness(connection, full_at=0.9), Flag()
    )
    renew(ours, -1)
    assert (await checks.parts())["nats"].ok
    await server.stop(SIGTERM)
    await server.start()
    await until(lambda: connection.is_tls_failing)
    assert (await checks.parts())["nats"].detail.startswith("TLS to NATS fails: a certificate has ended")
    renew(ours, 100)
    server.signal(SIGHUP)

    async def is_whole() -> bool:
        return (await checks.parts())["nats"].ok

    await until(is_whole)
    await connection.close()
