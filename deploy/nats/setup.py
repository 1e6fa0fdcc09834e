"""Creates the streams, buckets and consumers of stream_configs.py in NATS, and reads which servers have them.

By default, `apply` does not change what exists.
"""

import json
from typing import NamedTuple

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import check
from tailrace.proto.nats.connection import Connection, explain
from tailrace.proto.nats.setup_differences import stream_differences
from tailrace.proto.nats.setup_state import SetupState
from tailrace.proto.nats.stream_configs import (
    BODIES_RETENTION_S,
    BODIES_SHARE,
    BYTES_MAX,
    CONSUMERS,
    EVERY_STREAM,
    RETENTION_S,
    bodies_stream,
    consumers,
    other_streams,
    turns_stream,
)
from tailrace.proto.subjects import BODIES, STREAM

logger = structlog.get_logger()


async def apply(
    connection: Connection,
    *,
    replicas: int = 1,
    bytes_max: int = BYTES_MAX,
    retention_s: float = RETENTION_S,
    bodies_retention_s: float = BODIES_RETENTION_S,
    after: SetupState = SetupState(),  # noqa: B008  # never changed
    repairs: bool = False,
) -> int:
    """Creates missing streams and consumers, then checks all; returns the number of created ones.

    Raises LogMisconfigured, LogUnavailable. With `repairs`, settings of streams that break the protocol are set back.

    `after` is the state before a deletion. A new log continues the sequences, so that no cursor of a client points to
    another turn's entry. A new consumer starts at the first entry that was not acknowledged.
    """
    jetstream = connection.jetstream
    turns = turns_stream(replicas, bytes_max, retention_s)
    turns.first_seq = after.last + 1 if after.last else None
    created = 0
    try:
        bodies = bodies_stream(replicas, int(BODIES_SHARE * bytes_max), bodies_retention_s)
        for config in (turns, bodies, *other_streams(replicas, retention_s)):
            created += await _create_stream(jetstream, config)
            if repairs:
                await _set_back(connection, config)
        for consumer in consumers():
            if floor := after.floors.get(str(consumer.durable_name)):
                consumer.deliver_policy, consumer.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, floor + 1
            created += await _create_consumer(jetstream, consumer)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams cannot be set up: {explain(error)}") from error
    await check(connection)
    return created


class ExistingStreams(NamedTuple):
    """The replicas and the size of the streams that exist; 0 where it is unknown."""

    has_log: bool
    replicas: int
    """The highest number of replicas of a stream."""
    bytes_max: int
    """The byte limit of the log. If the log was deleted, it is computed from the limit of the blobs."""


async def read_existing(connection: Connection) -> ExistingStreams:
    """Returns the replicas and the size of the streams that exist. Raises LogUnavailable."""
    replicas, limits = 0, {}
    for name in EVERY_STREAM:
        try:
            config = (await connection.jetstream.stream_info(name)).config
        except nats.js.errors.NotFoundError:
            continue
        except nats.errors.Error as error:
            raise LogUnavailable(f"the streams cannot be set up: {explain(error)}") from error
        replicas = max(replicas, config.num_replicas or 1)
        limits[name] = max(0, config.max_bytes or 0)
    return ExistingStreams(STREAM in limits, replicas, limits.get(STREAM) or int(limits.get(BODIES, 0) / BODIES_SHARE))


async def lagging_servers(connection: Connection) -> set[str]:
    """Returns the servers with an offline or lagging replica of a stream or consumer.

    Empty without replication. Raises LogUnavailable, also if a stream or consumer has no leader.
    """
    jetstream = connection.jetstream
    try:
        clusters = [(await jetstream.stream_info(name)).cluster for name in EVERY_STREAM]
        for consumer in CONSUMERS:
            clusters.append((await jetstream.consumer_info(STREAM, consumer)).cluster)  # noqa: PERF401
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams do not answer ({type(error).__name__}): retry") from error
    copies = [copy for cluster in clusters if cluster for copy in cluster.replicas or []]
    return {str(copy.name) for copy in copies if copy.offline or not copy.current}


async def _set_back(connection: Connection, ours: StreamConfig) -> None:
    """Sets the settings of a stream that break the protocol to those of `ours`. Raises nats.errors.Error.

    All other settings stay, also those that nats-py does not know, or that nats-server does not let change.
    """
    reply = await connection.client.request(f"$JS.API.STREAM.INFO.{ours.name}")
    config = msgspec.json.decode(reply.data).get("config")
    # Without a leader there is no configuration, which `check` reports.
    names = stream_differences(ours, StreamConfig.from_response({**config})) if config else []
    if not names:
        return
    wanted = ours.as_dict()
    for name in names:
        config.pop(name, None)
        if name in wanted:
            config[name] = wanted[name]
    reply = await connection.client.request(f"$JS.API.STREAM.UPDATE.{ours.name}", json.dumps(config).encode())
    error = msgspec.json.decode(reply.data).get("error")
    logger.warning("settings of a stream were set back", stream=ours.name, settings=names, error=error)


async def _create_stream(jetstream: JetStreamContext, config: StreamConfig) -> bool:
    """Creates the stream if there is none of this name; returns whether it has created it."""
    try:
        await jetstream.stream_info(str(config.name))
    except nats.js.errors.NotFoundError:
        await jetstream.add_stream(config)
        return True
    return False


async def _create_consumer(jetstream: JetStreamContext, config: ConsumerConfig) -> bool:
    # `add_consumer` would silently update an existing durable consumer.
    try:
        await jetstream.consumer_info(STREAM, str(config.durable_name))
    except nats.js.errors.NotFoundError:
        await jetstream.add_consumer(STREAM, config)
        return True
    return False
