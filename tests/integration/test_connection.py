"""The connection to NATS: wrong users and URLs, cancellation, frozen servers, and a blocked event loop."""

import asyncio
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import nats.errors
import nats.js.errors
import pytest
import structlog.testing
import uvloop
from nats.aio.client import Client as NatsClient
from nats.protocol.parser import Parser

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.features.admin.key_store import KeyStore
from tailrace.proto.errors import EntryTooLarge, LogUnavailable, SettingsInvalid
from tailrace.proto.nats import Connection, Deliveries, check, fullness
from tailrace.proto.nats.client import Message, MessageSplitter
from tailrace.proto.nats.connection import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.nats.users import ADMIN, GATEWAY
from tailrace.proto.subjects import PERSISTENCE, STREAM
from tests.harness.forks import run_module
from tests.harness.freeze import freeze
from tests.harness.processes import as_user
from tests.harness.until import until
from tests.harness.without_jetstream import without_jetstream


async def test_a_request_without_a_responder_says_to_retry(connection: Connection) -> None:
    """Clients get this message."""
    with pytest.raises(LogUnavailable, match=r"^the log does not answer \(NoRespondersError\): retry$"):
        await connection.request("unused.subject", b"", timeout_s=1)


async def test_a_nats_server_without_jetstream_is_named(own_server: NatsServer) -> None:
    async with without_jetstream(own_server):
        connection = await Connection.open(own_server.url, "test")
        for call in (check, setup.apply):
            with pytest.raises(LogUnavailable, match="this NATS server has no JetStream: add"):
                await call(connection)
        await connection.close()


@pytest.mark.parametrize(
    ("command", "role"),
    [
        *(((f"tailrace.{role}", "--check"), role) for role in RIGHTS if role != ADMIN),
        (("tailrace", "streams"), ADMIN),
        (("tailrace", "keys", "list"), ADMIN),
        (("tailrace", "usage"), ADMIN),
    ],
    ids=str,
)
async def test_a_process_with_the_user_of_another_role_does_not_start(
    nats_url: str, command: tuple[str, ...], role: str, tmp_path: Path
) -> None:
    other = next(user for user in RIGHTS if user != role)
    environ = os.environ | {
        "ANTHROPIC_API_KEY": "none",
        "TAILRACE_DATABASE": str(tmp_path / "tailrace.db"),
        "TAILRACE_NATS_URL": as_user(nats_url, other),
    }
    status, _, printed = await run_module(*command, **environ)
    assert status == 2
    assert f"has the user {other}, but this process needs nats://{role}:PASSWORD@" in printed


async def test_a_refused_password_is_logged_once(own_server: NatsServer) -> None:
    """The connection is retried four times a second, and works again with the old password."""
    connection = await Connection.open(as_user(own_server.url, GATEWAY), "test")
    spec = own_server.spec
    with structlog.testing.capture_logs() as lines:
        await own_server.stop(SIGKILL)
        own_server.spec = msgspec.structs.replace(spec, passwords=dict.fromkeys(spec.passwords, "another"))
        await own_server.start()
        await until(lambda: connection.is_refused)
        async with httpx2.AsyncClient(trust_env=False) as client:

            async def is_retried() -> bool:
                varz = (await client.get(f"http://127.0.0.1:{own_server.spec.monitor_port}/varz")).json()
                return bool(varz["total_connections"] > 3)

            await until(is_retried)
        errors = [line["event"] for line in lines if line["log_level"] == "error"]
        assert errors == ["nats rejects the user or password of TAILRACE_NATS_URL"]
        await own_server.stop(SIGKILL)
        own_server.spec = spec
        await own_server.start()
        await until(lambda: not connection.is_refused)
    assert connection.is_up
    await connection.close()


async def test_a_user_that_one_server_refuses_is_tried_at_the_next(
    monkeypatch: pytest.MonkeyPatch, own_server: NatsServer
) -> None:
    """A password is changed at one server after the other."""
    monkeypatch.setattr("tailrace.proto.nats.connection.sample", lambda addresses, _: addresses)
    valid = as_user(own_server.url, GATEWAY)
    connection = await Connection.open(f"{valid.replace('@', 'x@')},{valid}", "test")
    assert (connection.is_up, connection.is_refused) == (True, False)
    await connection.close()


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("nats://stale-token@127.0.0.1:{port}", LogUnavailable, "rejects the user or password: set TAILRACE_NATS_URL"),
        ("nats://a-token@127.0.0.1:1", LogUnavailable, "no NATS server answers at 127.0.0.1:1: "),
        (
            "nats://name:pass@word@127.0.0.1:1,127.0.0.2:1",
            LogUnavailable,
            "no NATS server answers at 127.0.0.1:1, 127.0.0.2:1: ",
        ),
        ("127.0.0.1:1", LogUnavailable, "no NATS server answers at 127.0.0.1:1: "),
        ("nats://u:s@n.invalid:1", LogUnavailable, "no NATS server answers at n.invalid:1: a host name has no address"),
        ("nats://a-token@127.0.0.1:port", SettingsInvalid, "TAILRACE_NATS_URL: expected nats://USER:PASSWORD@"),
    ],
    ids=["refused", "unreachable", "two unreachable", "without a user", "no address", "invalid"],
)
async def test_the_error_of_a_url_names_the_servers_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, nats_server: NatsServer, url: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.5)
    with pytest.raises(error) as raised:
        await Connection.open(url.format(port=nats_server.spec.port), "test")
    assert message in str(raised.value)
    assert not [secret for secret in ("stale-token", "a-token", "pass@word", "name:") if secret in str(raised.value)]


@asynccontextmanager
async def silent_address(address: str, port: int) -> AsyncIterator[None]:
    """Makes the kernel drop new connections to the address: its queue is full."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind((address, port))
        listening.listen(0)
        first.connect((address, port))
        yield


@pytest.mark.parametrize("order", [1, -1])
async def test_a_name_with_an_address_that_does_not_answer_is_connected_and_reconnected(
    monkeypatch: pytest.MonkeyPatch, own_server: NatsServer, order: int
) -> None:
    """The DNS names both addresses in the same order each time."""
    monkeypatch.setattr("tailrace.proto.nats.connection.CONNECT_TIMEOUT_S", 0.3)
    port = own_server.spec.port
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")][::order]
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: both if host == "n.test" else look_up(host, *a, **o)
    )
    async with silent_address("127.0.0.2", port):
        connection = await Connection.open(own_server.url.replace("127.0.0.1", "n.test"), "test")
        await own_server.stop(SIGKILL)
        await until(lambda: not connection.is_up)
        await own_server.start()
        await until(lambda: connection.is_up)
        await connection.close()


async def test_a_dns_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace.proto.nats.connection.CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.5)
    is_over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: is_over.wait(10) and [])
    try:
        with pytest.raises(LogUnavailable, match=r"a host name has no address, or the DNS does not answer$"):
            await Connection.open("nats://a-token@n.test:4222", "test")
    finally:
        is_over.set()


async def test_opening_ends_in_time_although_a_try_loses_the_cancellation(
    monkeypatch: pytest.MonkeyPatch, nats_url: str
) -> None:
    """As in Python 3.11, if the server closes the connection at that moment. nats-py would try for ever."""

    async def lose_the_cancellation(_: NatsClient) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionResetError from None

    monkeypatch.setattr("tailrace.proto.nats.connection.OPEN_TIMEOUT_S", 0.2)
    monkeypatch.setattr(NatsClient, "_process_connect_init", lose_the_cancellation)
    with pytest.raises(LogUnavailable):
        await Connection.open(nats_url, "test")


def test_a_write_to_a_connection_that_is_being_replaced_fails_as_without_a_server(nats_url: str) -> None:
    """The recorder would leave out a turn after an error that it does not know."""
    unknown: list[dict[str, Any]] = []

    async def request() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unknown.append(context))
        connection = await Connection.open(nats_url, "test")
        for _ in range(8):
            connection.client.abort()
            for _ in range(5):
                await connection.unsubscribe(await connection.subscribe_directly("unused.subject", print))
                await asyncio.sleep(0)
            for _ in range(20):
                with suppress(LogUnavailable):
                    await connection.publish("unused.subject", b"")
                with pytest.raises(LogUnavailable):
                    await connection.request("unused.subject", b"", timeout_s=0.01)
            await until(lambda: connection.is_up)
        await connection.close()

    uvloop.run(request())
    assert unknown == []


async def test_a_connection_that_has_no_memory_for_a_message_is_replaced(
    monkeypatch: pytest.MonkeyPatch, own_server: NatsServer
) -> None:
    """nats-py ends its loops: that of the received messages, and that of the pings which notice it."""
    connection = await Connection.open(own_server.url, "test")
    restored = asyncio.Event()
    connection.on_reconnected(restored.set)
    for owner, name in ((Parser, "parse"), (NatsClient, "_send_ping")):
        monkeypatch.setattr(owner, name, fail_once(getattr(owner, name)))
    await asyncio.wait_for(restored.wait(), 20)
    await check(connection)
    await connection.close()


async def test_a_connection_whose_bytes_were_lost_without_memory_is_replaced(
    monkeypatch: pytest.MonkeyPatch, own_connection: Connection
) -> None:
    """uvloop would close the socket with the error, after which nats-py ends its loops."""
    restored = asyncio.Event()
    own_connection.on_reconnected(restored.set)
    take, failures = MessageSplitter._take, [MemoryError]  # noqa: SLF001

    def fail_first(self: MessageSplitter, data: bytes, at: int, size: int) -> int:
        if failures:
            raise failures.pop()
        return take(self, data, at, size)

    monkeypatch.setattr(MessageSplitter, "_take", fail_first)
    with pytest.raises(LogUnavailable):
        await own_connection.request("$JS.API.INFO", b"", timeout_s=1)
    await asyncio.wait_for(restored.wait(), 20)
    await check(own_connection)


async def test_a_request_times_out_although_there_was_no_memory_for_another_one(own_connection: Connection) -> None:
    """One timer checks all requests. Without it, none would end."""
    failures, ended = [MemoryError], asyncio.Event()

    def fail_first(_: Message | None) -> None:
        if failures:
            raise failures.pop()
        ended.set()

    subscription = await own_connection.subscribe_directly("silent", print)
    own_connection.client.ask_directly(b"silent", b"", b"", 0.1, fail_first)
    async with asyncio.timeout(5):
        with pytest.raises(LogUnavailable):
            await own_connection.request("silent", b"", timeout_s=0.2)
        await ended.wait()
    await own_connection.unsubscribe(subscription)


async def test_a_request_ends_although_there_was_no_memory_for_its_reply(own_connection: Connection) -> None:
    failures, replies = [MemoryError], asyncio.Queue[Message | None]()

    def fail_first(message: Message | None) -> None:
        if failures:
            raise failures.pop()
        replies.put_nowait(message)

    own_connection.client.ask_directly(b"$JS.API.INFO", b"", b"", 0.1, fail_first)
    async with asyncio.timeout(5):
        assert await replies.get() is None


def ignore(*_: bytes) -> None: ...


def fail_once(call: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    failures = [MemoryError]

    async def fail_first(*arguments: object) -> None:
        if failures:
            raise failures.pop()
        await call(*arguments)

    return fail_first


def waiting_flushes(connection: Connection) -> list[asyncio.Future[bool]]:
    return connection.client._pongs  # noqa: SLF001  # nats-py shows nowhere else which flushes wait


async def test_a_flush_can_be_cancelled_when_its_answer_arrives(connection: Connection) -> None:
    flushing = asyncio.create_task(connection.flush())
    await until(lambda: waiting_flushes(connection), every_s=0)
    waiting_flushes(connection)[-1].add_done_callback(lambda _: flushing.cancel())
    with pytest.raises(asyncio.CancelledError):
        await flushing


async def test_a_connection_is_read_after_a_flush_that_was_cancelled_before_its_answer(
    own_server: NatsServer, own_connection: Connection
) -> None:
    freeze(own_server)
    flushing = asyncio.create_task(own_connection.flush())
    await until(lambda: waiting_flushes(own_connection), every_s=0)
    flushing.cancel()
    await asyncio.wait((flushing,))
    own_server.signal(SIGCONT)
    await own_connection.now()
    await until(lambda: not waiting_flushes(own_connection))
    await own_connection.now()
    assert own_connection.disconnects == 0


async def test_a_request_that_times_out_is_freed_without_a_garbage_collection(connection: Connection) -> None:
    subscription = await connection.subscribe_directly("silent.subject", ignore)
    gc.disable()
    try:
        try:
            await connection.request("silent.subject", b"", timeout_s=0.01)
        except LogUnavailable as error:
            timed_out = weakref.ref(error.__cause__ or error)
        await until(lambda: timed_out() is None, deadline_s=2)
    finally:
        gc.enable()
        await connection.unsubscribe(subscription)


async def test_the_function_of_an_ended_subscription_is_freed(connection: Connection) -> None:
    """A gateway subscribes to each turn that is read, and each function holds the entries of a turn."""

    def receive(*_: bytes) -> None: ...

    function = weakref.ref(receive)
    subscription = await connection.subscribe_directly("unused.subject", receive)
    del receive
    await connection.unsubscribe(subscription)
    gc.collect()
    assert function() is None


async def next_delivery(connection: Connection) -> object:
    return await (await Deliveries.open(connection, PERSISTENCE)).next()


@pytest.mark.parametrize(
    "call",
    [
        fullness,
        lambda connection: KeyStore(connection).position(),
        lambda connection: consumer_backlog(connection, PERSISTENCE),
        next_delivery,
    ],
    ids=["fullness", "keys", "backlog", "deliveries"],
)
async def test_a_loop_of_calls_can_be_cancelled_at_any_moment(
    connection: Connection, call: Callable[[Connection], Awaitable[object]]
) -> None:
    async def repeat() -> None:
        while True:
            await call(connection)

    for steps in range(60):
        task = asyncio.create_task(repeat())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=2)
        if not done:
            task.cancel()
        assert done, f"not cancelled after {steps} steps"
        assert task.cancelled()


async def fill_buffers(connection: Connection) -> None:
    """Publishes more than the buffers between the client and a frozen server hold."""
    for _ in range(32):
        await connection.publish("unused.subject", bytes(2**20))
        await asyncio.sleep(0)


@pytest.mark.rule("F9")
async def test_a_frozen_server_is_left_at_once_and_tried_last(
    tmp_path: Path, own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.proto.nats.connection.PING_INTERVAL_S", 0.2)
    # The worst random order: it puts the server that was lost first.
    monkeypatch.setattr("nats.aio.client.shuffle", list[object].reverse)
    other = NatsServer(tmp_path)
    connection = await Connection.open(f"{own_server.url},{other.url}", "test")
    async with other:
        freeze(own_server)
        await fill_buffers(connection)
        await until(lambda: connection.client.stats["reconnects"] == 1, CONNECT_TIMEOUT_S)
        assert connection.is_up
        await connection.close()


async def test_a_request_that_was_not_sent_before_a_disconnect_is_not_sent_after_it(
    own_server: NatsServer, own_connection: Connection
) -> None:
    """Its caller has received an error, perhaps an hour ago."""
    received: list[bytes] = []
    other = await Connection.open(own_server.url, "other")
    await other.subscribe_directly("later", lambda _subject, _headers, payload, _reply: received.append(payload))
    client = own_connection.client
    # Requests are written after the current iteration of the event loop, and the disconnect is noticed within it.
    client.send("later", "", b"lost")
    await client._process_op_err(ConnectionResetError())  # noqa: SLF001  # a disconnect within this iteration
    await until(lambda: client.is_connected)
    await client.publish("later", b"sent")
    await until(lambda: received)
    assert received == [b"sent"]
    await other.close()


@pytest.mark.parametrize(
    ("send", "more"),
    [
        (lambda connection, payload: connection.publish("unused.subject", payload), 1),
        (lambda connection, payload: connection.request("unused.subject", payload, timeout_s=1), 1),
        # "NATS/1.0", "a: b" and the blank line, each with its line end.
        (lambda connection, payload: connection.client.request("unused.subject", payload, headers={"a": "b"}), -17),
        (lambda connection, payload: connection.jetstream.publish("unused.subject", payload), 1),
    ],
    ids=["publish", "request", "headers", "jetstream"],
)
async def test_a_message_above_the_limit_of_the_server_is_refused_and_the_connection_stays(
    own_connection: Connection, send: Callable[[Connection, bytes], Awaitable[object]], more: int
) -> None:
    """The server would close the connection for good."""
    size = own_connection.client.max_payload + more
    with pytest.raises(EntryTooLarge):
        await send(own_connection, bytes(size))
    # No process answers on this subject.
    with suppress(LogUnavailable, nats.errors.NoRespondersError, nats.js.errors.NoStreamResponseError):
        await send(own_connection, bytes(size - 1))
    await own_connection.flush()
    assert (own_connection.is_up, own_connection.disconnects) == (True, 0)


async def test_a_subscription_that_was_begun_and_ended_while_disconnected_is_gone_after_the_reconnect(
    own_server: NatsServer, own_connection: Connection
) -> None:
    received = list[bytes]()
    await own_server.stop(SIGKILL)
    # Then the client has dropped what was pending, and queues new commands.
    await until(lambda: own_connection.disconnects)
    kept = await own_connection.subscribe_directly("kept", lambda *message: received.append(message[0]))
    await own_connection.unsubscribe(await own_connection.subscribe_directly("ended", ignore))
    await own_server.start()
    await until(lambda: own_connection.is_up)
    before = own_connection.client.stats["in_msgs"]
    for subject in ("ended", "kept"):
        await own_connection.publish(subject, b"")
    await until(lambda: received)
    # nats-py counts messages that no function receives directly.
    assert own_connection.client.stats["in_msgs"] == before
    await own_connection.unsubscribe(kept)


async def test_an_error_of_a_function_that_receives_messages_leaves_the_connection_open(
    own_connection: Connection,
) -> None:
    received: list[bytes] = []

    def fail_at_first(_subject: bytes, _headers: bytes, payload: bytes, _reply: bytes) -> None:
        received.append(payload)
        if len(received) == 1:
            raise ValueError

    await own_connection.subscribe_directly("a.subject", fail_at_first)
    with structlog.testing.capture_logs() as lines:
        for data in (b"1", b"2"):
            await own_connection.publish("a.subject", data)
        await until(lambda: len(received) == 2)
    assert own_connection.disconnects == 0
    assert [line["error"] for line in lines] == ["ValueError"]


async def test_white_space_in_a_subject_does_not_hide_a_message_from_its_subscription(
    own_server: NatsServer, own_connection: Connection
) -> None:
    """nats-server accepts it. nats-py's parser would take what follows for the number of a subscription."""
    received: list[bytes] = []
    await own_connection.subscribe_directly("odd.*", lambda *message: received.append(message[0]))
    await own_connection.flush()
    url = urlsplit(own_server.url)
    login = msgspec.json.encode({"user": url.username, "pass": url.password, "verbose": False})
    with socket.create_connection((url.hostname, url.port)) as sender:
        sender.sendall(b"CONNECT %b\r\nPUB odd.a\x0b9 0\r\n\r\nPUB odd.b 0\r\n\r\n" % login)
        await until(lambda: b"odd.b" in received)
    assert received == [b"odd.a\x0b9", b"odd.b"]


@asynccontextmanager
async def server_that_closes() -> AsyncIterator[tuple[str, list[float]]]:
    """A server that closes each connection after the first ping: its URL, and the times of the connections."""
    opened: list[float] = []

    async def close_after_the_first_ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(time.monotonic())
        writer.write(b'INFO {"max_payload": 1024, "headers": true}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(close_after_the_first_ping, "127.0.0.1", 0) as server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", opened


async def test_a_server_that_closes_each_connection_is_not_tried_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tailrace.proto.nats.connection.RECONNECT_WAIT_S", 0.1)
    async with server_that_closes() as (url, opened):
        # Not the time of the first connection, of which the server may learn late: then the pause looks shorter.
        began = time.monotonic()
        connection = await Connection.open(url, "test")
        await until(lambda: len(opened) >= 6)
        await connection.close()
    assert opened[5] - began > 0.45


async def test_a_connection_can_be_closed_at_any_moment_of_its_loss() -> None:
    """nats-py cancels its reconnect, and with it the future of the closed socket, for which it then waits itself."""
    async with server_that_closes() as (url, _):
        for steps in range(40):
            connection = await Connection.open(url, "test")
            for _ in range(steps):
                await asyncio.sleep(0)
            await connection.close()


async def test_a_connection_to_a_frozen_server_closes_in_bounded_time(own_server: NatsServer) -> None:
    connection = await Connection.open(own_server.url, "test")
    freeze(own_server)
    await fill_buffers(connection)
    async with asyncio.timeout(2 * CLOSE_TIMEOUT_S):
        await connection.close()


async def test_a_blocked_event_loop_does_not_lose_the_connection(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that arrived meanwhile are read before a ping counts as missed."""
    monkeypatch.setattr("tailrace.proto.nats.connection.PING_INTERVAL_S", 0.02)
    connection = await Connection.open(nats_server.url, "test")
    for _ in range(3):
        await asyncio.sleep(0.05)
        time.sleep(0.2)  # noqa: ASYNC251  # as the garbage collector may
    await connection.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout_s=2)
    assert connection.client.stats["reconnects"] == 0
    await connection.close()


async def test_a_request_cannot_carry_another_command(own_connection: Connection) -> None:
    for subject, headers in (
        ("a b", {}),
        ("a\r\nPUB b 0\r\n", {}),
        ("", {}),
        ("a", {"Name": "value\r\nOther: value"}),
        ("a", {"Name\n": "value"}),
    ):
        with pytest.raises((nats.errors.BadSubjectError, nats.errors.BadHeaderError)):
            await own_connection.client.ask(subject, b"", 1.0, headers)
    await own_connection.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        await own_connection.client.ask("a", b"", 1.0)
