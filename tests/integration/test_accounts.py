"""The users of NATS: what a role may not do is refused and said at once. What it may do, all other tests try."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from signal import SIGKILL

import msgspec
import nats.js.errors
import pytest
import structlog.testing
from nats.aio.msg import Msg
from structlog.typing import EventDict

from tailrace.deploy.cli import streams
from tailrace.deploy.local import nats_server, ports
from tailrace.deploy.local.nats_server import ROOT_USER, NatsServer
from tailrace.deploy.local.spawn import signal_group, spawn
from tailrace.proto import subjects
from tailrace.proto.api_key import ApiKey
from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.model_records import MODELS
from tailrace.proto.nats import Connection, Rpc, TurnLog, check
from tailrace.proto.nats.api_keys import ApiKeyStore, KeyChange
from tailrace.proto.nats.permissions import ADMIN, GATEWAY, RIGHTS
from tailrace.proto.nats.streams import BUCKETS, EVERY_STREAM
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, STREAM, TurnKey
from tests.harness.processes import CHECKOUT, as_user
from tests.harness.turn_writer import Writer
from tests.harness.until import until

KINDS = ("request", "attempt", "event", "progress", "end", "probe", "anything")
# Who may store which of them; nobody else, and nothing else.
WRITES = {GATEWAY: {"request", "end"}, GENERATORS: {"request", "attempt", "event", "progress", "end"}}
# Whose secrets and identities the others may neither read nor write.
OF_GATEWAYS = ("KV_SECRETS", "KV_LOGINS", "KV_KEYS")
# What each may store, and what it could make of an answer that went wherever it likes.
STORES = {GATEWAY: "bodies.local.x.0", GENERATORS: "turns.local.x.event", PERSISTENCE: "bodies.local.x"}
AIMS = (
    "$KV.KEYS.forged",
    "$KV.SECRETS.signing",
    "limits.t.t.requests.1",
    "turns.local.y.forged",
    "bodies.local.y.forged",
    "queries.local.delete",
    "$JS.API.STREAM.CREATE.FORGED",
    "$JS.API.STREAM.PURGE.LOGINS",
)
OF_NOBODY = (
    "anything",
    "live.local.x.event",
    "keys.key",
    "$KV.KEYS.key",
    "_INBOX.other.x",
    "$SYS.REQ.SERVER.PING",
    "$JS.API.STREAM.CREATE.MINE",
    f"$JS.API.STREAM.UPDATE.{STREAM}",
    f"$JS.API.STREAM.DELETE.{STREAM}",
    f"$JS.API.STREAM.SNAPSHOT.{STREAM}",
    f"$JS.API.CONSUMER.CREATE.{STREAM}.mine",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{GENERATORS}",
    f"$JS.API.CONSUMER.DELETE.{STREAM}.{GENERATORS}",
    f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}",
    "$JS.API.ACCOUNT.PURGE.x",
)


def denied_publishes(user: str) -> list[str]:
    """What each may not, that another role may or an attacker would like to."""
    entries = [f"turns.local.x.{kind}" for kind in KINDS if kind not in WRITES.get(user, ())]
    if user == ADMIN:
        return [*entries, "bodies.t.x", "limits.t.t.requests.1", "$KV.SECRETS.signing", "$KV.CLAIMS.x", "anything"]
    others = {
        GATEWAY: [
            "$KV.CLAIMS.deleted.t.x",
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{GENERATORS}",
            f"$JS.ACK.{STREAM}.{GENERATORS}.1.1.1.1.0",
            "$JS.API.STREAM.PURGE.BODIES",
            "hedges",
        ],
        GENERATORS: [
            "bodies.t.x",
            "bodies.t.x.0",
            "$KV.CLAIMS.x",
            "slots.t.t.running.1",
            "queries.t.delete",
            f"$JS.API.STREAM.PURGE.{STREAM}",
            f"$JS.API.STREAM.MSG.DELETE.{STREAM}",
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{PERSISTENCE}",
            f"$JS.ACK.{STREAM}.{PERSISTENCE}.1.1.1.1.0",
        ],
        PERSISTENCE: [
            "bodies.t.x.0",
            "$KV.CLAIMS.x",
            "limits.t.t.requests.1",
            "budgets.t.t.cost.1",
            "slots.t.t.running.1",
            "queries.t.delete",
            f"$JS.API.STREAM.MSG.DELETE.{STREAM}",
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{GENERATORS}",
            f"$JS.ACK.{STREAM}.{GENERATORS}.1.1.1.1.0",
        ],
    }[user]
    if user == GATEWAY:
        return [*entries, *OF_NOBODY, *others]
    reads = [f"$JS.API.{ask}.{stream}" for stream in OF_GATEWAYS for ask in ("STREAM.MSG.GET", "DIRECT.GET")]
    return [*entries, *OF_NOBODY, *others, *reads, "$KV.SECRETS.signing", "$KV.LOGINS.x"]


UNHEARD = [
    *((user, subject) for user in RIGHTS for subject in (">", "turns.>", "$KV.>", "_INBOX.>", "$JS.>", "$JS.ACK.>")),
    *((user, f"_INBOX.{other}.>") for user in RIGHTS for other in RIGHTS if other != user),
    *((user, "keys.>") for user in RIGHTS if user != GATEWAY),
    *((user, "live.>") for user in (PERSISTENCE, ADMIN)),
    *((user, "queries.t.turn") for user in (GATEWAY, GENERATORS, ADMIN)),
    *((user, "queries.*.models") for user in (GATEWAY, PERSISTENCE, ADMIN)),
]


async def opened(url: str, user: str) -> Connection:
    return await Connection.open(as_user(url, user), "test")


def refusals(lines: list[EventDict]) -> list[str]:
    """What was refused, in nats-py's small letters."""
    return [line["error"] for line in lines if line["event"] == "nats denied a permission"]


@pytest.mark.rule("S2")
@pytest.mark.parametrize("user", RIGHTS)
async def test_what_a_role_may_not_store_or_ask_is_refused_and_said_at_once(nats_url: str, user: str) -> None:
    """A process that goes wrong is not all of them. Each subject by itself, and one line of log each."""
    connection = await opened(nats_url, user)
    with structlog.testing.capture_logs() as lines:
        for subject in denied_publishes(user):
            await connection.publish(subject, b"{}", reply=connection.client.new_inbox())
        await until(lambda: len(refusals(lines)) >= len(denied_publishes(user)))
    said = " ".join(refusals(lines))
    assert [subject for subject in denied_publishes(user) if f'"{subject.lower()}"' not in said] == []
    assert {line["log_level"] for line in lines} == {"error"}
    assert connection.is_up
    await connection.close()


@pytest.mark.rule("S2")
@pytest.mark.parametrize(("user", "subject"), UNHEARD)
async def test_what_a_role_has_no_business_with_it_does_not_hear(nats_url: str, user: str, subject: str) -> None:
    """The others' answers, entries before they are stored, keys, and questions that are not for it."""
    connection = await opened(nats_url, user)
    heard: list[object] = []

    async def hear(message: object) -> None:
        heard.append(message)

    with structlog.testing.capture_logs() as lines:
        await connection.subscribe(subject, hear)
        await until(lambda: refusals(lines))
    assert f'"{subject.lower()}"' in refusals(lines)[0]
    await connection.close()


@pytest.mark.parametrize("user", STORES)
async def test_an_answer_reaches_nothing_that_its_question_may_not(own_server: NatsServer, user: str) -> None:
    """nats-server sends it to whatever subject the question names: who has an account of its own gets nowhere by that.

    The last three lines show that the same leads somewhere for whoever is of the log's account.
    """
    role, anybody = await opened(own_server.url, user), await opened(own_server.url, ROOT_USER)
    await forge(role, STORES[user], [aim for aim in AIMS if not may(user, aim)])
    await answered(role, STORES[user])
    assert await messages(anybody, subjects.KEYS_STREAM) == 0
    assert {info.config.name for info in await anybody.jetstream.streams_info()} == set(EVERY_STREAM)
    assert await kinds(anybody) == {STORES[user].rpartition(".")[2]}
    await forge(anybody, STORES[user], AIMS)
    await until(partial(is_in, anybody, "FORGED"))
    assert await messages(anybody, subjects.KEYS_STREAM) > 0
    for connection in (role, anybody):
        await connection.close()


def may(user: str, subject: str) -> bool:
    """Whether it need not forge anything for that."""
    ways = [
        way.replace(".", r"\.").replace("$", r"\$").replace("*", "[^.]+").replace(">", ".+")
        for way in RIGHTS[user].publish
    ]
    return any(re.fullmatch(way, subject) for way in ways)


async def forge(connection: Connection, stores: str, aims: Sequence[str]) -> None:
    """Has each kind of answer sent to each aim: what was stored, where it is, and what one has answered oneself."""
    order = json.dumps({"name": "FORGED", "subjects": ["forged"]}).encode()

    async def answer(message: Msg) -> None:
        await message.respond(order)

    own = ("hedges", "readers.local.x")
    for subject in own:
        await connection.subscribe(subject, answer)
    for payload in (order, b""):
        stored = await connection.jetstream.publish(stores, payload)
        read = json.dumps({"seq": stored.seq}).encode()
        for aim in aims:
            await connection.publish(stores, payload, reply=aim)
            for ask in ("DIRECT.GET", "STREAM.MSG.GET"):
                await connection.publish(f"$JS.API.{ask}.{stored.stream}", read, reply=aim)
            await connection.publish(f"$JS.API.DIRECT.GET.{stored.stream}.{stores}", b"", reply=aim)
            for subject in own:
                await connection.publish(subject, b"", reply=aim)


async def answered(connection: Connection, stored: str) -> None:
    """When this read is, so is all that was asked before it of the stream that has `stored`."""
    ask, query = f"$JS.API.DIRECT.GET.{subjects.BODIES}.{stored}", b""
    if stored.startswith("turns."):
        ask, query = f"$JS.API.DIRECT.GET.{STREAM}", json.dumps({"last_by_subj": stored}).encode()
    assert (await connection.request(ask, query, timeout_s=5)).headers


async def messages(connection: Connection, stream: str) -> int:
    return (await connection.jetstream.stream_info(stream)).state.messages


async def kinds(connection: Connection) -> set[str]:
    """The last tokens of all subjects that entries and blobs are stored on."""
    found = [await connection.jetstream.stream_info(name, subjects_filter=">") for name in (STREAM, subjects.BODIES)]
    return {subject.rpartition(".")[2] for info in found for subject in info.state.subjects or {}}


async def is_in(connection: Connection, stream: str) -> bool:
    return stream in {info.config.name for info in await connection.jetstream.streams_info()}


async def test_no_message_takes_the_place_of_a_whole_bucket(own_server: NatsServer) -> None:
    """Persistence says beside the claims what was deleted, and may not have them forgotten by that."""
    role, anybody = await opened(own_server.url, PERSISTENCE), await opened(own_server.url, ROOT_USER)
    await anybody.jetstream.publish(f"$KV.{subjects.CLAIMS}.a_key", b"{}")
    for rollup in ("all", "sub"):
        with pytest.raises(nats.js.errors.APIError, match="rollup not permitted"):
            await role.jetstream.publish("$KV.CLAIMS.deleted.t.x", b"", headers={"Nats-Rollup": rollup})
    assert await messages(anybody, subjects.CLAIMS_STREAM) == 1
    for bucket in BUCKETS:
        assert not (await anybody.jetstream.stream_info(f"KV_{bucket}")).config.allow_rollup_hdrs
    for connection in (role, anybody):
        await connection.close()


async def test_what_a_gateway_forges_no_other_takes_for_stored(own_server: NatsServer, key: TurnKey) -> None:
    """It has a key, or the end of a turn, answered to where the log tells all gateways what was stored.

    The last lines show that each is heard of when it is.
    """
    one, other = await opened(own_server.url, GATEWAY), await opened(own_server.url, GATEWAY)
    anybody = await opened(own_server.url, ROOT_USER)
    record = ApiKey(id="key_x", sha256="0" * 64, tenant=key.tenant, scopes=["admin"], created_at=0)
    heard: list[KeyChange] = []

    async def hear(change: KeyChange) -> None:
        heard.append(change)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await ApiKeyStore(other).watch(hear)
    writer = Writer(TurnLog(anybody), key)
    await writer.ask()
    false = build_end(await writer.log.turn(key), "cancelled")
    async with aclosing(TurnLog(other).follow(key)) as entries:
        await anext(entries)
        await one.subscribe("readers.acme.x", answer)
        for stores, payload, aim, header in (
            ("bodies.acme.key_x", msgspec.json.encode(record), "keys.key_x", "$KV.KEYS.key_x"),
            ("turns.acme.x.end", msgspec.json.encode(false), subjects.live_end(key), subjects.entry(key, "end")),
        ):
            stored = await one.jetstream.publish(stores, payload)
            read = json.dumps({"seq": stored.seq}).encode()
            await one.publish(f"$JS.API.DIRECT.GET.{stored.stream}", read, reply=aim)
            await one.publish(f"$JS.API.DIRECT.GET.{stored.stream}.{stores}", b"", reply=aim)
            forged = {"Nats-Subject": header, "Nats-Sequence": "9999", "Nats-Time-Stamp": "2026-01-01T00:00:00Z"}
            await one.client.publish("readers.acme.x", payload, aim, forged)
        for stores in ("bodies.acme.key_x", "turns.acme.x.end"):
            await answered(one, stores)
        await ApiKeyStore(anybody).create(record)
        await until(lambda: heard)
        assert [(change.seq, change.record) for change in heard] == [(1, record)]
        end = await writer.end("cancelled")
        assert [entry.seq for entry in await anext(entries)] == [end]
    for connection in (one, other, anybody):
        await connection.close()


async def test_an_answer_by_a_later_connection_is_refused_and_whoever_asks_again_gets_one(nats_url: str) -> None:
    """The right to answer ends with the connection that heard the question: no alarm, for nothing is lost for good."""
    answering, asking = await opened(nats_url, GENERATORS), await opened(nats_url, GATEWAY)
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)
        if len(heard) > 1:
            await message.respond(b"")

    async def ask(timeout_s: float) -> bytes:
        return await Rpc(asking).request(Tenant("local"), MODELS, b"", timeout_s=timeout_s, role=GENERATORS)

    await answering.subscribe(subjects.every_query(MODELS), hear)
    # Whatever it says after a subscription the server hears after that.
    await answering.jetstream.stream_info(STREAM)
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(Refused):
            await ask(timeout_s=0.2)
        await answering.client.force_reconnect()
        await until(lambda: "nats connection restored" in [line["event"] for line in lines])
        await heard[0].respond(b"")
        await until(lambda: "nats refused a late reply" in [line["event"] for line in lines])
    assert refusals(lines) == []
    assert await ask(timeout_s=5) == b""
    for connection in (answering, asking):
        await connection.close()


async def test_the_users_in_the_docs_are_those_of_up(tmp_path: Path) -> None:
    """A NATS of one's own includes the file: `admin` sets up, each process begins, and nobody else is let in."""
    own, _ = ports.find_free(2)
    (tmp_path / "nats-users.conf").write_text((CHECKOUT / "docs" / "nats-users.conf").read_text())
    (tmp_path / "nats.conf").write_text(
        f'listen: "127.0.0.1:{own}"\njetstream {{ store_dir: "{tmp_path}/store" }}\n'
        "accounts { include ./nats-users.conf }\n"
    )
    passwords = {f"TAILRACE_{user.upper()}_PASSWORD": f"of-{user}" for user in RIGHTS}
    binary = str(Path(sys.executable).parent / "nats-server")
    with (tmp_path / "nats.log").open("wb") as log:
        server = await spawn((binary, "-c", str(tmp_path / "nats.conf")), passwords, log.fileno())
    try:
        await nats_server.wait_started(own)
        await streams.apply(f"nats://{ADMIN}:of-{ADMIN}@127.0.0.1:{own}", file_bytes_max=nats_server.GIB)
        for user in RIGHTS:
            connection = await Connection.open(f"nats://{user}:of-{user}@127.0.0.1:{own}", "test")
            await check(connection)
            await connection.close()
        with pytest.raises(LogUnavailable, match="rejects the user or password"):
            await Connection.open(f"nats://{GATEWAY}:of-{ADMIN}@127.0.0.1:{own}", "test")
    finally:
        signal_group(server, SIGKILL)
        await server.wait()
