"""The connection to NATS, with the guards that nats-py lacks."""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL

import httpx2
import msgspec
import pytest
import structlog.testing

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.errors import LogUnavailable, SettingsInvalid
from tailrace.proto.nats import Connection, Deliveries, check, fullness, streams
from tailrace.proto.nats.api_keys import ApiKeyStore
from tailrace.proto.nats.connection import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.nats.permissions import ADMIN, GATEWAY, RIGHTS
from tailrace.proto.subjects import PERSISTENCE, STREAM
from tests.harness.freeze import freeze
from tests.harness.processes import CHECKOUT, as_user
from tests.harness.until import until
from tests.harness.without_jetstream import without_jetstream


async def test_a_cancellation_that_the_client_swallowed_is_heeded_at_the_door(connection: Connection) -> None:
    """nats-py loses a cancellation that arrives while it flushes; the next thing done at the door is then the last."""

    async def swallowing() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await connection.publish("nobody.listens", b"")

    task = asyncio.create_task(swallowing())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_hears_no_answer_is_told_what_to_do(connection: Connection) -> None:
    """A client is sent the same sentence, and knows no class of ours."""
    with pytest.raises(LogUnavailable, match=r"^the log does not answer \(NoRespondersError\): retry$"):
        await connection.request("nobody.listens", b"", timeout_s=1)


async def told_by(server: NatsServer) -> dict[str, int]:
    """What it counts, by its monitoring port."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        told: dict[str, int] = (await client.get(f"http://127.0.0.1:{server.spec.monitor_port}/varz")).json()
        return told


async def test_a_nats_without_jetstream_is_told_what_it_lacks(own_server: NatsServer) -> None:
    """And not in the words of the server, which says that a service is unavailable."""
    async with without_jetstream(own_server):
        connection = await Connection.open(own_server.url, "test")
        for ask in (check, streams.apply):
            with pytest.raises(LogUnavailable, match="this NATS server has no JetStream: add"):
                await ask(connection)
        await connection.close()


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        *((("-m", f"tailrace.{role}", "--check"), role) for role in RIGHTS if role != ADMIN),
        (("-m", "tailrace", "streams"), ADMIN),
        (("-m", "tailrace", "keys", "list"), ADMIN),
        (("-m", "tailrace", "usage"), ADMIN),
    ],
    ids=str,
)
async def test_who_is_given_another_roles_user_does_not_begin(
    nats_url: str, command: tuple[str, ...], wanted: str
) -> None:
    """NATS would refuse what it asks, one thing after the other, and a command could only say that nobody answers."""
    [other, *_] = (user for user in RIGHTS if user != wanted)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        cwd=CHECKOUT,
        env={**os.environ, "ANTHROPIC_API_KEY": "none", "TAILRACE_NATS_URL": as_user(nats_url, other)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert f"has the user {other}, but this process needs nats://{wanted}:PASSWORD@" in said.decode()


async def test_a_password_that_is_refused_is_said_once(own_server: NatsServer) -> None:
    """At each of four tries a second it would fill the log, and say nothing that a person could do."""
    connection = await Connection.open(as_user(own_server.url, GATEWAY), "test")
    site = own_server.spec
    with structlog.testing.capture_logs() as lines:
        await own_server.stop(SIGKILL)
        own_server.spec = msgspec.structs.replace(site, passwords=dict.fromkeys(site.passwords, "another"))
        await own_server.start()
        await until(lambda: connection.is_refused)

        async def is_tried_again() -> bool:
            return (await told_by(own_server))["total_connections"] > 3

        await until(is_tried_again)
        assert [line["event"] for line in lines if line["log_level"] == "error"] == [
            "nats rejects the user or password of TAILRACE_NATS_URL"
        ]
        await own_server.stop(SIGKILL)
        own_server.spec = site
        await own_server.start()
        await until(lambda: not connection.is_refused)
    assert connection.is_up
    await connection.close()


async def test_who_is_refused_by_one_server_and_known_to_another_is_known(
    monkeypatch: pytest.MonkeyPatch, own_server: NatsServer
) -> None:
    """As while a password is changed, one server after the other."""
    monkeypatch.setattr("tailrace.proto.nats.connection.sample", lambda addresses, _: addresses)
    good = as_user(own_server.url, GATEWAY)
    connection = await Connection.open(f"{good.replace('@', 'x@')},{good}", "test")
    assert (connection.is_up, connection.is_refused) == (True, False)
    await connection.close()


async def test_a_token_that_is_wrong_is_not_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, nats_server: NatsServer
) -> None:
    """The sentence says what to mend, and neither token."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.5)
    with pytest.raises(LogUnavailable) as refused:
        await Connection.open(f"nats://stale-token@127.0.0.1:{nats_server.spec.port}", "test")
    assert str(refused.value) == (
        f"NATS at 127.0.0.1:{nats_server.spec.port} rejects the user or password:"
        " set TAILRACE_NATS_URL to nats://USER:PASSWORD@HOST:PORT"
    )


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("nats://a-token@127.0.0.1:1", "127.0.0.1:1"),
        ("nats://name:pass@word@127.0.0.1:1,127.0.0.2:1", "127.0.0.1:1, 127.0.0.2:1"),
        ("127.0.0.1:1", "127.0.0.1:1"),
    ],
)
async def test_where_nobody_is_found_is_said_without_what_is_secret(
    monkeypatch: pytest.MonkeyPatch, url: str, where: str
) -> None:
    """Host and port of each server."""
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.1)
    with pytest.raises(LogUnavailable, match=f"^no NATS server answers at {where}: "):
        await Connection.open(url, "test")


async def test_an_address_that_cannot_be_read_is_said_so_without_what_is_secret() -> None:
    """Nothing was tried: it is the setting that is wrong, and nobody's server that is away."""
    with pytest.raises(SettingsInvalid, match=r"^TAILRACE_NATS_URL: expected nats://USER:PASSWORD@") as refused:
        await Connection.open("nats://a-token@127.0.0.1:port", "test")
    assert "a-token" not in str(refused.value)


async def next_delivery(connection: Connection) -> object:
    return await (await Deliveries.open(connection, PERSISTENCE)).next()


@pytest.mark.parametrize(
    "ask",
    [
        fullness,
        lambda connection: ApiKeyStore(connection).position(),
        lambda connection: consumer_backlog(connection, PERSISTENCE),
        next_delivery,
    ],
    ids=["fullness", "keys", "backlog", "deliveries"],
)
async def test_whoever_asks_again_and_again_can_be_stopped_at_any_moment(
    connection: Connection, ask: Callable[[Connection], Awaitable[object]]
) -> None:
    """nats-py swallows a cancellation while it flushes: a gateway that was stopped in that moment stayed for ever."""

    async def watch() -> None:
        while True:
            await ask(connection)

    for steps in range(60):
        watching = asyncio.create_task(watch())
        for _ in range(steps):
            await asyncio.sleep(0)
        watching.cancel()
        done, _ = await asyncio.wait((watching,), timeout=2)
        if not done:
            watching.cancel()
        assert done, f"cancelled after {steps} steps it goes on"
        assert watching.cancelled()


@pytest.mark.rule("F9")
async def test_a_frozen_server_is_given_up_at_once_and_tried_last(
    tmp_path: Path, own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F9: however much it has not taken, and whatever is drawn."""
    monkeypatch.setattr("tailrace.proto.nats.connection.PING_INTERVAL_S", 0.2)
    # The worst that can be drawn: whom the connection has just lost stands last, and would stand first.
    monkeypatch.setattr("nats.aio.client.shuffle", list[object].reverse)
    other = NatsServer(tmp_path)
    connection = await Connection.open(f"{own_server.url},{other.url}", "test")
    async with other:
        freeze(own_server)
        await stuff(connection)
        await until(lambda: connection.client.stats["reconnects"] == 1, CONNECT_TIMEOUT_S)
        assert connection.is_up
        await connection.close()


async def test_a_frozen_server_keeps_nobody_from_leaving(own_server: NatsServer) -> None:
    """A process that is told to stop ends, whatever it has still to send."""
    connection = await Connection.open(own_server.url, "test")
    freeze(own_server)
    await stuff(connection)
    async with asyncio.timeout(2 * CLOSE_TIMEOUT_S):
        await connection.close()


async def stuff(connection: Connection) -> None:
    """Publishes more than the way to a frozen server holds."""
    while not connection.client._transport._io_writer.transport.get_write_buffer_size():  # type: ignore[union-attr]
        await connection.publish("nobody.listens", bytes(2**20))
        await asyncio.sleep(0)


async def test_a_loop_that_stood_still_drops_no_connection(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers that came meanwhile are read before the next ping is counted."""
    monkeypatch.setattr("tailrace.proto.nats.connection.PING_INTERVAL_S", 0.02)
    connection = await Connection.open(nats_server.url, "test")
    for _ in range(3):
        await asyncio.sleep(0.05)
        time.sleep(0.2)  # noqa: ASYNC251  # a pause, as a garbage collector makes it
    await connection.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout_s=2)
    assert connection.client.stats["reconnects"] == 0
    await connection.close()
