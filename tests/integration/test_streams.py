"""Streams, buckets and consumers: created once, never changed, checked at startup."""

from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import pytest_asyncio
from nats.js.api import AckPolicy, DiscardPolicy, RePublish, RetentionPolicy, StorageType, StreamConfig

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.login import LOGIN_S
from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.nats import Connection, check, fullness, streams
from tailrace.proto.subjects import (
    BODIES,
    BUDGETS,
    CLAIMS,
    GENERATORS,
    LIMITS,
    LOGINS,
    PERSISTENCE,
    SECRETS,
    SLOTS,
    STREAM,
    WEBHOOKS,
)
from tests.conftest import BYTES_MAX
from tests.harness.until import until


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server with nothing on it."""
    async with NatsServer(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def bare(server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(server.url, "test")
    yield connection
    await connection.close()


@pytest.mark.rule("R31")
async def test_the_stream_is_set_up_as_the_protocol_says(connection: Connection) -> None:
    """Files, limits, refused when full, direct reads, republished."""
    config = (await connection.jetstream.stream_info(STREAM)).config
    assert config.subjects == ["turns.>"]
    assert config.storage == StorageType.FILE
    assert config.retention == RetentionPolicy.LIMITS
    assert config.discard == DiscardPolicy.NEW
    assert config.max_age == 24 * 3600
    assert config.allow_direct
    assert config.republish is not None
    assert (config.republish.src, config.republish.dest) == ("turns.>", "live.>")
    assert config.metadata is not None
    assert config.metadata["tailrace_schema"] == "1"


@pytest.mark.rule("R31")
async def test_the_store_of_bodies_is_set_up_as_the_protocol_says(connection: Connection) -> None:
    """Like the log's stream, for a week; what is stored again takes the place of what it equals."""
    config = (await connection.jetstream.stream_info(BODIES)).config
    assert config.subjects == ["bodies.>"]
    assert config.storage == StorageType.FILE
    assert config.retention == RetentionPolicy.LIMITS
    assert config.discard == DiscardPolicy.NEW
    assert config.max_age == 7 * 24 * 3600
    assert config.max_msgs_per_subject == 1
    assert config.allow_direct
    assert config.metadata is not None
    assert config.metadata["tailrace_schema"] == "1"


@pytest.mark.rule("R37")
async def test_what_limits_are_counted_in_is_set_up_as_the_protocol_says(connection: Connection) -> None:
    """Two streams of counters, and one of places that may have a life."""
    configs = {name: (await connection.jetstream.stream_info(name)).config for name in (LIMITS, BUDGETS, SLOTS)}
    assert [config.subjects for config in configs.values()] == [["limits.>"], ["budgets.>"], ["slots.>"]]
    assert [config.max_age for config in configs.values()] == [2 * 3600, 40 * 24 * 3600, 7 * 24 * 3600]
    assert [bool(config.allow_msg_counter) for config in configs.values()] == [True, True, False]
    assert [bool(config.allow_msg_ttl) for config in configs.values()] == [False, False, True]
    # As long as the log keeps a request, its turn may be settled again.
    assert configs[BUDGETS].duplicate_window == 24 * 3600
    # The names of so many increments outlive a restart of the server.
    assert [config.max_msgs_per_subject for config in configs.values()] == [128, 128, 1]
    for config in configs.values():
        assert (config.storage, config.retention, config.allow_direct) == (
            StorageType.FILE,
            RetentionPolicy.LIMITS,
            True,
        )


@pytest.mark.rule("R37")
async def test_a_stream_of_counters_that_counts_nothing_is_refused(bare: Connection) -> None:
    """Made by somebody as an ordinary stream, it would take every increment for a message."""
    await bare.jetstream.add_stream(StreamConfig(name=LIMITS, subjects=["limits.>"]))
    with pytest.raises(LogMisconfigured, match="allow_msg_counter"):
        await streams.apply(bare, bytes_max=BYTES_MAX)


async def test_counters_that_keep_less_are_taken_as_they_are(bare: Connection) -> None:
    """As an earlier version has made them: a process of this one may take its place while others run."""
    for config in streams.limit_streams(1)[:2]:
        await bare.jetstream.add_stream(config.evolve(max_msgs_per_subject=1))
    await streams.apply(bare, bytes_max=BYTES_MAX)


@pytest.mark.rule("R45")
@pytest.mark.rule("R31")
async def test_the_consumers_are_set_up_as_the_protocol_says(connection: Connection) -> None:
    """Explicit acknowledgement, and they never give up."""
    generators = (await connection.jetstream.consumer_info(STREAM, GENERATORS)).config
    persistence = (await connection.jetstream.consumer_info(STREAM, PERSISTENCE)).config
    assert generators.filter_subjects == ["turns.*.*.request"]
    assert persistence.filter_subjects == ["turns.*.*.request", "turns.*.*.end"]
    webhooks = (await connection.jetstream.consumer_info(STREAM, WEBHOOKS)).config
    assert webhooks.filter_subjects == ["turns.*.*.end"]
    for config in (generators, persistence, webhooks):
        assert config.ack_policy == AckPolicy.EXPLICIT
        assert config.max_deliver == -1
    assert (generators.ack_wait, persistence.ack_wait, webhooks.ack_wait) == (2, 10, 10)


@pytest.mark.rule("R26")
async def test_a_claim_does_not_outlive_its_turn(bare: Connection) -> None:
    """The bucket keeps as long as the stream does."""
    await streams.apply(bare, bytes_max=BYTES_MAX, retention_s=3600)
    bucket = await bare.jetstream.key_value(CLAIMS)
    assert (await bucket.status()).ttl == 3600


async def test_the_secret_is_kept_and_a_login_as_long_as_it_may_last(bare: Connection) -> None:
    """A secret that went by its age would end every login; and what nobody knows must be the leader's word."""
    await streams.apply(bare, bytes_max=BYTES_MAX)
    found = {name: (await (await bare.jetstream.key_value(name)).status()) for name in (SECRETS, LOGINS)}
    assert {name: status.ttl for name, status in found.items()} == {SECRETS: 0, LOGINS: LOGIN_S}
    assert not any(status.stream_info.config.allow_direct for status in found.values())


@pytest.mark.rule("R31")
async def test_what_is_there_is_not_changed(bare: Connection) -> None:
    """Sizes and times are the operator's: a second set-up with others leaves them alone."""
    await streams.apply(bare, bytes_max=1_000_000, retention_s=3600)
    await streams.apply(bare, bytes_max=2_000_000, retention_s=7200)
    config = (await bare.jetstream.stream_info(STREAM)).config
    assert (config.max_bytes, config.max_age) == (1_000_000, 3600)
    await check(bare)


STREAM_DIFFERS: dict[str, Any] = {
    "subjects": ["turns.*.*.*", "other"],
    "storage": StorageType.MEMORY,
    "retention": RetentionPolicy.INTEREST,
    "discard": DiscardPolicy.OLD,
    "allow_direct": False,
    "republish": RePublish(src="turns.>", dest="elsewhere.>"),
    "metadata": {"tailrace_schema": "0"},
}


@pytest.mark.rule("R31")
@pytest.mark.parametrize("setting", STREAM_DIFFERS)
async def test_a_stream_that_differs_is_refused_by_the_setting(bare: Connection, setting: str) -> None:
    """Nothing is silently changed or put up with: the sentence names what differs."""
    config = streams.turns_stream(1, BYTES_MAX, 3600).evolve(**{setting: STREAM_DIFFERS[setting]})
    await bare.jetstream.add_stream(config)
    with pytest.raises(LogMisconfigured, match=setting):
        await streams.apply(bare, bytes_max=BYTES_MAX)


@pytest.mark.rule("R31")
async def test_a_store_of_bodies_that_differs_is_refused(bare: Connection) -> None:
    """One that keeps every chunk that was ever stored would be full of pictures that are there already."""
    config = streams.bodies_stream(1, BYTES_MAX // 8, 3600).evolve(max_msgs_per_subject=-1)
    await bare.jetstream.add_stream(config)
    with pytest.raises(LogMisconfigured, match="max_msgs_per_subject"):
        await streams.apply(bare, bytes_max=BYTES_MAX)


CONSUMER_DIFFERS: dict[str, Any] = {
    "filter_subjects": ["turns.>"],
    "ack_policy": AckPolicy.ALL,
    "max_deliver": 5,
}


@pytest.mark.rule("R31")
@pytest.mark.parametrize("setting", CONSUMER_DIFFERS)
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_consumer_that_differs_is_refused_by_the_setting(bare: Connection, which: int, setting: str) -> None:
    """One that gives up after five times would forget turns in silence."""
    await bare.jetstream.add_stream(streams.turns_stream(1, BYTES_MAX, 3600))
    config = streams.consumers()[which].evolve(**{setting: CONSUMER_DIFFERS[setting]})
    await bare.jetstream.add_consumer(STREAM, config)
    with pytest.raises(LogMisconfigured, match=setting):
        await streams.apply(bare, bytes_max=BYTES_MAX)


async def test_a_server_with_known_holes_is_not_used(bare: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says its version when it is connected to; a sentence says which one is wanted."""
    await streams.apply(bare, bytes_max=BYTES_MAX)
    assert bare.server_version is not None
    assert bare.server_version >= streams.SERVER_MIN
    monkeypatch.setattr(streams, "SERVER_MIN", (99, 0, 1))
    with pytest.raises(LogMisconfigured, match=r"is older than 99\.0\.1"):
        await check(bare)


@pytest.mark.rule("R31")
async def test_what_is_missing_is_said_with_what_to_run(bare: Connection) -> None:
    """The streams, a consumer, and the buckets."""
    with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
        await check(bare)
    await streams.apply(bare, bytes_max=BYTES_MAX)
    await bare.jetstream.delete_consumer(STREAM, PERSISTENCE)
    with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
        await check(bare)
    await streams.apply(bare, bytes_max=BYTES_MAX)
    await bare.jetstream.delete_key_value(CLAIMS)
    with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
        await check(bare)
    for bucket in (SECRETS, LOGINS):
        await streams.apply(bare, bytes_max=BYTES_MAX)
        await bare.jetstream.delete_key_value(bucket)
        with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
            await check(bare)
    await streams.apply(bare, bytes_max=BYTES_MAX)
    await bare.jetstream.delete_stream(BODIES)
    with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
        await check(bare)


async def test_a_server_that_is_away_is_not_one_that_is_set_up_wrongly(server: NatsServer, bare: Connection) -> None:
    """Waiting mends it; running a set-up would not."""
    await server.stop(SIGKILL)
    await until(lambda: not bare.is_up)
    with pytest.raises(LogUnavailable):
        await check(bare)
    with pytest.raises(LogUnavailable):
        await streams.apply(bare)


@pytest.mark.rule("R32")
async def test_fullness_is_the_share_of_the_byte_limit(bare: Connection) -> None:
    """0 at the start; what is stored counts."""
    await streams.apply(bare, bytes_max=100_000)
    assert await fullness(bare) == 0
    await bare.jetstream.publish("turns.t.x.request", b"x" * 50_000)
    assert 0.5 < await fullness(bare) < 0.51
