"""Streams, buckets and consumers: created once, never changed, and checked when a process starts."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from nats.js.api import AckPolicy, DiscardPolicy, PersistMode, RePublish, RetentionPolicy, StorageType, StreamConfig

from tailrace.deploy.local.nats_cluster import new_specs
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.readiness import http_get
from tailrace.deploy.nats import setup
from tailrace.features.logins.logins import LOGIN_S
from tailrace.proto import subjects
from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats import Connection, check, fullness, stream_configs, streams
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.nats.setup_state import read_setup_state
from tailrace.proto.nats.slots import Slots
from tailrace.proto.subjects import (
    BODIES,
    BUDGETS,
    CLAIMS,
    GENERATORS,
    KEYS,
    LIMITS,
    LOGINS,
    PERSISTENCE,
    SECRETS,
    SLOTS,
    STREAM,
    WEBHOOKS,
)
from tests.conftest import BYTES_MAX
from tests.harness.forks import run_module
from tests.harness.nats_cluster import GIB, NODES, Cluster
from tests.harness.until import until

DAY_S = 24 * 3600
STORED = {"storage": StorageType.FILE, "retention": RetentionPolicy.LIMITS, "allow_direct": True}
EXPLICIT = {"ack_policy": AckPolicy.EXPLICIT, "max_deliver": -1}
# The values of PROTOCOL.md. The budgets' duplicate window is the log's retention: a turn may be settled again.
STREAMS: dict[str, dict[str, Any]] = {
    STREAM: STORED | {"subjects": ["turns.>"], "max_age": DAY_S, "discard": DiscardPolicy.NEW},
    BODIES: STORED
    | {"subjects": ["bodies.>"], "max_age": 7 * DAY_S, "discard": DiscardPolicy.NEW, "max_msgs_per_subject": 1},
    LIMITS: STORED
    | {"subjects": ["limits.>"], "max_age": 7200, "allow_msg_counter": True, "max_msgs_per_subject": 128},
    BUDGETS: STORED
    | {
        "subjects": ["budgets.>"],
        "max_age": 40 * DAY_S,
        "allow_msg_counter": True,
        "max_msgs_per_subject": 128,
        "duplicate_window": DAY_S,
    },
    SLOTS: STORED | {"subjects": ["slots.>"], "max_age": 7 * DAY_S, "allow_msg_ttl": True, "max_msgs_per_subject": 1},
}
CONSUMERS: dict[str, dict[str, Any]] = {
    GENERATORS: EXPLICIT | {"filter_subjects": ["turns.*.*.request"], "ack_wait": 2},
    PERSISTENCE: EXPLICIT | {"filter_subjects": ["turns.*.*.request", "turns.*.*.end"], "ack_wait": 10},
    WEBHOOKS: EXPLICIT | {"filter_subjects": ["turns.*.*.end"], "ack_wait": 10},
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server without streams."""
    async with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
async def bare(server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(server.url, "test")
    yield connection
    await connection.close()


@pytest.mark.rule("R31")
@pytest.mark.rule("R37")
@pytest.mark.rule("R45")
async def test_streams_and_consumers_have_the_settings_of_the_protocol(connection: Connection) -> None:
    for name, expected in STREAMS.items():
        config: Any = (await connection.jetstream.stream_info(name)).config
        assert {setting: getattr(config, setting) for setting in expected} == expected, name
        if name in (STREAM, BODIES):
            assert config.metadata["tailrace_schema"] == "1"
    republish = (await connection.jetstream.stream_info(STREAM)).config.republish
    assert republish is not None
    assert (republish.src, republish.dest) == ("turns.>", "live.>")
    for name, expected in CONSUMERS.items():
        config = (await connection.jetstream.consumer_info(STREAM, name)).config
        assert {setting: getattr(config, setting) for setting in expected} == expected, name


@pytest.mark.rule("R26")
async def test_buckets_keep_their_entries_as_long_as_they_are_needed(bare: Connection) -> None:
    """Claims as long as the log, logins as long as a login, secrets for ever; only the leader reads the last two."""
    await setup.apply(bare, bytes_max=BYTES_MAX, retention_s=3600)
    found = {name: await (await bare.jetstream.key_value(name)).status() for name in (CLAIMS, SECRETS, LOGINS)}
    assert {name: status.ttl for name, status in found.items()} == {CLAIMS: 3600, SECRETS: 0, LOGINS: LOGIN_S}
    assert not any(found[name].stream_info.config.allow_direct for name in (SECRETS, LOGINS))


@pytest.mark.rule("R31")
async def test_an_existing_stream_is_not_changed(bare: Connection) -> None:
    """Sizes and times belong to the operator. Counters of an earlier version, which keep less, are accepted."""
    for config in stream_configs.limit_streams(1)[:2]:
        await bare.jetstream.add_stream(config.evolve(max_msgs_per_subject=1))
    every = len(stream_configs.EVERY_STREAM) + len(CONSUMERS)
    assert await setup.apply(bare, bytes_max=1_000_000, retention_s=3600) == every - 2
    assert await setup.apply(bare, bytes_max=2_000_000, retention_s=7200) == 0
    config = (await bare.jetstream.stream_info(STREAM)).config
    assert (config.max_bytes, config.max_age) == (1_000_000, 3600)
    await check(bare)


@pytest.mark.timeout(120)
async def test_the_command_creates_missing_parts_of_a_cluster_and_a_lost_majority_is_named(tmp_path: Path) -> None:
    """With the copies and the size of the existing streams. Also the log itself: the stream of blobs shows what it had.

    `keys`, `doctor` and the starts of the processes run `check`; `status` runs `read_setup_state`.
    """
    async with Cluster(tmp_path) as cluster:
        jetstream = cluster.connection.jetstream
        for deleted in (BODIES, STREAM):
            size = (await jetstream.stream_info(deleted)).config.max_bytes
            await jetstream.delete_stream(deleted)
            new = ("--new",) if deleted == STREAM else ()
            done = await run_module("tailrace", "streams", *new, **{**os.environ, "TAILRACE_NATS_URL": cluster.url})
            assert done.status == 0, done.err
            config = (await jetstream.stream_info(deleted)).config
            assert config.num_replicas == NODES
            assert config.max_bytes == pytest.approx(size, abs=10)

        await asyncio.gather(*(node.stop(SIGKILL) for node in cluster.nodes[1:]))
        connection = await Connection.open(cluster.urls[0], "test")

        async def message_of(call: Callable[[Connection], Awaitable[object]]) -> str:
            """The message of the error; empty while the remaining server still answers."""
            try:
                await call(connection)
            except LogUnavailable as error:
                return str(error)
            return ""

        async def is_named() -> bool:
            return "no leader" in await message_of(check)

        try:
            # The remaining server notices it after a while, and does not answer before.
            await until(is_named, 30)
            for call in (check, read_setup_state):
                expected = "JetStream has no leader: start the other servers (of three, at least two must run)"
                assert (await message_of(call)).endswith(f": {expected}")
        finally:
            # An open one keeps the event loop from ending: nats-py may swallow the cancellation of its tasks.
            await connection.close()


async def test_the_command_waits_for_the_last_server_of_a_cluster(tmp_path: Path) -> None:
    """Two servers elect a leader, and refuse streams with three copies."""
    servers = [
        NatsServer(each.directory, spec=each) for each in new_specs(tmp_path, sync="default", file_bytes_max=GIB)
    ]
    for server in servers:
        server.log.parent.mkdir(parents=True)
    async with servers[0], servers[1]:

        async def has_leader() -> bool:
            return '"leader"' in (await http_get("127.0.0.1", servers[0].spec.monitor_port, "/jsz")).body

        async def is_connected() -> bool:
            found = await http_get("127.0.0.1", servers[0].spec.monitor_port, "/connz")
            return '"tailrace-streams"' in found.body

        await until(has_leader, 20)
        environ = {**os.environ, "TAILRACE_NATS_URL": servers[0].url}
        creating = asyncio.create_task(
            run_module("tailrace", "streams", "--new", "--replicas", "3", "--gib", "1", **environ)
        )
        await until(is_connected, 20)
        async with servers[2]:
            assert (await creating).status == 0, creating.result().err


WRONG_STREAMS = {
    "allow_msg_counter": StreamConfig(name=LIMITS, subjects=["limits.>"]),
    "max_msgs_per_subject": stream_configs.bodies_stream(1, BYTES_MAX // 8, 3600).evolve(max_msgs_per_subject=-1),
    **{name: stream_configs.audit_stream(1).evolve(**{name: False}) for name in ("deny_delete", "deny_purge")},
    **{
        setting: stream_configs.turns_stream(1, BYTES_MAX, 3600).evolve(**{setting: value})
        for setting, value in {
            "subjects": ["turns.*.*.*", "other"],
            "storage": StorageType.MEMORY,
            "retention": RetentionPolicy.INTEREST,
            "discard": DiscardPolicy.OLD,
            "allow_direct": False,
            "republish": RePublish(src="turns.>", dest="elsewhere.>"),
            "metadata": {"tailrace_schema": "0"},
            # A killed nats-server would lose acknowledged entries. It cannot be changed later.
            "persist_mode": PersistMode.ASYNC,
        }.items()
    },
}
WRONG_CONSUMERS: dict[str, Any] = {"filter_subjects": ["turns.>"], "ack_policy": AckPolicy.ALL, "max_deliver": 5}


@pytest.mark.rule("R31")
@pytest.mark.rule("R37")
async def test_a_stream_or_consumer_with_another_setting_is_refused(bare: Connection) -> None:
    """A consumer that gives up after five deliveries would lose turns silently."""

    async def assert_refused(setting: str) -> None:
        with pytest.raises(LogMisconfigured, match=setting):
            await setup.apply(bare, bytes_max=BYTES_MAX)

    jetstream = bare.jetstream
    for setting, stream in WRONG_STREAMS.items():
        await setup.apply(bare, bytes_max=BYTES_MAX)
        await jetstream.delete_stream(str(stream.name))
        await jetstream.add_stream(stream)
        await assert_refused(setting)
        await jetstream.delete_stream(str(stream.name))
    for consumer in stream_configs.consumers():
        for setting, value in WRONG_CONSUMERS.items():
            await setup.apply(bare, bytes_max=BYTES_MAX)
            await jetstream.delete_consumer(STREAM, str(consumer.durable_name))
            await jetstream.add_consumer(STREAM, consumer.evolve(**{setting: value}))
            await assert_refused(setting)
            await jetstream.delete_consumer(STREAM, str(consumer.durable_name))


# Settings that an operator can change while the system runs, by stream.
EDITS: list[tuple[str, dict[str, Any]]] = [
    # Fences, consumers and copies would not find an entry under its name.
    (STREAM, {"subject_transform": {"src": "turns.>", "dest": "log.>"}}),
    (STREAM, {"republish": {"src": "turns.>", "dest": "elsewhere.>"}}),
    (STREAM, {"max_msg_size": 1000}),
    (STREAM, {"max_msgs": 1000}),
    (STREAM, {"max_msgs_per_subject": 1}),
    (STREAM, {"no_ack": True}),
    (STREAM, {"discard": "old"}),
    (STREAM, {"discard_new_per_subject": True, "max_msgs_per_subject": 9}),
    (STREAM, {"allow_rollup_hdrs": True}),
    (STREAM, {"sources": [{"name": BODIES}]}),
    # nats-server would delete a consumer that is created again and then idle.
    (STREAM, {"consumer_limits": {"inactive_threshold": 1_000_000_000}}),
    (LIMITS, {"duplicate_window": 1_000_000_000}),
    (BUDGETS, {"duplicate_window": 1_000_000_000}),
    (SLOTS, {"subject_delete_marker_ttl": 60_000_000_000, "allow_rollup_hdrs": True}),
    (f"KV_{CLAIMS}", {"subject_delete_marker_ttl": 60_000_000_000, "allow_rollup_hdrs": True, "deny_delete": True}),
    (f"KV_{SECRETS}", {"subject_transform": {"src": "$KV.SECRETS.>", "dest": "x.>"}}),
    (f"KV_{LOGINS}", {"discard": "old"}),
    # No role has the right for the other way of reading.
    (f"KV_{CLAIMS}", {"allow_direct": True}),
    (f"KV_{KEYS}", {"allow_direct": False}),
    # A removed claim would come back when its deletion expires.
    (f"KV_{CLAIMS}", {"max_msgs_per_subject": 5}),
]


async def edit(connection: Connection, stream: str, changes: dict[str, Any]) -> None:
    """Changes settings of a stream as `nats stream edit` does."""
    config = json.loads((await connection.client.request(f"$JS.API.STREAM.INFO.{stream}")).data)["config"]
    body = json.dumps(config | changes).encode()
    reply = json.loads((await connection.client.request(f"$JS.API.STREAM.UPDATE.{stream}", body)).data)
    assert "error" not in reply, reply


@pytest.mark.rule("R31")
@pytest.mark.parametrize(("stream", "changes"), EDITS, ids=[f"{stream}-{next(iter(edit))}" for stream, edit in EDITS])
async def test_an_edit_that_breaks_the_protocol_is_refused_and_set_back_by_up(
    bare: Connection, stream: str, changes: dict[str, Any]
) -> None:
    """The settings of the operator stay."""
    await setup.apply(bare, bytes_max=BYTES_MAX)
    # nats-server cannot take back `allow_msg_ttl`, which counters do not allow, and which breaks nothing.
    await edit(
        bare,
        stream,
        {"description": "Ours."} | ({} if stream in (LIMITS, BUDGETS) else {"allow_msg_ttl": True}) | changes,
    )
    with pytest.raises(LogMisconfigured, match=rf"stream {stream}: {next(iter(changes))} is .*`nats stream edit`"):
        await check(bare)
    await setup.apply(bare, bytes_max=BYTES_MAX, repairs=True)
    assert (await bare.jetstream.stream_info(stream)).config.description == "Ours."


@pytest.mark.rule("R31")
async def test_nats_py_knows_every_setting_of_nats_server(bare: Connection) -> None:
    """It drops the others without a word, so that `check` would not see them."""
    await setup.apply(bare, bytes_max=BYTES_MAX)
    known = {field.name for field in fields(StreamConfig)}
    for name in stream_configs.EVERY_STREAM:
        config = json.loads((await bare.client.request(f"$JS.API.STREAM.INFO.{name}")).data)["config"]
        assert set(config) <= known


@pytest.mark.rule("R31")
async def test_an_expired_value_that_has_left_a_marker_is_absent(bare: Connection) -> None:
    await setup.apply(bare, bytes_max=BYTES_MAX)
    await edit(bare, f"KV_{CLAIMS}", {"subject_delete_marker_ttl": 60_000_000_000, "allow_rollup_hdrs": True})
    bucket = Bucket(bare, CLAIMS, "the claim")
    await bare.jetstream.publish(f"$KV.{CLAIMS}.a", b"old", headers={"Nats-TTL": "1s"})

    async def is_marked() -> bool:
        return "Nats-Marker-Reason" in (
            (await bare.jetstream.get_last_msg(f"KV_{CLAIMS}", f"$KV.{CLAIMS}.a")).headers or {}
        )

    await until(is_marked)
    assert await bucket.get("a") is None
    assert await bucket.create("a", b"new") == b"new"
    value = await bucket.get("a")
    assert value is not None
    assert value.data == b"new"


@pytest.mark.rule("R31")
async def test_an_expired_slot_that_has_left_a_marker_is_free(bare: Connection) -> None:
    await setup.apply(bare, bytes_max=BYTES_MAX)
    await edit(bare, SLOTS, {"subject_delete_marker_ttl": 60_000_000_000, "allow_rollup_hdrs": True})
    slots, tenant = Slots(bare), Tenant("acme")
    assert await slots.acquire(tenant, "owner", "turns", 1, "killed", life_s=1)
    assert await slots.acquire(tenant, "owner", "turns", 1, "next", life_s=1) is None

    async def is_marked() -> bool:
        messages = (await DirectReader(bare, SLOTS).page(subjects.slots(tenant, "owner", "turns"), Seq(1))).messages
        return any("Nats-Marker-Reason" in (message.headers or {}) for message in messages)

    await until(is_marked)
    assert await slots.list_held(tenant, "owner", "turns") == []
    assert await slots.acquire(tenant, "owner", "turns", 1, "next", life_s=60)
    assert [slot.holder for slot in await slots.list_held(tenant, "owner", "turns")] == ["next"]


@pytest.mark.rule("R31")
async def test_a_missing_stream_consumer_or_bucket_is_reported_with_the_command(bare: Connection) -> None:
    jetstream = bare.jetstream
    deletions: list[Callable[[], Awaitable[object]]] = [
        lambda: jetstream.delete_consumer(STREAM, PERSISTENCE),
        lambda: jetstream.delete_key_value(CLAIMS),
        lambda: jetstream.delete_key_value(SECRETS),
        lambda: jetstream.delete_key_value(LOGINS),
        lambda: jetstream.delete_stream(BODIES),
    ]
    with pytest.raises(LogMisconfigured, match="`tailrace streams --new`"):
        await check(bare)
    for delete in deletions:
        await setup.apply(bare, bytes_max=BYTES_MAX)
        await check(bare)
        await delete()
        with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
            await check(bare)


async def test_a_server_that_is_too_old_is_refused(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the version that is needed."""
    assert connection.server_version is not None
    assert connection.server_version >= streams.SERVER_MIN
    monkeypatch.setattr(streams, "SERVER_MIN", (99, 0, 1))
    with pytest.raises(LogMisconfigured, match=r"is older than 99\.0\.1"):
        await check(connection)


async def test_a_server_that_is_down_is_unavailable_and_not_misconfigured(server: NatsServer, bare: Connection) -> None:
    await server.stop(SIGKILL)
    await until(lambda: not bare.is_up)
    with pytest.raises(LogUnavailable):
        await check(bare)
    with pytest.raises(LogUnavailable):
        await setup.apply(bare)


@pytest.mark.rule("R32")
async def test_fullness_is_the_share_of_the_byte_limit(bare: Connection) -> None:
    await setup.apply(bare, bytes_max=100_000)
    assert await fullness(bare) == 0
    await bare.jetstream.publish("turns.t.x.request", b"x" * 50_000)
    assert 0.5 < await fullness(bare) < 0.51
