"""The NATS user of each role: what it may not publish, subscribe to or forge. All other tests use what it may do."""

import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from signal import SIGKILL

import msgspec
import nats.js.errors
import pytest
import structlog.testing
from nats.aio.msg import Msg
from structlog.typing import EventDict

from tailrace.deploy.local import nats_server, ports
from tailrace.deploy.local.nats_server import ROOT_USER
from tailrace.deploy.local.spawn import signal_group, spawn
from tailrace.deploy.nats import streams
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.features.admin.key_store import KeyStore
from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.api_key_store import RecordChange
from tailrace.proto import subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.model_records import MODELS
from tailrace.proto.nats import Connection, Rpc, TurnLog, check
from tailrace.proto.nats.stream_configs import BUCKETS, EVERY_STREAM
from tailrace.proto.nats.users import ADMIN, GATEWAY
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import AUDIT, GENERATORS, PERSISTENCE, STREAM
from tests.harness.processes import CHECKOUT, as_user
from tests.harness.turn_writer import Writer
from tests.harness.until import until

KINDS = ("request", "attempt", "event", "progress", "end", "probe", "anything")
# The kinds of entries that a role may store.
WRITES = {GATEWAY: {"request", "end"}, GENERATORS: {"request", "attempt", "event", "progress", "end"}}
# Buckets with secrets and identities that only gateways may read and write.
GATEWAY_BUCKETS = ("KV_SECRETS", "KV_LOGINS", "KV_KEYS")
OF_GENERATORS = ("peers.notices", "peers.holding.x", "$SYS.REQ.ACCOUNT.PING.STATZ")
DENIED_TO_ALL = (
    "anything",
    *OF_GENERATORS,
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "live.local.x.event",
    "keys.key",
    "reader_queries.t.x",
    "$KV.KEYS.key",
    "_INBOX.other.x",
    "$SYS.REQ.SERVER.PING",
    "$JS.API.STREAM.CREATE.MINE",
    *(f"$JS.API.STREAM.{verb}.{STREAM}" for verb in ("UPDATE", "DELETE", "SNAPSHOT")),
    f"$JS.API.CONSUMER.CREATE.{STREAM}.mine",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{GENERATORS}",
    f"$JS.API.CONSUMER.DELETE.{STREAM}.{GENERATORS}",
    f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}",
    "$JS.API.ACCOUNT.PURGE.x",
)


def consumer(durable: str) -> list[str]:
    """Returns the subjects that read and acknowledge a consumer of the log."""
    return [f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{durable}", f"$JS.ACK.{STREAM}.{durable}.1.1.1.1.0"]


BUCKET_READS = [f"$JS.API.{verb}.{stream}" for stream in GATEWAY_BUCKETS for verb in ("STREAM.MSG.GET", "DIRECT.GET")]
DENIED: dict[str, list[str]] = {
    ADMIN: ["bodies.t.x", "limits.t.t.requests.1", "$KV.SECRETS.signing", "$KV.CLAIMS.x", "anything", *OF_GENERATORS],
    GATEWAY: [
        # Operators change keys through gateways.
        *(subject for subject in DENIED_TO_ALL if subject != "$KV.KEYS.key"),
        *(f"$JS.API.STREAM.{verb}.{AUDIT}" for verb in ("PURGE", "MSG.DELETE", "UPDATE", "DELETE")),
        *consumer(GENERATORS),
        "$KV.CLAIMS.deleted.t.x",
        "$KV.CLAIMS.extended.t",
        "$KV.CLAIMS.steps.t.x",
        "$JS.API.STREAM.PURGE.BODIES",
    ],
    GENERATORS: [
        *(subject for subject in DENIED_TO_ALL if subject not in OF_GENERATORS),
        *consumer(PERSISTENCE),
        *BUCKET_READS,
        "$KV.CLAIMS.extended.t",
        *("bodies.t.x", "bodies.t.x.0", "$KV.CLAIMS.x", "$KV.SECRETS.signing", "$KV.LOGINS.x"),
        *("slots.t.t.running.1", "queries.t.delete"),
        *(f"$JS.API.STREAM.{verb}.{STREAM}" for verb in ("PURGE", "MSG.DELETE")),
    ],
    PERSISTENCE: [
        *DENIED_TO_ALL,
        *consumer(GENERATORS),
        *BUCKET_READS,
        *("bodies.t.x.0", "$KV.CLAIMS.x", "$KV.CLAIMS.steps.t.x", "$KV.SECRETS.signing", "$KV.LOGINS.x"),
        *("limits.t.t.requests.1", "slots.t.t.running.1", "queries.t.delete"),
    ],
}
DENIED_SUBSCRIPTIONS: dict[str, list[str]] = {
    user: [
        *(">", "turns.>", "$KV.>", "_INBOX.>", "$JS.>", "$JS.ACK.>"),
        *(f"_INBOX.{other}.>" for other in RIGHTS if other != user),
        *(["keys.>"] if user != GATEWAY else []),
        *(["live.>"] if user in (PERSISTENCE, ADMIN) else []),
        *(["reader_replies.*.*"] if user != ADMIN else []),
        *(["queries.t.turn"] if user != PERSISTENCE else []),
        *(["queries.*.models", "peers.>"] if user != GENERATORS else []),
    ]
    for user in RIGHTS
}

Open = Callable[[str], Awaitable[Connection]]


@asynccontextmanager
async def connections(url: str) -> AsyncIterator[Open]:
    """Yields a function that opens connections by user; closes them at the end."""
    opened: list[Connection] = []

    async def open_(user: str) -> Connection:
        opened.append(await Connection.open(as_user(url, user), "test"))
        return opened[-1]

    yield open_
    for connection in opened:
        await connection.close()


@pytest.fixture
async def open_as(nats_url: str) -> AsyncIterator[Open]:
    """Opens connections to the shared nats-server."""
    async with connections(nats_url) as open_:
        yield open_


@pytest.fixture
async def open_own_as(own_server: nats_server.NatsServer) -> AsyncIterator[Open]:
    """Opens connections to the test's own nats-server."""
    async with connections(own_server.url) as open_:
        yield open_


def denials(lines: list[EventDict]) -> list[str]:
    """Returns the errors of denied permissions, which nats-py lower-cases."""
    return [line["error"] for line in lines if line["event"] == "nats denied a permission"]


@pytest.mark.rule("S2")
@pytest.mark.parametrize("user", RIGHTS)
async def test_a_denied_subject_is_logged_as_an_error_each_time(open_as: Open, user: str) -> None:
    connection = await open_as(user)
    published = [*(f"turns.local.x.{kind}" for kind in KINDS if kind not in WRITES.get(user, ())), *DENIED[user]]

    async def receive(_: Msg) -> None: ...

    with structlog.testing.capture_logs() as lines:
        for subject in published:
            await connection.publish(subject, b"{}", reply=connection.client.new_inbox())
        for subject in DENIED_SUBSCRIPTIONS[user]:
            await connection.subscribe(subject, receive)
        denied = [*published, *DENIED_SUBSCRIPTIONS[user]]
        await until(lambda: len(denials(lines)) >= len(denied))
    errors = " ".join(denials(lines))
    assert [subject for subject in denied if f'"{subject.lower()}"' not in errors] == []
    assert {line["log_level"] for line in lines} == {"error"}
    assert connection.is_up


# A subject that the role may store, and subjects to which it may try to send a reply of the server.
STORES = {GATEWAY: "bodies.local.x.0", GENERATORS: "turns.local.x.event", PERSISTENCE: "bodies.local.x"}
TARGETS = (
    "$KV.KEYS.forged",
    "$KV.SECRETS.signing",
    "limits.t.t.requests.1",
    "turns.local.y.forged",
    "bodies.local.y.forged",
    "queries.local.delete",
    "$JS.API.STREAM.CREATE.FORGED",
    "$JS.API.STREAM.PURGE.LOGINS",
)


@pytest.mark.parametrize("user", STORES)
async def test_a_reply_subject_reaches_nothing_that_the_role_may_not_publish(open_own_as: Open, user: str) -> None:
    """nats-server sends a reply to any subject that a request names. Accounts of their own keep it inside of the role.

    The same request of the root user, in the account of the log, succeeds at the end.
    """
    role, root = await open_own_as(user), await open_own_as(ROOT_USER)
    await forge(role, STORES[user], [target for target in TARGETS if not may_publish(user, target)])
    await until_read(role, STORES[user])
    assert await messages(root, subjects.KEYS_STREAM) == 0
    assert await stream_names(root) == set(EVERY_STREAM)
    stored = [await root.jetstream.stream_info(name, subjects_filter=">") for name in (STREAM, subjects.BODIES)]
    last_tokens = {subject.rpartition(".")[2] for info in stored for subject in info.state.subjects or {}}
    assert last_tokens == {STORES[user].rpartition(".")[2]}
    await forge(root, STORES[user], TARGETS)

    async def is_forged() -> bool:
        return "FORGED" in await stream_names(root)

    await until(is_forged)
    assert await messages(root, subjects.KEYS_STREAM) > 0


def may_publish(user: str, subject: str) -> bool:
    patterns = [
        pattern.replace(".", r"\.").replace("$", r"\$").replace("*", "[^.]+").replace(">", ".+")
        for pattern in RIGHTS[user].publish
    ]
    return any(re.fullmatch(pattern, subject) for pattern in patterns)


async def forge(connection: Connection, stores: str, targets: Sequence[str]) -> None:
    """Requests each kind of reply to each target: acknowledgements, stored messages, and replies of the role itself."""
    order = json.dumps({"name": "FORGED", "subjects": ["forged"]}).encode()

    async def reply(message: Msg) -> None:
        await message.respond(order)

    own = ("readers.local.x",)
    for subject in own:
        await connection.subscribe(subject, reply)
    for payload in (order, b""):
        stored = await connection.jetstream.publish(stores, payload)
        read = json.dumps({"seq": stored.seq}).encode()
        for target in targets:
            await connection.publish(stores, payload, reply=target)
            for verb in ("DIRECT.GET", "STREAM.MSG.GET"):
                await connection.publish(f"$JS.API.{verb}.{stored.stream}", read, reply=target)
            await connection.publish(f"$JS.API.DIRECT.GET.{stored.stream}.{stores}", b"", reply=target)
            for subject in own:
                await connection.publish(subject, b"", reply=target)


async def until_read(connection: Connection, stored: str) -> None:
    """Reads the last message of `stored`: the server has then replied to all earlier requests of the connection."""
    subject, query = f"$JS.API.DIRECT.GET.{subjects.BODIES}.{stored}", b""
    if stored.startswith("turns."):
        subject, query = f"$JS.API.DIRECT.GET.{STREAM}", json.dumps({"last_by_subj": stored}).encode()
    assert (await connection.request(subject, query, timeout_s=5)).headers


async def messages(connection: Connection, stream: str) -> int:
    return (await connection.jetstream.stream_info(stream)).state.messages


async def stream_names(connection: Connection) -> set[str | None]:
    return {info.config.name for info in await connection.jetstream.streams_info()}


async def test_a_rollup_header_does_not_replace_a_bucket(open_own_as: Open) -> None:
    """Persistence stores tombstones in the bucket of the claims, and must not delete the claims."""
    role, root = await open_own_as(PERSISTENCE), await open_own_as(ROOT_USER)
    await root.jetstream.publish(f"$KV.{subjects.CLAIMS}.a_key", b"{}")
    for rollup in ("all", "sub"):
        with pytest.raises(nats.js.errors.APIError, match="rollup not permitted"):
            await role.jetstream.publish("$KV.CLAIMS.deleted.t.x", b"", headers={"Nats-Rollup": rollup})
    assert await messages(root, subjects.CLAIMS_STREAM) == 1
    for bucket in BUCKETS:
        assert not (await root.jetstream.stream_info(f"KV_{bucket}")).config.allow_rollup_hdrs


async def test_a_gateway_does_not_accept_a_key_or_an_end_that_another_gateway_forges(
    open_own_as: Open, key: TurnKey
) -> None:
    """It has both sent as replies to the subjects of the live feeds. The true ones arrive at the end."""
    forger, gateway, root = await open_own_as(GATEWAY), await open_own_as(GATEWAY), await open_own_as(ROOT_USER)
    record = ApiKey(id="key_x", sha256="0" * 64, tenant=key.tenant, scopes=["admin"], created_at=0)
    changes: list[RecordChange] = []

    async def receive(change: RecordChange) -> None:
        changes.append(change)

    async def reply(message: Msg) -> None:
        await message.respond(message.data)

    await KeyStore(gateway).watch(receive)
    writer = Writer(TurnLog(root), key)
    await writer.store_request()
    forged_end = build_end(await writer.log.read_turn(ScopedKey.whole(key)), "cancelled")
    async with aclosing(TurnLog(gateway).follow(ScopedKey.whole(key))) as entries:
        await anext(entries)
        await forger.subscribe("readers.acme.x", reply)
        live_end = f"{subjects.live(key)[:-1]}end"
        for stores, payload, target, header in (
            ("bodies.acme.key_x", msgspec.json.encode(record), "keys.key_x", "$KV.KEYS.key_x"),
            (
                "turns.acme.x.end",
                msgspec.json.encode(forged_end),
                live_end,
                subjects.entry(key, "end"),
            ),
        ):
            stored = await forger.jetstream.publish(stores, payload)
            read = json.dumps({"seq": stored.seq}).encode()
            await forger.publish(f"$JS.API.DIRECT.GET.{stored.stream}", read, reply=target)
            await forger.publish(f"$JS.API.DIRECT.GET.{stored.stream}.{stores}", b"", reply=target)
            headers = {"Nats-Subject": header, "Nats-Sequence": "9999", "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
            await forger.client.publish("readers.acme.x", payload, target, headers)
        for stores in ("bodies.acme.key_x", "turns.acme.x.end"):
            await until_read(forger, stores)
        await KeyStore(root).create(record)
        await until(lambda: changes)
        assert [(change.seq, change.record) for change in changes] == [(1, record)]
        end = await writer.end("cancelled")
        assert [entry.seq for entry in await anext(entries)] == [end]


async def test_a_reply_after_a_reconnect_is_refused_and_the_next_request_is_answered(open_as: Open) -> None:
    """The right to reply ends with the connection that received the request. That is not an error."""
    responder, requester = await open_as(GENERATORS), await open_as(GATEWAY)
    received: list[Msg] = []

    async def receive(message: Msg) -> None:
        received.append(message)
        if len(received) > 1:
            await message.respond(b"")

    request = partial(partial(Rpc(requester).request, role=GENERATORS), Tenant("local"), MODELS, b"")
    await responder.subscribe(subjects.every_query(MODELS), receive)
    # The server processes what follows a subscription after it.
    await responder.jetstream.stream_info(STREAM)
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(Refused):
            await request(timeout_s=0.2)
        await responder.client.force_reconnect()
        await until(lambda: "nats connection restored" in [line["event"] for line in lines])
        await received[0].respond(b"")
        await until(lambda: "nats refused a late reply" in [line["event"] for line in lines])
    assert denials(lines) == []
    assert await request(timeout_s=5) == b""


async def test_the_users_of_the_docs_are_those_of_up(tmp_path: Path) -> None:
    """A nats-server that includes docs/nats-users.conf accepts each role with its password, and no other."""
    port, _ = ports.find_free(2)
    (tmp_path / "nats-users.conf").write_text((CHECKOUT / "docs" / "nats-users.conf").read_text())
    (tmp_path / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}/store" }}\n'
        "accounts { include ./nats-users.conf }\n"
    )
    passwords = {f"TAILRACE_{user.upper()}_PASSWORD": f"of-{user}" for user in RIGHTS}
    binary = str(Path(sys.executable).parent / "nats-server")
    with (tmp_path / "nats.log").open("wb") as log:
        server = await spawn((binary, "-c", str(tmp_path / "nats.conf")), passwords, log.fileno())

    def url(user: str, password: str) -> str:
        return f"nats://{user}:of-{password}@127.0.0.1:{port}"

    try:
        await nats_server.wait_started(port)
        await streams.apply(url(ADMIN, ADMIN), file_bytes_max=nats_server.GIB, is_new=True)
        for user in RIGHTS:
            connection = await Connection.open(url(user, user), "test")
            await check(connection)
            await connection.close()
        with pytest.raises(LogUnavailable, match="rejects the user or password"):
            await Connection.open(url(GATEWAY, ADMIN), "test")
    finally:
        signal_group(server, SIGKILL)
        await server.wait()
